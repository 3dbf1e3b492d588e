//! `cargo xtask tidy`: the repository lints, invariants of docs/architecture.md that a program can check.

mod imports;
mod links;
mod rooms;
mod tokens;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Words that must not appear in the code (comments aside) of the given files.
struct Lint {
    files: &'static [&'static str],
    except: &'static [&'static str],
    words: &'static [&'static str],
    why: &'static str,
}

/// A path names a file, or with a trailing slash everything below a directory.
const LINTS: &[Lint] = &[
    Lint {
        files: &["nlb-common/src/"],
        except: &[],
        words: &["std::", "alloc::", "aya_ebpf"],
        why: "nlb-common runs in the kernel too: no std, no alloc, no helpers",
    },
    Lint {
        files: &[
            "nlb-userspace/src/model/",
            "nlb-userspace/src/compile/",
            "nlb-userspace/src/reconcile/plan.rs",
            "nlb-userspace/src/reconcile/change.rs",
        ],
        // The only file of the model that reads the clock: changes get the time as a value.
        except: &["nlb-userspace/src/model/clock.rs"],
        words: &[
            "tokio",
            "tonic",
            "prost",
            "nlb_proto",
            "aya",
            "Instant",
            "SystemTime",
            "rand",
            "HashMap",
            "HashSet",
            "std::fs",
            "std::net::TcpStream",
            "std::process",
        ],
        why: "model, compile and plan are pure: equal input gives equal maps, in equal order",
    },
    Lint {
        files: &["nlb-userspace/src/", "nlb-common/src/"],
        except: &["nlb-userspace/src/grpc/", "nlb-userspace/src/cli/"],
        words: &["nlb_proto", "prost"],
        why: "protobuf ends at grpc/ (and at cli/, which is its client); all other code uses the model",
    },
    Lint {
        files: &["nlb-userspace/src/"],
        except: &[
            "nlb-userspace/src/datapath/maps/",
            "nlb-userspace/src/datapath/decap.rs",
            "nlb-userspace/src/datapath/punted.rs",
        ],
        words: &["aya::maps"],
        why: "only datapath/maps/ touches kernel maps (and punted its ring buffer, decap its list of peers); \
              the rest uses the trait, which can be faked",
    },
    Lint {
        files: &["nlb-userspace/src/"],
        except: &["nlb-userspace/src/datapath/loader/"],
        words: &["aya::programs"],
        why: "only the loader loads and attaches programs",
    },
    Lint {
        files: &[""],
        except: &[
            "nlb-ebpf/src/",
            "nlb-common/src/abi.rs",
            "nlb-common/src/atomic.rs",
            "nlb-common/src/frame.rs",
            "nlb-userspace/src/datapath/maps/",
            "nlb-userspace/src/datapath/punted.rs",
            "nlb-userspace/src/datapath/veth_peer.rs",
            "tests/bench/baselines/src/",
        ],
        words: &["unsafe"],
        why: "unsafe is for packets, maps and what is shared with the kernel",
    },
    Lint {
        files: &[""],
        except: &[],
        words: &["todo!", "unimplemented!", "dbg!", "FIXME"],
        why: "committed code is finished",
    },
];

/// As rustfmt.toml has it.
const MAX_WIDTH: usize = 110;

pub fn tidy() -> Result<()> {
    let files = tracked_files()?;
    let mut complaints = Vec::new();
    for file in &files {
        let bytes = match fs::read(workspace::root().join(file)) {
            Ok(bytes) => bytes,
            // Deleted, and the deletion not yet committed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("reading {file}")),
        };
        complaints.extend(check(file, &bytes));
        if file.ends_with(".md") {
            complaints.extend(links::check(workspace::root(), file, &String::from_utf8_lossy(&bytes))?);
        }
    }
    complaints.extend(rooms::check()?);
    if !complaints.is_empty() {
        bail!("{} lints failed:\n  {}", complaints.len(), complaints.join("\n  "));
    }
    eprintln!("tidy: {} files pass the lints", files.len());
    Ok(())
}

/// The files that git tracks, or would track once added. Ignored files are not checked.
fn tracked_files() -> Result<Vec<String>> {
    let output = Command::new("git")
        .current_dir(workspace::root())
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("cannot start git, which lists the files to check")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let names = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    Ok(names.split_terminator('\0').map(String::from).collect())
}

