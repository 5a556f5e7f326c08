//! The namespace's cookie on kernels before 5.14: there only an eBPF program can ask for it.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;

use aya::maps::{MapData, MapError, SkStorage};
use aya::programs::cgroup_sock_addr::CgroupSockAddrLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, ProgramError};
use underpass_abi::{Redirect, SocketRole, map};

use crate::capture::cgroup::Hierarchy;
use crate::capture::object::Object;
use crate::capture::{CaptureError, MarkedSockets};

const PROGRAM: &str = "tell_netns";

/// The cookie of the calling thread's network namespace, told by the hook that a socket of ours
/// runs into when it connects. Nothing stays attached.
pub(super) fn cookie(object: &mut Object, sockets: &MarkedSockets) -> Result<u64, CaptureError> {
    // At the root the hook is met wherever this process is.
    let link = attach(object, Hierarchy::find()?.root())?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(CaptureError::NetnsCookie)?;
    sockets
        .mark_as(&socket, SocketRole::AsksNetns)
        .map_err(CaptureError::NetnsCookie)?;
    // Sends nothing. The hook comes first, so it does not matter whether there is a way.
    let _ = socket.connect((Ipv4Addr::LOCALHOST, 9));
    drop(link);

    let answers: SkStorage<&MapData, Redirect> = object
        .ebpf()
        .map(map::REDIRECTS)
        .ok_or(CaptureError::Missing(map::REDIRECTS))?
        .try_into()
        .map_err(|error| unanswered(&error))?;
    let answer = answers
        .get(&socket, 0)
        .map_err(|error| unanswered(&error))?;
    Ok(answer.netns_cookie)
}

fn attach(object: &mut Object, cgroup: &Path) -> Result<CgroupSockAddrLink, CaptureError> {
    let directory = File::open(cgroup).map_err(|source| CaptureError::Cgroup {
        path: cgroup.to_owned(),
        action: "open it",
        source,
    })?;
    let program: &mut CgroupSockAddr = object
        .ebpf()
        .program_mut(PROGRAM)
        .and_then(|program| program.try_into().ok())
        .ok_or(CaptureError::Missing(PROGRAM))?;
    match program.load() {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
        Err(source) => {
            return Err(CaptureError::Program {
                program: PROGRAM,
                source,
            });
        }
    }
    program
        .attach(&directory, CgroupAttachMode::Single)
        .and_then(|id| program.take_link(id))
        .map_err(|source| CaptureError::Attach {
            program: PROGRAM,
            cgroup: cgroup.to_owned(),
            source,
        })
}

fn unanswered(error: &MapError) -> CaptureError {
    CaptureError::NetnsCookie(io::Error::other(format!(
        "the hook did not tell it: {error}"
    )))
}
