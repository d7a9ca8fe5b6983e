//! Benchmarks of the daemon beside Debian's containerd: `cargo xtask bench NAME [NUMBER]`.

mod driver;
mod life;
mod shape;

use anyhow::{Result, bail};

// A thread of its own closes connections as soon as they are dropped.
#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> Result<()> {
    // `cargo bench` adds a flag of its own.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let number = words.get(1).map(|word| word.parse()).transpose()?;
    match words.first().map(String::as_str) {
        Some("life") => life::life(number.unwrap_or(60)).await,
        Some("shape") => shape::shape(number.unwrap_or(20)).await,
        // Without a name there is nothing to measure; `cargo bench` of the whole workspace comes here.
        None => Ok(()),
        Some(other) => bail!("no benchmark {other:?}"),
    }
}
