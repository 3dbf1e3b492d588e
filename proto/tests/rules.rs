//! Rules of the .proto files, and what they may not lose: `cargo xtask proto check`.
//!
//! baseline.txt is what clients may have been built against, including additions of this project. A line may
//! grow, but nothing in it may change. After an addition, `BLESS=1 cargo xtask proto check` updates it.

mod notation;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use notation::{files, render_file};
use prost_types::FileDescriptorProto;
use prost_types::field_descriptor_proto::Type;

const BASELINE: &str = "tests/baseline.txt";

#[test]
fn every_file_is_proto3() {
    for file in files() {
        assert_eq!(file.syntax(), "proto3", "{}", file.name());
        let go_package = file.options.as_ref().map(|options| options.go_package()).unwrap_or_default();
        assert!(go_package.ends_with(";marchproxy"), "{}: go_package is {go_package:?}", file.name());
    }
}

#[test]
fn every_enum_begins_with_unspecified_and_its_values_bear_its_name() {
    for definition in files().into_iter().flat_map(|file| file.enum_type) {
        let prefix = screaming(definition.name());
        let zero = &definition.value[0];
        assert_eq!((zero.number(), zero.name()), (0, format!("{prefix}_UNSPECIFIED").as_str()));
        for value in &definition.value {
            assert!(value.name().starts_with(&format!("{prefix}_")), "{}", value.name());
        }
        let numbers: BTreeSet<i32> = definition.value.iter().map(|value| value.number()).collect();
        assert_eq!(numbers.len(), definition.value.len(), "{} has a number twice", definition.name());
    }
}

#[test]
fn times_are_timestamps_and_spans_name_their_unit() {
    for message in files().into_iter().flat_map(|file| file.message_type) {
        for field in &message.field {
            let place = format!("{}.{}", message.name(), field.name());
            let is_timestamp = field.type_name() == ".google.protobuf.Timestamp";
            let named_so = field.name().ends_with("_at")
                || field.name().ends_with("_time")
                || ["timestamp", "since", "time", "last_updated", "last_used", "deployment_started"]
                    .contains(&field.name());
            assert_eq!(is_timestamp, named_so || field.name().ends_with("_since"), "{place}");
            let span = ["interval", "timeout", "cooldown", "duration"];
            if span.iter().any(|word| field.name().starts_with(word)) {
                assert!(field.name().ends_with("_seconds"), "{place} does not name its unit");
            }
        }
    }
}

/// Requests and responses are documented by their call.
#[test]
fn everything_is_documented() {
    let mut bare = Vec::new();
    for file in with_comments() {
        let comments: BTreeMap<&[i32], bool> = file
            .source_code_info
            .iter()
            .flat_map(|info| &info.location)
            .map(|location| (location.path.as_slice(), !location.leading_comments().trim().is_empty()))
            .collect();
        let mut expect = |path: &[i32], name: &str| {
            if comments.get(path) != Some(&true) {
                bare.push(format!("{}: {name}", file.name()));
            }
        };
        // Field numbers of FileDescriptorProto and, inside it, of ServiceDescriptorProto.
        let calls: BTreeSet<&str> = file
            .service
            .iter()
            .flat_map(|service| &service.method)
            .flat_map(|m| [m.input_type(), m.output_type()])
            .collect();
        for (i, message) in file.message_type.iter().enumerate() {
            if calls.contains(format!(".marchproxy.{}", message.name()).as_str()) {
                continue;
            }
            expect(&[4, i as i32], message.name());
        }
        for (i, definition) in file.enum_type.iter().enumerate() {
            expect(&[5, i as i32], definition.name());
        }
        for (i, service) in file.service.iter().enumerate() {
            expect(&[6, i as i32], service.name());
            for (j, method) in service.method.iter().enumerate() {
                expect(&[6, i as i32, 2, j as i32], method.name());
            }
        }
    }
    assert_eq!(bare, Vec::<String>::new(), "each needs a comment in front");
}

