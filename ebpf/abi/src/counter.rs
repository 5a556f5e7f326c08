//! What the programs count.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident => $kind:ident $($label:literal)?,)*) => {
        /// Index into the counter map: one outcome of a TCP `connect`, or of a
        /// datagram that is refused, each counted once.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum Counter {
            $($(#[$doc])* $name,)*
        }

        impl Counter {
            /// All of them, in the order of the map.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Number of entries of the map.
            pub const COUNT: u32 = Self::ALL.len() as u32;

            /// What it counts, and the `reason` label of its metric.
            pub const fn outcome(self) -> Outcome {
                match self {
                    $(Self::$name => Outcome::$kind$(($label))?,)*
                }
            }
        }
    };
}

/// What became of a connection, with the reason as a metric label has it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Sent to the agent.
    Redirected(&'static str),
    /// Refused: `connect` failed with EPERM.
    Refused(&'static str),
    /// Left alone.
    Skipped(&'static str),
    /// An answer of a name server that was not passed on to the agent.
    AnswerLost,
    /// A query that went to its name server although policy serves.
    QueryPassed(&'static str),
    /// A datagram that was refused: sending it failed with EPERM.
    UdpRefused(&'static str),
}

counters! {
    /// Sent to the agent.
    Redirected => Redirected "redirected",
    /// A connection of the agent itself.
    SkippedAgent => Skipped "agent",
    /// No agent is there, and the policy is open.
    SkippedAgentGone => Skipped "agent_gone",
    /// In the network namespace of the node, and not named by policy.
    SkippedHostNetwork => Skipped "host_network",
    /// An internal address.
    SkippedInternal => Skipped "internal",
    /// A thread of the kernel itself.
    SkippedKernel => Skipped "kernel",
    /// A network namespace without our listeners, under an open policy.
    SkippedNotEnrolled => Skipped "not_enrolled",
    /// A port that no policy names.
    SkippedPort => Skipped "port",
    /// A proxy, by address and port.
    SkippedProxy => Skipped "proxy",
    /// A socket bound to a network device: it could not reach the loopback listener.
    RefusedDevice => Refused "bound_to_device",
    /// The namespace has no listener for this address family.
    RefusedFamily => Refused "address_family",
    /// Nothing that is ours listens where the connection would be sent.
    RefusedListener => Refused "listener_gone",
    /// Redirected, but the flow map was full: the agent resets the connection.
    RefusedMapFull => Refused "map_full",
    /// A network namespace without our listeners, under a closed policy.
    RefusedNotEnrolled => Refused "not_enrolled",
    /// The original destination could not be stored with the socket.
    RefusedStorage => Refused "socket_storage",
    /// To UDP port 443, where HTTP/3 would walk past what TCP is under.
    UdpRefusedQuic => UdpRefused "quic",
    /// To another UDP port, where policy lets no UDP pass.
    UdpRefusedOther => UdpRefused "other",
    /// A query where no front of ours is.
    QueryPassedAgentGone => QueryPassed "agent_gone",
    /// A query of a socket bound to a network device: it could not reach the front.
    QueryPassedDevice => QueryPassed "bound_to_device",
    /// A query in a network namespace without our front.
    QueryPassedNotEnrolled => QueryPassed "not_enrolled",
    /// A query of a socket that already asks as many other servers as we have fronts.
    QueryPassedServers => QueryPassed "too_many_servers",
    /// An answer of a name server that is too long, or found the ring full.
    AnswerLost => AnswerLost,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_indices() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
    }
}
