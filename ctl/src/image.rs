use std::path::{Path, PathBuf};

use anyhow::Result;
use api_grpc::services::images::{DeleteImageRequest, ListImagesRequest};
use api_grpc::services::leases::{CreateRequest, DeleteRequest};
use clap::Subcommand;
use client::Client;
use model::{Code, Coded as _};

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Import an archive, and unpack it so that containers start at once.
    Import {
        /// An OCI image layout in a tar, for instance from `skopeo copy … oci-archive:FILE`, or the output of `docker save`.
        file: PathBuf,
        /// Where the layers are unpacked to.
        #[arg(long, default_value = "overlayfs")]
        snapshotter: String,
    },
    /// Export images as an OCI image layout in a tar, which `docker load` reads as well.
    Export {
        /// The tar to be written.
        file: PathBuf,
        /// Full names, as `image ls` prints them.
        #[arg(required = true)]
        names: Vec<String>,
        /// Export what images have for other machines, too.
        #[arg(long)]
        all_platforms: bool,
    },
    /// Give an image one more name.
    Tag {
        /// A name that it has.
        name: String,
        /// The one it gets, whatever had that before.
        new: String,
    },
    /// Unpack an image that was imported elsewhere, so that containers start at once.
    Unpack {
        /// Its full name.
        name: String,
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
            for name in import(client, &file, &snapshotter).await? {
                println!("{name}");
            }
        }
        Command::Export { file, names, all_platforms } => {
            client::transfer::export(client, &names, &file, all_platforms).await?;
        }
        Command::Tag { name, new } => {
            client::transfer::tag(client, &name, &new).await?;
            println!("{new}");
        }
        Command::Unpack { name, snapshotter } => {
            println!("{}", unpack(client, &name, &snapshotter).await?);
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

/// By the transfer service; a daemon that does not have it gets the blobs one by one.
async fn import(client: &Client, file: &Path, snapshotter: &str) -> Result<Vec<String>> {
    match client::transfer::import(client, file, snapshotter).await {
        Err(error) if error.code() == Code::Unimplemented => {
            Ok(client::image::import(client, file, snapshotter).await?)
        }
        other => Ok(other?),
    }
}

/// Unpacks under a lease, which keeps each layer until the image refers to the last one. Gives the chain id of that.
async fn unpack(client: &Client, name: &str, snapshotter: &str) -> Result<String> {
    let created = client.leases().create(CreateRequest::default()).await?.into_inner();
    let lease = created.lease.unwrap_or_default().id;
    let unpacked = client::image::unpack(&client.with_lease(&lease)?, name, snapshotter).await;
    client.leases().delete(DeleteRequest { id: lease, sync: false }).await?;
    Ok(unpacked?.chain_id)
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
