//! Accesses to a frame's bytes, each with the bounds check that the verifier requires; and counts of frames.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::bpf_xdp_get_buff_len;

/// The bytes from `offset` on, if a whole `T` is there.
#[inline(always)]
pub fn at<T>(ctx: *mut xdp_md, offset: usize) -> Option<*mut T> {
    // SAFETY: the kernel hands every program a valid context.
    let (start, end) = unsafe { ((*ctx).data as usize, (*ctx).data_end as usize) };
    (start + offset + size_of::<T>() <= end).then_some((start + offset) as *mut T)
}

#[inline(always)]
pub fn read<T: Copy>(ctx: *mut xdp_md, offset: usize) -> Option<T> {
    // SAFETY: `at` checked the bounds, and only integers and arrays of them are read.
    at::<T>(ctx, offset).map(|place| unsafe { place.read_unaligned() })
}

#[inline(always)]
pub fn write<T: Copy>(ctx: *mut xdp_md, offset: usize, value: T) -> Option<()> {
    // SAFETY: `at` checked the bounds.
    at::<T>(ctx, offset).map(|place| unsafe { place.write_unaligned(value) })
}

/// Writes the first bytes of the frame by words: the compiler turns a copy of so many bytes into a loop over
/// bytes.
#[inline(always)]
pub fn write_head<const N: usize>(ctx: *mut xdp_md, words: &[u64; N]) -> Option<()> {
    let head = at::<[u64; N]>(ctx, 0)?.cast::<u64>();
    let mut i = 0;
    while i < N {
        // SAFETY: `at` checked the bounds.
        unsafe { head.add(i).write_unaligned(words[i]) };
        i += 1;
    }
    Some(())
}

/// The length, by the kernel's helper: the compiler would subtract the pointers in 32 bits, which the
/// verifier refuses.
#[inline(always)]
pub fn len(ctx: *mut xdp_md) -> usize {
    // SAFETY: as in `at`.
    unsafe { bpf_xdp_get_buff_len(ctx) as usize }
}

/// Adds one to this CPU's count and returns it.
#[inline(always)]
pub fn count<const N: usize>(counts: &PerCpuArray<u64, N>, of: u32) -> Option<u64> {
    let count = counts.get_ptr_mut(of)?;
    // SAFETY: the count belongs to this CPU, and no XDP program interrupts another.
    unsafe {
        *count += 1;
        Some(*count)
    }
}
