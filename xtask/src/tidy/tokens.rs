//! Rust source as tokens: as much of the language as is needed to find the paths in a file.

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    Word(String),
    /// `::`
    PathMark,
    Mark(char),
}

impl Token {
    pub fn word(&self) -> Option<&str> {
        match self {
            Token::Word(word) => Some(word),
            _ => None,
        }
    }
}

/// The tokens of a text with their lines. Comments and the contents of literals are left out.
pub fn tokens(text: &str) -> Vec<(usize, Token)> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let start = at;
        match bytes[at] {
            b'/' if bytes.get(at + 1) == Some(&b'/') => at = end_of(text, at, "\n"),
            b'/' if bytes.get(at + 1) == Some(&b'*') => at = end_of(text, at + 2, "*/"),
            b'"' => at = end_of_text(bytes, at + 1),
            b'r' | b'b' | b'c' if raw_text(&text[at..]).is_some() => {
                let (skipped, closing) = raw_text(&text[at..]).unwrap_or_default();
                at = end_of(text, at + skipped, &closing);
            }
            b'\'' => at = end_of_quote(bytes, at),
            b':' if bytes.get(at + 1) == Some(&b':') => {
                found.push((line, Token::PathMark));
                at += 2;
            }
            byte if byte.is_ascii_alphanumeric() || byte == b'_' => {
                while bytes.get(at).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_') {
                    at += 1;
                }
                found.push((line, Token::Word(text[start..at].to_owned())));
            }
            byte => {
                if byte.is_ascii_punctuation() {
                    found.push((line, Token::Mark(byte as char)));
                }
                at += 1;
            }
        }
        line += bytes[start..at.min(bytes.len())].iter().filter(|byte| **byte == b'\n').count();
    }
    found
}

fn end_of(text: &str, from: usize, closing: &str) -> usize {
    text.get(from..)
        .and_then(|rest| rest.find(closing))
        .map_or(text.len(), |found| from + found + closing.len())
}

fn end_of_text(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// The length of a raw string's opening, and the text that closes it.
fn raw_text(text: &str) -> Option<(usize, String)> {
    let rest = text.trim_start_matches(['b', 'c']);
    let prefix = text.len() - rest.len();
    let rest = rest.strip_prefix('r')?;
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    let opened = prefix <= 1 && rest[hashes..].starts_with('"');
    opened.then(|| (prefix + 1 + hashes + 1, format!("\"{}", "#".repeat(hashes))))
}

/// The end of a character literal, or of the quote of a lifetime.
fn end_of_quote(bytes: &[u8], at: usize) -> usize {
    if bytes.get(at + 1) == Some(&b'\\') {
        let closing = bytes[at + 3..].iter().position(|byte| *byte == b'\'');
        return closing.map_or(bytes.len(), |closing| at + 3 + closing + 1);
    }
    // A character may have several bytes; a lifetime has no closing quote.
    let closing = bytes[at + 1..].iter().take(5).skip(1).position(|byte| *byte == b'\'');
    let is_lifetime = bytes.get(at + 1).is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'_')
        && bytes.get(at + 2) != Some(&b'\'');
    match closing {
        Some(closing) if !is_lifetime => at + 2 + closing + 1,
        _ => at + 1,
    }
}

/// The tokens without items that are for tests only.
pub fn without_tests(tokens: Vec<(usize, Token)>) -> Vec<(usize, Token)> {
    let mark = |at: usize, mark: char| tokens.get(at).is_some_and(|(_, token)| *token == Token::Mark(mark));
    let word = |at: usize, word: &str| tokens.get(at).is_some_and(|(_, token)| token.word() == Some(word));
    let mut left = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let of_tests = mark(at, '#')
            && mark(at + 1, '[')
            && word(at + 2, "cfg")
            && mark(at + 3, '(')
            && word(at + 4, "test")
            && mark(at + 5, ')')
            && mark(at + 6, ']');
        if !of_tests {
            left.push(tokens[at].clone());
            at += 1;
            continue;
        }
        let mut depth = 0;
        at += 7;
        while at < tokens.len() {
            let ends = depth == 0 && mark(at, ';');
            depth += usize::from(mark(at, '{'));
            let closes = mark(at, '}');
            depth -= usize::from(closes);
            at += 1;
            if ends || (closes && depth == 0) {
                break;
            }
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_no_lifetimes() {
        let words = |text| {
            let found = tokens(text);
            found.iter().filter_map(|(_, token)| token.word().map(String::from)).collect::<Vec<_>>()
        };
        assert_eq!(words("f('a', '\\'', '\\u{1f}', '{', 'é') g"), ["f", "g"]);
        assert_eq!(
            words("fn f<'a>(x: &'a str) -> &'static str"),
            ["fn", "f", "a", "x", "a", "str", "static", "str"]
        );
        assert_eq!(words("\"a \\\" b\" c b\"d\" e r\"f\" g"), ["c", "b", "e", "g"]);
    }
}
