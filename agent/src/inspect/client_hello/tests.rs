use proptest::prelude::*;
use rustls::ClientConfig;
use rustls::client::{EchGreaseConfig, EchMode};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_128;
use rustls::crypto::hpke::Hpke;
use rustls::server::Acceptor;

use super::*;
use crate::inspect::MAX_BYTES;
use crate::inspect::sample::{
    HandBuilt, alpn, in_records, rustls_hello, sent_first, server_name, signature_algorithms,
    vec16, without_records,
};

fn read(bytes: &[u8]) -> ClientHello {
    parse(bytes).unwrap().unwrap()
}

fn named(name: &str) -> ClientHello {
    ClientHello {
        server_name: Some(name.parse().unwrap()),
        ..ClientHello::default()
    }
}

#[test]
fn a_real_hello_with_a_post_quantum_share() {
    let bytes = rustls_hello("www.example.com", |config| {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    });
    assert!(
        bytes.len() > 1200,
        "no post-quantum share in {}",
        bytes.len()
    );
    let hello = read(&bytes);
    assert_eq!(
        hello,
        ClientHello {
            alpn: Alpn {
                h2: true,
                http1: true
            },
            ..named("www.example.com")
        }
    );
}

#[test]
fn a_real_hello_split_over_records_by_its_client() {
    let bytes = rustls_hello("www.example.com", |config| {
        config.max_fragment_size = Some(64);
    });
    let records = (bytes.len() - without_records(&bytes).len()) / 5;
    assert!(records > 10, "only {records} records");
    assert_eq!(read(&bytes), named("www.example.com"));
}

/// How each was made is told in `testdata/README.md`.
#[test]
fn hellos_of_other_clients() {
    let both = Alpn {
        h2: true,
        http1: true,
    };
    for (bytes, name, alpn) in [
        (
            &include_bytes!("../testdata/openssl-tls13.bin")[..],
            Some("www.example.com"),
            both,
        ),
        (
            include_bytes!("../testdata/openssl-tls12-no-name.bin"),
            None,
            Alpn::default(),
        ),
        (
            include_bytes!("../testdata/openssl-records.bin"),
            Some("www.example.com"),
            both,
        ),
        (
            include_bytes!("../testdata/openssl-tls1.bin"),
            Some("old.example.com"),
            Alpn::default(),
        ),
        (include_bytes!("../testdata/curl-ip.bin"), None, both),
    ] {
        let expected = ClientHello {
            server_name: name.map(|name| name.parse().unwrap()),
            ech: false,
            alpn,
        };
        assert_eq!(read(bytes), expected);
    }
}

#[test]
fn an_encrypted_hello_is_flagged_and_its_outer_name_read() {
    let suite = DH_KEM_X25519_HKDF_SHA256_AES_128;
    let (key, _) = suite.generate_key_pair().unwrap();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let config = ClientConfig::builder_with_provider(provider.into())
        .with_ech(EchMode::Grease(EchGreaseConfig::new(suite, key)))
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let hello = read(&sent_first(config, "front.example.com"));
    assert!(hello.ech);
    assert_eq!(hello.server_name, named("front.example.com").server_name);
}

#[test]
fn grease_everywhere() {
    let hello = HandBuilt {
        session_id: vec![0x77; 32],
        cipher_suites: vec![0x0a, 0x0a, 0x13, 0x01],
        ..HandBuilt::with(&[
            (0x1a1a, vec![]),
            server_name(b"WWW.Example.COM."),
            (10, vec16(&[0x2a, 0x2a, 0x00, 0x1d])),
            alpn(&[&[0x3a, 0x3a], b"http/1.1"]),
            (0x4a4a, vec![0]),
        ])
    };
    let expected = ClientHello {
        alpn: Alpn {
            h2: false,
            http1: true,
        },
        ..named("www.example.com")
    };
    assert_eq!(read(&hello.bytes()), expected);
}

#[test]
fn legal_hellos_that_a_strict_server_would_refuse() {
    let name = || vec![server_name(b"a.example")];
    let no_null_compression = HandBuilt {
        compressions: vec![1],
        ..HandBuilt::with(&name())
    };
    assert_eq!(read(&no_null_compression.bytes()), named("a.example"));
    // No signature_algorithms.
    assert_eq!(read(&HandBuilt::with(&name()).bytes()), named("a.example"));
    // A type of name to come, before the host name.
    let types = vec16(&[vec![7], vec16(b"??"), vec![0], vec16(b"a.example")].concat());
    let two_types = HandBuilt::with(&[(0, types)]);
    assert_eq!(read(&two_types.bytes()), named("a.example"));

    for nothing in [HandBuilt::default(), HandBuilt::with(&[])] {
        assert_eq!(read(&nothing.bytes()), ClientHello::default());
    }
}

