//! What the programs counted.

use aya::maps::{MapData, PerCpuArray};
use underpass_abi::{Counter, map};

use super::CaptureError;
use super::object::Object;

/// The counters of the kernel side, summed over the processors.
pub struct KernelCounters {
    map: PerCpuArray<MapData, u64>,
}

impl KernelCounters {
    pub(super) fn new(object: &mut Object) -> Result<Self, CaptureError> {
        Ok(Self {
            map: object.map(map::COUNTERS)?,
        })
    }

    /// One counter; 0 where the kernel does not give it.
    pub fn value(&self, counter: Counter) -> u64 {
        self.map
            .get(&(counter as u32), 0)
            .map_or(0, |values| values.iter().sum())
    }
}
