//! Descriptors in the notation of contract.txt and baseline.txt: one line for each enum, message and service.

use std::fmt::Write as _;

use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
    field_descriptor_proto::{Label, Type},
};

/// The project's own files.
pub fn files() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(nlb_proto::FILE_DESCRIPTOR_SET).expect("a descriptor set");
    set.file.into_iter().filter(|file| file.package() == "marchproxy").collect()
}

/// The lines of a file, with the fields and values whose numbers are below this.
pub fn render_file(file: &FileDescriptorProto, below: i32) -> Vec<String> {
    let enums = file.enum_type.iter().map(|definition| render_enum(definition, below));
    let messages = file.message_type.iter().map(|message| render_message(message, below));
    let services = file.service.iter().map(render_service);
    enums.chain(messages).chain(services).collect()
}

fn render_enum(definition: &EnumDescriptorProto, below: i32) -> String {
    let values: Vec<String> = definition
        .value
        .iter()
        .filter(|value| value.number() < below)
        .map(|value| format!("{} {}", value.number(), value.name()))
        .collect();
    format!("{}: {}", definition.name(), values.join(", "))
}

fn render_message(message: &DescriptorProto, below: i32) -> String {
    let fields: Vec<String> = message
        .field
        .iter()
        .filter(|field| field.number() < below)
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
