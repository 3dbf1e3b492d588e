//! Golden control tests: calls in, sorted map dump out.
//!
//! Each `.txt` file beside this one is a scenario. A line that starts with `$ ` is a call (see `script.rs`);
//! the lines after it are its result, down to the next call or blank line. Everything between the messages
//! and the kernel's maps is real: messages are parsed, the registry decides, the reconciler compiles, plans
//! and applies. Only the maps are in memory, and time is simulated.
//!
//! After an intended change, `BLESS=1 cargo test -p nlb --test golden` writes the results into the files, and
//! `git diff` shows whether they are as intended.

mod fleet;
mod script;
#[path = "../settings/mod.rs"]
mod settings;

use std::path::{Path, PathBuf};
use std::{env, fs};

#[test]
fn scenarios_have_the_results_of_their_files() {
    let bless = env::var_os("BLESS").is_some();
    let files = scenarios();
    assert!(!files.is_empty(), "no scenarios were found");
    let mut differing = Vec::new();
    for file in files {
        let expected = fs::read_to_string(&file).expect("a readable file");
        let actual = script::run(&file, &expected);
        if actual == expected {
            continue;
        }
        if bless {
            fs::write(&file, actual).expect("a writable file");
        } else {
            differing.push(format!("{}:\n{}", file.display(), difference(&expected, &actual)));
        }
    }
    assert!(
        differing.is_empty(),
        "{}\nIf that is intended: BLESS=1 cargo test -p nlb --test golden",
        differing.join("\n")
    );
}

fn scenarios() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let entries = fs::read_dir(directory).expect("the directory of this file");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a readable directory").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    files
}

/// The lines that differ.
fn difference(expected: &str, actual: &str) -> String {
    let same = expected.lines().zip(actual.lines()).take_while(|(e, a)| e == a).count();
    let mut expected: Vec<&str> = expected.lines().skip(same).collect();
    let mut actual: Vec<&str> = actual.lines().skip(same).collect();
    while expected.last().is_some() && expected.last() == actual.last() {
        expected.pop();
        actual.pop();
    }
    let lines =
        |sign: char, lines: &[&str]| lines.iter().map(|l| format!("  {sign} {l}\n")).collect::<String>();
    format!("  from line {}:\n{}{}", same + 1, lines('-', &expected), lines('+', &actual))
}
