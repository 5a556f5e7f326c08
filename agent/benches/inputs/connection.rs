//! What a connection brings: the first bytes of a browser, and what proxies answer to CONNECT.

/// The ClientHello of Firefox 144, as curl_cffi 0.17.0 imitates it, for `www.example.com`: with the key
/// of a post-quantum exchange in it. A file, since clients shuffle what is in it.
pub(crate) const CLIENT_HELLO: &[u8] = include_bytes!("firefox.bin");

/// The head of a request as a browser writes it.
pub(crate) const REQUEST: &[u8] = b"GET /packages/index.json?since=1700000000 HTTP/1.1\r\n\
    Host: www.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Connection: keep-alive\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n\
    Upgrade-Insecure-Requests: 1\r\n\
    Sec-Fetch-Mode: navigate\r\n\r\n";

/// Where both want to go.
pub(crate) const TARGET: &str = "www.example.com:443";

/// An answer to CONNECT as Envoy writes it.
pub(crate) const SHORT: &[u8] =
    b"HTTP/1.1 200 OK\r\ndate: Sun, 29 Nov 2026 06:00:00 GMT\r\nserver: envoy\r\n\r\n";

/// An answer to CONNECT as Squid writes it.
pub(crate) const REFUSAL: &[u8] = b"HTTP/1.1 407 Proxy Authentication Required\r\n\
    Server: squid/5.7\r\n\
    Mime-Version: 1.0\r\n\
    Date: Sun, 29 Nov 2026 06:00:00 GMT\r\n\
    Content-Type: text/html;charset=utf-8\r\n\
    Content-Length: 3724\r\n\
    X-Squid-Error: ERR_CACHE_ACCESS_DENIED 0\r\n\
    Vary: Accept-Language\r\n\
    Content-Language: en\r\n\
    Proxy-Authenticate: Negotiate\r\n\
    Proxy-Authenticate: Basic realm=\"proxy.example\"\r\n\
    X-Cache: MISS from proxy.example\r\n\
    Via: 1.1 proxy.example (squid/5.7)\r\n\
    Connection: keep-alive\r\n\r\n";
