//! Figures that a program tells line by line, and the table that is made of them: one form for whoever measures, on
//! whichever machine, and whoever shows it.

use std::fmt;

/// What a line with a figure begins with.
const MARK: &str = "figure: ";

/// One measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// Of the value: "ms", "MiB", or empty for a count.
    pub unit: String,
    /// What it was.
    pub value: f64,
}

/// Tells a figure on standard error, where a test's name may already stand on the line.
pub fn tell(name: impl Into<String>, value: f64, unit: &str) {
    eprintln!("\n{}", Figure::new(name, value, unit));
}

impl Figure {
    /// A figure of this run.
    pub fn new(name: impl Into<String>, value: f64, unit: &str) -> Self {
        Self { name: name.into(), unit: unit.to_owned(), value }
    }

    /// What a line says, if it tells a figure.
    pub fn parse(line: &str) -> Option<Self> {
        let (name, rest) = line.strip_prefix(MARK)?.rsplit_once(" = ")?;
        let (value, unit) = rest.split_once(' ').unwrap_or((rest, ""));
        Some(Self::new(name, value.parse().ok()?, unit.trim()))
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MARK}{} = {:.3} {}", self.name, self.value, self.unit)
    }
}

/// A table in Markdown: a line for each name in the order of their coming, a column for each of `columns`, with the
/// median and, where there are several values, the least and the greatest.
pub fn table(columns: &[(&str, &[Figure])]) -> String {
    let mut names: Vec<(&str, &str)> = Vec::new();
    for figure in columns.iter().flat_map(|(_, figures)| *figures) {
        let name = (figure.name.as_str(), figure.unit.as_str());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut rows = vec![row("", columns.iter().map(|(title, _)| (*title).to_owned()))];
    rows.push(format!("|{}", "---|".repeat(columns.len() + 1)));
    rows.extend(
        names
            .into_iter()
            .map(|(name, unit)| row(name, columns.iter().map(|(_, figures)| cell(figures, name, unit)))),
    );
    rows.join("\n") + "\n"
}

fn row(name: &str, cells: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = std::iter::once(name.to_owned()).chain(cells).collect();
    format!("| {} |", all.join(" | "))
}

fn cell(figures: &[Figure], name: &str, unit: &str) -> String {
    let own = figures.iter().filter(|figure| (figure.name.as_str(), figure.unit.as_str()) == (name, unit));
    let mut values: Vec<f64> = own.map(|figure| figure.value).collect();
    values.sort_by(f64::total_cmp);
    let (Some(least), Some(greatest)) = (values.first(), values.last()) else { return String::new() };
    let middle = values.len() / 2;
    let median = if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    };
    let range = if values.len() > 1 {
        format!(" ({} to {})", short(*least), short(*greatest))
    } else {
        String::new()
    };
    format!("{} {unit}{range}", short(median)).trim_end().to_owned()
}

/// Three digits that mean something.
fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_told() {
        let figure = Figure::new("exits: in = out", 1234.5, "ms");
        assert_eq!(Figure::parse(&figure.to_string()), Some(figure));
        assert_eq!(Figure::parse("figure: n = 3"), Some(Figure::new("n", 3.0, "")));
        for other in ["", "figure: ", "figure: n", "figure: n = x", "n = 3"] {
            assert_eq!(Figure::parse(other), None, "{other}");
        }
    }

    #[test]
    fn medians_stand_in_a_table() {
        let one = [3.0, 1.0, 250.0].map(|value| Figure::new("boot", value, "ms"));
        let other = [Figure::new("boot", 2.5, "ms"), Figure::new("exits", 7.0, "")];
        let text = table(&[("bhyve", &one), ("QEMU", &other)]);
        assert_eq!(
            text,
            "|  | bhyve | QEMU |\n|---|---|---|\n| boot | 3 ms (1 to 250) | 2.50 ms |\n| exits |  | 7 |\n"
        );
    }
}
