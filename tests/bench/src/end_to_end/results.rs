//! Collects, compares and prints figures.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::contenders::Kind;
use crate::results::change;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    Packets,
    CpuPerPacket,
    CpuPerPacketAdded,
    Connections,
    Requests,
    Bits,
    CpuPerConnection,
    CpuPerConnectionAdded,
    CpuPerConnectionOwn,
    CpuPerGigabit,
    CpuPerGigabitAdded,
    P50,
    P99,
    P999,
    P50Added,
    P99Added,
    P999Added,
}

/// Differences: the measure, the one that it is computed from, and the contender that is subtracted.
const ADDED: [(Measure, Measure, Kind); 6] = [
    (Measure::CpuPerPacketAdded, Measure::CpuPerPacket, Kind::XdpDrop),
    (Measure::CpuPerConnectionAdded, Measure::CpuPerConnection, Kind::Direct),
    (Measure::CpuPerGigabitAdded, Measure::CpuPerGigabit, Kind::Direct),
    (Measure::P50Added, Measure::P50, Kind::Direct),
    (Measure::P99Added, Measure::P99, Kind::Direct),
    (Measure::P999Added, Measure::P999, Kind::Direct),
];

impl Measure {
    /// The title, the unit, and the number of decimals.
    fn shown(self) -> (&'static str, &'static str, usize) {
        match self {
            Measure::Packets => ("small packets, one CPU", "1000/s", 0),
            Measure::CpuPerPacket => ("CPU per small packet, all hosts", "ns", 0),
            Measure::CpuPerPacketAdded => ("CPU per small packet, added", "ns", 0),
            Measure::Connections => ("connections", "1/s", 0),
            Measure::Requests => ("requests on kept connections", "1/s", 0),
            Measure::Bits => ("downloads", "Gbit/s", 2),
            Measure::CpuPerConnection => ("CPU per connection, all hosts", "us", 1),
            Measure::CpuPerConnectionAdded => ("CPU per connection, added", "us", 1),
            Measure::CpuPerConnectionOwn => ("CPU per connection, own processes", "us", 1),
            Measure::CpuPerGigabit => ("CPU per Gbit, all hosts", "ms", 1),
            Measure::CpuPerGigabitAdded => ("CPU per Gbit, added", "ms", 1),
            Measure::P50 => ("latency p50", "us", 1),
            Measure::P99 => ("latency p99", "us", 1),
            Measure::P999 => ("latency p99.9", "us", 1),
            Measure::P50Added => ("latency p50, added", "us", 1),
            Measure::P99Added => ("latency p99, added", "us", 1),
            Measure::P999Added => ("latency p99.9, added", "us", 1),
        }
    }
}

/// A bound on the NLB's figure, as a multiple of another contender's figure in the same run.
struct Goal {
    measure: Measure,
    beside: Kind,
    bound: Bound,
}

enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

const GOALS: [Goal; 4] = [
    Goal { measure: Measure::Packets, beside: Kind::XdpTx, bound: Bound::AtLeast(0.85) },
    Goal { measure: Measure::Packets, beside: Kind::Nftables, bound: Bound::AtLeast(4.0) },
    Goal { measure: Measure::CpuPerConnectionAdded, beside: Kind::Haproxy, bound: Bound::AtMost(0.1) },
    Goal { measure: Measure::P99Added, beside: Kind::Forwarding, bound: Bound::AtMost(1.0) },
];

/// The contenders that multiples are shown of: the minimum of work, and the best of the others.
const BESIDE: [Kind; 5] = [Kind::XdpTx, Kind::XdpRedirect, Kind::Forwarding, Kind::Nftables, Kind::Haproxy];

/// One figure of one contender: the median of the passes, the lowest and the highest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub measure: Measure,
    pub contender: Kind,
    pub value: f64,
    pub unit: String,
    pub lowest: f64,
    pub highest: f64,
}

