//! The measurements as a table: medians, and ratios to the client that speaks CONNECT itself.

use super::measure::{Figure, Measured, Mode};
use super::paths::Path;

/// Prints a section for each mode.
pub(crate) fn print(paths: &[&Path], modes: &[&Mode], measured: &[Measured]) {
    for mode in modes {
        let (heading, of): (&str, fn(&Measured) -> f64) = match mode.figure {
            Figure::Rate => ("per second", |one| one.done / one.seconds),
            Figure::Latency => ("p50, us", |one| one.p50),
            Figure::Bytes => ("GiB/s", |one| gib(one) / one.seconds),
            Figure::Memory => ("KiB each", |one| one.memory / one.done),
            Figure::Growth => continue,
        };
        println!("\n{} ({} at a time)", mode.name, mode.workers);
        println!(
            "{:<22} {heading:>12} {:>10} {:>15} {:>9} {:>9} {:>12}",
            "", "/ explicit", "least..most", "p50, us", "p99, us", "its CPU"
        );
        let explicit = median(values("explicit", mode, measured, of));
        for path in paths.iter().filter(|path| mode.suits(path)) {
            let all = values(path.name, mode, measured, of);
            let (least, most) = (
                all.iter().copied().fold(f64::INFINITY, f64::min),
                all.iter().copied().fold(0.0, f64::max),
            );
            let value = median(all);
            let ratio = match explicit {
                Some(explicit) if mode.figure != Figure::Memory => {
                    format!("{:.2}", value.unwrap_or(f64::NAN) / explicit)
                }
                _ => String::new(),
            };
            let cpu = |one: &Measured| match mode.figure {
                Figure::Bytes => one.cpu / gib(one),
                _ => one.cpu * 1e6 / one.done,
            };
            let cpu =
                median(values(path.name, mode, measured, cpu)).filter(|_| path.is_transparent());
            let cpu = match (cpu, mode.figure) {
                (None, _) | (_, Figure::Memory) => String::new(),
                (Some(cpu), Figure::Bytes) => format!("{cpu:.2} s/GiB"),
                (Some(cpu), _) => format!("{cpu:.0} us"),
            };
            println!(
                "{:<22} {:>12} {ratio:>10} {:>15} {:>9} {:>9} {cpu:>12}",
                path.name,
                number(value.unwrap_or(f64::NAN)),
                format!("{}..{}", number(least), number(most)),
                time(median(values(path.name, mode, measured, |one| one.p50))),
                time(median(values(path.name, mode, measured, |one| one.p99))),
            );
        }
        let of_path = |path| median(values(path, mode, measured, of));
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

fn gib(one: &Measured) -> f64 {
    one.bytes / (1u64 << 30) as f64
}

fn number(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

fn time(micros: Option<f64>) -> String {
    micros.map_or_else(String::new, |micros| format!("{micros:.0}"))
}
