//! Violations in a message: the field, and what it should be. Simple fields are parsed here.

use std::collections::HashMap;
use std::fmt;
use std::time::SystemTime;

use prost_types::Timestamp;

use crate::model::{MAX_WEIGHT, Texts};

/// A field whose value is invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// The field's path, such as `initial_routes[2].metadata.listen_port`.
    pub field: String,
    /// What is wrong, and what the field should be.
    pub problem: String,
}

impl FieldViolation {
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        FieldViolation { field: brief(field.into()), problem: brief(problem.into()) }
    }

    /// The same violation with the path of the enclosing message.
    pub fn within(self, outer: impl fmt::Display) -> Self {
        FieldViolation { field: format!("{outer}.{}", self.field), ..self }
    }
}

impl fmt::Display for FieldViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

/// A description may quote the field's value, which is of any length, and an error has to fit in a header.
fn brief(mut text: String) -> String {
    const LENGTH: usize = 500;
    if text.len() > LENGTH {
        text.truncate(text.floor_char_boundary(LENGTH));
        text.push_str("...");
    }
    text
}

const ID_LENGTH: usize = 128;
const MAP_ENTRIES: usize = 64;
const KEY_LENGTH: usize = 128;
pub(crate) const TEXT_LENGTH: usize = 4096;

/// The id of an instance or a route.
pub(crate) fn id(field: &str, text: &str) -> Result<String, FieldViolation> {
    if text.is_empty() {
        return Err(FieldViolation::new(field, "is empty; give one"));
    }
    if text.len() > ID_LENGTH {
        return Err(FieldViolation::new(field, format!("is longer than {ID_LENGTH} bytes")));
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control() || c == ',') {
        return Err(FieldViolation::new(
            field,
            format!("{text:?} has a space, a comma or a control character"),
        ));
    }
    Ok(text.to_owned())
}

/// An id, or `None` if the text is empty.
pub(crate) fn optional_id(field: &str, text: &str) -> Result<Option<String>, FieldViolation> {
    if text.is_empty() { Ok(None) } else { id(field, text).map(Some) }
}

/// Text in any script, without control characters.
pub(crate) fn text(field: &str, text: &str, limit: usize) -> Result<String, FieldViolation> {
    if text.len() > limit {
        return Err(FieldViolation::new(field, format!("is longer than {limit} bytes")));
    }
    match text.chars().find(|c| c.is_control()) {
        Some(c) => Err(FieldViolation::new(field, format!("contains the control character {c:?}"))),
        None => Ok(text.to_owned()),
    }
}

pub(crate) fn version(field: &str, value: &str) -> Result<String, FieldViolation> {
    text(field, value, ID_LENGTH)
}

pub(crate) fn text_map(field: &str, map: HashMap<String, String>) -> Result<Texts, FieldViolation> {
    if map.len() > MAP_ENTRIES {
        return Err(FieldViolation::new(
            field,
            format!("has {} entries; at most {MAP_ENTRIES} are kept", map.len()),
        ));
    }
    let map: Texts = map.into_iter().collect();
    for (key, value) in &map {
        if key.is_empty() {
            return Err(FieldViolation::new(field, "has an empty key"));
        }
        text(&format!("{field}, the key"), key, KEY_LENGTH)?;
        text(&format!("{field}.{key}"), value, TEXT_LENGTH)?;
    }
    Ok(map)
}

/// A port from 1 to 65535, or `None` for 0.
pub(crate) fn port(field: &str, number: i32) -> Result<Option<u16>, FieldViolation> {
    match u16::try_from(number) {
        Ok(0) => Ok(None),
        Ok(port) => Ok(Some(port)),
        Err(_) => Err(FieldViolation::new(field, format!("{number} is not a port; give 0 to 65535"))),
    }
}

/// A port in a map entry.
pub(crate) fn port_entry(field: &str, map: &Texts, key: &str) -> Result<Option<u16>, FieldViolation> {
    let Some(text) = map.get(key) else { return Ok(None) };
    match text.parse() {
        Ok(port) if port != 0 => Ok(Some(port)),
        _ => Err(FieldViolation::new(
            format!("{field}.{key}"),
            format!("{text:?} is not a port; give 1 to 65535"),
        )),
    }
}

/// `true` or `false` in a map entry; `false` if there is none.
pub(crate) fn bool_entry(field: &str, map: &Texts, key: &str) -> Result<bool, FieldViolation> {
    match map.get(key).map(String::as_str) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => {
            let problem = format!("{other:?} is neither true nor false");
            Err(FieldViolation::new(format!("{field}.{key}"), problem))
        }
    }
}

