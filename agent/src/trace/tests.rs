use std::time::Duration;

use super::testing::tracer;
use super::*;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn remote() -> Option<SpanContext> {
    SpanContext::read([PARENT.as_bytes()])
}

#[test]
fn spans_are_below_those_that_began_them() {
    let (tracer, kept) = tracer("parentbased_always_off");
    let start = Instant::now();
    let mut request = tracer.begin(remote(), "request", Kind::Client, start);
    request.number("a", 1);
    request.number("a", 2);
    request.text("none", None::<String>);
    let past = request.past("past", start, Duration::from_millis(7));
    drop(past);
    let context = request.context().unwrap();
    let mut child = request.child("child", Kind::Internal);
    child.failed("broken", &"x".repeat(2 * MAX_TEXT));
    drop(child);
    drop(request);
    let [past, child, request] = &kept.take_all()[..] else {
        panic!("three spans");
    };
    assert_eq!(past.took, Duration::from_millis(7));
    assert_eq!(past.start, request.start);
    for below in [past, child] {
        assert_eq!(below.parent, Some((context.span, false)));
        assert_eq!(below.context.trace, context.trace);
        assert_ne!(below.context.span, context.span);
        assert!(below.start >= request.start);
        assert!(below.start + below.took <= request.start + request.took + past.took);
    }
    assert_eq!(child.error.as_ref().map(String::len), Some(MAX_TEXT));
    let remote = remote().unwrap();
    assert_eq!(request.parent, Some((remote.span, true)));
    assert_eq!(request.context.trace, remote.trace);
    assert_eq!(request.attributes, [("a", Value::Int(2))]);
}

#[test]
fn the_request_goes_on_below_our_span() {
    let (tracer, _kept) = tracer("parentbased_always_on");
    let joined = tracer.begin(remote(), "request", Kind::Client, Instant::now());
    let onward = joined.onward().unwrap();
    let changes: Vec<_> = onward.changes().collect();
    let [(TRACEPARENT, Some(value))] = changes[..] else {
        panic!("{changes:?}");
    };
    let told = SpanContext::read([value.as_bytes()]);
    assert_eq!(told, joined.context());
    let begun = tracer.begin(None, "request", Kind::Client, Instant::now());
    assert!(
        begun
            .onward()
            .unwrap()
            .changes()
            .any(|change| change == (TRACESTATE, None))
    );
    assert_ne!(
        begun.context().unwrap().trace,
        joined.context().unwrap().trace
    );
}

#[test]
fn what_is_not_recorded_is_nothing() {
    let unsampled = SpanContext::read([PARENT.replace("-01", "-00").as_bytes()]);
    let (tracer, kept) = tracer("parentbased_always_off");
    for (tracer, parent) in [
        (&Tracer::default(), remote()),
        (&tracer, None),
        (&tracer, unsampled),
    ] {
        let mut span = tracer.begin(parent, "request", Kind::Client, Instant::now());
        assert!(!span.is_recorded());
        assert_eq!(span.onward(), None);
        assert!(!span.child("child", Kind::Internal).is_recorded());
        struct Mute;
        impl fmt::Display for Mute {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                panic!("nobody wants to know");
            }
        }
        span.text("key", Some(Mute));
        span.failed("class", &Mute);
    }
    assert!(kept.take_all().is_empty());
}
