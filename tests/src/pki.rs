//! Certificate authorities of the test's own.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use crate::addr::{NAMES, SITE_V4, SITE_V6};
use crate::process::Cmd;
use crate::{Must as _, World};

/// An authority that curl can be told to trust, and one certificate for all of the world's names.
pub struct Pki {
    authority: Authority,
    server: Issued,
}

impl Pki {
    /// Makes the authority and the certificate; both are valid for two days.
    #[track_caller]
    pub fn new(world: &World) -> Self {
        let authority = Authority::new(world, "ca");
        // No wildcard: verifiers refuse one right below a top-level domain.
        let names = NAMES.iter().map(|(name, _)| format!("DNS:{name}"));
        let addresses = [format!("IP:{SITE_V4}"), format!("IP:{SITE_V6}")];
        let names: Vec<String> = names.chain(addresses).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let server = authority.issue(world, "server", &Request::server(&names));
        Self { authority, server }
    }

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.authority.certificate()
    }

    /// The authority, to issue more.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The server's certificate and key.
    pub fn server(&self) -> &Issued {
        &self.server
    }

    /// The server's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.server.certificate.clone()
    }

    /// The server's private key.
    pub fn key(&self) -> PathBuf {
        self.server.key.clone()
    }
}

/// An authority; as many as a test needs, none trusted by anything unless told.
pub struct Authority {
    dir: PathBuf,
}

/// A certificate and its private key, as PEM files that every user may read.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate, without its authority's.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What a certificate is to say.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The common name, which is the whole subject.
    pub common_name: &'a str,
    /// The subject alternative names as OpenSSL writes them: `DNS:site.example`, `IP:192.0.2.20`,
    /// `URI:spiffe://example/workload`.
    pub names: &'a [&'a str],
    /// Who may use it.
    pub usage: Usage,
    /// Whether its time is over.
    pub validity: Validity,
}

/// Who may use a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// A server.
    Server,
    /// A client.
    Client,
}

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// From now on for two days.
    Now,
    /// It ended years ago.
    Expired,
    /// It begins in the far future.
    NotYet,
}

impl<'a> Request<'a> {
    /// A server's certificate, valid now, for these subject alternative names.
    pub fn server(names: &'a [&'a str]) -> Self {
        Self {
            common_name: "server",
            names,
            usage: Usage::Server,
            validity: Validity::Now,
        }
    }

    /// A client's certificate, valid now, without alternative names.
    pub fn client(common_name: &'a str) -> Self {
        Self {
            common_name,
            names: &[],
            usage: Usage::Client,
            validity: Validity::Now,
        }
    }

    /// The same, valid at another time.
    #[must_use]
    pub fn valid(self, validity: Validity) -> Self {
        Self { validity, ..self }
    }
}

impl Authority {
    /// Makes the authority `name`, in a directory of that name; valid for two days.
    #[track_caller]
    pub fn new(world: &World, name: &str) -> Self {
        let dir = world.dir().join(name);
        fs::create_dir(&dir).must("make an authority's directory");
        let authority = Self { dir };
        let subject = format!("/CN=Underpass test authority {name}");
        let request = authority.req(world, "ca", &subject);
        run(request.args(["-x509", "-days", "2"]));
        fs::write(authority.path("index.txt"), "").must("write the index");
        fs::write(authority.path("openssl.cnf"), authority.configuration()).must("write a file");
        authority
    }

    /// Its own certificate, to be trusted.
    pub fn certificate(&self) -> PathBuf {
        self.path("ca.crt")
    }

    /// Issues a certificate with a key of its own, to the files `NAME.crt` and `NAME.key`. What an
    /// earlier one of that name had is replaced, file by file and not at one moment.
    #[track_caller]
    pub fn issue(&self, world: &World, name: &str, request: &Request<'_>) -> Issued {
        let usage = match request.usage {
            Usage::Server => "serverAuth",
            Usage::Client => "clientAuth",
        };
        let mut extensions = vec![
            "basicConstraints=critical,CA:FALSE".to_owned(),
            format!("extendedKeyUsage={usage}"),
        ];
        if !request.names.is_empty() {
            extensions.push(format!("subjectAltName={}", request.names.join(",")));
        }
        let subject = format!("/CN={}", request.common_name);
        let mut req = self.req(world, name, &subject).arg("-new");
        for extension in &extensions {
            req = req.args(["-addext", extension]);
        }
        run(req);

        let issued = Issued {
            certificate: self.path(&format!("{name}.crt")),
            key: self.path(&format!("{name}.key")),
        };
        // `req -new` wrote the request where the certificate goes.
        let unsigned = self.path(&format!("{name}.csr"));
        fs::rename(&issued.certificate, &unsigned).must("keep the request");
        let ca = world.inet().command("openssl").args(["ca", "-config"]);
        let ca = ca.arg(self.path("openssl.cnf"));
        let ca = ca.args(["-batch", "-notext", "-in"]).arg(&unsigned);
        let ca = ca.arg("-out").arg(&issued.certificate);
        run(match request.validity {
            Validity::Now => ca.args(["-days", "2"]),
            Validity::Expired => ca
                .args(["-startdate", "20200101000000Z"])
                .args(["-enddate", "20200201000000Z"]),
            Validity::NotYet => ca
                .args(["-startdate", "22000101000000Z"])
                .args(["-enddate", "22000201000000Z"]),
        });
        // Servers read their key as whatever user they have become.
        fs::set_permissions(&issued.key, Permissions::from_mode(0o644)).must("open a key");
        issued
    }

    /// `openssl req` with a new key, to `NAME.key` and `NAME.crt`.
    fn req(&self, world: &World, name: &str, subject: &str) -> Cmd {
        let command = world.inet().command("openssl");
        let command = command
            .args(["req", "-newkey", "ec"])
            .args(["-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
            .args(["-subj", subject]);
        let command = command
            .arg("-keyout")
            .arg(self.path(&format!("{name}.key")));
        command.arg("-out").arg(self.path(&format!("{name}.crt")))
    }

    /// For `openssl ca`, the only one of its commands that dates a certificate at will.
    fn configuration(&self) -> String {
        format!(
            "[ca]\ndefault_ca = here\n\
             [here]\n\
             certificate = {dir}/ca.crt\n\
             private_key = {dir}/ca.key\n\
             database = {dir}/index.txt\n\
             new_certs_dir = {dir}\n\
             rand_serial = yes\n\
             unique_subject = no\n\
             default_md = sha256\n\
             copy_extensions = copy\n\
             policy = any\n\
             [any]\ncommonName = supplied\n",
            dir = self.dir.display(),
        )
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }
}

#[track_caller]
fn run(command: Cmd) {
    command.run(Duration::from_secs(20)).expect_success();
}
