//! The wire contract is frozen: the descriptors, written in the notation of contract.txt, must equal it line
//! by line.

use std::{collections::BTreeMap, fmt::Write as _};

use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
    field_descriptor_proto::{Label, Type},
};

const FROZEN: &str = include_str!("contract.txt");
const FIRST_FREE_NUMBER: i32 = 100;

#[test]
fn descriptors_agree_with_the_frozen_table() {
    let frozen = entries(FROZEN.lines());
    let set = FileDescriptorSet::decode(nlb_proto::FILE_DESCRIPTOR_SET).expect("a descriptor set");
    let ours: Vec<String> =
        set.file.iter().filter(|file| file.package() == "marchproxy").flat_map(render_file).collect();
    let ours = entries(ours.iter().map(String::as_str));

    assert_eq!(frozen.len(), 109, "contract.txt was cut or added to");
    for (name, line) in &frozen {
        assert_eq!(ours.get(name), Some(line), "{name} no longer speaks the contract");
    }
}

#[test]
fn every_service_is_whole() {
    let set = FileDescriptorSet::decode(nlb_proto::FILE_DESCRIPTOR_SET).expect("a descriptor set");
    let methods: BTreeMap<&str, usize> = set
        .file
        .iter()
        .flat_map(|file| &file.service)
        .map(|service| (service.name(), service.method.len()))
        .collect();
    assert_eq!(methods, BTreeMap::from([("ModuleService", 22), ("NLBService", 20), ("OperatorService", 2)]));
}

#[test]
fn every_file_names_its_go_package() {
    let set = FileDescriptorSet::decode(nlb_proto::FILE_DESCRIPTOR_SET).expect("a descriptor set");
    for file in set.file.iter().filter(|file| file.package() == "marchproxy") {
        let go_package = file.options.as_ref().map(|options| options.go_package()).unwrap_or_default();
        assert!(go_package.ends_with(";marchproxy"), "{}: {go_package:?}", file.name());
    }
}

/// `Name` -> its line, comments left out.
fn entries<'a>(lines: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, &'a str> {
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| (line.split([':', ' ']).next().unwrap_or_default(), line))
        .collect()
}

fn render_file(file: &FileDescriptorProto) -> Vec<String> {
    let enums = file.enum_type.iter().map(render_enum);
    let messages = file.message_type.iter().map(render_message);
    let services = file.service.iter().map(render_service);
    enums.chain(messages).chain(services).collect()
}

fn render_enum(definition: &EnumDescriptorProto) -> String {
    let values: Vec<String> = definition
        .value
        .iter()
        .filter(|value| value.number() < FIRST_FREE_NUMBER)
        .map(|value| format!("{} {}", value.number(), value.name()))
        .collect();
    format!("{}: {}", definition.name(), values.join(", "))
}

fn render_message(message: &DescriptorProto) -> String {
    let fields: Vec<String> = message
        .field
        .iter()
        .filter(|field| field.number() < FIRST_FREE_NUMBER)
        .map(|field| format!("{} {} {}", field.number(), field.name(), render_field(message, field)))
        .collect();
    let fields = if fields.is_empty() { "(empty)".to_owned() } else { fields.join("; ") };
    format!("{}: {fields}", message.name())
}

fn render_field(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let entry = message.nested_type.iter().find(|nested| {
        nested.options.as_ref().is_some_and(|options| options.map_entry())
            && field.type_name().ends_with(&format!(".{}.{}", message.name(), nested.name()))
    });
    match entry {
        Some(entry) => {
            format!("{{{}:{}}}", render_type(&entry.field[0]), render_type(&entry.field[1]))
        }
        None if field.label() == Label::Repeated => format!("[{}]", render_type(field)),
        None => render_type(field),
    }
}

fn render_type(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => {
            let name = field.type_name().trim_start_matches('.');
            name.strip_prefix("marchproxy.").unwrap_or(name).to_owned()
        }
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

fn render_service(service: &ServiceDescriptorProto) -> String {
    let mut line = format!("{0} (service, path /marchproxy.{0}/<Rpc>): ", service.name());
    for (index, method) in service.method.iter().enumerate() {
        let short = |name: &str| name.trim_start_matches(".marchproxy.").to_owned();
        let separator = if index == 0 { "" } else { "; " };
        let stream = if method.server_streaming() { "stream " } else { "" };
        let (input, output) = (short(method.input_type()), short(method.output_type()));
        write!(line, "{separator}{}({input}) -> {stream}{output}", method.name()).expect("a String");
    }
    line
}
