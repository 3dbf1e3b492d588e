//! A map's contents as shared memory: this way a Maglev table is filled in 50 microseconds, and by one system
//! call an entry in 100 milliseconds.

use std::marker::PhantomData;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use aya::Pod;
use memmap2::{MmapMut, MmapOptions};

/// The first `bytes` bytes of an array map that was created with `BPF_F_MMAPABLE`.
fn map(fd: BorrowedFd<'_>, bytes: usize) -> std::io::Result<MmapMut> {
    // SAFETY: the kernel keeps a map's memory in place while it is mapped, and no file can be truncated under
    // it. The XDP program reads and writes it at any time: words and flows are accessed as atomics only, and
    // other elements are written while no packet reads them, and never read.
    unsafe { MmapOptions::new().len(bytes).map_mut(fd.as_raw_fd()) }
}

/// Elements that are written while no packet reads them.
pub(crate) struct Elements<T> {
    memory: MmapMut,
    kind: PhantomData<T>,
}

impl<T: Pod> Elements<T> {
    /// `count` elements of a map that has that many.
    pub(crate) fn new(fd: BorrowedFd<'_>, count: u32) -> std::io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8), "the kernel rounds elements up to 8 bytes") }
        Ok(Elements { memory: map(fd, count as usize * size_of::<T>())?, kind: PhantomData })
    }

    /// Writes elements from index `first` on.
    pub(crate) fn fill(&mut self, first: u32, elements: &[T]) {
        // SAFETY: `Pod` promises that a value is its bytes, without padding.
        let bytes =
            unsafe { std::slice::from_raw_parts(elements.as_ptr().cast::<u8>(), size_of_val(elements)) };
        let start = first as usize * size_of::<T>();
        self.memory[start..start + bytes.len()].copy_from_slice(bytes);
    }
}

/// 64-bit words that packets read at any time.
pub(crate) struct Words(MmapMut);

impl Words {
    pub(crate) fn new(fd: BorrowedFd<'_>, count: u32) -> std::io::Result<Self> {
        map(fd, count as usize * size_of::<u64>()).map(Words)
    }

    /// Stores a word. Packets that read it from now on see all earlier writes.
    pub(crate) fn store(&self, index: u32, value: impl Into<u64>) {
        self.words()[index as usize].store(value.into(), Ordering::Release);
    }

    /// Increments a word, with the same memory order.
    pub(crate) fn increment(&self, index: u32) {
        self.words()[index as usize].fetch_add(1, Ordering::Release);
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the memory starts on a page and consists of words, and all accesses are atomic.
        unsafe {
            std::slice::from_raw_parts(self.0.as_ptr().cast::<AtomicU64>(), self.0.len() / size_of::<u64>())
        }
    }
}

/// Types that packets and user space read and write at the same time.
///
/// # Safety
///
/// The type consists of atomics, for which every bit pattern is valid.
pub unsafe trait Atomics {}

// SAFETY: made of `nlb_common::atomic::Word`s.
unsafe impl Atomics for nlb_common::flow::Bucket {}

// SAFETY: as above, and of padding that is never read.
unsafe impl Atomics for nlb_common::prefix::Bucket {}

// SAFETY: as above.
unsafe impl Atomics for nlb_common::capacity::Capacity {}

/// A table in shared memory.
pub struct Shared<T> {
    memory: MmapMut,
    kind: PhantomData<T>,
}

impl<T: Atomics> Shared<T> {
    /// `count` elements of a map that has that many.
    pub fn new(fd: BorrowedFd<'_>, count: u32) -> std::io::Result<Self> {
        Ok(Shared { memory: map(fd, count as usize * size_of::<T>())?, kind: PhantomData })
    }

    pub fn all(&self) -> &[T] {
        let len = self.memory.len() / size_of::<T>();
        // SAFETY: the memory starts on a page and is `len` elements long, which packets may change at any
        // time: they are atomics.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), len) }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::fd::OwnedFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;

    /// Memory of zeros, in place of a map's.
    pub(crate) fn memory(bytes: usize) -> OwnedFd {
        let memory = memfd_create(c"table", MFdFlags::empty()).expect("memory");
        ftruncate(&memory, bytes as i64).expect("room");
        memory
    }
}
