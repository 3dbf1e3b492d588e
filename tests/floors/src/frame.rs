//! A frame's bytes, each access compared with its end first, as the verifier wants it.

#[cfg(target_arch = "bpf")]
use core::arch::asm;
use core::mem::offset_of;

use aya_ebpf::bindings::xdp_md;

/// The bytes from `offset` on, if a whole `T` is there.
#[inline(always)]
pub fn at<T>(ctx: *mut xdp_md, offset: usize) -> Option<*mut T> {
    let (start, end) = (start(ctx), end(ctx));
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

#[inline(always)]
pub fn len(ctx: *mut xdp_md) -> usize {
    end(ctx) - start(ctx)
}

#[inline(always)]
fn start(ctx: *mut xdp_md) -> usize {
    pointer::<{ offset_of!(xdp_md, data) }>(ctx)
}

#[inline(always)]
fn end(ctx: *mut xdp_md) -> usize {
    pointer::<{ offset_of!(xdp_md, data_end) }>(ctx)
}

/// A pointer that the context holds in a field of 32 bits, for which the verifier puts a whole one; the compiler would
/// think its upper half empty, and reckon with the lower alone.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn pointer<const OFFSET: usize>(ctx: *mut xdp_md) -> usize {
    let pointer;
    // SAFETY: the kernel hands every program a valid context.
    unsafe {
        asm!(
            "{0} = *(u32 *)({1} + {2})",
            lateout(reg) pointer,
            in(reg) ctx,
            const OFFSET,
            options(pure, readonly, nostack, preserves_flags)
        )
    };
    pointer
}

/// For clippy, which looks at this crate as if it were the host's.
#[cfg(not(target_arch = "bpf"))]
fn pointer<const OFFSET: usize>(ctx: *mut xdp_md) -> usize {
    ctx.addr() + OFFSET
}
