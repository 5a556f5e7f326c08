//! Entries one by one, and lists against an oracle that looks at every entry.

use proptest::prelude::*;

use super::*;

#[test]
fn entries_are_read_and_shown_in_their_shortest_form() {
    for (text, shown) in [
        ("example.com", "example.com"),
        (" Example.COM. ", "example.com"),
        (".example.com", "*.example.com"),
        ("*.example.com:8443", "*.example.com:8443"),
        ("localhost", "localhost"),
        ("*", "*"),
        ("*:25", "*:25"),
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7/32", "203.0.113.7"),
        ("203.0.113.7:80", "203.0.113.7:80"),
        ("203.0.113.0/24", "203.0.113.0/24"),
        ("203.0.113.0/24:80", "203.0.113.0/24:80"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:DB8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "[2001:db8::1]:443"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("[2001:db8::/32]:443", "[2001:db8::/32]:443"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.0/120", "203.0.113.0/24"),
    ] {
        let entry: HostEntry = text.parse().unwrap();
        assert_eq!(entry.to_string(), shown, "{text:?}");
        assert_eq!(shown.parse(), Ok(entry), "{shown:?}");
    }
}

#[test]
fn what_is_no_entry_says_why() {
    for (text, part) in [
        ("", "host"),
        (".", "host"),
        ("*.", "host"),
        ("**", "host"),
        ("*example.com", "host"),
        ("www.*.com", "host"),
        ("exa mple", "host"),
        ("10.1", "host"),
        ("example.com:", "port"),
        ("example.com:0", "port"),
        ("example.com:65536", "port"),
        ("example.com:+80", "port"),
        ("example.com:http", "port"),
        ("[2001:db8::1", "port"),
        ("[2001:db8::1]443", "port"),
        ("[example.com]:443", "port"),
        ("203.0.113.0/33", "prefix"),
        ("203.0.113.0/", "prefix"),
        ("example.com/24", "prefix"),
        ("2001:db8::/129", "prefix"),
    ] {
        let expected = InvalidHostEntry::new(text, part);
        assert_eq!(text.parse::<HostEntry>(), Err(expected), "{text:?}");
    }
    assert_eq!(
        "10.1.2.3/8".parse::<HostEntry>().unwrap_err().to_string(),
        "`10.1.2.3/8` has bits set beyond the prefix; write `10.0.0.0/8`"
    );
    let err = "http://u:hunter2@example.com".parse::<HostEntry>();
    assert_eq!(err, Err(InvalidHostEntry::Url));
}

#[test]
fn a_list_is_read_as_no_proxy_is() {
    let list: HostList = "a.example, .b.example:80,,203.0.113.0/24\t*:25 "
        .parse()
        .unwrap();
    let shown: Vec<_> = list.entries().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        ["a.example", "*.b.example:80", "203.0.113.0/24", "*:25"]
    );
    assert!("".parse::<HostList>().unwrap().is_empty());
    assert!("a.example,b/c".parse::<HostList>().is_err());
}

#[test]
fn names_and_addresses_match_by_the_rules() {
    let list: HostList =
        "example.com .below.test port.test:8443 203.0.113.0/24 203.0.112.0/23:80 2001:db8::1 *:25"
            .parse()
            .unwrap();
    for (name, port, expected) in [
        ("example.com", 443, Some("example.com")),
        ("www.a.example.com", 443, Some("example.com")),
        ("badexample.com", 443, None),
        ("com", 443, None),
        ("below.test", 443, None),
        ("a.below.test", 443, Some("*.below.test")),
        ("port.test", 8443, Some("port.test:8443")),
        ("a.port.test", 8443, Some("port.test:8443")),
        ("port.test", 443, None),
    ] {
        let found = list.match_name(&name.parse().unwrap(), port);
        let found = found.map(ToString::to_string);
        assert_eq!(found.as_deref(), expected, "{name}:{port}");
    }
    for (addr, port, expected) in [
        ("203.0.113.9", 443, Some("203.0.113.0/24")),
        ("203.0.112.9", 443, None),
        ("203.0.112.9", 80, Some("203.0.112.0/23:80")),
        ("::ffff:203.0.113.9", 443, Some("203.0.113.0/24")),
        ("2001:db8::1", 443, Some("2001:db8::1")),
        ("2001:db8::2", 443, None),
        ("198.51.100.7", 25, Some("*:25")),
    ] {
        let found = list.match_addr(addr.parse().unwrap(), port);
        let found = found.map(ToString::to_string);
        assert_eq!(found.as_deref(), expected, "{addr}:{port}");
    }
}

fn any_entry() -> impl Strategy<Value = HostEntry> {
    // A small world, so that entries and questions meet often.
    let hosts = prop_oneof![
        1 => Just("*".to_owned()),
        6 => ("(\\.|\\*\\.)?", "[ab](\\.[ab]){0,3}").prop_map(|(dot, name)| dot + &name),
        4 => (0u8..4, 0u8..4, 8u8..=32).prop_map(|(b, d, length)| {
            let addr = IpAddr::from([10, b, 0, d]);
            IpNet::new(addr, length).unwrap().trunc().to_string()
        }),
    ];
    (hosts, proptest::option::of(1u16..4)).prop_map(|(hosts, port)| {
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{hosts}{port}").parse().unwrap()
    })
}

fn naive_name(entry: &HostEntry, name: &HostName, port: u16) -> bool {
    let below = |domain: &HostName| name.as_str().ends_with(&format!(".{domain}"));
    let hosts = match &entry.hosts {
        Hosts::Below(domain) => below(domain),
        Hosts::Name(domain) => name == domain || below(domain),
        Hosts::All | Hosts::Net(_) => false,
    };
    hosts && (entry.port.is_none() || entry.port == Some(port))
}

fn naive_addr(entry: &HostEntry, addr: IpAddr, port: u16) -> bool {
    let hosts = match &entry.hosts {
        Hosts::All => true,
        Hosts::Net(net) => net.contains(&addr),
        Hosts::Below(_) | Hosts::Name(_) => false,
    };
    hosts && (entry.port.is_none() || entry.port == Some(port))
}

proptest! {
    #[test]
    fn the_index_finds_what_a_walk_over_all_entries_finds(
        entries in proptest::collection::vec(any_entry(), 0..12),
        name in "[ab](\\.[ab]){0,4}",
        (b, d) in (0u8..4, 0u8..4),
        port in 1u16..5,
    ) {
        let list: HostList = entries.iter().cloned().collect();
        let name: HostName = name.parse().unwrap();
        let addr = IpAddr::from([10, b, 0, d]);

        let found = list.match_name(&name, port);
        prop_assert_eq!(found.is_some(), entries.iter().any(|e| naive_name(e, &name, port)));
        prop_assert!(found.is_none_or(|entry| naive_name(entry, &name, port)));

        let found = list.match_addr(addr, port);
        prop_assert_eq!(found.is_some(), entries.iter().any(|e| naive_addr(e, addr, port)));
        prop_assert!(found.is_none_or(|entry| naive_addr(entry, addr, port)));
    }

    #[test]
    fn no_text_breaks_the_reader(text in ".{0,40}") {
        if let Ok(entry) = text.parse::<HostEntry>() {
            prop_assert_eq!(entry.to_string().parse(), Ok(entry));
        }
    }
}