#[test]
fn what_is_no_host_name_is_no_name() {
    for name in [
        &b"192.0.2.1"[..],
        b"2001:db8::1",
        b"[2001:db8::1]",
        b"127.1",
        b"a b",
        b"a.example\0",
        b"a\r\nHost: b",
        b"*.example.com",
        b"\xff\xfe",
        &[b'a'; 300],
    ] {
        let hello = HandBuilt::with(&[server_name(name)]);
        assert_eq!(read(&hello.bytes()), ClientHello::default(), "{name:?}");
    }
}

#[test]
fn malformed_hellos_are_none() {
    let good = || HandBuilt::with(&[server_name(b"a.example"), alpn(&[b"h2"])]);
    let with = |kind, data: &[u8]| HandBuilt::with(&[(kind, data.to_vec())]);
    let two_names = vec16(&[vec![0], vec16(b"a.example"), vec![0], vec16(b"b.example")].concat());
    for (what, hello) in [
        ("long session id", {
            HandBuilt {
                session_id: vec![0; 33],
                ..good()
            }
        }),
        ("no cipher suites", {
            HandBuilt {
                cipher_suites: vec![],
                ..good()
            }
        }),
        ("half a cipher suite", {
            HandBuilt {
                cipher_suites: vec![0x13, 0x01, 0x13],
                ..good()
            }
        }),
        ("no compressions", {
            HandBuilt {
                compressions: vec![],
                ..good()
            }
        }),
        ("bytes behind the extensions", {
            HandBuilt {
                trailing: vec![0],
                ..good()
            }
        }),
        ("half a length of extensions", {
            HandBuilt {
                extensions: None,
                trailing: vec![0],
                ..good()
            }
        }),
        ("extensions longer than the hello", {
            HandBuilt {
                extensions: None,
                trailing: vec![0, 9, 0, 0],
                ..good()
            }
        }),
        (
            "two server_name extensions",
            HandBuilt::with(&[server_name(b"a.example"), server_name(b"b.example")]),
        ),
        (
            "two lists of protocols",
            HandBuilt::with(&[alpn(&[b"h2"]), alpn(&[b"h2"])]),
        ),
        (
            "two encrypted hellos",
            HandBuilt::with(&[(0xfe0d, vec![0]), (0xfe0d, vec![0])]),
        ),
        ("two host names", with(0, &two_names)),
        ("no list of names", with(0, &[])),
        ("an empty list of names", with(0, &[0, 0])),
        ("an empty name", with(0, &[0, 3, 0, 0, 0])),
        (
            "a name longer than its list",
            with(0, &[0, 4, 0, 0, 9, b'a']),
        ),
        (
            "a list longer than its extension",
            with(0, &[0, 9, 0, 0, 1]),
        ),
        (
            "an extension longer than its list",
            with(0, &[0, 4, 0, 0, 1, b'a', 0]),
        ),
        ("no list of protocols", with(16, &[])),
        ("an empty protocol", with(16, &[0, 1, 0])),
        (
            "a protocol longer than its list",
            with(16, &[0, 2, 9, b'h']),
        ),
    ] {
        assert_eq!(parse(&hello.bytes()), Ok(None), "{what}");
    }
}

#[test]
fn other_first_bytes_are_none_at_once() {
    for bytes in [
        &[0x80, 0x2e, 0x01, 0x03, 0x01][..], // SSLv2
        &[0x16, 0x02],
        &[0x16, 0x03, 0x01, 0x00, 0x00], // an empty record
        &[0x16, 0x03, 0x01, 0x40, 0x01], // more than a record may carry
        &[0x15, 0x03, 0x01, 0x00, 0x02, 0x01, 0x00], // an alert
        &[0x16, 0x03, 0x01, 0x00, 0x30, 0x02], // a ServerHello
        // An alert in the middle of a hello.
        &[
            0x16, 0x03, 0x01, 0x00, 0x01, 0x01, 0x15, 0x03, 0x01, 0x00, 0x02, 0x01, 0x00,
        ],
    ] {
        assert_eq!(parse(bytes), Ok(None), "{bytes:x?}");
    }
}

