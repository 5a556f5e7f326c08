//! What settings can be used, and what is said of those that cannot.

use std::collections::HashSet;

use rcgen::{KeyPair, PKCS_RSA_SHA256};

use super::*;

fn error(settings: &TlsSettings) -> String {
    let made = ClientTls::new(settings, &SystemRoots::none());
    made.unwrap_err().to_string()
}

fn with(identity: Identity) -> TlsSettings {
    TlsSettings {
        identity: Some(identity),
        insecure_skip_verify: true,
        ..TlsSettings::default()
    }
}

#[test]
fn who_trusts_nobody_cannot_connect() {
    let text = error(&TlsSettings::default());
    assert!(
        text.starts_with("this system has no CA certificates:"),
        "{text}"
    );
    assert!(text.contains("SSL_CERT_FILE"), "{text}");
    let pem = |pem: &str| TlsSettings {
        roots: Roots::Pem(pem.into()),
        ..TlsSettings::default()
    };
    let text = error(&pem("not PEM\n"));
    assert!(text.contains("no certificate in PEM form"), "{text}");
    let good = Authority::new("a CA").pem();
    let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let text = error(&pem(&format!("{good}{bad}")));
    assert!(
        text.starts_with("CA certificate number 2 cannot be parsed"),
        "{text}"
    );
    let text = error(&pem(&good.replace("-----END", "-----AND")));
    assert!(text.contains("not good PEM"), "{text}");
}

#[test]
fn the_part_of_an_identity_that_is_bad_is_named() {
    let authority = Authority::new("a CA");
    let (good, other) = (authority.issue(&["me"]), authority.issue(&["me"]));
    client(&with(good.clone()));
    let chain = |chain: &str| Identity {
        chain: chain.into(),
        ..good.clone()
    };
    let key = |key: &str| Identity {
        key: key.into(),
        ..good.clone()
    };
    let junk = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    for (identity, said) in [
        (chain(""), "the client certificate has no certificate"),
        (
            chain(&junk("CERTIFICATE")),
            "the client certificate cannot be parsed",
        ),
        (key(""), "there is no private key in PEM form"),
        (key(&junk("PRIVATE KEY")), "the private key cannot be used"),
        (
            key(&junk("ENCRYPTED PRIVATE KEY")),
            "the private key is encrypted",
        ),
        (
            key("-----BEGIN PRIVATE KEY-----\n%%%%\n-----END PRIVATE KEY-----\n"),
            "the private key is not good PEM",
        ),
        (
            Identity {
                key: other.key.clone(),
                ..good.clone()
            },
            "the private key does not belong to the client certificate",
        ),
    ] {
        let text = error(&with(identity));
        assert!(text.starts_with(said), "{text}");
    }
}

#[test]
fn keys_come_in_three_forms() {
    for (algorithm, label) in [
        (&rcgen::PKCS_ECDSA_P256_SHA256, "EC PRIVATE KEY"),
        (&PKCS_RSA_SHA256, "RSA PRIVATE KEY"),
    ] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let certificate = CertificateParams::new(["me".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let pkcs8 = key.serialize_pem();
        for pem in [pkcs8.clone(), unwrapped(&key.serialize_der(), label)] {
            client(&with(Identity {
                chain: certificate.pem().into_bytes(),
                key: pem.into(),
            }));
        }
    }
}

/// The key that PKCS#8 wraps: the octet string after version and algorithm (RFC 5958 section 2).
fn unwrapped(pkcs8: &[u8], label: &str) -> String {
    use base64::Engine;

    let inside = contents(pkcs8).0;
    let after_version = contents(inside).1;
    let after_algorithm = contents(after_version).1;
    let base64 = base64::prelude::BASE64_STANDARD.encode(contents(after_algorithm).0);
    format!("-----BEGIN {label}-----\n{base64}\n-----END {label}-----\n")
}

/// The contents of the DER value at the beginning, and what follows it.
fn contents(der: &[u8]) -> (&[u8], &[u8]) {
    let (start, len) = match der[1] {
        len @ 0..=0x7f => (2, usize::from(len)),
        0x81 => (3, usize::from(der[2])),
        _ => (4, usize::from(der[2]) << 8 | usize::from(der[3])),
    };
    der[start..].split_at(len)
}

#[test]
fn equal_settings_are_equal_and_show_no_key() {
    let authority = Authority::new("a CA");
    let (one, two) = (authority.issue(&["me"]), authority.issue(&["me"]));
    let mut seen = HashSet::new();
    assert!(seen.insert(with(one.clone())));
    assert!(!seen.insert(with(one.clone())));
    assert!(seen.insert(with(two.clone())));
    assert!(seen.insert(with(Identity {
        key: two.key,
        ..one.clone()
    })));
    let settings = with(one.clone());
    let shown = format!("{settings:?} {:?}", client(&settings));
    let key = one.key.expose_secret().lines().nth(1).unwrap();
    assert!(
        !shown.contains(key) && !shown.contains("PRIVATE"),
        "{shown}"
    );
}
