use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use serde_json::Value;
use tempfile::TempDir;

use super::*;

const SOON: Duration = Duration::from_secs(10);

/// In a process of its own: which part to play, and the file to log to or to leave behind.
const PART: &str = "UNDERPASS_TEST_LOG_PART";
const FILE: &str = "UNDERPASS_TEST_LOG_FILE";

struct Log {
    dir: TempDir,
    handle: LogHandle,
}

impl Log {
    fn text(&self) -> String {
        assert!(self.handle.flush(SOON));
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }
}

/// Logs what `work` does to a file.
fn log_of(format: LogFormat, filter: &str, work: impl FnOnce(&LogHandle)) -> Log {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig {
        format,
        filter: filter.to_owned(),
        output: LogOutput::File(dir.path().join("log")),
    };
    let (subscriber, handle) = build(&config).unwrap();
    tracing::subscriber::with_default(subscriber, || work(&handle));
    Log { dir, handle }
}

#[test]
fn json_is_one_flat_object_per_line() {
    let log = log_of(LogFormat::Json, "info", |_| {
        let span = tracing::info_span!("conn", id = 7);
        let _in = span.enter();
        tracing::info!(
            target: "underpass::access",
            target = %"example.com:443",
            target.source = "sni",
            bytes_sent = 12_u64,
            open = true,
            error = "two\nlines",
            odd = "a \"quote\" \\ \t\r\u{1} \u{e9}",
            shown = ?"b\u{e9}",
            share = 0.5,
            no_number = f64::NAN,
            missing = None::<u64>,
            level = "forged",
            "connection complete"
        );
        tracing::debug!("not shown");
    });
    let text = log.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 1);
    let mut object: Value = serde_json::from_str(lines[0]).unwrap();
    let time = object["time"].take();
    assert!(time.as_str().unwrap().ends_with('Z'), "{time}");
    let expected = serde_json::json!({
        "time": null,
        "level": "INFO",
        "logger": "underpass::access",
        "message": "connection complete",
        "target": "example.com:443",
        "target.source": "sni",
        "bytes_sent": 12,
        "open": true,
        "error": "two\nlines",
        "odd": "a \"quote\" \\ \t\r\u{1} \u{e9}",
        "shown": "\"b\u{e9}\"",
        "share": 0.5,
        "no_number": null,
        "spans": "conn{id=7}",
    });
    assert_eq!(object, expected);
}

#[test]
fn a_library_that_cries_wolf_is_heard_only_if_asked_for() {
    for (filter, lines) in [("trace", 1), ("trace,h2=warn", 2), ("h2=info", 1)] {
        let log = log_of(LogFormat::Text, filter, |_| {
            tracing::warn!(target: "h2::proto", "wolf");
            tracing::warn!(target: "other", "another");
        });
        assert_eq!(log.text().lines().count(), lines, "{filter}");
    }
}

#[test]
fn text_quotes_what_others_wrote() {
    let log = log_of(LogFormat::Text, "info", |_| {
        tracing::warn!(
            decision = %"tunnel",
            error = "x\n decision=deny",
            "connection complete"
        );
    });
    let text = log.text();
    assert_eq!(text.lines().count(), 1);
    let expected = r#"connection complete decision=tunnel error="x\n decision=deny""#;
    assert!(text.trim_end().ends_with(expected), "{text}");
    assert!(!text.contains('\u{1b}'), "a file has no colours: {text:?}");
}

