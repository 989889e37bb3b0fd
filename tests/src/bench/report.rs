//! Medians in a table, beside what was promised.

use std::collections::BTreeMap;
use std::fmt;

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use super::sample::Sample;
use crate::ctr::Runtime;

/// The values of one figure.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Series(Vec<f64>);

impl Series {
    /// The middle value, of an even number the mean of the two in the middle.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            odd if odd % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        }
    }

    /// The least and the greatest.
    pub fn range(&self) -> (f64, f64) {
        let fold = |pick: fn(f64, f64) -> f64| self.0.iter().copied().fold(f64::NAN, pick);
        (fold(f64::min), fold(f64::max))
    }
}

/// One line of the table.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figure {
    /// In ms, bytes or without a unit, by the name.
    pub name: String,
    /// With Skep.
    pub skep: Series,
    /// With runc; empty for what it does not have.
    pub runc: Series,
    /// The median that was promised not to be exceeded.
    pub target: Option<f64>,
}

/// All that was measured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// What the figures depend on.
    pub host: BTreeMap<String, String>,
    /// In the order in which they came.
    pub figures: Vec<Figure>,
}

const MB: f64 = 1e6;

/// The medians promised in docs/SPECIFICATION.md.
const TARGETS: &[(&str, f64)] = &[
    ("kernel on disk", 8.0 * MB),
    ("agent's initramfs on disk", 6.0 * MB),
    ("agent resident", 6.0 * MB),
    ("shim resident", 10.0 * MB),
    ("boot by bare kernel", 1.5),
    ("agent-ready to first output", 500.0),
    ("round trips from Create to Start", 3.0),
    ("exec by runc's", 3.0),
];

impl Report {
    pub(super) fn add(&mut self, name: &str, runtime: Runtime, value: f64) {
        let position = self.figures.iter().position(|figure| figure.name == name).unwrap_or_else(|| {
            let target = TARGETS.iter().find(|(target, _)| *target == name).map(|(_, most)| *most);
            self.figures.push(Figure { name: name.to_owned(), target, ..Figure::default() });
            self.figures.len() - 1
        });
        let figure = &mut self.figures[position];
        match runtime {
            Runtime::Skep => figure.skep.0.push(value),
            Runtime::Runc => figure.runc.0.push(value),
        }
    }

    pub(super) fn add_all(&mut self, runtime: Runtime, sample: Sample) {
        for (name, value) in sample {
            self.add(&name, runtime, value);
        }
    }

    pub(super) fn add_size(&mut self, name: &str, bytes: u64) {
        // Exact up to 8 PiB.
        #[allow(clippy::cast_precision_loss)]
        self.add(name, Runtime::Skep, bytes as f64);
    }

    /// Adds the figures that come of others.
    pub(super) fn compare(&mut self) {
        let median =
            |name: &str| self.figures.iter().find(|figure| figure.name == name).map(|it| it.skep.median());
        let mut ratios = Vec::new();
        if let (Some(bare), Some(boot)) =
            (median("bare kernel to its first process"), median("boot to agent-ready"))
        {
            ratios.push(("boot by bare kernel".to_owned(), boot / bare));
        }
        for (way, bare) in [
            ("output of a process", "output by a pipe and the bare port"),
            ("input of a process", "input by the bare port and a pipe"),
        ] {
            for (what, of) in [
                ("throughput", ["throughput of ", ""]),
                ("VMM's processor time", ["each MiB of ", ": VMM's processor time"]),
            ] {
                let figure = |name: &str| median(&[of[0], name, of[1]].concat());
                if let (Some(ours), Some(bound)) = (figure(way), figure(bare)) {
                    ratios.push((format!("ratio of {what}: {way} to {bare}"), ours / bound));
                }
            }
        }
        let trip = self.figures.iter().find(|figure| figure.name == "exec round trip");
        if let Some(ratio) = trip.map(|trip| trip.skep.median() / trip.runc.median()) {
            ratios.push(("exec by runc's".to_owned(), ratio));
        }
        for (name, ratio) in ratios {
            self.add(&name, Runtime::Skep, ratio);
        }
    }

