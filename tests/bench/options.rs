//! The words behind the name of a benchmark.

use anyhow::{Context as _, Result, bail};

/// What to measure. Each benchmark has its own defaults.
#[derive(Debug, Default)]
pub struct Options {
    /// Rounds, or containers.
    pub count: Option<usize>,
    /// Runtime binaries under Debian's containerd: the daemon's default, and others by name or path.
    pub binaries: Vec<String>,
    /// Further daemons: name and socket.
    pub peers: Vec<(String, String)>,
    /// No daemon but ours and those of `peers`.
    pub alone: bool,
}

impl Options {
    /// `--count N`, `--binary NAME`, `--peer NAME=SOCKET`, `--alone yes`.
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self::default();
        while let Some(word) = words.next() {
            let value = words.next().with_context(|| format!("{word} needs a value"))?;
            match word.as_str() {
                "--count" => options.count = Some(value.parse().context("--count takes a number")?),
                "--binary" => options.binaries.push(value),
                "--peer" => {
                    let (name, socket) = value.split_once('=').context("--peer takes NAME=SOCKET")?;
                    options.peers.push((name.to_owned(), socket.to_owned()));
                }
                "--alone" => options.alone = value == "yes",
                _ => bail!("unknown option {word}"),
            }
        }
        Ok(options)
    }
}
