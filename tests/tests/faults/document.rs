//! The table for readers.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use underpass_tests::Must as _;

use crate::row::{Row, all};

const HEAD: &str = "# Faults\n\n\
    What may go wrong, what the program sees of it and how soon, and what the operator is told. \
    Each row is a test of that name\nin `tests/tests/faults`, which writes this page. After every \
    one of them nothing has gone past the tunnel, and no connection,\ntunnel or descriptor is left \
    in the agent.\n\n\
    The wall clock cannot be changed for one process, and is used for the time stamps of the log \
    only; `clocks_differ` sets the others.\n\
    How long silent and half-closed connections live (`SI`) is too long for a test here: the \
    relay's own tests show it.\n\n\
    | fault | the program sees | within | the operator sees |\n|---|---|---|---|\n";

fn operator(row: &Row) -> String {
    let mut told = Vec::new();
    if let Some(logged) = row.log {
        let mut text = match logged.flags {
            "" => "a record without flags".to_owned(),
            flags => format!("`{flags}`"),
        };
        if let Some(code) = row.request {
            let _ = write!(text, ", `response_code` {code}");
        }
        if !logged.code.is_empty() {
            let _ = write!(text, ", code {}", logged.code);
        }
        for word in logged.words {
            let _ = write!(text, ", “{word}”");
        }
        told.push(text);
    }
    if let Some((name, labels)) = row.counted {
        let labels: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{key}=\"{value}\""))
            .collect();
        told.push(match labels.as_slice() {
            [] => format!("`{name}`"),
            labels => format!("`{name}` of {}", labels.join(", ")),
        });
    }
    told.join("; ")
}

fn page() -> String {
    all().fold(HEAD.to_owned(), |mut page, row| {
        let (name, fault, workload) = (row.name, row.fault, row.workload);
        let (within, operator) = (row.within, operator(row));
        let _ = writeln!(
            page,
            "| `{name}`: {fault} | {workload} | {within} s | {operator} |"
        );
        page
    })
}

/// `UNDERPASS_WRITE_DOCS=1` has it write the page.
#[test]
fn the_page_for_readers_is_this_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/faults.md");
    if std::env::var_os("UNDERPASS_WRITE_DOCS").is_some() {
        fs::write(&path, page()).must("write docs/faults.md");
    }
    let written = fs::read_to_string(&path).must("read docs/faults.md");
    assert!(
        written == page(),
        "docs/faults.md is not this table: UNDERPASS_WRITE_DOCS=1 cargo test -p underpass-tests \
         --test faults page writes it"
    );
}

#[test]
fn the_table_has_forty_rows_and_each_says_something() {
    assert!(all().count() >= 40, "{}", all().count());
    for row in all() {
        assert!(!row.fault.is_empty() && row.within > 0, "{}", row.name);
    }
}
