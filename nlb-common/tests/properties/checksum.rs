//! Incremental updates, compared with sums over whole packets.

use nlb_common::checksum::{Delta, fold, full};
use nlb_common::net::{Addr, Be16};
use proptest::collection::vec;
use proptest::prelude::*;

use super::packet;

/// A replacement at an even offset.
#[derive(Clone, Debug)]
enum Edit {
    Word16(usize, u16),
    Word32(usize, u32),
    Addr(usize, u64, u64),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = 1..1000_usize;
    let corner16 = prop_oneof![any::<u16>(), Just(0), Just(u16::MAX)];
    let corner32 = prop_oneof![any::<u32>(), Just(0), Just(u32::MAX)];
    prop_oneof![
        (at.clone(), corner16).prop_map(|(at, word)| Edit::Word16(at, word)),
        (at.clone(), corner32).prop_map(|(at, word)| Edit::Word32(at, word)),
        (at, any::<u64>(), any::<u64>()).prop_map(|(at, hi, lo)| Edit::Addr(at, hi, lo)),
    ]
}

impl Edit {
    /// Writes it somewhere behind the first word, and adds it to `delta`.
    fn apply(&self, bytes: &mut [u8], delta: Delta) -> Delta {
        let total = bytes.len();
        let place = |at: usize, len: usize| {
            let words = (total - 2 - len) / 2 + 1;
            let start = 2 + at % words * 2;
            start..start + len
        };
        match self {
            Edit::Word16(at, new) => {
                let old = &mut bytes[place(*at, 2)];
                let before = u16::from_ne_bytes([old[0], old[1]]);
                old.copy_from_slice(&new.to_ne_bytes());
                delta.word16(before, *new)
            }
            Edit::Word32(at, new) => {
                let old = &mut bytes[place(*at, 4)];
                let before = u32::from_ne_bytes([old[0], old[1], old[2], old[3]]);
                old.copy_from_slice(&new.to_ne_bytes());
                delta.word32(before, *new)
            }
            Edit::Addr(at, hi, lo) => {
                let old = &mut bytes[place(*at, 16)];
                let before = Addr::v6((&*old).try_into().expect("16 bytes"));
                let new = Addr { hi: *hi, lo: *lo };
                old.copy_from_slice(&new.v6_bytes());
                delta.addr(before, new)
            }
        }
    }
}

/// Words whose sums carry once, twice or not at all.
fn corner() -> impl Strategy<Value = u16> {
    prop_oneof![any::<u16>(), Just(0), Just(1), Just(0xfffe), Just(0xffff)]
}

proptest! {
    #[test]
    fn the_sum_of_everything_is_that_of_rfc_1071(bytes in vec(any::<u8>(), 0..2000)) {
        prop_assert_eq!(full(&bytes).get(), packet::checksum(&[&bytes]));
    }

    /// The first word is never 0 and never replaced, as in every header: the two zeros of ones' complement
    /// differ only if all words are 0.
    #[test]
    fn edits_give_what_summing_again_gives(
        first in 1..=u16::MAX,
        rest in vec(prop_oneof![any::<u8>(), Just(0), Just(0xff)], 16..200),
        edits in vec(edit(), 0..20),
    ) {
        let mut bytes = first.to_be_bytes().to_vec();
        bytes.extend(rest);
        let before = full(&bytes);
        let delta = edits.iter().fold(Delta::new(), |delta, edit| edit.apply(&mut bytes, delta));
        prop_assert_eq!(delta.apply(before), full(&bytes));
    }

    /// A receiver sums everything up, the checksum included, and expects all ones.
    #[test]
    fn a_checksum_completes_the_sum(bytes in vec(any::<u8>(), 0..200)) {
        let mut padded = bytes.clone();
        padded.resize(bytes.len().next_multiple_of(2), 0);
        padded.extend(full(&bytes).bytes());
        prop_assert_eq!(packet::checksum(&[&padded]), 0);
    }

    #[test]
    fn folding_is_the_remainder_by_all_ones(words in [corner(), corner(), corner(), corner()]) {
        let sum = words.into_iter().fold(0, |sum: u64, word| sum << 16 | u64::from(word));
        let folded = u64::from(fold(sum));
        prop_assert_eq!(folded % 0xffff, sum % 0xffff);
        prop_assert_eq!(folded == 0, sum == 0, "only nothing adds up to 0");
    }
}

/// RFC 1624 section 4: the case that RFC 1141 gets wrong.
#[test]
fn the_example_of_rfc_1624() {
    let delta = Delta::new().word16(0x5555_u16.to_be(), 0x3285_u16.to_be());
    assert_eq!(delta.apply(Be16::new(0xdd2f)).get(), 0x0000);
}
