//! All maps of the programs; `underpass-abi` says what they hold.

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SkStorage};
use aya_ebpf::macros::btf_map;
use underpass_abi::{
    Answer, Asker, Config, Counter, Endpoint, Flow, FlowKey, Listeners, PORT_WORDS, Query,
    QueryKey, Questions, Redirect, RuleKey, Side, Sides, port_slot,
};

/// One that finds no room is lost, and counted.
#[btf_map]
pub static ANSWERS: RingBuf<Answer, { 1 << 20 }> = RingBuf::new();

#[btf_map]
pub static ASKERS: SkStorage<Asker> = SkStorage::new();

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

#[btf_map]
pub static PREFIXES: LpmTrie<RuleKey, Sides, 16_384> = LpmTrie::new();

/// A set: the values mean nothing.
#[btf_map]
pub static PROXIES: HashMap<Endpoint, u32, 4096> = HashMap::new();

/// The agent takes an entry as soon as it reads the query; what it never reads is overwritten.
#[btf_map]
pub static QUERIES: LruHashMap<QueryKey, Query, 8192> = LruHashMap::new();

#[btf_map]
pub static QUESTIONS: SkStorage<Questions> = SkStorage::new();

#[btf_map]
pub static REDIRECTS: SkStorage<Redirect> = SkStorage::new();

/// The values are `SocketRole`s.
#[btf_map]
pub static ROLES: SkStorage<u32> = SkStorage::new();

/// A set: the values mean nothing.
#[btf_map]
pub static SELECTED: HashMap<u64, u32, 4096> = HashMap::new();

/// The moment, in nanoseconds since boot, from which the next refused datagram is logged.
#[btf_map]
pub static NEXT_LOG: PerCpuArray<u64, 1> = PerCpuArray::new();

/// The sides that rules put a destination on; a rule for its port goes before one for any. What is
/// in no prefix is captured if it is TCP, and left alone if not.
#[inline(always)]
pub fn sides(dst: &Endpoint) -> Sides {
    let on_port = Key::new(RuleKey::BITS, RuleKey::new(dst.port, dst.address));
    if let Some(sides) = PREFIXES.get(&on_port) {
        return *sides;
    }
    let on_any = Key::new(RuleKey::BITS, RuleKey::new(0, dst.address));
    PREFIXES.get(&on_any).map_or(
        Sides::new(Side::External, Side::Internal, Side::Internal),
        |sides| *sides,
    )
}

/// Whether policy is about this port.
#[inline(always)]
pub fn is_captured(port: u16) -> bool {
    let (word, bit) = port_slot(port);
    PORTS.get(word).is_some_and(|bits| bits & bit != 0)
}

/// Counts one outcome.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the pointer is to this CPU's slot, and a program is not moved to another CPU.
        unsafe { *value += 1 };
    }
}
