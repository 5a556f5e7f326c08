//! What the agent may do that others may not (capabilities(7)), and giving up what it has done.
//!
//! Capabilities belong to threads. So each thread gives up its own: it is sent a signal, and does so
//! in the handler, as libc has all threads change their user.

#![expect(
    unsafe_code,
    reason = "signals to threads and capset(2) have no safe wrapper"
)]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::libc;
use procfs::ProcError;
use procfs::process::Process;

/// Bit numbers (linux/capability.h).
const DAC_OVERRIDE: u32 = 1;
const DAC_READ_SEARCH: u32 = 2;
const NET_ADMIN: u32 = 12;
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// What a running agent goes on using, as far as it has it, and what for.
const NEEDED: [(u32, &str); 6] = [
    // Policy, Secrets and cgroups that are others'.
    (DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
    (DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH"),
    // Asking which programs are at a cgroup.
    (NET_ADMIN, "CAP_NET_ADMIN"),
    // Seeing in which namespace a process is.
    (SYS_PTRACE, "CAP_SYS_PTRACE"),
    // Entering network namespaces.
    (SYS_ADMIN, "CAP_SYS_ADMIN"),
    // Maps.
    (BPF, "CAP_BPF"),
];

/// For the signals to be handled; they are in moments.
const ROUNDS: u32 = 200;
const ROUND: Duration = Duration::from_millis(5);

/// Version 3 of capset(2): 64 bits, in two words.
const VERSION: u32 = 0x2008_0522;

/// What the handler leaves.
static LEFT: AtomicU64 = AtomicU64::new(0);

/// Which of the capabilities that capturing takes are not in `effective`. CAP_SYS_ADMIN stands in
/// for those that were once part of it.
pub(crate) fn missing(effective: u64) -> Vec<&'static str> {
    let has = |capability: u32| effective & (1 << capability) != 0;
    let admin = has(SYS_ADMIN);
    let wanted = [
        ("CAP_BPF", admin || has(BPF)),
        ("CAP_PERFMON", admin || has(PERFMON)),
        ("CAP_NET_ADMIN", has(NET_ADMIN)),
    ];
    let missing = wanted.into_iter().filter(|(_, present)| !present);
    missing.map(|(name, _)| name).collect()
}

/// What this process has of what a running agent needs; that is all it has after [`give_up`].
///
/// # Errors
/// There is no `/proc`.
pub fn kept() -> Result<Vec<&'static str>, ProcError> {
    let permitted = Process::myself()?.status()?.capprm;
    let kept = NEEDED.iter().filter(|(bit, _)| permitted & (1 << bit) != 0);
    Ok(kept.map(|(_, name)| *name).collect())
}

/// Has every thread of this process give up, for good, what a running agent does not need: loading
/// programs and opening endpoints are behind it. Nothing that it starts gets more.
///
/// # Errors
/// Some thread still has more: the kernel refused, or it did not take the signal.
pub fn give_up() -> io::Result<()> {
    LEFT.store(needed(), Ordering::Relaxed);
    lower()?;
    let signal = libc::SIGRTMAX();
    handle(signal)?;
    let process = Process::myself().map_err(io::Error::other)?;
    let mut rest = 0;
    for _ in 0..ROUNDS {
        let threads = with_more(&process).map_err(io::Error::other)?;
        rest = threads.len();
        if rest == 0 {
            return Ok(());
        }
        for thread in threads {
            // SAFETY: a system call without pointers. The thread may have ended meanwhile.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) };
        }
        thread::sleep(ROUND);
    }
    Err(io::Error::other(format!("{rest} threads have kept theirs")))
}

fn needed() -> u64 {
    NEEDED.iter().fold(0, |all, (bit, _)| all | 1 << bit)
}

/// The threads that have not given up theirs.
fn with_more(process: &Process) -> Result<Vec<i32>, ProcError> {
    let mut found = Vec::new();
    for task in process.tasks()?.flatten() {
        // Without a status it has ended.
        let Ok(status) = task.status() else { continue };
        let has_more = status.capprm & !needed() != 0 || status.capinh != 0;
        if has_more || status.nonewprivs == Some(0) {
            found.push(task.tid);
        }
    }
    Ok(found)
}

fn handle(signal: libc::c_int) -> io::Result<()> {
    extern "C" fn handler(_: libc::c_int) {
        // SAFETY: errno is this thread's, and what it interrupts may be about to read it.
        let errno = unsafe { *libc::__errno_location() };
        // Who has not is found out by asking the kernel.
        let _ = lower();
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = errno };
    }
    // SAFETY: all zeros are a value of it.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: both pointers are to values that outlive the call, and the handler calls nothing that
    // must not be called in one: system calls, and an atomic.
    let result = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    (result == 0)
        .then_some(())
        .ok_or_else(io::Error::last_os_error)
}

#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Word {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The calling thread gives up its capabilities but those in [`LEFT`], and any way to get them
/// back. Allocates nothing and takes no lock: it runs in a signal handler.
fn lower() -> io::Result<()> {
    let check = |result: libc::c_long| {
        (result == 0)
            .then_some(())
            .ok_or_else(io::Error::last_os_error)
    };
    let left = LEFT.load(Ordering::Relaxed);
    // SAFETY: a system call without pointers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
    for bit in (0..u64::BITS).filter(|bit| left & (1 << bit) == 0) {
        // Without CAP_SETPCAP, or past the last one that this kernel knows, there is nothing to do.
        // SAFETY: as above.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(bit), 0, 0, 0) };
    }
    let mut header = Header {
        version: VERSION,
        pid: 0,
    };
    let mut words = [Word::default(); 2];
    // SAFETY: the kernel reads the header and writes two words, as version 3 has it.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, words.as_mut_ptr()) })?;
    for (word, left) in words.iter_mut().zip([left as u32, (left >> 32) as u32]) {
        word.permitted &= left;
        word.effective &= left;
        // The ambient ones go with them.
        word.inheritable = 0;
    }
    // SAFETY: the kernel reads the header and two words.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, words.as_ptr()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let all = |bits: &[u32]| bits.iter().fold(0, |all, bit| all | 1 << bit);
        assert_eq!(missing(0), ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]);
        assert_eq!(missing(all(&[SYS_ADMIN])), ["CAP_NET_ADMIN"]);
        assert!(missing(all(&[BPF, PERFMON, NET_ADMIN])).is_empty());
        assert!(missing(u64::MAX).is_empty());
    }
}
