//! Arrays that grow while packets look into them: maps of equal size, side by side in a map of maps.

use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{ArrayOfMaps, MapData};

use super::access::refused;
use crate::reconcile::change::MapError;

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// A map of maps whose inner maps have so many elements of type `T` each.
pub struct Slabs<T> {
    outer: ArrayOfMaps<MapData>,
    name: &'static str,
    elements: u32,
    /// One that is in the map, and its number.
    any: Option<(u32, MapData)>,
    kind: PhantomData<T>,
}

impl<T> Slabs<T> {
    pub fn new(outer: ArrayOfMaps<MapData>, name: &'static str, elements: u32) -> Self {
        Slabs { outer, name, elements, any: None, kind: PhantomData }
    }

    /// How many there can be.
    pub fn len(&self) -> u32 {
        self.outer.len()
    }

    /// Makes the slab of this number, of zeros; the answer is its memory. Takes a grace period.
    pub fn add<M>(
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

    /// Waits until every packet that is on its way now has gone: the kernel ends every update of a map of maps with a grace
    /// period.
    pub fn grace(&mut self) -> Result<(), MapError> {
        match self.any {
            Some((number, _)) => self.give_back(number),
            None => Ok(()),
        }
    }

    /// Gives a slab's memory back; no packet may look there any more. The one that was made last takes its place.
    pub fn give_back(&mut self, number: u32) -> Result<(), MapError> {
        match &self.any {
            Some((_, map)) => self.outer.set(number, map, 0).map_err(refused(self.name)),
            None => Ok(()),
        }
    }
}
