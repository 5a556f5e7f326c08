//! Handshakes over in-memory streams, with servers of our own.

mod ends;
mod settings;

use std::sync::Arc;

use rcgen::{CertificateParams, SanType, date_time_ymd};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use secrecy::ExposeSecret;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::Duration;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream as Served;

use super::testing::{Authority, client, patience, server, server_config};
use super::*;

const TLS12: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];
const TLS13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

type Both = (
    Result<TlsStream<DuplexStream>, TlsError>,
    std::io::Result<Served<DuplexStream>>,
);

async fn shake(tls: &ClientTls, acceptor: &TlsAcceptor, host: &str) -> Both {
    let (near, far) = duplex(64 * 1024);
    let host = host.parse().unwrap();
    tokio::join!(tls.connect(near, &host, patience()), acceptor.accept(far))
}

/// What keeps a client with these settings from speaking with this server as `host`.
async fn refusal(settings: &TlsSettings, acceptor: &TlsAcceptor, host: &str) -> TlsError {
    let (ours, _) = shake(&client(settings), acceptor, host).await;
    ours.unwrap_err()
}

#[tokio::test]
async fn a_server_is_known_by_its_authority_and_name() {
    let authority = Authority::new("a CA");
    let identity = authority.issue(&["www.example.com", "*.wild.example", "192.0.2.1"]);
    let acceptor = server(&identity, None);
    let tls = client(&authority.settings());
    for (host, sent) in [
        ("www.example.com", Some("www.example.com")),
        ("a.wild.example", Some("a.wild.example")),
        ("192.0.2.1", None),
    ] {
        let (ours, theirs) = shake(&tls, &acceptor, host).await;
        let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
        assert_eq!(theirs.get_ref().1.server_name(), sent, "{host}");
        ours.write_all(b"question").await.unwrap();
        ours.flush().await.unwrap();
        let mut question = [0; 8];
        theirs.read_exact(&mut question).await.unwrap();
        assert_eq!(&question, b"question");
    }
}

#[tokio::test]
async fn another_name_may_be_sent_and_is_the_one_that_counts() {
    let authority = Authority::new("a CA");
    let acceptor = server(&authority.issue(&["real.example"]), None);
    let settings = TlsSettings {
        sni: Some("real.example".parse().unwrap()),
        ..authority.settings()
    };
    for host in ["alias.example", "192.0.2.7"] {
        let (ours, theirs) = shake(&client(&settings), &acceptor, host).await;
        ours.unwrap();
        let theirs = theirs.unwrap();
        assert_eq!(theirs.get_ref().1.server_name(), Some("real.example"));
    }
    let error = refusal(&authority.settings(), &acceptor, "alias.example").await;
    assert_eq!(error.failure(), TlsFailure::WrongName);
}

