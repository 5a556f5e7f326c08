//! Policies of two sizes, and what is asked of them.

use std::fmt::Write as _;
use std::path::Path;

use underpass::name::OriginalDst;
use underpass::policy::{
    Claim, Decision, Documents, Facts, Materials, NameSource, Options, Policy,
};
use underpass::workload::Workload;

/// How many documents there are.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) entries: usize,
    pub(crate) tunnels: usize,
}

pub(crate) const LARGE: Size = Size {
    entries: 10_000,
    tunnels: 1_000,
};

pub(crate) const SMALL: Size = Size {
    entries: 10,
    tunnels: 1,
};

/// What is looked up, by what is found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Lookup {
    ExactName,
    Wildcard,
    DestinationRule,
    Address,
    Range,
    ForAll,
    Miss,
    Internal,
}

impl Lookup {
    /// Whether policy has a Tunnel for everything else.
    pub(crate) fn has_rest(self) -> bool {
        self != Self::Miss
    }

    pub(crate) fn facts(self, size: Size) -> Facts {
        // Of ten entries one is a wildcard and two have addresses, see `documents`.
        let ten = (size.entries - 1) / 10 * 10;
        match self {
            Self::ExactName => named(&format!("s{}.example.com", ten + 3)),
            Self::Wildcard => named(&format!("a.b.s{ten}.example.com")),
            Self::DestinationRule => named("host0.example.org"),
            Self::ForAll | Self::Miss => named("www.elsewhere.test"),
            Self::Address => to(&address(ten + 1)),
            Self::Range => to("100.65.0.9"),
            Self::Internal => to("10.1.2.3"),
        }
    }

    /// Panics if something else was found.
    pub(crate) fn check(self, found: &Decision) {
        let by = match found {
            Decision::Tunnel(tunnel) => &*tunnel.policy,
            Decision::Direct(_) => "",
            Decision::Deny { policy, .. } => policy,
        };
        let expected = match self {
            Self::ExactName | Self::Wildcard | Self::Address | Self::Range => "Tunnel/t",
            Self::DestinationRule => "DestinationRule/",
            Self::ForAll => "Tunnel/rest",
            Self::Miss | Self::Internal => "",
        };
        assert!(by.starts_with(expected), "{self:?}: {found:?}");
    }
}

/// A connection for this host, to an address that no entry has.
fn named(host: &str) -> Facts {
    Facts {
        claimed: Some(Claim {
            host: host.parse().expect("a host"),
            source: NameSource::Sni,
        }),
        ..to("198.51.100.7")
    }
}

fn to(address: &str) -> Facts {
    let dst = format!("{address}:443").parse().expect("an address");
    Facts::new(OriginalDst(dst))
}

/// The workload that asks.
pub(crate) fn workload() -> Workload {
    Workload {
        namespace: Some("team-7".into()),
        labels: [("app".to_owned(), "web".to_owned())].into(),
        ..Workload::default()
    }
}

pub(crate) fn parse(text: &str) -> Documents {
    let mut documents = Documents::default();
    documents.add(Path::new("bench.yaml"), text);
    documents
}

pub(crate) fn compile(documents: &Documents) -> Policy {
    Policy::compile(documents, &Materials::none(), &Options::default()).expect("a policy")
}

fn address(entry: usize) -> String {
    format!("198.18.{}.{}", entry / 256, entry % 256)
}

/// Services of as many teams as there are Tunnels, each Tunnel for one team; and hosts of their
/// own, and with `rest` everything else.
pub(crate) fn documents(size: Size, rest: bool) -> String {
    let mut text = String::new();
    for entry in 0..size.entries {
        let mut hosts = format!("s{entry}.example.com");
        let mut addresses = String::new();
        match entry % 10 {
            0 => hosts = format!("'*.s{entry}.example.com'"),
            1 => addresses = address(entry),
            2 => addresses = format!("100.{}.{}.0/24", 65 + entry / 10 / 256, entry / 10 % 256),
            _ => {}
        }
        let team = entry % size.tunnels;
        document(
            &mut text,
            "networking.istio.io/v1",
            "ServiceEntry",
            &format!("s{entry}\n  labels: {{team: team-{team}, environment: production}}"),
            &format!(
                "  hosts: [{hosts}]\n  addresses: [{addresses}]\n  ports:\n    - number: 443\n      \
                 name: tls\n      protocol: TLS\n  location: MESH_EXTERNAL\n  resolution: DNS\n"
            ),
        );
    }
    let proxy = "  proxy:\n    host: proxy.example\n    port: 3128\n";
    for tunnel in 0..size.tunnels {
        // Those for some workloads only stand before one for all.
        if tunnel % 3 == 1 {
            document(
                &mut text,
                "underpass.dev/v1alpha1",
                "Tunnel",
                &format!("t{tunnel}-web"),
                &format!(
                    "  selector:\n    matchLabels: {{team: team-{tunnel}}}\n  workloadSelector:\n    \
                     namespaces: [team-{tunnel}]\n    matchLabels: {{app: web}}\n{proxy}"
                ),
            );
        }
        document(
            &mut text,
            "underpass.dev/v1alpha1",
            "Tunnel",
            &format!("t{tunnel}"),
            &format!("  selector:\n    matchLabels: {{team: team-{tunnel}}}\n{proxy}"),
        );
    }
    for host in 0..size.tunnels {
        document(
            &mut text,
            "networking.istio.io/v1",
            "DestinationRule",
            &format!("host{host}"),
            &format!(
                "  host: host{host}.example.org\n  trafficPolicy:\n    tunnel:\n      proxy:\n        \
                 host: proxy.example\n        port: 3128\n"
            ),
        );
    }
    if rest {
        document(&mut text, "underpass.dev/v1alpha1", "Tunnel", "rest", proxy);
    }
    text
}

fn document(text: &mut String, version: &str, kind: &str, name: &str, spec: &str) {
    let written = write!(
        text,
        "---\napiVersion: {version}\nkind: {kind}\nmetadata:\n  name: {name}\nspec:\n{spec}"
    );
    written.expect("room for a document");
}
