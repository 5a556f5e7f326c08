//! A connection of our own that must be captured, as proof that the hooks work where it counts:
//! in the attached cgroup. "Attached" alone proves nothing, for links survive a cgroup that died.
//!
//! Hooks follow the cgroup in which a socket was created, and the agent may be in another one. So
//! a helper process sits in a cgroup of its own below the attached one, creates sockets there and
//! hands them over; the agent connects them.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpSocket;
use tokio::time::timeout;

use super::CaptureError;
use super::cgroup::{CANARY_PREFIX, OwnedCgroup, enter};
use super::claim::unique;
use crate::name::OriginalDst;
use crate::sockets::finish_on_close;

/// Where canaries claim to go. 192.0.0.8 is the IPv4 dummy address (RFC 7600), 100::/64 is for
/// discarding (RFC 6666): should a canary not be captured, it meets nobody.
pub(super) const DESTINATION_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8));
pub(super) const DESTINATION_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 8));

/// No service has port 0, so capturing it harms nobody; it is captured whatever ports policy
/// names.
pub(super) const PORT: u16 = 0;

/// What the agent sends on an accepted canary before it closes.
const GREETING: &[u8] = b"underpass\n";

const DEADLINE: Duration = Duration::from_secs(2);

/// Makes canary connections in one attached cgroup.
#[derive(Debug)]
pub struct Canary {
    // Ends the helper when dropped: it reads the end of the stream.
    requests: UnixStream,
    helper: Child,
    cgroup: OwnedCgroup,
}

impl Canary {
    /// Starts the helper below `cgroup`.
    ///
    /// # Errors
    /// The helper cannot be started or cannot enter its cgroup.
    pub fn start(cgroup: &Path) -> Result<Self, CaptureError> {
        let unique = unique().map_err(|source| CaptureError::CanaryHelper {
            cgroup: cgroup.to_owned(),
            source,
        })?;
        let cgroup = OwnedCgroup::create(cgroup, &format!("{CANARY_PREFIX}{unique}"))?;
        let failed = |source| CaptureError::CanaryHelper {
            cgroup: cgroup.path().to_owned(),
            source,
        };
        let (requests, theirs) = UnixStream::pair().map_err(failed)?;
        requests.set_read_timeout(Some(DEADLINE)).map_err(failed)?;
        let helper = Command::new("/proc/self/exe")
            .arg("canary-helper")
            .arg(cgroup.path())
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(failed)?;
        Ok(Self {
            requests,
            helper,
            cgroup,
        })
    }

    /// Whether an accepted connection is one of ours, to be answered by [`greet`](Self::greet).
    pub fn is_canary(dst: OriginalDst) -> bool {
        dst.port() == PORT && [DESTINATION_V4, DESTINATION_V6].contains(&dst.ip())
    }

    /// Answers a canary that arrived.
    pub async fn greet(mut stream: tokio::net::TcpStream) {
        use tokio::io::AsyncWriteExt;
        finish_on_close(&stream);
        // If it fails, the canary's maker sees that and says so.
        let _ = stream.write_all(GREETING).await;
        let _ = stream.shutdown().await;
    }

    /// Sends one canary of this family and waits for the agent to answer it.
    ///
    /// # Errors
    /// It was not captured, or the agent did not answer in time; says which.
    pub async fn sing(&mut self, ipv6: bool) -> Result<(), CaptureError> {
        let destination = SocketAddr::new(if ipv6 { DESTINATION_V6 } else { DESTINATION_V4 }, PORT);
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            CaptureError::Canary(format!("{what} {destination}: {error}"))
        };
        let socket = self
            .socket(ipv6)
            .map_err(|source| CaptureError::CanaryHelper {
                cgroup: self.cgroup.path().to_owned(),
                source,
            })?;
        let answer = timeout(DEADLINE, async {
            use tokio::io::AsyncReadExt;
            let mut stream = socket
                .connect(destination)
                .await
                .map_err(|error| failed("connecting to", &error))?;
            // A stream that was not redirected could not have got this far; still, ask.
            let peer = stream.peer_addr().map_err(|e| failed("the peer of", &e))?;
            let mut answer = Vec::with_capacity(GREETING.len());
            (&mut stream)
                .take(GREETING.len() as u64)
                .read_to_end(&mut answer)
                .await
                .map_err(|error| failed("reading from", &error))?;
            if answer != GREETING {
                return Err(failed("the answer from", &"it is not the agent's"));
            }
            Ok(peer)
        })
        .await
        .map_err(|_| failed("no answer within 2 s from", &"is the agent overloaded?"))??;
        tracing::trace!(peer = %answer, "canary captured");
        Ok(())
    }

    /// Asks the helper for a socket. Blocks for as long as the helper takes, which only creates a
    /// socket; the deadline is for a helper that was stopped.
    fn socket(&mut self, ipv6: bool) -> io::Result<TcpSocket> {
        use std::io::Write;
        (&self.requests).write_all(if ipv6 { b"6" } else { b"4" })?;
        let mut byte = [0u8; 1];
        let mut parts = [IoSliceMut::new(&mut byte)];
        let mut space = nix::cmsg_space!(std::os::fd::RawFd);
        let message = recvmsg::<()>(
            self.requests.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        let received = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        let Some(fd) = received else {
            if message.flags.contains(MsgFlags::MSG_CTRUNC) {
                return Err(nix::errno::Errno::EMFILE.into());
            }
            let status = self.helper.try_wait();
            return Err(io::Error::other(format!("it gave no socket ({status:?})")));
        };
        Ok(TcpSocket::from_std_stream(owned(fd)))
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        let _ = self.requests.shutdown(std::net::Shutdown::Both);
        // It may have been stopped, and would not see that.
        let _ = self.helper.kill();
        let _ = self.helper.wait();
    }
}

/// The helper's whole life: enters the cgroup, then makes a socket for each byte that comes on
/// standard input, until its end.
///
/// # Errors
/// The cgroup cannot be entered, or the agent's end fails.
pub fn serve_sockets(cgroup: &Path) -> anyhow::Result<()> {
    enter(cgroup)?;
    let mut requests = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut family = [0u8; 1];
    while requests.read(&mut family)? == 1 {
        let domain = if family == *b"6" {
            Domain::IPV6
        } else {
            Domain::IPV4
        };
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP));
        let fds = socket.as_ref().map(|socket| [socket.as_raw_fd()]);
        let rights = fds.as_ref().ok().map(|fds| ControlMessage::ScmRights(fds));
        sendmsg::<()>(
            requests.as_raw_fd(),
            &[IoSlice::new(b"s")],
            rights.as_slice(),
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
    }
    Ok(())
}

#[expect(
    unsafe_code,
    reason = "nix hands received descriptors over as bare numbers"
)]
fn owned(fd: std::os::fd::RawFd) -> std::net::TcpStream {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    std::net::TcpStream::from(unsafe { OwnedFd::from_raw_fd(fd) })
}
