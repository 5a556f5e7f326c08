//! What an answer of a name server says about addresses.

use std::net::IpAddr;
use std::time::Duration;

use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, Name, RData};

use crate::name::HostName;

/// The addresses of a name, and how long they are its.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// What was asked for.
    pub name: HostName,
    /// Its addresses; IPv4-mapped ones as IPv4.
    pub addresses: Vec<IpAddr>,
    /// The least time to live on the way from the name to them.
    pub ttl: Duration,
}

/// How many aliases are followed, as resolvers have it.
const MAX_ALIASES: usize = 16;

/// The longest time to live (RFC 2181 section 8), in seconds; what is above counts as none.
const LONGEST: u32 = 0x7fff_ffff;

/// How many addresses of one name count.
const MAX_ADDRESSES: usize = 64;

impl Answer {
    /// Reads a message (RFC 1035 section 4). Only what the name itself leads to counts, by way of
    /// aliases: whatever else stands in the answer, nobody has asked for.
    ///
    /// `Ok(None)`: it is no answer, or none with addresses of a host.
    ///
    /// # Errors
    /// It is malformed.
    pub fn read(message: &[u8]) -> Result<Option<Self>, Malformed> {
        let message = Message::from_vec(message).map_err(|_| Malformed)?;
        if message.metadata.message_type != MessageType::Response
            || message.metadata.response_code != ResponseCode::NoError
        {
            return Ok(None);
        }
        let [query] = &message.queries[..] else {
            return Ok(None);
        };
        let asked = query.name();
        let Ok(name) = asked.to_ascii().parse::<HostName>() else {
            return Ok(None);
        };
        let records = || {
            let records = message.answers.iter();
            records.filter(|record| record.dns_class == DNSClass::IN)
        };
        let mut owner: &Name = asked;
        let mut ttl = LONGEST;
        for _ in 0..MAX_ALIASES {
            let alias = records().find_map(|record| match &record.data {
                RData::CNAME(alias) if record.name == *owner => Some((&alias.0, record.ttl)),
                _ => None,
            });
            let Some((next, good_for)) = alias else { break };
            owner = next;
            ttl = ttl.min(time_to_live(good_for));
        }
        let mut addresses = Vec::new();
        for record in records().filter(|record| record.name == *owner) {
            let address = match &record.data {
                RData::A(address) => IpAddr::V4(address.0),
                RData::AAAA(address) => IpAddr::V6(address.0).to_canonical(),
                _ => continue,
            };
            if addresses.len() < MAX_ADDRESSES && !addresses.contains(&address) {
                addresses.push(address);
                ttl = ttl.min(time_to_live(record.ttl));
            }
        }
        let ttl = Duration::from_secs(ttl.into());
        Ok((!addresses.is_empty()).then_some(Self {
            name,
            addresses,
            ttl,
        }))
    }
}

fn time_to_live(ttl: u32) -> u32 {
    if ttl > LONGEST { 0 } else { ttl }
}

