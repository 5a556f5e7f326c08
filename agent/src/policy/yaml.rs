//! YAML into trees that know their lines, and trees into types.
//!
//! The only place that knows the YAML crate. Parsing and typing are two steps so that one wrong
//! field hides no other: [`parse`] reports syntax, [`decode`] everything else, with key and line.

mod decode;
mod node;

pub(super) use decode::{Fault, FieldNotes, decode, take_out_ignored};
pub(super) use node::{Node, Value};

use serde_saphyr::{
    DefaultMessageFormatter, DuplicateKeyPolicy, Error, MessageFormatter, NonFiniteFloatPolicy,
    Options,
};

/// How deep a document may nest; policy needs less than ten levels.
const MAX_DEPTH: usize = 32;

/// How many events aliases may add to a file.
const MAX_ALIASED_EVENTS: usize = 100_000;

/// One document of a stream, or why it is none.
pub(super) type Parsed = Result<Node, SyntaxError>;

/// A document that is not YAML, or more of it than policy takes.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct SyntaxError {
    /// The line in the file, from 1.
    pub(super) line: u32,
    /// What is wrong there; it quotes nothing from the file.
    pub(super) reason: String,
}

/// All documents of a stream, in order; empty ones are left out. Documents after a syntax error
/// cannot be found, so it ends the stream; other errors end only their document.
pub(super) fn parse(text: &str) -> Vec<Parsed> {
    let mut bytes = text.as_bytes();
    serde_saphyr::read_with_options::<_, Node>(&mut bytes, options())
        .map(|document| document.map_err(|err| syntax_error(&err)))
        .collect()
}

fn options() -> Options {
    serde_saphyr::options! {
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_ALIASED_EVENTS,
        },
        budget: serde_saphyr::budget! { max_depth: MAX_DEPTH },
        // Repeated keys are found by `Node`, so that they hide nothing else.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        emit_comments: false,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        // `no` and `on` are words, as YAML 1.2 has it.
        strict_booleans: true,
        // A snippet could show a secret.
        with_snippet: false,
    }
}

fn syntax_error(err: &Error) -> SyntaxError {
    let reason = match err {
        Error::AliasError { error, .. } => return syntax_error(error).at(err),
        Error::AliasReplayLimitExceeded { .. } | Error::Budget { .. } => {
            "the document is too large or too deep for a policy".to_owned()
        }
        _ => DefaultMessageFormatter.format_message(err).into_owned(),
    };
    SyntaxError { line: 1, reason }.at(err)
}

impl SyntaxError {
    fn at(mut self, err: &Error) -> Self {
        if let Some(location) = err.location() {
            self.line = node::line(&location);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(text: &str) -> Vec<Result<u32, (u32, String)>> {
        parse(text)
            .into_iter()
            .map(|document| document.map(|n| n.line).map_err(|e| (e.line, e.reason)))
            .collect()
    }

    #[test]
    fn empty_documents_are_left_out() {
        assert_eq!(summary(""), []);
        assert_eq!(summary("---\n---\n# nothing\n---\n~\n...\n"), []);
        assert_eq!(
            summary("# x\n\n---\na: 1\n---\n---\n# y\n---\nb: 1\n"),
            [Ok(4), Ok(9)]
        );
    }

    #[test]
    fn a_syntax_error_has_its_line_and_does_not_hide_what_stands_before() {
        let found = summary("a: 1\n---\nb:\n  - x\n c: 2\n");
        assert_eq!(found[0], Ok(1));
        assert!(matches!(&found[1], Err((5, reason)) if !reason.is_empty()));
        assert_eq!(found.len(), 2);
        assert_eq!(
            summary("a:\n  b: *nowhere\n"),
            [Err((2, "alias references unknown anchor".into()))]
        );
    }

    #[test]
    fn keys_that_are_no_strings_end_only_their_document() {
        let found = summary("? {a: b}\n: 1\n---\nx: 1\n");
        assert!(matches!(found[0], Err((1, _))));
        assert_eq!(found[1], Ok(4));
    }

    #[test]
    fn bombs_are_refused() {
        let too_large = "the document is too large or too deep for a policy";
        let deep = format!("a: 1\n---\nb: {}{}\n", "[".repeat(40), "]".repeat(40));
        assert_eq!(summary(&deep), [Ok(1), Err((3, too_large.into()))]);

        let mut laughs = String::from("a: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for n in 1..8 {
            let refs = vec![format!("*a{}", n - 1); 10].join(",");
            laughs.push_str(&format!("k{n}: &a{n} [{refs}]\n"));
        }
        let found = summary(&laughs);
        assert!(
            matches!(&found[..], [Err((_, reason))] if reason == too_large),
            "{found:?}"
        );
    }
}
