use super::*;

fn rules(texts: &[&str]) -> Rules {
    Rules::new(texts.iter().map(|text| text.parse().unwrap()).collect())
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
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "0.1.2.3",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "fe80::1",
        "febf::1",
        "ff02::1",
        "fd00:ec2::254",
        "64:ff9b::169.254.169.254",
    ];
    let wide = rules(&["*:*", "0.0.0.0/0:*", "[::/0]:*"]);
    for addr in reserved {
        for host in [addr, "innocent.example"] {
            let verdict = verdict(&wide, host, 443, addr);
            assert!(
                matches!(verdict, Err(Forbidden::Reserved(_))),
                "{host} {addr}: {verdict:?}"
            );
        }
    }
    for addr in [
        "203.0.113.7",
        "10.0.0.1",
        "fd00:ec2::253",
        "64:ff9b::203.0.113.7",
    ] {
        assert_eq!(verdict(&wide, "innocent.example", 443, addr), Ok(()));
    }

    let named = rules(&["*", "127.0.0.0/8:8080", "[::1]:8080", "169.254.169.254:80"]);
    assert_eq!(verdict(&named, "localhost", 8080, "127.0.0.1"), Ok(()));
    assert_eq!(verdict(&named, "127.0.0.2", 8080, "127.0.0.2"), Ok(()));
    assert_eq!(verdict(&named, "::1", 8080, "::1"), Ok(()));
    assert_eq!(
        verdict(&named, "169.254.169.254", 80, "169.254.169.254"),
        Ok(())
    );
    for (host, port, addr) in [
        ("localhost", 443, "127.0.0.1"),
        ("metadata.example", 443, "169.254.169.254"),
    ] {
        assert!(matches!(
            verdict(&named, host, port, addr),
            Err(Forbidden::Reserved(_))
        ));
    }
}
