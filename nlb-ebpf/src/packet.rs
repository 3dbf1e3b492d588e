//! The frame under the program's hands, as the verifier wants it: two pointers, and a comparison before every access.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::programs::XdpContext;
use nlb_common::frame::{Frame, Header, Wire};

pub struct Packet {
    ctx: *mut xdp_md,
}

impl Packet {
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Packet { ctx: ctx.ctx }
    }

    /// For functions that are called with the context itself.
    #[inline(always)]
    pub fn at_ctx(ctx: *mut xdp_md) -> Self {
        Packet { ctx }
    }

    #[inline(always)]
    pub fn ctx(&self) -> *mut xdp_md {
        self.ctx
    }

    /// The interface that the frame came from.
    #[inline(always)]
    pub fn ingress(&self) -> u32 {
        // SAFETY: the kernel hands every XDP program a valid context.
        unsafe { (*self.ctx).ingress_ifindex }
    }

    /// Moves the front of the frame by `delta` bytes: negative makes room, positive cuts off. `None` if there is no
    /// room; the frame is then as it was.
    #[inline(always)]
    pub fn move_front(&mut self, delta: i32) -> Option<()> {
        // SAFETY: valid context. Pointers into the frame die here, and none is ever kept: each access takes its own.
        (unsafe { bpf_xdp_adjust_head(self.ctx, delta) } == 0).then_some(())
    }

    /// Cuts the end of the frame off, down to `len` bytes. `None` if it is shorter.
    #[inline(always)]
    pub fn cut_to(&mut self, len: usize) -> Option<()> {
        // The kernel's own word for it: from `len()`, the compiler would make arithmetic on pointers that the verifier
        // refuses.
        // SAFETY: valid context.
        let now = unsafe { bpf_xdp_get_buff_len(self.ctx) };
        let surplus = (now as usize).checked_sub(len)?;
        // SAFETY: valid context; no pointer into the frame is kept.
        (unsafe { bpf_xdp_adjust_tail(self.ctx, -(surplus as i32)) } == 0).then_some(())
    }

    /// Copies the whole frame, which must have from 1 to `N` bytes, `N` being a power of two.
    #[inline(always)]
    pub fn copy_to<const N: usize>(&self, buffer: *mut [u8; N]) -> Option<()> {
        const { assert!(N.is_power_of_two()) }
        let len = self.len();
        // Compared only after the copy: a comparison before would let the compiler drop the mask, in which the
        // verifier sees the bounds.
        let bounded = (len.wrapping_sub(1) & (N - 1)) + 1;
        // SAFETY: `buffer` holds N bytes and `bounded` is at most that.
        let copied = unsafe { bpf_xdp_load_bytes(self.ctx, 0, buffer.cast(), bounded as u32) } == 0;
        (copied && bounded == len).then_some(())
    }

    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        // SAFETY: valid context. `data` and `data_end` bound the frame's bytes; the comparison makes sure that a whole
        // `T` lies between them.
        unsafe {
            let (data, end) = ((*self.ctx).data as usize, (*self.ctx).data_end as usize);
            (data + offset + size_of::<T>() <= end).then_some((data + offset) as *mut T)
        }
    }
}

impl Frame for Packet {
    #[inline(always)]
    fn len(&self) -> usize {
        // SAFETY: valid context.
        unsafe { (*self.ctx).data_end as usize - (*self.ctx).data as usize }
    }

    #[inline(always)]
    fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` checked the bounds, and any bytes make a valid `Wire`.
        self.at::<T>(offset).map(|p| unsafe { p.read_unaligned() })
    }

    #[inline(always)]
    fn write<T: Wire>(&mut self, offset: usize, value: T) -> Option<()> {
        // SAFETY: `at` checked the bounds, and nothing else points into the frame.
        self.at::<T>(offset).map(|p| unsafe { p.write_unaligned(value) })
    }

    #[inline(always)]
    fn edit<T: Header>(&mut self, offset: usize) -> Option<&mut T> {
        // SAFETY: `at` checked the bounds, a `Header` may have any bytes and lie anywhere, and the borrow of `self` keeps
        // the frame from being moved or accessed otherwise meanwhile.
        self.at::<T>(offset).map(|p| unsafe { &mut *p })
    }
}

/// Starts its contents on a multiple of 8. The verifier wants accesses to the stack aligned; the compiler, which may make
/// them as wide as it likes because accesses to packets need not be aligned, knows only the type's own alignment.
#[repr(C, align(8))]
pub struct Aligned<T>(pub T);

/// Words on the stack that a helper can be pointed to, for as long as `use_them` runs. Written volatile, one by one, for
/// the reason that `Aligned` gives: a key of an LPM trie starts with a 32-bit length and is wanted in 64-bit stores.
#[inline(always)]
pub fn on_stack<const N: usize, T, R>(words: [u32; N], use_them: impl FnOnce(&T) -> R) -> R {
    const { assert!(size_of::<T>() == 4 * N && align_of::<T>() <= 8) }
    let mut memory = Aligned(MaybeUninit::<[u32; N]>::uninit());
    let first: *mut u32 = memory.0.as_mut_ptr().cast();
    let mut i = 0;
    while i < N {
        // SAFETY: inside the array.
        unsafe { first.add(i).write_volatile(words[i]) };
        i += 1;
    }
    // SAFETY: as long as a `T`, aligned for one, and every word was written; `T` is a key, which any words make.
    use_them(unsafe { &*memory.0.as_ptr().cast::<T>() })
}
