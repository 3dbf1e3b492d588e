//! Answers as aligned columns for readers, and as JSON for programs.

use std::fmt::Write as _;

use serde::Serialize;

use super::output::Output;

/// One line of a table.
pub(super) trait Row: Serialize {
    const HEADINGS: &[&str];

    fn cells(&self) -> Vec<String>;
}

pub(super) fn print<R: Row>(rows: &[R], output: Output) -> anyhow::Result<String> {
    match output {
        Output::Json => json(&rows),
        Output::Text => Ok(align(R::HEADINGS, &rows.iter().map(Row::cells).collect::<Vec<_>>())),
    }
}

pub(super) fn json(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// The message of a change.
pub(super) fn message(message: String, output: Output) -> anyhow::Result<String> {
    #[derive(Serialize)]
    struct Message {
        message: String,
    }

    match output {
        Output::Json => json(&Message { message }),
        Output::Text => Ok(message + "\n"),
    }
}

/// Aligns numbers to the right, and text to the left.
fn align(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headings[column].len()]).max().unwrap_or_default()
    };
    let numeric = |column: usize| rows.iter().all(|row| row[column].parse::<f64>().is_ok());
    let mut text = String::new();
    let headings: Vec<String> = headings.iter().map(|heading| heading.to_string()).collect();
    for row in [&headings].into_iter().chain(rows) {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let (width, gap) = (width(column), if column == 0 { "" } else { "  " });
            let written = if numeric(column) && !rows.is_empty() {
                write!(line, "{gap}{cell:>width$}")
            } else {
                write!(line, "{gap}{cell:<width$}")
            };
            written.expect("writing to a String cannot fail");
        }
        text += line.trim_end();
        text += "\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_text_left_and_numbers_right() {
        let rows = [vec!["alb-001".into(), "5".into()], vec!["b".into(), "100".into()]];
        assert_eq!(
            align(&["INSTANCE", "WEIGHT"], &rows),
            "INSTANCE  WEIGHT\nalb-001        5\nb            100\n"
        );
    }

    #[test]
    fn an_empty_table_is_its_headings() {
        assert_eq!(align(&["INSTANCE", "WEIGHT"], &[]), "INSTANCE  WEIGHT\n");
    }
}
