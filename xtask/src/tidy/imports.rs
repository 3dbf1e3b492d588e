//! The imports between the files of a crate: read from the paths in its code, without a compiler.
//!
//! An import leads to the file that defines the item, not to one that re-exports it (`pub use`). Code for
//! tests only (`#[cfg(test)]`) is left out. Paths that macros generate are not found; no macro here generates
//! paths into other files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::tokens::{Token, tokens, without_tests};

/// A path of modules from the crate's root, and of items in them.
type Names = Vec<String>;

/// One file of a crate, and the paths in its code.
struct Module {
    file: String,
    children: BTreeSet<String>,
    items: BTreeSet<String>,
    /// Names that `use` imports: the local name, and the path of the item.
    uses: BTreeMap<String, Names>,
    /// Modules that are imported with a glob.
    globs: Vec<Names>,
    /// Every path in the code that leads into this crate, and its line.
    paths: Vec<(usize, Names)>,
}

/// An import of one file by another of the same crate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    pub from: String,
    pub to: String,
    pub line: usize,
}

/// The imports between the files of the crate with this root file, the first of each pair of files.
pub fn imports(workspace: &Path, root: &str) -> Result<Vec<Import>> {
    let mut modules = BTreeMap::new();
    read(workspace, root, Vec::new(), &mut modules)?;
    let mut found = BTreeMap::new();
    for module in modules.values() {
        for (line, path) in &module.paths {
            let to = &modules[&definition(&modules, path, 0)].file;
            if *to != module.file {
                found.entry((module.file.clone(), to.clone())).or_insert(*line);
            }
        }
    }
    Ok(found.into_iter().map(|((from, to), line)| Import { from, to, line }).collect())
}

fn read(workspace: &Path, file: &str, path: Names, modules: &mut BTreeMap<Names, Module>) -> Result<()> {
    let text = fs::read_to_string(workspace.join(file)).with_context(|| format!("reading {file}"))?;
    let module = parse(file, &path, &without_tests(tokens(&text)));
    let declared = module.children.clone();
    modules.insert(path.clone(), module);
    for child in declared {
        let child_file = file_of(workspace, file, path.is_empty(), &child)?;
        read(workspace, &child_file, joined(&path, &child), modules)?;
    }
    Ok(())
}

/// The file of the module that `mod child;` in a file declares.
fn file_of(workspace: &Path, parent: &str, is_root: bool, child: &str) -> Result<String> {
    let parent = PathBuf::from(parent);
    let folder = match is_root || parent.file_name().is_some_and(|name| name == "mod.rs") {
        true => parent.parent().unwrap_or(Path::new("")).to_owned(),
        false => parent.with_extension(""),
    };
    for file in [folder.join(format!("{child}.rs")), folder.join(child).join("mod.rs")] {
        if workspace.join(&file).exists() {
            return Ok(file.to_string_lossy().into_owned());
        }
    }
    bail!("{}: there is no file for `mod {child};`", parent.display())
}

/// The module that defines the item at the end of a path.
fn definition(modules: &BTreeMap<Names, Module>, path: &Names, depth: usize) -> Names {
    let mut at = Names::new();
    let mut rest = path.iter();
    let mut next = rest.next();
    while let Some(name) = next.filter(|name| modules[&at].children.contains(*name)) {
        at.push(name.clone());
        next = rest.next();
    }
    let module = &modules[&at];
    let Some(item) = next else { return at };
    // A cycle of re-exports does not compile; the bound is for such code.
    if module.items.contains(item) || depth > 16 {
        return at;
    }
    if let Some(from) = module.uses.get(item) {
        let from = from.iter().cloned().chain(rest.cloned()).collect();
        return definition(modules, &from, depth + 1);
    }
    for glob in &module.globs {
        let found = definition(modules, &joined(glob, item), depth + 1);
        if modules[&found].items.contains(item) {
            return found;
        }
    }
    at
}