fn check(file: &str, bytes: &[u8]) -> Vec<String> {
    let compiled = [&b"\x7fELF"[..], b"!<arch>\n", b"BC\xc0\xde"];
    if compiled.iter().any(|magic| bytes.starts_with(magic)) {
        return vec![format!("{file}: compiled objects are built, not committed")];
    }
    if Path::new(file).extension().is_none_or(|extension| extension != "rs") {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(bytes);
    let mut complaints = long_comments(file, &text);
    // This file contains the forbidden words.
    if file == "xtask/src/tidy/mod.rs" {
        return complaints;
    }
    if !text.starts_with("//!") {
        complaints.push(format!("{file}:1: a file starts with a comment (`//!`) that describes its purpose"));
    }
    for lint in LINTS.iter().filter(|lint| within(file, lint.files) && !within(file, lint.except)) {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for word in lint.words.iter().filter(|word| has_word(code, word)) {
                complaints.push(format!("{file}:{}: `{word}`: {}", number + 1, lint.why));
            }
        }
    }
    complaints
}

/// Lines of comments that are longer than code may be; rustfmt leaves them alone. Tables and single words,
/// such as links, cannot be wrapped.
fn long_comments(file: &str, text: &str) -> Vec<String> {
    let lines = text.lines().enumerate();
    let long = lines.filter(|(_, line)| line.chars().count() > MAX_WIDTH).filter_map(|(number, line)| {
        let comment = line.trim_start().strip_prefix("//")?.trim_start_matches(['/', '!']).trim();
        let wraps = !comment.starts_with('|') && comment.contains(' ');
        wraps.then(|| format!("{file}:{}: comments are wrapped at {MAX_WIDTH} columns", number + 1))
    });
    long.collect()
}

fn within(file: &str, paths: &[&str]) -> bool {
    paths.iter().any(|path| {
        if path.is_empty() || path.ends_with('/') { file.starts_with(path) } else { file == *path }
    })
}

/// Whether the text has this word, and not only a longer word that contains it.
fn has_word(text: &str, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(start, _)| {
        let before = text[..start].chars().next_back();
        let after = text[start + word.len()..].chars().next();
        let ends_open = !word.ends_with(part_of_name);
        !before.is_some_and(part_of_name) && (ends_open || !after.is_some_and(part_of_name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_a_lint_forbids_where_it_forbids_it() {
        let source = b"//! Head.\nuse std::time::Instant;\n";
        assert_eq!(check("nlb-userspace/src/compile/mod.rs", source).len(), 1);
        assert!(check("nlb-userspace/src/policy/lease.rs", source).is_empty());
    }

    #[test]
    fn comments_and_longer_words_are_not_code() {
        let source = b"//! Head.\n// no unsafe here\nlet operand = unsafely; /// todo!\n";
        assert!(check("nlb-userspace/src/reconcile/plan.rs", source).is_empty());
    }

    #[test]
    fn allows_unsafe_only_where_it_has_to_be() {
        let source = b"//! Head.\nunsafe { *pointer }\n";
        assert!(check("nlb-ebpf/src/packet.rs", source).is_empty());
        assert_eq!(check("nlb-userspace/src/policy/lease.rs", source).len(), 1);
    }

    #[test]
    fn wants_a_head() {
        assert_eq!(check("nlb-module/src/lib.rs", b"pub mod lease;\n").len(), 1);
    }

    #[test]
    fn wants_comments_within_the_width_of_code() {
        let long = |comment: &str| format!("//! Head.\n    {comment} {}\n", "word ".repeat(22));
        for comment in ["//", "///", "//!"] {
            assert_eq!(check("nlb-module/src/lib.rs", long(comment).as_bytes()).len(), 1, "{comment}");
        }
        let fits = format!("//! Head.\n//{}\n", " word".repeat(108 / 5));
        let url = format!("//! Head.\n// https://example.org/{}\n", "a".repeat(MAX_WIDTH));
        for allowed in [long("/// |"), long("let text ="), fits, url] {
            assert!(check("nlb-module/src/lib.rs", allowed.as_bytes()).is_empty(), "{allowed}");
        }
        assert!(include_str!("../../../rustfmt.toml").contains(&format!("max_width = {MAX_WIDTH}\n")));
    }

    #[test]
    fn refuses_compiled_objects_of_any_name() {
        assert_eq!(check("docs/picture.png", b"\x7fELF\x02\x01").len(), 1);
        assert!(check("docs/picture.png", b"\x89PNG").is_empty());
    }
}
