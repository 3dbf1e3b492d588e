//! Relative links of documents: each leads to a file of the repository, and to a heading in it if it names
//! one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};

/// What is wrong with the links of one document.
pub fn check(workspace: &Path, document: &str, text: &str) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for (line, link) in links(text) {
        let (path, heading) = link.split_once('#').unwrap_or((link, ""));
        let target = match path {
            "" => PathBuf::from(document),
            path => normal(&Path::new(document).with_file_name("").join(path)),
        };
        if !workspace.join(&target).exists() {
            complaints.push(format!("{document}:{line}: the link to {link} leads to no file"));
            continue;
        }
        if heading.is_empty() || target.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = fs::read_to_string(workspace.join(&target));
        let text = text.with_context(|| format!("reading {}", target.display()))?;
        if !anchors(&text).contains(heading) {
            complaints.push(format!("{document}:{line}: the link to {link} leads to no heading"));
        }
    }
    Ok(complaints)
}

/// The lines of a document that are not code, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    text.lines().enumerate().filter_map(move |(number, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        (!is_code && !is_fence).then_some((number + 1, line))
    })
}

fn links(text: &str) -> Vec<(usize, &str)> {
    let mut links = Vec::new();
    for (number, line) in prose(text) {
        let parts = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        links.extend(parts.map(|(link, _)| (number, link)).filter(|(_, link)| !link.contains([':', ' '])));
    }
    links
}

/// Headings as links name them: in lower case, with hyphens for spaces and without punctuation.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|(_, line)| line.starts_with('#'));
    let anchor = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(|(_, heading)| anchor(heading)).collect()
}

/// A path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(normal.pop()),
            component => normal.push(component),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_files_and_headings() {
        let folder = std::env::temp_dir().join(format!("nlb-tidy-links-{}", std::process::id()));
        fs::create_dir_all(folder.join("docs")).unwrap();
        fs::write(folder.join("docs/other.md"), "# The `way` of a packet\n```\n# no heading\n```\n").unwrap();
        let text = "[a](other.md) [b](other.md#the-way-of-a-packet) [c](#own)\n# Own\n\
                    [d](missing.md) [e](other.md#no-heading) [f](https://example.org/g)\n```\n[h](i)\n```\n";
        fs::write(folder.join("docs/this.md"), text).unwrap();
        let found = check(&folder, "docs/this.md", text).unwrap();
        fs::remove_dir_all(folder).unwrap();
        assert_eq!(
            found,
            [
                "docs/this.md:3: the link to missing.md leads to no file",
                "docs/this.md:3: the link to other.md#no-heading leads to no heading"
            ]
        );
    }
}