pub(crate) fn weight(field: &str, number: i32) -> Result<u32, FieldViolation> {
    let weight = u32::try_from(number).ok().filter(|weight| *weight <= MAX_WEIGHT);
    weight.ok_or_else(|| {
        FieldViolation::new(field, format!("{number} is not a weight; give 0 to {MAX_WEIGHT}"))
    })
}

pub(crate) fn unsigned(field: &str, number: i64) -> Result<u64, FieldViolation> {
    u64::try_from(number)
        .map_err(|_| FieldViolation::new(field, format!("{number} is negative; give 0 or more")))
}

pub(crate) fn unsigned_32(field: &str, number: i32) -> Result<u32, FieldViolation> {
    u32::try_from(number)
        .map_err(|_| FieldViolation::new(field, format!("{number} is negative; give 0 or more")))
}

pub(crate) fn measure(field: &str, number: f64) -> Result<f64, FieldViolation> {
    let measure = Some(number).filter(|number| number.is_finite() && *number >= 0.0);
    measure.ok_or_else(|| {
        FieldViolation::new(field, format!("{number} is not a measure; give a finite number from 0"))
    })
}

pub(crate) fn time(field: &str, timestamp: Option<Timestamp>) -> Result<Option<SystemTime>, FieldViolation> {
    let Some(timestamp) = timestamp else { return Ok(None) };
    if !(0..1_000_000_000).contains(&timestamp.nanos) || !(0..=253_402_300_799).contains(&timestamp.seconds) {
        return Err(FieldViolation::new(field, "is not a time between the years 1970 and 9999"));
    }
    let time = SystemTime::try_from(timestamp);
    time.map(Some).map_err(|_| FieldViolation::new(field, "is not a time that this system can hold"))
}

/// An enum's value in a message that says what is, and not what to do. A number that this build does not
/// know, of a later contract, counts as unspecified, as proto3 has it for open enums.
pub(crate) fn known_or_unspecified<E: TryFrom<i32> + Default>(number: i32) -> E {
    E::try_from(number).unwrap_or_default()
}

/// An enum's value; an error for numbers that this build does not know.
pub(crate) fn known<E: TryFrom<i32>>(field: &str, number: i32) -> Result<E, FieldViolation> {
    E::try_from(number)
        .map_err(|_| FieldViolation::new(field, format!("{number} is not a value of this enum")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_short_words() {
        assert_eq!(id("instance_id", "alb-001/a:1"), Ok("alb-001/a:1".into()));
        for bad in ["", "a b", "a,b", "a\0", "a\n", &"x".repeat(129)] {
            assert_eq!(id("instance_id", bad).unwrap_err().field, "instance_id", "{bad:?}");
        }
    }

    #[test]
    fn text_maps_are_bounded_and_clean() {
        let map = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
        assert!(text_map("metadata", map("zone", "eu-1")).is_ok());
        assert_eq!(text_map("metadata", map("zone", "a\0b")).unwrap_err().field, "metadata.zone");
        assert!(text_map("metadata", map("", "x")).is_err());
        assert!(text_map("metadata", map("a\0", "x")).is_err());
        assert!(text_map("metadata", map("zone", &"x".repeat(TEXT_LENGTH + 1))).is_err());
        let many = (0..65).map(|n| (n.to_string(), String::new())).collect();
        assert!(text_map("metadata", many).is_err());
    }

    #[test]
    fn numbers_stay_in_their_bounds() {
        assert_eq!(port("destination_port", 0), Ok(None));
        assert_eq!(port("destination_port", 65_535), Ok(Some(65_535)));
        assert!(port("destination_port", 65_536).is_err());
        assert!(port("destination_port", -1).is_err());
        assert!(
            weight("weight", 10_000).is_ok()
                && weight("weight", 10_001).is_err()
                && weight("weight", -1).is_err()
        );
        assert!(unsigned("total_requests", -1).is_err());
        assert!(measure("cpu", f64::NAN).is_err() && measure("cpu", -0.1).is_err());
        let far = Timestamp { seconds: i64::MAX, nanos: 0 };
        assert!(time("started_at", Some(far)).is_err());
        assert!(time("started_at", Some(Timestamp { seconds: 1, nanos: -1 })).is_err());
    }
}
