//! What programs tell each other of a trace (W3C Trace Context, <https://www.w3.org/TR/trace-context/>).

use std::fmt;

use aws_lc_rs::rand;

/// The field that names the trace and the span that caused a request (section 3.2).
pub const TRACEPARENT: &str = "traceparent";

/// The field in which tracing systems keep what is theirs (section 3.3).
pub const TRACESTATE: &str = "tracestate";

/// The length of a value of version 00 (section 3.2.2).
const LEN: usize = 55;

/// The flags that are passed on: sampled, and random (level 2, section 3.2.2.3.2).
const KNOWN_FLAGS: u8 = 0b11;
const SAMPLED: u8 = 0b01;

/// Identifies a trace; never all zero.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TraceId([u8; 16]);

impl TraceId {
    /// A new one. `None`: the system gives no random numbers.
    pub(crate) fn random() -> Option<Self> {
        random().map(Self)
    }

    /// As it goes over the wire.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The part of it that is random in any case (section 4.1).
    pub(super) fn low(self) -> u64 {
        let [.., a, b, c, d, e, f, g, h] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

/// Identifies a span in its trace; never all zero.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SpanId([u8; 8]);

impl SpanId {
    pub(super) fn random() -> Option<Self> {
        random().map(Self)
    }

    /// As it goes over the wire.
    pub fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).ok()?;
    bytes.iter().any(|byte| *byte != 0).then_some(bytes)
}

/// A span, for those who refer to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SpanContext {
    /// The trace it is in.
    pub trace: TraceId,
    /// The span.
    pub span: SpanId,
    flags: u8,
}

impl SpanContext {
    pub(super) fn new(trace: TraceId, span: SpanId, parent: Option<&Self>) -> Self {
        let kept = parent.map_or(0, |parent| parent.flags);
        let flags = kept | SAMPLED;
        Self { trace, span, flags }
    }

    /// Reads the values of all [`TRACEPARENT`] fields of a message. `None`: there is none, or not
    /// one alone, or it is malformed; then a message is treated as if it had none.
    pub fn read<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let mut values = values.into_iter();
        let value = values.next().filter(|_| values.next().is_none())?;
        Self::parse(value.trim_ascii())
    }

    /// Reads one value, of version 00 or a later one, which begins in the same way (section 4.3).
    fn parse(value: &[u8]) -> Option<Self> {
        let (known, rest) = value.split_at_checked(LEN)?;
        let version: [u8; 1] = hex(&known[..2])?;
        let is_whole = match version {
            [0xff] => false,
            [0] => rest.is_empty(),
            _ => rest.is_empty() || rest.starts_with(b"-"),
        };
        let are_separated = [2, 35, 52].iter().all(|at| known[*at] == b'-');
        if !is_whole || !are_separated {
            return None;
        }
        let trace = hex(&known[3..35]).filter(|id: &[u8; 16]| id.iter().any(|byte| *byte != 0))?;
        let span = hex(&known[36..52]).filter(|id: &[u8; 8]| id.iter().any(|byte| *byte != 0))?;
        let [flags] = hex(&known[53..])?;
        Some(Self {
            trace: TraceId(trace),
            span: SpanId(span),
            flags: flags & KNOWN_FLAGS,
        })
    }

    /// Whether whoever told of it records it.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The flags as they go on.
    pub fn flags(&self) -> u8 {
        self.flags
    }
}

impl fmt::Display for SpanContext {
    /// As a value of [`TRACEPARENT`], version 00.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |f: &mut fmt::Formatter<'_>, bytes: &[u8]| {
            bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        };
        f.write_str("00-")?;
        hex(f, self.trace.as_bytes())?;
        f.write_str("-")?;
        hex(f, self.span.as_bytes())?;
        write!(f, "-{:02x}", self.flags)
    }
}

/// Two lower-case digits for each byte (section 3.2.1).
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// What becomes of the fields of a request that goes on below a span of ours.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Onward {
    parent: String,
    is_new_trace: bool,
}

impl Onward {
    pub(super) fn new(context: &SpanContext, is_new_trace: bool) -> Self {
        Self {
            parent: context.to_string(),
            is_new_trace,
        }
    }

