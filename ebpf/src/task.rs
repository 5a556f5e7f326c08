//! The task that calls `connect`.

use aya_ebpf::Global;
use aya_ebpf::helpers::{bpf_get_current_task, bpf_get_current_task_btf, bpf_probe_read_kernel};

/// Byte offset of `flags` in the running kernel's `task_struct`; the agent sets it when it loads
/// the programs. 0 where it is not known.
#[unsafe(no_mangle)]
static TASK_FLAGS_OFFSET: Global<u32> = Global::new(0);

/// 1 where programs may read the task themselves, which spares a helper; the agent finds out.
#[unsafe(no_mangle)]
static TASK_IS_TYPED: Global<u32> = Global::new(0);

/// From the task to the inode of its network namespace: see `underpass-abi`. All 0 where it is not
/// known.
#[unsafe(no_mangle)]
static NETNS_INODE_PATH: Global<[u32; 3]> = Global::new([0; 3]);

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
    let flags = unsafe {
        if TASK_IS_TYPED.load() != 0 {
            let task = bpf_get_current_task_btf().cast::<u8>();
            task.add(offset as usize).cast::<u32>().read_volatile()
        } else {
            let task = bpf_get_current_task() as *const u8;
            bpf_probe_read_kernel(task.add(offset as usize).cast::<u32>()).unwrap_or(0)
        }
    };
    flags & KERNEL_THREAD != 0
}

/// The inode of the network namespace that the task is in, as `/proc/self/ns/net` shows it; 0 where
/// the kernel does not tell.
#[inline(always)]
pub fn netns_inode() -> u32 {
    let [nsproxy, net, inode] = NETNS_INODE_PATH.load();
    if inode == 0 {
        return 0;
    }
    // SAFETY: as above; a task that ends has no namespaces any more, and null is no address.
    unsafe {
        let task = bpf_get_current_task() as u64;
        let read = |from: u64, offset: u32| {
            bpf_probe_read_kernel((from + u64::from(offset)) as *const u64)
        };
        let Ok(nsproxy) = read(task, nsproxy) else {
            return 0;
        };
        let Ok(net) = read(nsproxy, net) else {
            return 0;
        };
        bpf_probe_read_kernel((net + u64::from(inode)) as *const u32).unwrap_or(0)
    }
}
