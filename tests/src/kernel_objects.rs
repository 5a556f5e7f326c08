//! The BPF objects of the machine.
#![expect(unsafe_code, reason = "bpf(2) takes a pointer to its arguments")]

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;

use nix::libc;

/// A kind of BPF object. The values are the `bpf(2)` commands that enumerate them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i64)]
pub enum Kind {
    /// Programs.
    Program = 11,
    /// Maps.
    Map = 12,
    /// Links.
    Link = 31,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Program, Self::Map, Self::Link];

    /// How `/proc/PID/fdinfo` names a descriptor's object.
    fn in_fdinfo(self) -> &'static str {
        match self {
            Self::Program => "prog_id:",
            Self::Map => "map_id:",
            Self::Link => "link_id:",
        }
    }
}

/// One object; the kernel gives no id twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object(Kind, u32);

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.0, self.1)
    }
}

/// All there are now.
///
/// # Errors
/// As `bpf(2)`.
pub fn all() -> io::Result<BTreeSet<Object>> {
    let mut all = BTreeSet::new();
    for kind in Kind::ALL {
        let mut last = 0;
        while let Some(next) = next_id(kind, last)? {
            all.insert(Object(kind, next));
            last = next;
        }
    }
    Ok(all)
}

/// Those to which a living process has a descriptor.
pub fn held() -> BTreeSet<Object> {
    let mut held = BTreeSet::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let fdinfo = fs::read_dir(process.path().join("fdinfo"));
        for entry in fdinfo.into_iter().flatten().flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            for kind in Kind::ALL {
                let ids = text
                    .lines()
                    .filter_map(|line| line.strip_prefix(kind.in_fdinfo()));
                held.extend(
                    ids.filter_map(|id| id.trim().parse().ok())
                        .map(|id| Object(kind, id)),
                );
            }
        }
    }
    held
}

/// The part of `union bpf_attr` for the commands that enumerate.
#[repr(C)]
#[derive(Default)]
struct NextId {
    start_id: u32,
    next_id: u32,
    open_flags: u32,
}

fn next_id(kind: Kind, after: u32) -> io::Result<Option<u32>> {
    let mut attr = NextId {
        start_id: after,
        ..NextId::default()
    };
    let size = size_of::<NextId>();
    // SAFETY: `attr` is the part of the union that belongs to the command, all of it initialised,
    // and the size says how much there is.
    let result = unsafe { libc::syscall(libc::SYS_bpf, kind as i64, &raw mut attr, size) };
    match (result, io::Error::last_os_error()) {
        (0, _) => Ok(Some(attr.next_id)),
        (_, error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        (_, error) => Err(error),
    }
}
