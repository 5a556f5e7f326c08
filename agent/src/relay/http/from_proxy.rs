//! Requests that came to a forward proxy, and what is told of it on (RFC 9110 section 7.6).

use bytes::Bytes;

use super::head::{Answer, Request};
use crate::inspect::Form;
use crate::name::Target;

/// What the proxy calls itself in `Via`.
pub(in crate::relay) const PSEUDONYM: &str = "underpass";

impl Request {
    /// The request, which came in absolute form, as `target` gets it from the proxy: in origin form,
    /// with its Host whatever the client wrote there (RFC 9112 sections 3.2.1 and 3.2.2), without
    /// what is said to proxies, and without the wish for another protocol.
    #[must_use]
    pub fn for_target(&self, target: &Target) -> Self {
        let mut request = self.clone();
        request.target = self.origin_form();
        request.form = match &request.target[..] {
            b"*" => Form::Asterisk,
            _ => Form::Origin,
        };
        let is_old = self.minor_version == 0;
        request.fields.retain(|field| {
            let is_not_for_it = field.is("host")
                || field.is("upgrade")
                || is_for_proxies(&field.name)
                // RFC 9110 section 10.1.1: who knows of no interim answers cannot wait for one.
                || (is_old && field.is("expect"));
            !is_not_for_it
        });
        request.fields.put_first("Host", &host(target));
        let via = format!("1.{} {PSEUDONYM}", self.minor_version);
        request.fields.append("Via", &via);
        request.from_proxy = true;
        request
    }

    /// Path and query; of a request for the whole server `*` (RFC 9112 section 3.2.4).
    fn origin_form(&self) -> Bytes {
        let target = self.target();
        let rest = target.split_once("://").map_or(target, |(_, rest)| rest);
        let path = rest.find(['/', '?', '#']).map_or("", |at| &rest[at..]);
        match path.split('#').next().unwrap_or_default() {
            "" if *self.method == *b"OPTIONS" => Bytes::from_static(b"*"),
            path if path.starts_with('/') => self.target.slice_ref(path.as_bytes()),
            query => format!("/{query}").into(),
        }
    }
}

impl Answer {
    /// Makes it the proxy's to its client.
    pub(in crate::relay) fn leaves_proxy(&mut self) {
        self.fields.retain(|field| !is_for_proxies(&field.name));
        let via = format!("1.{} {PSEUDONYM}", self.minor_version);
        self.fields.append("Via", &via);
    }
}

/// Whether a field is between a proxy and its client, credentials among it (RFC 9110 section 11.7).
pub(in crate::relay) fn is_for_proxies(name: &[u8]) -> bool {
    const PREFIX: &[u8] = b"proxy-";
    let begin = name.get(..PREFIX.len());
    begin.is_some_and(|begin| begin.eq_ignore_ascii_case(PREFIX))
}

/// Host for `target`: the default port is left out (RFC 9110 section 7.2).
pub(in crate::relay) fn host(target: &Target) -> String {
    match target.port {
        80 => target.host.to_string(),
        _ => target.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::http::write::request_head;

    fn request(text: &str) -> Request {
        let text = text.replace('\n', "\r\n");
        Request::parse(&Bytes::from(text)).unwrap()
    }

    #[test]
    fn a_target_gets_an_ordinary_request() {
        let target = |host: &str, port| Target {
            host: host.parse().unwrap(),
            port,
        };
        for (said, target, sent) in [
            (
                "GET http://a.test/x?y HTTP/1.1\nHost: evil.test\nAccept: */*\n\
                 Authorization: Basic for-the-target\nConnection: close, X-Mine , upgrade\n\
                 X-Mine: 1\nKeep-Alive: timeout=5\nProxy-Authorization: Basic aHVudGVyMg==\n\
                 proxy-connection: keep-alive\nProxy-Anything: x\nUpgrade: websocket\n\
                 Via: 1.0 other\n\n",
                target("a.test", 80),
                "GET /x?y HTTP/1.1\nHost: a.test\nAccept: */*\n\
                 Authorization: Basic for-the-target\nVia: 1.0 other\nVia: 1.1 underpass\n\
                 Connection: close\n\n",
            ),
            (
                "POST http://[2001:db8::1]:8080?q HTTP/1.0\nExpect: 100-continue\n\
                 Content-Length: 3\n\n",
                target("[2001:db8::1]", 8080),
                "POST /?q HTTP/1.1\nHost: [2001:db8::1]:8080\nVia: 1.0 underpass\n\
                 Content-Length: 3\nConnection: close\n\n",
            ),
            (
                "OPTIONS http://[2001:db8::1] HTTP/1.1\nHost: x\n\n",
                target("[2001:db8::1]", 80),
                "OPTIONS * HTTP/1.1\nHost: [2001:db8::1]\nVia: 1.1 underpass\n\
                 Connection: close\n\n",
            ),
            (
                "GET http://a.test#x HTTP/1.1\nHost: x\nTE: gzip, trailers\n\n",
                target("a.test", 81),
                "GET / HTTP/1.1\nHost: a.test:81\nVia: 1.1 underpass\nTE: trailers\n\
                 Connection: TE, close\n\n",
            ),
        ] {
            let head = request_head(&request(said).for_target(&target), true);
            assert_eq!(str::from_utf8(&head).unwrap().replace("\r\n", "\n"), sent);
        }
    }

    #[test]
    fn an_answer_loses_what_was_for_the_proxy() {
        let raw = "HTTP/1.0 200 OK\r\nProxy-Authenticate: Basic\r\nX: y\r\n\r\n";
        let mut answer = Answer::parse(&Bytes::from(raw)).unwrap();
        answer.leaves_proxy();
        let fields = answer.fields.iter();
        let fields: Vec<_> = fields
            .map(|field| (&field.name[..], &field.value[..]))
            .collect();
        let expected = [(&b"X"[..], &b"y"[..]), (b"Via", b"1.0 underpass")];
        assert_eq!(fields, expected);
    }
}
