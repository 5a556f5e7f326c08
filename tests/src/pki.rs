//! A certificate authority of the test's own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::World;
use crate::addr::{NAMES, SITE_V4, SITE_V6};

/// An authority that curl can be told to trust, and one certificate for all of the world's names.
pub struct Pki {
    dir: PathBuf,
}

impl Pki {
    /// Makes the authority and the certificate; both are valid for two days.
    #[track_caller]
    pub fn new(world: &World) -> Self {
        let pki = Self {
            dir: world.dir().into(),
        };
        let ca = [
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
            "-subj",
            "/CN=Underpass test authority",
        ];
        pki.request(world, &ca);
        // No wildcard: verifiers refuse one right below a top-level domain.
        let names: String = NAMES
            .iter()
            .map(|(name, _)| format!("DNS:{name},"))
            .collect();
        let names = format!("subjectAltName={names}IP:{SITE_V4},IP:{SITE_V6}");
        pki.request(
            world,
            &[
                "-keyout",
                "server.key",
                "-out",
                "server.crt",
                "-subj",
                "/CN=site.example",
                "-CA",
                "ca.crt",
                "-CAkey",
                "ca.key",
                "-addext",
                &names,
                "-addext",
                "basicConstraints=critical,CA:FALSE",
            ],
        );
        pki
    }

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// The server's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("server.crt")
    }

    /// The server's private key.
    pub fn key(&self) -> PathBuf {
        self.dir.join("server.key")
    }

    /// `openssl req` with file names relative to the directory.
    #[track_caller]
    fn request(&self, world: &World, args: &[&str]) {
        const COMMON: [&str; 9] = [
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ];
        let in_dir = |arg: &&str| -> PathBuf {
            let is_file = [".crt", ".key"].iter().any(|end| arg.ends_with(end));
            if is_file {
                self.dir.join(arg)
            } else {
                Path::new(arg).into()
            }
        };
        let command = world.inet().command("openssl").args(COMMON);
        command
            .args(args.iter().map(in_dir))
            .run(Duration::from_secs(20))
            .expect_success();
    }
}
