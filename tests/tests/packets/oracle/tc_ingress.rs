//! What differs at the TC ingress hook, where the program is the same and has fewer helpers.
//!
//! docs/datapath.md lists it: nothing is answered, nothing waits, nothing grows, and what is passed is not
//! counted.

use super::model::Expected;
use crate::rig::Outcome;

// Of the kernel's `pkt_cls.h`.
const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;

/// Whether both hooks treat the frame alike: the kernel runs this program on no frame too short for its IP
/// header, and what is too long for a link is another matter for a stack that may yet cut it.
pub fn takes(frame: &[u8]) -> bool {
    const HEADERS: usize = 14 + 40;
    (HEADERS..1400).contains(&frame.len())
}

/// Whether an answer went to a client whose MAC XDP would have had to ask for, or to whom it has no way: here
/// the stack finds neighbours, and what it routes nowhere is taken for the host's own. The model has not
/// counted it.
pub fn leaves_the_way_to_the_stack(expected: &Expected, outcome: &Outcome) -> bool {
    const STOPPED: [&str; 2] = ["park next_hop", "drop no_route"];
    let stopped =
        matches!(expected, Expected::Untouched(exits) if exits.iter().any(|exit| STOPPED.contains(exit)));
    stopped && outcome.action == TC_ACT_REDIRECT && outcome.counted.contains_key("send reply")
}

/// Whether the program did what follows here from what it would do as XDP.
pub fn comes_out(expected: &Expected, frame: &[u8], outcome: &Outcome) -> bool {
    let exits: Vec<(&str, u64)> =
        outcome.counted.iter().map(|(exit, count)| (exit.as_str(), *count)).collect();
    let passed = outcome.action == TC_ACT_UNSPEC && exits.is_empty() && outcome.frame == frame;
    let dropped = |exit: &str| outcome.action == TC_ACT_SHOT && exits == [(exit, 1)];
    match expected {
        Expected::Untouched(exits) if exits.iter().any(|exit| exit.starts_with("pass")) => passed,
        // What has no sound IP header is not looked at any further.
        Expected::Untouched(exits) if passed => exits.iter().any(|exit| BROKEN.contains(exit)),
        Expected::Untouched(exits) if exits.contains(&"park next_hop") => dropped("drop park_full"),
        Expected::Untouched(exits) => exits.iter().any(|exit| dropped(exit)),
        Expected::Sent("send reject", _) | Expected::IcmpError(..) => dropped("drop no_backend"),
        Expected::Sent(..) if dropped("drop headroom") => true,
        Expected::Sent(exit, bytes) => {
            outcome.action == TC_ACT_REDIRECT && exits == [(*exit, 1)] && bytes.is(&outcome.frame)
        }
    }
}

const BROKEN: [&str; 2] = ["drop truncated", "drop ip_header"];
