//! Requests for a forward proxy, with a whole URI (RFC 9112 section 3.2.2), and what its answers
//! tell of itself.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderName, HeaderValue};

use super::from_proxy::is_for_proxies;
use super::head::{Answer, Request};
use crate::inspect::Form;
use crate::name::Target;

/// Bytes of what a proxy says of itself that are kept.
const MAX_SAID: usize = 256;

/// What a proxy wants to see before it forwards a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Challenge {
    /// The reason phrase.
    pub reason: Bytes,
    /// The values of Proxy-Authenticate.
    pub offers: Vec<Bytes>,
}

impl Challenge {
    /// That of an answer with 407 (RFC 9110 section 15.5.8).
    pub(super) fn of(answer: &Answer) -> Self {
        let offers = answer.fields.values("proxy-authenticate");
        Self {
            reason: answer.reason.clone(),
            offers: offers.map(Bytes::copy_from_slice).collect(),
        }
    }
}

impl Request {
    /// Whether a proxy that is asked for it with a whole URI sends it to `target`, and sends just
    /// it: the proxy goes where Host says, and cannot change protocols.
    pub fn can_be_forwarded_to(&self, target: &Target) -> bool {
        let authority = self.authority();
        let port = match authority.iter().rposition(|byte| *byte == b':') {
            // The last part of an address has no end before the bracket.
            Some(colon) if !authority.ends_with(b"]") => str::from_utf8(&authority[colon + 1..])
                .ok()
                .and_then(|port| port.parse().ok()),
            _ => Some(80),
        };
        matches!(self.form, Form::Origin | Form::Asterisk)
            && self.upgrade().is_none()
            && self.host() == Some(&target.host)
            && port == Some(target.port)
    }

    /// The request as a proxy gets it, with `fields` for the proxy. What the client has to say to
    /// proxies is not for one that it does not know of, nor is anything by the name of a field that
    /// is added.
    #[must_use]
    pub fn for_proxy(&self, fields: Vec<(HeaderName, HeaderValue)>) -> Self {
        let authority = self.authority();
        let mut target = BytesMut::with_capacity(7 + authority.len() + self.target.len());
        target.put_slice(b"http://");
        target.put_slice(authority);
        // Of `*` nothing is left (RFC 9112 section 3.2.4).
        if self.form != Form::Asterisk {
            target.put_slice(&self.target);
        }
        let mut request = self.clone();
        request.target = target.freeze();
        request.form = Form::Absolute;
        request.fields.retain(|field| {
            let is_added = fields.iter().any(|(name, _)| field.is(name.as_str()));
            !is_added && !is_for_proxies(&field.name)
        });
        request.for_proxy = Some(fields.into());
        request
    }
}

impl Answer {
    /// Takes out what only a client of the proxy is told (RFC 9110 section 11.7).
    pub(super) fn forget_proxy(&mut self) {
        self.fields.retain(|field| {
            !field.is("proxy-authenticate") && !field.is("proxy-authentication-info")
        });
    }

    /// What the proxy says went wrong, if it says that the answer is its own: the error of
    /// Proxy-Status (RFC 9209 section 2.1.1), or what Squid has instead.
    pub(super) fn proxy_error(&self) -> Option<Bytes> {
        if self.status < 400 {
            return None;
        }
        let own = self.fields.values("proxy-status").find_map(error_of);
        let said = own.or_else(|| self.fields.values("x-squid-error").next())?;
        Some(Bytes::copy_from_slice(&said[..said.len().min(MAX_SAID)]))
    }
}

