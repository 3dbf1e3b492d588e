//! Figures as they are gathered, compared, printed and kept.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::contenders::Kind;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    PacketsSent,
    Packets,
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

/// Measures that tell what a contender adds to what there is without it, and from which.
const ADDED: [(Measure, Measure); 5] = [
    (Measure::CpuPerConnection, Measure::CpuPerConnectionAdded),
    (Measure::CpuPerGigabit, Measure::CpuPerGigabitAdded),
    (Measure::P50, Measure::P50Added),
    (Measure::P99, Measure::P99Added),
    (Measure::P999, Measure::P999Added),
];

impl Measure {
    /// What it is, its unit, and digits behind the point.
    fn shown(self) -> (&'static str, &'static str, usize) {
        match self {
            Measure::PacketsSent => ("small packets sent", "kpps", 0),
            Measure::Packets => ("small packets arrived", "kpps", 0),
            Measure::Connections => ("connections", "1/s", 0),
            Measure::Requests => ("requests on kept connections", "1/s", 0),
            Measure::Bits => ("downloads", "Gbit/s", 2),
            Measure::CpuPerConnection => ("CPU per connection, all hosts", "us", 1),
            Measure::CpuPerConnectionAdded => ("CPU per connection, added", "us", 1),
            Measure::CpuPerConnectionOwn => ("CPU per connection, of the proxy's processes", "us", 1),
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

/// What the NLB is to be at least or at most, as a multiple of another contender's figure in the same run.
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

/// Whose figures are shown as multiples of: of the least and of the best that others do.
const BESIDE: [Kind; 5] = [Kind::XdpTx, Kind::XdpRedirect, Kind::Forwarding, Kind::Nftables, Kind::Haproxy];

/// One figure of one contender: the median of the passes, and the lowest and the highest of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub measure: Measure,
    pub contender: Kind,
    pub value: f64,
    pub unit: String,
    pub lowest: f64,
    pub highest: f64,
}

/// What every pass measured.
#[derive(Default)]
pub struct Samples(BTreeMap<(Measure, Kind), Vec<f64>>);

impl Samples {
    pub fn record(&mut self, measure: Measure, contender: Kind, value: f64) {
        self.0.entry((measure, contender)).or_default().push(value);
    }

    /// Adds what each contender adds to what there is without one, pass by pass.
    pub fn subtract_direct(&mut self) {
        for (whole, added) in ADDED {
            let Some(direct) = self.0.get(&(whole, Kind::Direct)).cloned() else { continue };
            for contender in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Direct) {
                let samples = self.0.get(&(whole, contender)).cloned().unwrap_or_default();
                for (sample, direct) in samples.iter().zip(&direct) {
                    self.record(added, contender, sample - direct);
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

/// A table for each measure.
pub fn print(rows: &[Row]) {
    for of_one in rows.chunk_by(|one, next| one.measure == next.measure) {
        let (title, unit, _) = of_one[0].measure.shown();
        let beside: Vec<Kind> =
            BESIDE.into_iter().filter(|kind| of_one.iter().any(|row| row.contender == *kind)).collect();
        let heads: String =
            beside.iter().map(|kind| format!("{:>13}", format!("x {}", kind.name()))).collect();
        println!("\n{:<46}{heads}{unit:>10}{:>20}", title, "spread");
        for row in of_one {
            let ratios: String = beside
                .iter()
                .map(|kind| {
                    ratio(row, *kind, of_one).map_or(format!("{:>13}", "-"), |r| format!("{r:>13.2}"))
                })
                .collect();
            let digits = row.measure.shown().2;
            let spread = format!("{:.digits$}-{:.digits$}", row.lowest, row.highest);
            let marks = goals(row, of_one);
            println!("  {:<44}{ratios}{:>10.digits$}{spread:>20}{marks}", row.contender.name(), row.value);
        }
    }
}

/// None beside what is not above zero, as what is added may be where machines are disturbed.
fn ratio(row: &Row, beside: Kind, rows: &[Row]) -> Option<f64> {
    let other = rows.iter().find(|other| other.contender == beside)?;
    (other.value > 0.0).then_some(row.value / other.value)
}

/// The goals that there are for a figure, and which of them are missed.
fn goals(row: &Row, rows: &[Row]) -> String {
    let goals = GOALS.iter().filter(|goal| goal.measure == row.measure && row.contender == Kind::Nlb);
    goals
        .map(|goal| {
            let ratio = ratio(row, goal.beside, rows);
            let (word, bound, missed) = match goal.bound {
                Bound::AtLeast(least) => {
                    (">=", least, ratio.is_none_or(|ratio| ratio < least).then_some("under"))
                }
                Bound::AtMost(most) => ("<=", most, ratio.is_none_or(|ratio| ratio > most).then_some("over")),
            };
            let missed = missed.map_or(String::new(), |missed| format!(" {missed}"));
            format!("  goal {word} {bound} x {}{missed}", goal.beside.name())
        })
        .collect()
}

pub fn write(rows: &[Row], to: &Path) -> Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(to, serde_json::to_string_pretty(rows)? + "\n")
        .with_context(|| format!("writing {}", to.display()))
}
