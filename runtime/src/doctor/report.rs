//! What was found, for people and for programs.

use std::fmt;

use serde::Serialize;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Containers run, but something is slower, less safe or not there.
    Warning,
    /// Containers do not run.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name, which stays the same from release to release.
    pub id: &'static str,
    /// What it is needed for.
    pub meaning: &'static str,
    /// How it came out.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to type or to change, where something can be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Check {
    /// As it should be.
    pub(super) fn ok(id: &'static str, meaning: &'static str, found: impl Into<String>) -> Self {
        Self { id, meaning, state: State::Ok, found: found.into(), fix: None }
    }

    /// Containers run all the same.
    pub(super) fn warning(id: &'static str, meaning: &'static str, found: impl Into<String>) -> Self {
        Self { state: State::Warning, ..Self::ok(id, meaning, found) }
    }

    /// Containers do not run.
    pub(super) fn missing(id: &'static str, meaning: &'static str, found: impl Into<String>) -> Self {
        Self { state: State::Missing, ..Self::ok(id, meaning, found) }
    }

    /// What to do about it.
    pub(super) fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..self }
    }
}

/// All that was looked at. `to_string` is the table for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Release of Skep.
    pub skep_version: &'static str,
    /// `linux` or `freebsd`.
    pub system: &'static str,
    /// Whether containers would run.
    pub ready: bool,
    /// Each check.
    pub checks: Vec<Check>,
}

impl Report {
    pub(super) fn new(system: &'static str, checks: Vec<Check>) -> Self {
        let ready = checks.iter().all(|check| check.state < State::Missing);
        Self { skep_version: crate::VERSION, system, ready, checks }
    }

    fn count(&self, state: State) -> usize {
        self.checks.iter().filter(|check| check.state == state).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.checks.iter().map(|check| check.id.len()).max().unwrap_or(0);
        for Check { id, meaning, state, found, fix } in &self.checks {
            let word = match state {
                State::Ok => "ok",
                State::Warning => "warning",
                State::Missing => "MISSING",
            };
            writeln!(f, "{word:<7}  {id:<width$}  {found}")?;
            if *state != State::Ok {
                writeln!(f, "{:9}{:width$}  for: {meaning}", "", "")?;
            }
            if let Some(fix) = fix {
                writeln!(f, "{:9}{:width$}  do:  {fix}", "", "")?;
            }
        }
        let verdict = if self.ready { "containers would run" } else { "containers would not run" };
        let (missing, warnings) = (self.count(State::Missing), self.count(State::Warning));
        write!(f, "{verdict}: {missing} missing, {warnings} to be warned of")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_stands_in_the_way() {
        let ok = Check::ok("a", "x", "fine");
        let warning = Check::warning("bb", "speed", "slow").fix("make it fast");
        let missing = Check::missing("c", "VMs", "gone").fix("get it");
        let report = Report::new("linux", vec![ok.clone(), warning.clone()]);
        assert!(report.ready);
        assert!(report.to_string().ends_with("containers would run: 0 missing, 1 to be warned of"));
        let report = Report::new("linux", vec![ok, warning, missing]);
        assert!(!report.ready);
        let text = report.to_string();
        for line in
            ["ok       a   fine", "warning  bb  slow", "             do:  make it fast", "MISSING  c   gone"]
        {
            assert!(text.lines().any(|have| have == line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn programs_can_read_it() {
        let report = Report::new("freebsd", vec![Check::missing("c", "VMs", "gone").fix("get it")]);
        let json = serde_json::to_value(&report).unwrap();
        let check = serde_json::json!({
            "id": "c", "meaning": "VMs", "state": "missing", "found": "gone", "fix": "get it",
        });
        assert_eq!(json["checks"], serde_json::json!([check]));
        assert_eq!(json["ready"], false);
    }
}
