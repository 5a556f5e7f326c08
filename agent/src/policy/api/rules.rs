//! What an API server can be told to refuse: rules in CEL beside the types, for what the agent refuses
//! anyway, so that `kubectl apply` says it at once.
//!
//! Only what one object tells by itself, and only functions that Kubernetes has had since rules in CEL
//! are stable (1.29).

use std::borrow::Cow;

use serde::Serialize;

/// One of `x-kubernetes-validations`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Rule {
    /// What holds, in CEL.
    pub(super) rule: Cow<'static, str>,
    /// What is said where it does not.
    pub(super) message: Cow<'static, str>,
}

const fn rule(rule: &'static str, message: &'static str) -> Rule {
    Rule {
        rule: Cow::Borrowed(rule),
        message: Cow::Borrowed(message),
    }
}

/// The longest list whose items have rules. An API server takes rules only where it can tell that they
/// cost little; in files lists have no such end.
pub(super) const MOST_ITEMS: u32 = 4096;

/// The longest name of a host, with a dot at its end and `*.` before.
pub(super) const LONGEST_HOST: u32 = 256;

/// The longest `NAMESPACE/NAME`.
pub(super) const LONGEST_NAME: u32 = 63 + 1 + 253;

const NO_URL: Rule = rule(
    "!self.contains('/') && !self.contains('@')",
    "a URL is not a host: give the name or the address alone, and the port in the field for ports",
);
/// What has two colons is an address of IPv6.
const NO_PORT: Rule = rule(
    "!self.contains(':') || self.indexOf(':') != self.lastIndexOf(':')",
    "a port does not belong here: give the host alone",
);
const NOT_EMPTY: Rule = rule("size(self) > 0", "it is empty");

pub(super) const HOST: [Rule; 3] = [NOT_EMPTY, NO_URL, NO_PORT];

pub(super) const HOST_PATTERN: [Rule; 4] = [
    NOT_EMPTY,
    NO_URL,
    rule(
        "!self.contains(':')",
        "expected a name or `*.` and a name: a port does not belong here, and addresses of a service \
         stand in `spec.addresses` of its ServiceEntry",
    ),
    rule(
        "self.matches('^([*]|([*][.])?[^*]+)$')",
        "a `*` stands alone, or for the whole first part, as in `*.example.com`",
    ),
];

pub(super) const TARGET_HOST: [Rule; 4] = [
    NOT_EMPTY,
    NO_URL,
    NO_PORT,
    rule(
        "self in ['AUTO_SNI', 'ORIGINAL_DST'] || !(self.upperAscii() in ['AUTO_SNI', 'ORIGINAL_DST'])",
        "`AUTO_SNI` and `ORIGINAL_DST` are written in capitals",
    ),
];

pub(super) const ADDRESS: [Rule; 1] = [rule(
    "self.matches('^[0-9a-fA-F:.]+(/[0-9]+)?$')",
    "expected an address, or a range such as 203.0.113.0/24",
)];

pub(super) const EXPORT_TO: [Rule; 1] = [rule(
    "self.matches('^([*.~]|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$')",
    "expected a namespace, or `.` for its own, `*` for all, `~` for none",
)];

pub(super) const SECRET: [Rule; 1] = [rule(
    "self.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[a-z0-9]([-.a-z0-9]*[a-z0-9])?$')",
    "expected the name of a Secret: `NAME` or `NAMESPACE/NAME`",
)];

pub(super) const TUNNEL: [Rule; 4] = [
    rule(
        "!has(self.action) || self.action == 'Tunnel' || !(has(self.proxy) || has(self.proxies) || \
         has(self.targetHost) || has(self.targetPort) || has(self.noProxy) || has(self.failureMode) || \
         has(self.dns) || has(self.onMismatch) || has(self.onECH) || has(self.echKeys))",
        "proxy, proxies, targetHost, targetPort, noProxy, failureMode, dns, onMismatch, onECH and echKeys \
         are for `action: Tunnel`",
    ),
    rule(
        "!(has(self.proxy) && has(self.proxies))",
        "give either `proxy` or `proxies`",
    ),
    rule(
        "(has(self.action) && self.action != 'Tunnel') || has(self.proxy) || has(self.proxies)",
        "proxy is missing; `action: Direct` and `action: Deny` need none",
    ),
    rule(
        "!has(self.proxies) || size(self.proxies) > 0",
        "proxies is empty: give at least one proxy",
    ),
];

const PORT_OF_ADDRESS: Rule = rule(
    "has(self.port) || !self.host.matches('^[0-9.]+$|:')",
    "a proxy that is given by its address needs a port",
);

pub(super) const PROXY: [Rule; 3] = [
    PORT_OF_ADDRESS,
    rule(
        "!has(self.healthCheck) || !has(self.dialFrom) || self.dialFrom == 'node'",
        "with `dialFrom: workload` there is nowhere to check from: `healthCheck` is for what the node \
         dials",
    ),
    rule(
        "!has(self.plainHTTP) || self.plainHTTP != 'ABSOLUTE_FORM' || !has(self.protocol) || \
         self.protocol == 'HTTP-CONNECT'",
        "`plainHTTP: ABSOLUTE_FORM` needs a proxy with the protocol HTTP-CONNECT",
    ),
];

pub(super) const TUNNEL_PROXY: [Rule; 1] = [PORT_OF_ADDRESS];

pub(super) const TLS: [Rule; 3] = [
    rule(
        "self.mode == 'MUTUAL' || !(has(self.clientCertificate) || has(self.privateKey))",
        "a certificate of our own is for mode MUTUAL",
    ),
    rule(
        "self.mode == 'DISABLE' || !has(self.credentialName) || \
         !(has(self.clientCertificate) || has(self.privateKey))",
        "give either files or `credentialName`",
    ),
    rule(
        "self.mode != 'MUTUAL' || has(self.credentialName) || \
         (has(self.clientCertificate) && has(self.privateKey))",
        "mode MUTUAL needs `credentialName`, or both `clientCertificate` and `privateKey`",
    ),
];

pub(super) const TRAFFIC_POLICY: [Rule; 2] = [
    rule(
        "!has(self.proxy) || has(self.tunnel)",
        "proxy is the proxy of a `tunnel`, and there is none",
    ),
    rule(
        "!has(self.proxy) || !has(self.tunnel) || !has(self.tunnel.proxy)",
        "`tunnel` has a proxy as well: give one of them",
    ),
];

pub(super) const SERVICE_ENTRY: [Rule; 1] = [rule(
    "size(self.hosts) > 0",
    "hosts is empty: give at least one",
)];
