//! The kernel side, seen from the agent: loading and attaching the programs, the listeners that
//! connections are redirected to, and where each of them wanted to go.

mod answers;
mod attachment;
mod bpf;
mod btf;
mod canary;
pub mod cgroup;
mod claim;
mod counters;
mod discovery;
mod error;
mod flows;
mod front;
pub(crate) mod inotify;
mod listener;
mod logs;
mod netns;
mod newcomers;
mod object;
pub mod pins;
mod preflight;
mod query;
mod readable;
mod rules;
mod sandbox;
mod sockets;
mod workload;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use underpass_abi::{FRONTS, Listeners, Verdict};

pub use answers::Answers;
pub use attachment::{Attachment, supersede};
pub use canary::{Canary, serve_sockets};
pub use counters::KernelCounters;
pub use discovery::{Discovery, Resident, Sandboxes, Sight};
pub use error::CaptureError;
pub use flows::{Flows, Sweeper};
pub use front::{Asked, Front, MAX_MESSAGE};
pub use listener::{Accepted, Incoming, Listener};
pub use netns::{Netns, NetnsId};
pub use newcomers::Newcomers;
pub use preflight::preflight;
pub use query::Hooks;
pub use rules::{Dns, Rules};
pub use sockets::{MarkedSockets, SocketsWithin};
pub use workload::Workloads;

/// A network namespace in which connections are captured.
#[derive(Debug)]
pub struct Enrolled {
    /// The kernel's name for it.
    pub cookie: u64,
    /// Where the listeners are.
    pub ports: Listeners,
    /// On 127.0.0.1, and on ::1 where there is IPv6.
    pub listeners: Vec<Listener>,
}

/// The loaded programs and their maps. Nothing is captured before [`attach`](Self::attach); when
/// the [`Attachment`]s are dropped, or the process ends, nothing is captured any more.
pub struct Capture {
    object: object::Object,
    flows: Arc<Flows>,
    queries: Arc<front::Queries>,
    rules: Rules,
    sockets: Arc<MarkedSockets>,
    counters: Arc<KernelCounters>,
}

/// In which network namespaces the agent captures.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reach {
    /// In the agent's own. External connections from any other are refused.
    OwnNamespace,
    /// In every one that a process of the captured cgroup lives in. Where the agent has no listener
    /// yet, or cannot have one, the failure mode decides.
    EveryNamespace,
}

impl Reach {
    fn not_enrolled(self) -> Verdict {
        match self {
            Self::OwnNamespace => Verdict::Refuse,
            Self::EveryNamespace => Verdict::AsRuled,
        }
    }
}

/// How the programs are loaded.
#[derive(Clone, Copy, Debug)]
pub struct CaptureConfig {
    /// Size of the flow map: connections between their `connect` and our `accept`.
    pub max_connections: u32,
    /// Where connections are captured.
    pub reach: Reach,
    /// Whether the programs log each decision.
    pub verbose: bool,
}

impl Capture {
    /// Loads the programs into the kernel.
    ///
    /// # Errors
    /// What is missing (a capability, a kernel feature, the programs themselves) and what to do.
    pub fn load(config: &CaptureConfig) -> Result<Self, CaptureError> {
        let mut object = object::Object::load(config)?;
        let capture = Self {
            flows: Arc::new(Flows::new(&mut object, config.max_connections)?),
            queries: Arc::new(front::Queries::new(&mut object)?),
            rules: Rules::new(&mut object, config.reach.not_enrolled())?,
            sockets: Arc::new(MarkedSockets::new(&mut object)?),
            counters: Arc::new(KernelCounters::new(&mut object)?),
            object,
        };
        Ok(capture)
    }

    /// Captures what processes in `cgroup` and below it connect to, from now on. Never to be called
    /// for a cgroup below another: what is redirected once must not be looked at again. The cgroup
    /// `key` is the same for all that an agent attaches, and for the next agent that takes over.
    ///
    /// # Errors
    /// The cgroup cannot be opened, or the kernel refuses a program.
    pub fn attach(&mut self, cgroup: &Path, key: &Path) -> Result<Attachment, CaptureError> {
        self.object.attach(cgroup, key)
    }

    /// The hooks of `cgroup`, to check that what [`attach`](Self::attach) put there still is.
    ///
    /// # Errors
    /// The cgroup cannot be opened, or the kernel does not tell about a program.
    pub fn hooks(&mut self, cgroup: &Path) -> Result<Hooks, CaptureError> {
        Hooks::new(self.object.ebpf(), cgroup)
    }

    /// Captures nothing in the calling thread's network namespace from now on, but for the cgroups
    /// that are [selected](Rules::set_selected).
    ///
    /// # Errors
    /// It cannot be told which namespace that is.
    pub fn spare_own_namespace(&mut self) -> Result<(), CaptureError> {
        let cookie = netns::cookie(&mut self.object, &self.sockets)?;
        // The inode of a namespace has 32 bits.
        let inode = u32::try_from(Netns::own()?.id().inode()).unwrap_or_default();
        self.rules.spare(cookie, inode)
    }

