//! The Debian packages that building and testing need, and which of them are to be installed.

use std::collections::HashSet;

/// Something that must be installed.
#[derive(Debug)]
pub(super) struct Package {
    /// Packages that provide it, the preferred one first; one of them is enough.
    pub(super) names: &'static [&'static str],
    /// The program that shows on other systems that it is there.
    pub(super) program: Option<&'static str>,
    /// The service that the package starts, which we do not want to run.
    pub(super) service: Option<&'static str>,
    /// What it is needed for.
    pub(super) reason: &'static str,
    /// Part of the toolchain for the eBPF programs.
    pub(super) bpf: bool,
}

impl Package {
    pub(super) const fn new(names: &'static [&'static str], reason: &'static str) -> Self {
        Self {
            names,
            program: None,
            service: None,
            reason,
            bpf: false,
        }
    }

    const fn program(self, program: &'static str) -> Self {
        Self {
            program: Some(program),
            ..self
        }
    }

    const fn service(self, service: &'static str) -> Self {
        Self {
            service: Some(service),
            ..self
        }
    }

    const fn bpf(self) -> Self {
        Self { bpf: true, ..self }
    }
}

/// Everything beyond rustup's stable toolchain.
pub(super) const PACKAGES: &[Package] = &[
    Package::new(&["gcc"], "links every program, compiles aws-lc").program("cc"),
    Package::new(&["g++"], "compiles libFuzzer").program("c++"),
    Package::new(
        &["libc6-dev"],
        "headers for aws-lc, start files for the linker",
    ),
    Package::new(
        &["ca-certificates"],
        "trusted roots, for cargo and for tests",
    ),
    Package::new(
        &["rustc-web"],
        "compiler for the eBPF programs, brings its LLVM along",
    )
    .bpf(),
    Package::new(
        &["libstd-rust-web-dev-bpf"],
        "core library compiled for BPF",
    )
    .bpf(),
    // Only the programs of Apache and tinyproxy: without their services there is none to keep still.
    Package::new(
        &["apache2-bin"],
        "forward proxy of tests over TLS and HTTP/2",
    )
    .program("apache2"),
    Package::new(&["bind9-dnsutils"], "DNS client of tests").program("dig"),
    Package::new(&["curl"], "workload of the demo and of tests").program("curl"),
    Package::new(&["dnsmasq-base"], "name server of the test world").program("dnsmasq"),
    Package::new(&["iproute2"], "network namespaces of demo and tests").program("ip"),
    Package::new(
        &["netcat-openbsd", "netcat-traditional"],
        "workload of tests",
    )
    .program("nc"),
    Package::new(
        &["iptables"],
        "redirects to the agent's peers in the benchmark",
    )
    .program("iptables-legacy"),
    Package::new(
        &[
            "nginx-light",
            "nginx-core",
            "nginx-full",
            "nginx-extras",
            "nginx",
        ],
        "web server of tests",
    )
    .program("nginx")
    .service("nginx.service"),
    Package::new(&["nghttp2-proxy"], "HTTP/2 forward proxy of tests")
        .program("nghttpx")
        .service("nghttpx.service"),
    Package::new(&["nodejs"], "web server of tests").program("node"),
    Package::new(&["openssh-client"], "workload of tests").program("ssh"),
    Package::new(&["openssl"], "certificates and TLS workload of tests").program("openssl"),
    Package::new(&["postgresql-client"], "workload of tests").program("psql"),
    Package::new(&["procps"], "processes as tests see them").program("ps"),
    Package::new(&["python3"], "workload of tests that opens unusual sockets").program("python3"),
    Package::new(
        &["prometheus"],
        "asks the agent's metrics what dashboards ask",
    )
    .program("prometheus")
    .service("prometheus.service"),
    Package::new(&["python3-grpcio"], "gRPC client and server of tests"),
    Package::new(&["python3-h2"], "HTTP/2 client of tests, frame by frame"),
    Package::new(
        &["python3-websockets"],
        "WebSocket client and server of tests",
    ),
    Package::new(
        &["python3-venv"],
        "brings pip, which gets Envoy and curl with HTTP/3",
    ),
    Package::new(&["redsocks"], "peer of the agent in the benchmark")
        .program("redsocks")
        .service("redsocks.service"),
    Package::new(&["runc"], "runs the container image in tests").program("runc"),
    Package::new(&["squid", "squid-openssl"], "forward proxy of tests")
        .program("squid")
        .service("squid.service"),
    Package::new(&["systemd"], "reads the unit in tests").program("systemd-analyze"),
    Package::new(&["tinyproxy-bin"], "forward proxy of tests").program("tinyproxy"),
    Package::new(&["umoci"], "unpacks the container image in tests").program("umoci"),
    Package::new(&["util-linux"], "namespaces of demo and tests").program("unshare"),
];

