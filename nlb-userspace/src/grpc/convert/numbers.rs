//! Counts in protobuf's signed integers: a count that does not fit becomes the largest integer.

pub(crate) fn signed_32(count: impl TryInto<i32>) -> i32 {
    count.try_into().unwrap_or(i32::MAX)
}

pub(crate) fn signed_64(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}
