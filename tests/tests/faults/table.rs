//! The table, but for requests of HTTP.

use underpass_tests::servers::fake_proxy::{Answer, Step};

use crate::row::{faults, logged};
use crate::{node, proxy, workload};

const FAILURES: &str = "underpass_proxy_connections_failures_total";
const REQUESTS: &str = "underpass_tunnel_requests_total";
const REFUSED: &str = "underpass_capture_refused_total";
const CLOSED: &str = "istio_tcp_connections_closed_total";
const INSPECTED: &str = "underpass_inspection_total";

/// What a proxy's own page looks like.
const PAGE: &str = "HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\n\r\n<html><head><style>b \
                    {}</style><title>No</title></head><body><p>ask the <b>network</b> department\
                    </body></html>";

faults! {
    proxy_answers_garbage {
        fault: "the proxy answers CONNECT with what is not HTTP",
        workload: "reset",
        log: logged("UPE", "", &["not HTTP/1", "SSH-2.0"]),
        counted: Some((FAILURES, &[("reason", "malformed")])),
        play: |stage| proxy::sends(stage, "SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    }
    proxy_wants_tls {
        fault: "the proxy answers with a TLS alert",
        workload: "reset",
        log: logged("UPE", "", &["looks like TLS"]),
        counted: Some((FAILURES, &[("reason", "malformed")])),
        play: |stage| proxy::sends(stage, b"\x15\x03\x01\x00\x02\x02\x46"),
    }
    proxy_answers_http2 {
        fault: "the proxy answers with a status line of another HTTP version",
        workload: "reset",
        log: logged("UPE", "", &["not HTTP/1"]),
        counted: Some((FAILURES, &[("reason", "malformed")])),
        play: |stage| proxy::sends(stage, "HTTP/2 200\r\n\r\n"),
    }
    proxy_status_is_no_number {
        fault: "the proxy's status is no number",
        workload: "reset",
        log: logged("UPE", "", &["no number of three digits"]),
        counted: Some((FAILURES, &[("reason", "malformed")])),
        play: |stage| proxy::sends(stage, "HTTP/1.1 2OO Connection established\r\n\r\n"),
    }
    proxy_answers_nothing {
        fault: "the proxy takes the request and says nothing",
        workload: "reset",
        within: 17,
        log: logged("UT", "", &["did not answer CONNECT in time (0 bytes came)"]),
        counted: Some((FAILURES, &[("reason", "connect_timeout")])),
        play: |stage| stage.see_answer(Answer::Silence),
    }
    proxy_drips {
        fault: "the head of the proxy's answer comes in drips, without an end",
        workload: "reset",
        within: 17,
        log: logged("UT", "", &["did not answer CONNECT in time"]),
        counted: Some((FAILURES, &[("reason", "connect_timeout")])),
        play: |stage| {
            let head = Step::Send(b"HTTP/1.1 200 OK\r\nX: ".into());
            proxy::plays(stage, [head, Step::DripForever(b'a', DRIP)])
        },
    }
    proxy_head_is_endless {
        fault: "the head of the proxy's answer has no end",
        workload: "reset",
        log: logged("UPE", "", &["longer than 65536 bytes"]),
        counted: Some((FAILURES, &[("reason", "malformed")])),
        play: |stage| {
            let endless = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &vec![b'a'; 1 << 20]].concat();
            proxy::sends(stage, endless)
        },
    }
    proxy_head_has_too_many_fields {
        fault: "the head of the proxy's answer has a thousand fields",
        workload: "reset",
        log: logged("UPE", "", &["more than 256 header fields"]),
        counted: Some((FAILURES, &[("reason", "malformed")])),
        play: |stage| {
            let fields = "X: y\r\n".repeat(1000);
            proxy::sends(stage, format!("HTTP/1.1 200 OK\r\n{fields}\r\n"))
        },
    }
    proxy_ends_within_its_head {
        fault: "the proxy ends its stream within the head of its answer",
        workload: "reset",
        log: logged("UF", "", &["closed the connection after 21 bytes"]),
        counted: Some((FAILURES, &[("reason", "closed_early")])),
        play: |stage| proxy::sends(stage, "HTTP/1.1 200 OK\r\nX: y"),
    }
    proxy_ends_before_answering {
        fault: "the proxy ends its stream instead of answering",
        workload: "reset",
        log: logged("UF", "", &["closed the connection after 0 bytes"]),
        counted: Some((FAILURES, &[("reason", "closed_early")])),
        play: |stage| proxy::sends(stage, ""),
    }
    proxy_resets_before_answering {
        fault: "the proxy resets instead of answering",
        workload: "reset",
        log: logged("UF", "", &["broke before its answer was complete"]),
        counted: Some((FAILURES, &[("reason", "reset")])),
        play: |stage| stage.see_answer(Answer::Reset),
    }
    proxy_resets_after_200 {
        fault: "the proxy answers 200 and resets at once",
        workload: "reset",
        log: logged("UC", "200", &["connection to upstream failed"]),
        counted: Some((CLOSED, &[("response_flags", "UC")])),
        play: |stage| stage.see_answer(Answer::opened([Step::Reset])),
    }
    proxy_ends_after_200 {
        fault: "the proxy answers 200 and closes at once",
        workload: "end after 0 bytes",
        log: logged("", "200", &[]),
        play: |stage| stage.see_answer(Answer::opened([Step::Finish, Step::Listen])),
    }
    proxy_answers_in_single_bytes {
        fault: "the proxy's 200 comes byte by byte",
        play: proxy::drips_a_whole_answer,
    }
    proxy_floods_with_interim_answers {
        fault: "the proxy sends interim answers (1xx) without an end",
        workload: "reset",
        log: logged("UPE", "", &["more than 16 interim answers"]),
        counted: Some((FAILURES, &[("reason", "malformed")])),
        play: |stage| proxy::sends(stage, "HTTP/1.1 100 Continue\r\n\r\n".repeat(1000)),
    }
    proxy_sends_a_few_interim_answers {
        fault: "three interim answers come before the 200",
        play: |stage| {
            let interim = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n".repeat(3);
            proxy::opens_with(stage, &format!("{interim}HTTP/1.1 200 OK\r\n\r\n"))
        },
    }
    proxy_switches_protocols {
        fault: "the proxy answers 101",
        workload: "reset",
        log: logged("CONNECT", "101", &["101"]),
        counted: Some((REQUESTS, &[("code", "101")])),
        play: |stage| proxy::sends(stage, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"),
    }
    proxy_answers_204 {
        fault: "the proxy answers 204, which is as good as 200",
        log: logged("", "204", &[]),
        counted: Some((REQUESTS, &[("code", "204")])),
        play: |stage| proxy::opens_with(stage, "HTTP/1.1 204 No Content\r\n\r\n"),
    }
    proxy_answers_200_with_a_length {
        fault: "the proxy's 200 has a Content-Length, which means nothing there",
        play: |stage| {
            proxy::opens_with(stage, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n")
        },
    }
    proxy_answers_200_as_chunked {
        fault: "the proxy's 200 says that it is chunked, which means nothing there",
        play: |stage| {
            proxy::opens_with(stage, "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        },
    }
    proxy_redirects {
        fault: "the proxy answers 301",
        workload: "reset",
        log: logged("CONNECT", "301", &["301 Moved Permanently"]),
        counted: Some((REQUESTS, &[("code", "301")])),
        play: |stage| {
            let head = "HTTP/1.1 301 Moved Permanently\r\nLocation: https://login.example/\r\n\r\n";
            proxy::sends(stage, head)
        },
    }
    proxy_wants_ntlm {
        fault: "the proxy wants credentials of a kind that is not supported",
        workload: "reset",
        log: logged("CONNECT", "407", &["NTLM", "none of which is supported"]),
        counted: Some((REQUESTS, &[("code", "407")])),
        play: |stage| {
            let head = "HTTP/1.1 407 Proxy Authentication Required\r\n\
                        Proxy-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n";
            proxy::sends(stage, head)
        },
    }
    proxy_wants_basic {
        fault: "the proxy wants credentials and none are configured",
        workload: "reset",
        log: logged("CONNECT", "407", &["Basic", "none are configured"]),
        counted: Some((REQUESTS, &[("code", "407")])),
        play: |stage| {
            let head = "HTTP/1.1 407 Proxy Authentication Required\r\n\
                        Proxy-Authenticate: Basic realm=\"corp\"\r\nContent-Length: 0\r\n\r\n";
            proxy::sends(stage, head)
        },
    }
    proxy_forbids {
        fault: "the proxy answers 403 with a page",
        workload: "reset",
        log: logged("CONNECT", "403", &["access rules", "ask the network department"]),
        counted: Some((REQUESTS, &[("code", "403")])),
        play: |stage| proxy::sends(stage, PAGE),
    }
    proxy_cannot_reach_the_target {
        fault: "the proxy answers 502",
        workload: "reset",
        log: logged("CONNECT", "502", &["502 Bad Gateway", "no route to it"]),
        counted: Some((REQUESTS, &[("code", "502")])),
        play: |stage| stage.see_answer(Answer::refusal("502 Bad Gateway", "no route to it")),
    }
    proxy_refuses_in_chunks {
        fault: "the proxy's refusal is chunked, and its connection stays open",
        workload: "reset",
        log: logged("CONNECT", "503", &["try again later"]),
        counted: Some((REQUESTS, &[("code", "503")])),
        play: |stage| {
            let head = "HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n";
            let body = "4\r\ntry \r\nb\r\nagain later\r\n0\r\n\r\n";
            let steps = [Step::Send(format!("{head}{body}").into()), Step::Listen];
            proxy::plays(stage, steps)
        },
    }
    proxy_refuses_a_crowd {
        fault: "the proxy answers 429 to each of 200 connections at once",
        workload: "all reset",
        log: logged("CONNECT", "429", &["later"]),
        counted: Some((REQUESTS, &[("code", "429")])),
        play: proxy::refuses_a_crowd,
    }
    proxy_sends_early_bytes {
        fault: "the target's first bytes come in one segment with the 200",
        workload: "220 ready, then the end",
        play: |stage| {
            let head = Step::Send(b"HTTP/1.1 200 OK\r\n\r\n220 ready".into());
            stage.proxy.set_answer(Answer::Play(vec![head, Step::Finish, Step::Listen]));
            stage.see("silent", &[])
        },
    }
    proxy_closes_after_some_bytes {
        fault: "the proxy closes in order after 100,000 bytes",
        workload: "100000 bytes, then the end",
        play: |stage| {
            let steps = [Step::Send(vec![b'a'; 100_000]), Step::Finish, Step::Listen];
            stage.proxy.set_answer(Answer::opened(steps));
            stage.see("count", &[])
        },
    }
    proxy_resets_a_download {
        fault: "the proxy resets in the middle of a download",
        workload: "reset",
        log: logged("UC", "200", &["connection to upstream failed"]),
        counted: Some((CLOSED, &[("response_flags", "UC")])),
        play: proxy::resets_a_download,
    }
    target_ends_first {
        fault: "the target ends its side, and the workload speaks after that",
        workload: "first, then the end",
        play: proxy::ends_first,
    }
    target_ends_while_waited_for {
        fault: "the target ends its side while the workload waits for more",
        workload: "the end",
        play: proxy::ends_while_waited_for,
    }
    target_stops_reading {
        fault: "the target reads nothing of an upload, and resets when it is stuck",
        workload: "reset",
        within: 10,
        log: logged("UC", "200", &["connection to upstream failed"]),
        counted: Some((CLOSED, &[("response_flags", "UC")])),
        play: proxy::stops_reading,
    }
    workload_resets_a_stuck_upload {
        fault: "the target reads nothing of an upload, and the workload resets",
        workload: "stuck",
        within: 10,
        log: logged("DC", "200", &["the workload's connection failed"]),
        counted: Some((CLOSED, &[("response_flags", "DC")])),
        play: workload::resets_a_stuck_upload,
    }
    proxy_is_down {
        fault: "nobody listens where the proxy should be",
        workload: "reset",
        log: logged("UF", "", &["connection refused"]),
        counted: Some((FAILURES, &[("reason", "tcp_refused")])),
        play: proxy::is_down,
    }
    proxy_has_no_route {
        fault: "there is no route to the proxy",
        workload: "reset",
        log: logged("UF", "", &["unreachable"]),
        counted: Some((FAILURES, &[("reason", "tcp_unreachable")])),
        proxy: proxy::NOWHERE,
    }
    proxy_is_a_black_hole {
        fault: "packets to the proxy are dropped",
        workload: "reset",
        within: 17,
        log: logged("UT", "", &["no answer in time"]),
        counted: Some((FAILURES, &[("reason", "tcp_timeout")])),
        proxy: proxy::BLACK_HOLE,
    }
    proxy_name_is_unknown {
        fault: "there is no such name as the proxy's",
        workload: "reset",
        log: logged("UF", "", &["no host", "nowhere.example"]),
        counted: Some((FAILURES, &[("reason", "dns")])),
        proxy: "nowhere.example",
    }
    resolver_is_down {
        fault: "the name server is down, and the proxy's name may not be kept: its last addresses go on",
        play: proxy::resolver_is_down,
    }
    resolver_is_silent {
        fault: "the name server does not answer, and the proxy's name may not be kept: its last addresses go on",
        play: proxy::resolver_is_silent,
    }
    resolver_is_down_and_the_name_is_known {
        fault: "the name server is down, and the proxy's name may be kept",
        ttl: 300,
        play: proxy::resolver_is_down,
    }
    proxy_moves {
        fault: "the proxy's name gets another address",
        play: proxy::moves,
    }
    proxy_gains_a_dead_address {
        fault: "the proxy's name gets another address, which is first and does not answer",
        play: proxy::gains_a_dead_address,
    }
    another_port_of_the_proxy {
        fault: "the workload connects to the proxy's host on another port",
        workload: "192.0.2.20:8080, then the end",
        play: proxy::another_port,
    }

    workload_resets_an_upload {
        fault: "the workload resets in the middle of an upload; so must the target see it",
        workload: "reset by itself",
        log: logged("DC", "200", &["the workload's connection failed"]),
        counted: Some((CLOSED, &[("response_flags", "DC")])),
        play: workload::resets_an_upload,
    }
    workload_ends_first {
        fault: "the workload ends its side, and the target answers after that",
        workload: "answer, then the end",
        play: workload::half_closes_first,
    }
    workload_abandons_its_connect {
        fault: "a connect that does not wait is given up before the agent accepts",
        workload: "given up",
        play: workload::abandons,
    }
    workload_closes_at_once {
        fault: "the workload connects and closes without a word",
        workload: "closed",
        play: |stage| stage.see("touch", &[]),
    }
    workload_says_one_byte {
        fault: "the workload says one byte and waits",
        play: |stage| stage.see("one_byte", &[]),
    }
    workload_is_killed {
        fault: "the workload is killed in the middle of a download; the target sees a reset",
        workload: "killed",
        log: logged("DC", "200", &["the workload's connection failed"]),
        counted: Some((CLOSED, &[("response_flags", "DC")])),
        play: workload::is_killed,
    }
    workload_reuses_a_port {
        fault: "one source port serves 200 destinations, one right after the other",
        workload: "each its own",
        log: logged("DC", "200", &[]),
        play: workload::reuses_a_port,
    }
    workload_forks {
        fault: "a child inherits the socket and its maker closes it",
        play: |stage| stage.see("forked", &[]),
    }
    workload_hands_a_connection_on {
        fault: "an open connection is handed to a process outside the cgroup",
        play: |stage| workload::hands_its_socket_on(stage, "connected"),
    }
    workload_hands_a_socket_on {
        fault: "a socket made inside the cgroup is connected by a process outside",
        play: |stage| workload::hands_its_socket_on(stage, "unconnected"),
    }
    workload_speaks_mptcp {
        fault: "an MPTCP socket: tunnelled, but its peer is the agent's address",
        workload: "echoed, its peer 127.0.0.1",
        play: |stage| stage.see("mptcp", &[]),
    }
    workload_is_bound_to_a_device {
        fault: "a socket bound to a device (SO_BINDTODEVICE) cannot reach the agent",
        workload: "not permitted",
        log: None,
        counted: Some((REFUSED, &[("reason", "bound_to_device")])),
        play: |stage| stage.see("bound_to_device", &["wire"]),
    }
    workload_connects_again_after_a_refusal {
        fault: "the same socket, no longer bound to a device, connects again",
        counted: Some((REFUSED, &[("reason", "bound_to_device")])),
        play: |stage| stage.see("after_refusal", &["wire"]),
    }
    workload_connects_outside_after_inside {
        fault: "the same socket connects outside after it was refused inside",
        play: |stage| stage.see("after_internal", &["10.9.0.10"]),
    }
    workload_connects_inside_after_outside {
        fault: "a captured socket is dissolved (AF_UNSPEC) and connects inside, directly",
        workload: "echoed, then echoed by 10.9.0.10",
        log: logged("DC", "200", &[]),
        play: workload::dissolves,
    }
    workload_uses_fast_open {
        fault: "TCP Fast Open by sendto(MSG_FASTOPEN)",
        play: |stage| stage.see("fast_open_send", &[]),
    }
    workload_uses_fast_open_connect {
        fault: "TCP Fast Open by TCP_FASTOPEN_CONNECT",
        play: |stage| stage.see("fast_open_connect", &[]),
    }
    every_listener_takes_fast_open {
        fault: "TCP Fast Open where the node has every listener take it (net.ipv4.tcp_fastopen)",
        launcher: Some(node::fast_open),
        play: |stage| stage.see("fast_open_send", &[]),
    }
    workload_marks_its_socket {
        fault: "the workload sets SO_MARK: captured all the same",
        play: |stage| stage.see("marked", &[]),
    }
    workload_is_bound_to_an_address {
        fault: "a socket bound to the host's IPv4 address",
        play: |stage| stage.see("bound", &["198.51.100.2"]),
    }
    workload_is_bound_to_an_ipv6_address {
        fault: "a socket bound to the host's IPv6 address",
        play: |stage| workload::by_v6(stage, "bound", &["2001:db8:51::2"]),
    }
    workload_speaks_ipv6_only {
        fault: "a socket with IPV6_V6ONLY",
        play: |stage| workload::by_v6(stage, "v6only", &[]),
    }
    http_is_malformed {
        fault: "an HTTP request that breaks the rules",
        workload: "HTTP/1.1 400 Bad Request, then the end",
        log: logged("DPE", "", &["malformed"]),
        request: Some("400"),
        counted: Some((INSPECTED, &[("result", "malformed")])),
        play: |stage| stage.see("say", &[r"GET / HTTP/1.1\r\nHost : a b\r\n\r\n"]),
    }
    http_head_is_endless {
        fault: "an HTTP request whose head has no end",
        workload: "HTTP/1.1 431 Request Header Fields Too Large",
        log: logged("DPE", "", &["longer than 16384 bytes"]),
        request: Some("431"),
        counted: Some((INSPECTED, &[("result", "malformed")])),
        play: |stage| stage.see("flood_head", &[]),
    }
    http_head_is_slow {
        fault: "an HTTP request whose head stops half way",
        workload: "HTTP/1.1 408 Request Timeout, then the end",
        within: 7,
        log: logged("DPE", "", &["not complete within 5s"]),
        request: Some("408"),
        counted: Some((INSPECTED, &[("result", "timeout")])),
        play: |stage| stage.see("say", &[r"GET / HTTP/1.1\r\nHost: other"]),
    }
    http_head_is_cut_off {
        fault: "an HTTP request that ends within its head",
        workload: "HTTP/1.1 400 Bad Request, then the end",
        log: logged("DPE", "", &["ended within its head"]),
        request: Some("400"),
        play: |stage| stage.see("say_and_finish", &[r"GET / HTTP/1.1\r\nHost: other"]),
    }
    tls_hello_is_cut_off {
        fault: "a TLS ClientHello that ends half way: the target is to judge",
        counted: Some((INSPECTED, &[("result", "opaque")])),
        play: |stage| stage.see("echo_of", &[HALF_A_HELLO, "finish"]),
    }
    tls_hello_is_slow {
        fault: "a TLS ClientHello that stops half way: after 5 s the target is to judge",
        within: 7,
        counted: Some((INSPECTED, &[("result", "opaque")])),
        play: |stage| stage.see("echo_of", &[HALF_A_HELLO]),
    }
    tls_record_is_garbage {
        fault: "what begins as TLS and is none: the target is to judge",
        counted: Some((INSPECTED, &[("result", "opaque")])),
        play: |stage| stage.see("echo_of", &[r"\x16\x03\x01\x00\x04zzzz"]),
    }

    agent_is_held {
        fault: "the agent stands still for two seconds in the middle of a transfer",
        within: 10,
        play: workload::waits_for_a_held_agent,
    }
    agent_is_killed {
        fault: "the agent is killed with an open connection",
        workload: "reset",
        log: None,
        play: workload::loses_the_agent,
    }
    agent_is_told_to_stop_twice {
        fault: "the agent is told to stop, and once more while it drains",
        workload: "reset",
        log: None,
        play: workload::outlives_the_patience,
    }
    too_many_connections {
        fault: "one connection more than `--max-connections`",
        workload: "reset, the others echoed",
        log: logged("UO", "", &["--max-connections"]),
        options: &["--max-connections", "4", "--max-connections-per-workload", "0"],
        play: |stage| stage.see("fill", &["4"]),
    }
    flow_map_is_full {
        fault: "more connections than the flow map holds come while the agent stands still",
        workload: "served or reset",
        within: 7,
        log: None,
        counted: Some((REFUSED, &[("reason", "map_full")])),
        options: &["--max-connections", "16"],
        play: node::flow_map_full,
    }
    agent_is_out_of_descriptors {
        fault: "the agent has three descriptors left when 50 connections come, and then enough",
        workload: "served or reset",
        within: 7,
        log: None,
        counted: Some(("underpass_limit_refused_total", &[("limit", "descriptors")])),
        play: node::no_descriptors,
    }
    log_disk_is_full {
        fault: "the disk of `--log-file` is full: lines are lost, connections are not",
        workload: "all served",
        log: None,
        counted: Some((CLOSED, &[])),
        options: &["--log-file", node::LOG],
        launcher: Some(node::small_disk),
        play: node::log_disk_full,
    }
    log_reader_is_stuck {
        fault: "nobody reads the log: lines are lost, connections are not",
        workload: "all served",
        log: None,
        counted: Some((CLOSED, &[])),
        launcher: Some(node::stuck_reader),
        // More lines than a pipe holds.
        play: |stage| stage.see("crowd", &["200"]),
    }
    log_has_nowhere_to_go {
        fault: "standard error is closed",
        log: None,
        counted: Some((CLOSED, &[])),
        launcher: Some(node::no_stderr),
    }
    clocks_differ {
        fault: "the agent's clocks (monotonic, boot) stand a hundred days ahead",
        launcher: Some(node::other_clocks),
        play: node::clocks_differ,
    }
}

/// The beginning of a TLS record of 512 bytes, as Python writes it.
const HALF_A_HELLO: &str = r"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

/// Between two drips of a proxy.
const DRIP: std::time::Duration = std::time::Duration::from_millis(200);
