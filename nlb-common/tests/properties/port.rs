//! When a SNAT port may have another connection: timestamps of TCP headers, and what marks accept.

use nlb_common::flow::{Mark, TcpClock};
use proptest::collection::vec;
use proptest::prelude::*;

const END: &[u8] = &[0];
const NOP: &[u8] = &[1];
const MSS: &[u8] = &[2, 4, 5, 0xb4];
const SCALE: &[u8] = &[3, 3, 7];
const SACK_OK: &[u8] = &[4, 2];
const STAMP: &[u8] = &[8, 10, 0x12, 0x34, 0x56, 0x78, 9, 9, 9, 9];
const MD5: &[u8] = &[19, 18, 8, 10, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];

const SEQ: u32 = 0xdead_beef;

/// A frame with these options, and the offset of its TCP header.
fn frame(options: &[u8]) -> (Vec<u8>, usize) {
    const OFFSET: usize = 34;
    let len = (20 + options.len()).next_multiple_of(4);
    let mut frame = vec![0xaa; OFFSET];
    frame.extend([0, 80, 0, 81]);
    frame.extend(SEQ.to_be_bytes());
    frame.extend([0, 0, 0, 0, ((len / 4) << 4) as u8, 0x10, 1, 0, 0, 0, 0, 0]);
    frame.extend(options);
    frame.resize(OFFSET + len, 0);
    // Data that looks like a timestamp.
    frame.extend(STAMP);
    (frame, OFFSET)
}

#[test]
fn timestamps_are_found_wherever_stacks_write_them() {
    let with = |options: &[&[u8]]| {
        let (frame, offset) = frame(&options.concat());
        TcpClock::read(&frame[..], offset)
    };
    let stamped = TcpClock::new(SEQ, 0x1234_5678);
    let bare = TcpClock::new(SEQ, 0);
    for (what, options, expected) in [
        ("a SYN of Linux", &[MSS, SACK_OK, STAMP, NOP, SCALE][..], stamped),
        ("data of Linux", &[NOP, NOP, STAMP], stamped),
        ("a SYN of BSD", &[MSS, NOP, SCALE, SACK_OK, STAMP], stamped),
        ("a SYN of macOS", &[MSS, NOP, SCALE, NOP, NOP, STAMP, SACK_OK, END], stamped),
        ("alone", &[STAMP], stamped),
        (
            "last in the longest header",
            &[NOP, NOP, MD5, NOP, NOP, NOP, NOP, NOP, NOP, NOP, NOP, NOP, NOP, STAMP],
            stamped,
        ),
        ("none", &[], bare),
        ("a SYN of Windows", &[MSS, NOP, SCALE, NOP, NOP, SACK_OK], bare),
        ("behind the end", &[END, STAMP], bare),
        ("behind an option without length", &[&[30, 0], STAMP], bare),
        ("inside an option", &[MD5], bare),
        ("cut off by the header's end", &[NOP, NOP, &STAMP[..4]], bare),
    ] {
        assert_eq!(with(options), expected, "{what}");
    }
}

/// As Linux compares numbers that wrap around.
fn is_above(number: u32, other: u32) -> bool {
    (number.wrapping_sub(other) as i32) > 0
}

proptest! {
    #[test]
    fn no_header_is_read_beyond_its_end(options in vec(any::<u8>(), 0..=40), cut in 0..100_usize) {
        let (mut frame, offset) = frame(&options);
        frame.truncate(cut);
        let clock = TcpClock::read(&frame[..], offset);
        prop_assert!(cut >= offset + 8 || clock == TcpClock::NONE);
    }

    /// Nothing between the packet that left the mark and the end of the connection is above a SYN that the
    /// mark accepts; and half of all numbers are accepted.
    #[test]
    fn what_a_mark_accepts_the_backend_accepts(last: u32, stamp: u32, syn: u32, syn_stamp: u32, sent in 0..=65_536_u32, later in 0..60_000_u32) {
        let old = TcpClock::new(last, stamp);
        let new = TcpClock::new(syn, syn_stamp);
        if Mark::of(old).accepts(new) {
            if stamp == 0 {
                prop_assert!(is_above(syn, last.wrapping_add(sent)));
            } else {
                prop_assert!(is_above(syn_stamp, stamp.wrapping_add(later)), "RFC 7323 refuses it");
            }
        }
        let far = last.wrapping_add(1 << 30);
        prop_assert!(!Mark::NONE.accepts(new));
        let mark = Mark::of(TcpClock::new(last, 0));
        prop_assert!(mark == Mark::NONE || mark.accepts(TcpClock::new(far, syn_stamp)));
        prop_assert!(!Mark::of(TcpClock::new(far, 0)).accepts(TcpClock::new(last, syn_stamp)));
        prop_assert!(!Mark::of(TcpClock::new(last, 1)).accepts(TcpClock::new(far, 0)), "the sequence number of the old one is not known");
    }
}
