//! Which fields of a message go on, and which are between two neighbours only.

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Version};

use crate::gateway::via::protocol;
use crate::name::Target;

/// Makes the fields of a request, received as `version`, those of one to `target`.
pub(super) fn for_target(fields: &mut HeaderMap, target: &Target, version: Version) {
    strip(fields);
    join_cookies(fields);
    // RFC 9112 section 3.2.2: what the client wrote there does not count.
    fields.insert(header::HOST, host(target));
    add_via(fields, version);
}

/// Makes the fields of an answer, received as `version`, those of one to the client.
pub(super) fn for_client(fields: &mut HeaderMap, version: Version) {
    strip(fields);
    add_via(fields, version);
}

/// Removes what is meant for the gateway only (RFC 9110 section 7.6.1), credentials among it.
fn strip(fields: &mut HeaderMap) {
    let named: Vec<HeaderName> = fields
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let own: Vec<HeaderName> = fields
        .keys()
        .filter(|name| HOP_BY_HOP.contains(name) || name.as_str().starts_with("proxy-"))
        .cloned()
        .collect();
    for name in named.into_iter().chain(own) {
        fields.remove(name);
    }
}

/// HTTP/2 lets a client send its cookies one by one (RFC 9113 section 8.2.3).
fn join_cookies(fields: &mut HeaderMap) {
    let mut cookies = fields.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (cookies.next(), cookies.next()) else {
        return;
    };
    let mut joined = first.as_bytes().to_vec();
    for cookie in std::iter::once(second).chain(cookies) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    if let Ok(mut joined) = HeaderValue::from_bytes(&joined) {
        joined.set_sensitive(true);
        fields.insert(header::COOKIE, joined);
    }
}

/// The default port is left out (RFC 9110 section 7.2).
fn host(target: &Target) -> HeaderValue {
    let text = match target.port {
        80 => target.host.to_string(),
        _ => target.to_string(),
    };
    // Checked names and addresses have no character that a field could not have.
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

/// RFC 9110 section 7.6.3.
fn add_via(fields: &mut HeaderMap, version: Version) {
    if let Ok(value) = HeaderValue::try_from(format!("{} underpass", protocol(version))) {
        fields.append(header::VIA, value);
    }
}

const HOP_BY_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = lines.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        pairs.collect()
    }

    fn lines(fields: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<String> = fields
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn what_is_for_the_gateway_does_not_go_on() {
        let mut fields = fields(&[
            ("host", "evil.example"),
            ("accept", "*/*"),
            ("authorization", "Basic for-the-target"),
            ("connection", "close, X-Mine , proxy-authorization"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic aHVudGVyMg=="),
            ("proxy-connection", "keep-alive"),
            ("proxy-anything", "x"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("via", "1.0 other"),
        ]);
        let target = Target {
            host: "[2001:db8::1]".parse().unwrap(),
            port: 8080,
        };
        for_target(&mut fields, &target, Version::HTTP_2);
        let expected = [
            "accept: */*",
            "authorization: Basic for-the-target",
            "host: [2001:db8::1]:8080",
            "via: 1.0 other",
            "via: 2 underpass",
        ];
        assert_eq!(lines(&fields), expected);
    }

    #[test]
    fn cookies_become_one_field() {
        let mut map = fields(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]);
        join_cookies(&mut map);
        assert_eq!(lines(&map), ["cookie: a=1; b=2; c=3"]);
        let mut map = fields(&[("cookie", "a=1; b=2")]);
        join_cookies(&mut map);
        assert_eq!(lines(&map), ["cookie: a=1; b=2"]);
    }

    #[test]
    fn answers_lose_theirs_too() {
        let mut fields = fields(&[
            ("connection", "x-mine"),
            ("x-mine", "1"),
            ("proxy-authenticate", "Basic"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
        ]);
        for_client(&mut fields, Version::HTTP_10);
        let expected = ["set-cookie: a=1", "set-cookie: b=2", "via: 1.0 underpass"];
        assert_eq!(lines(&fields), expected);
    }
}
