//! Upcalls: on the first packet to a destination without a service, user space asks modules whether they can
//! handle it.
//!
//! Out of line for the reasons that `record` gives. [`nlb_common::upcall`] defines how long a state lasts.

use nlb_common::abi::{ServiceEntry, Upcall};
use nlb_common::net::{Addr, L4};
use nlb_common::parse::{Ip, Segment};
use nlb_common::upcall::{self, State};
use nlb_common::verdict::UPCALL_LOST_COUNTER;

use crate::{arguments, clock, maps};

/// Whether an upcall about the destination is pending. A packet that could open a flow raises one if none is.
#[inline(always)]
pub fn is_pending(ip: &Ip, vip: u16, segment: &Segment) -> bool {
    let opens = match segment.l4 {
        L4::Tcp => segment.flags.opens(),
        L4::Udp => true,
    };
    let (vip, ports) = (arguments::vip(vip, segment.l4), arguments::ports(segment));
    opens && nlb_upcall(vip, ports, ip.src.hi, ip.src.lo) != 0
}

/// 1 if an upcall about the destination is pending, perhaps raised by this call.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_upcall(vip_and_protocol: u32, ports: u32, client_hi: u64, client_lo: u64) -> u32 {
    let (vip, l4) = arguments::from_vip(vip_and_protocol);
    let (client_port, port) = arguments::from_ports(ports);
    let key = ServiceEntry::key(vip, port, l4);
    let now = clock::nanoseconds();
    let before = match maps::upcall_state(key) {
        Some(word) => {
            let value = word.load();
            match upcall::state(value, now) {
                State::Pending => return 1,
                State::Negative => return 0,
                State::Expired => Some((word, value)),
            }
        }
        None => None,
    };
    let Some(addr) = maps::vip(vip) else { return 0 };
    let Some(mut room) = maps::upcalls().reserve(0) else {
        maps::count(UPCALL_LOST_COUNTER);
        return 0;
    };
    let mine = match before {
        Some((word, value)) => Ok(word.exchange(value, upcall::pending(now))),
        None => maps::insert_upcall_state(key, upcall::pending(now)),
    };
    match mine {
        Ok(true) => {
            let client = Addr { hi: client_hi, lo: client_lo };
            let protocol = l4 as u16;
            room.write(Upcall {
                key,
                asked_at: now,
                vip: addr,
                client,
                port,
                client_port,
                protocol,
                _pad: 0,
            });
            room.submit(0);
            1
        }
        Ok(false) => {
            room.discard(0);
            1
        }
        Err(()) => {
            room.discard(0);
            maps::count(UPCALL_LOST_COUNTER);
            0
        }
    }
}
