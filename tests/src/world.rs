//! The world of one test.

use std::fs::{self, Permissions};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use tempfile::TempDir;

use crate::addr::{self, DNS_V4, HOST_V4, HOST_V6, INET, OUTSIDE_V4, OUTSIDE_V6};
use crate::arrivals::{Arrival, Arrivals};
use crate::cgroup::Cgroup;
use crate::janitor::Janitor;
use crate::{Must as _, Place};

/// Two places joined by one wire, and nothing else.
///
/// Fields end in this order: the processes first, the janitor (who would do the same) last.
pub struct World {
    workload: Cgroup,
    services: Cgroup,
    root: Cgroup,
    dir: TempDir,
    host: Place,
    inet: Place,
    arrivals: Arrivals,
    _janitor: Janitor,
}

impl World {
    /// Makes the world of the test `name` and proves that nothing can leave it.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        let root = Cgroup::new();
        let (services, workload) = (root.child("services"), root.child("workload"));
        let dir = tempfile::Builder::new()
            .prefix(&format!("underpass-test-{name}-"))
            .tempdir();
        let dir = dir.must("make a directory for the world");
        let janitor = Janitor::start(root.path(), dir.path());
        // Servers that change their user must get at their files.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).must("open the directory");

        let resolv_conf = format!("nameserver {DNS_V4}\noptions timeout:2 attempts:2\n");
        let place = |name: &str| {
            Place::new(&dir.path().join(name), services.path(), &resolv_conf)
                .must(format_args!("make the place {name}"))
        };
        let (host, inet) = (place("host"), place("inet"));
        join(&host, &inet);
        let arrivals = Arrivals::watch(&inet, WIRE);
        let world = Self {
            workload,
            services,
            root,
            dir,
            host,
            inet,
            arrivals,
            _janitor: janitor,
        };
        world.prove_closed();
        world
    }

    /// Where workloads and the agent run.
    pub fn host(&self) -> &Place {
        &self.host
    }

    /// Where proxies, targets and the name server run.
    pub fn inet(&self) -> &Place {
        &self.inet
    }

    /// The cgroup whose connections the agent captures.
    pub fn workload(&self) -> &Cgroup {
        &self.workload
    }

    /// The cgroup that both are in, the root of a node's hierarchy.
    pub fn root(&self) -> &Cgroup {
        &self.root
    }

    /// The cgroup of everything else.
    pub fn services(&self) -> &Cgroup {
        &self.services
    }

    /// A directory for files of the test.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Connections and datagrams that went from the host to a target without a proxy.
    pub fn direct_arrivals(&self) -> Vec<Arrival> {
        self.arrivals_where(|arrival| addr::is_target(arrival.destination.ip()))
    }

    /// Connections and datagrams that went from the host to `address`.
    pub fn arrivals_at(&self, address: impl Into<IpAddr>) -> Vec<Arrival> {
        let address = address.into();
        self.arrivals_where(|arrival| arrival.destination.ip() == address)
    }

    /// Panics, naming them, if there were direct arrivals.
    #[track_caller]
    pub fn expect_no_direct_arrivals(&self) {
        let arrivals = self.direct_arrivals();
        assert!(arrivals.is_empty(), "slipped past the tunnel: {arrivals:?}");
    }

    fn arrivals_where(&self, condition: impl Fn(&Arrival) -> bool) -> Vec<Arrival> {
        self.arrivals.all().into_iter().filter(condition).collect()
    }

    /// A connection to an address outside must fail for want of a route, from everywhere.
    #[track_caller]
    fn prove_closed(&self) {
        for place in [&self.host, &self.inet] {
            for outside in [IpAddr::from(OUTSIDE_V4), IpAddr::from(OUTSIDE_V6)] {
                let error = place.connect(SocketAddr::new(outside, 80)).err();
                let errno = error.as_ref().and_then(io::Error::raw_os_error);
                assert_eq!(
                    errno,
                    Some(Errno::ENETUNREACH as i32),
                    "the world is not closed: connecting to {outside} gave {error:?}"
                );
            }
        }
    }
}

/// The name of the wire's end on either side.
const WIRE: &str = "wire";

/// Lays the wire, gives both sides their addresses, and the host its few routes.
#[track_caller]
fn join(host: &Place, inet: &Place) {
    use std::fmt::Write as _;

    let mut commands = format!(
        "link set lo up\n\
         link add {WIRE} type veth peer name {WIRE} netns {}\n\
         address add {}/24 dev {WIRE}\n\
         address add {}/64 dev {WIRE} nodad\n\
         link set {WIRE} up\n",
        host.net_path(),
        addr::ROUTER_V4,
        addr::ROUTER_V6,
    );
    for address in INET {
        // Without it an IPv6 address can be bound to only after a moment, even here.
        let nodad = if address.is_ipv6() { "nodad" } else { "" };
        let _ = writeln!(commands, "address add {address} dev lo {nodad}");
    }
    ip(inet, commands);
    ip(
        host,
        format!(
            "link set lo up\n\
             address add {HOST_V4}/24 dev {WIRE}\n\
             address add {HOST_V6}/64 dev {WIRE} nodad\n\
             link set {WIRE} up\n\
             route add 192.0.2.0/24 via {router}\n\
             route add 203.0.113.0/24 via {router}\n\
             route add {internal} via {router}\n\
             route add 2001:db8::/32 via {router6}\n",
            router = addr::ROUTER_V4,
            router6 = addr::ROUTER_V6,
            internal = addr::INTERNAL_V4,
        ),
    );
}

#[track_caller]
fn ip(place: &Place, commands: String) {
    let done = place.command("ip").args(["-batch", "-"]).input(commands);
    done.run(Duration::from_secs(10)).expect_success();
}
