//! Requests per second and their time, over the number of connections.

use std::fmt::Write as _;

use super::measure::{Figure, MODES, Measured};
use super::paths::Path;
use super::table::{median, values};

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 300.0;
const MARGIN: f64 = 60.0;

/// One line each; fit for those who see colours differently.
const COLOURS: [&str; 5] = ["#000000", "#0072b2", "#56b4e9", "#d55e00", "#009e73"];

/// The picture as SVG; without lines if none of this was measured.
pub(crate) fn draw(paths: &[&Path], measured: &[Measured]) -> String {
    let growth: Vec<_> = MODES
        .iter()
        .filter(|mode| mode.figure == Figure::Growth)
        .collect();
    let panel = |of: fn(&Measured) -> f64| -> Vec<Line> {
        let lines = paths.iter().map(|path| Line {
            name: path.name,
            points: growth
                .iter()
                .filter_map(|mode| {
                    let value = median(values(path.name, mode, measured, of))?;
                    Some((mode.workers as f64, value))
                })
                .collect(),
        });
        lines.filter(|line| !line.points.is_empty()).collect()
    };
    let panels = [
        ("requests per second", panel(|one| one.told.rate())),
        (
            "time of a request (p50), ms",
            panel(|one| one.told.p50 / 1000.0),
        ),
        (
            "time of a request (p99), ms",
            panel(|one| one.told.p99 / 1000.0),
        ),
    ];
    let step = WIDTH + 2.0 * MARGIN;
    let (width, height) = (step * panels.len() as f64, HEIGHT + 2.5 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (index, (title, lines)) in panels.iter().enumerate() {
        let left = MARGIN + step * index as f64;
        let _ = writeln!(svg, "<g transform=\"translate({left} {MARGIN})\">");
        axes(&mut svg, title, lines);
        let _ = writeln!(svg, "</g>");
    }
    svg.push_str("</svg>\n");
    svg
}

struct Line {
    name: &'static str,
    /// How many connections, and the value.
    points: Vec<(f64, f64)>,
}

/// Both axes are logarithmic: on the lower one the number of connections.
fn axes(svg: &mut String, title: &str, lines: &[Line]) {
    let points = || lines.iter().flat_map(|line| line.points.iter());
    let range = |pick: fn(&(f64, f64)) -> f64| {
        let least = points().map(pick).fold(f64::INFINITY, f64::min);
        let most = points().map(pick).fold(0.0, f64::max);
        (least.log10().floor(), most.log10().ceil())
    };
    let (x_range, y_range) = (range(|point| point.0), range(|point| point.1));
    let x = |value: f64| scale(value, x_range) * WIDTH;
    let y = |value: f64| HEIGHT - scale(value, y_range) * HEIGHT;
    let _ = writeln!(
        svg,
        "<text x=\"0\" y=\"-14\" font-size=\"14\">{title}</text>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" stroke=\"#888\"/>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">connections</text>",
        WIDTH / 2.0,
        HEIGHT + 36.0,
    );
    for exponent in decades(x_range) {
        let at = x(10f64.powi(exponent));
        let _ = writeln!(
            svg,
            "<path d=\"M{at:.1} 0V{HEIGHT}\" stroke=\"#ddd\"/>\
             <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            HEIGHT + 18.0,
            10f64.powi(exponent),
        );
    }
    for exponent in decades(y_range) {
        let at = y(10f64.powi(exponent));
        let _ = writeln!(
            svg,
            "<path d=\"M0 {at:.1}H{WIDTH}\" stroke=\"#ddd\"/>\
             <text x=\"-6\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            at + 4.0,
            10f64.powi(exponent),
        );
    }
    for (index, (line, colour)) in lines.iter().zip(COLOURS).enumerate() {
        let points = line
            .points
            .iter()
            .map(|(count, value)| format!("{:.1},{:.1}", x(*count), y(*value)));
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{}\" y=\"{}\" fill=\"{colour}\">{}</text>",
            points.collect::<Vec<_>>().join(" "),
            10 + 85 * index,
            HEIGHT + 60.0,
            line.name,
        );
    }
}

fn scale(value: f64, (least, most): (f64, f64)) -> f64 {
    (value.log10() - least) / (most - least).max(1.0)
}

fn decades((least, most): (f64, f64)) -> impl Iterator<Item = i32> {
    let (least, most) = (least as i32, most as i32);
    // Nothing was measured, where these are no numbers.
    (least..=most).take(20)
}
