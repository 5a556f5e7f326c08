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
        hides_name: false,
    };
    policy.decide(&facts, policy.view_of_stranger()).decision
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::policy::{Documents, Materials, Options};

    /// Everything through a proxy, if need be without; but nothing to a service at 203.0.113.0/28,
    /// and straight to one at 203.0.113.16/28 and to `straight.example`.
    const POLICY: &str = "
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: all}
spec: {proxy: {host: 192.0.2.1, port: 3128}, failureMode: open, noProxy: [straight.example]}
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: closed}
spec: {action: Deny, selector: {matchLabels: {is: closed}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: closed, labels: {is: closed}}
spec: {hosts: [closed.example], addresses: [203.0.113.0/28], location: MESH_EXTERNAL}
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: near}
spec: {action: Direct, selector: {matchLabels: {is: near}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: near, labels: {is: near}}
spec: {hosts: [near.example], addresses: [203.0.113.16/28], location: MESH_EXTERNAL}
";

    /// The way to a target with these addresses, and what may be gone to without a proxy.
    fn plan(host: &str, addresses: &[&str]) -> String {
        let mut documents = Documents::default();
        documents.add(Path::new("policy.yaml"), POLICY);
        let compiled = Policy::compile(&documents, &Materials::none(), &Options::default());
        let target = Target {
            host: host.parse().unwrap(),
            port: 443,
        };
        let addresses: Vec<IpAddr> = addresses.iter().map(|addr| addr.parse().unwrap()).collect();
        match Plan::make(&compiled.unwrap(), &target, &addresses) {
            Ok(Plan { way, direct }) => {
                let way = match way {
                    Way::Direct(_) => "direct".to_owned(),
                    Way::Tunnel(decision) => decision.target.to_string(),
                };
                let direct: Vec<_> = direct.iter().map(ToString::to_string).collect();
                format!("{way} [{}]", direct.join(" "))
            }
            Err(DialError::Policy { policy, .. }) => format!("denied by {policy}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn each_address_counts() {
        let (far, near, closed) = ("203.0.113.99", "203.0.113.17", "203.0.113.1");
        for (host, addresses, expected) in [
            ("a.example", &[far][..], "a.example:443 [203.0.113.99]"),
            (far, &[far], "203.0.113.99:443 [203.0.113.99]"),
            (near, &[near], "direct [203.0.113.17]"),
            (closed, &[closed], "denied by Tunnel/closed"),
            // A name is where the client is taken, so it opens no door to the address.
            ("straight.example", &[closed], "denied by Tunnel/closed"),
            ("straight.example", &[far], "direct [203.0.113.99]"),
            // Of several the first that is not denied says which way.
            ("a.example", &[closed, near], "direct [203.0.113.17]"),
            ("a.example", &[near, closed, far], "direct [203.0.113.17]"),
            (
                "a.example",
                &[far, near],
                "a.example:443 [203.0.113.99 203.0.113.17]",
            ),
            // The proxy may go to any.
            ("a.example", &[far, closed], "denied by Tunnel/closed"),
            ("a.example", &[closed, far], "denied by Tunnel/closed"),
        ] {
            assert_eq!(plan(host, addresses), expected, "{host} {addresses:?}");
        }
    }

    #[test]
    fn nowhere_is_external_and_nobodys() {
        let nowhere = NOWHERE.to_string();
        let expected = format!("a.example:443 [{nowhere}]");
        assert_eq!(plan("a.example", &[&nowhere]), expected);
    }
}