/// The results of every pass.
#[derive(Default)]
pub struct Samples(BTreeMap<(Measure, Kind), Vec<f64>>);

impl Samples {
    pub fn record(&mut self, measure: Measure, contender: Kind, value: f64) {
        self.0.entry((measure, contender)).or_default().push(value);
    }

    /// Adds the differences, pass by pass.
    pub fn compare_with_none(&mut self) {
        for (added, whole, none) in ADDED {
            let Some(without) = self.0.get(&(whole, none)).cloned() else { continue };
            for contender in Kind::ALL.into_iter().filter(|kind| *kind != none) {
                let with = self.0.get(&(whole, contender)).cloned().unwrap_or_default();
                for (with, without) in with.iter().zip(&without) {
                    self.record(added, contender, with - without);
                }
            }
        }
    }

    pub fn rows(&self) -> Vec<Row> {
        let rows = self.0.iter().map(|(&(measure, contender), samples)| {
            let mut samples = samples.clone();
            samples.sort_by(f64::total_cmp);
            let (_, unit, _) = measure.shown();
            Row {
                measure,
                contender,
                value: samples[samples.len() / 2],
                unit: unit.to_owned(),
                lowest: samples[0],
                highest: samples[samples.len() - 1],
            }
        });
        rows.collect()
    }
}

/// Prints a table for each measure, with the changes since an earlier run if there is one.
pub fn print(rows: &[Row], before: Option<&[Row]>) {
    for rows in rows.chunk_by(|one, next| one.measure == next.measure) {
        let (title, unit, digits) = rows[0].measure.shown();
        let beside: Vec<&Row> = BESIDE.into_iter().filter_map(|kind| of(kind, rows)).collect();
        let heads = beside.iter().map(|other| format!("{:>15}", format!("x {}", other.contender.name())));
        println!("\n{title:<34}{}{unit:>10}{:>18}", heads.collect::<String>(), "spread");
        for row in rows {
            let ratios = beside.iter().map(|other| match ratio(row, other) {
                Some(ratio) => format!("{ratio:>15.2}"),
                None => format!("{:>15}", "-"),
            });
            let spread = format!("{:.digits$}-{:.digits$}", row.lowest, row.highest);
            println!(
                "  {:<32}{}{:>10.digits$}{spread:>18}{}{}",
                row.contender.name(),
                ratios.collect::<String>(),
                row.value,
                goals(row, rows),
                before.map_or_else(String::new, |before| changed(row, before))
            );
        }
    }
}

fn changed(now: &Row, before: &[Row]) -> String {
    let same = |then: &&Row| (then.measure, then.contender) == (now.measure, now.contender);
    let Some(then) = before.iter().find(same) else { return "  new".to_owned() };
    let range = |row: &Row| row.lowest..=row.highest;
    change((now.value, range(now)), (then.value, range(then)))
}

/// `None` unless both are above zero. Differences may be negative on a disturbed machine.
fn ratio(row: &Row, other: &Row) -> Option<f64> {
    (row.value > 0.0 && other.value > 0.0).then_some(row.value / other.value)
}

/// The goals for a figure, with a mark at those that are missed.
fn goals(row: &Row, rows: &[Row]) -> String {
    let goals = GOALS.iter().filter(|goal| goal.measure == row.measure && row.contender == Kind::Nlb);
    let shown = goals.map(|goal| {
        let other = of(goal.beside, rows).map_or(f64::NAN, |other| other.value);
        let (word, bound, kept, missed) = match goal.bound {
            Bound::AtLeast(least) => ("at least", least, row.value >= least * other, " under"),
            Bound::AtMost(most) => ("at most", most, row.value <= most * other, " over"),
        };
        let missed = if kept { "" } else { missed };
        format!("  {word} {bound} x {}{missed}", goal.beside.name())
    });
    shown.collect()
}

fn of(contender: Kind, rows: &[Row]) -> Option<&Row> {
    rows.iter().find(|row| row.contender == contender)
}
