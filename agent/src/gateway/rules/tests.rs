use super::*;

fn rules(texts: &[&str]) -> Rules {
    with_deny(texts, &[])
}

fn with_deny(allow: &[&str], deny: &[&str]) -> Rules {
    Rules::new(
        allow.iter().map(|text| text.parse().unwrap()).collect(),
        deny.iter().map(|text| text.parse().unwrap()).collect(),
    )
}

fn target(host: &str, port: u16) -> Target {
    Target {
        host: host.parse().unwrap(),
        port,
    }
}

/// The verdict on `host`, which resolves to `addr`.
fn verdict(rules: &Rules, host: &str, port: u16, addr: &str) -> Result<(), Forbidden> {
    let permit = rules.judge(&target(host, port))?;
    rules.judge_address(permit, addr.parse().unwrap(), port)
}

#[test]
fn rules_read_back_as_they_were_written() {
    for (text, shown) in [
        ("*", "*:443"),
        ("*:*", "*:*"),
        ("Example.COM", "example.com:443"),
        ("example.com:8443", "example.com:8443"),
        ("*.example.com:*", "*.example.com:*"),
        ("203.0.113.7", "203.0.113.7:443"),
        ("203.0.113.0/24:80", "203.0.113.0/24:80"),
        ("2001:db8::1", "[2001:db8::1]:443"),
        ("2001:db8::/32", "[2001:db8::/32]:443"),
        ("[2001:db8::1]", "[2001:db8::1]:443"),
        ("[2001:db8::1]:80", "[2001:db8::1]:80"),
        ("[2001:db8::/32]:*", "[2001:db8::/32]:*"),
        ("::ffff:203.0.113.7", "203.0.113.7:443"),
        ("::/0", "[::/0]:443"),
    ] {
        let rule: AllowRule = text.parse().unwrap();
        assert_eq!(rule.to_string(), shown);
        assert_eq!(shown.parse::<AllowRule>().unwrap(), rule);
    }
}

#[test]
fn rules_that_say_nothing_clear_are_refused_with_a_reason() {
    for (text, reason) in [
        ("", "empty"),
        (":443", "empty"),
        ("example.com:0", "port"),
        ("example.com:65536", "port"),
        ("example.com:+443", "port"),
        ("example.com:", "port"),
        ("a*.example.com", "only letters"),
        ("*.", "empty"),
        ("http://example.com", "port"),
        ("10.1.2.3/8", "is 10.0.0.0/8 meant?"),
        ("10.0.0.0/33", "CIDR"),
        ("2001:db8::zz:80", "brackets"),
        ("[2001:db8::1]80", "bracket"),
        ("[::ffff:10.0.0.0/104]:443", "IPv4"),
        ("exa\nmple.com", "only letters"),
    ] {
        let error = text.parse::<AllowRule>().unwrap_err().to_string();
        assert!(error.contains(reason), "{text:?}: {error}");
        assert!(!error.contains('\n'));
    }
}

#[test]
fn without_rules_https_is_allowed_everywhere() {
    let rules = rules(&[]);
    assert_eq!(verdict(&rules, "example.com", 443, "203.0.113.7"), Ok(()));
    assert_eq!(verdict(&rules, "203.0.113.7", 443, "203.0.113.7"), Ok(()));
    assert_eq!(
        verdict(&rules, "example.com", 80, "203.0.113.7"),
        Err(Forbidden::NoRule)
    );
}

#[test]
fn hosts_and_ports_are_both_checked() {
    let rules = rules(&["example.com", "*.example.org:8443", "10.0.0.0/8:*"]);
    for (host, port, addr, allowed) in [
        ("example.com", 443, "203.0.113.7", true),
        ("EXAMPLE.com.", 443, "203.0.113.7", true),
        ("example.com", 8443, "203.0.113.7", false),
        ("www.example.com", 443, "203.0.113.7", false),
        ("www.example.org", 8443, "203.0.113.7", true),
        ("example.org", 8443, "203.0.113.7", false),
        ("wwwexample.org", 8443, "203.0.113.7", false),
        ("203.0.113.7", 443, "203.0.113.7", false),
        ("10.1.2.3", 22, "10.1.2.3", true),
        ("11.1.2.3", 22, "11.1.2.3", false),
        // A CIDR covers the names in it, and no others.
        ("db.internal", 5432, "10.1.2.3", true),
        ("db.internal", 5432, "203.0.113.7", false),
    ] {
        let verdict = verdict(&rules, host, port, addr);
        assert_eq!(verdict.is_ok(), allowed, "{host}:{port} {verdict:?}");
    }
}

