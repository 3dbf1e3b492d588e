//! Messages as bytes, also those that no generated client can send.

use prost::bytes::BufMut as _;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};

/// A field of a message: its number, and all of its bytes.
struct Piece<'a> {
    number: u32,
    raw: &'a [u8],
    /// The payload of a length-delimited field.
    payload: Option<&'a [u8]>,
}

/// The message with the field at this path (of field numbers) replaced by `raw`, which may be any number of
/// fields. In repeated messages on the path the first one is changed.
pub fn replaced(message: &[u8], path: &[u32], raw: &[u8]) -> Vec<u8> {
    let (number, inner) = path.split_first().expect("a path is not empty");
    let mut changed = Vec::new();
    let mut found = false;
    for piece in pieces(message) {
        if piece.number != *number || (found && !inner.is_empty()) {
            changed.extend_from_slice(piece.raw);
        } else if !inner.is_empty() {
            let payload = piece.payload.expect("only messages have fields");
            changed.extend(delimited(*number, &replaced(payload, inner, raw)));
            found = true;
        }
    }
    if inner.is_empty() {
        changed.extend_from_slice(raw);
    } else {
        assert!(found, "the sound request leaves field {number} out, and fields inside it are to be spoilt");
    }
    changed
}

/// The fields of the message at this path: all bytes, one entry for each occurrence.
pub fn at(message: &[u8], path: &[u32]) -> Vec<Vec<u8>> {
    let (number, inner) = path.split_first().expect("a path is not empty");
    let mut there = pieces(message).into_iter().filter(|piece| piece.number == *number);
    if inner.is_empty() {
        return there.map(|piece| piece.raw.to_vec()).collect();
    }
    there.next().map(|piece| at(piece.payload.expect("only messages have fields"), inner)).unwrap_or_default()
}

/// The payloads of a length-delimited field.
pub fn inside(message: &[u8], number: u32) -> Vec<&[u8]> {
    pieces(message)
        .into_iter()
        .filter(|piece| piece.number == number)
        .filter_map(|piece| piece.payload)
        .collect()
}

pub fn delimited(number: u32, payload: &[u8]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(payload.len() + 16);
    encode_key(number, WireType::LengthDelimited, &mut raw);
    encode_varint(payload.len() as u64, &mut raw);
    raw.put_slice(payload);
    raw
}

pub fn varint(number: u32, value: i64) -> Vec<u8> {
    let mut raw = Vec::new();
    encode_key(number, WireType::Varint, &mut raw);
    encode_varint(value as u64, &mut raw);
    raw
}

pub fn double(number: u32, value: f64) -> Vec<u8> {
    let mut raw = Vec::new();
    encode_key(number, WireType::SixtyFourBit, &mut raw);
    raw.put_f64_le(value);
    raw
}

/// A field of four bytes, which no message of the contract has.
pub fn fixed32(number: u32) -> Vec<u8> {
    let mut raw = Vec::new();
    encode_key(number, WireType::ThirtyTwoBit, &mut raw);
    raw.put_u32_le(7);
    raw
}

fn pieces(message: &[u8]) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let start = rest;
        let (number, wire_type) = decode_key(&mut rest).expect("a sound message");
        let length = match wire_type {
            WireType::Varint => {
                decode_varint(&mut rest).expect("a sound message");
                0
            }
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => decode_varint(&mut rest).expect("a sound message") as usize,
            WireType::StartGroup | WireType::EndGroup => panic!("proto3 has no groups"),
        };
        let (payload, after) = rest.split_at(length);
        let payload = (wire_type == WireType::LengthDelimited).then_some(payload);
        rest = after;
        pieces.push(Piece { number, raw: &start[..start.len() - rest.len()], payload });
    }
    pieces
}
