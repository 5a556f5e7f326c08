//! Endpoints with several addresses, and with others than before.

use super::*;

#[tokio::test]
async fn an_address_that_fails_after_the_handshake_makes_room_for_another_of_the_name() {
    let good = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = good.local_addr().unwrap().port();
    let bad = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let (good, bad) = (Server::with(good, OK), Server::with(bad, b""));
    let proxy = Arc::new(Proxy {
        endpoints: endpoints("proxy.test", &[port]),
        ..Proxy::plain("proxy.test".parse().unwrap(), port)
    });
    let world = World::serving(&proxy);
    world.hosts("127.0.0.1 proxy.test\n127.0.0.2 proxy.test\n");
    for _ in 0..3 {
        world.open(&proxy).await.unwrap();
    }
    // The first time it is found out, and remembered.
    assert_eq!((bad.accepted(), good.accepted()), (1, 3));
}

#[tokio::test]
async fn the_last_addresses_go_on_until_there_are_others() {
    let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = first.local_addr().unwrap().port();
    let second = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    let (first, second) = (Server::with(first, OK), Server::with(second, OK));
    let proxy = Arc::new(Proxy {
        endpoints: endpoints("proxy.test", &[port]),
        ..Proxy::plain("proxy.test".parse().unwrap(), port)
    });
    let world = World::serving(&proxy);
    world.hosts("127.0.0.1 proxy.test\n");
    world.open(&proxy).await.unwrap();
    let later = async || {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(6)).await;
        tokio::time::resume();
    };
    // There is no name server either.
    world.hosts("");
    later().await;
    world.open(&proxy).await.unwrap();
    assert_eq!((first.accepted(), second.accepted()), (2, 0));
    world.hosts("127.0.0.2 proxy.test\n");
    later().await;
    world.open(&proxy).await.unwrap();
    assert_eq!((first.accepted(), second.accepted()), (2, 1));
}

#[tokio::test]
async fn when_no_address_answers_the_name_is_asked_for_again_at_once() {
    let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = first.local_addr().unwrap().port();
    let second = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    let (first, second) = (Server::with(first, OK), Server::with(second, OK));
    let proxy = Arc::new(Proxy {
        endpoints: endpoints("proxy.test", &[port]),
        ..Proxy::plain("proxy.test".parse().unwrap(), port)
    });
    let world = World::serving(&proxy);
    world.hosts("127.0.0.1 proxy.test\n");
    world.open(&proxy).await.unwrap();
    first.stop().await;
    // The last answer is still good for seconds.
    world.hosts("127.0.0.2 proxy.test\n");
    world.open(&proxy).await.unwrap();
    assert_eq!(second.accepted(), 1);
    assert_eq!(world.notes.take(), [""; 0]);
}
