//! What can happen to a connection, as bounded label values.

use std::fmt;

/// Declares an enum whose variants are label values.
macro_rules! label_values {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $($(#[$doc:meta])* $variant:ident = $text:literal,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The value as labels and log fields have it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

label_values! {
    /// What policy decided about a connection.
    pub enum Decision {
        /// Refused.
        Deny = "deny",
        /// To the original destination, without a proxy.
        Direct = "direct",
        /// Through a proxy.
        Tunnel = "tunnel",
    }
}

label_values! {
    /// How a tunnel is asked for, if it is.
    pub enum TunnelProtocol {
        /// It is not: the proxy gets requests of HTTP/1.1 with a whole URI (RFC 9112 section
        /// 3.2.2).
        Http1Absolute = "http1-absolute",
        /// CONNECT of HTTP/1.1 (RFC 9110 section 9.3.6).
        Http1Connect = "http1-connect",
        /// CONNECT of HTTP/2 (RFC 9113 section 8.5).
        Http2Connect = "http2-connect",
        /// POST of HTTP/2.
        Http2Post = "http2-post",
    }
}

label_values! {
    /// Where the host of the target comes from.
    pub enum TargetSource {
        /// The first host of the ServiceEntry that matched.
        Declared = "declared",
        /// What the workload had resolved.
        Dns = "dns",
        /// `targetHost` of the policy.
        Explicit = "explicit",
        /// Host of plain HTTP.
        HttpHost = "http_host",
        /// The address that the workload connected to.
        OriginalDst = "original_dst",
        /// The server name in the TLS ClientHello.
        Sni = "sni",
        /// The name that the virtual address stands for.
        VirtualAddress = "virtual_address",
    }
}

label_values! {
    /// What came of looking for the target at a [`TargetSource`].
    pub enum Deduction {
        /// The tunnel is asked for what was found there.
        Found = "found",
        /// There was something, but it is no host name.
        Invalid = "invalid",
        /// There was nothing, and policy allows no other source.
        Missing = "missing",
    }
}

label_values! {
    /// Why policy refused a connection.
    pub enum DenyReason {
        /// The ClientHello may hide another name, and none is known.
        HiddenName = "hidden_name",
        /// What should have named the target is no host name.
        InvalidName = "invalid_name",
        /// The bytes began as TLS or HTTP and then broke its rules.
        Malformed = "malformed",
        /// The name that it claims was not resolved to the address.
        Mismatch = "mismatch",
        /// Policy wants a name (`AUTO_SNI`), and the connection has none.
        NoName = "no_name",
        /// A rule says Deny.
        Rule = "rule",
        /// The address is a virtual one that stands for no name.
        UnknownAddress = "unknown_address",
        /// It is not known which pod connects, and policy is not the same for all.
        UnknownWorkload = "unknown_workload",
    }
}

label_values! {
    /// A limit of the agent that a connection was over.
    pub enum Limit {
        /// Connections in all.
        Connections = "connections",
        /// File descriptors of the process.
        Descriptors = "descriptors",
        /// Tunnels being opened.
        PendingTunnels = "pending_tunnels",
        /// Connections of one workload.
        Workload = "workload",
    }
}

label_values! {
    /// Why something was not done at a target: what policy says of the target.
    pub enum TargetLimit {
        /// Connections at a time.
        Connections = "connections",
        /// It has failed too often.
        Ejected = "ejected",
        /// Requests that wait for a connection.
        PendingRequests = "pending_requests",
        /// Requests at a time.
        Requests = "requests",
        /// Retries at a time.
        Retries = "retries",
    }
}

label_values! {
    /// Why a span came to nobody.
    pub enum SpanLoss {
        /// More came than could be sent: the queue was full.
        QueueFull = "queue_full",
        /// The collector said no.
        Refused = "refused",
        /// The agent ended first.
        Stopped = "stopped",
        /// The collector was not reached for too long.
        Unreachable = "unreachable",
    }
}

label_values! {
    /// What came of reading the policy again.
    pub enum Reload {
        /// Nothing of it could be used; the last good one stays in force.
        Failure = "failure",
        /// Some documents were rejected; the rest is in force.
        Partial = "partial",
        /// All of it is in force.
        Success = "success",
    }
}

label_values! {
    /// What the first bytes of a connection turned out to be.
    pub enum Inspection {
        /// The workload closed before it said enough.
        Closed = "closed",
        /// An HTTP/1 head with a usable Host.
        Http = "http",
        /// An HTTP/1 head without a name in Host.
        HttpNoName = "http_no_name",
        /// The preface of HTTP/2.
        Http2 = "http2",
        /// Began as TLS or HTTP and then broke its rules.
        Malformed = "malformed",
        /// Neither TLS nor HTTP.
        Opaque = "opaque",
        /// Not a byte within the time for the first.
        Silent = "silent",
        /// Not inspected: the protocol of its port is one in which the server speaks first.
        Skipped = "skipped",
        /// Began as TLS or HTTP, but was not complete in time.
        Timeout = "timeout",
        /// A ClientHello with a server name.
        Tls = "tls",
        /// A ClientHello whose server name is only the outer one of an encrypted hello.
        TlsEch = "tls_ech",
        /// A ClientHello without a server name.
        TlsNoName = "tls_no_name",
    }
}

label_values! {
    /// `response_flags` of Istio's metrics and `flags` of the access log. Codes of Envoy where it
    /// has one for the case, of ztunnel (`DENY`, `CONNECT`) where only that has one.
    ///
    /// | flag | the connection |
    /// |---|---|
    /// | `-` | was served and ended in order |
    /// | `CONNECT` | the proxy answered, but not with 2xx, or, asked in absolute form, by itself |
    /// | `DC` | the workload closed before it was served, or reset the connection |
    /// | `DENY` | policy refused it |
    /// | `DPE` | the workload broke the rules of the protocol it spoke |
    /// | `LR` | the agent ended it: shutdown after the drain, or an error of its own |
    /// | `NR` | nothing is known about where it was going (no original destination) |
    /// | `SI` | was idle for too long |
    /// | `UC` | was served, and then the proxy or the target reset it |
    /// | `UF` | the proxy, or the destination of a direct connection, cannot be reached |
    /// | `UH` | its target has failed too often lately |
    /// | `UO` | was over a limit of the agent, or of its target |
    /// | `UPE` | the proxy broke the rules of HTTP |
    /// | `URX` | was tried as often as policy allows, and failed each time |
    /// | `UT` | there was no answer in time, of the proxy or of the target |
    pub enum ResponseFlag {
        /// `CONNECT`: the proxy answered, but not with 2xx.
        Connect = "CONNECT",
        /// `DC`: the workload closed before it was served, or reset the connection.
        DownstreamClosed = "DC",
        /// `DENY`: policy refused it.
        Deny = "DENY",
        /// `DPE`: the workload broke the rules of the protocol it spoke.
        DownstreamProtocol = "DPE",
        /// `LR`: the agent ended it.
        LocalReset = "LR",
        /// `NR`: no original destination.
        NoRoute = "NR",
        /// `-`: served, and ended in order.
        None = "-",
        /// `SI`: idle for too long.
        Idle = "SI",
        /// `UC`: the proxy or the target reset it while it was served.
        UpstreamClosed = "UC",
        /// `UF`: the proxy, or a direct destination, cannot be reached.
        UpstreamFailure = "UF",
        /// `UH`: the target has failed too often lately.
        Unhealthy = "UH",
        /// `UO`: over a limit of the agent, or of the target.
        Overflow = "UO",
        /// `UPE`: the proxy broke the rules of HTTP.
        UpstreamProtocol = "UPE",
        /// `URX`: tried as often as policy allows.
        RetriesExhausted = "URX",
        /// `UT`: no answer in time, of the proxy or of the target.
        UpstreamTimeout = "UT",
    }
}

/// The status of a proxy's answer to CONNECT, or that there was none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TunnelCode {
    /// No answer that could be read.
    None,
    /// The status code as it came.
    Status(u16),
}

impl TunnelCode {
    /// Whether the tunnel stands: any 2xx (RFC 9110 section 9.3.6).
    pub fn is_success(self) -> bool {
        matches!(self, Self::Status(200..=299))
    }

    /// The code, if there was an answer.
    pub fn status(self) -> Option<u16> {
        match self {
            Self::None => None,
            Self::Status(code) => Some(code),
        }
    }

    /// The value of the label `code`: the status, `none`, or `other` for what no class of RFC
    /// 9110 section 15 has, so that a proxy cannot make series as it likes.
    pub(crate) fn label(self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::Status(code @ 100..=599) => code.to_string(),
            Self::Status(_) => "other".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_stay_within_the_classes_of_http() {
        assert_eq!(TunnelCode::Status(407).label(), "407");
        assert_eq!(TunnelCode::Status(999).label(), "other");
        assert_eq!(TunnelCode::Status(0).label(), "other");
        assert_eq!(TunnelCode::None.label(), "none");
        assert!(TunnelCode::Status(204).is_success());
        assert!(!TunnelCode::Status(101).is_success());
        assert!(!TunnelCode::None.is_success());
    }
}
