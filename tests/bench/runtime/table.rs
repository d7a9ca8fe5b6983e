//! Figures as text.

#![expect(clippy::print_stdout, reason = "printing is what this is for")]

use std::time::Duration;

/// What was seen of one subject.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) samples: Vec<Duration>,
    /// The most memory of its tree, KiB.
    pub(crate) memory: Option<u64>,
    /// System calls of its tree.
    pub(crate) calls: Option<u64>,
}

impl Row {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), samples: Vec::new(), memory: None, calls: None }
    }

    /// The sample below which `percent` lie, ms.
    fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_unstable();
        let at = sorted.len().saturating_sub(1) * percent / 100;
        sorted.get(at).map_or(f64::NAN, |sample| sample.as_secs_f64() * 1e3)
    }
}

pub(crate) fn line(text: &str) {
    println!("{text}");
}

/// Prints rows; the first one is ours, and `ours/it` is p10 of ours divided by that of the row.
pub(crate) fn print(title: &str, rows: &[Row]) {
    println!("\n### {title}\n");
    println!("| | min | p10 | p50 | ours/it | RSS KiB | calls |");
    println!("|---|---|---|---|---|---|---|");
    let ours = rows.first().map_or(f64::NAN, |row| row.percentile(10));
    for row in rows {
        let [min, p10, p50] = [0, 10, 50].map(|percent| row.percentile(percent));
        let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        let (memory, calls) = (number(row.memory), number(row.calls));
        println!("| {} | {min:.2} | {p10:.2} | {p50:.2} | {:.2} | {memory} | {calls} |", row.name, ours / p10);
    }
}
