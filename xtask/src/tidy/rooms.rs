//! The order of the rooms: the folders of a crate that each folder may import, and the absence of import
//! cycles between files.
//!
//! A room that only imports rooms below it can be read without those above it, and tested without them.

use anyhow::Result;

use super::imports::{Import, circle, imports};
use crate::workspace;

/// A folder, the folders that it may import, and why no others. A subfolder with a row of its own is not part
/// of its parent's row.
struct Room {
    folder: &'static str,
    may_import: &'static [&'static str],
    why: &'static str,
}

/// The root files of the crates that are checked.
const CRATES: &[&str] = &[
    "nlb-userspace/src/lib.rs",
    "nlb-common/src/lib.rs",
    "nlb-ebpf/src/main.rs",
    "tests/testkit/src/lib.rs",
    "tests/bench/src/main.rs",
    "tests/bench/baselines/src/main.rs",
    "tests/demo/src/main.rs",
    "tests/tests/packets/main.rs",
    "tests/tests/traffic/main.rs",
];

const USERSPACE: &str = "nlb-userspace/src/";

/// The rooms of `nlb-userspace/src`, from the top down.
const ROOMS: &[Room] = &[
    Room {
        folder: "cli",
        may_import: &["daemon", "datapath", "config", "model"],
        why: "the command starts the daemon, or calls a running one over gRPC; it never reads its state",
    },
    Room {
        folder: "daemon",
        may_import: &[
            "grpc",
            "grpc/handlers",
            "grpc/client",
            "datapath",
            "controllers",
            "telemetry",
            "store",
            "registry",
            "policy",
            "reconcile",
            "config",
            "model",
        ],
        why: "the daemon puts the parts together, and only the command stands above it",
    },
    Room {
        folder: "grpc",
        may_import: &["grpc/services", "grpc/handlers", "grpc/client"],
        why: "the server lists its services, and has none of their logic",
    },
    Room {
        folder: "grpc/services",
        may_import: &["grpc/handlers", "grpc/client", "grpc/convert", "reconcile"],
        why: "a service passes each call to its handler and has no logic of its own",
    },
    Room {
        folder: "grpc/handlers",
        may_import: &[
            "grpc/client",
            "grpc/convert",
            "controllers",
            "telemetry",
            "store",
            "registry",
            "policy",
            "reconcile",
            "compile",
            "config",
            "model",
        ],
        why: "a handler works through the registry, and never touches the kernel",
    },
    Room {
        folder: "grpc/client",
        may_import: &["grpc/convert", "controllers", "registry", "policy", "model"],
        why: "calls to modules are independent of their callers",
    },
    Room {
        folder: "grpc/convert",
        may_import: &["controllers", "telemetry", "registry", "policy", "model"],
        why: "conversions use messages and the model, and make no calls",
    },
    Room {
        folder: "datapath",
        may_import: &["reconcile", "compile", "config", "model"],
        why: "the kernel's side applies rows and changes, and uses neither calls nor the registry",
    },
    Room {
        folder: "controllers",
        may_import: &["registry", "policy", "model"],
        why: "a controller observes something and writes the registry; calls and the kernel are passed to it as functions",
    },
    Room {
        folder: "telemetry",
        may_import: &["registry", "policy", "reconcile", "model"],
        why: "telemetry reads, and changes nothing",
    },
    Room {
        folder: "store",
        may_import: &["registry", "config", "model"],
        why: "the store writes what the registry keeps, and decides nothing",
    },
    Room {
        folder: "registry",
        may_import: &["policy", "compile", "model"],
        why: "the registry is the single writer: time, calls and counters come to it as arguments",
    },
    Room {
        folder: "policy",
        may_import: &["compile", "model"],
        why: "policies are pure decisions: they get their input as arguments",
    },
    Room {
        folder: "reconcile",
        may_import: &["compile", "model"],
        why: "the reconciler plans from rows to rows; maps are behind a trait, so that they can be faked",
    },
    Room { folder: "compile", may_import: &["model"], why: "compilation is a pure function of the model" },
    Room {
        folder: "config",
        may_import: &["model"],
        why: "settings are plain values that all rooms may read",
    },
    Room {
        folder: "model",
        may_import: &[],
        why: "the model is plain data, and everything else is built on it",
    },
];