fn parse(file: &str, path: &Names, tokens: &[(usize, Token)]) -> Module {
    let mut module = Module {
        file: file.to_owned(),
        children: BTreeSet::new(),
        items: BTreeSet::new(),
        uses: BTreeMap::new(),
        globs: Vec::new(),
        paths: Vec::new(),
    };
    let word = |at: usize| tokens.get(at).and_then(|(_, token)| token.word());
    let is = |at: usize, mark: char| tokens.get(at).is_some_and(|(_, token)| *token == Token::Mark(mark));
    for at in 0..tokens.len() {
        if word(at) == Some("mod") && is(at + 2, ';') {
            module.children.extend(word(at + 1).map(String::from));
        }
    }
    let mut depth = 0;
    // The depth of braces at which each inline module ends.
    let mut inline: Vec<usize> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let (line, token) = &tokens[at];
        match token {
            Token::Mark('{') => depth += 1,
            Token::Mark('}') => {
                depth -= 1;
                inline.retain(|outer| *outer < depth);
            }
            Token::Word(keyword) if keyword == "mod" && is(at + 2, '{') => inline.push(depth),
            // `use<..>` is no import: it lists the captures of a type.
            Token::Word(keyword) if keyword == "use" && !is(at + 1, '<') => {
                let end = (at..tokens.len()).find(|at| is(*at, ';')).unwrap_or(tokens.len());
                for (names, alias) in tree(&tokens[at + 1..end]) {
                    let Some(names) = absolute(&names, path, inline.len(), &module.children) else {
                        continue;
                    };
                    module.paths.push((*line, names.clone()));
                    match alias.as_deref().or(names.last().map(String::as_str)) {
                        Some("*") => module.globs.push(names[..names.len() - 1].to_vec()),
                        Some(name) if depth == 0 => drop(module.uses.insert(name.to_owned(), names.clone())),
                        _ => {}
                    }
                }
                at = end;
            }
            Token::Word(keyword) if depth == 0 && defines(keyword) => {
                module.items.extend(word(at + 1).map(String::from));
            }
            Token::Word(first)
                if *tokens.get(at + 1).map_or(&Token::Mark(' '), |(_, t)| t) == Token::PathMark =>
            {
                let follows_path = at > 0 && tokens[at - 1].1 == Token::PathMark;
                let mut names = vec![first.clone()];
                let mut end = at + 1;
                while tokens.get(end).is_some_and(|(_, token)| *token == Token::PathMark) {
                    let Some(name) = word(end + 1) else { break };
                    names.push(name.to_owned());
                    end += 2;
                }
                if !follows_path && let Some(names) = absolute(&names, path, inline.len(), &module.children) {
                    module.paths.push((*line, names));
                }
                at = end - 1;
            }
            _ => {}
        }
        at += 1;
    }
    module
}

fn defines(keyword: &str) -> bool {
    matches!(
        keyword,
        "fn" | "struct" | "enum" | "trait" | "type" | "const" | "static" | "union" | "macro_rules" | "mut"
    )
}

/// A path from the crate's root; `None` if it leads into another crate.
fn absolute(names: &[String], path: &Names, inline: usize, children: &BTreeSet<String>) -> Option<Names> {
    let mut at = path.clone();
    let mut inline = inline;
    let mut names = names.iter().peekable();
    match names.peek()?.as_str() {
        "crate" => {
            at.clear();
            names.next();
        }
        "self" => drop(names.next()),
        "super" => {
            while names.next_if(|name| *name == "super").is_some() {
                match inline {
                    0 => drop(at.pop()),
                    _ => inline -= 1,
                }
            }
        }
        first if children.contains(first) => {}
        _ => return None,
    }
    at.extend(names.cloned());
    if at.last().is_some_and(|name| name == "self") {
        at.pop();
    }
    Some(at)
}

