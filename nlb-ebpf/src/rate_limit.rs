//! Rate limits. Out of line for the reasons that `record` gives.
//!
//! A packet has to pass the limits of all services, of its service, of the route that its backend serves, and
//! of its source. All limits are checked before any is charged, so that a refused packet is charged to none.

use nlb_common::abi::{Backend, LIMIT_CHAIN, LIMIT_WINDOWS, Limit, Limits, Service};
use nlb_common::atomic::Word;
use nlb_common::net::Addr;
use nlb_common::prefix;
use nlb_common::verdict::{DropReason, Verdict};

use crate::{clock, maps, settings};

/// Checks and charges the limits that apply to a packet; for a packet that opens a flow, those on new flows
/// too.
#[inline(always)]
pub fn pass(
    service: &Service,
    backend: &Backend,
    client: Addr,
    bytes: usize,
    new: bool,
) -> Result<(), Verdict> {
    let bytes = bytes as u32;
    let common = maps::common_limits();
    let mut met = [common.all, service.limits, backend.limits, Limits::NONE];
    if common.by_source.packets != 0 || new && common.by_source.flows != 0 {
        met[3] = maps::longest_prefix(prefix::LIMITED, client).map_or(Limits::NONE, Limits::from_word);
    }
    let [a, b, c, d] = met;
    let packets = heads(a.packets, b.packets, c.packets, d.packets);
    let flows = if new { heads(a.flows, b.flows, c.flows, d.flows) } else { 0 };
    if packets | flows != 0 {
        if nlb_all_admit(packets, flows, bytes) == 0 {
            return Err(Verdict::Drop(DropReason::RateLimit));
        }
        nlb_charge_all(packets, flows, bytes);
    }
    Ok(())
}

#[inline(always)]
const fn heads(a: u16, b: u16, c: u16, d: u16) -> u64 {
    a as u64 | (b as u64) << 16 | (c as u64) << 32 | (d as u64) << 48
}

/// 1 if every limit of the chains that start at these ids admits the packet. Checking and charging
/// ([`nlb_charge_all`]) are two functions: in one, the compiler would keep the head of each chain on the
/// stack, and callers have used most of the stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_all_admit(packets: u64, flows: u64, bytes: u32) -> u32 {
    each(packets, flows, |first| nlb_admits(first as u32, bytes)).is_some() as u32
}

/// Charges every limit of these chains.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_charge_all(packets: u64, flows: u64, bytes: u32) -> u32 {
    each(packets, flows, |first| nlb_charge(first as u32, bytes)).is_some() as u32
}

/// Calls `call` for the first id of each chain, until it returns 0.
#[inline(always)]
fn each(packets: u64, flows: u64, call: impl Fn(u16) -> u32) -> Option<()> {
    let mut chain = 0;
    while chain < 8 {
        let heads = if chain < 4 { packets } else { flows };
        let first = (heads >> (16 * (chain & 3))) as u16;
        if first != 0 && call(first) == 0 {
            return None;
        }
        chain += 1;
    }
    Some(())
}

/// 1 if all limits of a chain admit the packet. The first limit that refuses the packet counts it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_admits(first: u32, bytes: u32) -> u32 {
    let (now, jiffy) = (clock::nanoseconds(), settings::jiffy());
    walk(first, |id, limit, due| {
        let units = units(limit, bytes);
        let admits = |i: usize| limit.windows[i].admits(&due[i], now, jiffy, units);
        if admits(0) && admits(1) && admits(2) {
            return true;
        }
        if let Some(stats) = maps::limit_stats(id) {
            stats.refused += units;
        }
        false
    })
}

/// Charges all limits of a chain.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_charge(first: u32, bytes: u32) -> u32 {
    let now = clock::nanoseconds();
    walk(first, |id, limit, due| {
        let units = units(limit, bytes);
        limit.windows[0].charge(&due[0], now, units);
        limit.windows[1].charge(&due[1], now, units);
        limit.windows[2].charge(&due[2], now, units);
        if let Some(stats) = maps::limit_stats(id) {
            stats.passed += units;
        }
        true
    })
}

/// 1 if `each` returns true for all limits of a chain.
#[inline(always)]
fn walk(first: u32, each: impl Fn(u16, &Limit, &[Word; LIMIT_WINDOWS]) -> bool) -> u32 {
    let mut id = first as u16;
    let mut met = 0;
    while met < LIMIT_CHAIN {
        if id == 0 {
            break;
        }
        let Some((limit, due)) = maps::limit(id) else { break };
        if !each(id, limit, due) {
            return 0;
        }
        id = limit.next;
        met += 1;
    }
    1
}

#[inline(always)]
fn units(limit: &Limit, bytes: u32) -> u64 {
    if limit.unit == Limit::BYTES { bytes as u64 } else { 1 }
}
