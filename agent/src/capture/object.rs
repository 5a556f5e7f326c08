//! The compiled eBPF object: loading and attaching.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya::maps::{Map, MapError};
use aya::programs::links::FdLink;
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, Program, SockOps,
};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use procfs::sys::kernel::Version;

use super::attachment::Attachment;
use super::btf;
use super::{CaptureConfig, CaptureError};

/// Compiled by the build script; empty where it found no toolchain for it.
static BYTES: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/underpass-ebpf.o"));

const SOCK_ADDR_PROGRAMS: [&str; 4] = ["connect4", "connect6", "getpeername4", "getpeername6"];
/// Those for the DNS of workloads, which end with the agent: without it queries go their own way.
const QUERY_PROGRAMS: [&str; 4] = ["send_query4", "send_query6", "show_server4", "show_server6"];
const SOCK_OPS_PROGRAM: &str = "record_flow";
/// Programs that see packets, where they see them, and whether they may outlive the agent: what the
/// others do is for the agent, or while it is there.
const PACKET_PROGRAMS: [(&str, CgroupSkbAttachType, bool); 3] = [
    ("refuse_udp", CgroupSkbAttachType::Egress, true),
    ("watch_udp", CgroupSkbAttachType::Egress, false),
    ("observe_answer", CgroupSkbAttachType::Ingress, false),
];

/// Where things are in structures of the kernel; 0 where it does not tell. Then its threads are captured
/// like everybody, and nobody's UDP is known by its namespace.
#[derive(Debug, Default, Eq, PartialEq)]
struct Offsets {
    task_flags: u32,
    /// 1 if programs may read that themselves, 0 if a helper does it for them.
    task_is_typed: u32,
    netns_inode: [u32; 3],
}

impl Offsets {
    fn of_kernel() -> Self {
        let netns_inode = || {
            let in_net = btf::offset_of("net", "ns")? + btf::offset_of("ns_common", "inum")?;
            Some([
                btf::offset_of("task_struct", "nsproxy")?,
                btf::offset_of("nsproxy", "net_ns")?,
                in_net,
            ])
        };
        Self {
            task_flags: btf::offset_of("task_struct", "flags").unwrap_or_default(),
            task_is_typed: 1,
            netns_inode: netns_inode().unwrap_or_default(),
        }
    }
}

/// The loaded object.
#[derive(Debug)]
pub(super) struct Object {
    ebpf: Ebpf,
}

impl Object {
    pub(super) fn load(config: &CaptureConfig) -> Result<Self, CaptureError> {
        if BYTES.is_empty() {
            return Err(CaptureError::NoPrograms);
        }
        let mut offsets = Offsets::of_kernel();
        let typed = Self::load_with(config, &offsets);
        if !matches!(typed, Err(CaptureError::Program { .. })) {
            return typed;
        }
        // Older kernels give programs of these kinds no task of its type.
        offsets.task_is_typed = 0;
        match Self::load_with(config, &offsets) {
            // A locked-down kernel lets no program read its memory.
            Err(error @ CaptureError::Program { .. }) if offsets != Offsets::default() => {
                let unknown = Offsets::default();
                let object = Self::load_with(config, &unknown).map_err(|_| error)?;
                tracing::warn!(
                    "the kernel lets programs read nothing of its own: connections of its threads are \
                     captured, and UDP of pods on the node's network is refused, like any other's"
                );
                Ok(object)
            }
            result => result,
        }
    }

    fn load_with(config: &CaptureConfig, offsets: &Offsets) -> Result<Self, CaptureError> {
        // Kernels before 5.11 charge maps against this limit, whose default holds none of ours. If
        // it cannot be raised, loading says so.
        if Version::current().is_ok_and(|version| version < Version::new(5, 11, 0)) {
            let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        }
        let level = if config.verbose {
            aya_log::Level::Debug
        } else {
            aya_log::Level::Warn
        } as u8;
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(underpass_abi::map::FLOWS, config.max_connections)
            .override_global(aya_log::LEVEL, &level, true)
            .override_global(underpass_abi::TASK_FLAGS_OFFSET, &offsets.task_flags, true)
            .override_global(underpass_abi::TASK_IS_TYPED, &offsets.task_is_typed, true)
            .override_global(underpass_abi::NETNS_INODE_PATH, &offsets.netns_inode, true)
            .load(BYTES)
            .map_err(|source| CaptureError::Load(Box::new(source)))?;
        for name in SOCK_ADDR_PROGRAMS.into_iter().chain(QUERY_PROGRAMS) {
            sock_addr(&mut ebpf, name)?
                .load()
                .map_err(|source| CaptureError::Program {
                    program: name,
                    source,
                })?;
        }
        sock_ops(&mut ebpf)?
            .load()
            .map_err(|source| CaptureError::Program {
                program: SOCK_OPS_PROGRAM,
                source,
            })?;
        for (name, ..) in PACKET_PROGRAMS {
            packets(&mut ebpf, name)?
                .load()
                .map_err(|source| CaptureError::Program {
                    program: name,
                    source,
                })?;
        }
        Ok(Self { ebpf })
    }

