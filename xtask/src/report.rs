//! What a verb tells the person who called it: progress on standard error, results on standard
//! output.

use std::{
    fmt,
    time::{Duration, Instant},
};

/// A result of the verb, for people and scripts.
#[expect(clippy::print_stdout, reason = "the result of a command")]
pub(crate) fn result(text: impl fmt::Display) {
    println!("{text}");
}

/// A line about what is going on.
#[expect(clippy::print_stderr, reason = "progress of a command")]
pub(crate) fn progress(text: impl fmt::Display) {
    eprintln!("{text}");
}

/// The last line of a verb that failed.
pub(crate) fn failure(error: &anyhow::Error) {
    progress(format_args!("error: {error:#}"));
}

/// Runs one named part of a verb, and says what came of it and how long it took.
pub(crate) fn timed<T: fmt::Display>(
    name: &str,
    part: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<()> {
    let start = Instant::now();
    let result = part();
    let took = Seconds(start.elapsed());
    match &result {
        Ok(outcome) => progress(format_args!("[{name}] {outcome} ({took})")),
        Err(_) => progress(format_args!("[{name}] failed ({took})")),
    }
    result.map(|_| ())
}

/// A duration as people read it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seconds(pub(crate) Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        if seconds < 60 {
            write!(f, "{:.1} s", self.0.as_secs_f64())
        } else {
            write!(f, "{} min {:02} s", seconds / 60, seconds % 60)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_naturally() {
        assert_eq!(Seconds(Duration::from_millis(1_250)).to_string(), "1.2 s");
        assert_eq!(Seconds(Duration::from_secs(125)).to_string(), "2 min 05 s");
    }
}
