//! Clients that mean harm. Each is bounded, and others are served meanwhile.

use super::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame of RFC 9113 section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;

/// The head of a CONNECT request in HPACK, all literal.
fn connect(target: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [(":method", "CONNECT"), (":authority", target)] {
        block.push(0x10);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend(text.as_bytes());
        }
    }
    block
}

/// Writes `frames` again and again and reads nothing, until the gateway ends the connection or
/// takes no more. How many bytes it took.
async fn flood(gateway: &Running, mut frames: impl FnMut(u32) -> Vec<u8>) -> usize {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    let mut taken = 0;
    for number in 0..200_000 {
        let bytes = frames(number);
        let write = timeout(Duration::from_secs(1), stream.write_all(&bytes)).await;
        match write {
            Ok(Ok(())) => taken += bytes.len(),
            Ok(Err(_)) | Err(_) => return taken,
        }
    }
    panic!("the gateway takes everything: {taken} bytes");
}

async fn still_serves(gateway: &Running) {
    let server = Server::new().await;
    let mut client = Client::new(gateway).await;
    let (mut tunnel, mut upstream) = client.tunnel(&server).await;
    tunnel.say(b"x", false);
    assert_eq!(upstream.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn streams_opened_and_reset_at_once_end_the_connection() {
    let gateway = start(local()).await;
    let block = connect("slow.example:443");
    flood(&gateway, |number| {
        let stream = 2 * number + 1;
        let cancel = 8_u32.to_be_bytes();
        [
            frame(HEADERS, 4, stream, &block),
            frame(RST_STREAM, 0, stream, &cancel),
        ]
        .concat()
    })
    .await;
    still_serves(&gateway).await;
}

#[tokio::test]
async fn heads_without_an_end_end_the_connection() {
    let gateway = start(local()).await;
    let block = connect("slow.example:443");
    let taken = flood(&gateway, |number| match number {
        0 => frame(HEADERS, 0, 1, &block),
        _ => frame(CONTINUATION, 0, 1, &[0; 0]),
    })
    .await;
    assert!(taken < 8 << 20, "{taken}");
    // With something in them.
    let mut field = vec![0x10, 1, b'x', 100];
    field.extend([b'y'; 100]);
    let taken = flood(&gateway, |number| match number {
        0 => frame(HEADERS, 0, 1, &block),
        _ => frame(CONTINUATION, 0, 1, &field),
    })
    .await;
    assert!(taken < 8 << 20, "{taken}");
    still_serves(&gateway).await;
}

#[tokio::test]
async fn whoever_does_not_read_answers_is_not_read_either() {
    let gateway = start(local()).await;
    for kind in [PING, SETTINGS] {
        let payload: &[u8] = if kind == PING { &[0; 8] } else { &[] };
        let frames = frame(kind, 0, 0, payload).repeat(1000);
        flood(&gateway, |_| frames.clone()).await;
    }
    still_serves(&gateway).await;
}

#[tokio::test]
async fn tunnels_that_the_client_has_reset_are_not_counted_out_of_sight() {
    let gateway = start(GatewayConfig {
        max_streams: 10,
        connect_timeout: Duration::from_secs(3600),
        ..local()
    })
    .await;
    let server = Server::new().await;
    let mut client = Client::new(&gateway).await;
    for _ in 0..100 {
        let (mut tunnel, upstream) = client.tunnel(&server).await;
        tunnel.send.send_reset(Reason::CANCEL);
        drop(upstream);
    }
    let labels = [("protocol", "http2")];
    let name = "underpass_gateway_tunnels_active";
    gateway.wait_for_metric(name, &labels, 0.0).await;
}

#[tokio::test]
async fn heads_that_are_too_long_are_refused() {
    let gateway = start(local()).await;
    let mut client = Client::new(&gateway).await;
    let mut request = Client::request("CONNECT", "here.example:443");
    for number in 0..20 {
        let name: http::HeaderName = format!("x-{number}").parse().unwrap();
        let value = "y".repeat(1000).parse().unwrap();
        request.headers_mut().insert(name, value);
    }
    match client.send(request, false).await {
        Ok((answer, _)) => {
            assert_eq!(answer.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        }
        // The client may know the limit by then.
        Err(error) => assert!(error.is_reset() || error.is_go_away(), "{error}"),
    }
    still_serves(&gateway).await;
}

#[tokio::test]
async fn a_preface_without_more_is_given_up() {
    let gateway = start(GatewayConfig {
        head_timeout: Duration::from_millis(200),
        ..local()
    })
    .await;
    for begin in [&PREFACE[..5], PREFACE] {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(begin).await.unwrap();
        let mut said = Vec::new();
        let ended = timeout(Duration::from_secs(5), stream.read_to_end(&mut said)).await;
        assert!(ended.is_ok(), "it is still there");
    }
}
