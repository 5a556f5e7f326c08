//! A query of a workload, and answers to it that no server gave.

use std::net::IpAddr;
use std::time::Duration;

use hickory_resolver::proto::op::{
    Edns, Message, MessageType, Metadata, OpCode, Query as Asked, ResponseCode,
};
use hickory_resolver::proto::rr::rdata::{A, AAAA};
use hickory_resolver::proto::rr::{DNSClass, RData, Record, RecordType};

use super::answer::Malformed;
use crate::name::HostName;

/// The most addresses that are told, so that an answer fits into 512 bytes whatever the name.
const MAX_ADDRESSES: usize = 8;

/// What we take over UDP (RFC 9715 section 3.1), in bytes.
const MAX_PAYLOAD: u16 = 1232;

/// A question about a host.
#[derive(Clone, Debug)]
pub struct Query {
    /// The host. A question of how to reach it may have a port and a scheme before its name (RFC 9460
    /// section 2.3).
    pub name: HostName,
    /// What is asked of it.
    pub kind: Kind,
    metadata: Metadata,
    /// As it was asked, in its letter case.
    asked: Asked,
    edns: Option<Edns>,
}

/// What is asked of a host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Its addresses, of one family or of both.
    Addresses {
        /// IPv4.
        v4: bool,
        /// IPv6.
        v6: bool,
    },
    /// How to reach it (RFC 9460): another place for addresses, and for keys that hide names.
    Service,
    /// Something else.
    Other,
}

impl Query {
    /// Reads a message (RFC 1035 section 4). `Ok(None)`: it is no query, or none about a host.
    ///
    /// # Errors
    /// It is malformed.
    pub fn read(message: &[u8]) -> Result<Option<Self>, Malformed> {
        let message = Message::from_vec(message).map_err(|_| Malformed)?;
        let [asked] = &message.queries[..] else {
            return Ok(None);
        };
        if message.metadata.message_type != MessageType::Query
            || message.metadata.op_code != OpCode::Query
            || asked.query_class() != DNSClass::IN
        {
            return Ok(None);
        }
        let Ok(name) = asked.name().to_ascii().parse::<HostName>() else {
            return Ok(None);
        };
        let addresses = |v4, v6| Kind::Addresses { v4, v6 };
        let kind = match asked.query_type() {
            RecordType::A => addresses(true, false),
            RecordType::AAAA => addresses(false, true),
            RecordType::ANY => addresses(true, true),
            RecordType::HTTPS | RecordType::SVCB => Kind::Service,
            _ => Kind::Other,
        };
        Ok(Some(Self {
            name: match kind {
                Kind::Service => without_prefixes(name),
                Kind::Addresses { .. } | Kind::Other => name,
            },
            kind,
            metadata: message.metadata,
            asked: asked.clone(),
            edns: message.edns,
        }))
    }

    /// An answer with those of the addresses that are asked for, which are good for so long. There may
    /// be none: then the host has nothing of what is asked for.
    pub fn answer(&self, addresses: &[IpAddr], ttl: Duration) -> Option<Vec<u8>> {
        let mut message = self.response();
        let Kind::Addresses { v4, v6 } = self.kind else {
            return message.to_vec().ok();
        };
        let wanted = addresses.iter().filter(|address| match address {
            IpAddr::V4(_) => v4,
            IpAddr::V6(_) => v6,
        });
        let ttl = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
        for address in wanted.take(MAX_ADDRESSES) {
            let data = match address {
                IpAddr::V4(address) => RData::A(A(*address)),
                IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
            };
            let name = self.asked.name().clone();
            message.add_answer(Record::from_rdata(name, ttl, data));
        }
        message.to_vec().ok()
    }

    /// An answer that there is none to be had (SERVFAIL).
    pub fn failure(&self) -> Option<Vec<u8>> {
        let mut message = self.response();
        message.metadata.response_code = ResponseCode::ServFail;
        message.to_vec().ok()
    }

    /// Whether the answer may tell how to reach the host, besides where it is.
    pub fn may_tell_keys(&self) -> bool {
        matches!(
            self.kind,
            Kind::Service | Kind::Addresses { v4: true, v6: true }
        )
    }

    fn response(&self) -> Message {
        let mut message = Message::response(self.metadata.id, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.metadata);
        message.metadata.recursion_available = true;
        message.add_query(self.asked.clone());
        if let Some(edns) = &self.edns {
            let mut ours = Edns::new();
            ours.set_max_payload(MAX_PAYLOAD)
                .set_dnssec_ok(edns.flags().dnssec_ok);
            message.set_edns(ours);
        }
        message
    }
}

/// The name without the labels before it that begin with an underscore, unless there are no others.
fn without_prefixes(name: HostName) -> HostName {
    let mut rest = name.as_str();
    while let Some(("_", _)) = rest.split_at_checked(1) {
        match rest.split_once('.') {
            Some((_, after)) => rest = after,
            None => return name,
        }
    }
    rest.parse().unwrap_or(name)
}

/// Has an answer of a server say that the name exists: without what was asked for, if it said that it
/// does not (NXDOMAIN). A host that policy has does exist.
pub(crate) fn grant_existence(answer: &mut [u8]) {
    const CODE: u8 = 0x0f;
    const NXDOMAIN: u8 = 3;
    if let Some(byte) = answer.get_mut(3).filter(|byte| **byte & CODE == NXDOMAIN) {
        *byte &= !CODE;
    }
}

/// Whether a message is an answer to this query: it has the number and, unless it has none, the question
/// (RFC 5452 section 9.1). A query that has not just one is told by its number alone.
pub(super) fn answers(answer: &[u8], query: &[u8]) -> bool {
    const IS_RESPONSE: u8 = 0x80;
    let (Some(head), Some(number)) = (answer.first_chunk::<HEAD>(), query.get(..2)) else {
        return false;
    };
    if head[..2] != *number || head[2] & IS_RESPONSE == 0 {
        return false;
    }
    let Some(asked) = question(query).filter(|_| head[4..6] != [0, 0]) else {
        return true;
    };
    let answered = question(answer);
    answered.is_some_and(|answered| answered.eq_ignore_ascii_case(asked))
}

/// How long the head of a message is (RFC 1035 section 4.1.1).
const HEAD: usize = 12;

/// The bytes of the only question of a message. Its name is not compressed, since nothing is before it.
fn question(message: &[u8]) -> Option<&[u8]> {
    const KIND_AND_CLASS: usize = 4;
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let rest = message.get(HEAD..)?;
    let mut end = 0;
    loop {
        let label = usize::from(*rest.get(end)?);
        end += 1 + label;
        match label {
            0 => return rest.get(..end + KIND_AND_CLASS),
            1..=63 => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(text: &str, kind: RecordType) -> String {
        let mut message = Message::query();
        message.add_query(Asked::query(text.parse().unwrap(), kind));
        let query = Query::read(&message.to_vec().unwrap()).unwrap().unwrap();
        query.name.to_string()
    }

    #[test]
    fn a_question_of_how_to_reach_a_port_is_about_its_host() {
        for (asked, host) in [
            ("a.test.", "a.test"),
            ("_8443._https.a.test.", "a.test"),
            ("_dns.a.test.", "a.test"),
            ("a._b.test.", "a._b.test"),
            ("_8443._https.", "_8443._https"),
        ] {
            assert_eq!(about(asked, RecordType::HTTPS), host, "{asked}");
            assert_eq!(about(asked, RecordType::SVCB), host, "{asked}");
        }
        assert_eq!(
            about("_sip._tcp.a.test.", RecordType::SRV),
            "_sip._tcp.a.test"
        );
    }
}
