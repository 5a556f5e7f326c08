use std::io::Write;

use super::*;

fn parse(text: &str) -> Result<CredentialFile, CredentialError> {
    CredentialFile::parse(Path::new("users"), text.as_bytes(), Scheme::Basic)
}

fn basic(pair: &str) -> HeaderValue {
    let value = format!("Basic {}", BASE64_STANDARD.encode(pair));
    value.parse().unwrap()
}

#[test]
fn users_are_known_by_their_passwords() {
    let file = parse("# users\n\nann:s3cret\r\nbob:with:colon# and spaces \n").unwrap();
    for (pair, user) in [
        ("ann:s3cret", Some("ann")),
        ("bob:with:colon# and spaces ", Some("bob")),
        ("ann:with:colon# and spaces ", None),
        ("ann:s3cre", None),
        ("ann:s3cret\r", None),
        ("ann:", None),
        ("ann", None),
        ("", None),
        ("# users", None),
    ] {
        assert_eq!(file.user(&basic(pair)).as_deref(), user, "{pair:?}");
    }
    let good = BASE64_STANDARD.encode("ann:s3cret");
    for (value, known) in [
        (format!("bAsIc   {good}"), true),
        (format!("Bearer {good}"), false),
        (format!("Basic{good}"), false),
        ("Basic !!!".into(), false),
        ("Basic".into(), false),
    ] {
        let header = value.parse().unwrap();
        assert_eq!(file.user(&header).is_some(), known, "{value}");
    }
}

#[test]
fn tokens_are_known_by_themselves() {
    let text = "ann:abc.DEF-123==\nann:next~1\nci:0/+_\n";
    let path = Path::new("tokens");
    let file = CredentialFile::parse(path, text.as_bytes(), Scheme::Bearer).unwrap();
    for (value, user) in [
        ("Bearer abc.DEF-123==", Some("ann")),
        ("bearer   next~1", Some("ann")),
        ("Bearer 0/+_", Some("ci")),
        ("Bearer abc.DEF-123=", None),
        ("Bearer ann:next~1", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("Basic next~1", None),
        ("next~1", None),
    ] {
        let header = value.parse().unwrap();
        assert_eq!(file.user(&header).as_deref(), user, "{value}");
    }
    for text in ["ann:a b", "ann:=", "ann:a=b", "ann:hunter2:x"] {
        let error = CredentialFile::parse(path, text.as_bytes(), Scheme::Bearer).unwrap_err();
        assert!(error.to_string().starts_with("tokens:1: "), "{error}");
        assert!(!error.to_string().contains("hunter2"));
    }
}

#[test]
fn mistakes_are_named_by_line_and_never_shown() {
    for (text, message) in [
        ("ann:x\nhunter2\n", "users:2: not a line"),
        (":hunter2", "users:1: "),
        ("hunter2:", "users:1: "),
        ("#\nhunter2:a\nhunter2:b", "users:3: "),
        ("hunter2:a\tb", "users:1: "),
        ("# hunter2\n\n", "users: no line"),
    ] {
        let error = parse(text).unwrap_err();
        for shown in [error.to_string(), format!("{error:?}")] {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        assert!(error.to_string().starts_with(message), "{error}");
    }
    let latin = b"ann:caf\xe9";
    let latin = CredentialFile::parse(Path::new("users"), latin, Scheme::Basic).unwrap_err();
    assert!(latin.to_string().starts_with("users:1: "));
    assert_eq!(
        format!("{:?}", parse("ann:s3cret").unwrap()),
        "CredentialFile { scheme: Basic, users: 1, .. }"
    );
}

#[test]
fn files_are_read_and_bounded() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"ann:s3cret\n").unwrap();
    let loaded = CredentialFile::load(file.path(), Scheme::Basic).unwrap();
    assert!(loaded.user(&basic("ann:s3cret")).is_some());

    file.write_all(&vec![b'\n'; MAX_SIZE as usize]).unwrap();
    let error = CredentialFile::load(file.path(), Scheme::Basic).unwrap_err();
    assert!(matches!(error, CredentialError::TooLarge { .. }), "{error}");
    let error = CredentialFile::load(Path::new("/nonexistent/users"), Scheme::Basic).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/users"), "{error}");
}
