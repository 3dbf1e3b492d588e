//! A map's contents as memory of our own: filling a Maglev table takes 50 microseconds this way and 100 milliseconds by
//! one system call an entry.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use aya::Pod;
use memmap2::{MmapMut, MmapOptions};

/// Fills an array map that was made with `BPF_F_MMAPABLE`, from its first element on.
pub fn fill<T: Pod>(fd: BorrowedFd<'_>, elements: &[T]) -> std::io::Result<()> {
    // SAFETY: `Pod` promises that a value is its bytes, without padding.
    let bytes = unsafe { std::slice::from_raw_parts(elements.as_ptr().cast::<u8>(), size_of_val(elements)) };
    map(fd, bytes.len())?.copy_from_slice(bytes);
    Ok(())
}

/// The first `bytes` bytes of an array map that was made with `BPF_F_MMAPABLE`.
fn map(fd: BorrowedFd<'_>, bytes: usize) -> std::io::Result<MmapMut> {
    // SAFETY: the kernel keeps a map's memory in place for as long as it is mapped, and no file can be truncated under it.
    // The XDP program writes flows at any time, so `Flows` shows them as atomics only; other maps are filled before the
    // program can see them.
    unsafe { MmapOptions::new().len(bytes).map_mut(fd.as_raw_fd()) }
}

/// A flow table in shared memory.
pub struct Flows(MmapMut);

impl Flows {
    /// `buckets` of them, from a map that has that many.
    pub fn new(fd: BorrowedFd<'_>, buckets: usize) -> std::io::Result<Self> {
        map(fd, buckets * size_of::<nlb_common::flow::Bucket>()).map(Flows)
    }

    pub fn buckets(&self) -> &[nlb_common::flow::Bucket] {
        let len = self.0.len() / size_of::<nlb_common::flow::Bucket>();
        // SAFETY: the memory starts on a page and is `len` buckets long. A bucket consists of atomics, for which every bit
        // pattern is valid and which others may change at any time.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), len) }
    }
}
