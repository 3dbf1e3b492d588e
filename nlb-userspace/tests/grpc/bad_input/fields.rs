//! Every field of every request, read from the descriptors that the build compiled, and its possible bad
//! values.

use std::collections::BTreeMap;

use nlb_proto::FILE_DESCRIPTOR_SET;
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

use super::wire;

pub const MANY: usize = 100_000;
const HUGE: usize = 10 << 20;
/// For a field whose parser got `HUGE` in another call already.
const LONG: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    Empty,
    Huge,
    Nul,
    Control,
    NotUtf8,
    WrongWireType,
    Negative,
    Lowest,
    Highest,
    UnknownValue,
    NotANumber,
    Infinite,
    Missing,
    Many,
    Twice,
    EmptyKey,
}

/// A call of the contract.
pub struct Call {
    pub service: String,
    pub name: String,
    pub request: String,
    pub response: String,
    pub streams: bool,
}

pub struct Field {
    /// `ModuleInstance.address`: the field in its own message.
    pub declared: String,
    /// `RegisterModuleRequest.instance.address`: the field in this call.
    pub place: String,
    /// `instance.address`: the name of the field in errors.
    pub name: String,
    /// The path by field numbers.
    pub path: Vec<u32>,
    kind: Kind,
    repeated: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Bytes,
    Bool,
    Int32,
    Int64,
    Double,
    Enum,
    TextMap,
    Message,
}

pub struct Contract {
    messages: BTreeMap<String, DescriptorProto>,
    pub calls: Vec<Call>,
}

impl Contract {
    pub fn read() -> Contract {
        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("the build wrote it");
        let mut messages = BTreeMap::new();
        let mut calls = Vec::new();
        for file in set.file {
            for message in file.message_type {
                messages.insert(
                    format!(".{}.{}", file.package.as_deref().unwrap_or_default(), message.name()),
                    message,
                );
            }
            for service in file.service {
                calls.extend(service.method.iter().map(|method| Call {
                    service: service.name().to_owned(),
                    name: method.name().to_owned(),
                    request: method.input_type().to_owned(),
                    response: method.output_type().to_owned(),
                    streams: method.server_streaming(),
                }));
            }
        }
        Contract { messages, calls }
    }

    /// The fields of a call's request, and of all messages in it.
    pub fn fields(&self, call: &Call) -> Vec<Field> {
        let mut fields = Vec::new();
        self.walk(&call.request, &short(&call.request), "", &[], &mut fields);
        fields
    }

    /// The number of a response's field.
    pub fn number(&self, message: &str, field: &str) -> Option<u32> {
        self.messages[message]
            .field
            .iter()
            .find(|other| other.name() == field)
            .map(|field| field.number() as u32)
    }

    fn walk(&self, message: &str, place: &str, name: &str, path: &[u32], fields: &mut Vec<Field>) {
        for field in &self.messages[message].field {
            let (kind, repeated) = self.kind(message, field);
            let outer = if name.is_empty() { String::new() } else { format!("{name}.") };
            let found = Field {
                declared: format!("{}.{}", short(message), field.name()),
                place: format!("{place}.{}", field.name()),
                name: format!("{outer}{}", field.name()),
                path: [path, &[field.number() as u32]].concat(),
                kind,
                repeated,
            };
            let (place, path) = (found.place.clone(), found.path.clone());
            let name = if repeated { format!("{}[0]", found.name) } else { found.name.clone() };
            fields.push(found);
            if kind == Kind::Message {
                self.walk(field.type_name(), &place, &name, &path, fields);
            }
        }
    }

    fn kind(&self, message: &str, field: &FieldDescriptorProto) -> (Kind, bool) {
        let repeated = field.label() == Label::Repeated;
        let kind = match field.r#type() {
            Type::String => Kind::Text,
            Type::Bytes => Kind::Bytes,
            Type::Bool => Kind::Bool,
            Type::Int32 => Kind::Int32,
            Type::Int64 => Kind::Int64,
            Type::Double => Kind::Double,
            Type::Enum => Kind::Enum,
            // The entries of a map are a message inside the message.
            Type::Message if !self.messages.contains_key(field.type_name()) => return (Kind::TextMap, false),
            Type::Message => Kind::Message,
            other => panic!("{message}.{}: add the bad values of a {other:?} here", field.name()),
        };
        (kind, repeated)
    }
}

