//! The frame that a program works on: two pointers, and the comparison that the verifier wants before every
//! access.
//!
//! It is a driver's frame or a socket buffer. Each program knows which, and as everything here is inlined,
//! the compiler keeps the code for one of them.

#[cfg(target_arch = "bpf")]
use core::arch::asm;
use core::mem::{MaybeUninit, offset_of};

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, xdp_md};
use aya_ebpf::helpers::{
    bpf_csum_update, bpf_l4_csum_replace, bpf_skb_pull_data, bpf_xdp_adjust_head, bpf_xdp_adjust_tail,
};
use nlb_common::checksum::Delta;
use nlb_common::frame::{Frame, Header, Wire, amend_whole_checksum};
use nlb_common::net::L4;
use nlb_common::parse::Ip;
use nlb_common::protocol::{TCP_LEN, UDP_LEN, ip as protocol};

/// No L4 header starts beyond this: eight IPv6 extension headers of at most 2 KiB end within it.
pub const MAX_OFFSET: usize = 0x7fff;

pub struct Packet {
    context: Context,
}

/// The context that the kernel passes to a program.
#[derive(Clone, Copy)]
pub enum Context {
    Xdp(*mut xdp_md),
    /// At TC ingress. Local stacks defer segmentation and checksums of such a buffer. Only its first bytes,
    /// with the headers, are linear.
    Skb(*mut __sk_buff),
}

impl Packet {
    #[inline(always)]
    pub fn xdp(ctx: *mut xdp_md) -> Self {
        Packet { context: Context::Xdp(ctx) }
    }

    #[inline(always)]
    pub fn skb(ctx: *mut __sk_buff) -> Self {
        Packet { context: Context::Skb(ctx) }
    }

    #[inline(always)]
    pub fn context(&self) -> Context {
        self.context
    }

    #[inline(always)]
    pub fn is_skb(&self) -> bool {
        matches!(self.context, Context::Skb(_))
    }

    /// The interface that the frame came from.
    #[inline(always)]
    pub fn ingress(&self) -> u32 {
        // SAFETY: the kernel hands every program a valid context.
        unsafe {
            match self.context {
                Context::Xdp(ctx) => (*ctx).ingress_ifindex,
                Context::Skb(ctx) => (*ctx).ifindex,
            }
        }
    }

    /// Whether the frame may be to another host's MAC address. For a socket buffer the kernel has decided
    /// that; a frame of a driver has to be looked at.
    #[inline(always)]
    pub fn may_be_to_other_host(&self) -> bool {
        match self.context {
            Context::Xdp(_) => true,
            // SAFETY: valid context.
            Context::Skb(ctx) => unsafe { (*ctx).pkt_type == PACKET_OTHERHOST },
        }
    }

    /// Makes the first `len` bytes (or all, if there are fewer) linear. `None` if the kernel has no memory
    /// for it.
    #[inline(always)]
    pub fn pull(&mut self, len: usize) -> Option<()> {
        let Context::Skb(ctx) = self.context else { return Some(()) };
        let len = if len < self.len() { len } else { self.len() };
        if self.at::<u8>(len.wrapping_sub(1) & MAX_PULL).is_some() {
            return Some(());
        }
        // SAFETY: valid context; no pointer into the frame is kept.
        (unsafe { bpf_skb_pull_data(ctx, len as u32) } == 0).then_some(())
    }

    /// Whether the kernel cuts this socket buffer into segments again before it leaves.
    #[inline(always)]
    pub fn is_merged(&self) -> bool {
        self.segment_len() != 0
    }

    /// The length of each segment of a buffer of merged segments; 0 for a single packet.
    #[inline(always)]
    fn segment_len(&self) -> usize {
        match self.context {
            Context::Xdp(_) => 0,
            // SAFETY: valid context.
            Context::Skb(ctx) => unsafe { (*ctx).gso_size as usize },
        }
    }

