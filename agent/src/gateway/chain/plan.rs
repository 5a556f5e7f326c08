//! What a policy says about what a client asks for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::gateway::dial::DialError;
use crate::name::{Host, OriginalDst, Target};
use crate::policy::{Claim, Decision, Facts, Fallback, NameSource, Policy, TunnelDecision};

/// Stands for the address of a name that has none here: external, and nobody's (RFC 7600).
pub(super) const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8));

/// A way, and what may be gone to without a proxy.
pub(super) struct Plan {
    pub(super) way: Way,
    /// On the way [`Way::Direct`] the addresses to go to; on the other those that may be gone to if
    /// no proxy can be reached.
    pub(super) direct: Vec<IpAddr>,
}

pub(super) enum Way {
    /// With the object of the policy that says so.
    Direct(Option<Arc<str>>),
    Tunnel(Box<TunnelDecision>),
}

impl Plan {
    /// Decides about a target that has these addresses. Each is decided about as if a workload had
    /// connected to it; the first that is not denied says which way to go. A tunnel may end at any
    /// of them, so for it none may be denied.
    pub(super) fn make(
        policy: &Policy,
        target: &Target,
        addresses: &[IpAddr],
    ) -> Result<Self, DialError> {
        let mut way = None;
        let mut denied = None;
        let mut direct = Vec::new();
        let mut open = Vec::new();
        for addr in addresses {
            match decide(policy, target, *addr) {
                Decision::Deny { policy, reason } => {
                    denied = Some(DialError::Policy { policy, reason });
                }
                Decision::Direct(rule) => {
                    direct.push(*addr);
                    open.push(*addr);
                    way.get_or_insert_with(|| Way::Direct(rule.policy().cloned()));
                }
                Decision::Tunnel(decision) => {
                    if decision.fallback != Fallback::Refuse {
                        open.push(*addr);
                    }
                    way.get_or_insert_with(|| Way::Tunnel(Box::new(decision)));
                }
            }
        }
        match (way, denied) {
            (None, None) => Err(DialError::NoAddress),
            (None | Some(Way::Tunnel(_)), Some(denied)) => Err(denied),
            (Some(way @ Way::Direct(_)), _) => Ok(Self { way, direct }),
            (Some(way), None) => Ok(Self { way, direct: open }),
        }
    }
}

/// Nobody is known to ask, and what is asked for is not merely claimed: it is where the client is
/// taken.
fn decide(policy: &Policy, target: &Target, addr: IpAddr) -> Decision {
    let claimed = target.host.name().map(|name| Claim {
        host: Host::Name(name.clone()),
        source: NameSource::HttpHost,
    });
    let facts = Facts {
        original_dst: OriginalDst(SocketAddr::new(addr, target.port)),
        claimed_is_verified: claimed.is_some(),
        claimed,
    };
    policy.decide(&facts, policy.view_of_stranger()).decision
}
