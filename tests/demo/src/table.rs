//! Shows the modules: on a terminal a table that is updated in place, elsewhere a line every second.

use std::time::Duration;

use crate::fleet::Fleet;
use crate::traffic::Tally;
use crate::view::{Row, View};

const BAR: usize = 20;

pub struct Table {
    terminal: bool,
    /// The number of lines on the screen, which the next table replaces.
    shown: usize,
}

impl Table {
    pub fn new(terminal: bool) -> Table {
        Table { terminal, shown: 0 }
    }

    pub fn show(&mut self, elapsed: Duration, view: &View, fleet: &mut Fleet, tally: &Tally) {
        let rows = view.rows();
        if !self.terminal {
            println!("{}", line(elapsed, &rows, view, tally));
            return;
        }
        let lines = lines(elapsed, &rows, view, fleet, tally);
        if self.shown > 0 {
            // Moves the cursor to the first line, and clears all lines from there.
            print!("\x1b[{}A\x1b[J", self.shown);
        }
        self.shown = lines.len();
        println!("{}", lines.join("\n"));
    }
}

fn lines(elapsed: Duration, rows: &[Row], view: &View, fleet: &mut Fleet, tally: &Tally) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<10} {:<8} {:>6}  {:<12} {:>7} {:<BAR$} {:>12} {:>10} {:>7}",
        "module",
        "version",
        "weight",
        "health",
        "share of",
        "new flows",
        "active flows",
        "packets/s",
        "errors"
    )];
    for row in rows {
        let health = if fleet.runs(&row.name) { &row.health } else { "ended" };
        let bar = "#".repeat((row.share / 100.0 * BAR as f64).round() as usize);
        lines.push(format!(
            "{:<10} {:<8} {:>6}  {:<12} {:>6.1} % {:<BAR$} {:>12} {:>10.0} {:>7}",
            row.name,
            row.version,
            row.weight,
            health,
            row.share,
            bar,
            row.active_flows,
            row.packets_per_second,
            tally.failed_at.get(&row.name).copied().unwrap_or_default(),
        ));
    }
    lines.push(format!("{} s: {tally}, {} connections held", elapsed.as_secs(), tally.held));
    if tally.failed > 0 {
        lines.push(format!("last failure: {}", tally.last_failure));
    }
    lines.extend(view.error.iter().map(|why| format!("the table is not updated: {why}")));
    lines
}

fn line(elapsed: Duration, rows: &[Row], view: &View, tally: &Tally) -> String {
    let mut line = format!("{:>3} s  {tally}, {} held", elapsed.as_secs(), tally.held);
    for row in rows {
        line += &format!(
            " | {} {} weight {} {} {:.1} % {} flows {:.0} packets/s",
            row.name,
            row.version,
            row.weight,
            row.health,
            row.share,
            row.active_flows,
            row.packets_per_second
        );
    }
    line.extend(view.error.iter().map(|why| format!(" | {why}")));
    line
}
