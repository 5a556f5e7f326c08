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
mod tests;