#[test]
fn the_filter_changes_while_running() {
    let log = log_of(LogFormat::Text, "info", |handle| {
        let step = |n: u32| tracing::debug!(n, "step");
        step(1);
        assert_eq!(handle.filter(), "info");
        handle.set_filter("warn,underpass=debug").unwrap();
        assert_eq!(handle.filter(), "warn,underpass=debug");
        step(2);
        for bad in ["", "  ", "underpass=loud", &"a".repeat(5000)] {
            let error = handle.set_filter(bad).unwrap_err().to_string();
            assert!(error.starts_with("log filter `"), "{error}");
            assert!(error.len() < 500, "{error}");
        }
        assert_eq!(handle.filter(), "warn,underpass=debug");
        step(3);
        handle.set_filter("off").unwrap();
        step(4);
    });
    let text = log.text();
    let steps: Vec<_> = text
        .lines()
        .filter_map(|line| line.rsplit_once("n="))
        .map(|(_, n)| n)
        .collect();
    assert_eq!(steps, ["2", "3"]);
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let config = LogConfig {
        output: LogOutput::File("/nonexistent/underpass.log".into()),
        ..LogConfig::default()
    };
    let Err(error) = build(&config) else {
        panic!("opened")
    };
    let error = error.to_string();
    assert!(error.contains("/nonexistent/underpass.log"), "{error}");
    assert!(error.contains("No such file"), "{error}");
}

#[test]
fn a_full_disk_costs_lines_and_nothing_else() {
    let config = LogConfig {
        output: LogOutput::File("/dev/full".into()),
        ..LogConfig::default()
    };
    let (subscriber, handle) = build(&config).unwrap();
    tracing::subscriber::with_default(subscriber, || {
        for n in 0..10 {
            tracing::info!(n, "line");
        }
    });
    assert!(handle.flush(SOON));
    assert_eq!(handle.lost(), 10);
}

#[test]
fn formats_are_named_as_on_the_command_line() {
    for format in [LogFormat::Json, LogFormat::Text] {
        assert_eq!(format.to_string().parse(), Ok(format));
    }
    assert_eq!("xml".parse::<LogFormat>(), Err(InvalidLogFormat));
}

#[test]
fn records_of_the_log_crate_keep_their_origin() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let status = in_own_process("bridge", &path).status().unwrap();
    assert!(status.success());
    let text = fs::read_to_string(path).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let shown: Vec<_> = lines
        .iter()
        .map(|line| {
            let field = |name: &str| line[name].as_str().unwrap().to_owned();
            (field("level"), field("logger"), field("message"))
        })
        .collect();
    let line = |level: &str, logger: &str, message: &str| {
        (level.to_owned(), logger.to_owned(), message.to_owned())
    };
    assert_eq!(
        shown,
        [
            line("INFO", "ebpf", "from the hook"),
            line("DEBUG", "ebpf", "in detail"),
        ]
    );
    assert!(lines[0].get("log.file").is_none());
}

#[test]
fn a_reader_that_went_away_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let went_on = dir.path().join("went-on");
    let mut command = in_own_process("broken-pipe", &went_on);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert!(child.wait().unwrap().success());
    assert!(went_on.exists());
}

/// A process can have its log set up only once, so this plays its part in one of its own.
fn in_own_process(part: &str, file: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", "telemetry::logging::tests::part"])
        .args(["--ignored", "--nocapture"])
        .stdout(Stdio::null())
        .env(PART, part)
        .env(FILE, file);
    command
}

#[test]
#[ignore = "a part of other tests, which start it"]
fn part() {
    let mut config = LogConfig {
        format: LogFormat::Json,
        ..LogConfig::default()
    };
    match env::var(PART).as_deref() {
        Ok("bridge") => {
            config.output = LogOutput::File(env::var_os(FILE).unwrap().into());
            let handle = init(&config).unwrap();
            assert!(matches!(init(&config), Err(LogError::Installed(_))));
            log::info!(target: "ebpf", "from the hook");
            log::debug!(target: "ebpf", "hidden");
            handle.set_filter("debug").unwrap();
            log::debug!(target: "ebpf", "in detail");
            assert!(handle.flush(SOON));
        }
        Ok("broken-pipe") => {
            let handle = init(&config).unwrap();
            // Until the other end is closed.
            for _ in 0..1000 {
                tracing::info!("line");
                assert!(handle.flush(SOON));
                if handle.lost() > 0 {
                    fs::write(env::var_os(FILE).unwrap(), "").unwrap();
                    return;
                }
                thread::sleep(Duration::from_millis(5));
            }
            panic!("every line was written");
        }
        _ => {}
    }
}
