//! Proxies that break the rules, or keep them to do harm: it ends in an error of their connection
//! or of one stream, or it is absorbed, and never fills the memory or hangs.

use proptest::prelude::*;

use super::raw::*;
use super::*;

/// Far more than may be taken from a peer that does not read what it is sent.
const FLOOD: usize = 64 * 1024 * 1024;

/// What a flood may leave in the buffers on the way.
const ABSORBED: usize = 4 * 1024 * 1024;

/// How the connection ends that `raw` has broken.
async fn ended(connection: &Connection) -> Ended {
    let mut status = connection.status();
    let status = soon(status.wait_for(|status| status.ended.is_some())).await;
    status.unwrap().ended.clone().unwrap()
}

/// The connection is given up for the proxy's fault, and so is the stream.
async fn expect_fault(connection: &Connection, mut stream: TunnelStream) {
    let ended = ended(connection).await;
    assert_eq!(ended.reason(), "malformed", "{ended:?}");
    let error = soon(stream.read_to_end(&mut Vec::new())).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

/// The stream is reset, and the connection carries others.
async fn expect_reset(connection: &Connection, raw: &mut Raw, mut stream: TunnelStream, id: u32) {
    assert_eq!(raw.expect(RST_STREAM).await.stream, id);
    let error = soon(stream.read_to_end(&mut Vec::new())).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let (mut stream, id) = opened(connection, raw).await;
    raw.data(END, id, b"well").await;
    let mut read = Vec::new();
    stream.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"well");
}

async fn begin() -> (Connection, Raw, TunnelStream, u32) {
    let (connection, mut raw) = Raw::connected(&Config::default(), &[]).await;
    let (stream, id) = opened(&connection, &mut raw).await;
    (connection, raw, stream, id)
}

/// Everything that has to be answered: who does not read the answers is not read either, and is
/// found to be silent.
#[tokio::test(start_paused = true)]
async fn floods_that_want_answers_are_held_back() {
    for flood in [settings(&[(4, 70_000)]), frame(PING, 0, 0, &[7; 8])] {
        let (connection, mut raw, mut stream, _) = begin().await;
        let sent = raw.flood(&flood, FLOOD).await;
        assert!(sent < ABSORBED, "{sent}");
        assert!(soon(stream.read_u8()).await.is_err());
        assert_eq!(ended(&connection).await.reason(), "ping_timeout");
    }
}

#[tokio::test]
async fn floods_whose_answers_are_read_do_no_harm() {
    for flood in [
        settings(&[]),
        settings(&[(MAX_CONCURRENT_STREAMS, 5)]),
        frame(PING, 0, 0, &[7; 8]),
        frame(PING, END, 0, &[7; 8]),
        frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]),
        // PRIORITY, and a frame of an unknown kind.
        frame(2, 0, 1, &[0; 5]),
        frame(0xfa, 0, 0, &[0; 100]),
    ] {
        let (_connection, mut raw, mut stream, id) = begin().await;
        raw.flood_reading(&flood, 100_000).await;
        raw.data(END, id, b"still here").await;
        let mut read = Vec::new();
        soon(stream.read_to_end(&mut read)).await.unwrap();
        assert_eq!(read, b"still here");
    }
}

#[tokio::test(start_paused = true)]
async fn header_blocks_without_end_are_given_up() {
    let (connection, mut raw) = Raw::connected(&Config::default(), &[]).await;
    let open = connection.open(request(), patience());
    let flood = async {
        let id = raw.expect(HEADERS).await.stream;
        raw.send(&frame(HEADERS, 0, id, &[0x88])).await;
        // `x: y`, many times.
        let fields = [0, 1, b'x', 1, b'y'].repeat(1000);
        raw.flood(&frame(CONTINUATION, 0, id, &fields), FLOOD).await
    };
    let (result, sent) = tokio::join!(open, flood);
    assert_eq!(result.unwrap_err().reason(), "malformed");
    assert!(sent < ABSORBED, "{sent}");
    assert_eq!(ended(&connection).await.reason(), "malformed");
}

#[tokio::test]
async fn an_answer_with_too_many_fields_is_refused_alone() {
    let (connection, mut raw) = Raw::connected(&Config::default(), &[]).await;
    let answer = async {
        let id = raw.expect(HEADERS).await.stream;
        // 18 KB of names and values, and 32 bytes for each of 600 fields.
        let mut block = vec![0x88];
        for at in 0..600_u32 {
            block.extend([0, 9, b'x']);
            block.extend(format!("{at:08}").as_bytes());
            block.extend([1, b'y']);
        }
        let (first, rest) = block.split_at(7000);
        raw.send(&frame(HEADERS, 0, id, first)).await;
        raw.send(&frame(CONTINUATION, END_HEADERS, id, rest)).await;
        assert_eq!(raw.expect(RST_STREAM).await.stream, id);
        opened(&connection, &mut raw).await
    };
    let (result, _) = tokio::join!(connection.open(request(), patience()), answer);
    let error = result.unwrap_err();
    assert!(matches!(error, OpenError::Malformed(_)), "{error:?}");
}