    /// Each field of these names is to be replaced by one with the value, or taken out. Those that
    /// are not named stay as they are.
    pub fn changes(&self) -> impl Iterator<Item = (&'static str, Option<&str>)> {
        // What was kept of another trace says nothing of this one (section 4.3).
        let state = self.is_new_trace.then_some((TRACESTATE, None));
        std::iter::once((TRACEPARENT, Some(&*self.parent))).chain(state)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn read(value: &str) -> Option<SpanContext> {
        SpanContext::read([value.as_bytes()])
    }

    /// The cases of the test suite of the W3C's working group (its `test/test.py`).
    #[test]
    fn the_w3c_cases() {
        let ids = "12345678901234567890123456789012-1234567890123456";
        for good in [
            format!("00-{ids}-00"),
            format!("00-{ids}-01"),
            // Versions to come: the same, or more after a dash.
            format!("cc-{ids}-01"),
            format!("cc-{ids}-01-what-the-future-will-be-like"),
            // Flags to come.
            format!("00-{ids}-ff"),
            // White space around a value is none of it (RFC 9110 section 5.5).
            format!(" \t00-{ids}-01 \t"),
        ] {
            assert!(read(&good).is_some(), "{good}");
        }
        for bad in [
            String::new(),
            "00".to_owned(),
            format!("00-{ids}"),
            format!("00-{ids}-01-what-the-future-will-be-like"),
            format!("00-{ids}-01."),
            format!("cc-{ids}-01.what-the-future-will-not-be-like"),
            format!("ff-{ids}-01"),
            format!(".0-{ids}-01"),
            format!("0.-{ids}-01"),
            format!("0-{ids}-01"),
            format!("000-{ids}-01"),
            format!("00-{ids}-.0"),
            format!("00-{ids}-0."),
            format!("00-{ids}-1"),
            format!("00-{ids}-001"),
            "00-00000000000000000000000000000000-1234567890123456-01".to_owned(),
            "00-.2345678901234567890123456789012-1234567890123456-01".to_owned(),
            "00-1234567890123456789012345678901.-1234567890123456-01".to_owned(),
            "00-1234567890123456789012345678901-1234567890123456-01".to_owned(),
            "00-123456789012345678901234567890123-1234567890123456-01".to_owned(),
            "00-12345678901234567890123456789012-0000000000000000-01".to_owned(),
            "00-12345678901234567890123456789012-.234567890123456-01".to_owned(),
            "00-12345678901234567890123456789012-123456789012345.-01".to_owned(),
            "00-12345678901234567890123456789012-123456789012345-01".to_owned(),
            "00-12345678901234567890123456789012-12345678901234567-01".to_owned(),
            GOOD.to_uppercase(),
            GOOD.replace('-', "_"),
            format!("{GOOD},{GOOD}"),
        ] {
            assert_eq!(read(&bad), None, "{bad}");
        }
        let twice = SpanContext::read([GOOD.as_bytes(), GOOD.as_bytes()]);
        assert_eq!(twice, None, "more than one field is none");
        assert_eq!(SpanContext::read([]), None);
    }

    #[test]
    fn what_is_read_is_written_the_same_but_for_what_nobody_knows() {
        assert_eq!(read(GOOD).unwrap().to_string(), GOOD);
        let later = GOOD.replacen("00", "cc", 1).replace("-01", "-fd-more");
        assert_eq!(read(&later).unwrap().to_string(), GOOD);
        let random = GOOD.replace("-01", "-03");
        assert_eq!(read(&random).unwrap().to_string(), random);
        assert!(!read(&GOOD.replace("-01", "-02")).unwrap().is_sampled());
    }

    #[test]
    fn a_new_trace_has_no_state_of_an_old_one() {
        let context = read(GOOD).unwrap();
        let joined = Onward::new(&context, false);
        let changes: Vec<_> = joined.changes().collect();
        assert_eq!(changes, [(TRACEPARENT, Some(GOOD))]);
        let begun = Onward::new(&context, true);
        let changes: Vec<_> = begun.changes().collect();
        assert_eq!(changes, [(TRACEPARENT, Some(GOOD)), (TRACESTATE, None)]);
    }

    proptest! {
        #[test]
        fn whatever_comes_it_is_read_or_not(value in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = SpanContext::read([&value[..]]);
        }

        #[test]
        fn what_almost_fits_is_read_only_if_it_fits(
            at in 0..GOOD.len(),
            byte in any::<u8>(),
        ) {
            let mut value = GOOD.as_bytes().to_vec();
            value[at] = byte;
            if let Some(context) = SpanContext::read([&value[..]]) {
                let again = SpanContext::read([context.to_string().as_bytes()]);
                prop_assert_eq!(again, Some(context));
                prop_assert!(byte.is_ascii_hexdigit() || byte == b'-' , "{}", byte);
            }
        }

        #[test]
        fn whatever_is_written_is_read_again(
            trace in any::<[u8; 16]>(),
            span in any::<[u8; 8]>(),
            flags in 0..=KNOWN_FLAGS,
        ) {
            prop_assume!(trace != [0; 16] && span != [0; 8]);
            let context = SpanContext { trace: TraceId(trace), span: SpanId(span), flags };
            prop_assert_eq!(SpanContext::read([context.to_string().as_bytes()]), Some(context));
        }
    }
}
