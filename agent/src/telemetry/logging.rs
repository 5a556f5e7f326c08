//! The log: one line per event, to standard error or a file, as text or JSON.
//!
//! Lines are written by a thread of their own, fed through a bounded queue, so neither a full
//! disk, a closed standard error nor a reader that has stopped reading holds up a connection.
//! What cannot be queued or written is lost and counted ([`LogHandle::lost`]); as soon as writing
//! works again, a warning says how many lines are missing. Nothing panics, and the agent goes on.
//! A file is opened for appending and never rotated by the agent; `copytruncate` suits it.
//!
//! The access log is part of the log: target [`ACCESS_LOG`](crate::telemetry::record::ACCESS_LOG),
//! `info` for connections that were served and `warn` for those that were not. A filter such as
//! `info,underpass::access=off` keeps it out.

mod json;
mod writer;

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::telemetry::text::printable;
use writer::Queue;

/// Bytes of a filter; what is longer was not written by hand.
const MAX_FILTER: usize = 4096;

/// Goes before every filter, which may say otherwise. These libraries warn of each oddity of a peer, or
/// each time that a watch is tried in vain, which could so fill the log.
const QUIET: &str = "h2=error,kube_client=error,kube_runtime=error";

/// How the log is to be written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LogConfig {
    /// How a line looks.
    pub format: LogFormat,
    /// What is logged, in the syntax of `RUST_LOG`: `info`, `warn,underpass::tunnel=debug`.
    pub filter: String,
    /// Where it goes.
    pub output: LogOutput,
}

impl Default for LogConfig {
    /// `info`, as text, to standard error.
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "info".to_owned(),
            output: LogOutput::Stderr,
        }
    }
}

/// How a line looks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// One JSON object: `time`, `level`, `logger`, `message`, the fields, `spans` if there are any.
    Json,
    /// For reading; coloured on a terminal.
    Text,
}

impl FromStr for LogFormat {
    type Err = InvalidLogFormat;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(InvalidLogFormat),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Json => "json",
            Self::Text => "text",
        })
    }
}

/// A log format that there is not.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the log format is `text` or `json`")]
pub struct InvalidLogFormat;

/// Where the log goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LogOutput {
    /// Appended to this file, which is made if it is not there (mode 0640).
    File(PathBuf),
    /// Standard error.
    Stderr,
}

/// Why the log cannot be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter cannot be parsed.
    #[error("log filter `{filter}`: {reason}; try `info` or `warn,underpass=debug`")]
    Filter {
        /// The filter, made printable.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The process has a logger already.
    #[error("logging was set up before in this process")]
    Installed(#[from] TryInitError),
    /// The file cannot be opened.
    #[error("log file {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no thread to be had for writing.
    #[error("the thread that writes the log cannot be started, is the thread limit reached? {0}")]
    Thread(io::Error),
}

/// Sets up the log of this process, records of the `log` crate included.
///
/// # Errors
/// See [`LogError`]; without success nothing is logged.
pub fn init(config: &LogConfig) -> Result<LogHandle, LogError> {
    let (subscriber, handle) = build(config)?;
    subscriber.try_init()?;
    // `try_init` bridges records of the `log` crate, but fixes their highest level to what the
    // filter says now. The bridge asks the filter too, so that one alone may decide.
    log::set_max_level(log::LevelFilter::Trace);
    Ok(handle)
}

/// Shows and changes what is logged while the agent runs. Clones belong to the same log.
#[derive(Clone)]
pub struct LogHandle {
    filter: Arc<Mutex<String>>,
    reload: reload::Handle<EnvFilter, Registry>,
    queue: Queue,
}

impl LogHandle {
    /// The filter in force.
    pub fn filter(&self) -> String {
        self.filter.lock().clone()
    }

    /// Puts another filter in force.
    ///
    /// # Errors
    /// When it cannot be parsed; then the old one stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), LogError> {
        let parsed = parse(filter)?;
        let mut current = self.filter.lock();
        // It fails only if the subscriber is gone, and then there is nothing to filter.
        let _ = self.reload.reload(parsed);
        filter.clone_into(&mut current);
        Ok(())
    }

    /// Lines lost so far, because the queue was full or could not be written.
    pub fn lost(&self) -> u64 {
        self.queue.lost()
    }

    /// Waits until all lines logged so far are written, at most `limit`; says whether they are.
    /// To be called before the process exits.
    pub fn flush(&self, limit: Duration) -> bool {
        self.queue.flush(limit)
    }
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogHandle")
            .field("filter", &self.filter())
            .finish_non_exhaustive()
    }
}

/// The subscriber and its handle, not yet installed.
pub(crate) fn build(
    config: &LogConfig,
) -> Result<(impl tracing::Subscriber + Send + Sync + use<>, LogHandle), LogError> {
    let filter = parse(&config.filter)?;
    let (output, ansi): (Box<dyn Write + Send>, bool) = match &config.output {
        LogOutput::File(path) => {
            let file = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o640)
                .open(path);
            let file = file.map_err(|source| LogError::Open {
                path: path.clone(),
                source,
            })?;
            (Box::new(file), false)
        }
        LogOutput::Stderr => (Box::new(io::stderr()), io::stderr().is_terminal()),
    };
    let queue = Queue::start(output).map_err(LogError::Thread)?;

    // By default a failed write is reported with `eprintln!`, which panics if that fails too.
    let layer = tracing_subscriber::fmt::layer()
        .log_internal_errors(false)
        .with_writer(queue.clone());
    let layer = match config.format {
        LogFormat::Json => layer.with_ansi(false).event_format(json::Json).boxed(),
        LogFormat::Text => layer.with_ansi(ansi).boxed(),
    };
    let (filter, reload) = reload::Layer::new(filter);
    let handle = LogHandle {
        filter: Arc::new(Mutex::new(config.filter.clone())),
        reload,
        queue,
    };
    Ok((
        tracing_subscriber::registry().with(filter).with(layer),
        handle,
    ))
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    let reject = |reason: String| LogError::Filter {
        filter: printable(&filter, 80),
        reason,
    };
    if filter.trim().is_empty() {
        return Err(reject("it is empty".to_owned()));
    }
    if filter.len() > MAX_FILTER {
        return Err(reject(format!("it is longer than {MAX_FILTER} bytes")));
    }
    EnvFilter::builder()
        .parse(format!("{QUIET},{filter}"))
        .map_err(|error| reject(printable(&error, 200)))
}

#[cfg(test)]
mod tests;