#[tokio::test]
async fn an_answer_without_status_is_refused_alone() {
    let (connection, mut raw) = Raw::connected(&Config::default(), &[]).await;
    let answer = async {
        let id = raw.expect(HEADERS).await.stream;
        let block = [0, 1, b'x', 1, b'y'];
        raw.send(&frame(HEADERS, END_HEADERS, id, &block)).await;
        assert_eq!(raw.expect(RST_STREAM).await.stream, id);
    };
    let (result, ()) = tokio::join!(connection.open(request(), patience()), answer);
    assert_eq!(result.unwrap_err().reason(), "malformed");
}

#[tokio::test]
async fn resets_over_and_over_do_no_harm_and_of_what_is_not_there_are_a_fault() {
    let (connection, mut raw, mut stream, id) = begin().await;
    let reset = frame(RST_STREAM, 0, id, &CANCEL.to_be_bytes());
    raw.flood_reading(&reset, 100_000).await;
    assert!(stream.read_u8().await.is_err());
    drop(stream);
    let (stream, id) = opened(&connection, &mut raw).await;
    raw.reset(id + 2, CANCEL).await;
    expect_fault(&connection, stream).await;
}

/// Every stream is refused: the requests fail, one by one, and nothing stays behind.
#[tokio::test]
async fn a_storm_of_resets_costs_each_request_its_stream() {
    let (connection, mut raw) = Raw::connected(&Config::default(), &[]).await;
    for _ in 0..5000 {
        let answer = async {
            let id = raw.expect(HEADERS).await.stream;
            raw.reset(id, CANCEL).await;
        };
        let (result, ()) = tokio::join!(connection.open(request(), patience()), answer);
        assert!(matches!(result, Err(OpenError::Reset(_))), "{result:?}");
    }
    assert_eq!(connection.open_streams(), 0);
    opened(&connection, &mut raw).await;
}

/// Workloads that hang up while much is under way to them are no fault of the proxy.
#[tokio::test]
async fn data_for_streams_that_were_dropped_is_passed_over() {
    let (connection, mut raw) = Raw::connected(&Config::default(), &[]).await;
    for _ in 0..1000 {
        let (stream, id) = opened(&connection, &mut raw).await;
        drop(stream);
        for _ in 0..10 {
            raw.data(0, id, &[0; 1000]).await;
        }
        raw.expect(RST_STREAM).await;
    }
    opened(&connection, &mut raw).await;
}

#[tokio::test(start_paused = true)]
async fn a_window_that_never_opens_holds_one_write_and_nothing_else() {
    let (connection, mut raw) =
        Raw::connected(&Config::default(), &[(INITIAL_WINDOW_SIZE, 0)]).await;
    let (mut stream, id) = opened(&connection, &mut raw).await;
    let write = timeout(Duration::from_secs(5), stream.write_all(b"stuck"));
    assert!(write.await.is_err());
    raw.data(0, id, b"the other way").await;
    let mut read = [0; 13];
    stream.read_exact(&mut read).await.unwrap();
    // Opened after all, byte by byte.
    let grant = frame(WINDOW_UPDATE, 0, id, &[0, 0, 0, 1]);
    let sending = async {
        stream.write_all(b"late").await.unwrap();
        stream.shutdown().await.unwrap();
    };
    let receiving = async {
        let mut got = Vec::new();
        while got.len() < 4 {
            raw.send(&grant).await;
            got.extend(raw.expect(DATA).await.payload);
        }
        got
    };
    let ((), got) = tokio::join!(sending, receiving);
    assert_eq!(got, b"late");
}

#[tokio::test]
async fn a_window_that_grows_too_large_is_a_fault() {
    let grant = (u32::MAX >> 1).to_be_bytes();
    let (connection, mut raw, stream, id) = begin().await;
    raw.send(&frame(WINDOW_UPDATE, 0, id, &grant)).await;
    expect_reset(&connection, &mut raw, stream, id).await;

    let (connection, mut raw, stream, _) = begin().await;
    raw.send(&frame(WINDOW_UPDATE, 0, 0, &grant)).await;
    expect_fault(&connection, stream).await;

    let (connection, mut raw, stream, _) = begin().await;
    raw.send(&settings(&[(INITIAL_WINDOW_SIZE, u32::MAX)]))
        .await;
    expect_fault(&connection, stream).await;
}

