//! What the kernel side is told to capture.

use crate::name::OriginalDst;
use crate::policy::testing::{compile, entry, rule, through, tunnel, warnings};
use crate::policy::{Captured, Policy, Side};

/// `ports; SIDE SIDE ...`: the sides of some addresses, `-` for what is not captured.
fn plan(policy: &Policy, addresses: &[&str]) -> String {
    let sides = sides(policy, addresses, |captured| captured.tcp);
    format!("{}; {sides}", policy.capture_plan().ports)
}

fn sides(policy: &Policy, addresses: &[&str], pick: impl Fn(Captured) -> Side) -> String {
    let plan = policy.capture_plan();
    let sides = addresses.iter().map(|address| {
        let address = OriginalDst(format!("{address}:1").parse().unwrap()).ip();
        let around = plan
            .prefixes
            .iter()
            .filter(|(net, _)| net.contains(&address));
        let longest = around.max_by_key(|(net, _)| net.prefix_len());
        match pick(longest.unwrap().1) {
            Side::External => "closed",
            Side::Open => "open",
            Side::Internal => "-",
            Side::Virtual => "virtual",
        }
    });
    sides.collect::<Vec<_>>().join(" ")
}

fn at(name: &str, address: &str, more: &str) -> String {
    entry(
        &format!("{name}, labels: {{t: {name}}}"),
        &format!("hosts: [{name}.test], addresses: ['{address}'], {more}"),
    )
}

fn named(name: &str, more: &str) -> String {
    entry(
        &format!("{name}, labels: {{t: {name}}}"),
        &format!("hosts: [{name}.test], {more}"),
    )
}

fn selecting(label: &str, more: &str) -> String {
    through(
        &format!("to-{label}"),
        &format!("selector: {{matchLabels: {{t: {label}}}}}, {more}"),
    )
}

fn action(label: &str, action: &str) -> String {
    tunnel(
        &format!("to-{label}"),
        &format!("action: {action}, selector: {{matchLabels: {{t: {label}}}}}"),
    )
}

const HTTPS: &str = "ports: [{number: 443}]";
const HTTP: &str = "ports: [{number: 80}]";

#[test]
fn nothing_is_captured_but_what_rules_are_about() {
    let here = ["203.0.113.7", "203.0.113.8", "[2001:db8::1]", "10.1.2.3"];
    for (what, text, expected) in [
        ("nothing", String::new(), "none; - - - -"),
        (
            "a service without a rule",
            at("s", "203.0.113.7", HTTPS),
            "none; - - - -",
        ),
        (
            "everything",
            through("all", ""),
            "1-65535; closed closed closed -",
        ),
        (
            "everything, open",
            through("all", "failureMode: open"),
            "1-65535; open open open -",
        ),
        (
            "an address and its ports",
            at("s", "203.0.113.7", HTTPS) + &selecting("s", ""),
            "443; closed - - -",
        ),
        (
            "an address on every port",
            at("s", "203.0.113.7", "") + &selecting("s", "failureMode: open"),
            "1-65535; open - - -",
        ),
        (
            "an address that is internal by its nature",
            at("s", "10.1.0.0/16", HTTPS) + &selecting("s", ""),
            "443; - - - closed",
        ),
        (
            "a name, which may be at any address",
            named("s", HTTPS) + &selecting("s", ""),
            "443; closed closed closed -",
        ),
        (
            "a host, on the ports that are declared for it",
            named("s", HTTPS) + &rule("r", "s.test", ""),
            "443; closed closed closed -",
        ),
        (
            "a host",
            rule("r", "s.test", ""),
            "1-65535; closed closed closed -",
        ),
        (
            "an address that is let pass, beside everything",
            at("s", "203.0.113.7", "") + &action("s", "Direct") + &through("all", ""),
            "1-65535; open closed closed -",
        ),
        (
            "open beside closed, by address",
            at("s", "203.0.113.7", "")
                + &selecting("s", "failureMode: open")
                + &at("r", "203.0.113.8", "")
                + &selecting("r", ""),
            "1-65535; open closed - -",
        ),
        (
            "open beside closed, by name",
            named("s", HTTPS)
                + &selecting("s", "failureMode: open")
                + &named("r", HTTP)
                + &selecting("r", ""),
            "80,443; closed closed closed -",
        ),
        (
            "what is denied is closed, whatever else is open",
            through("all", "failureMode: open")
                + &at("s", "203.0.113.7", "")
                + &action("s", "Deny"),
            "1-65535; closed open open -",
        ),
        (
            "internal by its entry",
            through("all", "") + &at("s", "203.0.113.0/24", "location: MESH_INTERNAL"),
            "1-65535; - - closed -",
        ),
    ] {
        assert_eq!(plan(&compile(&text), &here), expected, "{what}");
    }
}