    /// The length of the longest IP packet that leaves for this one: the kernel cuts a socket buffer of
    /// merged segments into segments again.
    #[inline(always)]
    pub fn longest(&self, ip: &Ip) -> usize {
        let segment = self.segment_len();
        if segment == 0 {
            return ip.total_len();
        }
        let l4 = if ip.protocol == protocol::TCP {
            // The data offset, in words, is in the high half of the byte.
            self.read::<u8>(ip.next + 12).map_or(TCP_LEN, |offset| (offset >> 4) as usize * 4)
        } else {
            UDP_LEN
        };
        ip.next - ip.l3 + l4 + segment
    }

    /// Moves the front of the frame by `delta` bytes: negative makes room, positive cuts off. `None` if there
    /// is no room; the frame is then unchanged.
    #[inline(always)]
    pub fn move_front(&mut self, delta: i32) -> Option<()> {
        let Context::Xdp(ctx) = self.context else { return None };
        // SAFETY: valid context. The call invalidates pointers into the frame; none is kept, since each
        // access takes its own.
        (unsafe { bpf_xdp_adjust_head(ctx, delta) } == 0).then_some(())
    }

    /// Cuts the end of the frame off, down to `len` bytes. `None` if the frame is shorter.
    #[inline(always)]
    pub fn cut_to(&mut self, len: usize) -> Option<()> {
        let Context::Xdp(ctx) = self.context else { return None };
        let surplus = self.len().checked_sub(len)?;
        // SAFETY: valid context; no pointer into the frame is kept.
        (unsafe { bpf_xdp_adjust_tail(ctx, -(surplus as i32)) } == 0).then_some(())
    }

    /// Copies the whole frame; `None` if the buffer is shorter. It uses loads and stores, which the verifier
    /// sees one by one: the helper that copies exists only since Linux 5.18.
    #[inline(always)]
    pub fn copy_to<const N: usize>(&self, buffer: *mut [u8; N]) -> Option<()> {
        const { assert!(N.is_multiple_of(8)) }
        if self.len() > N {
            return None;
        }
        let to: *mut u8 = buffer.cast();
        let mut offset = 0;
        while offset < N && self.copy_at::<u64>(offset, to) {
            offset += 8;
        }
        // Fewer than eight bytes are left, and the buffer's length is a multiple of eight.
        if offset < N {
            offset += if self.copy_at::<u32>(offset, to) { 4 } else { 0 };
            offset += if self.copy_at::<u16>(offset, to) { 2 } else { 0 };
            self.copy_at::<u8>(offset, to);
        }
        Some(())
    }

    /// Copies the `T` at this offset to the same offset of a buffer that has room for it; `false` if the
    /// frame ends before.
    #[inline(always)]
    fn copy_at<T: Wire>(&self, offset: usize, to: *mut u8) -> bool {
        let Some(value) = self.read::<T>(offset) else { return false };
        // SAFETY: the only caller, `copy_to`, stays inside its buffer.
        unsafe { to.add(offset).cast::<T>().write_unaligned(value) };
        true
    }

    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        // The comparison shows that a whole `T` lies between the pointers.
        let (data, end) = self.bounds();
        (data + offset + size_of::<T>() <= end).then_some((data + offset) as *mut T)
    }

    /// Where the linear bytes begin and end.
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        match self.context {
            Context::Xdp(ctx) => (
                pointer::<{ offset_of!(xdp_md, data) }>(ctx),
                pointer::<{ offset_of!(xdp_md, data_end) }>(ctx),
            ),
            Context::Skb(ctx) => (
                pointer::<{ offset_of!(__sk_buff, data) }>(ctx),
                pointer::<{ offset_of!(__sk_buff, data_end) }>(ctx),
            ),
        }
    }
}

impl Frame for Packet {
    #[inline(always)]
    fn len(&self) -> usize {
        match self.context {
            // A driver's frame lies in one buffer, since the programs do not declare support for several.
            Context::Xdp(_) => {
                let (data, end) = self.bounds();
                end - data
            }
            // SAFETY: valid context.
            Context::Skb(ctx) => unsafe { (*ctx).len as usize },
        }
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
        // SAFETY: `at` checked the bounds, a `Header` may have any bytes and lie anywhere, and the borrow of
        // `self` prevents that the frame is moved or accessed otherwise meanwhile.
        self.at::<T>(offset).map(|p| unsafe { &mut *p })
    }

