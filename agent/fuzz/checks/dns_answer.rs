//! What must hold for any bytes that come to a workload as the answer of a name server.

use std::net::IpAddr;
use std::time::Duration;

use underpass::dns::ObservedAnswer;

/// The most addresses that one answer may leave behind.
const MAX_ADDRESSES: usize = 64;

/// Checks what is learnt from a message.
pub(crate) fn check(bytes: &[u8]) {
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

fn stands_in(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
