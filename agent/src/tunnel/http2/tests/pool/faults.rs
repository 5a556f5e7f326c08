//! Connections that are refused, refuse, break or say nothing.

use parking_lot::Mutex;

use super::*;
use crate::tunnel::connect::ExchangeError;

#[tokio::test]
async fn a_refused_stream_is_tried_on_another_connection() {
    let (pool, mut proxies) = raw_pool(PoolConfig::default());
    let (opened, (mut refusing, _new)) = open_while(&pool, async {
        let mut refusing = next(&mut proxies, &[]).await;
        let id = refusing.expect(HEADERS).await.stream;
        refusing.reset(id, REFUSED_STREAM).await;
        let mut raw = next(&mut proxies, &[]).await;
        raw.accept().await;
        (refusing, raw)
    })
    .await;
    assert_eq!(opened.info, 1);
    // The one that refused may do better next time.
    let stats = pool.stats(&KEY);
    assert_eq!((stats.connections, stats.going_away), (2, 0));
    let (opened, _) = open_while(&pool, refusing.accept()).await;
    assert_eq!(opened.info, 0);
}

#[tokio::test]
async fn a_proxy_that_refuses_everything_is_not_asked_for_ever() {
    let (pool, mut proxies) = raw_pool(PoolConfig::default());
    let refuse = async {
        let mut refusing = Vec::new();
        for _ in 0..3 {
            let mut raw = next(&mut proxies, &[]).await;
            let id = raw.expect(HEADERS).await.stream;
            raw.reset(id, REFUSED_STREAM).await;
            refusing.push(raw);
        }
        refusing
    };
    let (result, _refusing) = tokio::join!(open(&pool), refuse);
    let error = result.unwrap_err();
    assert_eq!(
        (error.reason(), error.phase(), error.retryable()),
        ("stream_refused", "connect", true)
    );
    assert!(proxies.try_recv().is_err());
    assert_eq!(pool.stats(&KEY).streams, 0);
}

#[tokio::test]
async fn only_what_was_not_taken_is_tried_again() {
    let (pool, mut proxies) = raw_pool(PoolConfig::default());
    let reset = async {
        let mut raw = next(&mut proxies, &[]).await;
        let id = raw.expect(HEADERS).await.stream;
        raw.reset(id, CANCEL).await;
        raw
    };
    let (result, mut raw) = tokio::join!(open(&pool), reset);
    let error = result.unwrap_err();
    assert!(
        matches!(error, PoolError::Open(OpenError::Reset(h2::Reason::CANCEL))),
        "{error:?}"
    );
    // `:status: 403`, by the name in the static table.
    let forbid = async {
        let id = raw.expect(HEADERS).await.stream;
        let forbidden = [8, 3, b'4', b'0', b'3'];
        raw.send(&frame(HEADERS, END | END_HEADERS, id, &forbidden))
            .await;
    };
    let (result, ()) = tokio::join!(open(&pool), forbid);
    let error = result.unwrap_err();
    let PoolError::Open(OpenError::Exchange(ExchangeError::Refused(refusal))) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(refusal.code, 403);
    assert!(proxies.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_died_while_idle_is_found_out_and_replaced() {
    let (pool, mut proxies) = raw_pool(PoolConfig::default());
    let (opened, _dead) = open_while(&pool, async {
        let mut raw = next(&mut proxies, &[]).await;
        raw.accept().await;
        raw
    })
    .await;
    drop(opened);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let begin = Instant::now();
    let (opened, _alive) = open_while(&pool, async {
        let mut raw = next(&mut proxies, &[]).await;
        raw.accept().await;
        raw
    })
    .await;
    assert_eq!(opened.info, 1);
    // It was asked at once, having been silent for long.
    assert!(begin.elapsed() < Duration::from_secs(6));
    assert_eq!(pool.stats(&KEY).connections, 1);
}

#[tokio::test]
async fn a_connection_that_broke_leaves_the_pool() {
    let (pool, mut proxies) = raw_pool(PoolConfig::default());
    let (mut opened, raw) = open_while(&pool, async {
        let mut raw = next(&mut proxies, &[]).await;
        raw.accept().await;
        raw
    })
    .await;
    drop(raw);
    assert!(soon(opened.stream.read_u8()).await.is_err());
    until(&pool, |stats| stats.connections == 0).await;
    // A place on what is gone, given back late, is no place on what comes.
    let (second, _raw) = open_while(&pool, async {
        let mut raw = next(&mut proxies, &[]).await;
        raw.accept().await;
        raw
    })
    .await;
    drop(opened);
    assert_eq!(second.info, 1);
    assert_eq!(pool.stats(&KEY).streams, 1);
}

#[tokio::test]
async fn who_waits_is_told_when_there_is_no_connection() {
    let refuse = Arc::new(Mutex::new(true));
    let refuses = Arc::clone(&refuse);
    let echo = echoing(10);
    let (pool, dials) = pool(PoolConfig::default(), move |dial| {
        if *refuses.lock() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        echo(dial)
    });
    let mut opening = JoinSet::new();
    for _ in 0..50 {
        let pool = pool.clone();
        opening.spawn(async move { open(&pool).await.unwrap_err() });
    }
    for error in soon(opening.join_all()).await {
        let PoolError::Connect(NoConnection::Dial(cause)) = &error else {
            panic!("{error:?}");
        };
        assert_eq!(cause.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(
            (error.reason(), error.phase(), error.retryable()),
            ("dial", "dial", true)
        );
    }
    assert_eq!(dials.load(Ordering::Relaxed), 1);
    assert_eq!(pool.all_stats(), []);
    *refuse.lock() = false;
    open(&pool).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_says_nothing_is_given_up() {
    let config = PoolConfig::default();
    let after = config.dial_timeout;
    let (pool, mut proxies) = raw_pool(config);
    let begin = Instant::now();
    let error = open(&pool).await.unwrap_err();
    assert_eq!(
        (error.reason(), error.phase()),
        ("settings_timeout", "dial")
    );
    assert_eq!(begin.elapsed(), after);
    let mut raw = proxies.recv().await.unwrap();
    raw.end().await;
}

/// Tells how connections end.
struct Telling(mpsc::UnboundedSender<(usize, &'static str)>);

impl Dial for Telling {
    type Key = &'static str;
    type Transport = DuplexStream;
    type Info = usize;
    type Error = io::Error;

    async fn dial(&self, _: &&'static str, _: Instant) -> io::Result<(DuplexStream, usize)> {
        let (near, mut raw) = Raw::pipe();
        tokio::spawn(async move {
            raw.begin(&[]).await;
            raw.accept().await;
            raw.data(0, 0, b"on no stream").await;
            raw.end().await;
        });
        Ok((near, 7))
    }

    fn ended(&self, key: &&'static str, info: &usize, ended: &Ended) {
        assert_eq!(*key, KEY);
        self.0.send((*info, ended.reason())).unwrap();
    }
}

#[tokio::test]
async fn who_dials_learns_how_each_connection_ended() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let pool = Pool::new(Telling(tell), PoolConfig::default());
    let opened = open(&pool).await;
    assert_eq!(soon(told.recv()).await, Some((7, "malformed")));
    drop((opened, pool));
    assert_eq!(told.recv().await, None);
}