    /// Opens the agent's listeners in the calling thread's network namespace and lets
    /// connections made in it be redirected to them. To be called on a tokio runtime.
    ///
    /// # Errors
    /// No loopback port could be bound or marked.
    pub fn enrol(&mut self) -> Result<Enrolled, CaptureError> {
        let cookie = netns::cookie(&mut self.object, &self.sockets)?;
        let (listeners, [port_v4, port_v6]) = listener::open(cookie, &self.sockets, &self.flows)?;
        let ports = Listeners {
            port_v4,
            port_v6,
            dns_v4: [0; FRONTS],
            dns_v6: [0; FRONTS],
        };
        // Only now that all of them listen.
        self.rules.enrol(cookie, ports)?;
        Ok(Enrolled {
            cookie,
            ports,
            listeners,
        })
    }

    /// The same in another network namespace.
    ///
    /// # Errors
    /// It cannot be entered; else as [`enrol`](Self::enrol).
    pub fn enrol_in(&mut self, namespace: &Netns) -> Result<Enrolled, CaptureError> {
        let runtime = tokio::runtime::Handle::current();
        namespace.within(|| {
            let _runtime = runtime.enter();
            self.enrol()
        })
    }

    /// Opens the agent's fronts in the network namespace of this cookie, the calling thread's or another,
    /// which has these listeners, and lets queries made in it be redirected to them. To be called on a
    /// tokio runtime.
    ///
    /// # Errors
    /// It cannot be entered, or no loopback port could be bound or marked.
    pub fn open_fronts(
        &mut self,
        (cookie, namespace): (u64, Option<&Netns>),
        ports: &mut Listeners,
    ) -> Result<Vec<Front>, CaptureError> {
        let runtime = tokio::runtime::Handle::current();
        let open = || {
            let _runtime = runtime.enter();
            let open = |address| front::open(cookie, address, &self.sockets, &self.queries);
            Ok([
                open(Ipv4Addr::LOCALHOST.into())?,
                open(Ipv6Addr::LOCALHOST.into())?,
            ])
        };
        let [(mut fronts, dns_v4), (on_v6, dns_v6)] = match namespace {
            Some(namespace) => namespace.within(open)?,
            None => open()?,
        };
        fronts.extend(on_v6);
        let with_fronts = Listeners {
            dns_v4,
            dns_v6,
            ..*ports
        };
        self.rules.enrol(cookie, with_fronts)?;
        *ports = with_fronts;
        Ok(fronts)
    }

    /// Has no more queries redirected in the namespace of this cookie. What was already still arrives
    /// at its fronts; they are to be closed.
    ///
    /// # Errors
    /// The map cannot be changed.
    pub fn close_fronts(&mut self, cookie: u64, ports: &mut Listeners) -> Result<(), CaptureError> {
        let without_fronts = Listeners {
            dns_v4: [0; FRONTS],
            dns_v6: [0; FRONTS],
            ..*ports
        };
        self.rules.enrol(cookie, without_fronts)?;
        *ports = without_fronts;
        Ok(())
    }

    /// Has nothing more redirected in the namespace of this cookie. What was already still arrives
    /// at its listeners; they are to be closed.
    ///
    /// # Errors
    /// The map cannot be changed.
    pub fn dismiss(&mut self, cookie: u64) -> Result<(), CaptureError> {
        self.rules.dismiss(cookie)
    }

    /// Where the programs pass on what workloads are answered. To be called once, on a runtime.
    ///
    /// # Errors
    /// Its map is not there, or taken already.
    pub fn answers(&mut self) -> Result<Answers, CaptureError> {
        Answers::new(&mut self.object)
    }

    /// Where the programs tell of namespaces that are not enrolled. To be called once, on a runtime.
    ///
    /// # Errors
    /// Its map is not there, or taken already.
    pub fn newcomers(&mut self) -> Result<Newcomers, CaptureError> {
        Newcomers::new(&mut self.object)
    }

    /// What the programs go by; to be set before [`attach`](Self::attach) and at every change of
    /// policy.
    pub fn rules(&mut self) -> &mut Rules {
        &mut self.rules
    }

    /// Makes sockets that are never captured.
    pub fn sockets(&self) -> Arc<MarkedSockets> {
        Arc::clone(&self.sockets)
    }

    /// Redirected connections that were not accepted yet.
    pub fn flows(&self) -> Arc<Flows> {
        Arc::clone(&self.flows)
    }

    /// What the programs counted.
    pub fn counters(&self) -> Arc<KernelCounters> {
        Arc::clone(&self.counters)
    }

    /// Passes on what the programs log, for ever. To be called and spawned on a runtime.
    ///
    /// # Errors
    /// The log map is not there or cannot be polled.
    pub fn logs(&mut self) -> Result<impl Future<Output = ()> + Send + use<>, CaptureError> {
        logs::forward(self.object.ebpf())
    }
}
