//! What remains of the numbers of a TCP connection that has closed: enough to tell whether the end in
//! TIME_WAIT accepts a new connection (RFC 6191 section 2).

use crate::frame::Frame;
use crate::parse::tcp_timestamp;

/// The sequence number and the timestamp (RFC 7323) of a TCP packet, which grow with time. In one word: the
/// timestamp is the lower half, and 0 if there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpClock(u64);

impl TcpClock {
    /// Of a packet other than TCP.
    pub const NONE: TcpClock = TcpClock(0);

    pub const fn new(seq: u32, timestamp: u32) -> Self {
        TcpClock((seq as u64) << 32 | timestamp as u64)
    }

    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        TcpClock(word)
    }

    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// The clock of the TCP header at `offset`.
    #[inline(always)]
    pub fn read<F: Frame + ?Sized>(frame: &F, offset: usize) -> Self {
        let Some(seq) = frame.read::<u32>(offset + 4) else { return TcpClock::NONE };
        TcpClock::new(u32::from_be(seq), tcp_timestamp(frame, offset))
    }

    #[inline(always)]
    const fn seq(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline(always)]
    const fn timestamp(self) -> u32 {
        self.0 as u32
    }
}

/// The upper seven bits of a connection's last timestamp or, if it has none, of its last sequence number. A
/// number that is above it in these bits is above it. 0 stands for no mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u8);

impl Mark {
    pub const NONE: Mark = Mark(0);

    const OF_TIMESTAMP: u8 = 0x80;
    const SHIFT: u32 = 25;
    const MASK: u32 = 0x7f;

    #[inline(always)]
    pub const fn from_byte(byte: u8) -> Self {
        Mark(byte)
    }

    #[inline(always)]
    pub const fn byte(self) -> u8 {
        self.0
    }

    /// The mark that this packet of the client leaves. The largest packet and the FIN count into the sequence
    /// number; between timestamps lies a minute at most, which is less than the lower bits hold.
    #[inline(always)]
    pub const fn of(last: TcpClock) -> Self {
        if last.timestamp() != 0 {
            Mark(Self::OF_TIMESTAMP | (last.timestamp() >> Self::SHIFT) as u8)
        } else {
            Mark((last.seq().wrapping_add(1 << 17) >> Self::SHIFT) as u8)
        }
    }

    /// Whether the end in TIME_WAIT certainly accepts this SYN.
    #[inline(always)]
    pub const fn accepts(self, syn: TcpClock) -> bool {
        if self.0 == Self::NONE.0 {
            return false;
        }
        let now = if self.0 & Self::OF_TIMESTAMP == 0 {
            syn.seq()
        } else if syn.timestamp() != 0 {
            syn.timestamp()
        } else {
            // Then the sequence number counts, and the mark does not have it.
            return false;
        };
        let above = (now >> Self::SHIFT).wrapping_sub(self.0 as u32) & Self::MASK;
        above != 0 && above <= Self::MASK / 2
    }
}