pub fn check() -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for root in CRATES {
        let imports = imports(workspace::root(), root)?;
        complaints.extend(against_the_order(&imports));
        if let Some(files) = circle(&imports) {
            complaints.push(format!(
                "these files import each other in a cycle; move what they share down: {} -> {}",
                files.join(" -> "),
                files[0]
            ));
        }
    }
    Ok(complaints)
}

fn against_the_order(imports: &[Import]) -> Vec<String> {
    let mut complaints = Vec::new();
    for Import { from, to, line } in imports {
        let (Some(from_file), Some(to_file)) = (from.strip_prefix(USERSPACE), to.strip_prefix(USERSPACE))
        else {
            continue;
        };
        // The crate's root only declares the rooms.
        if !from_file.contains('/') {
            continue;
        }
        let (Some(from_room), Some(to_room)) = (room_of(from_file), room_of(to_file)) else {
            complaints
                .push(format!("{from}:{line}: imports {to}, and one of them is in no room of the table"));
            continue;
        };
        if from_room.folder != to_room.folder && !from_room.may_import.contains(&to_room.folder) {
            let (room, other, why) = (from_room.folder, to_room.folder, from_room.why);
            complaints.push(format!("{from}:{line}: {room} must not import {other} ({to}): {why}"));
        }
    }
    complaints
}

/// The innermost room of a file.
fn room_of(file: &str) -> Option<&'static Room> {
    let around = |room: &&Room| file.strip_prefix(room.folder).is_some_and(|rest| rest.starts_with('/'));
    ROOMS.iter().filter(around).max_by_key(|room| room.folder.len())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// The complaints about a crate of the given files, in a folder of its own.
    fn complaints_about(name: &str, files: &[(&str, &str)]) -> Vec<String> {
        let folder = std::env::temp_dir().join(format!("nlb-tidy-{name}-{}", std::process::id()));
        for (file, text) in files {
            let file = folder.join(USERSPACE).join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let found = imports(Path::new(&folder), "nlb-userspace/src/lib.rs").unwrap();
        fs::remove_dir_all(folder).unwrap();
        let mut complaints = against_the_order(&found);
        complaints.extend(circle(&found).map(|files| files.join(" ")));
        complaints
    }

    const LIB: (&str, &str) = ("lib.rs", "mod policy;\nmod registry;\n");

    #[test]
    fn an_import_against_the_order_fails_with_the_reason_of_its_row() {
        let registry = ("registry/mod.rs", "mod writer;\npub use writer::Registry;\n");
        let writer = ("registry/writer.rs", "pub struct Registry;\n");
        let upward = ("policy/mod.rs", "\nuse crate::registry::Registry;\n");
        assert_eq!(
            complaints_about("upward", &[LIB, registry, writer, upward]),
            [
                "nlb-userspace/src/policy/mod.rs:2: policy must not import registry (nlb-userspace/src/registry/writer.rs): \
              policies are pure decisions: they get their input as arguments"
            ]
        );
        let downward = ("registry/writer.rs", "use crate::policy::Lease;\npub struct Registry(Lease);\n");
        let lease = ("policy/mod.rs", "pub struct Lease;\n");
        assert_eq!(complaints_about("downward", &[LIB, registry, downward, lease]), [""; 0]);
    }

    #[test]
    fn files_that_import_each_other_are_found_through_re_exports() {
        let lib = ("lib.rs", "mod policy;\n");
        let policy =
            ("policy/mod.rs", "mod lease;\nmod health;\npub use health::Health;\npub use lease::Lease;\n");
        let lease = ("policy/lease.rs", "use super::Health;\npub struct Lease(Health);\n");
        let health = ("policy/health.rs", "pub struct Health;\nfn f() -> crate::policy::Lease { todo() }\n");
        assert_eq!(
            complaints_about("circle", &[lib, policy, lease, health]),
            ["nlb-userspace/src/policy/health.rs nlb-userspace/src/policy/lease.rs"]
        );
    }

    #[test]
    fn the_table_goes_from_the_top_down() {
        for (number, room) in ROOMS.iter().enumerate() {
            for imported in room.may_import {
                let below = ROOMS[number..].iter().any(|room| room.folder == *imported);
                assert!(below, "{} may import {imported}, which is not below it", room.folder);
            }
        }
    }
}
