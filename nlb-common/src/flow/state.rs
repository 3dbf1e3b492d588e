//! The state of a flow: one word, which writers exchange as a whole, and its changes by packets and time.

use super::key::Key;
use super::mark::Mark;
use crate::net::{Be16, L4};
use crate::parse::TcpFlags;

/// The state word of an entry. From the low bits up: 32 bits of payload, 8 of generation or mark, 8 of phase,
/// 16 of time.
///
/// The payload of a forward entry is the backend's id and the SNAT port (0 if the client keeps its port), and
/// it has the backend's generation; that of a reply entry is the number of its forward entry, and it has a
/// mark.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(pub(super) u64);

/// Phase bits. `LIVE` is set in every published entry.
pub mod phase {
    pub const LIVE: u8 = 1;
    /// TCP: a packet of the client after its SYN, with an ACK. UDP: a second packet, or a reply.
    pub const ESTABLISHED: u8 = 2;
    pub const CLIENT_FIN: u8 = 4;
    pub const BACKEND_FIN: u8 = 8;
    /// A reset. Any later packet without one clears this: a forged RST must not end a flow.
    pub const RESET: u8 = 16;
    pub const UDP: u8 = 32;
    /// The backend's packets do not pass this node (direct server return).
    pub const ONE_WAY: u8 = 64;
    /// The flow counts against the capacity of its instance. Only forward entries have this.
    pub const COUNTED: u8 = 128;
}

impl State {
    #[inline(always)]
    pub const fn forward(backend: u16, snat_port: Be16, generation: u8, phase: u8, now: u16) -> Self {
        Self::new(backend as u32 | (snat_port.word() as u32) << 16, generation, phase, now)
    }

    #[inline(always)]
    pub const fn reply(place: u32, mark: Mark, phase: u8, now: u16) -> Self {
        Self::new(place, mark.byte(), phase & !self::phase::COUNTED, now)
    }

    #[inline(always)]
    const fn new(payload: u32, byte: u8, phase: u8, now: u16) -> Self {
        State(
            payload as u64
                | (byte as u64) << 32
                | ((phase | self::phase::LIVE) as u64) << 40
                | (now as u64) << 48,
        )
    }

