//! A name server on loopback, UDP and TCP, that answers as a test tells it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

/// What the server says to one question.
#[derive(Clone, Copy)]
pub(super) enum Reply {
    /// These addresses, with this time to live in seconds.
    Addresses(&'static [&'static str], u32),
    /// This code and no record.
    Code(ResponseCode),
    /// "Ask by TCP."
    Truncated,
    /// Nothing.
    Silence,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

pub(super) type Question = (String, RecordType, Transport);

/// It stops when it is dropped.
pub(super) struct NameServer {
    pub(super) addr: SocketAddr,
    asked: Arc<Mutex<Vec<Question>>>,
    _tasks: JoinSet<()>,
}

impl NameServer {
    /// Listens on `ip`; port 0 takes any that is free with both protocols.
    pub(super) async fn start(
        (ip, port): (&str, u16),
        script: impl Fn(&Question) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind((ip, port)).await.unwrap();
            match UdpSocket::bind(tcp.local_addr().unwrap()).await {
                Ok(udp) => break (udp, tcp),
                Err(error) => assert!(port == 0, "{error}"),
            }
        };
        let addr = udp.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let answer = Arc::new(move |query: &[u8], transport| {
            let query = Message::from_vec(query).unwrap();
            let name = query.queries[0].name().to_string();
            let question = (name, query.queries[0].query_type(), transport);
            let reply = script(&question);
            log.lock().push(question);
            response(query, reply)
        });
        let mut tasks = JoinSet::new();
        let by_udp = Arc::clone(&answer);
        tasks.spawn(async move {
            let mut buf = [0; 4096];
            loop {
                let (len, from) = udp.recv_from(&mut buf).await.unwrap();
                if let Some(reply) = by_udp(&buf[..len], Transport::Udp) {
                    udp.send_to(&reply, from).await.unwrap();
                }
            }
        });
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = tcp.accept().await.unwrap();
                connections.spawn(serve_tcp(stream, Arc::clone(&answer)));
            }
        });
        Self {
            addr,
            asked,
            _tasks: tasks,
        }
    }

    /// What it was asked so far.
    pub(super) fn asked(&self) -> Vec<Question> {
        self.asked.lock().clone()
    }
}

async fn serve_tcp(
    mut stream: TcpStream,
    answer: Arc<impl Fn(&[u8], Transport) -> Option<Vec<u8>>>,
) {
    while let Ok(len) = stream.read_u16().await {
        let mut query = vec![0; len.into()];
        stream.read_exact(&mut query).await.unwrap();
        if let Some(reply) = answer(&query, Transport::Tcp) {
            let len = u16::try_from(reply.len()).unwrap();
            stream.write_u16(len).await.unwrap();
            stream.write_all(&reply).await.unwrap();
        }
    }
}

fn response(query: Message, reply: Reply) -> Option<Vec<u8>> {
    let question = query.queries[0].clone();
    let mut message = query.into_response();
    match reply {
        Reply::Silence => return None,
        Reply::Truncated => message.metadata.truncation = true,
        Reply::Code(code) => message.metadata.response_code = code,
        Reply::Addresses(addrs, ttl) => {
            for addr in addrs {
                let data = RData::from(addr.parse::<IpAddr>().unwrap());
                if data.record_type() == question.query_type() {
                    message.add_answer(Record::from_rdata(question.name().clone(), ttl, data));
                }
            }
        }
    }
    Some(message.to_vec().unwrap())
}