/// The value of the parameter `error` in a Proxy-Status field, a token of a fixed list.
fn error_of(value: &[u8]) -> Option<&[u8]> {
    let mut quoted = false;
    let mut escaped = false;
    let mut parts = value.split(|byte| {
        let separates = !quoted && matches!(byte, b';' | b',');
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
        separates
    });
    parts.find_map(|part| part.trim_ascii().strip_prefix(b"error="))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::relay::Progress;
    use crate::relay::http::write::request_head;
    use crate::relay::http::{Answered, Client, ExchangeError, Input, exchange};

    fn request(text: &str) -> Request {
        let text = text.replace('\n', "\r\n");
        Request::parse(&Bytes::from(text)).unwrap()
    }

    fn target(host: &str, port: u16) -> Target {
        let host = host.parse().unwrap();
        Target { host, port }
    }

    #[test]
    fn only_what_means_the_same_can_be_forwarded() {
        for (head, host, port, can) in [
            ("GET / HTTP/1.1\nHost: a.test\n\n", "a.test", 80, true),
            ("GET / HTTP/1.1\nHost: A.test:80\n\n", "a.test", 80, true),
            (
                "GET / HTTP/1.1\nHost: a.test:8080\n\n",
                "a.test",
                8080,
                true,
            ),
            ("GET / HTTP/1.0\nHost: a.test\n\n", "a.test", 80, true),
            ("OPTIONS * HTTP/1.1\nHost: a.test\n\n", "a.test", 80, true),
            ("GET / HTTP/1.1\nHost: 192.0.2.1\n\n", "192.0.2.1", 80, true),
            (
                "GET / HTTP/1.1\nHost: [2001:db8::1]\n\n",
                "2001:db8::1",
                80,
                true,
            ),
            (
                "GET / HTTP/1.1\nHost: [2001:db8::1]:81\n\n",
                "2001:db8::1",
                81,
                true,
            ),
            // It would be another Host that the target sees.
            ("GET / HTTP/1.1\nHost: a.test\n\n", "b.test", 80, false),
            ("GET / HTTP/1.1\nHost: a.test\n\n", "192.0.2.1", 80, false),
            ("GET / HTTP/1.1\nHost: a.test\n\n", "a.test", 8080, false),
            ("GET / HTTP/1.1\nHost: a.test:\n\n", "a.test", 80, false),
            ("GET / HTTP/1.0\n\n", "a.test", 80, false),
            // These need a tunnel.
            (
                "GET / HTTP/1.1\nHost: a.test\nConnection: upgrade\nUpgrade: websocket\n\n",
                "a.test",
                80,
                false,
            ),
            (
                "CONNECT a.test:80 HTTP/1.1\nHost: a.test\n\n",
                "a.test",
                80,
                false,
            ),
            (
                "GET http://a.test/ HTTP/1.1\nHost: a.test\n\n",
                "a.test",
                80,
                false,
            ),
        ] {
            let can_it = request(head).can_be_forwarded_to(&target(host, port));
            assert_eq!(can_it, can, "{head} to {host}:{port}");
        }
    }

    #[test]
    fn a_proxy_gets_the_whole_uri_and_only_our_words_for_it() {
        let fields = || {
            let mut secret = HeaderValue::from_static("Basic c2VjcmV0");
            secret.set_sensitive(true);
            let who = HeaderValue::from_static("ns/pod");
            vec![
                (HeaderName::from_static("x-workload"), who),
                (http::header::PROXY_AUTHORIZATION, secret),
            ]
        };
        for (said, sent) in [
            (
                "GET /a?b HTTP/1.1\nHost: A.test\nX-Workload: forged\nproxy-authorization: x\n\
                 Proxy-Connection: keep-alive\nProxy: httpoxy\nProxy-Anything: x\nCookie: y\n\n",
                "GET http://A.test/a?b HTTP/1.1\nHost: A.test\nProxy: httpoxy\nCookie: y\n\
                 x-workload: ns/pod\nproxy-authorization: Basic c2VjcmV0\n\n",
            ),
            (
                "OPTIONS * HTTP/1.1\nHost: a.test:8080\n\n",
                "OPTIONS http://a.test:8080 HTTP/1.1\nHost: a.test:8080\n\
                 x-workload: ns/pod\nproxy-authorization: Basic c2VjcmV0\n\n",
            ),
            (
                "POST //x HTTP/1.1\nHost: [2001:db8::1]\nContent-Length: 3\n\n",
                "POST http://[2001:db8::1]//x HTTP/1.1\nHost: [2001:db8::1]\n\
                 x-workload: ns/pod\nproxy-authorization: Basic c2VjcmV0\nContent-Length: 3\n\n",
            ),
        ] {
            let request = request(said).for_proxy(fields());
            let head = request_head(&request, false);
            assert_eq!(str::from_utf8(&head).unwrap().replace("\r\n", "\n"), sent);
            assert!(!format!("{request:?}").contains("c2VjcmV0"), "{request:?}");
        }
    }

    /// What comes of a request to a proxy that gives this answer, and what the client got.
    async fn answered(answer: &'static str) -> (Result<Answered, ExchangeError>, String) {
        let (mut client, mut output) = duplex(4096);
        let (mut upstream, mut proxy) = duplex(4096);
        proxy.write_all(answer.as_bytes()).await.unwrap();
        let request = request("GET / HTTP/1.1\nHost: a.test\n\n").for_proxy(Vec::new());
        let mut input = Input::new(tokio::io::empty(), Bytes::new());
        let client_end = Client {
            input: &mut input,
            output: &mut output,
        };
        let patience = Duration::from_secs(20);
        let progress = Progress::default();
        let early = Bytes::new();
        let outcome = exchange(
            &request,
            client_end,
            &mut upstream,
            early,
            false,
            patience,
            &progress,
        )
        .await;
        drop(output);
        let mut got = String::new();
        client.read_to_string(&mut got).await.unwrap();
        (outcome, got)
    }

    #[tokio::test]
    async fn what_is_between_us_and_the_proxy_stays_there() {
        let (outcome, got) = answered(
            "HTTP/1.1 407 Who\r\nProxy-Authenticate: Negotiate\r\n\
             Proxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n",
        )
        .await;
        let Err(ExchangeError::Challenged(challenge)) = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(challenge.reason, "Who");
        assert_eq!(challenge.offers, ["Negotiate", "Basic realm=\"x\""]);
        assert_eq!(got, "", "nothing of it");

        for (field, said) in [
            ("Proxy-Status: p; error=dns_error", Some("dns_error")),
            ("X-Squid-Error: ERR_DNS_FAIL 0", Some("ERR_DNS_FAIL 0")),
            ("Server: squid", None),
        ] {
            let answer = format!(
                "HTTP/1.1 503 No\r\n{field}\r\nProxy-Authentication-Info: x\r\n\
                 Content-Length: 0\r\n\r\n"
            );
            let (outcome, got) = answered(answer.leak()).await;
            let error = outcome.unwrap().proxy_error;
            assert_eq!(error.as_deref(), said.map(str::as_bytes), "{field}");
            let passed = format!("HTTP/1.1 503 No\r\n{field}\r\nContent-Length: 0\r\n\r\n");
            assert_eq!(got, passed);
        }
        let target_says = "HTTP/1.1 200 OK\r\nX-Squid-Error: x\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(answered(target_says).await.0.unwrap().proxy_error, None);
    }

    #[test]
    fn the_error_of_a_proxy_is_found_where_it_says_it() {
        for (value, error) in [
            ("proxy.test; error=dns_error", Some("dns_error")),
            (
                "a, proxy.test;details=\"x; error=no\" ; error=connection_refused",
                Some("connection_refused"),
            ),
            ("proxy.test; next-hop=\"\\\";error=no\"", None),
            ("proxy.test", None),
        ] {
            assert_eq!(
                error_of(value.as_bytes()),
                error.map(str::as_bytes),
                "{value}"
            );
        }
    }
}
