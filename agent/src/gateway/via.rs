//! How a gateway knows its own requests again (RFC 9110 section 7.6.3).

use http::header::VIA;
use http::{HeaderMap, HeaderName, HeaderValue, Version};

/// What this gateway calls itself to proxies behind it, and nobody else does.
#[derive(Clone, Debug)]
pub(super) struct Pseudonym(String);

impl Pseudonym {
    /// One that nothing else has.
    pub(super) fn random() -> Self {
        Self(format!("underpass-{:016x}", fastrand::u64(..)))
    }

    /// Whether a request with these fields has been here before.
    pub(super) fn is_in(&self, fields: &HeaderMap) -> bool {
        let values = fields.get_all(VIA).iter();
        values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|hop| hop.split_ascii_whitespace().nth(1))
            .any(|by| by == self.0)
    }

    /// The way that a request with these fields, received as `version`, has come, and this gateway.
    pub(super) fn added_to(
        &self,
        fields: &HeaderMap,
        version: Version,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let protocol = protocol(version);
        let own = HeaderValue::try_from(format!("{protocol} {}", self.0));
        let before = fields.get_all(VIA).iter().cloned();
        before.chain(own).map(|value| (VIA, value)).collect()
    }
}

/// The version as `Via` has it.
fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(values: &[&str]) -> HeaderMap {
        let values = values.iter().map(|value| value.parse().unwrap());
        values.map(|value| (VIA, value)).collect()
    }

    #[test]
    fn only_its_own_name_is_known_again() {
        let own = Pseudonym::random();
        let other = Pseudonym::random();
        let mut way = fields(&["1.1 underpass, HTTP/1.1 squid.example:3128 (squid/5.7)"]);
        assert!(!own.is_in(&way));
        way = other.added_to(&way, Version::HTTP_2).into_iter().collect();
        assert!(!own.is_in(&way) && other.is_in(&way));
        for (name, value) in own.added_to(&way, Version::HTTP_11) {
            way.append(name, value);
        }
        assert!(own.is_in(&way) && other.is_in(&way));
        let last = way.get_all(VIA).iter().next_back().unwrap();
        assert_eq!(*last, format!("1.1 {}", own.0));
    }
}
