//! What became of a foreign suite's tests, compared with the file that gives the reason for each one that does not pass.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Child;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::root;

/// By group (a file or a way of running) and name of the test.
pub(super) type Results = BTreeMap<(String, String), Outcome>;

/// What became of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Failed,
    Skipped,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Passed => "ok",
            Self::Failed => "NOT OK",
            Self::Skipped => "skip",
        })
    }
}

/// An entry of a skip file: `group | test | reason`; the group may be `*`, the name of the test may end in `*`.
#[derive(Debug)]
pub(super) struct Skip {
    group: String,
    test: String,
    reason: String,
}

impl Skip {
    fn matches(&self, group: &str, test: &str) -> bool {
        (self.group == "*" || self.group == group)
            && match self.test.strip_suffix('*') {
                Some(start) => test.starts_with(start),
                None => self.test == test,
            }
    }
}

/// The entries of `tests/suites/SUITE.skip`.
pub(super) fn skips(suite: &str) -> Result<Vec<Skip>> {
    let path = root().join("tests/suites").join(format!("{suite}.skip"));
    parse_skips(&fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?)
}

fn parse_skips(text: &str) -> Result<Vec<Skip>> {
    let mut skips = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let parts: Vec<&str> = line.split(" | ").map(str::trim).collect();
        match parts.as_slice() {
            [group, test, reason] if !reason.is_empty() => {
                skips.push(Skip { group: (*group).into(), test: (*test).into(), reason: (*reason).into() });
            }
            _ => bail!("{line:?} in the skip file is not `group | test | reason`"),
        }
    }
    Ok(skips)
}

/// An error if a test did not pass and has no reason, or passed and has one.
pub(super) fn compare(suite: &str, results: &Results, skips: &[Skip]) -> Result<()> {
    let mut wrong = Vec::new();
    for ((group, test), outcome) in results {
        let entry = skips.iter().find(|skip| skip.matches(group, test));
        match (outcome, entry) {
            (Outcome::Passed, Some(_)) => wrong.push(format!("{group}: {test}: passes and must leave the skip file")),
            (Outcome::Failed | Outcome::Skipped, None) => {
                wrong.push(format!("{group}: {test}: {outcome}, without a reason in the skip file"));
            }
            (Outcome::Failed | Outcome::Skipped, Some(skip)) => println!("skip {group}: {test}: {}", skip.reason),
            (Outcome::Passed, None) => {}
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{suite}:\n  {}", wrong.join("\n  ")) }
}

/// Gives every line of the child's standard output to `line`, and `None` whenever `patience` passes without one.
pub(super) fn watch(child: &mut Child, patience: Duration, mut line: impl FnMut(Option<&str>)) -> Result<()> {
    let output = BufReader::new(child.stdout.take().context("the output of a suite")?);
    let (sender, lines) = channel();
    let reader = std::thread::spawn(move || output.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok()));
    loop {
        match lines.recv_timeout(patience) {
            Ok(text) => line(Some(&text)),
            Err(RecvTimeoutError::Timeout) => line(None),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let _ = reader.join();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_without_a_reason_is_refused() {
        assert!(parse_skips("a | b").is_err() && parse_skips("a | b | \n").is_err());
    }

    #[test]
    fn skips_and_results_must_agree() {
        let results = |outcome| Results::from([(("a".to_owned(), "b c".to_owned()), outcome)]);
        for group in ["a", "*"] {
            let skips = parse_skips(&format!("{group} | b* | why")).unwrap();
            assert!(compare("s", &results(Outcome::Failed), &skips).is_ok());
            assert!(compare("s", &results(Outcome::Passed), &skips).is_err());
        }
        assert!(compare("s", &results(Outcome::Skipped), &[]).is_err());
        assert!(compare("s", &results(Outcome::Passed), &[]).is_ok());
    }
}
