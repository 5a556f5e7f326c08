use std::str::FromStr as _;

use hickory_resolver::proto::op::{Edns, MessageType, OpCode, Query};
use hickory_resolver::proto::rr::Name;
use hickory_resolver::proto::rr::rdata::svcb::{Alpn, EchConfigList, IpHint, Mandatory, Unknown};
use hickory_resolver::proto::rr::rdata::{A, CNAME, HTTPS, NULL};
use proptest::prelude::*;

use super::*;

type Param = (SvcParamKey, SvcParamValue);

fn name(text: &str) -> Name {
    Name::from_str(text).unwrap()
}

/// What Cloudflare says, more or less.
fn params(with_key: bool) -> Vec<Param> {
    let mut params = vec![
        (
            SvcParamKey::Alpn,
            SvcParamValue::Alpn(Alpn(vec!["h3".to_owned(), "h2".to_owned()])),
        ),
        (SvcParamKey::Port, SvcParamValue::Port(8443)),
        (
            SvcParamKey::Ipv4Hint,
            SvcParamValue::Ipv4Hint(IpHint(vec![A::new(203, 0, 113, 7)])),
        ),
        (
            SvcParamKey::Unknown(9),
            SvcParamValue::Unknown(Unknown(b"anything".to_vec())),
        ),
    ];
    if with_key {
        let key = SvcParamValue::EchConfigList(EchConfigList(vec![7; 71]));
        params.insert(3, (SvcParamKey::EchConfigList, key));
    }
    params
}

fn https(params: Vec<Param>) -> RData {
    RData::HTTPS(HTTPS(SVCB::new(1, Name::root(), params)))
}

fn record(owner: &str, data: RData) -> Record {
    Record::from_rdata(name(owner), 300, data)
}

/// An RRSIG that covers records of this type.
fn signature(covered: RecordType) -> Record {
    let mut rdata = u16::from(covered).to_be_bytes().to_vec();
    rdata.extend_from_slice(&[13, 2, 0, 0, 1, 44, 0, 0, 0, 9, 0, 0, 0, 1, 0, 7]);
    rdata.extend_from_slice(b"\x04test\0signature");
    let code = RecordType::RRSIG;
    let rdata = NULL::with(rdata);
    record("a.test.", RData::Unknown { code, rdata })
}

fn message(answers: Vec<Record>) -> Message {
    let mut message = Message::new(7, MessageType::Response, OpCode::Query);
    message.add_query(Query::query(name("a.test."), RecordType::HTTPS));
    message.metadata.recursion_available = true;
    message.metadata.authentic_data = true;
    let mut edns = Edns::new();
    edns.set_max_payload(1232).set_dnssec_ok(true);
    message.set_edns(edns);
    message.answers = answers;
    message
}

fn stripped(message: &Message) -> Option<Message> {
    let changed = without_ech_keys(&message.to_vec().unwrap()).unwrap();
    changed.map(|bytes| Message::from_vec(&bytes).unwrap())
}

#[test]
fn the_key_goes_and_everything_else_stays() {
    let alias = RData::CNAME(CNAME(name("b.test.")));
    let svcb = |with_key| RData::SVCB(SVCB::new(2, name("c.test."), params(with_key)));
    let build = |with_key| {
        let mut message = message(vec![
            record("a.test.", alias.clone()),
            record("b.test.", https(params(with_key))),
            record("b.test.", svcb(with_key)),
            record("b.test.", https(params(false))),
        ]);
        let address = RData::A(A::new(203, 0, 113, 7));
        message.additionals = vec![record("c.test.", address)];
        message
    };
    let mut expected = build(false);
    assert_eq!(stripped(&expected), None, "nothing is to be done");
    // What was found true of all of it is not any more.
    expected.metadata.authentic_data = false;
    assert_eq!(stripped(&build(true)), Some(expected));
}

#[test]
fn a_record_that_is_useless_without_the_key_goes() {
    let mut mandatory = params(true);
    let keys = vec![SvcParamKey::Port, SvcParamKey::EchConfigList];
    let keys = SvcParamValue::Mandatory(Mandatory(keys));
    mandatory.insert(0, (SvcParamKey::Mandatory, keys));
    let both = message(vec![
        record("a.test.", https(mandatory)),
        record("a.test.", https(params(true))),
    ]);
    let answers = stripped(&both).unwrap().answers;
    assert_eq!(answers, [record("a.test.", https(params(false)))]);
}

#[test]
fn a_signature_of_what_was_changed_goes() {
    let address = record("a.test.", RData::A(A::new(203, 0, 113, 7)));
    let signed = |with_key| {
        message(vec![
            record("a.test.", https(params(with_key))),
            signature(RecordType::HTTPS),
            address.clone(),
            signature(RecordType::A),
        ])
    };
    assert_eq!(stripped(&signed(false)), None, "what is signed stays so");
    let answers = stripped(&signed(true)).unwrap().answers;
    let expected = [
        record("a.test.", https(params(false))),
        address,
        signature(RecordType::A),
    ];
    assert_eq!(answers, expected);
}

#[test]
fn what_cannot_be_read_is_not_passed_for_clean() {
    let whole = message(vec![record("a.test.", https(params(true)))]);
    let whole = whole.to_vec().unwrap();
    assert!(without_ech_keys(&whole).is_ok());
    assert_eq!(without_ech_keys(&whole[..whole.len() - 20]), Err(Malformed));
}

proptest! {
    #[test]
    fn no_message_keeps_a_key(at in 12..200_usize, byte in any::<u8>()) {
        let whole = message(vec![
            record("a.test.", https(params(true))),
            record("a.test.", https(params(false))),
        ]);
        let mut bytes = whole.to_vec().unwrap();
        if let Some(old) = bytes.get_mut(at) {
            *old = byte;
        }
        if let Ok(Some(changed)) = without_ech_keys(&bytes) {
            prop_assert_eq!(without_ech_keys(&changed), Ok(None));
        }
    }
}
