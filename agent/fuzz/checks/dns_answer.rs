//! What must hold for any bytes that come to a workload as the answer of a name server.

use std::net::IpAddr;
use std::time::Duration;

use underpass::dns::{ObservedAnswer, without_ech_keys};

/// The most addresses that one answer may leave behind.
const MAX_ADDRESSES: usize = 64;

/// Checks what is learnt from a message, and what is left of one whose keys for ECH are taken out.
pub(crate) fn check(bytes: &[u8]) {
    check_without_keys(bytes);
    let read = ObservedAnswer::read(bytes);
    assert_eq!(read, ObservedAnswer::read(bytes), "the same again");
    let Ok(Some(answer)) = read else { return };
    assert!(bytes.len() >= 12, "shorter than the head of a message");
    assert_eq!(bytes[2] & 0x80, 0x80, "a question tells nothing");
    assert_eq!(bytes[3] & 0x0f, 0, "nor does a failure");
    assert!((1..=MAX_ADDRESSES).contains(&answer.addresses.len()));
    assert!(answer.ttl <= Duration::from_secs(u32::MAX.into()));
    for address in &answer.addresses {
        let there = match address {
            IpAddr::V4(address) => stands_in(bytes, &address.octets()),
            IpAddr::V6(address) => stands_in(bytes, &address.octets()),
        };
        assert!(there, "{address} is out of the blue");
    }
    // So does the name, label by label.
    let lower_case = bytes.to_ascii_lowercase();
    for label in answer.name.as_str().split('.') {
        assert!(stands_in(&lower_case, label.as_bytes()), "{}", answer.name);
    }
}

fn check_without_keys(bytes: &[u8]) {
    let Ok(Some(changed)) = without_ech_keys(bytes) else {
        return;
    };
    assert_eq!(without_ech_keys(&changed), Ok(None), "a key is left");
    assert_eq!(changed[..3], bytes[..3], "number and kind");
    assert_eq!(changed[3] & 0x0f, bytes[3] & 0x0f, "what it says");
    let questions = |bytes: &[u8]| bytes[4..6].to_owned();
    assert_eq!(questions(&changed), questions(bytes));
    assert_eq!(ObservedAnswer::read(&changed), ObservedAnswer::read(bytes));
}

fn stands_in(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
