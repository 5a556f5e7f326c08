//! ClientHellos for tests: by a real client, and built by hand where no client would do it.

use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// What rustls sends first to `name`; `change` may change how.
pub(super) fn rustls_hello(name: &str, change: impl FnOnce(&mut ClientConfig)) -> Vec<u8> {
    let mut config = ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    change(&mut config);
    sent_first(config, name)
}

/// What a client with this configuration sends first to `name`.
pub(super) fn sent_first(config: ClientConfig, name: &str) -> Vec<u8> {
    let name = name.to_owned().try_into().unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut sent = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut sent).unwrap();
    }
    sent
}

/// The handshake messages in some records.
pub(super) fn without_records(mut bytes: &[u8]) -> Vec<u8> {
    let mut messages = Vec::new();
    while let [_, _, _, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        messages.extend_from_slice(&rest[..length]);
        bytes = &rest[length..];
    }
    messages
}

/// Puts messages into records of the given sizes, used in turn.
pub(super) fn in_records(mut messages: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut records = Vec::new();
    for size in sizes.iter().cycle() {
        let (fragment, rest) = messages.split_at(messages.len().min(*size));
        records.extend_from_slice(&[22, 3, 1]);
        records.extend_from_slice(&(fragment.len() as u16).to_be_bytes());
        records.extend_from_slice(fragment);
        messages = rest;
        if messages.is_empty() {
            break;
        }
    }
    records
}

/// A ClientHello built by hand; the default is small, legal and has no extensions at all.
#[derive(Clone, Debug)]
pub(super) struct HandBuilt {
    pub(super) session_id: Vec<u8>,
    pub(super) cipher_suites: Vec<u8>,
    pub(super) compressions: Vec<u8>,
    pub(super) extensions: Option<Vec<(u16, Vec<u8>)>>,
    /// Behind the end that the structure has.
    pub(super) trailing: Vec<u8>,
}

impl Default for HandBuilt {
    fn default() -> Self {
        Self {
            session_id: Vec::new(),
            cipher_suites: vec![0x13, 0x01],
            compressions: vec![0],
            extensions: None,
            trailing: Vec::new(),
        }
    }
}

impl HandBuilt {
    pub(super) fn with(extensions: &[(u16, Vec<u8>)]) -> Self {
        Self {
            extensions: Some(extensions.to_vec()),
            ..Self::default()
        }
    }

    /// The handshake message, its header included.
    pub(super) fn message(&self) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend_from_slice(&[0x55; 32]);
        body.extend(vec8(&self.session_id));
        body.extend(vec16(&self.cipher_suites));
        body.extend(vec8(&self.compressions));
        if let Some(extensions) = &self.extensions {
            let all: Vec<u8> = extensions
                .iter()
                .flat_map(|(kind, data)| [kind.to_be_bytes().to_vec(), vec16(data)].concat())
                .collect();
            body.extend(vec16(&all));
        }
        body.extend_from_slice(&self.trailing);
        let mut message = vec![1];
        message.extend_from_slice(&(body.len() as u32).to_be_bytes()[1..]);
        message.extend(body);
        message
    }

    /// The message in a record.
    pub(super) fn bytes(&self) -> Vec<u8> {
        in_records(&self.message(), &[1 << 14])
    }
}

/// A server_name extension with one host name.
pub(super) fn server_name(name: &[u8]) -> (u16, Vec<u8>) {
    (0, vec16(&[vec![0], vec16(name)].concat()))
}

/// An extension for application-layer protocols.
pub(super) fn alpn(protocols: &[&[u8]]) -> (u16, Vec<u8>) {
    let list: Vec<u8> = protocols.iter().flat_map(|name| vec8(name)).collect();
    (16, vec16(&list))
}

/// A signature_algorithms extension.
pub(super) fn signature_algorithms() -> (u16, Vec<u8>) {
    (13, vec16(&[0x04, 0x03]))
}

fn vec8(data: &[u8]) -> Vec<u8> {
    [&[data.len() as u8], data].concat()
}

/// Data behind its length in two bytes.
pub(super) fn vec16(data: &[u8]) -> Vec<u8> {
    [&(data.len() as u16).to_be_bytes(), data].concat()
}
