//! The times of a question: open, closed, due.

use nlb_common::upcall::{OPEN, REST, Standing, asked, nobody, standing};

const NOW: u64 = 4_300_000_000_000_001;

#[test]
fn a_question_is_open_then_closed_then_due() {
    let word = asked(NOW);
    let after = |nanoseconds| standing(word, NOW + nanoseconds);
    assert_eq!((after(0), after(OPEN - 2)), (Standing::Open, Standing::Open));
    assert_eq!((after(OPEN), after(OPEN + REST - 2)), (Standing::Closed, Standing::Closed));
    assert_eq!((after(OPEN + REST), after(100 * REST)), (Standing::Due, Standing::Due));
}

#[test]
fn an_answer_holds_until_its_end() {
    let word = nobody(NOW + REST);
    let after = |nanoseconds| standing(word, NOW + nanoseconds);
    assert_eq!((after(0), after(REST - 2)), (Standing::Closed, Standing::Closed));
    assert_eq!((after(REST), after(100 * REST)), (Standing::Due, Standing::Due));
}
