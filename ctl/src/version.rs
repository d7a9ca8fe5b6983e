use anyhow::Result;
use client::Client;

/// Prints both versions, so that a mismatch is seen.
pub(crate) async fn version(client: &Client) -> Result<()> {
    println!("gantryctl  {}", model::BUILD);
    let reply = client.version().version(()).await?.into_inner();
    println!("daemon     {} {}", reply.version, reply.revision);
    Ok(())
}
