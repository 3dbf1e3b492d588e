//! docs/settings.md: its table is generated from the options, and this test compares the two.
//!
//! `BLESS=1 cargo test --package nlb --lib settings_are_documented` writes the table.

use std::env;
use std::fs;

use clap::{Arg, Args, Command};
use serde_json::Value;

use super::live::{LIVE, effective};
use super::*;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/settings.md");
const BEGIN: &str = "<!-- settings: generated from nlb-userspace/src/config/options.rs -->\n\n";
const END: &str = "\n<!-- end of settings -->\n";
const COMMAND: &str = "BLESS=1 cargo test --package nlb --lib settings_are_documented";

/// The section of the manual about a setting.
const MORE: [(&str, &str); 16] = [
    ("state_dir", "contract.md#what-outlives-the-daemon"),
    ("ignore_state", "contract.md#the-state-file"),
    ("iface", "interfaces.md#what-may-be-named"),
    ("accept_mac", "interfaces.md#destination-mac-addresses"),
    ("protected_ports", "datapath.md#row-38-this-hosts-own-traffic"),
    ("forward_mode", "contract.md#forward-mode"),
    ("snat_ports", "datapath.md#the-choice-of-a-port"),
    ("snat_address", "datapath.md#source-addresses"),
    ("snat_rest", "datapath.md#the-choice-of-a-port"),
    ("ipip_sources", "datapath.md#outer-sources-that-vary"),
    ("evict_after", "contract.md#registration-and-lease"),
    ("drain_timeout", "contract.md#leaving-and-draining"),
    ("promotion_step", "contract.md#promotion-and-rollback"),
    ("max_reset_percent", "health.md#resets"),
    ("learn_routes", "contract.md#learned-routes"),
    ("metrics_history_bytes", "metrics.md"),
];

fn arguments() -> Vec<Arg> {
    Options::augment_args(Command::new("nlb serve")).get_arguments().cloned().collect()
}

/// A help text without the remark in brackets at its end, and that remark.
fn parts(arg: &Arg) -> (String, Option<String>) {
    let help = arg.get_help().expect("every setting has a help text").to_string();
    match help.strip_suffix(']').and_then(|help| help.rsplit_once(" [")) {
        Some((meaning, remark)) => (meaning.to_owned(), Some(remark.to_owned())),
        None => (help, None),
    }
}

fn default(arg: &Arg) -> Option<String> {
    parts(arg).1?.strip_prefix("default: ").map(String::from)
}

/// Whether the setting is a key of the file.
fn is_key(name: &str) -> bool {
    let Ok(Value::Object(keys)) = serde_json::to_value(Options::default()) else { return false };
    keys.contains_key(name)
}

fn meaning(arg: &Arg) -> String {
    let (mut meaning, remark) = parts(arg);
    if let Some(remark) = remark.filter(|_| default(arg).is_none()) {
        meaning += &format!("; {remark}");
    }
    for value in arg.get_possible_values() {
        if let Some(help) = value.get_help() {
            meaning += &format!(". `{}`: {}", value.get_name(), help.to_string().trim_end_matches('.'));
        }
    }
    if let Some((_, more)) = MORE.iter().find(|(name, _)| *name == arg.get_id()) {
        meaning += &format!(" ([more]({more}))");
    }
    meaning
}

fn table() -> String {
    let mut table = String::from(
        "| flag | variable | key of the file | default | takes effect | meaning |\n|---|---|---|---|---|---|\n",
    );
    for arg in arguments() {
        let name = arg.get_id().as_str();
        let value = arg.get_value_names().map(|names| names.join(" ")).unwrap_or_default();
        let cells = [
            format!("`--{} {}`", arg.get_long().expect("a flag"), value.replace('|', "\\|")),
            format!("`{}`", arg.get_env().expect("a variable").to_string_lossy()),
            if is_key(name) { format!("`{name}`") } else { String::new() },
            default(&arg).map(|default| format!("`{default}`")).unwrap_or_default(),
            String::from(if LIVE.contains(&name) { "at once" } else { "at start" }),
            meaning(&arg),
        ];
        table += &format!("| {} |\n", cells.join(" | "));
    }
    table
}

#[test]
fn settings_are_documented() {
    let file = fs::read_to_string(FILE).expect("docs/settings.md");
    let (before, rest) = file.split_once(BEGIN).expect("where the table begins");
    let (found, after) = rest.split_once(END).expect("where the table ends");
    let wanted = table();
    if found != wanted {
        assert!(env::var_os("BLESS").is_some(), "docs/settings.md is not current; write it by: {COMMAND}");
        fs::write(FILE, [before, BEGIN, &wanted, END, after].concat()).expect("writing docs/settings.md");
    }
}

#[test]
fn help_texts_name_the_defaults_in_force() {
    let options = Options { iface: Some(vec!["eth0".to_owned()]), ..Options::default() };
    let in_force = effective(&options.check().expect("an interface is all it takes"));
    for arg in arguments() {
        let default = default(&arg);
        match (in_force.get(arg.get_id().as_str()), arg.get_id().as_str()) {
            // There is no default for it.
            (Some(Value::Array(_)), "iface") => assert_eq!(default, None),
            (Some(Value::Array(values)), _) => {
                let values: Vec<String> = values.iter().map(Value::to_string).collect();
                assert_eq!(default, (!values.is_empty()).then(|| values.join(",")), "{arg}");
            }
            (Some(Value::String(text)), _) => assert_eq!(default.as_ref(), Some(text), "{arg}"),
            (Some(value), _) => assert_eq!(default, Some(value.to_string()), "{arg}"),
            (None, "state_dir") => {
                assert_eq!(default, Some(Options::default().state_dir().display().to_string()))
            }
            (None, _) => {}
        }
    }
}

#[test]
fn links_belong_to_settings() {
    for (name, _) in MORE {
        assert!(arguments().iter().any(|arg| arg.get_id() == name), "{name}");
    }
}
