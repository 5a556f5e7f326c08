//! tinyproxy: HTTP/1.1 without TLS, and Basic credentials.

use std::fmt::Write as _;

use super::forward::{
    Credentials, ForwardProxy, Logged, Options, Security, addresses, directory, write,
};
use crate::World;

/// Starts it and waits until it answers.
///
/// Panics if asked for TLS or a token, which it does not have.
#[track_caller]
pub fn start(world: &World, options: &Options<'_>) -> ForwardProxy {
    assert!(
        matches!(options.security, Security::Plain),
        "tinyproxy listens without TLS only"
    );
    let dir = directory(world, "tinyproxy", options.port);
    let log = dir.join("log");
    let mut text = format!(
        "Port {}\nTimeout 60\nMaxClients 100\nLogLevel Connect\nLogFile \"{}\"\n",
        options.port,
        log.display(),
    );
    for address in addresses(options.port) {
        let _ = writeln!(text, "Listen {}", address.ip());
    }
    match options.credentials {
        Credentials::None => {}
        Credentials::Basic(user, password) => {
            let _ = writeln!(text, "BasicAuth {user} {password}");
        }
        Credentials::Bearer(_) => panic!("tinyproxy knows no tokens"),
    }
    let file = dir.join("tinyproxy.conf");
    write(&file, &text);
    let command = world
        .inet()
        .command("tinyproxy")
        .args(["-d", "-c"])
        .arg(&file);
    ForwardProxy::start(world, command, options.port, log, logged)
}

/// Reads `CONNECT   Nov 23 07:00:00.000 [123]: Request (file descriptor 6): CONNECT a:443 HTTP/1.1`.
fn logged(line: &str) -> Option<Logged> {
    let (_, request) = line.split_once("]: Request (file descriptor ")?;
    let (_, request) = request.split_once("): ")?;
    let mut words = request.split(' ').map(str::to_owned);
    Some(Logged {
        method: words.next()?,
        target: words.next()?,
        protocol: words.next()?,
        ..Logged::default()
    })
}
