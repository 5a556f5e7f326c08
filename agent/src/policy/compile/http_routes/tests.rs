//! Which times and retries a request has.

use std::time::Duration;

use crate::policy::testing::{compile, document, facts, problems, through, warnings};
use crate::policy::{HttpRoute, Policy, RetryOn};

fn service(name: &str, hosts: &str, http: &str) -> String {
    document(
        "VirtualService",
        name,
        &format!("hosts: [{hosts}], http: [{http}]"),
    )
}

fn policy(http: &str) -> Policy {
    compile(&(through("all", "") + &service("a", "a.test", http)))
}

fn route(policy: &Policy, request: &str) -> Option<HttpRoute> {
    let (method, rest) = request.split_once(' ').unwrap();
    let (port, path) = rest.split_once('/').unwrap();
    let port: u16 = port.parse().unwrap();
    let facts = facts(&format!("203.0.113.7:{port} host a.test"));
    let target = policy.decide(&facts, policy.view_of_stranger()).target?;
    target
        .routes
        .as_ref()?
        .of(method, &format!("/{path}"), port)
        .cloned()
}

/// The time of a request in seconds; 0: it has none.
fn timeout(policy: &Policy, request: &str) -> u64 {
    let timeout = route(policy, request).and_then(|route| route.timeout);
    timeout.unwrap_or_default().as_secs()
}

#[test]
fn requests_are_told_by_path_method_and_port() {
    let policy = policy(
        "{match: [{uri: {exact: /one}}, {uri: {prefix: /two}, method: {exact: PUT}}], timeout: 1s},
         {match: [{port: 8080}], timeout: 2s, name: other-port},
         {match: [{uri: {prefix: /none}}]},
         {timeout: 4s, route: [{destination: {host: a.test}}]}",
    );
    assert_eq!(warnings(&policy).len(), 0, "{:?}", warnings(&policy));
    for (request, expected) in [
        ("GET 80/one", 1),
        ("GET 80/one/more", 4),
        ("PUT 80/two/more", 1),
        ("GET 80/two", 4),
        ("GET 8080/", 2),
        ("GET 80/none", 0),
        ("GET 80/", 4),
    ] {
        assert_eq!(timeout(&policy, request), expected, "{request}");
    }
}

#[test]
fn a_route_counts_as_a_whole_or_not_at_all() {
    for (field, key) in [
        ("redirect: {uri: /}", "redirect"),
        ("directResponse: {status: 500}", "directResponse"),
        ("delegate: {name: a}", "delegate"),
        ("rewrite: {uri: /}", "rewrite"),
        ("fault: {abort: {httpStatus: 500}}", "fault"),
        ("mirror: {host: b.test}", "mirror"),
        ("mirrors: []", "mirrors"),
        ("mirrorPercent: 1", "mirrorPercent"),
        ("mirrorPercentage: {value: 1}", "mirrorPercentage"),
        ("corsPolicy: {}", "corsPolicy"),
        ("headers: {}", "headers"),
        ("rateLimit: {}", "rateLimit"),
        (
            "route: [{destination: {host: b.test}}]",
            "route[0].destination.host",
        ),
        (
            "route: [{destination: {host: a.test}, headers: {}}]",
            "route[0].headers",
        ),
        (
            "match: [{port: 80}], route: [{destination: {host: a.test, port: {number: 443}}}]",
            "route[0].destination.port",
        ),
    ] {
        let text = format!("{{timeout: 1s, {field}}}, {{timeout: 2s}}");
        let policy = policy(&text);
        assert_eq!(timeout(&policy, "GET 80/"), 0, "{field}");
        let key = format!("spec.http[0].{key}: the whole route is ignored");
        let said = warnings(&policy);
        assert!(
            said.iter().any(|said| said.contains(&key)),
            "{key}: {said:?}"
        );
    }
}

#[test]
fn where_requests_are_not_told_apart_no_later_route_counts() {
    for field in [
        "scheme: {exact: https}",
        "authority: {exact: a.test}",
        "headers: {a: {exact: b}}",
        "withoutHeaders: {a: {exact: b}}",
        "queryParams: {a: {exact: b}}",
        "ignoreUriCase: true",
        "sourceLabels: {a: b}",
        "sourceNamespace: a",
        "gateways: [mesh]",
        "uri: {regex: .*}",
        "method: {regex: .*}",
        "method: {prefix: P}",
    ] {
        let text = format!(
            "{{match: [{{uri: {{exact: /}}}}], timeout: 1s}}, {{match: [{{{field}}}], timeout: 2s}}, \
             {{timeout: 3s}}"
        );
        let policy = policy(&text);
        let times = ["GET 80/", "GET 80/other"].map(|request| timeout(&policy, request));
        assert_eq!(times, [1, 0], "{field}");
        let said = warnings(&policy);
        let key = "spec.http[1].match[0].";
        let reason = "the whole route is ignored, and those after it";
        let is_it = |said: &String| said.contains(key) && said.contains(reason);
        assert!(said.iter().any(is_it), "{field}: {said:?}");
    }
}

#[test]
fn a_route_to_one_port_says_nothing_of_others() {
    let policy =
        policy("{timeout: 1s, route: [{destination: {host: a.test, port: {number: 80}}}]}");
    assert_eq!(warnings(&policy).len(), 0);
    assert_eq!(timeout(&policy, "GET 80/"), 1);
    assert_eq!(timeout(&policy, "GET 8080/"), 0);
}