#[test]
fn what_follows_the_hello_is_ignored() {
    let hello = HandBuilt::with(&[server_name(b"a.example")]);
    // Another handshake message, whole and cut, in the same record.
    let both = [hello.message(), HandBuilt::default().message()].concat();
    let bytes = in_records(&both, &[1 << 14]);
    assert_eq!(read(&bytes), named("a.example"));
    assert_eq!(read(&bytes[..bytes.len() - 7]), named("a.example"));
    // Early data.
    let bytes = [&hello.bytes()[..], &[20, 3, 3, 0, 1, 1, 23, 3, 3]].concat();
    assert_eq!(read(&bytes), named("a.example"));
}

#[test]
fn an_oversize_hello_is_known_by_its_header() {
    let start = [22, 3, 1, 0x40, 0x00, 1, 0xff, 0xff, 0xff];
    let Incomplete { at_least } = parse(&start).unwrap_err();
    assert!(at_least > MAX_BYTES);
}

#[test]
fn a_hello_in_records_of_one_byte_takes_few_attempts() {
    let message = without_records(&rustls_hello("www.example.com", |_| {}));
    let bytes = in_records(&message, &[1]);
    let (mut length, mut attempts) = (0, 0);
    while let Err(Incomplete { at_least }) = parse(&bytes[..length]) {
        length = at_least;
        attempts += 1;
    }
    assert_eq!(read(&bytes[..length]), named("www.example.com"));
    assert!(attempts < 100, "{attempts} attempts");
}

#[test]
fn every_prefix_is_incomplete() {
    let hellos = [
        rustls_hello("www.example.com", |_| {}),
        include_bytes!("../testdata/openssl-records.bin").to_vec(),
        HandBuilt::with(&[server_name(b"a.example")]).bytes(),
    ];
    for bytes in hellos {
        for length in 0..bytes.len() {
            let Incomplete { at_least } = parse(&bytes[..length]).unwrap_err();
            assert!(at_least > length && at_least <= bytes.len(), "at {length}");
        }
    }
}

/// The name that rustls as a server sees. What it refuses for being no host name counts as none.
fn seen_by_rustls(bytes: &[u8]) -> Option<String> {
    let mut acceptor = Acceptor::default();
    acceptor.read_tls(&mut &bytes[..]).unwrap();
    let accepted = acceptor.accept().ok()?.expect("a whole hello");
    let name = accepted.client_hello().server_name()?.to_owned();
    Some(name.trim_end_matches('.').to_owned())
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in any::<Vec<u8>>()) {
        let _ = parse(&bytes);
        let _ = parse(&in_records(&bytes, &[1 << 14]));
        let _ = parse(&[&[22, 3, 1, 0x40, 0, 1, 0, 0, 200], &bytes[..]].concat());
    }

    #[test]
    fn damage_is_survived(changes in prop::collection::vec((any::<u16>(), any::<u8>()), 1..8)) {
        let hello = HandBuilt::with(&[server_name(b"a.example"), alpn(&[b"h2"]), (0xfe0d, vec![])]);
        let mut bytes = hello.bytes();
        for (at, value) in changes {
            let at = usize::from(at) % bytes.len();
            bytes[at] = value;
        }
        let _ = parse(&bytes);
    }

    #[test]
    fn records_make_no_difference(sizes in prop::collection::vec(1usize..700, 1..20)) {
        let whole = rustls_hello("www.example.com", |_| {});
        let bytes = in_records(&without_records(&whole), &sizes);
        prop_assert_eq!(parse(&bytes), parse(&whole));
        for length in 0..bytes.len() {
            prop_assert!(parse(&bytes[..length]).is_err());
        }
    }

    #[test]
    fn a_real_client_and_a_real_server_agree_on_the_name(
        name in "([a-z0-9_]([a-z0-9_-]{0,20}[a-z0-9_])?\\.){0,5}[a-zA-Z]([a-z0-9-]{0,9}[a-z0-9])?"
    ) {
        let bytes = rustls_hello(&name, |_| {});
        let hello = read(&bytes);
        let ours = hello.server_name.map(String::from);
        prop_assert_eq!(&ours, &Some(name.to_ascii_lowercase()));
        prop_assert_eq!(ours, seen_by_rustls(&bytes));
    }

    #[test]
    fn a_real_server_agrees_on_what_is_a_name(name in "[a-cxX0-9._-]{1,12}|[ -~]{1,80}") {
        let hello = HandBuilt::with(&[server_name(name.as_bytes()), signature_algorithms()]);
        let bytes = hello.bytes();
        let ours = read(&bytes).server_name.map(String::from);
        prop_assert_eq!(ours, seen_by_rustls(&bytes));
    }
}
