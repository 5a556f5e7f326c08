//! What a connection takes while nothing happens on it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream as Client};
use std::thread;

use prometheus::Registry;
use tokio::task::yield_now;

use super::outbound::Open;
use super::*;
use crate::allocator::live;
use crate::circuit::Place;
use crate::policy::{Proxy, TunnelProtocol};
use crate::sockets::PlainSockets;
use crate::telemetry::TunnelCode;
use crate::tunnel::{NoObserver, Request, Time, TunnelConfig};

/// Tunnels before those that are counted: what is there once, or grows by leaps, is there then.
const BEFORE: usize = 20;
const COUNTED: usize = 100;

/// The sizes of the futures that an idle connection is: its task, and its relay on the heap.
fn futures() -> (usize, usize) {
    fn of_task<A, B, C, D, E, F>(_: impl FnOnce(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }
    fn of_relay<A, B, C, F>(_: impl FnOnce(A, B, C) -> F) -> usize {
        size_of::<F>()
    }
    (of_task(Way::serve), of_relay(relaying))
}

#[test]
fn a_connection_is_small() {
    let (task, relay) = futures();
    // What tokio puts beside it makes 512 of the first, which is 128 times a whole number.
    assert!(task <= 400, "{task} bytes");
    assert!(relay <= 900, "{relay} bytes");
}

#[test]
fn an_idle_tunnel_over_http1_holds_little() {
    let bytes = held(TunnelProtocol::Http1Connect, http1);
    assert!(bytes <= 3000, "{bytes} bytes");
}

#[test]
fn an_idle_tunnel_over_http2_holds_little() {
    let bytes = held(TunnelProtocol::Http2Connect, http2);
    assert!(bytes <= 3400, "{bytes} bytes");
}

/// What each of many idle tunnels holds, their part of what all have included.
fn held(protocol: TunnelProtocol, proxy: fn(TcpListener)) -> usize {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || proxy(listener));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let files = tempfile::tempdir().unwrap();
        let nothing = files.path().join("nothing");
        let sockets: Arc<dyn SocketFactory> = Arc::new(PlainSockets);
        let resolver = Resolver::from_files(Arc::clone(&sockets), &nothing, &nothing);
        let (config, observer) = (TunnelConfig::default(), Arc::new(NoObserver));
        let tunneler = Tunneler::new(sockets, resolver, config, observer);
        let proxy = Arc::new(Proxy {
            protocol,
            ..Proxy::plain(Host::Addr(Ipv4Addr::LOCALHOST.into()), port)
        });
        tunneler.serve([&proxy]);
        let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
        let workloads = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let workloads = workloads.await.unwrap();
        let mut tunnels = Vec::with_capacity(BEFORE + COUNTED);
        let mut before = 0;
        for number in 0..BEFORE + COUNTED {
            if number == BEFORE {
                before = live();
            }
            tunnels.push(idle(&tunneler, &proxy, &metrics, &workloads).await);
        }
        let counted = usize::try_from(live() - before).unwrap() / COUNTED;
        // The task that stands for `Way::serve` here has less in it.
        counted + futures().0 - tunnels[0].1
    })
}

/// A tunnel that has carried a question and its answer: its client, and the size of its task.
async fn idle(
    tunneler: &Tunneler,
    proxy: &Arc<Proxy>,
    metrics: &Arc<Metrics>,
    workloads: &tokio::net::TcpListener,
) -> (Client, usize) {
    let mut client = Client::connect(workloads.local_addr().unwrap()).unwrap();
    let (workload, src) = workloads.accept().await.unwrap();
    let target = "www.example.com:443".parse().unwrap();
    let request = Request {
        proxy,
        target: &target,
        headers: &[],
        span: &crate::trace::Span::none(),
    };
    let time = Time {
        deadline: tunneler.deadline(),
        has_others: false,
    };
    let tunnel = tunneler.open(&request, time).await.unwrap();
    let mut record = ConnectionRecord::begin(metrics, src);
    record.captured(OriginalDst(src), Some(1), Some(2));
    let policy: Arc<str> = "Tunnel/all".into();
    record.decided(
        telemetry::Decision::Tunnel,
        Some(Label::shared(&policy)),
        None,
    );
    record.target(target, telemetry::TargetSource::Sni);
    record.proxy(Label::shared(proxy.label()));
    record.answered(tunnel.spoken.into(), TunnelCode::Status(tunnel.code));
    let open = Open {
        stream: tunnel.stream,
        early: (Bytes::new(), tunnel.early),
        timeouts: Timeouts::default(),
        _place: Place::default(),
    };
    let serving = async move {
        let end = Box::pin(relaying(&workload, open, &mut record)).await;
        drop(end);
    };
    let size = size_of_val(&serving);
    tokio::spawn(serving);
    client.write_all(b"?").unwrap();
    client.set_nonblocking(true).unwrap();
    while client.read(&mut [0]).is_err() {
        yield_now().await;
    }
    (client, size)
}

/// Opens tunnels to itself, and says in each what it is told.
#[expect(
    clippy::needless_pass_by_value,
    reason = "as the other, which takes it"
)]
fn http1(listener: TcpListener) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        thread::spawn(move || {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let mut byte = [0];
            while stream.read(&mut byte).is_ok_and(|read| read > 0) {
                stream.write_all(&byte).unwrap();
            }
        });
    }
}

/// The same over HTTP/2.
fn http2(listener: TcpListener) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((mut request, mut answer))) = connection.accept().await {
                    tokio::spawn(async move {
                        let mut said = answer
                            .send_response(::http::Response::new(()), false)
                            .unwrap();
                        while let Some(Ok(told)) = request.body_mut().data().await {
                            said.send_data(told, false).unwrap();
                        }
                    });
                }
            });
        }
    });
}