/// The paths of one `use`, each with its alias, if it has one.
fn tree(tokens: &[(usize, Token)]) -> Vec<(Names, Option<String>)> {
    let mut all = Vec::new();
    let mut outer: Vec<Names> = Vec::new();
    let mut names = Names::new();
    let mut alias = None;
    let mut at = 0;
    let mut end = |names: &mut Names, alias: &mut Option<String>, outer: &[Names]| {
        let before = outer.last().cloned().unwrap_or_default();
        if names.len() > before.len() {
            all.push((std::mem::take(names), alias.take()));
        }
        *names = before;
    };
    while at < tokens.len() {
        match &tokens[at].1 {
            Token::Word(word) if word == "as" => {
                alias = tokens.get(at + 1).and_then(|(_, token)| token.word()).map(String::from);
                at += 1;
            }
            Token::Word(word) => names.push(word.clone()),
            Token::Mark('*') => names.push("*".to_owned()),
            Token::Mark('{') => outer.push(names.clone()),
            Token::Mark(',') => end(&mut names, &mut alias, &outer),
            Token::Mark('}') => {
                end(&mut names, &mut alias, &outer);
                outer.pop();
                // The path before the brace is no import by itself.
                names = outer.last().cloned().unwrap_or_default();
            }
            _ => {}
        }
        at += 1;
    }
    end(&mut names, &mut alias, &outer);
    all
}

fn joined(path: &[String], name: &str) -> Names {
    path.iter().cloned().chain([name.to_owned()]).collect()
}

/// A cycle of files, if there is one: each imports the next, and the last the first.
pub fn circle(imports: &[Import]) -> Option<Vec<String>> {
    let mut next: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for import in imports {
        next.entry(&import.from).or_default().insert(&import.to);
    }
    // A file that imports no remaining file is in no cycle. Removing such files leaves files that are in a
    // cycle or lead to one.
    loop {
        let left: BTreeSet<&str> = next.keys().copied().collect();
        let before = left.len();
        next.retain(|_, to| {
            to.retain(|to| left.contains(to));
            !to.is_empty()
        });
        if next.len() == before {
            break;
        }
    }
    let mut way = vec![*next.keys().next()?];
    loop {
        let to = *next[way.last()?].first()?;
        if let Some(start) = way.iter().position(|file| *file == to) {
            return Some(way[start..].iter().map(|file| (*file).to_owned()).collect());
        }
        way.push(to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &str) -> Names {
        path.split("::").map(String::from).collect()
    }

    fn parsed(path: &str, text: &str) -> Vec<String> {
        let path = if path.is_empty() { Vec::new() } else { names(path) };
        let module = parse("file.rs", &path, &without_tests(tokens(text)));
        module.paths.iter().map(|(_, path)| path.join("::")).collect()
    }

    #[test]
    fn paths_are_found_in_uses_and_in_code() {
        assert_eq!(
            parsed("a::b", "use crate::c::{D, e::{self, F as G}, h::*};"),
            ["c::D", "c::e", "c::e::F", "c::h::*"]
        );
        assert_eq!(parsed("a::b", "use super::C;\nfn f() { super::super::d::e() }"), ["a::C", "d::e"]);
        assert_eq!(
            parsed("a", "mod b;\nuse b::C;\nfn f() { b::g(); std::mem::drop(()) }"),
            ["a::b::C", "a::b::g"]
        );
        assert_eq!(parsed("a", "mod inner { use super::B; use super::super::C; }"), ["a::B", "C"]);
    }

    #[test]
    fn comments_texts_and_tests_name_nothing() {
        let text = "// crate::a\n/* crate::b */ const C: &str = \"crate::c\"; const D: &str = r#\"crate::\"d\"#;\n\
                    #[cfg(test)]\nmod tests { use crate::e; }\n#[cfg(test)]\nuse crate::f;\nuse crate::g;";
        assert_eq!(parsed("x", text), ["g"]);
    }

    #[test]
    fn a_circle_is_found_among_what_leads_to_it() {
        let import = |from: &str, to: &str| Import { from: from.into(), to: to.into(), line: 1 };
        let tree = [import("a", "b"), import("b", "c"), import("a", "c")];
        assert_eq!(circle(&tree), None);
        let ring = [import("a", "b"), import("b", "c"), import("c", "d"), import("d", "b"), import("d", "e")];
        assert_eq!(circle(&ring), Some(vec!["b".to_owned(), "c".to_owned(), "d".to_owned()]));
    }
}
