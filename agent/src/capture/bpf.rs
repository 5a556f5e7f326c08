//! What aya does not offer of bpf(2).

#![expect(unsafe_code, reason = "bpf(2) takes a pointer to its arguments")]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;
use nix::errno::Errno;
use nix::libc;

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_LINK_DETACH: libc::c_long = 34;

/// The part of `union bpf_attr` for BPF_OBJ_GET.
#[repr(C)]
#[derive(Default)]
struct ObjectGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The part of `union bpf_attr` for BPF_MAP_LOOKUP_AND_DELETE_ELEM.
#[repr(C)]
#[derive(Default)]
struct MapElement {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part of `union bpf_attr` for BPF_LINK_DETACH.
#[repr(C)]
#[derive(Default)]
struct LinkDetach {
    link_fd: u32,
}

/// Opens what is pinned at `path`.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let pathname = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let mut attr = ObjectGet {
        pathname: pathname.as_ptr() as u64,
        ..ObjectGet::default()
    };
    let fd = call(BPF_OBJ_GET, &mut attr)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Looks an entry up and deletes it, in one step; `None` if there is none. `K` and `V` are what the
/// map was made with. Hash maps can do it since Linux 5.14; before, it is an error.
pub(super) fn take_entry<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::zeroed();
    let mut attr = MapElement {
        map_fd: map.as_raw_fd().cast_unsigned(),
        key: (&raw const *key) as u64,
        value: value.as_mut_ptr() as u64,
        ..MapElement::default()
    };
    match call(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut attr) {
        // SAFETY: the kernel has written it, and any bytes are a value of such a type.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes a link off its hook, whoever else holds it. Since Linux 5.9.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetach {
        link_fd: link.as_raw_fd().cast_unsigned(),
    };
    call(BPF_LINK_DETACH, &mut attr).map(|_| ())
}

fn call<A>(command: libc::c_long, attr: &mut A) -> io::Result<i32> {
    // SAFETY: `attr` is the part of the union that belongs to `command`, all of it initialised,
    // and the size says how much there is; what it points to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<A>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}
