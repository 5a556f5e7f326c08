//! Whether our programs are still where they were attached.
//!
//! The kernel is asked what runs at each hook of the cgroup, not how our links are: a link says
//! nothing of a hook that it was taken from, and the answer is the same however the programs are
//! held there. The library that loads the programs asks this of device hooks only, hence the one
//! system call of our own.
#![expect(unsafe_code, reason = "BPF_PROG_QUERY has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use aya::Ebpf;
use nix::errno::Errno;
use nix::libc;

use super::CaptureError;

/// Each program and its hook, as of `enum bpf_attach_type` in `linux/bpf.h`.
const HOOKS: [(&str, u32); 12] = [
    ("connect4", 10),
    ("connect6", 11),
    ("getpeername4", 29),
    ("getpeername6", 30),
    ("record_flow", 3),
    ("refuse_udp", 1),
    ("watch_udp", 1),
    ("observe_answer", 0),
    ("send_query4", 14),
    ("send_query6", 15),
    ("show_server4", 19),
    ("show_server6", 20),
];

/// The kernel takes no more programs on one hook of one cgroup (`BPF_CGROUP_MAX_PROGS`).
const MAX_PROGRAMS: usize = 64;

/// `BPF_PROG_QUERY` of `enum bpf_cmd`.
const BPF_PROG_QUERY: libc::c_long = 16;

/// The hooks of one cgroup that our programs were attached to.
#[derive(Debug)]
pub struct Hooks {
    cgroup: PathBuf,
    /// Open all the time: the check works without descriptors to spare, and a cgroup that was
    /// removed and made again is not taken for the one that we attached to.
    directory: File,
    programs: Vec<Program>,
}

#[derive(Debug)]
struct Program {
    name: &'static str,
    hook: u32,
    id: u32,
}

impl Hooks {
    pub(super) fn new(ebpf: &Ebpf, cgroup: &Path) -> Result<Self, CaptureError> {
        let directory = File::open(cgroup).map_err(|source| CaptureError::Cgroup {
            path: cgroup.to_owned(),
            action: "open it",
            source,
        })?;
        let programs = HOOKS.into_iter().map(|(name, hook)| {
            let program = ebpf.program(name).ok_or(CaptureError::Missing(name))?;
            let info = program.info().map_err(|source| CaptureError::Program {
                program: name,
                source,
            })?;
            let id = info.id();
            Ok(Program { name, hook, id })
        });
        Ok(Self {
            cgroup: cgroup.to_owned(),
            programs: programs.collect::<Result<_, CaptureError>>()?,
            directory,
        })
    }

    /// Checks that every program is attached.
    ///
    /// # Errors
    /// Names those that are not, or says that the cgroup cannot be asked: it may be gone.
    pub fn check(&self) -> Result<(), CaptureError> {
        let mut detached = Vec::new();
        for program in &self.programs {
            let attached = attached(self.directory.as_fd(), program.hook).map_err(|source| {
                CaptureError::Cgroup {
                    path: self.cgroup.clone(),
                    action: "ask which programs are attached to it",
                    source,
                }
            })?;
            if !attached.contains(&program.id) {
                detached.push(program.name);
            }
        }
        if detached.is_empty() {
            Ok(())
        } else {
            Err(CaptureError::Detached {
                programs: detached,
                cgroup: self.cgroup.clone(),
            })
        }
    }
}

/// `union bpf_attr` as `BPF_PROG_QUERY` has it, up to the field that Linux 5.10 knows as the last.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    _pad: u32,
}

const _: () = assert!(size_of::<Query>() == 32);

/// Ids of the programs that are attached to this hook of the cgroup itself.
fn attached(cgroup: BorrowedFd<'_>, hook: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; MAX_PROGRAMS];
    let mut query = Query {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_type: hook,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: MAX_PROGRAMS as u32,
        ..Query::default()
    };
    // SAFETY: `query` is a valid attribute of the size given, whose rest the kernel takes as zero;
    // it writes at most `prog_cnt` ids to `prog_ids`, which has room for them, and the two
    // counters into `query`. Both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            &raw mut query,
            size_of::<Query>(),
        )
    };
    Errno::result(result)?;
    Ok(ids.into_iter().take(query.prog_cnt as usize).collect())
}
