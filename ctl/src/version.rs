use anyhow::Result;
use client::Client;

/// What `--version` prints: the version and how the program was built.
pub(crate) const LONG: &str = env!("CARGO_PKG_VERSION");

/// Prints both versions, so that a mismatch is seen.
pub(crate) async fn version(client: &Client) -> Result<()> {
    println!("gantryctl  {LONG} ({})", model::BUILD);
    let reply = client.version().version(()).await?.into_inner();
    println!("daemon     {} {}", reply.version, reply.revision);
    Ok(())
}
