//! Arrays that grow while packets read them: maps of equal size, side by side in a map of maps.

use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{ArrayOfMaps, MapData};

use super::access::refused;
use crate::reconcile::change::MapError;

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// A map of maps whose inner maps have the same number of elements of type `T`.
pub(super) struct Slabs<T> {
    outer: ArrayOfMaps<MapData>,
    name: &'static str,
    elements: u32,
    /// A slab of the map, and its number.
    any: Option<(u32, MapData)>,
    kind: PhantomData<T>,
}

impl<T> Slabs<T> {
    pub(super) fn new(outer: ArrayOfMaps<MapData>, name: &'static str, elements: u32) -> Self {
        Slabs { outer, name, elements, any: None, kind: PhantomData }
    }

    /// The largest number of slabs.
    pub(super) fn len(&self) -> u32 {
        self.outer.len()
    }

    /// Creates the slab of this number, full of zeros, and returns its memory. Takes a grace period.
    pub(super) fn add<M>(
        &mut self,
        number: u32,
        memory: impl FnOnce(BorrowedFd<'_>, u32) -> std::io::Result<M>,
    ) -> Result<M, MapError> {
        let size = size_of::<T>() as u32;
        let map = aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY, 4, size, self.elements, BPF_F_MMAPABLE);
        let map = MapData::create(map, "nlb_slab", None).map_err(refused(self.name))?;
        let memory = memory(map.fd().as_fd(), self.elements).map_err(refused(self.name))?;
        self.outer.set(number, &map, 0).map_err(refused(self.name))?;
        self.any = Some((number, map));
        Ok(memory)
    }

    /// Waits until every packet that is in progress now has left the programs: the kernel ends every update
    /// of a map of maps with a grace period.
    pub(super) fn grace(&mut self) -> Result<(), MapError> {
        match self.any {
            Some((number, _)) => self.release_number(number),
            None => Ok(()),
        }
    }

    /// Returns a slab's memory to the kernel; no packet may read it any more. The slab that was created last
    /// takes its number.
    pub(super) fn release_number(&mut self, number: u32) -> Result<(), MapError> {
        match &self.any {
            Some((_, map)) => self.outer.set(number, map, 0).map_err(refused(self.name)),
            None => Ok(()),
        }
    }
}
