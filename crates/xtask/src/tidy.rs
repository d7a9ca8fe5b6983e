//! Rules about files that no compiler checks.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::root;

/// A Rust file has at most this many lines.
const MAX_LINES: usize = 1000;

/// The top level is fixed; dotfiles may stand beside it.
const TOP_LEVEL: &[&str] =
    &["Cargo.toml", "Cargo.lock", "LICENSE", "README.md", "crates", "proto", "daemon", "ctl", "shim", "tests"];

pub(crate) fn tidy() -> Result<()> {
    let root = root();
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(&root)
        .output();
    let listed = String::from_utf8(listed.context("git ls-files")?.stdout)?;
    let mut wrong = Vec::new();
    let mut count = 0;
    for name in listed.lines() {
        let first = name.split('/').next().unwrap_or(name);
        if !first.starts_with('.') && !TOP_LEVEL.contains(&first) {
            wrong.push(format!("{name}: the top level has only {}", TOP_LEVEL.join(" ")));
        }
        // A listed file that is gone is a deletion not yet committed.
        if let Ok(text) = fs::read_to_string(root.join(name)) {
            count += 1;
            file(name, &text, &mut wrong);
        }
    }
    rooms(&root, &mut wrong)?;
    if !wrong.is_empty() {
        bail!("tidy:\n  {}", wrong.join("\n  "));
    }
    println!("tidy: {count} files in order");
    Ok(())
}

fn file(name: &str, text: &str, wrong: &mut Vec<String>) {
    let lines = text.lines().count();
    if name.ends_with(".rs") {
        if lines > MAX_LINES {
            wrong.push(format!("{name}: {lines} lines, at most {MAX_LINES}"));
        }
        let library = name.ends_with("/lib.rs") || name.ends_with("/main.rs");
        if library && !text.trim_start().starts_with("//!") {
            wrong.push(format!("{name}: begins without saying what the crate is"));
        }
        if text.contains(concat!("#[", "ignore")) {
            wrong.push(format!("{name}: tests are not ignored; print SKIP with the reason"));
        }
    }
    for (number, line) in text.lines().enumerate() {
        if line.ends_with([' ', '\t']) && !name.ends_with(".md") && name != "LICENSE" {
            wrong.push(format!("{name}:{}: white space at the end of the line", number + 1));
        }
    }
}

/// Every crate has its paragraph on the architecture page.
fn rooms(root: &Path, wrong: &mut Vec<String>) -> Result<()> {
    let page = fs::read_to_string(root.join("crates/README.md")).context("read crates/README.md")?;
    for entry in fs::read_dir(root.join("crates"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !page.contains(&format!("`{name}`")) {
            wrong.push(format!("crates/README.md: says nothing of `{name}`"));
        }
    }
    Ok(())
}
