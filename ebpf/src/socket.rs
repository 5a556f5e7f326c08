//! Storage that lives and dies with a socket.

use core::ffi::c_void;

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::{bpf_sk_fullsock, bpf_sk_storage_delete, bpf_sk_storage_get};
use aya_ebpf::programs::SkBuffContext;

/// The value that `map` has for `sk`, if any.
///
/// # Safety
/// `sk` must come from the context of the running program, or from a lookup not yet released.
#[inline(always)]
pub unsafe fn storage<T>(map: &'static SkStorage<T>, sk: *mut bpf_sock) -> Option<&'static mut T> {
    // SAFETY: the caller vouches for `sk`; the kernel returns null or a live value.
    unsafe {
        bpf_sk_storage_get(raw(map), sk.cast(), core::ptr::null_mut(), 0)
            .cast::<T>()
            .as_mut()
    }
}

/// The value that `map` has for `sk`, first made all zero if there is none; `None` where the kernel
/// has no memory for it.
///
/// # Safety
/// As for [`storage`]; all zero must be a valid value.
#[inline(always)]
pub unsafe fn storage_or_zero<T>(
    map: &'static SkStorage<T>,
    sk: *mut bpf_sock,
) -> Option<&'static mut T> {
    let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: the caller vouches for `sk` and the value.
    unsafe {
        bpf_sk_storage_get(raw(map), sk.cast(), core::ptr::null_mut(), create)
            .cast::<T>()
            .as_mut()
    }
}

/// The socket that sends or gets a packet, if there is a whole one.
#[inline(always)]
pub fn of_packet(ctx: &SkBuffContext) -> Option<*mut bpf_sock> {
    // SAFETY: the context is valid while the program runs; the helper gives null or a socket that
    // lives as long.
    unsafe {
        let sk: *mut bpf_sock = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return None;
        }
        let sk = bpf_sk_fullsock(sk);
        (!sk.is_null()).then_some(sk)
    }
}

/// Drops the value that `map` has for `sk`, if any.
///
/// # Safety
/// As for [`storage`].
#[inline(always)]
pub unsafe fn forget<T>(map: &'static SkStorage<T>, sk: *mut bpf_sock) {
    // SAFETY: the caller vouches for `sk`. Having had no value is fine.
    unsafe { bpf_sk_storage_delete(raw(map), sk.cast()) };
}

/// A map as the helpers want it: its definition, which the loader replaces by the real one.
#[inline(always)]
fn raw<T>(map: &'static SkStorage<T>) -> *mut c_void {
    core::ptr::from_ref(map).cast_mut().cast()
}