    pub(super) fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Takes a map out of the object, as the type that `underpass-abi` gives it.
    pub(super) fn map<M: TryFrom<Map, Error = MapError>>(
        &mut self,
        name: &'static str,
    ) -> Result<M, CaptureError> {
        self.ebpf
            .take_map(name)
            .ok_or(CaptureError::Missing(name))?
            .try_into()
            .map_err(|source| CaptureError::Map {
                name,
                action: "use it with the type the agent expects",
                source,
            })
    }

    /// A descriptor of a hash map, for what aya does not do with it. To be had before the map is
    /// taken out.
    pub(super) fn hash_map(&self, name: &'static str) -> Result<OwnedFd, CaptureError> {
        let Some(Map::HashMap(map) | Map::LruHashMap(map)) = self.ebpf.map(name) else {
            return Err(CaptureError::Missing(name));
        };
        let descriptor = map.fd().as_fd().try_clone_to_owned();
        descriptor.map_err(|error| CaptureError::Map {
            name,
            action: "duplicate the descriptor of",
            source: error.into(),
        })
    }

    pub(super) fn attach(&mut self, cgroup: &Path, key: &Path) -> Result<Attachment, CaptureError> {
        let directory = File::open(cgroup).map_err(|source| CaptureError::Cgroup {
            path: cgroup.to_owned(),
            action: "open it",
            source,
        })?;
        let refused = |program| {
            move |source| CaptureError::Attach {
                program,
                cgroup: cgroup.to_owned(),
                source,
            }
        };
        // First what must be there when `connect` starts to redirect. With links, `Single` is
        // multi-attach: other agents' programs stay.
        let program = sock_ops(&mut self.ebpf)?;
        let link = program
            .attach(&directory, CgroupAttachMode::Single)
            .and_then(|id| program.take_link(id))
            .map_err(refused(SOCK_OPS_PROGRAM))?;
        let mut links = vec![(SOCK_OPS_PROGRAM, FdLink::try_from(link))];
        let mut only_here = Vec::new();
        for (name, hook, outlives) in PACKET_PROGRAMS {
            let program = packets(&mut self.ebpf, name)?;
            let link = program
                .attach(&directory, hook, CgroupAttachMode::Single)
                .and_then(|id| program.take_link(id))
                .map_err(refused(name))?;
            let kept = if outlives { &mut links } else { &mut only_here };
            kept.push((name, FdLink::try_from(link)));
        }
        // What shows the server comes before what hides it.
        for name in QUERY_PROGRAMS.into_iter().chain(SOCK_ADDR_PROGRAMS).rev() {
            let program = sock_addr(&mut self.ebpf, name)?;
            let link = program
                .attach(&directory, CgroupAttachMode::Single)
                .and_then(|id| program.take_link(id))
                .map_err(refused(name))?;
            let outlives = SOCK_ADDR_PROGRAMS.contains(&name);
            let kept = if outlives { &mut links } else { &mut only_here };
            kept.push((name, FdLink::try_from(link)));
        }
        Attachment::new(links, only_here, key)
    }
}

fn sock_addr<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut CgroupSockAddr, CaptureError> {
    program(ebpf, name)
}

fn packets<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSkb, CaptureError> {
    program(ebpf, name)
}

fn sock_ops(ebpf: &mut Ebpf) -> Result<&mut SockOps, CaptureError> {
    program(ebpf, SOCK_OPS_PROGRAM)
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, CaptureError>
where
    &'a mut P: TryFrom<&'a mut Program>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(CaptureError::Missing(name))
}

#[cfg(test)]
mod tests;
