//! Shows the modules in a table that fits 80 columns. On a terminal it is updated in place every second;
//! elsewhere it is printed every ten seconds, and when a module's state has changed.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::traffic::Tally;
use crate::view::Row;

/// The columns of a terminal, unless somebody has made it wider.
const WIDTH: usize = 80;
const BAR: usize = 10;
const AGAIN: Duration = Duration::from_secs(10);

pub struct Table {
    terminal: bool,
    /// The number of lines on the screen, which the next table replaces.
    shown: usize,
    last: Option<(Duration, Vec<String>)>,
}

/// What the table shows.
pub struct Content<'a> {
    pub elapsed: Duration,
    pub rows: &'a [Row],
    /// Why modules' processes have ended, by name: how, and their last line of output.
    pub ended: &'a BTreeMap<&'static str, (String, String)>,
    pub tally: &'a Tally,
    /// Why the rows are not updated, if they are not.
    pub error: Option<&'a str>,
}

impl Table {
    pub fn new(terminal: bool) -> Table {
        Table { terminal, shown: 0, last: None }
    }

    pub fn show(&mut self, content: &Content<'_>) {
        let lines = content.lines();
        if self.terminal {
            if self.shown > 0 {
                // Moves the cursor to the first line, and clears all lines from there.
                print!("\x1b[{}A\x1b[J", self.shown);
            }
            self.shown = lines.len();
            // Without line wrapping: on a narrow terminal the number of lines is the same.
            println!("\x1b[?7l{}\x1b[?7h", lines.join("\n"));
        } else if self.is_due(content) {
            println!("{}\n", lines.join("\n"));
        }
    }

    fn is_due(&mut self, content: &Content<'_>) -> bool {
        let state = content.state();
        let is_due = self
            .last
            .as_ref()
            .is_none_or(|(at, last)| *last != state || content.elapsed.saturating_sub(*at) >= AGAIN);
        if is_due {
            self.last = Some((content.elapsed, state));
        }
        is_due
    }
}

impl Content<'_> {
    /// What does not change from second to second.
    fn state(&self) -> Vec<String> {
        let rows = self.rows.iter().map(|row| format!("{} {} {}", row.name, row.weight, self.health(row)));
        let answers = format!("{} {}", self.tally.answered > 0, self.error.is_some());
        rows.chain([answers]).collect()
    }

    fn health<'a>(&self, row: &'a Row) -> &'a str {
        if self.ended.contains_key(row.name.as_str()) { "ended" } else { &row.health }
    }

    fn lines(&self) -> Vec<String> {
        let (elapsed, tally) = (self.elapsed.as_secs(), self.tally);
        let mut lines = vec![format!(
            "{:<8} {:<7} {:>6}  {:<12} {:<18} {:>6} {:>9} {:>6}",
            "module", "version", "weight", "health", "share of new flows", "flows", "packets/s", "errors"
        )];
        for row in self.rows {
            let bar = "#".repeat((row.share / 100.0 * BAR as f64).round() as usize);
            lines.push(format!(
                "{:<8} {:<7} {:>6}  {:<12} {:>5.1} % {:<BAR$} {:>6} {:>9.0} {:>6}",
                row.name,
                row.version,
                row.weight,
                self.health(row),
                row.share,
                bar,
                row.active_flows,
                row.packets_per_second,
                tally.failed_at.get(&row.name).copied().unwrap_or_default(),
            ));
        }
        lines.push(format!("{elapsed} s: {tally}, {} connections held", tally.held));
        for (name, (how, last_line)) in self.ended {
            lines.push(format!("{name} has ended, {how}"));
            if !last_line.is_empty() {
                lines.push(format!("  its last line: {last_line}"));
            }
        }
        if tally.failed > 0 {
            lines.push(format!("last failure: {}", tally.last_failure));
        }
        lines.extend(self.error.map(|why| format!("the table is not updated: {why}")));
        lines.iter().map(|line| fitting(line)).collect()
    }
}

/// A line that is cut at the width of the terminal.
fn fitting(line: &str) -> String {
    let line = line.replace(char::is_control, " ");
    if line.chars().count() <= WIDTH {
        return line;
    }
    line.chars().take(WIDTH - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, share: f64) -> Row {
        Row {
            name: name.to_owned(),
            version: "v1".to_owned(),
            weight: 10_000,
            health: "unregistered".to_owned(),
            share,
            active_flows: 999_999,
            packets_per_second: 123_456_789.0,
        }
    }

    #[test]
    fn every_line_fits_a_terminal_of_80_columns() {
        let mut tally = Tally { answered: u64::MAX, failed: 999_999, held: 8, ..Tally::default() };
        tally.last_failure = "TCP [fd77::100]:80: ".repeat(9);
        tally.failed_at.insert("echo-1".to_owned(), 999_999);
        let ended = [("echo-1", ("signal: 9 (SIGKILL)".to_owned(), "registered\t".repeat(20)))].into();
        let content = Content {
            elapsed: Duration::from_secs(1_000_000),
            rows: &[row("echo-1", 100.0), row("echo-2", 0.0)],
            ended: &ended,
            tally: &tally,
            error: Some("the NLB does not answer: status DeadlineExceeded, after a long time of waiting"),
        };
        let lines = content.lines();
        for line in &lines {
            assert!(line.chars().count() <= WIDTH, "{} columns: {line}", line.chars().count());
        }
        assert_eq!(lines[0].chars().count(), lines[1].chars().count(), "{lines:#?}");
        assert!(lines[1].contains(" ended ") && lines[1].contains("100.0 % ##########"), "{lines:#?}");
        assert!(lines[4].contains("echo-1 has ended, signal: 9 (SIGKILL)"), "{lines:#?}");
    }

    #[test]
    fn elsewhere_a_table_is_printed_when_a_state_changes_and_every_ten_seconds() {
        let mut table = Table::new(false);
        let (mut rows, tally, nobody) = ([row("echo-1", 1.0)], Tally::default(), BTreeMap::new());
        let mut is_due = |second, rows: &[Row], ended| {
            let elapsed = Duration::from_secs(second);
            table.is_due(&Content { elapsed, rows, ended, tally: &tally, error: None })
        };
        assert!(is_due(0, &rows, &nobody));
        rows[0].share = 2.0;
        assert!(!is_due(9, &rows, &nobody), "nothing but figures has changed");
        assert!(is_due(10, &rows, &nobody));
        rows[0].weight = 1;
        assert!(is_due(11, &rows, &nobody));
        let ended = [("echo-1", ("exit status: 0".to_owned(), String::new()))].into();
        assert!(is_due(12, &rows, &ended));
        assert!(!is_due(21, &rows, &ended));
        assert!(is_due(22, &rows, &ended));
    }
}
