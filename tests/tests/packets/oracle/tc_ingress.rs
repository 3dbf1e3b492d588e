//! The differences at TC ingress, where the program is the same and has fewer helpers.
//!
//! docs/datapath.md lists them: no packet is answered, punted or encapsulated, and passed packets are not
//! counted.

use super::edits::IcmpError;
use super::model::Expected;
use crate::rig::Outcome;

// From the kernel's `pkt_cls.h`.
const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;

/// Whether the frame can be compared. The kernel runs this program on no frame that is too short for an IP
/// header, and its stack may fragment long ones.
pub fn takes(frame: &[u8]) -> bool {
    const HEADERS: usize = 14 + 40;
    (HEADERS..1400).contains(&frame.len())
}

/// Whether a reply was sent for which XDP has no neighbour or no route. At TC ingress the stack finds the
/// next hop. The model has not counted this reply.
pub fn stack_finds_next_hop(expected: &Expected, outcome: &Outcome) -> bool {
    const STOPPED: [&str; 2] = ["park next_hop", "drop no_route"];
    let stopped =
        matches!(expected, Expected::Untouched(exits) if exits.iter().any(|exit| STOPPED.contains(exit)));
    stopped && outcome.action == TC_ACT_REDIRECT && outcome.counted.contains_key("send reply")
}

/// Whether the result is the one at TC ingress for this result of XDP.
pub fn is_expected(expected: &Expected, frame: &[u8], outcome: &Outcome) -> bool {
    let exits: Vec<(&str, u64)> =
        outcome.counted.iter().map(|(exit, count)| (exit.as_str(), *count)).collect();
    let passed = outcome.action == TC_ACT_UNSPEC && exits.is_empty() && outcome.frame == frame;
    let dropped = |exit: &str| outcome.action == TC_ACT_SHOT && exits == [(exit, 1)];
    match expected {
        Expected::Untouched(exits) if exits.iter().any(|exit| exit.starts_with("pass")) => passed,
        // Frames with a malformed IP header pass.
        Expected::Untouched(exits) if passed => exits.iter().any(|exit| BROKEN.contains(exit)),
        Expected::Untouched(exits) if exits.contains(&"park next_hop") => dropped("drop park_full"),
        Expected::Untouched(exits) => exits.iter().any(|exit| dropped(exit)),
        Expected::IcmpError(_, IcmpError::TtlExceeded) => dropped("drop ttl_exceeded"),
        Expected::Sent("send reject", _) | Expected::IcmpError(..) => dropped("drop no_backend"),
        Expected::Sent(..) if dropped("drop headroom") => true,
        Expected::Sent(exit, bytes) => {
            outcome.action == TC_ACT_REDIRECT && exits == [(*exit, 1)] && bytes.is(&outcome.frame)
        }
    }
}

const BROKEN: [&str; 2] = ["drop truncated", "drop ip_header"];
