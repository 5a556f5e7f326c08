//! curl as a workload, and what it says it saw.

use std::ffi::OsString;

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::Must as _;
use crate::process::{Cmd, Finished};

/// The options of one request.
pub struct Curl {
    args: Vec<OsString>,
}

impl Curl {
    /// A request for `url` that gives up after 20 seconds.
    pub fn get(url: &str) -> Self {
        let curl = Self { args: Vec::new() };
        // --disable (first): no configuration file. The body goes to standard output.
        curl.args([
            "--disable",
            "--silent",
            "--show-error",
            "--globoff",
            "--max-time",
            "20",
        ])
        .args(["--write-out", "%{stderr}\n%{json}"])
        .args([url])
    }

    /// Trusts this authority only.
    #[must_use]
    pub fn trusting(self, ca: &Path) -> Self {
        self.args([OsString::from("--cacert"), ca.into()])
    }

    /// Any further options.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item: Into<OsString>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// The program and its options, for something else to run.
    pub fn command_line(&self) -> Vec<OsString> {
        [OsString::from("curl")]
            .into_iter()
            .chain(self.args.iter().cloned())
            .collect()
    }

    /// Runs it by `launcher`: a command that takes the program and its arguments as its last ones,
    /// or one for curl itself.
    #[track_caller]
    pub fn run_by(&self, launcher: Cmd) -> Seen {
        Seen::read(
            launcher
                .args(self.command_line())
                .run(Duration::from_secs(30)),
        )
    }

    /// Runs it as `curl`, a command for the program curl.
    #[track_caller]
    pub fn run(&self, curl: Cmd) -> Seen {
        Seen::read(curl.args(&self.args).run(Duration::from_secs(30)))
    }
}

/// What curl saw.
#[derive(Debug)]
pub struct Seen {
    /// curl's exit status: 0, or the number of its error.
    pub exit: i32,
    /// The status of the last answer, 0 without one.
    pub status: u64,
    /// `1.0`, `1.1` or `2`; `0` without an answer.
    pub http_version: String,
    /// The address curl believes it is connected to.
    pub remote_ip: String,
    /// The status of the answer to curl's own CONNECT, 0 without one.
    pub connect_status: u64,
    /// 0 if the certificate was verified.
    pub verification: u64,
    /// The body.
    pub body: String,
    /// curl's own words about an error.
    pub error: String,
    /// How long it took.
    pub elapsed: Duration,
}

impl Seen {
    /// Panics with everything curl saw unless there was an answer with status 200.
    #[track_caller]
    pub fn expect_ok(self) -> Self {
        assert!(
            self.exit == 0 && self.status == 200,
            "curl failed: {self:#?}"
        );
        self
    }

    #[track_caller]
    fn read(finished: Finished) -> Self {
        // A launcher may have written its log to the same standard error.
        let line = finished
            .stderr
            .lines()
            .rev()
            .find(|line| line.contains("\"response_code\""));
        let Some(line) = line else {
            panic!("curl was not run: {finished:#?}");
        };
        let json: Value = serde_json::from_str(line).must("read curl's report");
        let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str| json[key].as_u64().unwrap_or_default();
        Self {
            exit: finished.status.code().unwrap_or(-1),
            status: number("response_code"),
            http_version: text("http_version"),
            remote_ip: text("remote_ip"),
            connect_status: number("http_connect"),
            verification: number("ssl_verify_result"),
            body: finished.stdout,
            error: text("errormsg"),
            elapsed: finished.elapsed,
        }
    }
}
