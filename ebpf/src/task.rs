//! The task that calls `connect`.

use aya_ebpf::Global;
use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel};

/// Byte offset of `flags` in the running kernel's `task_struct`; the agent sets it when it loads
/// the programs. 0 where it is not known.
#[unsafe(no_mangle)]
static TASK_FLAGS_OFFSET: Global<u32> = Global::new(0);

/// PF_KTHREAD of the kernel's include/linux/sched.h.
const KERNEL_THREAD: u32 = 0x0020_0000;

/// Whether it is a thread of the kernel itself: a client of a network file system, say, which does
/// not expect its server to be somebody else and takes a refusal badly.
#[inline(always)]
pub fn is_kernel_thread() -> bool {
    let offset = TASK_FLAGS_OFFSET.load();
    if offset == 0 {
        return false;
    }
    // SAFETY: the kernel checks the address; the offset is the running kernel's own.
    unsafe {
        let flags = (bpf_get_current_task() as *const u8).add(offset as usize);
        bpf_probe_read_kernel(flags.cast::<u32>()).is_ok_and(|flags| flags & KERNEL_THREAD != 0)
    }
}
