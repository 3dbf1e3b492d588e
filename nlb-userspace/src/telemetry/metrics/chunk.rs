//! Some minutes of samples in compressed form: the first row of each subject, and then its changes.
//!
//! A change is encoded as the seconds since the change before, a mask of the values that changed, and their
//! differences, all as numbers of seven bits a byte (LEB128); differences have their sign in the lowest bit.
//! A second without a change of a subject takes no space.

use std::collections::BTreeMap;
use std::mem::size_of;
use std::ops::RangeInclusive;
use std::time::SystemTime;

use super::{Sample, Subject};

/// The overhead of an allocation, and of an entry of a tree: rounded up.
const ALLOCATION: usize = 16;
const TREE_ENTRY: usize = 16;

#[derive(Clone, Debug, Default)]
pub(super) struct Chunk {
    seconds: Vec<SystemTime>,
    /// Mostly one track for each subject, and one more each time that the subject came back.
    tracks: BTreeMap<Subject, Vec<Track>>,
    bytes: usize,
}

/// One subject for as long as it existed without interruption.
#[derive(Clone, Debug)]
struct Track {
    first: usize,
    /// Seconds that it existed.
    length: usize,
    /// Whether it did not exist in the second before the track.
    born: bool,
    changes: Vec<u8>,
    /// While the chunk is written: the newest row, and the second of the newest change.
    last: Box<[u64]>,
    changed: usize,
}

/// A row at one second.
#[derive(Debug, PartialEq)]
pub struct Moment {
    pub at: SystemTime,
    pub row: Vec<u64>,
    /// Whether the subject did not exist in the second before, so that its counters started at 0.
    pub born: bool,
}

impl Chunk {
    /// `continues` returns whether a subject existed in the second before the chunk's first.
    pub(super) fn push(&mut self, sample: &Sample, continues: impl Fn(&Subject) -> bool) {
        let second = self.seconds.len();
        let room = self.seconds.capacity();
        self.seconds.push(sample.at);
        self.bytes += (self.seconds.capacity() - room) * size_of::<SystemTime>();
        self.open_tracks(sample);
        // Both are in the same order, and most subjects are in both.
        let mut known = self.tracks.iter_mut();
        for (subject, row) in &sample.rows {
            let Some((_, tracks)) = known.find(|(known, _)| *known == subject) else { break };
            let track = match tracks.pop() {
                Some(track) if track.end() == second => track,
                gone => {
                    tracks.extend(gone);
                    self.bytes += size_of::<Track>() + size_of_val::<[u64]>(row) + 2 * ALLOCATION;
                    let born = if second == 0 { !continues(subject) } else { true };
                    Track::new(second, born, row.len())
                }
            };
            tracks.push(track);
            let track = tracks.last_mut().expect("one was pushed");
            let room = track.changes.capacity();
            track.push(second, row);
            self.bytes += track.changes.capacity() - room;
        }
    }

    /// Adds tracks for new subjects.
    fn open_tracks(&mut self, sample: &Sample) {
        let mut known = self.tracks.keys().peekable();
        let mut new = Vec::new();
        for subject in sample.rows.keys() {
            while known.next_if(|known| *known < subject).is_some() {}
            if known.next_if_eq(&subject).is_none() {
                new.push((subject.clone(), Vec::with_capacity(1)));
            }
        }
        for (subject, _) in &new {
            let key = size_of::<Subject>() + subject.heap_bytes() + size_of::<Vec<Track>>();
            self.bytes += key + TREE_ENTRY + 2 * ALLOCATION;
        }
        self.tracks.extend(new);
    }

    /// Frees what only writing needs.
    pub(super) fn seal(&mut self) {
        for track in self.tracks.values_mut().flatten() {
            self.bytes -= size_of_val::<[u64]>(&track.last) + track.changes.capacity();
            track.last = Box::default();
            track.changes.shrink_to_fit();
            self.bytes += track.changes.capacity();
        }
    }

