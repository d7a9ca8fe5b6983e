//! Images as a client handles them: import an OCI layout, unpack layers into snapshots. The daemon's services do each
//! step; the order of the steps, the labels and the lease are the client's part, as in every containerd client.

mod layout;
mod unpack;

use std::path::Path;

use api_grpc::services::content::{InfoRequest, ReadContentRequest};
use api_grpc::services::images::{CreateImageRequest, Image, UpdateImageRequest};
use api_grpc::services::leases::{CreateRequest, DeleteRequest};
use api_grpc::types::Descriptor;
use model::Digest;
use serde::Deserialize;
use tonic::Code;

use crate::{Client, Error};

pub use unpack::{Unpacked, unpack};

/// A JSON document of an image is refused when it is larger than this, as containerd does.
const DOCUMENT_MAX_BYTES: i64 = 20 << 20;

/// The parts of an index, a manifest and a configuration that clients follow. Fields of other documents stay empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Document {
    /// Of an index.
    pub manifests: Vec<Link>,
    /// Of a manifest.
    pub config: serde_json::Value,
    /// Of a manifest, bottom layer first.
    pub layers: Vec<Link>,
    /// Of a configuration.
    pub rootfs: RootFs,
}

/// The layers as a configuration names them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RootFs {
    /// Digests of the uncompressed layers, bottom first.
    pub diff_ids: Vec<String>,
}

/// A descriptor inside a document.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Link {
    /// What the blob is.
    pub media_type: String,
    /// Its digest.
    pub digest: String,
    /// Its length in bytes.
    pub size: i64,
    /// Whom it is for, in an index.
    pub platform: Option<Platform>,
    /// Names and other remarks.
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// A platform in an index.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// Go's name of the processor architecture.
    pub architecture: String,
}

impl Link {
    fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: self.size,
            annotations: self.annotations.clone(),
        }
    }
}

/// Go's names of this machine's operating system and architecture.
fn platform() -> (&'static str, &'static str) {
    match std::env::consts::ARCH {
        "x86_64" => ("linux", "amd64"),
        "aarch64" => ("linux", "arm64"),
        other => ("linux", other),
    }
}

/// Imports every named image of the OCI layout in the tar at `path` and unpacks it with `snapshotter`; gives the names.
/// A lease keeps what is not yet referenced; it is removed at the end, also after an error.
pub async fn import(client: &Client, path: &Path, snapshotter: &str) -> Result<Vec<String>, Error> {
    let request = CreateRequest {
        id: String::new(),
        labels: [("containerd.io/gc.expire".to_owned(), expiry())].into_iter().collect(),
    };
    let lease = client.leases().create(request).await?.into_inner().lease.unwrap_or_default();
    let leased = client.with_lease(&lease.id)?;
    let outcome = import_leased(&leased, path, snapshotter).await;
    let removal = client.leases().delete(DeleteRequest { id: lease.id, sync: false }).await;
    let names = outcome?;
    removal?;
    Ok(names)
}

async fn import_leased(client: &Client, path: &Path, snapshotter: &str) -> Result<Vec<String>, Error> {
    let images = layout::upload(client, path).await?;
    let mut names = Vec::new();
    for (name, target) in images {
        put(client, &name, target).await?;
        unpack(client, &name, snapshotter).await?;
        names.push(name);
    }
    Ok(names)
}

/// Creates the image record, or points an existing one at the new target.
async fn put(client: &Client, name: &str, target: Descriptor) -> Result<(), Error> {
    let image = Image { name: name.to_owned(), target: Some(target), ..Image::default() };
    let create = CreateImageRequest { image: Some(image.clone()), source_date_epoch: None };
    match client.images().create(create).await {
        Err(status) if status.code() == Code::AlreadyExists => {
            let mask = prost_types::FieldMask { paths: vec!["target".into()] };
            client
                .images()
                .update(UpdateImageRequest { image: Some(image), update_mask: Some(mask), source_date_epoch: None })
                .await?;
            Ok(())
        }
        other => other.map(|_| ()).map_err(Error::from),
    }
}

/// Reads a whole document and decodes what clients follow.
async fn document(client: &Client, digest: &str) -> Result<(Digest, Vec<u8>, Document), Error> {
    let digest: Digest = digest.parse().map_err(|_| bad_digest(digest))?;
    let info =
        client.content().info(InfoRequest { digest: digest.to_string() }).await?.into_inner().info.unwrap_or_default();
    if info.size > DOCUMENT_MAX_BYTES {
        let refused = tonic::Status::invalid_argument(format!("document {digest} has {} bytes", info.size));
        return Err(refused.into());
    }
    let read = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
    let mut stream = client.content().read(read).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.message().await? {
        bytes.extend_from_slice(&chunk.data);
    }
    let document =
        serde_json::from_slice(&bytes).map_err(|source| Error::Document { digest: digest.clone(), source })?;
    Ok((digest, bytes, document))
}

/// The configuration of an image for this machine: its digest, and the document as it is.
pub async fn config(client: &Client, name: &str) -> Result<(Digest, serde_json::Value), Error> {
    let manifest = manifest(client, name).await?;
    let text = manifest.config["digest"].as_str().unwrap_or_default();
    let (digest, bytes, _) = document(client, text).await?;
    let value = serde_json::from_slice(&bytes).map_err(|source| Error::Document { digest: digest.clone(), source })?;
    Ok((digest, value))
}

/// The manifest of an image for this machine; an index is followed at most four levels down.
async fn manifest(client: &Client, name: &str) -> Result<Document, Error> {
    let get = api_grpc::services::images::GetImageRequest { name: name.to_owned() };
    let image = client.images().get(get).await?.into_inner().image.unwrap_or_default();
    let mut digest = image.target.unwrap_or_default().digest;
    let (os, architecture) = platform();
    for _ in 0..4 {
        let (_, _, document) = document(client, &digest).await?;
        if document.manifests.is_empty() {
            return Ok(document);
        }
        let fits = |link: &&Link| link.platform.as_ref().is_none_or(|p| p.os == os && p.architecture == architecture);
        match document.manifests.iter().find(fits) {
            Some(link) => digest.clone_from(&link.digest),
            None => break,
        }
    }
    Err(Error::Platform { name: name.to_owned(), platform: format!("{os}/{architecture}") })
}

/// Bytes stored for a document and everything it names, each blob once; what is not here counts nothing.
pub async fn stored_bytes(client: &Client, digest: &str) -> Result<u64, Error> {
    let mut seen = std::collections::BTreeSet::new();
    let mut open = vec![digest.to_owned()];
    let mut total = 0u64;
    while let Some(next) = open.pop() {
        if !seen.insert(next.clone()) {
            continue;
        }
        match client.content().info(InfoRequest { digest: next }).await {
            Ok(reply) => {
                let info = reply.into_inner().info.unwrap_or_default();
                total += u64::try_from(info.size).unwrap_or(0);
                let references =
                    info.labels.into_iter().filter(|(key, _)| key.starts_with("containerd.io/gc.ref.content"));
                open.extend(references.map(|(_, digest)| digest));
            }
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(status.into()),
        }
    }
    Ok(total)
}

fn bad_digest(text: &str) -> Error {
    tonic::Status::invalid_argument(format!("an image document names {text:?}, which is no digest")).into()
}

/// A day from now in RFC 3339, when an abandoned lease may go.
fn expiry() -> String {
    model::Timestamp { seconds: model::Timestamp::now().seconds + 24 * 3600, nanos: 0 }.to_string()
}