    /// The figures whose median exceeds what was promised.
    pub fn missed(&self) -> impl Iterator<Item = &Figure> {
        self.figures.iter().filter(|figure| figure.target.is_some_and(|target| figure.skep.median() > target))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.host {
            writeln!(f, "{name}: {value}")?;
        }
        let count = self.figures.iter().map(|figure| figure.skep.0.len()).max().unwrap_or_default();
        writeln!(f, "medians of {count} runs (least to greatest)\n")?;
        let mut table = Table::new();
        table.load_preset(ASCII_MARKDOWN).set_header(["", "skep", "runc", "at most", ""]);
        for column in 1..=3 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for figure in &self.figures {
            let target = figure.target.map(|target| show(&figure.name, target)).unwrap_or_default();
            let missed = figure.target.is_some_and(|target| figure.skep.median() > target);
            let verdict = if missed { "missed" } else { "" };
            let [skep, runc] = [&figure.skep, &figure.runc].map(|series| cell(&figure.name, series));
            table.add_row([figure.name.as_str(), &skep, &runc, &target, verdict]);
        }
        writeln!(f, "{table}")
    }
}

fn cell(name: &str, series: &Series) -> String {
    let (least, greatest) = series.range();
    match series.0.len() {
        0 => String::new(),
        1 => show(name, series.median()),
        _ => {
            let unit = Unit::of(name);
            format!("{} ({} to {})", show(name, series.median()), unit.number(least), unit.number(greatest))
        }
    }
}

fn show(name: &str, value: f64) -> String {
    let unit = Unit::of(name);
    format!("{}{}", unit.number(value), unit.suffix())
}

/// What a figure's name tells of its values.
#[derive(Clone, Copy)]
enum Unit {
    Milliseconds,
    Bytes,
    Ratio,
    Count,
    Throughput,
}

impl Unit {
    fn of(name: &str) -> Self {
        if ["on disk", "resident", "Rss", "Pss", "Private_Dirty"].iter().any(|unit| name.ends_with(unit)) {
            Self::Bytes
        } else if name.starts_with("round trips") {
            Self::Count
        } else if ["boot by", "exec by", "ratio of"].iter().any(|of| name.starts_with(of)) {
            Self::Ratio
        } else if name.starts_with("throughput") {
            Self::Throughput
        } else {
            Self::Milliseconds
        }
    }

    fn number(self, value: f64) -> String {
        match self {
            Self::Bytes => format!("{:.2}", value / MB),
            Self::Ratio => format!("{value:.2}"),
            Self::Throughput => format!("{value:.1}"),
            Self::Milliseconds | Self::Count => format!("{value:.0}"),
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Milliseconds => " ms",
            Self::Bytes => " MB",
            Self::Throughput => " MB/s",
            Self::Ratio | Self::Count => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((Series(vec![9.0, 1.0, 2.0]).median() - 2.0).abs() < 1e-9);
        assert!((Series(vec![4.0, 1.0, 2.0, 9.0]).median() - 3.0).abs() < 1e-9);
        assert!(Series::default().median().is_nan());
    }

    #[test]
    fn what_was_promised_is_compared() {
        let mut report = Report::default();
        report.add_size("kernel on disk", 9_000_000);
        report.add("bare kernel to its first process", Runtime::Skep, 100.0);
        report.add("boot to agent-ready", Runtime::Skep, 140.0);
        report.add("throughput of output of a process", Runtime::Skep, 30.0);
        report.add("throughput of output by a pipe and the bare port", Runtime::Skep, 40.0);
        report.compare();
        let missed: Vec<&str> = report.missed().map(|figure| figure.name.as_str()).collect();
        assert_eq!(missed, ["kernel on disk"]);
        let text = report.to_string();
        assert!(
            text.contains("9.00 MB")
                && text.contains("1.40")
                && text.contains("0.75")
                && text.contains("missed"),
            "{text}"
        );
    }
}