#[test]
fn reserved_addresses_are_refused_unless_named() {
    let reserved = [
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("169.254.169.254", "link-local"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.1.1", "private"),
        ("100.64.0.1", "provider"),
        ("100.127.255.255", "provider"),
        ("100.100.100.200", "metadata"),
        ("168.63.129.16", "metadata"),
        ("192.0.0.192", "metadata"),
        ("192.0.0.8", "protocols"),
        ("198.18.0.1", "benchmarks"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.1", "future"),
        ("255.255.255.255", "broadcast"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::127.0.0.1", "loopback"),
        ("fe80::1", "link-local"),
        ("febf::1", "link-local"),
        ("fec0::1", "private"),
        ("fd12:3456::1", "private"),
        ("fc00::1", "private"),
        ("fd00:ec2::254", "metadata"),
        ("fd20:ce::254", "metadata"),
        ("ff02::1", "multicast"),
        ("64:ff9b:1::1", "translated"),
        // IPv4 addresses inside.
        ("64:ff9b::169.254.169.254", "link-local"),
        ("64:ff9b::7f00:1", "loopback"),
        ("64:ff9b::10.0.0.1", "private"),
        ("::ffff:0:127.0.0.1", "loopback"),
        ("2002:7f00:1::1", "loopback"),
        ("2002:a9fe:a9fe::", "link-local"),
        // Teredo: the server, and the client with its bits inverted.
        ("2001:0:7f00:1::1", "loopback"),
        ("2001:0:cb00:7107:0:0:f5ff:fffe", "private"),
        ("2001:db8::5efe:10.0.0.1", "private"),
        ("2001:db8::200:5efe:127.0.0.1", "loopback"),
    ];
    let wide = rules(&["*:*", "0.0.0.0/0:*", "[::/0]:*"]);
    for (addr, kind) in reserved {
        for host in [addr, "innocent.example"] {
            let verdict = verdict(&wide, host, 443, addr);
            let Err(Forbidden::Reserved(found)) = verdict else {
                panic!("{host} {addr}: {verdict:?}");
            };
            assert!(found.contains(kind), "{addr}: {found}");
        }
    }
    for addr in [
        "203.0.113.7",
        "9.255.255.255",
        "11.0.0.0",
        "172.32.0.1",
        "192.169.0.1",
        "100.63.255.255",
        "100.128.0.1",
        "169.255.0.1",
        "64:ff9b::203.0.113.7",
        "2002:cb00:7107::1",
        "2001:db8::1",
        "2600::1",
    ] {
        assert_eq!(
            verdict(&wide, "innocent.example", 443, addr),
            Ok(()),
            "{addr}"
        );
    }
}

#[test]
fn a_rule_names_a_reserved_address_only_when_it_is_about_that() {
    let named = rules(&[
        "*",
        "127.0.0.0/8:8080",
        "[::1]:8080",
        "169.254.169.254:80",
        "10.1.0.0/16:*",
        "[64:ff9b::a00:0/104]:*",
        "[fc00::/7]:*",
        "100.64.0.0/10:*",
    ]);
    for (host, port, addr, allowed) in [
        ("localhost", 8080, "127.0.0.1", true),
        ("127.0.0.2", 8080, "127.0.0.2", true),
        ("::1", 8080, "::1", true),
        ("169.254.169.254", 80, "169.254.169.254", true),
        ("db.internal", 5432, "10.1.2.3", true),
        ("db.internal", 5432, "10.2.2.3", false),
        ("db.internal", 443, "10.2.2.3", false),
        ("localhost", 443, "127.0.0.1", false),
        ("metadata.example", 443, "169.254.169.254", false),
        // What is written inside other addresses is named by those.
        ("db.internal", 5432, "64:ff9b::10.2.3.4", true),
        ("db.internal", 5432, "64:ff9b::192.168.0.1", false),
        ("db.internal", 5432, "2002:a01:203::", false),
        // Narrow ranges are not named by wide ones.
        ("db.internal", 5432, "fd12::1", true),
        ("db.internal", 80, "fd00:ec2::254", false),
        ("db.internal", 80, "100.64.0.1", true),
        ("db.internal", 80, "100.100.100.200", false),
    ] {
        let verdict = verdict(&named, host, port, addr);
        assert_eq!(verdict.is_ok(), allowed, "{host}:{port} {addr} {verdict:?}");
    }
}

#[test]
fn deny_rules_win_over_every_allow_rule() {
    let rules = with_deny(
        &["*:*", "evil.example:*", "203.0.113.66:*", "10.0.0.0/8:*"],
        &[
            "evil.example",
            "*.bad.example",
            "*:25",
            "203.0.113.64/28",
            "10.9.0.0/16:22",
        ],
    );
    for (host, port, addr, denied) in [
        ("evil.example", 443, "203.0.113.7", true),
        ("EVIL.example.", 8443, "203.0.113.7", true),
        ("www.evil.example", 443, "203.0.113.7", false),
        ("a.b.bad.example", 443, "203.0.113.7", true),
        ("bad.example", 443, "203.0.113.7", false),
        ("good.example", 25, "203.0.113.7", true),
        ("203.0.113.66", 443, "203.0.113.66", true),
        ("good.example", 443, "203.0.113.66", true),
        ("good.example", 443, "203.0.113.80", false),
        ("good.example", 443, "64:ff9b::203.0.113.66", true),
        ("good.example", 443, "2002:cb00:7142::1", true),
        ("good.example", 22, "10.9.1.1", true),
        ("good.example", 23, "10.9.1.1", false),
    ] {
        let verdict = verdict(&rules, host, port, addr);
        let expected = if denied {
            Err(Forbidden::Denied)
        } else {
            Ok(())
        };
        assert_eq!(verdict, expected, "{host}:{port} {addr}");
    }
    let shown: Vec<String> = rules.deny.iter().map(ToString::to_string).collect();
    assert_eq!(shown[0], "evil.example:*");
    let error = "evil.example:x".parse::<DenyRule>().unwrap_err();
    assert!(error.to_string().contains("is not a deny rule"), "{error}");
}
