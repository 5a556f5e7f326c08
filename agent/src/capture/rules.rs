//! What the programs go by: which addresses, ports and namespaces are captured.

mod steps;

use std::collections::HashSet;
use std::net::SocketAddr;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use ipnet::IpNet;
use underpass_abi::{
    Address, Config, Endpoint, Listeners, PORT_WORDS, RuleKey, Side, Sides, Verdict, map, port_slot,
};

use super::CaptureError;
use super::canary;
use super::object::Object;
use steps::{Place, Step, steps};

/// The maps that only the agent writes. Each is changed by difference, entry by entry: what stays
/// as it is, is not written again, and the order of the rest leaves no gap.
pub struct Rules {
    config: Array<MapData, Config>,
    selected: HashMap<MapData, u64, u32>,
    namespaces: HashMap<MapData, u64, Listeners>,
    ports: Array<MapData, u64>,
    prefixes: LpmTrie<MapData, RuleKey, Sides>,
    proxies: HashMap<MapData, Endpoint, u32>,
    /// What the maps hold. Nobody else writes them.
    written: Written,
    /// How many entries the trie takes, and the set of proxies.
    max_prefixes: usize,
    max_proxies: usize,
}

/// What becomes of the DNS of workloads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Dns {
    /// Nothing.
    Ignored,
    /// Answers are passed on to the agent.
    Observed,
    /// Queries go to the agent; answers to those that do not, as before.
    Served,
}

struct Written {
    config: Config,
    selected: HashSet<u64>,
    ports: Vec<u64>,
    prefixes: std::collections::HashMap<Place, Sides>,
    proxies: HashSet<Endpoint>,
}

impl Rules {
    pub(super) fn new(object: &mut Object, not_enrolled: Verdict) -> Result<Self, CaptureError> {
        let mut rules = Self {
            config: object.map(map::CONFIG)?,
            selected: object.map(map::SELECTED)?,
            max_prefixes: max_entries(object, map::PREFIXES)?,
            max_proxies: max_entries(object, map::PROXIES)?,
            namespaces: object.map(map::NAMESPACES)?,
            ports: object.map(map::PORTS)?,
            prefixes: object.map(map::PREFIXES)?,
            proxies: object.map(map::PROXIES)?,
            written: Written {
                config: Config {
                    spared_netns: 0,
                    spared_inode: 0,
                    not_enrolled: not_enrolled as u32,
                    observe_dns: 0,
                    serve_dns: 0,
                },
                selected: HashSet::new(),
                // As the kernel makes an array.
                ports: vec![0; PORT_WORDS as usize],
                prefixes: std::collections::HashMap::new(),
                proxies: HashSet::new(),
            },
        };
        rules.write_config()?;
        Ok(rules)
    }

    /// Sets what the programs do with the DNS of workloads.
    ///
    /// # Errors
    /// The map cannot be changed.
    pub fn set_dns(&mut self, dns: Dns) -> Result<(), CaptureError> {
        self.written.config.observe_dns = (dns != Dns::Ignored).into();
        self.written.config.serve_dns = (dns == Dns::Served).into();
        self.write_config()
    }

    /// Has nothing captured from now on in the network namespace with this cookie and inode, but for
    /// the cgroups that are [selected](Self::set_selected).
    pub(super) fn spare(&mut self, cookie: u64, inode: u32) -> Result<(), CaptureError> {
        self.written.config.spared_netns = cookie;
        self.written.config.spared_inode = inode;
        self.write_config()
    }

    /// Sets which cgroups, by their ids, are captured with all below them even in the namespace that
    /// is spared.
    ///
    /// # Errors
    /// The map is full or cannot be changed.
    pub fn set_selected(&mut self, wanted: &HashSet<u64>) -> Result<(), CaptureError> {
        let written = &mut self.written.selected;
        for id in wanted.difference(&written.clone()) {
            self.selected
                .insert(id, 1, 0)
                .map_err(failed(map::SELECTED, "insert into"))?;
            written.insert(*id);
        }
        for id in written.clone().difference(wanted) {
            ignore_missing(self.selected.remove(id))
                .map_err(failed(map::SELECTED, "delete from"))?;
            written.remove(id);
        }
        Ok(())
    }

    fn write_config(&mut self) -> Result<(), CaptureError> {
        self.config
            .set(0, self.written.config, 0)
            .map_err(failed(map::CONFIG, "set"))
    }