#[test]
fn each_host_of_several_has_its_own_routes() {
    let text = through("all", "")
        + &service(
            "a",
            "a.test, '*.b.test'",
            "{match: [{uri: {exact: /a}}], timeout: 1s, route: [{destination: {host: a.test}}]},
             {match: [{uri: {exact: /b}}], timeout: 2s, route: [{destination: {host: '*.b.test'}}]},
             {timeout: 3s}",
        );
    let policy = compile(&text);
    let at = |path: &str| timeout(&policy, &format!("GET 80{path}"));
    assert_eq!(["/a", "/b", "/c"].map(at), [1, 0, 3]);
    assert_eq!(warnings(&policy).len(), 2, "{:?}", warnings(&policy));
}

#[test]
fn retries_are_as_istio_has_them() {
    let retries = |fields: &str| {
        let policy = policy(&format!("{{retries: {{{fields}}}}}"));
        let route = route(&policy, "GET 80/").unwrap();
        (route.retries, warnings(&policy))
    };
    let (usual, said) = retries("attempts: 2");
    let usual = usual.unwrap();
    assert_eq!(said.len(), 0);
    assert_eq!((usual.attempts, usual.per_try_timeout), (2, None));
    assert_eq!(
        (&usual.on, usual.backoff),
        (&RetryOn::usual(), Duration::from_millis(25))
    );

    let (all, said) = retries(
        "attempts: 3, perTryTimeout: 2s, backoff: 10ms, retryOn: '5xx, gateway-error,reset,\
         connect-failure,refused-stream,retriable-4xx,retriable-status-codes,reset-before-request,\
         cancelled,deadline-exceeded,internal,resource-exhausted,unavailable,429,,418'",
    );
    let all = all.unwrap();
    assert_eq!(said.len(), 0, "{said:?}");
    assert_eq!(all.per_try_timeout, Some(Duration::from_secs(2)));
    assert_eq!(all.backoff, Duration::from_millis(10));
    let RetryOn { codes, grpc, .. } = &all.on;
    assert_eq!(
        (codes.as_slice(), grpc.as_slice()),
        (&[429, 418][..], &[1, 4, 13, 8, 14][..])
    );
    assert!(all.on.server_errors && all.on.gateway_errors && all.on.reset && all.on.conflict);
    assert!(all.on.reset_before_request && all.on.connect_failure && all.on.refused_stream);

    assert_eq!(retries("attempts: 0").0, None);
    assert_eq!(retries("").0, None);
    for (fields, reason) in [
        (
            "attempts: 1, retryOn: retriable-headers",
            "`retriable-headers` is ignored",
        ),
        (
            "attempts: 1, retryOn: retriable-status-codes",
            "has no effect without codes",
        ),
    ] {
        let (retries, said) = retries(fields);
        assert!(
            retries.is_some() && said.len() == 1 && said[0].contains(reason),
            "{said:?}"
        );
    }
    let both = policy("{timeout: 2s, retries: {attempts: 1, perTryTimeout: 2s}}");
    assert!(warnings(&both)[0].contains("it has no effect, because `timeout` is not longer"));
    assert_eq!(
        route(&both, "GET 80/")
            .unwrap()
            .retries
            .unwrap()
            .per_try_timeout,
        None
    );
    assert_eq!(timeout(&policy("{timeout: 0s}"), "GET 80/"), 0);
}

#[test]
fn what_cannot_be_is_wrong() {
    for (http, key) in [
        (
            "{retries: {attempts: -1}}",
            "retries.attempts: expected a number from 0",
        ),
        (
            "{retries: {attempts: 0, retryOn: 5xx}}",
            "retries.retryOn: it is for retries",
        ),
        (
            "{retries: {attempts: 1, retryOn: 6xx}}",
            "retries.retryOn: expected one of",
        ),
        (
            "{retries: {attempts: 1, retryOn: '600'}}",
            "600 is no status of HTTP",
        ),
        (
            "{retries: {attempts: 1, perTryTimeout: 0s}}",
            "retries.perTryTimeout: expected a time",
        ),
        ("{timeout: 1}", "timeout: "),
        (
            "{match: [{uri: {exact: /, prefix: /}}]}",
            "match[0].uri: give one of",
        ),
        ("{match: [{uri: {}}]}", "match[0].uri: give one of"),
    ] {
        let wrong = problems(&(through("all", "") + &service("a", "a.test", http)));
        assert!(
            wrong.len() == 1 && wrong[0].contains(key),
            "{http}: {wrong:?}"
        );
    }
}

#[test]
fn the_oldest_has_a_host_and_the_rest_is_said() {
    let young = "young, creationTimestamp: 2026-01-02T00:00:00Z";
    let old = "old, creationTimestamp: 2026-01-01T00:00:00Z";
    let text = through("all", "")
        + &service(young, "a.test", "{timeout: 1s}")
        + &service(old, "a.test", "{timeout: 2s}, {timeout: 3s}")
        + &service("wild", "'*.test'", "{timeout: 4s}");
    let policy = compile(&text);
    assert_eq!(timeout(&policy, "GET 80/"), 2);
    let said = warnings(&policy);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said.iter()
            .any(|said| said.contains("`http` never applies: VirtualService/old"))
    );
    assert!(
        said.iter()
            .any(|said| said.contains("`http[0]` matches every request"))
    );
    let lonely = compile(&service("a", "a.test", "{timeout: 1s}"));
    assert!(warnings(&lonely)[0].contains("`http` has no effect: no rule is about `a.test`"));
}
