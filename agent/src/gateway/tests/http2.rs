//! Clients that speak HTTP/2, with prior knowledge.

mod hostile;
mod limits;
mod requests;
mod tunnels;

use bytes::Bytes;
use h2::client::{SendRequest, handshake};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response, StatusCode, Version};

use super::*;

/// An HTTP/2 client of a gateway.
pub(super) struct Client {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

/// A tunnel as the client has it.
struct Tunnel {
    send: SendStream<Bytes>,
    recv: RecvStream,
}

impl Client {
    pub(super) async fn new(gateway: &Running) -> Self {
        let stream = TcpStream::connect(gateway.address).await.unwrap();
        let (requests, connection) = handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        Self {
            requests,
            connection,
        }
    }

    fn request(method: &str, uri: &str) -> Request<()> {
        let builder = Request::builder().method(method).uri(uri);
        builder.version(Version::HTTP_2).body(()).unwrap()
    }

    async fn send(
        &mut self,
        request: Request<()>,
        end: bool,
    ) -> Result<(Response<RecvStream>, SendStream<Bytes>), h2::Error> {
        let mut requests = self.requests.clone().ready().await?;
        let (response, send) = requests.send_request(request, end)?;
        let response = timeout(Duration::from_secs(5), response).await;
        Ok((response.expect("an answer")?, send))
    }

    /// The answer to a request of which no more is sent than its head, the connection kept.
    pub(super) async fn ask(&mut self, method: &str, uri: &str) -> Response<RecvStream> {
        let end = method == "GET";
        let (response, _) = self.send(Self::request(method, uri), end).await.unwrap();
        response
    }

    async fn tunnel_by(&mut self, method: &str, uri: &str) -> Tunnel {
        let (response, send) = self.send(Self::request(method, uri), false).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        Tunnel {
            send,
            recv: response.into_body(),
        }
    }

    /// A tunnel to `server`, by CONNECT.
    async fn tunnel(&mut self, server: &Server) -> (Tunnel, TcpStream) {
        let target = format!("here.example:{}", server.port());
        let tunnel = self.tunnel_by("CONNECT", &target).await;
        (tunnel, server.accept().await)
    }
}

impl Tunnel {
    fn say(&mut self, bytes: &'static [u8], end: bool) {
        self.send.send_data(Bytes::from_static(bytes), end).unwrap();
    }

    /// The next bytes, if there are more.
    async fn data(&mut self) -> Option<Result<Bytes, h2::Error>> {
        let data = timeout(Duration::from_secs(5), next(&mut self.recv)).await;
        data.expect("data, or their end")
    }

    /// Reads exactly `length` bytes.
    async fn read(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            bytes.extend(self.data().await.unwrap().unwrap());
        }
        assert_eq!(bytes.len(), length);
        bytes
    }

    /// How the stream was reset.
    async fn reset(&mut self) -> Reason {
        loop {
            match self.data().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return error.reason().unwrap(),
                None => panic!("it ended in order"),
            }
        }
    }
}

/// The next bytes, if there are more; the end may come with a frame that has none.
async fn next(recv: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    loop {
        match recv.data().await? {
            Ok(data) if data.is_empty() => {}
            Ok(data) => {
                recv.flow_control().release_capacity(data.len()).unwrap();
                return Some(Ok(data));
            }
            Err(error) => return Some(Err(error)),
        }
    }
}

async fn text(response: Response<RecvStream>) -> String {
    let mut body = response.into_body();
    let mut text = Vec::new();
    while let Some(data) = next(&mut body).await {
        text.extend(data.unwrap());
    }
    String::from_utf8(text).unwrap()
}

/// Sends until the gateway takes no more.
async fn fill(send: &mut SendStream<Bytes>) {
    let chunk = Bytes::from(vec![0; 64 * 1024]);
    loop {
        send.reserve_capacity(chunk.len());
        while send.capacity() < chunk.len() {
            let capacity = std::future::poll_fn(|cx| send.poll_capacity(cx));
            match timeout(Duration::from_millis(300), capacity).await {
                Ok(granted) => {
                    granted.unwrap().unwrap();
                }
                Err(_) => return,
            }
        }
        send.send_data(chunk.clone(), false).unwrap();
    }
}