    /// A socket buffer may hold a partial checksum: the sum of the pseudo header, which ports do not change.
    /// The kernel's helpers distinguish such buffers, and keep the sum over the whole buffer
    /// (CHECKSUM_COMPLETE) up to date.
    #[inline(always)]
    fn amend_checksum(
        &mut self,
        l4: L4,
        l4_offset: usize,
        v6: bool,
        addresses: Delta,
        ports: Delta,
    ) -> Option<()> {
        let Context::Skb(ctx) = self.context else {
            return amend_whole_checksum(self, l4, l4_offset, addresses, ports);
        };
        let (field, none_stays_none) = match l4 {
            L4::Tcp => (16, 0),
            L4::Udp => (6, BPF_F_MARK_MANGLED_0 as u64),
        };
        let at = (l4_offset + field) as u32;
        let pseudo = BPF_F_PSEUDO_HDR as u64 | none_stays_none;
        // SAFETY: valid context; no pointer into the frame is kept.
        unsafe {
            let amended = bpf_l4_csum_replace(ctx, at, 0, addresses.folded() as u64, pseudo) == 0
                && bpf_l4_csum_replace(ctx, at, 0, ports.folded() as u64, none_stays_none) == 0;
            if v6 {
                // `bpf_l4_csum_replace` assumes that the checksum of the IP header compensates for the new
                // addresses, but an IPv6 header has no checksum. `bpf_csum_update` adds the new addresses and
                // the new hop limit; it fails if there is no complete sum, and then nothing needs an update.
                let header = addresses.word16(HOP, 0).folded();
                bpf_csum_update(ctx, header as u32);
            }
            amended.then_some(())
        }
    }
}

/// One hop, in the word of an IPv6 header whose last byte is the hop limit.
const HOP: u16 = u16::from_ne_bytes([0, 1]);

/// The `pkt_type` of a frame to another host (linux/if_packet.h).
const PACKET_OTHERHOST: u32 = 3;

/// No caller pulls more bytes; the verifier wants a bound.
const MAX_PULL: usize = 0x7ff;

/// An offset with bounds that every verifier sees. The compiler may hold a number in two parts, and before
/// Linux 6.10 the verifier does not track the result of OR; the compiler does, and would remove a mask that
/// it sees.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub fn bounded(mut offset: usize) -> usize {
    // SAFETY: changes this one register.
    unsafe {
        asm!("{0} &= {1}", inout(reg) offset, const MAX_OFFSET, options(pure, nomem, nostack, preserves_flags))
    };
    offset
}

/// For the host, where the crate is only checked.
#[cfg(not(target_arch = "bpf"))]
pub fn bounded(offset: usize) -> usize {
    offset & MAX_OFFSET
}

/// A pointer in a field of a context. The field has 32 bits, and the verifier replaces the load by one of a
/// whole pointer. If the compiler read the field itself, it would assume that the upper half is 0, and
/// sometimes move the lower half alone.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn pointer<const OFFSET: usize>(context: *mut impl Sized) -> usize {
    let pointer;
    // SAFETY: reads a field of a valid context.
    unsafe {
        asm!(
            "{0} = *(u32 *)({1} + {2})",
            lateout(reg) pointer,
            in(reg) context,
            const OFFSET,
            options(pure, readonly, nostack, preserves_flags)
        )
    };
    pointer
}

/// For the host, where the crate is only checked.
#[cfg(not(target_arch = "bpf"))]
fn pointer<const OFFSET: usize>(context: *mut impl Sized) -> usize {
    context.addr() + OFFSET
}

/// Aligns its contents to 8 bytes. The verifier refuses unaligned accesses to the stack. The compiler may
/// make them wherever a type has a smaller alignment, because unaligned accesses to packets are allowed.
#[repr(C, align(8))]
pub struct Aligned<T>(pub T);

/// Words on the stack for a helper to read while `use_them` runs. They are written by volatile stores, one by
/// one, for the reason that `Aligned` gives: the key of an LPM trie starts with a 32-bit length, and the
/// compiler would use 64-bit stores.
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
    // SAFETY: as long as a `T`, aligned for one, and every word was written; `T` is a key, for which any
    // words are valid.
    use_them(unsafe { &*memory.0.as_ptr().cast::<T>() })
}