impl Field {
    /// All bad values of the field, as bytes to put in its place. `first`: its parser has not had a huge
    /// value yet.
    pub fn spoilt(&self, sound: &[u8], first: bool) -> Vec<(Bad, Vec<u8>)> {
        let number = *self.path.last().expect("a path is not empty");
        let long = if first { HUGE } else { LONG };
        let integer = |value: i64| wire::varint(number, value);
        // In addition to the entries of a valid map.
        let sound_entries =
            if self.kind == Kind::TextMap { wire::at(sound, &self.path).concat() } else { Vec::new() };
        let mut cases = match self.kind {
            Kind::Text => {
                let text = |text: &[u8]| wire::delimited(number, text);
                vec![
                    (Bad::Empty, text(b"")),
                    (Bad::Huge, text(&vec![b'x'; long])),
                    (Bad::Nul, text(b"a\0b")),
                    (Bad::Control, text(b"a\x1b[2Jb")),
                    (Bad::NotUtf8, text(b"a\xff\xfeb")),
                ]
            }
            Kind::Bytes => vec![
                (Bad::Empty, wire::delimited(number, b"")),
                (Bad::Huge, wire::delimited(number, &vec![b'x'; long])),
                (Bad::Nul, wire::delimited(number, b"\0\0")),
            ],
            Kind::Bool => Vec::new(),
            Kind::Int32 => vec![
                (Bad::Negative, integer(-1)),
                (Bad::Lowest, integer(i32::MIN.into())),
                (Bad::Highest, integer(i32::MAX.into())),
            ],
            Kind::Int64 => vec![
                (Bad::Negative, integer(-1)),
                (Bad::Lowest, integer(i64::MIN)),
                (Bad::Highest, integer(i64::MAX)),
            ],
            Kind::Enum => vec![(Bad::UnknownValue, integer(99)), (Bad::Negative, integer(-1))],
            Kind::Double => vec![
                (Bad::NotANumber, wire::double(number, f64::NAN)),
                (Bad::Infinite, wire::double(number, f64::INFINITY)),
                (Bad::Negative, wire::double(number, -1.0)),
            ],
            Kind::TextMap => {
                let entry = |key: &[u8], value: &[u8]| {
                    wire::delimited(number, &[wire::delimited(1, key), wire::delimited(2, value)].concat())
                };
                vec![
                    (Bad::EmptyKey, entry(b"", b"x")),
                    (Bad::Huge, entry(b"spoilt", &vec![b'x'; long])),
                    (Bad::Nul, entry(b"spoilt", b"a\0b")),
                    (Bad::Control, entry(b"spo\x1bilt", b"x")),
                    (Bad::NotUtf8, entry(b"spoilt", b"\xff")),
                    (Bad::Many, (0..MANY).flat_map(|n| entry(n.to_string().as_bytes(), b"")).collect()),
                    (Bad::Twice, [entry(b"spoilt", b"a"), entry(b"spoilt", b"b")].concat()),
                ]
            }
            Kind::Message if self.repeated => Vec::new(),
            Kind::Message => vec![(Bad::Missing, Vec::new())],
        };
        for (_, raw) in &mut cases {
            raw.splice(..0, sound_entries.iter().copied());
        }
        if self.repeated {
            let there = wire::at(sound, &self.path);
            let one = there.first().unwrap_or_else(|| panic!("the sound request leaves {} out", self.place));
            cases.push((Bad::Twice, one.repeat(2)));
            cases.push((Bad::Many, one.repeat(MANY)));
        }
        cases.push((Bad::WrongWireType, wire::fixed32(number)));
        cases
    }
}

fn short(name: &str) -> String {
    name.rsplit('.').next().unwrap_or_default().to_owned()
}