#[test]
fn what_clients_were_built_against_is_still_there() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(BASELINE);
    let files = files();
    let now: Vec<String> = files.iter().flat_map(|file| render_file(file, i32::MAX)).collect();
    if std::env::var_os("BLESS").is_none() {
        let blessed = std::fs::read_to_string(&path).expect("the baseline");
        assert_eq!(broken(&blessed, &now), Vec::<String>::new(), "clients that exist would break");
        let written: BTreeSet<&str> = blessed.lines().collect();
        let new: Vec<&String> = now.iter().filter(|line| !written.contains(line.as_str())).collect();
        assert!(new.is_empty(), "added, and not in {BASELINE} yet; BLESS=1 updates it: {new:#?}");
        return;
    }
    // An incompatible change is not written to the baseline either.
    if let Ok(blessed) = std::fs::read_to_string(&path) {
        assert_eq!(broken(&blessed, &now), Vec::<String>::new(), "clients that exist would break");
    }
    std::fs::write(&path, now.join("\n") + "\n").expect("the baseline is written");
}

#[test]
fn a_break_is_noticed() {
    let now = |line: &str| vec![line.to_owned()];
    let blessed = "M: 1 a string; 2 b int32";
    assert!(
        broken(blessed, &now("M: 1 a string; 2 b int32; 3 c bool")).is_empty(),
        "additions are compatible"
    );
    for changed in
        ["M: 1 a string", "M: 1 a bytes; 2 b int32", "M: 1 a string; 3 b int32", "N: 1 a string; 2 b int32"]
    {
        assert!(!broken(blessed, &now(changed)).is_empty(), "{changed}");
    }
    let reused = broken("M: 1 a string; 2 b int32", &now("M: 1 a string; 2 c int32"));
    assert!(reused[0].contains("2 b int32"), "{reused:?}");
}

/// What the baseline has and the lines do not.
fn broken(baseline: &str, now: &[String]) -> Vec<String> {
    let parts = |line: &str| -> Option<(String, BTreeSet<String>)> {
        let (name, rest) = line.split_once(": ")?;
        let separator = if rest.contains("; ") { "; " } else { ", " };
        Some((name.to_owned(), rest.split(separator).map(str::to_owned).collect()))
    };
    let now: BTreeMap<String, BTreeSet<String>> = now.iter().filter_map(|line| parts(line)).collect();
    let mut broken = Vec::new();
    for (name, members) in baseline.lines().filter_map(parts) {
        match now.get(&name) {
            None => broken.push(format!("{name} is gone")),
            Some(present) => {
                let gone = members.iter().filter(|member| !present.contains(*member) && *member != "(empty)");
                broken.extend(gone.map(|member| format!("{name}: `{member}` is gone or changed")));
            }
        }
    }
    broken
}

/// `ModuleType` -> `MODULE_TYPE`.
fn screaming(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.extend(c.to_uppercase());
    }
    out
}

/// Compiled again, since the crate's descriptors have no comments.
fn with_comments() -> Vec<FileDescriptorProto> {
    let mut compiler =
        protox::Compiler::new([env!("CARGO_MANIFEST_DIR")]).expect("the directory of the files");
    compiler.include_source_info(true);
    for file in files() {
        compiler.open_file(file.name()).expect("it compiled before");
    }
    compiler.file_descriptor_set().file
}

#[test]
fn no_field_is_of_an_unsigned_or_fixed_type() {
    // MarchProxy's messages count in int32 and int64 alone, so that every language reads them alike.
    let odd = [Type::Uint32, Type::Uint64, Type::Fixed32, Type::Fixed64, Type::Sfixed32, Type::Sfixed64];
    for message in files().into_iter().flat_map(|file| file.message_type) {
        for field in &message.field {
            assert!(!odd.contains(&field.r#type()), "{}.{}", message.name(), field.name());
        }
    }
}
