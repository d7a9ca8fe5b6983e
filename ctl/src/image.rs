use std::path::PathBuf;

use anyhow::Result;
use api_grpc::services::images::{DeleteImageRequest, ListImagesRequest};
use clap::Subcommand;
use client::Client;

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Import an OCI image layout in a tar, and unpack it so that containers start at once.
    Import {
        /// The tar, for instance from `skopeo copy … oci-archive:FILE`.
        file: PathBuf,
        /// Where the layers are unpacked to.
        #[arg(long, default_value = "overlayfs")]
        snapshotter: String,
    },
    /// List images.
    Ls {
        /// Print names only.
        #[arg(long, short)]
        quiet: bool,
    },
    /// Remove images by name. What no other image or container needs is collected afterwards.
    Rm {
        /// Full names, as `image ls` prints them.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

pub(crate) async fn image(client: &Client, command: Command) -> Result<()> {
    match command {
        Command::Import { file, snapshotter } => {
            for name in client::image::import(client, &file, &snapshotter).await? {
                println!("{name}");
            }
        }
        Command::Ls { quiet } => list(client, quiet).await?,
        Command::Rm { names } => {
            for name in names {
                let request = DeleteImageRequest { name: name.clone(), sync: true, ..DeleteImageRequest::default() };
                client.images().delete(request).await?;
                println!("{name}");
            }
        }
    }
    Ok(())
}

async fn list(client: &Client, quiet: bool) -> Result<()> {
    let images = client.images().list(ListImagesRequest::default()).await?.into_inner().images;
    if !quiet {
        println!("{:<50} {:<72} SIZE", "NAME", "DIGEST");
    }
    for image in images {
        let target = image.target.unwrap_or_default();
        if quiet {
            println!("{}", image.name);
        } else {
            println!("{:<50} {:<72} {}", image.name, target.digest, size(client, &target.digest).await?);
        }
    }
    Ok(())
}

/// Bytes of everything that the image's root document names, as stored.
async fn size(client: &Client, digest: &str) -> Result<String> {
    let total = client::image::stored_bytes(client, digest).await?;
    Ok(format!("{:.1} MiB", total as f64 / f64::from(1 << 20)))
}