/// The kernel side does not know which service of an address a connection is to.
#[test]
fn of_services_at_one_address_the_closed_one_rules() {
    let here = ["203.0.113.7", "203.0.113.8"];
    for (what, text, expected) in [
        (
            "another port has no rule",
            at("a", "203.0.113.7", HTTPS) + &selecting("a", "") + &at("b", "203.0.113.7", HTTP),
            "443; closed -",
        ),
        (
            "the same the other way around",
            at("a", "203.0.113.7", HTTP) + &at("b", "203.0.113.7", HTTPS) + &selecting("b", ""),
            "443; closed -",
        ),
        (
            "another port is let pass",
            at("a", "203.0.113.7", HTTPS)
                + &selecting("a", "")
                + &at("b", "203.0.113.7", HTTP)
                + &action("b", "Direct"),
            "80,443; closed -",
        ),
        (
            "a range around it is closed on other ports",
            at("a", "203.0.113.0/24", HTTPS) + &selecting("a", "") + &at("b", "203.0.113.7", HTTP),
            "443; closed closed",
        ),
        (
            "everything is closed on other ports",
            at("a", "203.0.113.7", HTTPS) + &action("a", "Direct") + &through("all", ""),
            "1-65535; closed closed",
        ),
        (
            "and for those who do not see the service",
            at("a", "203.0.113.7", "exportTo: [x]") + &action("a", "Direct") + &through("all", ""),
            "1-65535; closed closed",
        ),
        (
            "a name at the same address is closed",
            at("a", "203.0.113.7", "")
                + &action("a", "Direct")
                + &at("b", "203.0.113.7", "")
                + &selecting("b", ""),
            "1-65535; closed -",
        ),
        (
            "a name at any address is closed",
            at("a", "203.0.113.7", "")
                + &action("a", "Direct")
                + &named("b", "")
                + &through("all", ""),
            "1-65535; closed closed",
        ),
        (
            "only some workloads are let pass",
            at("a", "203.0.113.7", "")
                + &tunnel(
                    "to-a",
                    "action: Direct, selector: {matchLabels: {t: a}}, workloadSelector: \
                     {namespaces: [x]}",
                )
                + &through("all", ""),
            "1-65535; closed closed",
        ),
        (
            "the oldest says whether an address is internal",
            through("all", "")
                + &at("a", "203.0.113.7", "")
                + &at("b", "203.0.113.7", "location: MESH_INTERNAL"),
            "1-65535; closed closed",
        ),
        (
            "or that it is",
            through("all", "")
                + &at("a", "203.0.113.7", "location: MESH_INTERNAL")
                + &at("b", "203.0.113.7", ""),
            "1-65535; - closed",
        ),
    ] {
        assert_eq!(plan(&compile(&text), &here), expected, "{what}");
    }
}

