//! The shape of a Maglev table (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer", NSDI 2016, section 3.4). User space fills it; packets look it up.
//!
//! Behind the slots follows what a flow needs if the backend in its slot is full: the pool to go to if all
//! are, the number of members, and the members. Pools without a limited instance have only slots.

/// The slots of a table: a prime number, so that the stride of each backend visits every slot.
pub const SLOTS: u32 = 65_537;

/// Four slots make a map element, because the kernel rounds elements of an array up to 8 bytes.
pub const SLOTS_PER_LINE: u32 = 4;

/// A map element.
pub type Line = [u16; SLOTS_PER_LINE as usize];

/// The map elements of the slots.
const SLOT_LINES: u32 = SLOTS.div_ceil(SLOTS_PER_LINE);

/// The most members that are listed behind the slots. A flow tries all of them.
pub const MEMBERS: u32 = 1022;

/// Further slots of a pool that a flow tries, which follow the weights, before the members in turn.
pub const SLOTS_TRIED: u32 = 8;

/// The most pools that a flow tries, one after the other.
pub const POOLS: u32 = 8;

/// The map elements of a table.
pub const LINES: u32 = SLOT_LINES + (MEMBERS + 2).div_ceil(SLOTS_PER_LINE);

/// The places behind the slots: of the fallback pool, of the number of members, and of the first member.
pub const FALLBACK: u32 = SLOT_LINES * SLOTS_PER_LINE;
pub const MEMBER_COUNT: u32 = FALLBACK + 1;
pub const FIRST_MEMBER: u32 = FALLBACK + 2;

/// The slot of a flow: the high half of its hash, scaled to the table (Lemire, "Fast Random Integer
/// Generation in an Interval", 2019) without a division.
#[inline(always)]
pub const fn slot(flow_hash: u64) -> u32 {
    (((flow_hash >> 32) * SLOTS as u64) >> 32) as u32
}

/// The element of a slot or of a place behind them, and its place in the element.
#[inline(always)]
pub const fn place(slot: u32) -> (u32, usize) {
    (slot / SLOTS_PER_LINE, (slot % SLOTS_PER_LINE) as usize)
}
