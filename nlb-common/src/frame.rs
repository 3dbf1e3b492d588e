//! Frames: reads and writes at an offset, with bounds checks.
//!
//! In the kernel a frame is a pair of pointers that the verifier tracks; in tests it is a slice. The packet
//! logic uses this trait and is compiled for both. Reads copy whole headers: the compiler keeps only the
//! loads of the fields that are used, so the copy costs nothing.

use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;

use crate::checksum::{Delta, amended};
use crate::net::{Be16, L4};
use crate::protocol::{ETH_LEN, IPV4_LEN, IPV6_LEN, TCP_LEN, UDP_LEN};

/// Types that may be read from and written to a frame as bytes.
///
/// # Safety
///
/// Every bit pattern must be a valid value, and the type must have no padding. Alignment does not matter,
/// since every access is unaligned.
pub unsafe trait Wire: Copy {}

// SAFETY: a byte is a byte, and an array of bytes has no padding.
unsafe impl Wire for u8 {}
// SAFETY: any bits make an integer, and it has no padding.
unsafe impl Wire for u16 {}
// SAFETY: as above.
unsafe impl Wire for u32 {}
// SAFETY: as above.
unsafe impl Wire for u64 {}
// SAFETY: as above.
unsafe impl<const N: usize> Wire for [u8; N] {}
// SAFETY: as above.
unsafe impl Wire for [[u8; 6]; 2] {}

macro_rules! wire {
    ($($header:ty: $len:expr),+ $(,)?) => {$(
        // SAFETY: these headers are made of integers and byte arrays; the size assertion shows that they have
        // no padding.
        unsafe impl Wire for $header {}
        const _: () = assert!(size_of::<$header>() == $len);
    )+};
}
wire!(EthHdr: ETH_LEN, Ipv4Hdr: IPV4_LEN, Ipv6Hdr: IPV6_LEN, TcpHdr: TCP_LEN, UdpHdr: UDP_LEN);

/// Headers that may lie at any address, so that a reference into a frame is sound.
///
/// # Safety
///
/// The alignment must be 1.
pub unsafe trait Header: Wire {}

macro_rules! header {
    ($($header:ty),+ $(,)?) => {$(
        // SAFETY: the assertion below shows that the alignment is 1.
        unsafe impl Header for $header {}
        const _: () = assert!(align_of::<$header>() == 1);
    )+};
}
header!([[u8; 6]; 2], Ipv4Hdr, Ipv6Hdr, TcpHdr, UdpHdr);

/// Bytes of a packet, from the first byte of the Ethernet header.
pub trait Frame {
    /// Length in bytes.
    fn len(&self) -> usize;

    /// The `T` at `offset`; `None` if it would reach beyond the end.
    fn read<T: Wire>(&self, offset: usize) -> Option<T>;

    /// Overwrites the bytes at `offset`; `None`, without a write, if `value` would reach beyond the end.
    #[must_use]
    fn write<T: Wire>(&mut self, offset: usize, value: T) -> Option<()>;

    /// The `T` at `offset`, for edits in place: one bounds check for all of its fields.
    fn edit<T: Header>(&mut self, offset: usize) -> Option<&mut T>;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Updates the checksum of the TCP or UDP header at `l4_offset` for new addresses and ports; the ports
    /// are written after that. A frame whose checksum may be partial overrides this.
    #[inline(always)]
    fn amend_checksum(
        &mut self,
        l4: L4,
        l4_offset: usize,
        _v6: bool,
        addresses: Delta,
        ports: Delta,
    ) -> Option<()> {
        amend_whole_checksum(self, l4, l4_offset, addresses, ports)
    }
}

/// [`Frame::amend_checksum`] for a field that holds a complete checksum.
#[inline(always)]
pub fn amend_whole_checksum<F: Frame + ?Sized>(
    frame: &mut F,
    l4: L4,
    l4_offset: usize,
    addresses: Delta,
    ports: Delta,
) -> Option<()> {
    let both = addresses.and(ports);
    match l4 {
        L4::Tcp => {
            let tcp: &mut TcpHdr = frame.edit(l4_offset)?;
            tcp.check = amended(l4, Be16::from_bytes(tcp.check), both).bytes();
        }
        L4::Udp => {
            let udp: &mut UdpHdr = frame.edit(l4_offset)?;
            udp.check = amended(l4, Be16::from_bytes(udp.check), both).bytes();
        }
    }
    Some(())
}

/// A frame in ordinary memory.
impl Frame for [u8] {
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        let bytes = self.get(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: `bytes` is as long as a `T`, and `Wire` promises that any bytes make a valid one.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }

    fn write<T: Wire>(&mut self, offset: usize, value: T) -> Option<()> {
        let bytes = self.get_mut(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: `bytes` is as long as a `T`, and `Wire` promises that a `T` has no padding to leak.
        unsafe { bytes.as_mut_ptr().cast::<T>().write_unaligned(value) };
        Some(())
    }

    fn edit<T: Header>(&mut self, offset: usize) -> Option<&mut T> {
        let bytes = self.get_mut(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: `bytes` is as long as a `T`, which needs no alignment (`Header`) and may have any bytes
        // (`Wire`).
        Some(unsafe { &mut *bytes.as_mut_ptr().cast::<T>() })
    }
}