    /// The maps whose size policy can use up: name, entries, and how many there may be.
    pub fn fill(&self) -> [(&'static str, usize, usize); 2] {
        let Written {
            prefixes, proxies, ..
        } = &self.written;
        [
            (map::PREFIXES, prefixes.len(), self.max_prefixes),
            (map::PROXIES, proxies.len(), self.max_proxies),
        ]
    }

    /// Lets connections and queries in the namespace of this cookie be redirected to these ports.
    pub(super) fn enrol(&mut self, cookie: u64, ports: Listeners) -> Result<(), CaptureError> {
        self.namespaces
            .insert(cookie, ports, 0)
            .map_err(failed(map::NAMESPACES, "insert into"))
    }

    /// Has no more connections redirected in the namespace of this cookie.
    pub(super) fn dismiss(&mut self, cookie: u64) -> Result<(), CaptureError> {
        ignore_missing(self.namespaces.remove(&cookie))
            .map_err(failed(map::NAMESPACES, "delete from"))
    }

    /// Sets which destinations are on which sides, by prefix and, if not all are meant, port. A rule
    /// for the port goes before one for all; then the longest prefix decides, and to an address in
    /// none connections are captured. Canaries are external whatever is set. At every moment of the
    /// change each destination is on its old sides or on its new ones.
    ///
    /// # Errors
    /// The map has no room for the old and the new rules together, in which case nothing has
    /// changed, or it cannot be changed.
    pub fn set_prefixes(
        &mut self,
        prefixes: impl IntoIterator<Item = (IpNet, Option<u16>, Sides)>,
    ) -> Result<(), CaptureError> {
        let captured = Sides::new(Side::External, Side::Internal, Side::Internal);
        let canaries = [canary::DESTINATION_V4, canary::DESTINATION_V6]
            .map(|address| (IpNet::from(address), None, captured));
        let wanted = prefixes
            .into_iter()
            .chain(canaries)
            .map(|(prefix, port, sides)| (place(prefix, port), sides))
            .collect();
        let steps = steps(&self.written.prefixes, &wanted);
        let is_new = |place: &&Place| !self.written.prefixes.contains_key(place);
        let rules = self.written.prefixes.len() + wanted.keys().filter(is_new).count();
        if rules > self.max_prefixes {
            return Err(CaptureError::TooManyPrefixes {
                rules,
                max: self.max_prefixes,
            });
        }
        for step in steps {
            match step {
                Step::Set(place, sides) => {
                    self.prefixes
                        .insert(&Key::new(place.bits, place.key), sides, 0)
                        .map_err(failed(map::PREFIXES, "insert into"))?;
                    self.written.prefixes.insert(place, sides);
                }
                Step::Remove(place) => {
                    ignore_missing(self.prefixes.remove(&Key::new(place.bits, place.key)))
                        .map_err(failed(map::PREFIXES, "delete from"))?;
                    self.written.prefixes.remove(&place);
                }
            }
        }
        Ok(())
    }

    /// Sets which ports policy is about: TCP to them is captured. That of the canaries always is. A
    /// port that stays captured is at every moment.
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
        for ((index, word), written) in (0..PORT_WORDS).zip(words).zip(&mut self.written.ports) {
            if word != *written {
                self.ports
                    .set(index, word, 0)
                    .map_err(failed(map::PORTS, "set"))?;
                *written = word;
            }
        }
        Ok(())
    }

    /// Sets where the proxies are, so that a program that speaks to one itself is left alone. One
    /// that stays is known at every moment.
    ///
    /// # Errors
    /// The map is full or cannot be changed.
    pub fn set_proxies(
        &mut self,
        proxies: impl IntoIterator<Item = SocketAddr>,
    ) -> Result<(), CaptureError> {
        let wanted: HashSet<Endpoint> = proxies.into_iter().map(Endpoint::from).collect();
        let written = &mut self.written.proxies;
        let added: Vec<_> = wanted.difference(written).copied().collect();
        for endpoint in added {
            self.proxies
                .insert(endpoint, 1, 0)
                .map_err(failed(map::PROXIES, "insert into"))?;
            written.insert(endpoint);
        }
        let stale: Vec<_> = written.difference(&wanted).copied().collect();
        for endpoint in stale {
            ignore_missing(self.proxies.remove(&endpoint))
                .map_err(failed(map::PROXIES, "delete from"))?;
            written.remove(&endpoint);
        }
        Ok(())
    }
}

/// An IPv4 prefix stands below `::ffff:0:0/96`, as the programs look addresses up.
fn place(prefix: IpNet, port: Option<u16>) -> Place {
    let length = match prefix {
        IpNet::V4(_) => 96 + u32::from(prefix.prefix_len()),
        IpNet::V6(_) => u32::from(prefix.prefix_len()),
    };
    Place {
        bits: RuleKey::PORT_BITS + length,
        key: RuleKey::new(port.unwrap_or(0), Address::from(prefix.network())),
    }
}

/// How many entries the map takes, as the kernel has it.
fn max_entries(object: &mut Object, name: &'static str) -> Result<usize, CaptureError> {
    let info = match object.ebpf().map(name) {
        Some(Map::HashMap(data) | Map::LpmTrie(data)) => {
            data.info().map_err(failed(name, "read the size of"))?
        }
        _ => return Err(CaptureError::Missing(name)),
    };
    Ok(info.max_entries() as usize)
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
