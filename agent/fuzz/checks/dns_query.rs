//! What must hold for any bytes that a workload sends a name server.

use std::net::IpAddr;
use std::time::Duration;

use underpass::dns::{Kind, ObservedAnswer, Query};

const TTL: Duration = Duration::from_secs(60);

/// The longest answer that every resolver takes over UDP (RFC 1035 section 4.2.1).
const MAX_ANSWER: usize = 512;

/// Checks how a query is read, and what we answer.
pub(crate) fn check(bytes: &[u8]) {
    let Ok(Some(query)) = Query::read(bytes) else {
        return;
    };
    assert!(bytes.len() >= 17, "shorter than any question");
    assert_eq!(bytes[2] & 0x80, 0, "an answer is no question");
    let lower_case = bytes.to_ascii_lowercase();
    for label in query.name.as_str().split('.') {
        let mut windows = lower_case.windows(label.len());
        assert!(windows.any(|it| it == label.as_bytes()), "{}", query.name);
    }

    let addresses: Vec<IpAddr> = (0..20_u8)
        .flat_map(|n| {
            [
                [240, 240, 0, n].into(),
                IpAddr::from([n.into(), 0, 0, 0, 0, 0, 0, 1_u16]),
            ]
        })
        .collect();
    let (v4, v6) = match query.kind {
        Kind::Addresses { v4, v6 } => (v4, v6),
        Kind::Service | Kind::Other => (false, false),
    };
    let answer = query.answer(&addresses, TTL).expect("an answer");
    check_answer(&answer, bytes, 0);
    let learnt = ObservedAnswer::read(&answer).expect("an answer of ours can be read");
    assert_eq!(learnt.is_some(), v4 || v6);
    if let Some(learnt) = learnt {
        assert_eq!(learnt.name, query.name);
        assert_eq!(learnt.ttl, TTL);
        assert!(learnt.addresses.iter().all(|it| addresses.contains(it)));
        assert!(
            learnt
                .addresses
                .iter()
                .all(|it| if it.is_ipv4() { v4 } else { v6 })
        );
    }
    let nothing = query.answer(&[], TTL).expect("an answer");
    check_answer(&nothing, bytes, 0);
    assert_eq!(ObservedAnswer::read(&nothing), Ok(None));
    check_answer(&query.failure().expect("an answer"), bytes, 2);
}

/// An answer has the number of the query and its code, and fits.
fn check_answer(answer: &[u8], query: &[u8], code: u8) {
    assert!(answer.len() <= MAX_ANSWER, "{} bytes", answer.len());
    assert_eq!(answer[..2], query[..2], "the number");
    assert_eq!(answer[2] & 0x80, 0x80);
    assert_eq!(answer[3] & 0x0f, code);
}
