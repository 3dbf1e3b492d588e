//! The states of an upcall by time: pending, negative, expired.

use nlb_common::upcall::{NEGATIVE_TTL, PENDING_TTL, State, negative, pending, state};

const NOW: u64 = 4_300_000_000_000_001;

#[test]
fn a_question_is_open_then_closed_then_due() {
    let word = pending(NOW);
    let after = |nanoseconds| state(word, NOW + nanoseconds);
    assert_eq!((after(0), after(PENDING_TTL - 2)), (State::Pending, State::Pending));
    assert_eq!(
        (after(PENDING_TTL), after(PENDING_TTL + NEGATIVE_TTL - 2)),
        (State::Negative, State::Negative)
    );
    assert_eq!(
        (after(PENDING_TTL + NEGATIVE_TTL), after(100 * NEGATIVE_TTL)),
        (State::Expired, State::Expired)
    );
}

#[test]
fn an_answer_holds_until_its_end() {
    let word = negative(NOW + NEGATIVE_TTL);
    let after = |nanoseconds| state(word, NOW + nanoseconds);
    assert_eq!((after(0), after(NEGATIVE_TTL - 2)), (State::Negative, State::Negative));
    assert_eq!((after(NEGATIVE_TTL), after(100 * NEGATIVE_TTL)), (State::Expired, State::Expired));
}
