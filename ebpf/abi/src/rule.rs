//! What the agent tells the programs: whom to leave alone, and what to do in doubt.

use crate::address::Address;

/// Which side of the border a destination is on.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// Captured; refused where no agent is.
    External = 0,
    /// Left alone.
    Internal = 1,
    /// Captured; goes its own way where no agent is.
    Open = 2,
    /// Captured on every port, since nothing is there but what the agent makes of it; refused where
    /// no agent is.
    Virtual = 3,
}

/// On which sides of the border a destination is; value of the prefix trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sides {
    /// The [`Side`] of TCP connections to it.
    pub tcp: u8,
    /// That of datagrams to its UDP port 443, which are refused where a connection is captured.
    pub quic: u8,
    /// That of other datagrams, likewise.
    pub udp: u8,
    /// Always zero.
    pub _pad: u8,
}

impl Sides {
    /// The same for everything.
    pub const fn all(side: Side) -> Self {
        Self::new(side, side, side)
    }

    /// Each its own.
    pub const fn new(tcp: Side, quic: Side, udp: Side) -> Self {
        Self {
            tcp: tcp as u8,
            quic: quic as u8,
            udp: udp as u8,
            _pad: 0,
        }
    }
}

/// Key of the prefix trie: destinations on one port, or on any. A rule for the port goes before
/// one for any.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct RuleKey {
    /// The port, as four bytes in network byte order; 0 for any.
    pub port: [u8; 4],
    /// The address.
    pub address: Address,
}

impl RuleKey {
    /// Bits of the key before the address.
    pub const PORT_BITS: u32 = 32;

    /// All bits of the key.
    pub const BITS: u32 = Self::PORT_BITS + 128;

    /// The key of an address on a port in host byte order, 0 for any.
    #[inline(always)]
    pub const fn new(port: u16, address: Address) -> Self {
        Self {
            port: (port as u32).to_be_bytes(),
            address,
        }
    }
}

/// What to do with an external connection in a network namespace without our listeners.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It goes its own way where the rules call its destination [`Open`](Side::Open), else
    /// `connect` fails with EPERM.
    AsRuled = 0,
    /// `connect` fails with EPERM.
    Refuse = 1,
}

/// Why a socket is the agent's own; value of the role storage. Only a holder of the map can
/// write it, so no workload can pass for the agent.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SocketRole {
    /// Never captured: a connection of the agent itself.
    Dialer = 1,
    /// A listener that connections may be redirected to.
    Listener = 2,
    /// Asks which network namespace it is in. The answer is in its
    /// [`Redirect`](crate::Redirect), as its cookie.
    AsksNetns = 3,
    /// A socket that queries may be redirected to.
    Front = 4,
}

/// Settings of the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Config {
    /// The network namespace of the node, where only what is in `SELECTED` is captured: its cookie; 0
    /// if everything is.
    pub spared_netns: u64,
    /// The same namespace by its inode, for programs that are told no cookie.
    pub spared_inode: u32,
    /// The [`Verdict`].
    pub not_enrolled: u32,
    /// 1 if answers to DNS questions are passed on to the agent, else 0.
    pub observe_dns: u32,
    /// 1 if queries to name servers go to the agent, else 0.
    pub serve_dns: u32,
}

/// Number of `u64` words in the port set.
pub const PORT_WORDS: u32 = 65_536 / 64;

/// Word and bit of `port` (host byte order) in the port set.
#[inline(always)]
pub const fn port_slot(port: u16) -> (u32, u64) {
    // The mask changes nothing for a u16; it lets the verifier see the bound.
    ((port as u32 >> 6) & (PORT_WORDS - 1), 1 << (port & 63))
}

const _: () = assert!(size_of::<Config>() == 24);
const _: () = assert!(size_of::<Sides>() == 4 && align_of::<Sides>() == 1);
const _: () = assert!(size_of::<RuleKey>() == 20 && align_of::<RuleKey>() == 4);
const _: () = assert!(core::mem::offset_of!(RuleKey, address) == 4);

#[cfg(feature = "user")]
mod user {
    #![expect(unsafe_code, reason = "aya::Pod is an unsafe marker trait")]

    // SAFETY: repr(C), integers only, no implicit padding.
    unsafe impl aya::Pod for super::Config {}
    // SAFETY: repr(C), bytes only.
    unsafe impl aya::Pod for super::RuleKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Sides {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_has_its_own_bit() {
        let mut words = [0u64; PORT_WORDS as usize];
        for port in 0..=u16::MAX {
            let (word, bit) = port_slot(port);
            assert_eq!(words[word as usize] & bit, 0, "port {port}");
            words[word as usize] |= bit;
        }
        assert!(words.iter().all(|word| *word == u64::MAX));
    }
}
