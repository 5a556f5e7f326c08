//! Options that several verbs have.

use std::net::SocketAddr;
use std::num::{NonZero, NonZeroU16};
use std::path::PathBuf;
use std::thread::available_parallelism;

use anyhow::Context;
use ipnet::IpNet;
use tokio::runtime::{Builder, Runtime};

use super::Failure;
use crate::app::TraceSettings;
use crate::kubernetes::ClusterConfig;
use crate::limits::Limits;
use crate::name::Target;
use crate::policy::{Namespace, Paths, VirtualRange};
use crate::telemetry::logging::{self, LogConfig, LogFormat, LogHandle, LogOutput};

/// The namespace that `deploy/kubernetes` makes.
const ROOT_NAMESPACE: &str = "underpass-system";

#[derive(clap::Args)]
pub(super) struct LogOptions {
    /// How log lines look
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,

    /// Which log lines are written: off, error, warn, info, debug, trace, or a filter such as
    /// `info,underpass::capture=debug`
    #[arg(long, value_name = "FILTER", env = "UNDERPASS_LOG")]
    log_level: Option<String>,

    /// Write the log to this file instead of standard error
    #[arg(long, value_name = "PATH")]
    log_file: Option<PathBuf>,
}

impl LogOptions {
    /// Starts logging, at `default_level` unless the user said otherwise.
    pub(super) fn start(self, default_level: &str) -> Result<LogHandle, Failure> {
        logging::init(&LogConfig {
            format: self.log_format,
            filter: self.log_level.unwrap_or_else(|| default_level.to_owned()),
            output: self.log_file.map_or(LogOutput::Stderr, LogOutput::File),
        })
        .map_err(Failure::usage)
    }

    /// Whether the eBPF programs should log each decision.
    pub(super) fn verbose(&self) -> bool {
        self.log_level
            .as_deref()
            .is_some_and(|level| level.contains("debug") || level.contains("trace"))
    }
}

/// What serves connections.
#[derive(Clone, Copy, clap::Args)]
pub(super) struct RuntimeOptions {
    /// Threads that serve connections [default: half of the processors that the agent may use]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroU16>,
}

impl RuntimeOptions {
    /// The runtime, with as many threads.
    pub(super) fn runtime(self) -> Result<Runtime, Failure> {
        let threads = self.threads.map_or_else(threads, |n| n.get().into());
        let mut runtime = Builder::new_multi_thread();
        runtime.worker_threads(threads).enable_all();
        Ok(runtime.build().context("cannot start the runtime")?)
    }
}

/// The other half is the workloads'. Besides, the fewer threads there are, the more often what
/// belongs to a connection is in the caches of the processor that serves it.
fn threads() -> usize {
    available_parallelism().map_or(1, NonZero::get).div_ceil(2)
}

/// Where Secrets are besides those among the documents.
#[derive(Clone, clap::Args)]
pub(super) struct SecretOptions {
    /// Directories of Secrets: each directory in them is a Secret of that name, with a file for
    /// each key, as Kubernetes mounts it; may be given several times
    #[arg(long, value_name = "DIR")]
    secrets: Vec<PathBuf>,
}

impl SecretOptions {
    /// Where policy is.
    pub(super) fn with(self, policy: Vec<PathBuf>) -> Paths {
        Paths {
            policy,
            secrets: self.secrets,
        }
    }
}

/// Whether documents are those of a cluster.
#[derive(Clone, clap::Args)]
pub(super) struct ScopeOptions {
    /// Read the documents as the agent of a Kubernetes node does: each namespace has a say about its
    /// own workloads only
    #[arg(long)]
    kubernetes: bool,

    /// With --kubernetes, the namespace whose documents are for all workloads
    #[arg(long, value_name = "NAMESPACE", default_value = ROOT_NAMESPACE)]
    root_namespace: Namespace,
}

impl ScopeOptions {
    /// The namespace whose documents are for all, if others are not.
    pub(super) fn root_namespace(self) -> Option<Namespace> {
        self.kubernetes.then_some(self.root_namespace)
    }
}

/// The cluster whose API policy comes from.
#[derive(clap::Args)]
pub(super) struct KubernetesOptions {
    /// Take policy from the API of the cluster that this node is part of, and from there who
    /// workloads are
    #[arg(long)]
    kubernetes: bool,

    /// The node that this is, for --kubernetes: the name of its Node
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,

    /// Reach the API as this file says [default: by the service account of the pod]
    #[arg(long, value_name = "PATH", requires = "kubernetes")]
    kubeconfig: Option<PathBuf>,

    /// With --kubernetes, the namespace whose documents are for all workloads; those of others are
    /// for their own
    #[arg(long, value_name = "NAMESPACE", default_value = ROOT_NAMESPACE)]
    root_namespace: Namespace,
}

impl KubernetesOptions {
    /// Whether the node is part of a cluster.
    pub(super) fn is_wanted(&self) -> bool {
        self.kubernetes
    }

