//! Servers that say who they are, so that a delivery to the wrong one is seen from both ends.
//!
//! A client's first line is `NONCE TARGET VERB [NUMBER]`: who it means to talk to, and about what.
//! The answer is `IDENTITY NONCE`, then what the verb asks for.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use socket2::SockRef;

use crate::Place;
use crate::addr::{OTHER_V4, OTHER_V6, SITE_V4, SITE_V6};
use crate::servers::tcp::Server;

/// Sends back what comes, and ends its stream when the client does.
pub const ECHO: &str = "echo";
/// Sends as many bytes as the number says (see [`pattern`]), then the end of its stream.
pub const SOURCE: &str = "source";
/// Resets the connection.
pub const RESET: &str = "reset";

/// More than any client's first line has.
const LINE: u64 = 256;

/// Servers on all target addresses of a world.
pub struct Identities {
    servers: Vec<Server>,
    misdelivered: Arc<Mutex<Vec<String>>>,
}

impl Identities {
    /// Starts one per target address and port.
    #[track_caller]
    pub fn start(place: &Place, ports: &[u16]) -> Self {
        let misdelivered = Arc::<Mutex<Vec<String>>>::default();
        let addresses: [IpAddr; 4] = [
            SITE_V4.into(),
            SITE_V6.into(),
            OTHER_V4.into(),
            OTHER_V6.into(),
        ];
        let all = addresses
            .iter()
            .flat_map(|address| ports.iter().map(|port| SocketAddr::new(*address, *port)));
        let servers = all
            .map(|identity| {
                let misdelivered = Arc::clone(&misdelivered);
                Server::start(place, identity, move |stream, _| {
                    // An error is a client or an agent that went away, which is what they do here.
                    let _ = serve(&stream, identity, &misdelivered);
                })
            })
            .collect();
        Self {
            servers,
            misdelivered,
        }
    }

    /// Who they are.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(Server::address).collect()
    }

    /// First lines that were meant for another server, or were none at all.
    pub fn misdelivered(&self) -> Vec<String> {
        self.misdelivered.lock().clone()
    }
}

/// The bytes that [`SOURCE`] sends: position modulo 251.
pub fn pattern() -> impl Iterator<Item = u8> {
    (0..=250).cycle()
}

fn serve(
    stream: &TcpStream,
    identity: SocketAddr,
    misdelivered: &Mutex<Vec<String>>,
) -> io::Result<()> {
    // Nobody here is silent for so long.
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.by_ref().take(LINE).read_line(&mut line)?;
    // A client that was killed before it had said all said nothing to anybody.
    if !line.ends_with('\n') && line.len() < LINE as usize {
        return Ok(());
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let (nonce, verb, number) = match words[..] {
        [nonce, target, verb, ref rest @ ..] if target == identity.to_string() => {
            (nonce, verb, rest.first().and_then(|word| word.parse().ok()))
        }
        _ => {
            misdelivered.lock().push(format!("{identity} got {line:?}"));
            return Ok(());
        }
    };
    (&*stream).write_all(format!("{identity} {nonce}\n").as_bytes())?;
    match verb {
        RESET => SockRef::from(stream).set_linger(Some(Duration::ZERO)),
        SOURCE => {
            let mut left: usize = number.unwrap_or_default();
            // A whole number of rounds, so that each block begins like the first.
            let block: Vec<u8> = pattern().take(251 * 128).collect();
            while left > 0 {
                let length = left.min(block.len());
                (&*stream).write_all(&block[..length])?;
                left -= length;
            }
            stream.shutdown(Shutdown::Write)?;
            io::copy(&mut reader, &mut io::sink()).map(drop)
        }
        _ => {
            io::copy(&mut reader, &mut &*stream)?;
            stream.shutdown(Shutdown::Write)
        }
    }
}
