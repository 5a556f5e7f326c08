//! When a request is tried again.

use std::fmt;
use std::time::Duration;

/// How a request is tried again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Retries {
    /// How often, besides the first time.
    pub attempts: u32,
    /// How long each time may take until the answer begins.
    pub per_try_timeout: Option<Duration>,
    /// On what.
    pub on: RetryOn,
    /// The base of the time between two.
    pub backoff: Duration,
}

impl Retries {
    /// Envoy's base of the time between two tries.
    pub const BACKOFF: Duration = Duration::from_millis(25);

    /// How long to wait before the retry of this number, from 1. `chance` is a number from 0 to 1,
    /// which is what keeps clients from coming back all at once.
    pub fn wait(&self, number: u32, chance: f64) -> Duration {
        let longest = self.backoff.saturating_mul(10);
        let factor = 2u32.saturating_pow(number.min(5)) - 1;
        let most = self.backoff.saturating_mul(factor).min(longest);
        most.mul_f64(chance.clamp(0.0, 1.0))
    }
}

/// What a request is tried again on, in the words of Envoy.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RetryOn {
    /// `5xx`: any answer of 500 to 599, or none.
    pub server_errors: bool,
    /// `gateway-error`: 502, 503 or 504, or no answer.
    pub gateway_errors: bool,
    /// `reset`: the connection ended, or the time of one try, before an answer came.
    pub reset: bool,
    /// `reset-before-request`: the connection ended before any of the request was sent.
    pub reset_before_request: bool,
    /// `connect-failure`: there was no connection.
    pub connect_failure: bool,
    /// `refused-stream`: the target says that it has not looked at the request (RFC 9113 section
    /// 8.7).
    pub refused_stream: bool,
    /// `retriable-4xx`: 409.
    pub conflict: bool,
    /// These statuses.
    pub codes: Vec<u16>,
    /// These statuses of gRPC, where the head of the answer has one.
    pub grpc: Vec<u8>,
}

impl RetryOn {
    /// What Istio takes if nothing is said: only what certainly was not acted on, and what gRPC
    /// says can be asked for again.
    pub fn usual() -> Self {
        Self {
            connect_failure: true,
            refused_stream: true,
            grpc: vec![CANCELLED, UNAVAILABLE],
            ..Self::default()
        }
    }

    /// Adds what a word of Envoy's stands for. Gives whether there is such a word.
    pub(in crate::policy) fn add(&mut self, word: &str) -> bool {
        if let Some((status, _)) = GRPC.iter().find(|(_, name)| *name == word) {
            self.grpc.push(*status);
            return true;
        }
        match word {
            "5xx" => self.server_errors = true,
            "gateway-error" => self.gateway_errors = true,
            "reset" => self.reset = true,
            "reset-before-request" => self.reset_before_request = true,
            "connect-failure" => self.connect_failure = true,
            "refused-stream" => self.refused_stream = true,
            "retriable-4xx" => self.conflict = true,
            // They stand beside it.
            "retriable-status-codes" => {}
            _ => return false,
        }
        true
    }

    /// Whether an answer with this status, and this of gRPC in its head, is one of those.
    pub fn answer(&self, status: u16, grpc: Option<u8>) -> bool {
        (self.server_errors && (500..=599).contains(&status))
            || (self.gateway_errors && (502..=504).contains(&status))
            || (self.conflict && status == 409)
            || self.codes.contains(&status)
            || grpc.is_some_and(|status| self.grpc.contains(&status))
    }

    /// Whether it is one of those that there was no connection, so that nobody has seen the
    /// request.
    pub fn no_connection(&self) -> bool {
        self.connect_failure || self.reset_before_request || self.no_answer()
    }

    /// Whether it is one of those that there was no answer, or none in the time of one try.
    pub fn no_answer(&self) -> bool {
        self.reset || self.server_errors || self.gateway_errors
    }

    /// Whether it is one of those that the target refused to look at the request.
    pub fn refused(&self) -> bool {
        self.refused_stream || self.no_answer()
    }
}

