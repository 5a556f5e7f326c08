//! Ways by which clients try to reach what is the operator's own. Each is refused, by CONNECT and
//! in absolute form, though the rules allow everything that has a name and every public address.

use std::collections::BTreeSet;

use super::*;

/// What is asked for, the status, and a word of the reason.
const CASES: [(&str, &str, &str); 56] = [
    // Loopback, as it is written, and as inet_aton(3) reads it.
    ("127.0.0.1", "403", "loopback"),
    ("127.255.255.254", "403", "loopback"),
    ("127.1", "400", "number"),
    ("2130706433", "400", "number"),
    ("0x7f000001", "400", "number"),
    ("0x7f.0.0.1", "400", "number"),
    ("0X7F.1", "400", "number"),
    ("0177.0.0.1", "400", "number"),
    ("127.0.0.01", "400", "number"),
    ("127.0.0.1.", "400", "number"),
    ("00000177.1", "400", "number"),
    ("[::1]", "403", "loopback"),
    ("[0:0:0:0:0:0:0:1]", "403", "loopback"),
    ("[::127.0.0.1]", "403", "loopback"),
    ("[::ffff:127.0.0.1]", "403", "loopback"),
    ("[::ffff:7f00:1]", "403", "loopback"),
    ("[::ffff:0:127.0.0.1]", "403", "loopback"),
    ("[64:ff9b::7f00:1]", "403", "loopback"),
    ("[64:ff9b:1::7f00:1]", "403", "translated"),
    ("[2002:7f00:1::]", "403", "loopback"),
    ("[2001:0:7f00:1::]", "403", "loopback"),
    ("[fe80::5efe:127.0.0.1]", "403", "link-local"),
    // Nowhere, which connects to loopback.
    ("0.0.0.0", "403", "unspecified"),
    ("0", "400", "number"),
    ("[::]", "403", "unspecified"),
    ("[::ffff:0.0.0.0]", "403", "unspecified"),
    // Metadata services and the link.
    ("169.254.169.254", "403", "link-local"),
    ("2852039166", "400", "number"),
    ("[::ffff:169.254.169.254]", "403", "link-local"),
    ("[64:ff9b::a9fe:a9fe]", "403", "link-local"),
    ("[fd00:ec2::254]", "403", "metadata"),
    ("100.100.100.200", "403", "metadata"),
    ("168.63.129.16", "403", "metadata"),
    ("[fe80::1]", "403", "link-local"),
    // The network.
    ("10.0.0.1", "403", "private"),
    ("172.16.0.1", "403", "private"),
    ("192.168.0.1", "403", "private"),
    ("100.64.0.1", "403", "provider"),
    ("[fd12:3456::1]", "403", "private"),
    ("[::ffff:10.0.0.1]", "403", "private"),
    ("[2002:a00:1::]", "403", "private"),
    ("224.0.0.1", "403", "multicast"),
    ("255.255.255.255", "403", "broadcast"),
    ("[ff02::1]", "403", "multicast"),
    // Names that lead there, however they are written.
    ("here.example", "403", "loopback"),
    ("here.example.", "403", "loopback"),
    ("HERE.example", "403", "loopback"),
    ("metadata.example", "403", "link-local"),
    ("mapped.example", "403", "loopback"),
    ("translated.example", "403", "link-local"),
    ("private.example", "403", "private"),
    // User information that looks like the host.
    ("good.example@127.0.0.1", "400", "user information"),
    ("good.example:80@127.0.0.1", "400", "user information"),
    // What is denied stays so, though it is public.
    ("denied.example", "403", "deny rule"),
    ("203.0.113.66", "403", "deny rule"),
    ("to-denied.example", "403", "deny rule"),
];

#[test]
fn operators_can_read_them_all() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/gateway.md");
    let document = fs::read_to_string(path).unwrap();
    let (_, table) = document
        .split_once("| what leads inside | for example |")
        .unwrap();
    let rows = table.lines().skip(2).take_while(|line| !line.is_empty());
    let examples = rows.filter_map(|row| row.split(" | ").nth(1));
    let told: BTreeSet<&str> = examples
        .flat_map(|row| row.split('`').skip(1).step_by(2))
        .collect();
    assert_eq!(told, CASES.map(|(host, ..)| host).into());
}

fn guarded() -> GatewayConfig {
    GatewayConfig {
        deny: ["denied.example", "203.0.113.64/28", "*:25"]
            .map(|rule| rule.parse().unwrap())
            .into(),
        // Nothing public is there, and a test should not wait for it.
        connect_timeout: Duration::from_millis(200),
        ..allow(&["*:*", "0.0.0.0/0:*", "[::/0]:*"])
    }
}

