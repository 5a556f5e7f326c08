//! Redirected connections between the workload's `connect` and our `accept`.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{HashMap, MapData, MapError};
use parking_lot::Mutex;
use underpass_abi::{Flow, FlowKey, map};

use super::CaptureError;
use super::bpf::take_entry;
use super::object::Object;

/// The map that the programs fill.
#[derive(Debug)]
pub struct Flows {
    /// The same map, where the kernel can look an entry up and delete it in one step.
    in_one_step: Option<OwnedFd>,
    map: Mutex<HashMap<MapData, FlowKey, Flow>>,
    capacity: u32,
}

impl Flows {
    pub(super) fn new(object: &mut Object, capacity: u32) -> Result<Self, CaptureError> {
        let descriptor = object.hash_map(map::FLOWS)?;
        // No connection comes from port 0: the map has no such entry.
        let nobody = FlowKey::new(0, SocketAddr::from(([0; 16], 0)).into());
        let is_able = take_entry::<_, Flow>(descriptor.as_fd(), &nobody).is_ok();
        Ok(Self {
            in_one_step: is_able.then_some(descriptor),
            map: Mutex::new(object.map(map::FLOWS)?),
            capacity,
        })
    }

    /// Takes the entry of an accepted connection out of the map. `None` for a stranger: a
    /// connection that no program redirected.
    ///
    /// # Errors
    /// The map cannot be read; the connection is then to be treated as a stranger's.
    pub(super) fn take(
        &self,
        netns_cookie: u64,
        client: SocketAddr,
    ) -> Result<Option<Flow>, CaptureError> {
        let key = FlowKey::new(netns_cookie, client.into());
        if let Some(map) = &self.in_one_step {
            return take_entry(map.as_fd(), &key)
                .map_err(|error| failed("take from", error.into()));
        }
        // Two steps, on kernels before 5.14. No other accept can have the same key while this
        // connection lives.
        let mut map = self.map.lock();
        match map.get(&key, 0) {
            Ok(flow) => {
                remove(&mut map, &key)?;
                Ok(Some(flow))
            }
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(failed("look up", source)),
        }
    }

    /// Number of entries now. The kernel keeps no count, so this walks the map, which is short
    /// unless the agent does not come to accept.
    pub fn len(&self) -> u64 {
        self.map.lock().keys().filter(Result::is_ok).count() as u64
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries the map can hold.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Starts sweeping.
    pub fn sweeper(&self) -> Sweeper<'_> {
        Sweeper {
            flows: self,
            seen: HashSet::new(),
        }
    }
}

/// Removes entries that nobody will take, such as that of a client whose connection the kernel
/// dropped from a full accept queue.
///
/// No clock decides, for an agent that was stopped for a minute must still serve what waits in
/// its accept queue: an entry goes at the second sweep that sees it, so the caller only has to
/// let the listeners run dry between two sweeps.
#[derive(Debug)]
pub struct Sweeper<'a> {
    flows: &'a Flows,
    seen: HashSet<(FlowKey, u64)>,
}

impl Sweeper<'_> {
    /// One sweep; returns how many entries it removed.
    ///
    /// # Errors
    /// The map cannot be changed.
    pub fn sweep(&mut self) -> Result<usize, CaptureError> {
        let mut map = self.flows.map.lock();
        let now: HashSet<(FlowKey, u64)> = map
            .iter()
            .filter_map(Result::ok)
            .map(|(key, flow)| (key, flow.socket_cookie))
            .collect();
        let mut removed = 0;
        for entry in now.intersection(&self.seen) {
            remove(&mut map, &entry.0)?;
            removed += 1;
        }
        self.seen = now;
        Ok(removed)
    }
}

fn remove(map: &mut HashMap<MapData, FlowKey, Flow>, key: &FlowKey) -> Result<(), CaptureError> {
    match map.remove(key) {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(source) => Err(failed("delete from", source)),
    }
}

fn failed(action: &'static str, source: MapError) -> CaptureError {
    CaptureError::Map {
        name: map::FLOWS,
        action,
        source,
    }
}
