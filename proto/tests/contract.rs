//! The wire contract is frozen: the descriptors, in the notation of contract.txt, must equal it line by line.

mod notation;

use std::collections::BTreeMap;

use notation::{files, render_file};

const FROZEN: &str = include_str!("contract.txt");
const FIRST_FREE_NUMBER: i32 = 100;

#[test]
fn descriptors_agree_with_the_frozen_table() {
    let frozen = entries(FROZEN.lines());
    let files = files();
    let ours: Vec<String> = files.iter().flat_map(|file| render_file(file, FIRST_FREE_NUMBER)).collect();
    let ours = entries(ours.iter().map(String::as_str));

    assert_eq!(frozen.len(), 109, "contract.txt has another number of lines");
    for (name, line) in &frozen {
        assert_eq!(ours.get(name), Some(line), "{name} differs from the contract");
    }
}

#[test]
fn every_service_is_whole() {
    let files = files();
    let methods: BTreeMap<&str, usize> = files
        .iter()
        .flat_map(|file| &file.service)
        .map(|service| (service.name(), service.method.len()))
        .collect();
    assert_eq!(methods, BTreeMap::from([("ModuleService", 22), ("NLBService", 20), ("OperatorService", 3)]));
}

/// The line of each name, without comments.
fn entries<'a>(lines: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, &'a str> {
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| (line.split([':', ' ']).next().unwrap_or_default(), line))
        .collect()
}