    /// The cluster, if there is to be one.
    pub(super) fn cluster(self) -> Result<Option<ClusterConfig>, Failure> {
        if !self.kubernetes {
            return Ok(None);
        }
        if !cfg!(feature = "kubernetes") {
            let reason = "--kubernetes: this was built without the feature kubernetes";
            return Err(Failure::usage(anyhow::anyhow!(reason)));
        }
        let node = self.node_name.filter(|name| !name.is_empty());
        let node = node.context(
            "--kubernetes needs the name of the node: give --node-name, or set NODE_NAME, in a pod \
             from the field spec.nodeName",
        );
        Ok(Some(ClusterConfig {
            kubeconfig: self.kubeconfig,
            node: node.map_err(Failure::usage)?,
            root_namespace: self.root_namespace,
        }))
    }
}

/// Where spans go.
#[derive(clap::Args)]
pub(super) struct TraceOptions {
    /// Send spans of connections and requests to the collector at this URL, by OTLP (http/protobuf);
    /// /v1/traces is appended
    ///
    /// OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_CERTIFICATE, OTEL_SERVICE_NAME,
    /// OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG count with it. `run`
    /// takes the endpoint from OTEL_EXPORTER_OTLP_ENDPOINT as well; in `exec` the environment is the
    /// command's.
    #[cfg(feature = "otlp")]
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
}

impl TraceOptions {
    /// Where spans go, if anywhere. With `by_environment`, it alone may say so.
    #[cfg(feature = "otlp")]
    pub(super) fn settings(&self, by_environment: bool) -> Result<Option<TraceSettings>, Failure> {
        let option = self.otlp_endpoint.as_deref();
        TraceSettings::read(option, by_environment, |name| std::env::var(name))
            .map_err(Failure::usage)
    }

    /// Nowhere, and that is told to whoever expects otherwise.
    #[cfg(not(feature = "otlp"))]
    pub(super) fn settings(&self, by_environment: bool) -> Result<Option<TraceSettings>, Failure> {
        let endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT";
        if by_environment && std::env::var_os(endpoint).is_some() {
            tracing::warn!("{endpoint} means nothing: this was built without the feature otlp");
        }
        Ok(None)
    }
}

/// How what a command found is printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(super) enum OutputFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

#[derive(clap::Args)]
pub(super) struct CaptureOptions {
    /// Addresses that are internal besides those that always are; may be given several times
    #[arg(long, value_name = "CIDR")]
    pub(super) internal_cidr: Vec<IpNet>,

    /// Never capture connections to this address and port, whatever policy says, and whether the agent
    /// lives or not; may be given several times [with --kubernetes, the API server always is one]
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) never_capture: Vec<Target>,

    /// Virtual addresses, which the agent tells workloads where policy has it answer DNS queries: a
    /// range of IPv4, of IPv6, or one of each [default: 240.240.0.0/16, fd75:6e64:6572:7061::/64]
    #[arg(long, value_name = "CIDR")]
    virtual_cidr: Vec<IpNet>,

    /// Connections at a time; past them new ones are reset
    #[arg(long, value_name = "N", default_value_t = 65_536,
          value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    max_connections: u32,

    /// Connections at a time of one workload, that is one cgroup; past them new ones are reset; 0
    /// for no limit [default: a quarter of --max-connections for `run`, no limit for `exec`]
    #[arg(long, value_name = "N")]
    max_connections_per_workload: Option<u32>,

    /// Connections at a time whose tunnel is not open yet; past them new ones are reset; 0 for no
    /// limit
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_pending_tunnels: u32,
}

/// The virtual addresses of these ranges, and of the default where there is none of a family.
pub(super) fn virtual_range(nets: &[IpNet]) -> Result<VirtualRange, Failure> {
    let range = VirtualRange::new(nets).context("--virtual-cidr");
    range.map_err(Failure::usage)
}

impl CaptureOptions {
    /// The virtual addresses.
    pub(super) fn virtual_range(&self) -> Result<VirtualRange, Failure> {
        virtual_range(&self.virtual_cidr)
    }

    /// The limits for a node, where one workload must not use up what is for all. A quarter: it
    /// takes four that run wild to shut out the others, and one that is alone still has more than
    /// most ever need.
    pub(super) fn limits_of_node(&self) -> Limits {
        self.limits((self.max_connections / 4).max(1))
    }

    /// The limits for one command, which is the only workload there is.
    pub(super) fn limits_of_command(&self) -> Limits {
        self.limits(0)
    }

    fn limits(&self, per_workload: u32) -> Limits {
        Limits {
            connections: self.max_connections,
            per_workload: self.max_connections_per_workload.unwrap_or(per_workload),
            pending_tunnels: self.max_pending_tunnels,
        }
    }
}

/// The endpoints of `exec`: none unless asked for.
#[derive(clap::Args)]
pub(super) struct OptionalEndpoints {
    /// Serve /metrics here
    #[arg(long, value_name = "ADDR")]
    pub(super) metrics_addr: Option<SocketAddr>,

    /// Serve /healthz/ready and /healthz/live here
    #[arg(long, value_name = "ADDR")]
    pub(super) ready_addr: Option<SocketAddr>,

    /// Serve /status, /config_dump, /connections and /logging here
    #[arg(long, value_name = "ADDR")]
    pub(super) admin_addr: Option<SocketAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_threads_as_are_asked_for_or_half_of_the_processors() {
        let threads = |threads| {
            let runtime = RuntimeOptions { threads }.runtime().unwrap();
            runtime.metrics().num_workers()
        };
        assert_eq!(threads(NonZeroU16::new(3)), 3);
        let processors = available_parallelism().unwrap().get();
        assert_eq!(threads(None), processors / 2 + processors % 2);
    }
}