    /// The accounted size: the sizes of all parts, rounded up.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn seconds(&self) -> &[SystemTime] {
        &self.seconds
    }

    /// Whether the subject existed in the newest second.
    pub(super) fn ends_with(&self, subject: &Subject) -> bool {
        let tracks = self.tracks.get(subject);
        tracks.and_then(|tracks| tracks.last()).is_some_and(|track| track.end() == self.seconds.len())
    }

    pub(super) fn subjects(&self) -> impl Iterator<Item = &Subject> {
        self.tracks.keys()
    }

    /// The subject's rows in the period, oldest first.
    pub(super) fn moments(&self, subject: &Subject, time: &RangeInclusive<SystemTime>) -> Vec<Moment> {
        let mut moments = Vec::new();
        for track in self.tracks.get(subject).into_iter().flatten() {
            track.replay(subject.family().len(), |second, row| {
                let at = self.seconds[second];
                if time.contains(&at) {
                    moments.push(Moment { at, row: row.to_vec(), born: track.born && second == track.first });
                }
            });
        }
        moments
    }
}

impl Track {
    fn new(first: usize, born: bool, columns: usize) -> Self {
        let last = vec![0; columns].into();
        Track { first, length: 0, born, changes: Vec::new(), last, changed: first }
    }

    /// The second after its last.
    fn end(&self) -> usize {
        self.first + self.length
    }

    fn push(&mut self, second: usize, row: &[u64]) {
        self.length += 1;
        let differences = || row.iter().zip(&self.last).map(|(now, before)| now.wrapping_sub(*before) as i64);
        let mask =
            differences().enumerate().fold(0, |mask, (i, change)| mask | (u64::from(change != 0) << i));
        if mask == 0 {
            return;
        }
        let mut written = std::mem::take(&mut self.changes);
        write(&mut written, (second - self.changed) as u64);
        write(&mut written, mask);
        differences().filter(|change| *change != 0).for_each(|change| write(&mut written, zigzag(change)));
        self.changes = written;
        self.changed = second;
        self.last.copy_from_slice(row);
    }

    fn replay(&self, columns: usize, mut visit: impl FnMut(usize, &[u64])) {
        let mut row = vec![0_u64; columns];
        let mut left = self.changes.as_slice();
        let mut next = read(&mut left).map(|gap| self.first + gap as usize);
        for second in self.first..self.end() {
            if next == Some(second) {
                let mask = read(&mut left).unwrap_or(0);
                for (_, value) in row.iter_mut().enumerate().filter(|(i, _)| mask & (1 << i) != 0) {
                    *value = value.wrapping_add(unzigzag(read(&mut left).unwrap_or(0)) as u64);
                }
                next = read(&mut left).map(|gap| second + gap as usize);
            }
            visit(second, &row);
        }
    }
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

fn write(bytes: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// `None` at the end.
fn read(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for (i, byte) in bytes.iter().enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            *bytes = &bytes[i + 1..];
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_come_back() {
        for number in [0, 1, 127, 128, 300, u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            write(&mut bytes, number);
            let mut left = bytes.as_slice();
            assert_eq!((read(&mut left), left.is_empty()), (Some(number), true));
            assert_eq!(zigzag(unzigzag(number)), number);
        }
    }

    proptest! {
        /// What was recorded in each second, with gaps, is read unchanged, sealed or not.
        #[test]
        fn rows_come_back(
            rows in prop::collection::vec(prop::option::of(prop::array::uniform9(prop_oneof![0..3_u64, any::<u64>()])), 1..40)
        ) {
            let mut chunk = Chunk::default();
            let at = |second: usize| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(second as u64);
            for (second, row) in rows.iter().enumerate() {
                let rows = row.iter().map(|row| (Subject::All, row.to_vec().into())).collect();
                chunk.push(&Sample { at: at(second), second: second as u64, rows }, |_| false);
            }
            let all = at(0)..=at(rows.len());
            let expected: Vec<Moment> = rows
                .iter()
                .enumerate()
                .filter_map(|(second, row)| {
                    let born = second == 0 || rows[second - 1].is_none();
                    Some(Moment { at: at(second), row: (*row)?.to_vec(), born })
                })
                .collect();
            prop_assert_eq!(&chunk.moments(&Subject::All, &all), &expected);
            let before = chunk.bytes();
            chunk.seal();
            prop_assert_eq!(&chunk.moments(&Subject::All, &all), &expected);
            prop_assert!(chunk.bytes() <= before);
        }
    }
}
