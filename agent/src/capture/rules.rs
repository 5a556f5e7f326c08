//! What the programs go by: which addresses, ports and namespaces are captured.

use std::collections::HashSet;
use std::net::SocketAddr;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, MapError};
use ipnet::IpNet;
use underpass_abi::{
    Address, Config, Endpoint, Listeners, PORT_WORDS, RuleKey, Side, Verdict, map, port_slot,
};

use super::CaptureError;
use super::canary;
use super::object::Object;

/// The maps that only the agent writes. Every change is made entry by entry: additions first, so
/// that no address falls between an old rule and its replacement.
pub struct Rules {
    namespaces: HashMap<MapData, u64, Listeners>,
    ports: Array<MapData, u64>,
    prefixes: LpmTrie<MapData, RuleKey, u32>,
    proxies: HashMap<MapData, Endpoint, u32>,
}

impl Rules {
    pub(super) fn new(object: &mut Object, not_enrolled: Verdict) -> Result<Self, CaptureError> {
        let mut config: Array<MapData, Config> = object.map(map::CONFIG)?;
        let value = Config {
            not_enrolled: not_enrolled as u32,
            _pad: 0,
        };
        config
            .set(0, value, 0)
            .map_err(failed(map::CONFIG, "set"))?;
        Ok(Self {
            namespaces: object.map(map::NAMESPACES)?,
            ports: object.map(map::PORTS)?,
            prefixes: object.map(map::PREFIXES)?,
            proxies: object.map(map::PROXIES)?,
        })
    }

    /// Lets connections in the namespace of this cookie be redirected to these ports.
    pub(super) fn enrol(&mut self, cookie: u64, ports: Listeners) -> Result<(), CaptureError> {
        self.namespaces
            .insert(cookie, ports, 0)
            .map_err(failed(map::NAMESPACES, "insert into"))
    }

    /// Sets which destinations are on which side, by prefix and, if not all are meant, port. A rule
    /// for the port goes before one for all; then the longest prefix decides, and an address in
    /// none is external. Canaries are external whatever is set.
    ///
    /// # Errors
    /// The map is full or cannot be changed.
    pub fn set_prefixes(
        &mut self,
        prefixes: impl IntoIterator<Item = (IpNet, Option<u16>, Side)>,
    ) -> Result<(), CaptureError> {
        let mut wanted = HashSet::new();
        let canaries = [canary::DESTINATION_V4, canary::DESTINATION_V6]
            .map(|address| (IpNet::from(address), None, Side::External));
        for (prefix, port, side) in prefixes.into_iter().chain(canaries) {
            let key = trie_key(prefix, port);
            wanted.insert((key.prefix_len(), key.data()));
            self.prefixes
                .insert(&key, side as u32, 0)
                .map_err(failed(map::PREFIXES, "insert into"))?;
        }
        let stale: Vec<_> = self
            .prefixes
            .keys()
            .filter_map(Result::ok)
            .filter(|key| !wanted.contains(&(key.prefix_len(), key.data())))
            .collect();
        for key in stale {
            ignore_missing(self.prefixes.remove(&key))
                .map_err(failed(map::PREFIXES, "delete from"))?;
        }
        Ok(())
    }

    /// Sets which TCP ports are captured. That of the canaries always is.
    ///
    /// # Errors
    /// The map cannot be changed.
    pub fn set_ports(&mut self, captured: impl Fn(u16) -> bool) -> Result<(), CaptureError> {
        let mut words = vec![0u64; PORT_WORDS as usize];
        for port in 0..=u16::MAX {
            if captured(port) || port == canary::PORT {
                let (word, bit) = port_slot(port);
                words[word as usize] |= bit;
            }
        }
        for (index, word) in (0..PORT_WORDS).zip(words) {
            self.ports
                .set(index, word, 0)
                .map_err(failed(map::PORTS, "set"))?;
        }
        Ok(())
    }

    /// Sets where the proxies are, so that a program that speaks to one itself is left alone.
    ///
    /// # Errors
    /// The map is full or cannot be changed.
    pub fn set_proxies(
        &mut self,
        proxies: impl IntoIterator<Item = SocketAddr>,
    ) -> Result<(), CaptureError> {
        let wanted: HashSet<Endpoint> = proxies.into_iter().map(Endpoint::from).collect();
        for endpoint in &wanted {
            self.proxies
                .insert(endpoint, 1, 0)
                .map_err(failed(map::PROXIES, "insert into"))?;
        }
        let stale: Vec<Endpoint> = self
            .proxies
            .keys()
            .filter_map(Result::ok)
            .filter(|endpoint| !wanted.contains(endpoint))
            .collect();
        for endpoint in stale {
            ignore_missing(self.proxies.remove(&endpoint))
                .map_err(failed(map::PROXIES, "delete from"))?;
        }
        Ok(())
    }
}

/// An IPv4 prefix stands below `::ffff:0:0/96`, as the programs look addresses up.
fn trie_key(prefix: IpNet, port: Option<u16>) -> Key<RuleKey> {
    let length = match prefix {
        IpNet::V4(_) => 96 + u32::from(prefix.prefix_len()),
        IpNet::V6(_) => u32::from(prefix.prefix_len()),
    };
    let key = RuleKey::new(port.unwrap_or(0), Address::from(prefix.network()));
    Key::new(RuleKey::PORT_BITS + length, key)
}

fn ignore_missing(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        other => other,
    }
}

fn failed(name: &'static str, action: &'static str) -> impl Fn(MapError) -> CaptureError {
    move |source| CaptureError::Map {
        name,
        action,
        source,
    }
}
