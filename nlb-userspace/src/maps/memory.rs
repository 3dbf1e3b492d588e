//! A map's contents as memory of our own: filling a Maglev table takes 50 microseconds this way and 100 milliseconds by
//! one system call an entry.

use std::os::fd::BorrowedFd;

use memmap2::{MmapMut, MmapOptions};

/// The contents of an array map that was made with `BPF_F_MMAPABLE`: `bytes` of them.
pub fn map(fd: BorrowedFd<'_>, bytes: usize) -> std::io::Result<MmapMut> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: the kernel keeps a map's memory in place for as long as it is mapped, and no file can be truncated under it.
    // Others write to it too (the XDP program writes flows), so callers read such words through atomics only.
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
