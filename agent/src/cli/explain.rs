//! `underpass explain`: what a policy decides about a connection, and why.

mod destination;
mod report;
mod target;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::options::{self, OutputFormat, ScopeOptions, SecretOptions};
use super::{EXIT_USAGE, Failure, complain, say};
use crate::name::HostName;
use crate::policy::{self, Options};
use crate::workload::Workload;
use destination::{Destination, Said};
use report::Report;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Where the connection goes: HOST:PORT or IP:PORT
    #[arg(required = true, value_name = "DEST")]
    destinations: Vec<Destination>,

    /// Policy files, and directories of them
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    policy: Vec<PathBuf>,

    #[command(flatten)]
    secrets: SecretOptions,

    #[command(flatten)]
    scope: ScopeOptions,

    /// The server name that its TLS sends
    #[arg(long, value_name = "NAME", conflicts_with = "host")]
    sni: Option<HostName>,

    /// Its TLS offers to hide its server name (ECH). Of what the program has resolved, DEST is known if
    /// it is a name
    #[arg(long, conflicts_with = "host")]
    ech: bool,

    /// The Host that its HTTP asks for
    #[arg(long, value_name = "NAME")]
    host: Option<HostName>,

    /// The address that its program connects to, where DEST is a name [default: what the name
    /// resolves to on this machine]
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,

    /// Addresses that are internal besides those that always are; may be given several times
    #[arg(long, value_name = "CIDR")]
    internal_cidr: Vec<IpNet>,

    /// Virtual addresses, as the agent is told
    #[arg(long, value_name = "CIDR")]
    virtual_cidr: Vec<IpNet>,

    #[command(flatten)]
    workload: WorkloadOptions,

    /// What to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
}

/// Who connects; what is not given is not known.
#[derive(clap::Args)]
struct WorkloadOptions {
    /// The namespace of the pod that connects
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,

    /// The service account of the pod that connects
    #[arg(long, value_name = "NAME")]
    service_account: Option<String>,

    /// A label of the pod that connects; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,

    /// The systemd unit that connects
    #[arg(long, value_name = "NAME")]
    unit: Option<String>,

    /// The cgroup that connects, from the root of the hierarchy
    #[arg(long, value_name = "PATH")]
    cgroup: Option<String>,

    /// With --kubernetes, what connects is on the network of the node: a pod with hostNetwork, or
    /// in no pod
    #[arg(long, requires = "kubernetes")]
    host_network: bool,
}

impl WorkloadOptions {
    fn workload(&self) -> Workload {
        let known = match &self.cgroup {
            Some(path) => Workload::in_cgroup(path),
            None => Workload::default(),
        };
        Workload {
            unit: self.unit.as_deref().map(Into::into).or(known.unit),
            namespace: self.namespace.as_deref().map(Into::into),
            service_account: self.service_account.as_deref().map(Into::into),
            host_network: self.host_network,
            labels: self.label.iter().cloned().collect(),
            ..known
        }
    }
}

pub(super) fn main(args: Args) -> Result<ExitCode, Failure> {
    let paths = args.secrets.with(args.policy);
    let options = Options {
        internal_cidrs: args.internal_cidr,
        virtual_range: options::virtual_range(&args.virtual_cidr)?,
        root_namespace: args.scope.root_namespace(),
    };
    let policy = match policy::load(&paths, &options, None).policy {
        Ok(policy) => policy,
        Err(error) => {
            complain(&error);
            return Ok(ExitCode::from(EXIT_USAGE));
        }
    };
    let workload = args.workload.workload();
    let view = policy.view(&workload);
    let mut reports: Vec<Value> = Vec::new();
    for (index, destination) in args.destinations.iter().enumerate() {
        let said = Said {
            sni: args.sni.as_ref(),
            ech: args.ech,
            host: args.host.as_ref(),
        };
        let assumed = destination.assume((&policy, &view), args.address, &said);
        let assumed = assumed.map_err(Failure::usage)?;
        let explanation = policy.explain(&assumed.facts, &workload);
        let report = Report {
            destination,
            assumed: &assumed,
            explanation: &explanation,
        };
        match args.output {
            OutputFormat::Json => reports.push(report.to_json()),
            OutputFormat::Text => {
                let gap = if index == 0 { "" } else { "\n" };
                say(&format_args!("{gap}{report}"));
            }
        }
    }
    if args.output == OutputFormat::Json {
        say(&format_args!("{:#}", json!(reports)));
    }
    Ok(ExitCode::SUCCESS)
}

fn label(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| "expected KEY=VALUE".to_owned())
}
