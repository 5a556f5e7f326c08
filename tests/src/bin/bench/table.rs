//! The measurements as a table: medians, and ratios to the client that speaks CONNECT itself.

use super::measure::{Figure, Measured, Mode};
use super::paths::Path;

/// Prints a section for each mode.
pub(crate) fn print(paths: &[&Path], modes: &[&Mode], measured: &[Measured]) {
    for mode in modes {
        let (heading, of): (&str, fn(&Measured) -> f64) = match mode.figure {
            Figure::Rate => ("per second", |one| one.told.rate()),
            Figure::Latency => ("p50, us", |one| one.told.p50),
            Figure::Bytes => ("GiB/s", |one| one.told.gib() / one.told.seconds),
            Figure::Memory => ("KiB each", |one| one.memory / one.told.done),
            Figure::Growth => continue,
        };
        println!("\n{} ({} at a time)", mode.name, mode.workers);
        println!(
            "{:<22} {heading:>12} {:>10} {:>12} {:>15} {:>9} {:>9} {:>12}",
            "", "/ explicit", "/ same proxy", "least..most", "p50, us", "p99, us", "its CPU"
        );
        let of_path = |path| median(values(path, mode, measured, of));
        for path in paths.iter().filter(|path| mode.suits(path)) {
            let all = values(path.name, mode, measured, of);
            let (least, most) = (
                all.iter().copied().fold(f64::INFINITY, f64::min),
                all.iter().copied().fold(0.0, f64::max),
            );
            let value = median(all);
            let ratio = |baseline: Option<f64>| match (value, baseline) {
                (Some(value), Some(baseline)) if mode.figure != Figure::Memory => {
                    format!("{:.2}", value / baseline)
                }
                _ => String::new(),
            };
            let to_explicit = ratio(of_path("explicit"));
            let to_same = ratio(path.baseline().and_then(of_path));
            let cpu = |one: &Measured| match mode.figure {
                Figure::Bytes => one.told.cpu / one.told.gib(),
                _ => one.told.cpu_each(),
            };
            let cpu =
                median(values(path.name, mode, measured, cpu)).filter(|_| path.is_transparent());
            let cpu = match (cpu, mode.figure) {
                (None, _) | (_, Figure::Memory) => String::new(),
                (Some(cpu), Figure::Bytes) => format!("{cpu:.2} s/GiB"),
                (Some(cpu), _) => format!("{cpu:.0} us"),
            };
            println!(
                "{:<22} {:>12} {to_explicit:>10} {to_same:>12} {:>15} {:>9} {:>9} {cpu:>12}",
                path.name,
                number(value.unwrap_or(f64::NAN)),
                format!("{}..{}", number(least), number(most)),
                time(median(values(path.name, mode, measured, |one| one
                    .told
                    .p50))),
                time(median(values(path.name, mode, measured, |one| one
                    .told
                    .p99))),
            );
        }
        if let (Some(read), Some(unread)) = (of_path("underpass-http"), of_path("underpass")) {
            let ratio = read / unread;
            println!("requests that are read / bytes that are not: {ratio:.2}");
        }
    }
}

/// What was measured of this path in this mode.
pub(crate) fn values(
    path: &str,
    mode: &Mode,
    measured: &[Measured],
    of: impl Fn(&Measured) -> f64,
) -> Vec<f64> {
    let such = |one: &&Measured| one.path == path && one.mode == mode.name;
    measured.iter().filter(such).map(of).collect()
}

/// The one in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

pub(crate) fn number(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

fn time(micros: Option<f64>) -> String {
    micros.map_or_else(String::new, |micros| format!("{micros:.0}"))
}
