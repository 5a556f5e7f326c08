//! Many streams over few connections.

mod faults;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::raw::*;
use super::*;

const KEY: &str = "proxy";

type InMemoryPool<F> = Pool<InMemory<F>>;

fn pool<F>(config: PoolConfig, make: F) -> (InMemoryPool<F>, Arc<AtomicUsize>)
where
    F: Fn(usize) -> io::Result<DuplexStream> + Send + Sync + 'static,
{
    let dials = Arc::new(AtomicUsize::new(0));
    let dial = InMemory {
        dials: Arc::clone(&dials),
        make,
    };
    (Pool::new(dial, config), dials)
}

/// Connections to proxies that echo on `limit` streams at a time.
fn echoing(limit: u32) -> impl Fn(usize) -> io::Result<DuplexStream> + Send + Sync + 'static {
    move |_| {
        let (near, far) = duplex(PIPE);
        let mut server = h2::server::Builder::new();
        server.max_concurrent_streams(limit);
        serve(far, server, echo);
        Ok(near)
    }
}

/// A pool whose proxies are driven by the test: each comes when it is dialled.
fn raw_pool(
    config: PoolConfig,
) -> (
    InMemoryPool<impl Fn(usize) -> io::Result<DuplexStream> + Send + Sync + 'static>,
    mpsc::UnboundedReceiver<Raw>,
) {
    let (tell, proxies) = mpsc::unbounded_channel();
    let (pool, _) = pool(config, move |_| {
        let (near, raw) = Raw::pipe();
        tell.send(raw).unwrap();
        Ok(near)
    });
    (pool, proxies)
}

async fn open<D>(pool: &Pool<D>) -> Result<PoolOpened<usize>, PoolError<io::Error>>
where
    D: Dial<Key = &'static str, Info = usize, Error = io::Error>,
{
    let target = target();
    soon(pool.open(&KEY, &tunnel_request(&target), patience())).await
}

/// Opens a tunnel while the proxy does what it has to.
async fn open_while<D, T>(pool: &Pool<D>, proxy: impl Future<Output = T>) -> (PoolOpened<usize>, T)
where
    D: Dial<Key = &'static str, Info = usize, Error = io::Error>,
{
    let (opened, done) = tokio::join!(open(pool), proxy);
    (opened.unwrap(), done)
}

/// The next proxy that is dialled, after its SETTINGS.
async fn next(proxies: &mut mpsc::UnboundedReceiver<Raw>, settings: &[(u16, u32)]) -> Raw {
    let mut raw = soon(proxies.recv()).await.unwrap();
    raw.begin(settings).await;
    raw
}

