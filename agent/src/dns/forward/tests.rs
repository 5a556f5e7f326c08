use std::collections::HashSet;
use std::net::Ipv4Addr;

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::*;
use crate::sockets::PlainSockets;

/// A query for the A record of `a.test`.
fn query(number: u16) -> Vec<u8> {
    let mut query = number.to_be_bytes().to_vec();
    query.extend_from_slice(b"\x01\0\0\x01\0\0\0\0\0\0\x01a\x04test\0\0\x01\0\x01");
    query
}

/// The same as an answer.
fn answer(query: &[u8]) -> Vec<u8> {
    let mut answer = query.to_vec();
    answer[2] |= 0x80;
    answer
}

async fn server() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()
}

/// Takes a query, and gives an answer to it; whom it came from.
async fn serve(server: &UdpSocket, answer: impl FnOnce(&[u8]) -> Vec<Vec<u8>>) -> SocketAddr {
    let mut query = [0; 512];
    let (length, from) = server.recv_from(&mut query).await.unwrap();
    for answer in answer(&query[..length]) {
        server.send_to(&answer, from).await.unwrap();
    }
    from
}

fn vantage(id: u64) -> Arc<Vantage> {
    Arc::new(Vantage::new(id, Arc::new(PlainSockets)))
}

#[tokio::test]
async fn sockets_are_used_again_and_ports_are_not() {
    let here: Arc<dyn SocketFactory> = Arc::new(PlainSockets);
    let (forwarder, server) = (Forwarder::default(), server().await);
    let at = server.local_addr().unwrap();
    let mut ports = HashSet::new();
    for number in 0..20 {
        let query = query(number);
        let asking = forwarder.ask((at, &query), &here, None);
        let serving = serve(&server, |query| vec![answer(query)]);
        let (asked, from) = tokio::join!(asking, serving);
        assert_eq!(asked.unwrap(), answer(&query));
        ports.insert(from.port());
        assert_eq!(forwarder.spare.count(), 1, "one at a time needs one");
    }
    // By chance one may come twice.
    assert!(ports.len() > 15, "{ports:?}");
}

#[tokio::test]
async fn what_comes_late_is_nobodys_answer() {
    let here: Arc<dyn SocketFactory> = Arc::new(PlainSockets);
    let (forwarder, server) = (Forwarder::default(), server().await);
    let at = server.local_addr().unwrap();
    let first = query(7);
    let asking = forwarder.ask((at, &first), &here, None);
    // A second answer to the first query, which has the number of the next as well.
    let twice = |query: &[u8]| vec![answer(query), [&answer(query), &b"late"[..]].concat()];
    let (asked, from) = tokio::join!(asking, serve(&server, twice));
    asked.unwrap();
    assert_eq!(forwarder.spare.count(), 1);
    let late = [&answer(&first), &b"later"[..]].concat();
    let _ = server.send_to(&late, from).await;

    let asking = forwarder.ask((at, &first), &here, None);
    let (asked, again) = tokio::join!(asking, serve(&server, |query| vec![answer(query)]));
    assert_eq!(asked.unwrap(), answer(&first));
    assert_ne!(again, from);
}

#[tokio::test]
async fn only_an_answer_to_the_question_is_one() {
    let here: Arc<dyn SocketFactory> = Arc::new(PlainSockets);
    let (forwarder, server) = (Forwarder::default(), server().await);
    let at = server.local_addr().unwrap();
    let query = query(7);
    let changed = |at: usize, byte: u8| {
        let mut answer = answer(&query);
        answer[at] = byte;
        answer
    };
    let upper_case = changed(13, b'A');
    let answers = vec![
        query.clone(),
        changed(0, 9),
        changed(13, b'b'),
        answer(&query)[..11].to_vec(),
        upper_case.clone(),
    ];
    let asking = forwarder.ask((at, &query), &here, None);
    let (asked, _) = tokio::join!(asking, serve(&server, |_| answers));
    assert_eq!(asked.unwrap(), upper_case);

    // A server that cannot read a question does not repeat it.
    let without = answer(&query)[..12].to_vec();
    let without = [&without[..4], &[0, 0], &without[6..]].concat();
    let asking = forwarder.ask((at, &query), &here, None);
    let (asked, _) = tokio::join!(asking, serve(&server, |_| vec![without.clone()]));
    assert_eq!(asked.unwrap(), without);
}

#[tokio::test]
async fn spare_sockets_are_few_and_go_with_their_namespace() {
    let here: Arc<dyn SocketFactory> = Arc::new(PlainSockets);
    let (forwarder, server) = (Arc::new(Forwarder::default()), server().await);
    let at = server.local_addr().unwrap();
    let there = vantage(1);
    // Eight at a time.
    let mut asking = JoinSet::new();
    for number in 0..8 {
        let (forwarder, here, there) = (
            Arc::clone(&forwarder),
            Arc::clone(&here),
            Arc::clone(&there),
        );
        asking.spawn(async move {
            let query = query(number);
            forwarder.ask((at, &query), &here, Some(&there)).await
        });
    }
    let mut asked = Vec::new();
    for _ in 0..8 {
        let mut query = [0; 512];
        let (length, from) = server.recv_from(&mut query).await.unwrap();
        asked.push((query[..length].to_vec(), from));
    }
    for (query, from) in asked {
        server.send_to(&answer(&query), from).await.unwrap();
    }
    for asked in asking.join_all().await {
        asked.unwrap();
    }
    assert_eq!(forwarder.spare.count(), 4);

    forwarder.leave(&there);
    assert_eq!(forwarder.spare.count(), 0);
    // A query that was on its way meanwhile leaves nothing behind.
    let query = query(9);
    let asking = forwarder.ask((at, &query), &here, Some(&there));
    let (asked, _) = tokio::join!(asking, serve(&server, |query| vec![answer(query)]));
    asked.unwrap();
    assert_eq!(forwarder.spare.count(), 0);
}
