//! The network of the node itself, where the agent may have to leave alone whatever policy does not
//! name: kubelet's own pods, and what else the node needs to come up.

use aya_ebpf::helpers::{bpf_get_current_ancestor_cgroup_id, bpf_skb_ancestor_cgroup_id};
use aya_ebpf::programs::SkBuffContext;

use crate::maps::{CONFIG, SELECTED};
use crate::task::netns_inode;

/// Levels of the hierarchy that are looked at, from its root. Nothing that policy names is deeper.
const LEVELS: i32 = 16;

/// Whether a connection in the namespace of this cookie is to be left alone.
#[inline(always)]
pub fn spares_connection(netns_cookie: u64) -> bool {
    let spared = CONFIG.get(0).map_or(0, |config| config.spared_netns);
    if spared == 0 || spared != netns_cookie {
        return false;
    }
    // SAFETY: takes a number.
    !is_selected(|level| unsafe { bpf_get_current_ancestor_cgroup_id(level) })
}

/// Whether a datagram is, by the namespace of whoever sends it: here the socket's is not told.
#[inline(always)]
pub fn spares_datagram(ctx: &SkBuffContext) -> bool {
    let spared = CONFIG.get(0).map_or(0, |config| config.spared_inode);
    if spared == 0 || spared != netns_inode() {
        return false;
    }
    // SAFETY: the context is valid while the program runs.
    !is_selected(|level| unsafe { bpf_skb_ancestor_cgroup_id(ctx.skb.skb, level) })
}

#[inline(always)]
fn is_selected(ancestor: impl Fn(i32) -> u64) -> bool {
    for level in 0..LEVELS {
        let id = ancestor(level);
        if id == 0 {
            return false;
        }
        // SAFETY: only asks whether it is there.
        if unsafe { SELECTED.get(&id) }.is_some() {
            return true;
        }
    }
    false
}