#[test]
fn the_node_itself_and_its_link_are_never_captured() {
    let text = at("a", "127.0.0.1", "")
        + &at("b", "169.254.0.0/16", "")
        + &at("c", "::1", "")
        + &at("d", "224.0.0.0/8", "")
        + &at("e", "0.0.0.0/0", "")
        + &selecting("a", "");
    let policy = compile(&text);
    let here = [
        "127.0.0.1",
        "169.254.169.254",
        "[::1]",
        "224.0.0.1",
        "10.1.2.3",
    ];
    assert_eq!(plan(&policy, &here), "1-65535; - - - - -");
    let warned: Vec<_> = warnings(&policy)
        .into_iter()
        .filter(|warning| warning.contains("spec.addresses[0]: it has no effect"))
        .collect();
    assert_eq!(warned.len(), 4, "{warned:?}");
    // A proxy may be there.
    let proxy = at("p", "127.0.0.1", HTTP) + &tunnel("t", "proxy: {host: p.test}");
    assert_eq!(warnings(&compile(&proxy)), [""; 0]);
}

#[test]
fn what_the_only_rule_exempts_is_not_captured() {
    let exempt = "noProxy: [198.51.100.0/24, '*:25', '203.0.113.7:80', a.test]";
    let policy = compile(&through("all", exempt));
    let here = ["198.51.100.1", "203.0.113.7"];
    assert_eq!(plan(&policy, &here), "1-24,26-65535; - closed");
    let exceptions = policy.capture_plan().exceptions;
    assert_eq!(exceptions, [("203.0.113.7/32".parse().unwrap(), 80)]);

    let two = compile(&(through("all", exempt) + &rule("r", "a.test", "")));
    assert_eq!(plan(&two, &here), "1-65535; closed closed");
    assert!(two.capture_plan().exceptions.is_empty());
}

#[test]
fn udp_is_refused_where_it_would_walk_past_a_rule() {
    let here = ["203.0.113.7", "203.0.113.8", "[2001:db8::1]", "10.1.2.3"];
    let closed = "closed closed closed -";
    for (what, text, quic, udp) in [
        ("nothing", String::new(), "- - - -", "- - - -"),
        ("everything", through("all", ""), closed, "- - - -"),
        (
            "everything, open",
            through("all", "failureMode: open, udp: Deny"),
            "open open open -",
            "open open open -",
        ),
        ("all UDP", through("all", "udp: Deny"), closed, closed),
        ("no UDP", through("all", "udp: Allow"), "- - - -", "- - - -"),
        (
            "what is denied",
            tunnel("all", "action: Deny"),
            closed,
            closed,
        ),
        (
            "what is denied to some: only what there is a way to do without",
            tunnel(
                "all",
                "action: Deny, workloadSelector: {units: [a.service]}",
            ),
            closed,
            "- - - -",
        ),
        (
            "an address that is let pass, beside everything",
            at("s", "203.0.113.7", HTTPS) + &action("s", "Direct") + &through("all", ""),
            "- closed closed -",
            "- - - -",
        ),
        (
            "an address that is let pass on another port",
            at("s", "203.0.113.7", HTTP) + &action("s", "Direct") + &through("all", ""),
            closed,
            "- - - -",
        ),
        (
            "an address, and nothing else",
            at("s", "203.0.113.7", HTTPS) + &selecting("s", "udp: Deny"),
            "closed - - -",
            "closed - - -",
        ),
        (
            "an address that has nothing on that port",
            at("s", "203.0.113.7", HTTP) + &selecting("s", ""),
            "- - - -",
            "- - - -",
        ),
        (
            "a name, which may be at any address",
            named("s", HTTPS) + &selecting("s", "udp: Deny"),
            closed,
            "- - - -",
        ),
        (
            "a name on another port",
            named("s", HTTP) + &rule("r", "s.test", ""),
            "- - - -",
            "- - - -",
        ),
        (
            "an address of which UDP is denied, beside everything",
            at("s", "203.0.113.7", "") + &selecting("s", "udp: Deny") + &through("all", ""),
            closed,
            "closed - - -",
        ),
        (
            "an exception to everything",
            through("all", "udp: Deny, noProxy: [203.0.113.0/28]"),
            "- - closed -",
            "- - closed -",
        ),
    ] {
        let policy = compile(&text);
        let shown = sides(&policy, &here, |captured| captured.quic);
        assert_eq!(shown, quic, "{what}: QUIC");
        let shown = sides(&policy, &here, |captured| captured.udp);
        assert_eq!(shown, udp, "{what}: other UDP");
    }
}