impl fmt::Display for RetryOn {
    /// As documents have it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [
            (self.server_errors, "5xx"),
            (self.gateway_errors, "gateway-error"),
            (self.reset, "reset"),
            (self.reset_before_request, "reset-before-request"),
            (self.connect_failure, "connect-failure"),
            (self.refused_stream, "refused-stream"),
            (self.conflict, "retriable-4xx"),
        ];
        let words = words
            .into_iter()
            .filter_map(|(is_there, word)| is_there.then_some(word));
        let grpc = GRPC.iter().filter(|(status, _)| self.grpc.contains(status));
        let mut parts: Vec<String> = words.map(str::to_owned).collect();
        parts.extend(grpc.map(|(_, word)| (*word).to_owned()));
        parts.extend(self.codes.iter().map(ToString::to_string));
        f.write_str(&parts.join(","))
    }
}

const CANCELLED: u8 = 1;
const UNAVAILABLE: u8 = 14;

/// The statuses of gRPC that have a word.
const GRPC: [(u8, &str); 5] = [
    (CANCELLED, "cancelled"),
    (4, "deadline-exceeded"),
    (8, "resource-exhausted"),
    (13, "internal"),
    (UNAVAILABLE, "unavailable"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_between_two_grows_as_envoy_has_it() {
        let retries = Retries {
            attempts: 9,
            per_try_timeout: None,
            on: RetryOn::usual(),
            backoff: Retries::BACKOFF,
        };
        let most = |number| retries.wait(number, 1.0).as_millis();
        let expected = [25, 75, 175, 250, 250, 250];
        assert_eq!([1, 2, 3, 4, 5, u32::MAX].map(most), expected);
        assert_eq!(retries.wait(4, 0.0), Duration::ZERO);
        assert_eq!(retries.wait(1, 0.5), Duration::from_micros(12_500));
        assert_eq!(retries.wait(1, f64::INFINITY).as_millis(), 25);
    }

    #[test]
    fn answers_are_told_by_status() {
        let on = |words: &[&str]| {
            let mut on = RetryOn::default();
            assert!(words.iter().all(|word| on.add(word)), "{words:?}");
            on
        };
        for (words, status, grpc, expected) in [
            (&["5xx"][..], 500, None, true),
            (&["5xx"], 599, None, true),
            (&["5xx"], 499, None, false),
            (&["gateway-error"], 500, None, false),
            (&["gateway-error"], 502, None, true),
            (&["gateway-error"], 504, None, true),
            (&["gateway-error"], 505, None, false),
            (&["retriable-4xx"], 409, None, true),
            (&["retriable-4xx"], 404, None, false),
            (&["reset", "connect-failure"], 503, None, false),
            (&["unavailable"], 200, Some(14), true),
            (&["unavailable"], 200, Some(13), false),
            (&["unavailable"], 200, None, false),
            (&["deadline-exceeded", "internal"], 200, Some(13), true),
            (&["cancelled", "resource-exhausted"], 200, Some(8), true),
        ] {
            assert_eq!(
                on(words).answer(status, grpc),
                expected,
                "{words:?} {status}"
            );
        }
        let usual = "connect-failure,refused-stream,cancelled,unavailable";
        assert_eq!(RetryOn::usual().to_string(), usual);
        let codes = RetryOn {
            codes: vec![429],
            ..RetryOn::default()
        };
        assert!(codes.answer(429, None) && !codes.answer(503, None));
        assert!(!RetryOn::default().add("retriable-headers"));
    }

    #[test]
    fn what_never_reached_the_target_is_told_from_what_may_have() {
        let of = |word: &str| {
            let mut on = RetryOn::default();
            on.add(word);
            [on.no_connection(), on.refused(), on.no_answer()]
        };
        assert_eq!(of("5xx"), [true, true, true]);
        assert_eq!(of("connect-failure"), [true, false, false]);
        assert_eq!(of("refused-stream"), [false, true, false]);
        assert_eq!(of("reset"), [true, true, true]);
        assert_eq!(of("reset-before-request"), [true, false, false]);
        assert_eq!(of("gateway-error"), [true, true, true]);
        assert_eq!(of("retriable-4xx"), [false, false, false]);
    }
}