/// More than the window allows is not kept, whoever sends it.
#[tokio::test]
async fn data_beyond_the_window_is_a_fault() {
    let (connection, mut raw, stream, id) = begin().await;
    let window = Config::default().stream_window as usize;
    let chunk = vec![0; 16 * 1024];
    for _ in 0..window / chunk.len() {
        raw.data(0, id, &chunk).await;
    }
    assert!(connection.status().borrow().ended.is_none());
    raw.data(0, id, b"!").await;
    let mut stream = stream;
    let mut read = Vec::new();
    let error = soon(stream.read_to_end(&mut read)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(read.len() <= window);
}

#[tokio::test]
async fn a_second_head_is_a_fault_of_the_stream() {
    let (connection, mut raw, stream, id) = begin().await;
    raw.answer(id).await;
    expect_reset(&connection, &mut raw, stream, id).await;
}

/// Small frames weigh more than what is in them.
#[tokio::test(start_paused = true)]
async fn frames_with_little_or_nothing_in_them_are_bounded() {
    let (connection, mut raw, stream, id) = begin().await;
    let sent = raw.flood(&frame(DATA, 0, id, b""), FLOOD).await;
    assert!(sent < ABSORBED, "{sent}");
    expect_fault(&connection, stream).await;

    let config = Config {
        max_streams: 4,
        ..Config::default()
    };
    let (connection, mut raw) = Raw::connected(&config, &[]).await;
    let (stream, id) = opened(&connection, &mut raw).await;
    let sent = raw.flood(&frame(DATA, 0, id, b"x"), FLOOD).await;
    assert!(sent < ABSORBED, "{sent}");
    expect_fault(&connection, stream).await;
}

#[tokio::test]
async fn what_no_server_may_send_is_a_fault() {
    let promise = [0, 0, 0, 2, 0x82, 0x84, 0x86];
    for bytes in [
        frame(PUSH_PROMISE, END_HEADERS, 1, &promise),
        // A stream of its own, one that is not open, one that cannot be.
        frame(HEADERS, END_HEADERS, 2, &[0x88]),
        frame(DATA, 0, 99, b"x"),
        frame(DATA, 0, 0, b"x"),
        // An answer to SETTINGS that were answered, and lengths that cannot be.
        frame(SETTINGS, END, 0, &[]),
        frame(SETTINGS, 0, 0, &[0; 5]),
        frame(PING, 0, 0, &[0; 7]),
        frame(WINDOW_UPDATE, 0, 0, &[0; 4]),
        frame(DATA, 0, 1, &[0; 16 * 1024 + 1]),
        frame(CONTINUATION, END_HEADERS, 1, &[0x88]),
        // HPACK: an index that does not exist.
        frame(HEADERS, END | END_HEADERS, 1, &[0xff, 0xff, 0x7f]),
    ] {
        let (connection, mut raw, stream, _) = begin().await;
        raw.send(&bytes).await;
        expect_fault(&connection, stream).await;
    }
}

/// One frame, with a head that fits or not.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = proptest::collection::vec(any::<u8>(), 0..64);
    let well_formed = (0..12_u8, any::<u8>(), 0..6_u32, payload)
        .prop_map(|(kind, flags, stream, payload)| frame(kind, flags, stream, &payload));
    let known = prop_oneof![
        Just(frame(HEADERS, END_HEADERS, 1, &[0x88])),
        Just(frame(HEADERS, END | END_HEADERS, 1, &[0x88])),
        Just(frame(DATA, 0, 1, b"data")),
        Just(frame(DATA, END, 1, b"end")),
        (0..14_u32).prop_map(|code| frame(RST_STREAM, 0, 1, &code.to_be_bytes())),
        (0..7_u16, any::<u32>()).prop_map(|(name, value)| settings(&[(name, value)])),
        (0..4_u32, any::<u32>()).prop_map(|(id, grant)| frame(
            WINDOW_UPDATE,
            0,
            id,
            &grant.to_be_bytes()
        )),
        (0..4_u32, 0..14_u32).prop_map(|(last, code)| {
            frame(
                GOAWAY,
                0,
                0,
                &[last.to_be_bytes(), code.to_be_bytes()].concat(),
            )
        }),
    ];
    let noise = proptest::collection::vec(any::<u8>(), 0..64);
    prop_oneof![4 => well_formed, 6 => known, 1 => noise]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever a proxy sends, a request and its stream come to an end, and so does the
    /// connection.
    #[test]
    fn whatever_comes_there_is_an_end(
        frames in proptest::collection::vec(any_frame(), 0..24),
        closes in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(soon(async {
            let (connection, mut raw) = Raw::connected(&Config::default(), &[]).await;
            let mut status = connection.status();
            let proxy = async {
                for frame in frames {
                    if raw.try_send(&frame).await.is_err() {
                        return;
                    }
                }
                if closes {
                    drop(raw);
                } else {
                    while raw.next().await.is_some() {}
                }
            };
            let workload = async {
                let deadline = Instant::now() + Duration::from_secs(15);
                if let Ok(opened) = connection.open(request(), deadline).await {
                    let mut stream = opened.stream;
                    let _ = stream.write_all(b"hello").await;
                    let _ = stream.shutdown().await;
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
                drop(connection);
            };
            tokio::join!(proxy, workload);
            assert!(status.wait_for(|status| status.ended.is_some()).await.is_ok());
        }));
    }
}
