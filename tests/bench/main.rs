//! Benchmarks of the daemon beside Debian's containerd: `cargo xtask bench NAME [OPTION VALUE]...`.

mod account;
mod density;
mod driver;
mod options;
#[path = "../plain.rs"]
mod plain;
mod process;
mod restart;
mod soak;
mod stdio;
mod tasks;

use anyhow::{Result, bail};

use options::Options;

// A thread of its own closes connections as soon as they are dropped.
#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> Result<()> {
    // `cargo bench` adds a flag of its own.
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    // Without a name there is nothing to measure; `cargo bench` of the whole workspace comes here.
    let Some(name) = words.next() else { return Ok(()) };
    let options = Options::parse(words)?;
    match name.as_str() {
        "tasks" => tasks::tasks(&options).await,
        "density" => density::density(&options).await,
        "restart" => restart::restart(&options).await,
        "stdio" => stdio::stdio(&options).await,
        "soak" => soak::soak(&options).await,
        other => bail!("no benchmark {other:?}"),
    }
}