/// A message that cannot be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("malformed DNS message")]
pub struct Malformed;

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use hickory_resolver::proto::op::{OpCode, Query};
    use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME};
    use hickory_resolver::proto::rr::{Record, RecordType};
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_str(text).unwrap()
    }

    fn a(owner: &str, ttl: u32, address: [u8; 4]) -> Record {
        Record::from_rdata(name(owner), ttl, RData::A(A(address.into())))
    }

    fn alias(owner: &str, ttl: u32, to: &str) -> Record {
        Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(to))))
    }

    fn message(asked: &str, records: impl IntoIterator<Item = Record>) -> Message {
        let mut message = Message::new(7, MessageType::Response, OpCode::Query);
        message.add_query(Query::query(name(asked), RecordType::A));
        for record in records {
            message.add_answer(record);
        }
        message
    }

    fn read(message: &Message) -> Option<(String, Vec<String>, u64)> {
        let answer = Answer::read(&message.to_vec().unwrap()).unwrap()?;
        let addresses = answer.addresses.iter().map(ToString::to_string).collect();
        Some((answer.name.to_string(), addresses, answer.ttl.as_secs()))
    }

    #[test]
    fn aliases_lead_to_addresses_and_nothing_else_counts() {
        let answer = message(
            "Db.Example.",
            [
                a("other.example.", 1, [203, 0, 113, 66]),
                a("b.cdn.example.", 90, [203, 0, 113, 7]),
                alias("a.cdn.example.", 40, "b.cdn.example."),
                alias("db.example.", 60, "a.cdn.example."),
                a("b.cdn.example.", 50, [203, 0, 113, 8]),
                a("a.cdn.example.", 1, [203, 0, 113, 67]),
            ],
        );
        let addresses = vec!["203.0.113.7".to_owned(), "203.0.113.8".to_owned()];
        assert_eq!(read(&answer), Some(("db.example".into(), addresses, 40)));

        let mapped = "::ffff:203.0.113.7".parse().unwrap();
        let mapped = Record::from_rdata(name("a.example."), 5, RData::AAAA(AAAA(mapped)));
        let answer = message("a.example.", [mapped]);
        let addresses = vec!["203.0.113.7".to_owned()];
        assert_eq!(read(&answer), Some(("a.example".into(), addresses, 5)));
    }

    #[test]
    fn a_time_to_live_is_as_long_as_there_can_be_and_not_negative() {
        for (ttls, expected) in [
            ([0, 60], 0),
            ([0x7fff_ffff, 0x7fff_ffff], 0x7fff_ffff),
            ([0x8000_0000, 60], 0),
            ([60, u32::MAX], 0),
        ] {
            let answer = message(
                "a.example.",
                [
                    alias("a.example.", ttls[0], "b.example."),
                    a("b.example.", ttls[1], [203, 0, 113, 7]),
                ],
            );
            let (_, _, ttl) = read(&answer).unwrap();
            assert_eq!(ttl, expected, "{ttls:?}");
        }
    }

    #[test]
    fn what_is_no_answer_says_nothing() {
        let here = a("a.example.", 5, [203, 0, 113, 7]);
        let mut question = message("a.example.", [here.clone()]);
        question.metadata.message_type = MessageType::Query;
        assert_eq!(read(&question), None);

        let mut failed = message("a.example.", [here.clone()]);
        failed.metadata.response_code = ResponseCode::ServFail;
        assert_eq!(read(&failed), None);

        assert_eq!(read(&message("a.example.", [])), None);
        // No host may be called so.
        let strange = a("example.7.", 5, [203, 0, 113, 7]);
        assert_eq!(read(&message("example.7.", [strange])), None);
        let mut two = message("a.example.", [here]);
        two.add_query(Query::query(name("b.example."), RecordType::A));
        assert_eq!(read(&two), None);

        // Aliases that go round in a circle end.
        let circle = [
            alias("a.example.", 5, "b.example."),
            alias("b.example.", 5, "a.example."),
        ];
        assert_eq!(read(&message("a.example.", circle)), None);
        assert_eq!(Answer::read(b"\0\x07\x80\0"), Err(Malformed));
    }

    proptest! {
        #[test]
        fn no_message_breaks_the_reader(
            at in 0..200_usize,
            byte in any::<u8>(),
            cut in 0..200_usize,
        ) {
            let whole = message("a.example.", [
                alias("a.example.", 5, "b.example."),
                a("b.example.", 5, [203, 0, 113, 7]),
            ]);
            let mut bytes = whole.to_vec().unwrap();
            if let Some(old) = bytes.get_mut(at) {
                *old = byte;
            }
            bytes.truncate(cut.max(1));
            if let Ok(Some(answer)) = Answer::read(&bytes) {
                prop_assert!(!answer.addresses.is_empty());
                prop_assert!(answer.addresses.len() <= MAX_ADDRESSES);
            }
        }
    }
}
