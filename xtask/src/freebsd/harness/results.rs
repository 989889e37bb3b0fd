//! What the runner says over the second serial port: shown as it comes, and counted.
//!
//! Beside what the test programs write, there are lines that begin with `@@`: `@@ begin NAME`, `@@ end NAME STATUS`,
//! `@@ missing WHAT`, and at last `@@ done`.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use skep_tests::figures::Figure;
use skep_tests::process::check_interrupt;

use super::machine::Machine;

/// How long nothing may be said. A test's own limits are shorter.
const SILENCE: Duration = Duration::from_secs(1500);
const TICK: Duration = Duration::from_millis(200);

/// What came of the tests so far.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Results {
    passed: usize,
    failed: usize,
    /// The names of what failed, of tests and of programs that ended without counting.
    failures: Vec<String>,
    /// What was measured.
    figures: Vec<Figure>,
    /// What the image lacks.
    missing: Vec<String>,
    /// The program that runs, and whether it has counted its tests.
    program: Option<(String, bool)>,
    done: bool,
}

impl Results {
    /// Reads until the runner is done; an error if the machine dies before or falls silent.
    pub(crate) fn follow(machine: &mut Machine) -> Result<Self> {
        let path = machine.results();
        let mut file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut results = Self::default();
        let mut pending = Vec::new();
        let mut heard = Instant::now();
        loop {
            let before = pending.len();
            file.read_to_end(&mut pending).with_context(|| format!("cannot read {}", path.display()))?;
            if pending.len() > before {
                heard = Instant::now();
            }
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                let text = String::from_utf8_lossy(&line);
                let text = text.trim_end();
                if !text.starts_with("@@") {
                    println!("{text}");
                }
                results.take(text);
            }
            if results.done {
                return results.conclude();
            }
            if let Err(error) = check_interrupt().and_then(|()| machine.check()) {
                return Err(error.context(results.so_far()));
            }
            if heard.elapsed() > SILENCE {
                bail!("nothing was heard for {} s\n{}", SILENCE.as_secs(), results.so_far());
            }
            std::thread::sleep(TICK);
        }
    }

    /// What was measured, in the order in which it was told.
    pub(crate) fn figures(&self) -> &[Figure] {
        &self.figures
    }

    /// Whether none failed.
    pub(crate) fn none_failed(&self) -> bool {
        self.failed == 0
    }

    /// Whether there were tests, and none failed.
    pub(crate) fn passed_all(&self) -> bool {
        self.passed > 0 && self.failed == 0
    }

    fn take(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["@@", "begin", name, ..] => {
                println!("\n-- {name}");
                self.program = Some(((*name).to_owned(), false));
            }
            ["@@", "end", name, status, ..] => {
                let counted = self.program.take().is_some_and(|(_, counted)| counted);
                // libtest ends with 101 when tests have failed; what else is not 0 was not by tests.
                if !counted || !matches!(*status, "0" | "101") {
                    self.failed += 1;
                    let how = if *status == "124" {
                        "took too long".to_owned()
                    } else {
                        format!("status {status}")
                    };
                    self.failures.push(format!("{name} itself ({how})"));
                }
            }
            ["@@", "missing", ..] => self.missing.push(line.trim_start_matches("@@ missing ").to_owned()),
            ["@@", "done", ..] => self.done = true,
            ["test", "result:", ..] => {
                let count = |what: &str| {
                    let at = words.iter().position(|word| word.trim_end_matches(';') == what)?;
                    words.get(at.checked_sub(1)?)?.parse::<usize>().ok()
                };
                if let (Some(passed), Some(failed)) = (count("passed"), count("failed")) {
                    self.passed += passed;
                    self.failed += failed;
                    if let Some((_, counted)) = &mut self.program {
                        *counted = true;
                    }
                }
            }
            ["figure:", ..] => {
                self.figures.extend(Figure::parse(line));
                // Whoever measures has no tests to count.
                if let Some((_, counted)) = &mut self.program {
                    *counted = true;
                }
            }
            ["test", name, "...", "FAILED", ..] => self.failures.push((*name).to_owned()),
            _ => {}
        }
    }

    fn conclude(self) -> Result<Self> {
        if !self.missing.is_empty() {
            bail!("the image can't run the tests; it lacks:\n  {}", self.missing.join("\n  "));
        }
        Ok(self)
    }

    fn so_far(&self) -> String {
        let program = self.program.as_ref().map_or("nothing", |(name, _)| name);
        format!("until then: {} passed, {} failed; {program} was running", self.passed, self.failed)
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for failure in &self.failures {
            writeln!(f, "failed: {failure}")?;
        }
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(text: &str) -> Results {
        let mut results = Results::default();
        text.lines().for_each(|line| results.take(line));
        results
    }

    #[test]
    fn results_add_up_over_programs() {
        let results = results(
            "@@ begin unit\ntest a::b ... ok\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured\n@@ end unit 0\n\
             @@ begin e2e\ntest skep::2::echo ... FAILED\ntest result: FAILED. 1 passed; 1 failed; 0 ignored\n@@ end e2e 101\n@@ done\n",
        );
        assert!(results.done && !results.passed_all());
        assert_eq!(results.to_string(), "failed: skep::2::echo\n4 passed, 1 failed");
    }

    #[test]
    fn a_program_that_dies_or_hangs_is_a_failure() {
        let died = results("@@ begin unit\ntest a ... ok\n@@ end unit 139\n@@ done");
        assert_eq!(died.to_string(), "failed: unit itself (status 139)\n0 passed, 1 failed");
        let hung = results("@@ begin unit\ntest result: ok. 2 passed; 0 failed;\n@@ end unit 124\n@@ done");
        assert!(!hung.passed_all() && hung.to_string().contains("took too long"));
    }

    #[test]
    fn figures_are_kept_and_are_no_tests() {
        let results = results("@@ begin bench\nfigure: pause = 1.5 ms\n@@ end bench 0\n@@ done");
        assert_eq!(results.figures(), [Figure::new("pause", 1.5, "ms")]);
        assert!(results.none_failed() && !results.passed_all());
        let failed = self::results("@@ begin bench\nfigure: pause = 1.5 ms\n@@ end bench 1\n@@ done");
        assert!(!failed.none_failed());
    }

    #[test]
    fn nothing_passed_is_no_success() {
        assert!(!results("@@ done").passed_all());
    }

    #[test]
    fn what_the_image_lacks_is_told() {
        let error = results("@@ missing the program bhyve\n@@ done").conclude().unwrap_err();
        assert!(error.to_string().contains("the program bhyve"), "{error}");
    }
}