/// Waits until the pool looks as it should.
async fn until<D: Dial<Key = &'static str>>(pool: &Pool<D>, is: impl Fn(&Stats) -> bool) -> Stats {
    soon(async {
        loop {
            let stats = pool.stats(&KEY);
            if is(&stats) {
                return stats;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
}

#[tokio::test]
async fn many_who_wait_for_a_first_connection_share_it() {
    let (pool, dials) = pool(PoolConfig::default(), echoing(100));
    let mut opening = JoinSet::new();
    for _ in 0..100 {
        let pool = pool.clone();
        opening.spawn(async move { open(&pool).await.unwrap() });
    }
    let opened = opening.join_all().await;
    assert_eq!(dials.load(Ordering::Relaxed), 1);
    let stats = pool.stats(&KEY);
    assert_eq!((stats.connections, stats.streams), (1, 100));
    assert_eq!(pool.all_stats(), [(KEY, stats)]);
    assert_eq!(opened.iter().filter(|opened| !opened.reused).count(), 1);
    drop(opened);
    assert_eq!(pool.stats(&KEY).streams, 0);
    // Places that were given back are taken again.
    expect_echo(open(&pool).await.unwrap().stream, b"once more").await;
    assert_eq!(dials.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_streams_take_as_few_connections_as_they_need() {
    let (pool, dials) = pool(PoolConfig::default(), echoing(100));
    let mut opening = JoinSet::new();
    for _ in 0..2000 {
        let pool = pool.clone();
        opening.spawn(async move { open(&pool).await.unwrap() });
    }
    let opened = soon(opening.join_all()).await;
    let stats = pool.stats(&KEY);
    assert_eq!((stats.connections, stats.streams), (20, 2000));
    assert_eq!(dials.load(Ordering::Relaxed), 20);
    let mut echoes = JoinSet::new();
    for (at, opened) in opened.into_iter().enumerate() {
        let data = at.to_be_bytes().repeat(100);
        echoes.spawn(async move { expect_echo(opened.stream, &data).await });
    }
    soon(echoes.join_all()).await;
    assert_eq!(pool.stats(&KEY).streams, 0);
}

/// Places are given away only when the proxy can know that they are free: none is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coming_and_going_at_the_limit_needs_no_second_connection() {
    let config = PoolConfig {
        max_connections: 1,
        ..PoolConfig::default()
    };
    let (pool, dials) = pool(config, echoing(3));
    let mut running = JoinSet::new();
    for at in 0..12_u8 {
        let pool = pool.clone();
        running.spawn(async move {
            for round in 0..50_u8 {
                let stream = open(&pool).await.unwrap().stream;
                // Some are given up in the middle.
                if round % 3 != 0 {
                    expect_echo(stream, &[at, round]).await;
                }
            }
        });
    }
    soon(running.join_all()).await;
    let stats = pool.stats(&KEY);
    assert_eq!((stats.connections, stats.streams, stats.waiting), (1, 0, 0));
    assert_eq!(dials.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn the_proxy_may_change_how_many_streams_it_takes() {
    let (pool, mut proxies) = raw_pool(PoolConfig {
        max_connections: 2,
        ..PoolConfig::default()
    });
    let (_first, mut raw) = open_while(&pool, async {
        let mut raw = next(&mut proxies, &[(MAX_CONCURRENT_STREAMS, 2)]).await;
        raw.accept().await;
        raw
    })
    .await;
    // Fewer: one is too many already, so the next goes to another connection.
    raw.send(&settings(&[(MAX_CONCURRENT_STREAMS, 1)])).await;
    raw.send(&frame(PING, 0, 0, &[0; 8])).await;
    while raw.next().await.unwrap().kind != PING {}
    let (second, mut other) = open_while(&pool, async {
        let mut raw = next(&mut proxies, &[(MAX_CONCURRENT_STREAMS, 1)]).await;
        raw.accept().await;
        raw
    })
    .await;
    assert_eq!(second.info, 1);
    // More: who waits is served at once.
    let (third, ()) = open_while(&pool, async {
        until(&pool, |stats| stats.waiting == 1).await;
        other.send(&settings(&[(MAX_CONCURRENT_STREAMS, 5)])).await;
        other.accept().await;
    })
    .await;
    assert_eq!((third.info, third.reused), (1, true));
}

/// More connections would take none either, and there would be no end of them.
#[tokio::test(start_paused = true)]
async fn a_proxy_that_takes_no_streams_for_now_is_waited_for() {
    let (pool, mut proxies) = raw_pool(PoolConfig::default());
    let (opened, _raws) = open_while(&pool, async {
        let mut first = next(&mut proxies, &[(MAX_CONCURRENT_STREAMS, 0)]).await;
        let second = next(&mut proxies, &[(MAX_CONCURRENT_STREAMS, 0)]).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let stats = pool.stats(&KEY);
        assert_eq!((stats.connections, stats.dialing, stats.waiting), (2, 0, 1));
        first.send(&settings(&[(MAX_CONCURRENT_STREAMS, 1)])).await;
        first.accept().await;
        (first, second)
    })
    .await;
    assert_eq!(opened.info, 0);
}

#[tokio::test]
async fn going_away_ends_no_stream_and_sends_the_refused_ones_elsewhere() {
    let (pool, mut proxies) = raw_pool(PoolConfig::default());
    let (mut first, (mut old, id)) = open_while(&pool, async {
        let mut raw = next(&mut proxies, &[]).await;
        let id = raw.accept().await;
        (raw, id)
    })
    .await;
    // A second stream is under way when the proxy goes away after the first.
    let (second, mut new) = open_while(&pool, async {
        old.expect(HEADERS).await;
        old.go_away(id, NO_ERROR).await;
        let mut raw = next(&mut proxies, &[]).await;
        raw.accept().await;
        raw
    })
    .await;
    assert_eq!((first.info, second.info), (0, 1));
    let stats = pool.stats(&KEY);
    assert_eq!((stats.connections, stats.going_away), (2, 1));
    let (third, _) = open_while(&pool, new.accept()).await;
    assert_eq!(third.info, 1);
    // The first goes on, both ways, to its end.
    first.stream.write_all(b"up").await.unwrap();
    assert_eq!(old.expect(DATA).await.payload, b"up");
    first.stream.shutdown().await.unwrap();
    old.data(END, id, b"down").await;
    let mut down = Vec::new();
    first.stream.read_to_end(&mut down).await.unwrap();
    assert_eq!(down, b"down");
    drop(first);
    assert_eq!(old.end().await, Some(NO_ERROR));
    until(&pool, |stats| stats.connections == 1 && stats.streams == 2).await;
}

#[tokio::test]
async fn a_graceful_end_that_says_so_twice_loses_nothing() {
    let (pool, mut proxies) = raw_pool(PoolConfig::default());
    let (first, mut old) = open_while(&pool, async {
        let mut raw = next(&mut proxies, &[]).await;
        let id = raw.accept().await;
        raw.go_away(u32::MAX >> 1, NO_ERROR).await;
        raw.go_away(id, NO_ERROR).await;
        raw
    })
    .await;
    until(&pool, |stats| stats.going_away == 1).await;
    let (second, _new) = open_while(&pool, async {
        let mut raw = next(&mut proxies, &[]).await;
        raw.accept().await;
        raw
    })
    .await;
    assert_eq!((first.info, second.info), (0, 1));
    drop(first);
    assert_eq!(old.end().await, Some(NO_ERROR));
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_closed_and_others_are_not() {
    let config = PoolConfig::default();
    let idle = config.idle_timeout;
    let (pool, mut proxies) = raw_pool(config);
    let (opened, mut raw) = open_while(&pool, async {
        let mut raw = next(&mut proxies, &[]).await;
        raw.accept().await;
        raw
    })
    .await;
    // In use, and answering.
    let begin = Instant::now();
    while begin.elapsed() < idle * 3 {
        let ping = raw.expect(PING).await;
        raw.send(&frame(PING, END, 0, &ping.payload)).await;
    }
    assert_eq!(pool.stats(&KEY).connections, 1);
    drop(opened);
    let begin = Instant::now();
    assert_eq!(raw.end().await, Some(NO_ERROR));
    let took = begin.elapsed();
    assert!(took >= idle && took <= idle * 2, "{took:?}");
    assert_eq!(pool.all_stats(), []);
}

#[tokio::test(start_paused = true)]
async fn who_waits_gets_a_place_in_turn_or_gives_up_at_the_deadline() {
    let config = PoolConfig {
        max_connections: 1,
        max_waiting: 3,
        ..PoolConfig::default()
    };
    let (pool, dials) = pool(config, echoing(1));
    let first = open(&pool).await.unwrap();
    let (tell, mut told) = mpsc::unbounded_channel();
    for (turn, wait) in [(1, 3600), (2, 5), (3, 3600)] {
        let (asking, tell) = (pool.clone(), tell.clone());
        tokio::spawn(async move {
            let target = target();
            let deadline = Instant::now() + Duration::from_secs(wait);
            let request = tunnel_request(&target);
            let result = asking.open(&KEY, &request, deadline).await;
            tell.send((turn, result)).unwrap();
        });
        until(&pool, |stats| stats.waiting == turn).await;
    }
    let error = open(&pool).await.unwrap_err();
    assert!(matches!(error, PoolError::Busy { waiting: 3 }), "{error:?}");
    assert_eq!(error.reason(), "pool_busy");

    let (turn, result) = told.recv().await.unwrap();
    let error = result.unwrap_err();
    assert_eq!(
        (turn, error.reason(), error.phase()),
        (2, "pool_timeout", "wait")
    );
    assert!(
        error.to_string().contains("1 are there, with 1 streams"),
        "{error}"
    );
    drop(first);
    let (turn, second) = told.recv().await.unwrap();
    assert_eq!(turn, 1);
    assert!(told.try_recv().is_err());
    drop(second);
    assert_eq!(told.recv().await.unwrap().0, 3);
    assert_eq!(dials.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_request_that_is_given_up_leaves_nothing() {
    let (pool, mut proxies) = raw_pool(PoolConfig::default());
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { open(&pool).await.map(drop) }
    });
    let mut raw = proxies.recv().await.unwrap();
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    assert_eq!(pool.stats(&KEY).waiting, 0);
    raw.begin(&[]).await;
    // The connection came all the same, for the next.
    until(&pool, |stats| stats.connections == 1).await;
    let asking = tokio::spawn({
        let pool = pool.clone();
        async move { open(&pool).await.map(drop) }
    });
    let id = raw.expect(HEADERS).await.stream;
    asking.abort();
    let reset = raw.expect(RST_STREAM).await;
    assert_eq!(
        (reset.stream, reset.payload),
        (id, CANCEL.to_be_bytes().into())
    );
    until(&pool, |stats| stats.streams == 0).await;
}

#[tokio::test]
async fn keys_do_not_share_and_a_pool_that_is_dropped_closes_its_connections() {
    let (pool, mut proxies) = raw_pool(PoolConfig::default());
    let (opened, mut raw) = open_while(&pool, async {
        let mut raw = next(&mut proxies, &[]).await;
        raw.accept().await;
        raw
    })
    .await;
    let target = target();
    let request = tunnel_request(&target);
    let (other, _raw) = tokio::join!(pool.open(&"other", &request, patience()), async {
        let mut raw = next(&mut proxies, &[]).await;
        raw.accept().await;
        raw
    });
    assert_eq!(other.unwrap().info, 1);
    assert_eq!(pool.stats(&"other").connections, 1);
    drop(pool);
    // A stream still holds it.
    raw.send(&frame(PING, 0, 0, &[0; 8])).await;
    while raw.next().await.unwrap().kind != PING {}
    drop(opened);
    assert_eq!(raw.end().await, Some(NO_ERROR));
}

#[tokio::test]
async fn an_attempt_in_flight_is_small() {
    let (pool, _) = pool(PoolConfig::default(), echoing(1));
    let target = target();
    let size = size_of_val(&pool.open(&KEY, &tunnel_request(&target), patience()));
    assert!(size < 4 * 1024, "{size} bytes");
}
