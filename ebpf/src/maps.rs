//! All maps of the programs; `underpass-abi` says what they hold.

use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf, SkStorage};
use aya_ebpf::macros::btf_map;
use underpass_abi::{
    Config, Counter, Endpoint, Flow, FlowKey, Listeners, PORT_WORDS, Redirect, RuleKey,
};

#[btf_map]
pub static CONFIG: Array<Config, 1> = Array::new();

#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { Counter::COUNT as usize }> = PerCpuArray::new();

/// The agent sets the real size when it loads the map.
#[btf_map]
pub static FLOWS: HashMap<FlowKey, Flow, 65_536> = HashMap::new();

#[btf_map]
pub static NAMESPACES: HashMap<u64, Listeners, 4096> = HashMap::new();

/// Thread ids, in the initial pid namespace. One that finds no room is lost: the agent looks into
/// every namespace from time to time anyway.
#[btf_map]
pub static NEWCOMERS: RingBuf<u32, 4096> = RingBuf::new();

#[btf_map]
pub static PORTS: Array<u64, { PORT_WORDS as usize }> = Array::new();

/// The values are `Side`s.
#[btf_map]
pub static PREFIXES: LpmTrie<RuleKey, u32, 16_384> = LpmTrie::new();

/// A set: the values mean nothing.
#[btf_map]
pub static PROXIES: HashMap<Endpoint, u32, 4096> = HashMap::new();

#[btf_map]
pub static REDIRECTS: SkStorage<Redirect> = SkStorage::new();

/// The values are `SocketRole`s.
#[btf_map]
pub static ROLES: SkStorage<u32> = SkStorage::new();

/// Counts one outcome.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the pointer is to this CPU's slot, and a program is not moved to another CPU.
        unsafe { *value += 1 };
    }
}
