//! Who may use the gateway.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Digest, SHA256, digest};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;

use super::followed::Followed;

/// How clients prove who they are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scheme {
    /// User and password (RFC 7617).
    Basic,
    /// A token alone (RFC 6750 section 2.1).
    Bearer,
}

impl Scheme {
    fn name(self) -> &'static str {
        match self {
            Self::Basic => "Basic",
            Self::Bearer => "Bearer",
        }
    }

    /// What the file of this scheme is called in the log and in metrics.
    fn file(self) -> &'static str {
        match self {
            Self::Basic => "credentials",
            Self::Bearer => "tokens",
        }
    }

    /// The value of `Proxy-Authenticate` that offers it.
    pub(super) fn challenge(self) -> &'static str {
        match self {
            Self::Basic => "Basic realm=\"underpass\", charset=\"UTF-8\"",
            Self::Bearer => "Bearer realm=\"underpass\"",
        }
    }

    /// What the client sends of a line of the file.
    fn proof(self, line: &[u8], secret: &str) -> Digest {
        match self {
            Self::Basic => digest(&SHA256, line),
            Self::Bearer => digest(&SHA256, secret.as_bytes()),
        }
    }
}

/// Users and their passwords or tokens, from a file with a line `user:secret` for each. Lines that
/// are empty or begin with `#` are skipped; the secret is everything after the first colon.
///
/// Only digests are kept, and `Debug` shows none of them.
pub struct CredentialFile {
    scheme: Scheme,
    users: Vec<User>,
}

impl CredentialFile {
    /// Reads `path`, and again when it changes.
    ///
    /// # Errors
    /// As of [`Self::load`].
    pub fn follow(path: &Path, scheme: Scheme) -> Result<Followed<Self>, CredentialError> {
        let file = path.to_owned();
        Followed::new(scheme.file(), vec![file.clone()], move || {
            Self::load(&file, scheme)
        })
    }

    /// Reads `path`, and warns in the log when every user of this machine may do so too.
    ///
    /// # Errors
    /// Names the file and, for a line that cannot be understood, its number; never what it says.
    pub fn load(path: &Path, scheme: Scheme) -> Result<Self, CredentialError> {
        let unreadable = |source| CredentialError::Unreadable {
            path: path.into(),
            source,
        };
        let mut file = File::open(path).map_err(unreadable)?;
        let mode = file.metadata().map_err(unreadable)?.permissions().mode();
        if mode & 0o004 != 0 {
            tracing::warn!(
                path = %path.display(),
                "every user of this machine can read the {} of the gateway; chmod o-r",
                scheme.file(),
            );
        }
        let mut text = Vec::new();
        (&mut file)
            .take(MAX_SIZE + 1)
            .read_to_end(&mut text)
            .map_err(unreadable)?;
        if text.len() as u64 > MAX_SIZE {
            return Err(CredentialError::TooLarge { path: path.into() });
        }
        Self::parse(path, &text, scheme)
    }

    fn parse(path: &Path, text: &[u8], scheme: Scheme) -> Result<Self, CredentialError> {
        let mut users: Vec<User> = Vec::new();
        for (line, number) in text.split(|byte| *byte == b'\n').zip(1..) {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.trim_ascii().is_empty() || line.starts_with(b"#") {
                continue;
            }
            let invalid = |reason| CredentialError::Line {
                path: path.into(),
                line: number,
                reason,
            };
            let pair = str::from_utf8(line).map_err(|_| invalid("it is not UTF-8"))?;
            let (name, secret) = pair.split_once(':').ok_or(invalid("it has no colon"))?;
            if name.is_empty() || secret.is_empty() {
                return Err(invalid("the part before or after the colon is empty"));
            }
            if pair.chars().any(char::is_control) {
                return Err(invalid("it contains a control character"));
            }
            if scheme == Scheme::Bearer && !is_token(secret) {
                return Err(invalid(
                    "a token has only letters, digits and any of -._~+/, then perhaps =",
                ));
            }
            // Users may have several tokens, so that a new one can be there before the old goes.
            if scheme == Scheme::Basic && users.iter().any(|user| *user.name == *name) {
                return Err(invalid("the user name stands in a line before"));
            }
            users.push(User {
                name: name.into(),
                proof: scheme.proof(line, secret),
            });
        }
        if users.is_empty() {
            return Err(CredentialError::Empty { path: path.into() });
        }
        Ok(Self { scheme, users })
    }

    pub(super) fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The user whom a `Proxy-Authorization` value proves. How long this takes depends neither on
    /// the secret nor on which user it is.
    pub(super) fn user(&self, header: &HeaderValue) -> Option<Arc<str>> {
        let (scheme, token) = header.to_str().ok()?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case(self.scheme.name()) {
            return None;
        }
        let token = token.trim_matches(' ');
        let given = match self.scheme {
            Scheme::Basic => digest(&SHA256, &BASE64_STANDARD.decode(token).ok()?),
            Scheme::Bearer => digest(&SHA256, token.as_bytes()),
        };
        let mut proved = None;
        for user in &self.users {
            if verify_slices_are_equal(user.proof.as_ref(), given.as_ref()).is_ok() {
                proved = Some(&user.name);
            }
        }
        proved.map(Arc::clone)
    }
}

/// `token68` of RFC 9110 section 11.2.
fn is_token(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    !body.is_empty()
        && body
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte))
}

impl fmt::Debug for CredentialFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialFile")
            .field("scheme", &self.scheme)
            .field("users", &self.users.len())
            .finish_non_exhaustive()
    }
}

/// Why a credential file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// It has no user, so nobody could use the gateway.
    #[error("{}: no line of the form user:secret", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A line is not `user:secret`.
    #[error("{}:{line}: not a line of the form user:secret: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, the first being 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It is larger than any such file would be.
    #[error("{}: larger than 1 MiB; is it the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("{}: cannot read the credentials: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

struct User {
    name: Arc<str>,
    /// Of what the client sends. Digests are equally long, so comparing them tells no length.
    proof: Digest,
}

const MAX_SIZE: u64 = 1024 * 1024;

#[cfg(test)]
mod tests {
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
        let error =
            CredentialFile::load(Path::new("/nonexistent/users"), Scheme::Basic).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/users"), "{error}");
    }
}
