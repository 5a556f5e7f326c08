//! Clients over TLS.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

/// An authority and the files that it issues.
struct Pki {
    dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.crt"), issuer.pem()).unwrap();
        let pki = Self { dir, issuer };
        pki.issue("server");
        pki
    }

    /// Writes `name.crt` and `name.key`.
    fn issue(&self, name: &str) {
        let params = CertificateParams::new(vec!["proxy.example".into()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        fs::write(self.path(&format!("{name}.crt")), certificate.pem()).unwrap();
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn files(&self) -> TlsFiles {
        TlsFiles {
            certificate: self.path("server.crt"),
            key: self.path("server.key"),
            client_ca: None,
        }
    }

    fn certificate(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path(&format!("{name}.crt"))).unwrap()
    }

    /// A client that trusts the authority, offers `alpn` and has the certificate `own`.
    fn client(&self, alpn: &[&str], own: Option<&str>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate("ca")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key")));
                let chain = vec![self.certificate(name)];
                builder.with_client_auth_cert(chain, key.unwrap()).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }
}

async fn connect(gateway: &Running, config: ClientConfig) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let name = ServerName::try_from("proxy.example").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

/// The head of the answer to CONNECT, or why there is none.
async fn ask(stream: &mut TlsStream<TcpStream>, server: &Server) -> io::Result<String> {
    let request = format!("CONNECT here.example:{} HTTP/1.1\r\n\r\n", server.port());
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8(head).unwrap())
}

async fn over_tls(files: TlsFiles) -> Running {
    start(GatewayConfig {
        tls: Some(files.follow().unwrap()),
        ..local()
    })
    .await
}

#[tokio::test]
async fn tunnels_stand_over_tls_and_half_closes_and_failures_pass() {
    let pki = Pki::new();
    let gateway = over_tls(pki.files()).await;
    let server = Server::new().await;
    for alpn in [&["http/1.1"][..], &[], &["http/1.1", "other"]] {
        let mut stream = connect(&gateway, pki.client(alpn, None)).await.unwrap();
        let head = ask(&mut stream, &server).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let mut upstream = server.accept().await;
        stream.write_all(b"question").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut question = String::new();
        upstream.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        upstream.write_all(b"answer").await.unwrap();
        drop(upstream);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
    }
    // An end without the word of TLS for it may be somebody else's doing: no end of the data.
    let mut stream = connect(&gateway, pki.client(&[], None)).await.unwrap();
    ask(&mut stream, &server).await.unwrap();
    let mut upstream = server.accept().await;
    stream.get_mut().0.shutdown().await.unwrap();
    let error = upstream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    // A failure of the target's is none either.
    let mut stream = connect(&gateway, pki.client(&[], None)).await.unwrap();
    ask(&mut stream, &server).await.unwrap();
    let upstream = server.accept().await;
    crate::sockets::reset_on_close(&upstream);
    drop(upstream);
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn http2_is_spoken_where_both_want_it() {
    let pki = Pki::new();
    let gateway = over_tls(pki.files()).await;
    let config = pki.client(&["h2", "http/1.1"], None);
    let stream = connect(&gateway, config).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut requests = requests.ready().await.unwrap();
    let request = http::Request::connect("here.example").body(()).unwrap();
    let (answer, _) = requests.send_request(request, true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 400);
    // Without having agreed on it, it is no HTTP/2.
    let mut stream = connect(&gateway, pki.client(&[], None)).await.unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400");
    // Nothing in common.
    let error = connect(&gateway, pki.client(&["spdy/3"], None)).await;
    assert!(error.is_err());
}

#[tokio::test]
async fn only_clients_of_the_authority_are_served() {
    let pki = Pki::new();
    pki.issue("client");
    let strangers = Pki::new();
    strangers.issue("client");
    fs::copy(pki.path("ca.crt"), strangers.path("ca.crt")).unwrap();
    let gateway = over_tls(TlsFiles {
        client_ca: Some(pki.path("ca.crt")),
        ..pki.files()
    })
    .await;
    let server = Server::new().await;
    for (config, served) in [
        (pki.client(&[], Some("client")), true),
        (pki.client(&[], None), false),
        (strangers.client(&[], Some("client")), false),
    ] {
        // In TLS 1.3 a client hears of a refusal only when it reads.
        let asked = async {
            let mut stream = connect(&gateway, config).await?;
            ask(&mut stream, &server).await
        };
        assert_eq!(asked.await.is_ok(), served);
    }
    gateway
        .wait_for_metric("underpass_gateway_tls_handshake_failures_total", &[], 2.0)
        .await;
}

#[tokio::test]
async fn a_new_certificate_is_taken_up_and_connections_go_on() {
    let pki = Pki::new();
    let gateway = over_tls(pki.files()).await;
    let server = Server::new().await;
    let served = async || {
        let stream = connect(&gateway, pki.client(&[], None)).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let mut tunnel = connect(&gateway, pki.client(&[], None)).await.unwrap();
    ask(&mut tunnel, &server).await.unwrap();
    let mut upstream = server.accept().await;
    let before = pki.certificate("server");
    assert_eq!(served().await, before);

    // Half of a change cannot be used, so the old one stays.
    pki.issue("next");
    let put = |file: &str| {
        let (from, to) = (
            pki.path(&format!("next.{file}")),
            pki.path(&format!("server.{file}")),
        );
        // At once, as mounted Secrets change: a file is never half written.
        fs::rename(from, to).unwrap();
        gateway.control.reload();
    };
    put("crt");
    gateway.wait_for_reload("certificate", "failure").await;
    assert_eq!(served().await, before);
    put("key");
    gateway.wait_for_reload("certificate", "success").await;
    assert_eq!(served().await, pki.certificate("server"));
    assert_ne!(served().await, before);
    tunnel.write_all(b"x").await.unwrap();
    assert_eq!(upstream.read_u8().await.unwrap(), b'x');
}

#[test]
fn files_that_cannot_be_used_are_named_with_the_reason() {
    let pki = Pki::new();
    let other = Pki::new();
    let files = pki.files();
    fs::write(pki.path("empty"), "nothing here\n").unwrap();
    fs::write(
        pki.path("broken"),
        "-----BEGIN CERTIFICATE-----\n!hunter2!\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    fs::write(pki.path("large"), vec![b'x'; (1 << 20) + 1]).unwrap();
    let with = |change: &dyn Fn(&mut TlsFiles)| {
        let mut files = files.clone();
        change(&mut files);
        files.follow().unwrap_err().to_string()
    };
    let at = |name: &str| pki.path(name);
    for (error, parts) in [
        (
            with(&|files| files.certificate = at("missing")),
            ["missing: cannot be read", "No such file"],
        ),
        (
            with(&|files| files.certificate = at("empty")),
            ["empty: no certificate", "right file"],
        ),
        (
            with(&|files| files.certificate = at("broken")),
            ["broken: not PEM", "base64"],
        ),
        (
            with(&|files| files.certificate = at("large")),
            ["large: larger", "1 MiB"],
        ),
        (
            with(&|files| files.key = at("server.crt")),
            ["server.crt: no private key", "right file"],
        ),
        (
            with(&|files| files.key = other.path("server.key")),
            ["server.crt: cannot be used with the key", "belong together"],
        ),
        (
            with(&|files| files.client_ca = Some(at("empty"))),
            ["empty: no certificate", "right file"],
        ),
        (
            with(&|files| files.client_ca = Some(at("missing"))),
            ["missing: cannot be read", "No such file"],
        ),
    ] {
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
