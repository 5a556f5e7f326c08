//! The table of requests of HTTP: every way in which one can end. Each has one record and is counted
//! once, with the right code and flag.

use underpass_tests::servers::fake_proxy::{Answer, Step};

use crate::request::{self, CHUNKS, GET, POST};
use crate::row::{faults, logged};

const DENIED: &str = "underpass_policy_denied_total";
const LIMITED: &str = "underpass_limit_refused_total";
const FAILURES: &str = "underpass_proxy_connections_failures_total";

faults! {
    request_is_served {
        fault: "none: the target answers, and is asked no more",
        workload: "200, 5 bytes, then the end",
        request: Some("200"),
        play: |stage| request::answered(stage, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    }
    request_is_served_without_a_length {
        fault: "none: the answer goes to the end of the target's stream",
        workload: "200, 5 bytes, then the end",
        request: Some("200"),
        play: |stage| request::answered(stage, "HTTP/1.0 200 OK\r\n\r\nhello"),
    }
    request_is_forbidden_by_the_proxy {
        fault: "the proxy answers 403 to the tunnel for a request",
        workload: "502, then the end",
        log: logged("CONNECT", "403", &["403 Forbidden", "because"]),
        request: Some("502"),
        play: |stage| request::refused(stage, "403 Forbidden"),
    }
    request_lacks_credentials {
        fault: "the proxy answers 407 to the tunnel for a request",
        workload: "502, then the end",
        log: logged("CONNECT", "407", &["credentials"]),
        request: Some("502"),
        play: |stage| request::refused(stage, "407 Proxy Authentication Required"),
    }
    request_finds_no_way_behind_the_proxy {
        fault: "the proxy answers 502 to the tunnel for a request",
        workload: "502, then the end",
        log: logged("CONNECT", "502", &["502 Bad Gateway", "because"]),
        request: Some("502"),
        play: |stage| request::refused(stage, "502 Bad Gateway"),
    }
    request_is_refused_behind_the_proxy {
        fault: "the proxy answers 503 to the tunnel for a request, as when the target refuses",
        workload: "503, then the end",
        log: logged("CONNECT", "503", &["503 Service Unavailable", "because"]),
        request: Some("503"),
        play: |stage| request::refused(stage, "503 Service Unavailable"),
    }
    request_is_waited_for_behind_the_proxy {
        fault: "the proxy answers 504 to the tunnel for a request",
        workload: "504, then the end",
        log: logged("CONNECT", "504", &["504 Gateway Timeout"]),
        request: Some("504"),
        play: |stage| request::refused(stage, "504 Gateway Timeout"),
    }
    request_finds_the_proxy_down {
        fault: "nobody listens where the proxy for a request should be",
        workload: "503, then the end",
        log: logged("UF", "", &["connection refused"]),
        request: Some("503"),
        counted: Some((FAILURES, &[("reason", "tcp_refused")])),
        play: request::without_proxy,
    }
    request_finds_the_proxy_silent {
        fault: "the proxy says nothing of the tunnel for a request",
        workload: "504, then the end",
        within: 17,
        log: logged("UT", "", &["did not answer CONNECT in time"]),
        request: Some("504"),
        counted: Some((FAILURES, &[("reason", "connect_timeout")])),
        play: |stage| {
            stage.proxy.set_answer(Answer::Silence);
            request::asks(stage)
        },
    }
    request_is_reset_by_the_proxy {
        fault: "the proxy resets instead of opening the tunnel for a request",
        workload: "503, then the end",
        log: logged("UF", "", &["broke before its answer was complete"]),
        request: Some("503"),
        counted: Some((FAILURES, &[("reason", "reset")])),
        play: |stage| {
            stage.proxy.set_answer(Answer::Reset);
            request::asks(stage)
        },
    }
    request_meets_garbage_at_the_proxy {
        fault: "the proxy answers with what is not HTTP to the tunnel for a request",
        workload: "502, then the end",
        log: logged("UPE", "", &["not HTTP/1"]),
        request: Some("502"),
        counted: Some((FAILURES, &[("reason", "malformed")])),
        play: |stage| {
            stage.proxy.set_answer(Answer::Send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n".into()));
            request::asks(stage)
        },
    }
    request_is_one_tunnel_too_many {
        fault: "a request needs one tunnel more than `--max-pending-tunnels` allows at a time",
        workload: "503, then the end",
        log: logged("UO", "", &["--max-pending-tunnels"]),
        request: Some("503"),
        counted: Some((LIMITED, &[("limit", "pending_tunnels")])),
        options: &["--max-pending-tunnels", "1"],
        play: request::one_tunnel_too_many,
    }
    request_is_denied {
        fault: "a rule denies the target of a request",
        workload: "403, then the end",
        log: logged("DENY", "", &["rule"]),
        request: Some("403"),
        counted: Some((DENIED, &[("policy", "Tunnel/no-secrets"), ("reason", "rule")])),
        documents: request::denied,
        play: |stage| request::asks_for_secrets(stage),
    }
    request_names_nobody {
        fault: "a request has no name where policy wants one",
        workload: "403, then the end",
        log: logged("DENY", "", &["name"]),
        request: Some("403"),
        counted: Some((DENIED, &[("reason", "no_name")])),
        documents: request::named,
        play: |stage| request::asks_without_a_name(stage),
    }
    target_is_refused_directly {
        fault: "a request goes without a proxy, and nobody listens at the target",
        workload: "503, then the end",
        log: logged("UF", "", &["cannot connect directly", "refused"]),
        request: Some("503"),
        policy: &["noProxy: [proxy.example]"],
        play: |stage| request::refused_directly(stage),
    }
    target_shows_an_expired_certificate {
        fault: "TLS is originated, and the target's certificate has expired",
        workload: "502, then the end",
        log: logged("UF", "200", &["TLS with mail.example:9001", "expired"]),
        request: Some("502"),
        documents: request::certificates,
        play: |stage| request::shown(stage, "expired"),
    }
    target_shows_the_certificate_of_another {
        fault: "TLS is originated, and the target's certificate is for another name",
        workload: "502, then the end",
        log: logged("UF", "200", &["TLS with mail.example:9002", "else.example"]),
        request: Some("502"),
        documents: request::certificates,
        play: |stage| request::shown(stage, "other"),
    }
    target_shows_the_certificate_of_a_stranger {
        fault: "TLS is originated, and nobody we trust vouches for the target's certificate",
        workload: "502, then the end",
        log: logged("UF", "200", &["TLS with mail.example:9003", "none of the CAs"]),
        request: Some("502"),
        documents: request::certificates,
        play: |stage| request::shown(stage, "unknown"),
    }
    target_closes_instead_of_answering {
        fault: "the target ends its stream instead of answering a request",
        workload: "502, then the end",
        log: logged("UC", "200", &["other.example:80: it gave no answer"]),
        request: Some("502"),
        play: |stage| request::meets(stage, &[Step::Finish, Step::Listen]),
    }
    target_resets_instead_of_answering {
        fault: "the target resets instead of answering a request",
        workload: "502, then the end",
        log: logged("UC", "200", &["other.example:80: it gave no answer"]),
        request: Some("502"),
        play: |stage| request::meets(stage, &[Step::Reset]),
    }
    target_answers_garbage {
        fault: "the target answers a request with what is not HTTP",
        workload: "502, then the end",
        log: logged("UPE", "200", &["its answer cannot be read"]),
        request: Some("502"),
        play: |stage| request::answered(stage, "SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    }
    target_answers_with_two_lengths {
        fault: "the target's answer has a length and chunks",
        workload: "502, then the end",
        log: logged("UPE", "200", &["Content-Length beside Transfer-Encoding"]),
        request: Some("502"),
        play: |stage| {
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
            request::answered(stage, &format!("{head}0\r\n\r\n"))
        },
    }
    target_switches_unasked {
        fault: "the target changes the protocol, which nobody asked for",
        workload: "502, then the end",
        log: logged("UPE", "200", &["which nobody asked for"]),
        request: Some("502"),
        play: |stage| request::answered(stage, "HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"),
    }
    target_resets_an_answer {
        fault: "the target resets in the middle of an answer",
        workload: "200, 3 bytes, then a reset",
        log: logged("UC", "200", &["its answer broke off"]),
        request: Some("200"),
        play: |stage| {
            let some = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel";
            request::meets(stage, &[Step::Send(some.into()), Step::Reset])
        },
    }
    target_ends_an_answer_early {
        fault: "the target ends its stream in the middle of an answer",
        workload: "200, 3 bytes, then a reset",
        log: logged("UC", "200", &["its answer broke off"]),
        request: Some("200"),
        play: |stage| request::answered(stage, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"),
    }
    target_breaks_its_chunks {
        fault: "a chunk of the target's answer has no size",
        workload: "502, then the end",
        log: logged("UPE", "200", &["the size of a chunk is invalid"]),
        request: Some("502"),
        play: |stage| {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            request::answered(stage, &format!("{head}3\r\nhel\r\nlo\r\n"))
        },
    }
    target_answers_before_it_has_heard_all {
        fault: "the target answers before the body has come, and wants no more",
        workload: "413, then the end",
        request: Some("413"),
        play: |stage| {
            let head = "HTTP/1.1 413 Too Much\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let answer = [Step::Read(16), Step::Send(head.into()), Step::Finish, Step::Listen];
            stage.proxy.set_answer(Answer::opened(answer));
            stage.see_to("ask", "203.0.113.11", 80, &[POST])
        },
    }
    upload_breaks_its_chunks {
        fault: "a chunk of a request has no size, when others of it have gone on",
        workload: "400, then the end",
        log: logged("DPE", "200", &["the size of a chunk is invalid"]),
        request: Some("400"),
        play: |stage| request::asks_in_parts(stage, &format!("{CHUNKS}3\\r\\nabc\\r\\n"), r"x\r\n"),
    }
    workload_leaves_before_the_answer {
        fault: "the workload resets before there is an answer to its request",
        workload: "gone",
        log: logged("DC", "200", &["the workload's connection failed"]),
        request: Some("0"),
        play: |stage| request::leaves(stage, GET, "reset", &[Step::Stall], "0"),
    }
    workload_closes_before_the_answer {
        fault: "the workload closes before there is an answer to its request; so does the target then",
        workload: "gone",
        log: logged("DC", "200", &["the workload's connection failed"]),
        request: Some("0"),
        play: |stage| request::leaves(stage, GET, "close", &[Step::Listen], "0"),
    }
    workload_leaves_its_upload {
        fault: "the workload resets in the middle of the body of a request",
        workload: "gone",
        log: logged("DC", "200", &["the workload's connection failed"]),
        request: Some("0"),
        play: |stage| request::leaves(stage, &format!("{POST}abc"), "reset", &[Step::Listen], "0"),
    }
    workload_ends_its_upload_early {
        fault: "the workload closes in the middle of the body of a request",
        workload: "gone",
        log: logged("DC", "200", &["the workload's connection failed"]),
        request: Some("0"),
        play: |stage| request::leaves(stage, &format!("{POST}abc"), "close", &[Step::Listen], "0"),
    }
    workload_leaves_its_download {
        fault: "the workload resets in the middle of an answer",
        workload: "gone",
        log: logged("DC", "200", &["the workload's connection failed"]),
        request: Some("200"),
        play: |stage| {
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello";
            let steps = [Step::Send(head.into()), Step::Listen];
            request::leaves(stage, GET, "reset", &steps, "40")
        },
    }
    agent_is_told_to_stop_twice_during_a_request {
        fault: "the agent is told to stop, and once more while a request waits for its answer",
        workload: "reset",
        log: logged("LR", "200", &[]),
        play: request::outlives_the_patience,
    }
}