/// Packages that `rustc-web` cannot be installed beside.
pub(super) const CONFLICTING: &[&str] = &["rustc", "rustc-mozilla", "rustup"];

/// Which packages are installed, from `dpkg-query --showformat='${Package} ${db:Status-Status}\n'`.
pub(super) fn installed(dpkg_query: &str) -> HashSet<&str> {
    dpkg_query
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect()
}

/// The package that conflicts with our compiler, where that compiler is not installed.
pub(super) fn conflict(installed: &HashSet<&str>) -> Option<&'static str> {
    if installed.contains("rustc-web") {
        return None;
    }
    CONFLICTING
        .iter()
        .copied()
        .find(|name| installed.contains(name))
}

/// Which of `packages` no installed package provides.
pub(super) fn missing<'a>(
    packages: impl IntoIterator<Item = &'a Package>,
    installed: &HashSet<&str>,
) -> Vec<&'a Package> {
    packages
        .into_iter()
        .filter(|package| !package.names.iter().any(|name| installed.contains(name)))
        .collect()
}

/// Which packages can be had, from `apt-cache policy`.
pub(super) fn candidates(apt_cache_policy: &str) -> HashSet<&str> {
    let mut candidates = HashSet::new();
    let mut package = "";
    for line in apt_cache_policy.lines() {
        if let Some(candidate) = line.trim_start().strip_prefix("Candidate: ") {
            if candidate != "(none)" {
                candidates.insert(package);
            }
        } else if !line.starts_with(' ') {
            package = line.trim_end_matches(':');
        }
    }
    candidates
}

/// The name under which to install a package: the first that can be had, else the preferred one,
/// so that apt names it in its error.
pub(super) fn choose(package: &Package, candidates: &HashSet<&str>) -> &'static str {
    package
        .names
        .iter()
        .copied()
        .find(|name| candidates.contains(name))
        .unwrap_or(package.names[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: Package = Package::new(&["squid", "squid-openssl"], "forward proxy");

    #[test]
    fn only_what_is_fully_installed_counts() {
        let query = "gcc installed\nsquid config-files\nnginx-light unpacked\ncurl not-installed\n";
        assert_eq!(installed(query), HashSet::from(["gcc"]));
    }

    #[test]
    fn one_of_the_names_is_enough() {
        assert!(missing(&[PROXY], &HashSet::from(["squid-openssl"])).is_empty());
        assert_eq!(missing(&[PROXY], &HashSet::from(["squid-common"])).len(), 1);
    }

    #[test]
    fn the_first_name_that_can_be_had_is_chosen() {
        assert_eq!(
            choose(&PROXY, &HashSet::from(["squid-openssl", "squid"])),
            "squid"
        );
        assert_eq!(
            choose(&PROXY, &HashSet::from(["squid-openssl"])),
            "squid-openssl"
        );
        assert_eq!(choose(&PROXY, &HashSet::new()), "squid");
    }

    #[test]
    fn candidates_are_read() {
        let policy = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n  \
                      Version table:\n     1.96.0+dfsg1-1~deb12u2 500\n\
                      nginx-light:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n";
        assert_eq!(candidates(policy), HashSet::from(["rustc-web"]));
    }

    #[test]
    fn another_compiler_of_the_distribution_is_left_alone() {
        assert_eq!(conflict(&HashSet::from(["rustc", "cargo"])), Some("rustc"));
        assert_eq!(conflict(&HashSet::from(["rustup"])), Some("rustup"));
        assert_eq!(conflict(&HashSet::from(["rustc-web"])), None);
        assert_eq!(conflict(&HashSet::new()), None);
    }

    #[test]
    fn no_package_is_named_twice() {
        let mut seen = HashSet::new();
        for name in PACKAGES.iter().flat_map(|package| package.names) {
            assert!(seen.insert(name), "{name}");
        }
    }
}