    #[inline(always)]
    pub const fn backend(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    pub const fn snat_port(self) -> Be16 {
        Be16::from_bytes(((self.0 >> 16) as u16).to_ne_bytes())
    }

    /// The source port that the backend sees: the SNAT port or, without one, the client's port.
    #[inline(always)]
    pub const fn translated_port(self, key: &Key) -> Be16 {
        if self.snat_port().is_zero() { key.remote_port() } else { self.snat_port() }
    }

    #[inline(always)]
    pub const fn place(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    pub const fn generation(self) -> u8 {
        (self.0 >> 32) as u8
    }

    /// The mark of a reply entry.
    #[inline(always)]
    pub const fn mark(self) -> Mark {
        Mark::from_byte((self.0 >> 32) as u8)
    }

    #[inline(always)]
    pub const fn phase(self) -> u8 {
        (self.0 >> 40) as u8
    }

    #[inline(always)]
    pub const fn seen(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The same owner with another phase and time.
    #[inline(always)]
    pub(super) const fn at(self, phase: u8, now: u16) -> Self {
        State(self.0 & 0xff_ffff_ffff | (phase as u64) << 40 | (now as u64) << 48)
    }

    /// The payload. A mark may change while a packet looks at its entry.
    #[inline(always)]
    pub const fn owner(self) -> u32 {
        self.0 as u32
    }

    /// The whole word: it differs with every change of phase, time or owner.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        State(word)
    }

    #[inline(always)]
    pub const fn is_live(self) -> bool {
        self.phase() & phase::LIVE != 0
    }

    /// FIN from both sides, or a reset: the next SYN opens a new connection.
    #[inline(always)]
    pub const fn is_closed(self) -> bool {
        self.phase() & phase::RESET != 0 || self.is_finished()
    }

    /// FIN from both sides.
    #[inline(always)]
    pub const fn is_finished(self) -> bool {
        self.phase() & FINS == FINS
    }

    /// Whether it counts against the capacity of its instance.
    #[inline(always)]
    pub const fn is_counted(self) -> bool {
        self.phase() & phase::COUNTED != 0
    }

    /// The same state of a flow that counts, or of one that does not.
    #[inline(always)]
    pub const fn with_counted(self, counted: bool) -> Self {
        let rest = self.phase() & !phase::COUNTED;
        self.at(if counted { rest | phase::COUNTED } else { rest }, self.seen())
    }

    /// Whether its idle time is over.
    #[inline(always)]
    pub const fn is_expired(self, now: u16, idle: &IdleTimes) -> bool {
        self.age(now) > idle.of(self.phase())
    }

    /// Ticks since the last packet. Another CPU may have recorded a packet since this one read the clock; the
    /// age is then 0.
    #[inline(always)]
    pub(super) const fn age(self, now: u16) -> u16 {
        const AHEAD: u16 = 8;
        let age = now.wrapping_sub(self.seen());
        if age > u16::MAX - AHEAD { 0 } else { age }
    }
}

/// A connection that both sides have closed does not count against a capacity.
#[inline(always)]
pub(super) const fn without_count_if_closed(phase: u8) -> u8 {
    // Without a branch, which the verifier would follow: the bits of the FINs, moved to that of the count.
    let both = (phase << 5) & (phase << 4) & phase::COUNTED;
    phase & !both
}

pub(super) const FINS: u8 = phase::CLIENT_FIN | phase::BACKEND_FIN;

/// Ticks without a packet, about a second, after which no more is expected of a closed flow, nor of one that
/// has only begun to open.
pub(super) const MIN_TICKS: u16 = 2;

/// Idle times in ticks after which a flow may be evicted.
#[derive(Clone, Copy, Debug)]
pub struct IdleTimes {
    pub opening: u16,
    pub established: u16,
    pub closing: u16,
    pub udp: u16,
    /// Ticks for which the port of a closed connection rests, while others are free.
    pub time_wait: u16,
}

impl IdleTimes {
    /// A connection with a FIN of one side is open in the other direction (RFC 9293 section 3.6). Where only
    /// the client's packets are seen, its FIN has to count as the end of both.
    #[inline(always)]
    const fn of(&self, phase: u8) -> u16 {
        let fins = if phase & phase::ONE_WAY == 0 { FINS } else { phase::CLIENT_FIN };
        if phase & phase::UDP != 0 {
            self.udp
        } else if phase & phase::RESET != 0 || phase & fins == fins {
            self.closing
        } else if phase & phase::ESTABLISHED != 0 {
            self.established
        } else {
            self.opening
        }
    }
}

/// The phase of a new flow.
#[inline(always)]
pub const fn first_phase(l4: L4, flags: TcpFlags) -> u8 {
    match l4 {
        L4::Udp => phase::UDP,
        // The end of a connection that another node had, or whose entry was evicted: whether the other half
        // is still open shows with the next packet.
        L4::Tcp if flags.has(TcpFlags::FIN) => next_phase(0, flags, true) & !phase::ESTABLISHED,
        // Without SYN this is the middle of such a connection.
        L4::Tcp => next_phase(0, flags, true),
    }
}

/// The phase after one more packet.
#[inline(always)]
pub const fn next_phase(phase: u8, flags: TcpFlags, from_client: bool) -> u8 {
    if phase & phase::UDP != 0 {
        return phase | phase::ESTABLISHED;
    }
    if flags.has(TcpFlags::RST) {
        // The backend knows best that it has no connection; a reset to it may be forged.
        let counted = if from_client { phase & phase::COUNTED } else { 0 };
        return phase & !phase::COUNTED | phase::RESET | counted;
    }
    let mut next = phase & !phase::RESET;
    // A client that opens a connection from the same port has left the old one.
    if from_client && flags.opens() {
        next &= !FINS;
    }
    if flags.has(TcpFlags::FIN) {
        next |= if from_client { phase::CLIENT_FIN } else { phase::BACKEND_FIN };
    }
    // The client's first packet after its SYN shows that the handshake completed; a SYN flood has no such
    // packet. Each has the ACK flag; an end drops others without an answer (RFC 9293 section 3.10.7.4).
    if from_client && flags.0 & (TcpFlags::SYN | TcpFlags::ACK) == TcpFlags::ACK {
        next |= phase::ESTABLISHED;
    }
    without_count_if_closed(next)
}