#[tokio::test]
async fn no_way_of_writing_a_target_leads_inside() {
    let gateway = start(guarded()).await;
    for (host, status, reason) in CASES {
        for request in [
            format!("CONNECT {host}:80 HTTP/1.1\r\nHost: good.example\r\n\r\n"),
            format!("GET http://{host}:80/ HTTP/1.1\r\nHost: good.example\r\n\r\n"),
        ] {
            let mut client = Client::new(&gateway).await;
            let answer = client.ask(&request).await;
            assert_eq!(answer.status(), status, "{request}: {}", answer.body);
            // What is no URI at all is answered before anybody looks for a host in it.
            let said = answer.body.contains(reason) || answer.body.is_empty();
            assert!(said, "{request}: {}", answer.body);
        }
    }
}

#[tokio::test]
async fn the_same_holds_over_http2() {
    let gateway = start(GatewayConfig {
        post_tunnels: true,
        ..guarded()
    })
    .await;
    let mut client = http2::Client::new(&gateway).await;
    for (host, status, _) in CASES {
        // Of these the library makes no request.
        if host.contains('@') {
            continue;
        }
        for (method, uri) in [
            ("CONNECT", format!("{host}:80")),
            ("GET", format!("http://{host}:80/")),
            ("POST", format!("https://{host}:80/")),
        ] {
            let answer = client.ask(method, &uri).await;
            assert_eq!(answer.status().as_str(), status, "{method} {uri}");
        }
    }
}

#[tokio::test]
async fn a_host_field_leads_nowhere() {
    let gateway = start(GatewayConfig {
        deny: vec!["203.0.113.0/24".parse().unwrap()],
        ..local()
    })
    .await;
    let server = Server::new().await;
    let here = format!("here.example:{}", server.port());
    // An allowed Host does not help a target that is not, ...
    for request in [
        format!("GET http://203.0.113.7/ HTTP/1.1\r\nHost: {here}\r\n\r\n"),
        format!("CONNECT 203.0.113.7:80 HTTP/1.1\r\nHost: {here}\r\n\r\n"),
    ] {
        let answer = Client::new(&gateway).await.ask(&request).await;
        assert_eq!(answer.status(), "403", "{request}");
    }
    // ... one that is not allowed does no harm, and goes no further.
    let mut client = Client::new(&gateway).await;
    let request = format!("GET http://{here}/ HTTP/1.1\r\nHost: 203.0.113.7\r\n\r\n");
    client.0.write_all(request.as_bytes()).await.unwrap();
    let mut upstream = server.accept().await;
    let mut bytes = vec![0; 4096];
    let length = upstream.read(&mut bytes).await.unwrap();
    let asked = String::from_utf8_lossy(&bytes[..length]).into_owned();
    assert!(asked.contains(&format!("\r\nHost: {here}\r\n")), "{asked}");
    assert!(!asked.contains("203.0.113.7"), "{asked}");
    // In origin form there is only the Host field, and that is no target.
    let mut client = Client::new(&gateway).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {here}\r\n\r\n");
    assert_eq!(client.ask(&request).await.status(), "400");
}

#[tokio::test]
async fn ports_are_part_of_the_rules() {
    let gateway = start(guarded()).await;
    for target in ["good.example:25", "203.0.113.7:25", "[2001:db8::1]:25"] {
        let answer = Client::new(&gateway).await.connect(target).await;
        assert_eq!(answer.status(), "403", "{target}");
    }
    for target in [
        "203.0.113.7:0",
        "203.0.113.7:65616",
        "203.0.113.7:+80",
        "203.0.113.7: 80",
    ] {
        let answer = Client::new(&gateway).await.connect(target).await;
        assert_eq!(answer.status(), "400", "{target}");
    }
}

#[tokio::test]
async fn of_mixed_answers_only_what_is_allowed_is_connected_to() {
    let server = Server::new().await;
    let port = server.port();
    let gateway = start(allow(&["*:1", &format!("127.0.0.1:{port}")])).await;
    // The metadata address comes first and is passed over; nothing is resolved a second time.
    let mut client = Client::new(&gateway).await;
    let answer = client.connect(&format!("second.example:{port}")).await;
    assert_eq!(answer.status(), "200");
    server.accept().await;
    // A name whose next answer is another is connected to at the address that was checked.
    let mut client = Client::new(&gateway).await;
    let answer = client.connect(&format!("rebound.example:{port}")).await;
    assert_eq!(answer.status(), "200");
    server.accept().await;
    let answer = Client::new(&gateway)
        .await
        .connect(&format!("rebound.example:{port}"))
        .await;
    assert_eq!(
        answer.status(),
        "403",
        "the second answer is judged by itself"
    );
}
