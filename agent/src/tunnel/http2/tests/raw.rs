//! A proxy that speaks HTTP/2 frame by frame (RFC 9113 section 6), so that it can break the rules.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

/// END_STREAM of DATA and HEADERS, ACK of SETTINGS and PING.
pub(super) const END: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

pub(super) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;

pub(super) const NO_ERROR: u32 = 0;
pub(super) const REFUSED_STREAM: u32 = 7;
pub(super) const CANCEL: u32 = 8;

/// `:status: 200` by the static table of HPACK.
const STATUS_200: [u8; 1] = [0x88];

#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = len[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub(super) fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (name, value) in values {
        payload.extend(name.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    frame(SETTINGS, 0, 0, &payload)
}

/// The proxy's end of a connection.
pub(super) struct Raw(DuplexStream);

impl Raw {
    /// What `handshake` takes, and the proxy's end of it.
    pub(super) fn pipe() -> (DuplexStream, Self) {
        let (near, far) = duplex(PIPE);
        (near, Self(far))
    }

    /// A connection whose proxy has sent `values` as its SETTINGS.
    pub(super) async fn connected(config: &Config, values: &[(u16, u32)]) -> (Connection, Self) {
        let (near, mut raw) = Self::pipe();
        let handshake = Connection::handshake(near, config, patience());
        let (connection, ()) = tokio::join!(handshake, raw.begin(values));
        (connection.unwrap(), raw)
    }

    /// Reads the preface, sends SETTINGS and takes those of the client.
    pub(super) async fn begin(&mut self, values: &[(u16, u32)]) {
        let mut preface = [0; 24];
        self.0.read_exact(&mut preface).await.unwrap();
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        self.send(&settings(values)).await;
        assert_eq!(self.next().await.unwrap().kind, SETTINGS);
        self.send(&frame(SETTINGS, END, 0, &[])).await;
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).await.unwrap();
    }

    /// As [`Self::send`], where the connection may have been closed.
    pub(super) async fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// The next frame, `None` at the end of the connection.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; len as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
            payload,
        })
    }

    /// The next frame of `kind` that is no ACK; others are passed over.
    pub(super) async fn expect(&mut self, kind: u8) -> Frame {
        loop {
            let frame = soon(self.next()).await.expect("the connection ended");
            let is_ack = matches!(kind, SETTINGS | PING) && frame.flags & END != 0;
            if frame.kind == kind && !is_ack {
                return frame;
            }
        }
    }

    /// Takes the next request and answers 200; the id of its stream.
    pub(super) async fn accept(&mut self) -> u32 {
        let stream = self.expect(HEADERS).await.stream;
        self.answer(stream).await;
        stream
    }

    pub(super) async fn answer(&mut self, stream: u32) {
        self.send(&frame(HEADERS, END_HEADERS, stream, &STATUS_200))
            .await;
    }

    pub(super) async fn data(&mut self, flags: u8, stream: u32, data: &[u8]) {
        self.send(&frame(DATA, flags, stream, data)).await;
    }

    pub(super) async fn reset(&mut self, stream: u32, code: u32) {
        self.send(&frame(RST_STREAM, 0, stream, &code.to_be_bytes()))
            .await;
    }

    pub(super) async fn go_away(&mut self, last: u32, code: u32) {
        let payload = [last.to_be_bytes(), code.to_be_bytes()].concat();
        self.send(&frame(GOAWAY, 0, 0, &payload)).await;
    }

    /// Waits for the end of the connection; the code of a GOAWAY before it.
    pub(super) async fn end(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = soon(self.next()).await {
            if frame.kind == GOAWAY {
                code = Some(u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()));
            }
        }
        code
    }

    /// Sends `bytes` over and over, `total` bytes at most, and reads nothing. How many went until
    /// the other end took no more for a minute, or was closed.
    pub(super) async fn flood(&mut self, bytes: &[u8], total: usize) -> usize {
        let batch = bytes.repeat((PIPE / bytes.len()).max(1));
        let mut sent = 0;
        while sent < total {
            // What a write leaves of a frame, the next one sends.
            let rest = &batch[sent % batch.len()..];
            match timeout(Duration::from_secs(60), self.0.write(rest)).await {
                Ok(Ok(wrote)) => sent += wrote,
                Ok(Err(_)) | Err(_) => return sent,
            }
        }
        sent
    }

    /// Sends `bytes` `times` times while what comes is read and thrown away.
    pub(super) async fn flood_reading(&mut self, bytes: &[u8], times: usize) {
        let (mut read, mut write) = tokio::io::split(&mut self.0);
        let flood = async {
            for _ in 0..times {
                if write.write_all(bytes).await.is_err() {
                    return;
                }
            }
        };
        let drain = async {
            let mut sink = vec![0; PIPE];
            while read.read(&mut sink).await.is_ok_and(|len| len > 0) {}
        };
        tokio::select! {
            () = flood => {}
            () = drain => {}
        }
    }
}

/// Opens a tunnel that `raw` answers with 200; the stream and its id.
pub(super) async fn opened(connection: &Connection, raw: &mut Raw) -> (TunnelStream, u32) {
    let (opened, id) = tokio::join!(connection.open(request(), patience()), raw.accept());
    (opened.unwrap().stream, id)
}