#[tokio::test]
async fn a_certificate_of_somebody_else_is_told_with_its_names() {
    let authority = Authority::new("a CA");
    let acceptor = server(&authority.issue(&["a.example", "192.0.2.1"]), None);
    let error = refusal(&authority.settings(), &acceptor, "b.example").await;
    assert_eq!(error.reason(), "tls_wrong_name");
    let text = error.to_string();
    assert!(
        text.starts_with(
            "TLS failed: its certificate is not for `b.example`, but for a.example, 192.0.2.1;"
        ),
        "{text}"
    );
    let error = refusal(&authority.settings(), &acceptor, "192.0.2.2").await;
    assert!(error.to_string().contains("`192.0.2.2`"), "{error}");

    let many: Vec<_> = (0..50).map(|n| format!("host-{n}.example")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let error = refusal(
        &authority.settings(),
        &server(&authority.issue(&many), None),
        "b.example",
    )
    .await;
    let text = error.to_string();
    assert!(text.contains("and 44 more") && text.len() < 400, "{text}");

    let nameless = server(&authority.issue(&[]), None);
    let error = refusal(&authority.settings(), &nameless, "b.example").await;
    let text = error.to_string();
    assert!(text.contains("it has no subjectAltName"), "{text}");
}

#[tokio::test]
async fn time_counts() {
    let authority = Authority::new("a CA");
    let valid = |from: i32, to: i32| {
        let mut params = CertificateParams::new(["a.example".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        server(&authority.issue_as(&params), None)
    };
    for (from, to, reason, said) in [
        (2001, 2002, "tls_expired", "has expired"),
        (4000, 4001, "tls_not_yet_valid", "is a clock wrong?"),
    ] {
        let error = refusal(&authority.settings(), &valid(from, to), "a.example").await;
        assert_eq!(error.reason(), reason);
        let text = error.to_string();
        assert!(text.contains(said) && text.contains(" days"), "{text}");
    }
}

#[tokio::test]
async fn nobody_else_may_vouch() {
    let (good, bad) = (Authority::new("good"), Authority::new("bad"));
    let acceptor = server(&bad.issue(&["a.example"]), None);
    let error = refusal(&good.settings(), &acceptor, "a.example").await;
    assert_eq!(error.reason(), "tls_unknown_issuer");
    let text = error.to_string();
    assert!(
        text.ends_with("none of the CAs configured for it"),
        "{text}"
    );

    let found = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(found.path(), good.pem()).unwrap();
    let system = rustls_native_certs::load_certs_from_paths(Some(found.path()), None).into();
    let tls = ClientTls::new(&TlsSettings::default(), &system).unwrap();
    let error = shake(&tls, &acceptor, "a.example").await.0.unwrap_err();
    assert!(error.to_string().contains("caCertificates"), "{error}");
    let acceptor = server(&good.issue(&["a.example"]), None);
    shake(&tls, &acceptor, "a.example").await.0.unwrap();
}

#[tokio::test]
async fn configured_names_stand_in_for_the_host() {
    let authority = Authority::new("a CA");
    let mut params = CertificateParams::new([
        "a.example".to_owned(),
        "*.wild.example".to_owned(),
        "2001:db8::1".to_owned(),
    ])
    .unwrap();
    let spiffe = "spiffe://cluster.local/ns/a/sa/b";
    params
        .subject_alt_names
        .push(SanType::URI(spiffe.try_into().unwrap()));
    let acceptor = server(&authority.issue_as(&params), None);
    let with = |names: &[&str]| TlsSettings {
        subject_alt_names: names.iter().map(ToString::to_string).collect(),
        ..authority.settings()
    };
    for names in [
        &["a.example"][..],
        &["A.Example"],
        &["other.example", "a.example"],
        &["x.wild.example"],
        &["*.wild.example"],
        &["2001:db8::1"],
        &[spiffe],
        &["other.example", spiffe],
    ] {
        let (ours, _) = shake(&client(&with(names)), &acceptor, "host.example").await;
        assert!(ours.is_ok(), "{names:?}: {ours:?}");
    }
    for names in [
        &["other.example"][..],
        // The host itself no longer counts.
        &["host.example"],
        &["*.example"],
        &["x.y.wild.example"],
        &["2001:db8::2"],
        &["spiffe://cluster.local/ns/a/sa/bb"],
        &["spiffe://cluster.local/ns/a/sa/"],
        &["SPIFFE://cluster.local/ns/a/sa/b"],
        &[""],
    ] {
        let error = refusal(&with(names), &acceptor, "a.example").await;
        assert_eq!(error.failure(), TlsFailure::WrongName, "{names:?}: {error}");
    }
    let error = refusal(&with(&["spiffe://x/y"]), &acceptor, "a.example").await;
    let text = error.to_string();
    assert!(
        text.contains("(spiffe://x/y), but for a.example, *.wild.example") && text.contains(spiffe),
        "{text}"
    );

    // A name is nothing without an authority.
    let stranger = Authority::new("stranger");
    let acceptor = server(&stranger.issue(&["a.example"]), None);
    let error = refusal(&with(&["a.example"]), &acceptor, "a.example").await;
    assert_eq!(error.failure(), TlsFailure::UnknownIssuer);
}

#[tokio::test]
async fn a_server_may_want_to_know_us() {
    let (authority, clients) = (Authority::new("servers"), Authority::new("clients"));
    let identity = authority.issue(&["a.example"]);
    let known = TlsSettings {
        identity: Some(clients.issue(&["me"])),
        ..authority.settings()
    };
    let stranger = TlsSettings {
        identity: Some(authority.issue(&["me"])),
        ..authority.settings()
    };
    for versions in [TLS12, TLS13] {
        let config = server_config(&identity, Some(&clients), versions);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (ours, theirs) = shake(&client(&known), &acceptor, "a.example").await;
        ours.unwrap();
        let theirs = theirs.unwrap();
        assert_eq!(theirs.get_ref().1.peer_certificates().unwrap().len(), 1);

        for (settings, reason, hint) in [
            (
                authority.settings(),
                "tls_alert_certificate_required",
                "it wants a client certificate",
            ),
            (
                stranger.clone(),
                "tls_alert_unknown_ca",
                "it does not accept our client certificate",
            ),
        ] {
            let (ours, theirs) = shake(&client(&settings), &acceptor, "a.example").await;
            assert!(theirs.is_err());
            // In TLS 1.3 the handshake is over for us before the server has seen our answer.
            let error = match ours {
                Err(error) => error,
                Ok(mut ours) => {
                    let error = ours.read_u8().await.unwrap_err();
                    error.downcast().unwrap()
                }
            };
            assert_eq!(error.reason(), reason, "{versions:?}");
            assert!(error.to_string().contains(hint), "{error}");
        }
    }
}

#[tokio::test]
async fn without_verification_only_the_key_is_checked() {
    let stranger = Authority::new("stranger");
    let mut params = CertificateParams::new(["b.example".to_owned()]).unwrap();
    params.not_after = date_time_ymd(2001, 1, 1);
    let identity = stranger.issue_as(&params);
    let settings = TlsSettings {
        insecure_skip_verify: true,
        subject_alt_names: vec!["c.example".to_owned()],
        ..TlsSettings::default()
    };
    for versions in [TLS12, TLS13] {
        let acceptor = TlsAcceptor::from(Arc::new(server_config(&identity, None, versions)));
        let (ours, _) = shake(&client(&settings), &acceptor, "a.example").await;
        ours.unwrap();

        // Somebody with the certificate, but not its key.
        let other = stranger.issue(&["b.example"]);
        let chain = CertificateDer::from_pem_slice(&identity.chain).unwrap();
        let key = PrivateKeyDer::from_pem_slice(other.key.expose_secret().as_bytes()).unwrap();
        let key = aws_lc_rs::sign::any_supported_type(&key).unwrap();
        let stolen = SingleCertAndKey::from(CertifiedKey::new(vec![chain], key));
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(stolen));
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let error = refusal(&settings, &acceptor, "a.example").await;
        assert_eq!(error.reason(), "tls_bad_certificate", "{error}");
    }
}

#[tokio::test]
async fn old_versions_can_be_ruled_out() {
    let authority = Authority::new("a CA");
    let identity = authority.issue(&["a.example"]);
    let old = TlsAcceptor::from(Arc::new(server_config(&identity, None, TLS12)));
    let (ours, _) = shake(&client(&authority.settings()), &old, "a.example").await;
    ours.unwrap();
    let settings = TlsSettings {
        min_version: TlsVersion::Tls13,
        ..authority.settings()
    };
    let error = refusal(&settings, &old, "a.example").await;
    assert_eq!(error.reason(), "tls_alert_protocol_version");
    assert!(error.to_string().contains("no version of TLS"), "{error}");
    shake(&client(&settings), &server(&identity, None), "a.example")
        .await
        .0
        .unwrap();
}

#[tokio::test]
async fn protocols_are_offered_and_one_is_agreed_upon() {
    let authority = Authority::new("a CA");
    let mut config = server_config(&authority.issue(&["a.example"]), None, TLS13);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let offering = |offer: &[&[u8]]| TlsSettings {
        alpn: offer.iter().map(|protocol| protocol.to_vec()).collect(),
        ..authority.settings()
    };
    let tls = client(&offering(&[b"h2", b"http/1.1"]));
    let ours = shake(&tls, &acceptor, "a.example").await.0.unwrap();
    assert_eq!(ours.alpn(), Some(&b"http/1.1"[..]));
    let tls = client(&offering(&[]));
    let ours = shake(&tls, &acceptor, "a.example").await.0.unwrap();
    assert_eq!(ours.alpn(), None);
    let error = refusal(&offering(&[b"h2"]), &acceptor, "a.example").await;
    assert_eq!(error.reason(), "tls_alert_no_application_protocol");
    assert!(error.to_string().contains("ALPN"), "{error}");
}

#[tokio::test]
async fn sessions_are_resumed_by_the_one_who_had_them() {
    let authority = Authority::new("a CA");
    let identity = authority.issue(&["a.example", "b.example"]);
    for versions in [TLS12, TLS13] {
        let acceptor = TlsAcceptor::from(Arc::new(server_config(&identity, None, versions)));
        let tls = client(&authority.settings());
        for (host, resumed) in [
            ("a.example", false),
            ("a.example", true),
            ("b.example", false),
        ] {
            let (ours, theirs) = shake(&tls, &acceptor, host).await;
            let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
            assert_eq!(ours.is_resumed(), resumed, "{host} {versions:?}");
            // Tickets come with the first bytes (TLS 1.3).
            theirs.write_all(b"x").await.unwrap();
            theirs.flush().await.unwrap();
            ours.read_u8().await.unwrap();
        }
        let stranger = client(&authority.settings());
        let ours = shake(&stranger, &acceptor, "a.example").await.0.unwrap();
        assert!(!ours.is_resumed());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_tls_is_told_as_that() {
    let tls = client(&Authority::new("a CA").settings());
    let host = "a.example".parse().unwrap();
    for answer in ["HTTP/1.1 400 Bad Request\r\n\r\n", "220 ESMTP\r\n", "SSH-2"] {
        let (near, mut far) = duplex(64 * 1024);
        far.write_all(answer.as_bytes()).await.unwrap();
        let error = tls.connect(near, &host, patience()).await.unwrap_err();
        assert_eq!(error.reason(), "tls_not_spoken", "{answer}: {error}");
        assert!(
            error
                .to_string()
                .contains("does not speak TLS on this port")
        );
    }
    let (near, far) = duplex(64 * 1024);
    drop(far);
    let error = tls.connect(near, &host, patience()).await.unwrap_err();
    assert_eq!(error.failure(), TlsFailure::Io, "{error}");

    let (near, mut far) = duplex(64 * 1024);
    far.shutdown().await.unwrap();
    let error = tls.connect(near, &host, patience()).await.unwrap_err();
    assert_eq!(error.failure(), TlsFailure::Closed, "{error}");

    let (near, _far) = duplex(64 * 1024);
    let deadline = Instant::now() + Duration::from_secs(3);
    let error = tls.connect(near, &host, deadline).await.unwrap_err();
    assert_eq!(error.reason(), "tls_timeout");
    assert!(Instant::now() >= deadline);
}
