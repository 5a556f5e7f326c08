use std::sync::Arc;

use super::*;
use crate::trace::Finished;
use crate::trace::testing::{Kept, tracer};

const TRACED: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNTRACED: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

fn trail(sampler: &str) -> (Trail, Arc<Kept>) {
    let (tracer, kept) = tracer(sampler);
    let accepted = Instant::now();
    let mut trail = Trail::new(tracer, accepted, "10.0.0.1:4000".parse().unwrap());
    trail.captured(OriginalDst("192.0.2.7:80".parse().unwrap()), 12, 34);
    trail.inspected(Instant::now(), Inspection::Http);
    (trail, kept)
}

fn named<'a>(spans: &'a [Finished], name: &str) -> &'a Finished {
    let mut named = spans.iter().filter(|span| span.name == name);
    let one = named.next().expect(name);
    assert!(named.next().is_none(), "{name} twice");
    one
}

#[test]
fn the_connection_is_in_the_trace_of_its_first_request() {
    let (mut trail, kept) = trail("parentbased_always_off");
    let parent = SpanContext::read([TRACED]).unwrap();
    assert!(!trail.request([]).is_recorded());
    assert!(!trail.request([UNTRACED]).is_recorded());
    assert!(!trail.request([TRACED, TRACED]).is_recorded());
    drop(trail.request([TRACED]));
    let [_, _, first] = &kept.take_all()[..] else {
        panic!("capture, inspect and the request");
    };
    assert_eq!(first.parent, Some((parent.span, true)));
    drop(trail.request([TRACED]));
    let second = kept.take_all();
    drop(trail);
    let [connection] = &kept.take_all()[..] else {
        panic!("the connection");
    };
    assert_eq!(connection.parent, Some((parent.span, true)));
    assert_eq!(named(&second, "HTTP").link, Some(connection.context));
    assert_eq!(first.link, Some(connection.context));
}

#[test]
fn a_trace_of_ours_begins_with_the_connection() {
    let (mut trail, kept) = trail("parentbased_always_on");
    drop(trail.request([]));
    drop(trail.request([]));
    drop(trail.request([UNTRACED]));
    drop(trail.request([TRACED]));
    drop(trail);
    let spans = kept.take_all();
    let connection = named(&spans, "connection");
    assert_eq!(connection.parent, None);
    for below in ["capture", "inspect"] {
        let parent = named(&spans, below).parent;
        assert_eq!(parent, Some((connection.context.span, false)));
    }
    let requests: Vec<_> = spans.iter().filter(|span| span.name == "HTTP").collect();
    let [first, second, joined] = requests[..] else {
        panic!("{requests:?}");
    };
    assert_eq!(first.parent, Some((connection.context.span, false)));
    assert_eq!(first.link, None);
    assert_eq!(second.parent, None, "another cause, another trace");
    assert_ne!(second.context.trace, first.context.trace);
    assert_eq!(joined.parent.map(|(_, remote)| remote), Some(true));
    for linked in [second, joined] {
        assert_eq!(linked.link, Some(connection.context));
    }
}

#[test]
fn without_requests_it_has_a_trace_of_its_own_or_none() {
    for (sampler, count) in [("always_on", 3), ("parentbased_always_off", 0)] {
        let (mut trail, kept) = trail(sampler);
        let first = trail.span().context();
        assert_eq!(trail.span().context(), first);
        drop(trail);
        assert_eq!(kept.take_all().len(), count);
    }
    let mut trail = Trail::default();
    assert!(!trail.span().is_recorded());
    assert!(!trail.request([TRACED]).is_recorded());
}

#[test]
fn authorities_are_told_apart() {
    for (authority, told) in [
        ("x.test", ("x.test", None)),
        ("x.test:8080", ("x.test", Some(8080))),
        ("[2001:db8::1]:80", ("[2001:db8::1]", Some(80))),
        ("[2001:db8::1]", ("[2001:db8::1]", None)),
        ("x.test:", ("x.test:", None)),
        (":80", (":80", None)),
        ("x.test:99999", ("x.test:99999", None)),
        ("", ("", None)),
    ] {
        assert_eq!(host_and_port(authority), told, "{authority}");
    }
}
