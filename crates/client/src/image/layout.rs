//! An OCI image layout in a tar becomes content: blobs first, then the labels by which one blob keeps another.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use api_grpc::services::content::{Info, InfoRequest, UpdateRequest, WriteAction, WriteContentRequest};
use api_grpc::types::Descriptor;
use model::Digest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::{Document, Link, document};
use crate::{Client, Error};

/// Bytes per message of a write.
const CHUNK_BYTES: usize = 1 << 20;

/// Uploads the blobs of the layout and gives the images its index names.
pub(super) async fn upload(client: &Client, path: &Path) -> Result<Vec<(String, Descriptor)>, Error> {
    let (sender, mut blobs) = mpsc::channel(4);
    let source = path.to_owned();
    let reader = tokio::task::spawn_blocking(move || read_layout(&source, &sender));
    while let Some(blob) = blobs.recv().await {
        write(client, blob).await?;
    }
    let index = reader.await.map_err(|error| layout(path, &error.to_string()))??;
    let mut images = Vec::new();
    for link in &index.manifests {
        keep(client, link, 0).await?;
        images.push((name(link, path)?, link.descriptor()));
    }
    if images.is_empty() {
        return Err(layout(path, "index.json names no image"));
    }
    Ok(images)
}

/// A blob on its way from the tar.
struct Blob {
    digest: Digest,
    size: u64,
    chunks: mpsc::Receiver<Vec<u8>>,
}

/// Reads the tar once: blobs go to `sender` chunk by chunk, the index is returned.
fn read_layout(path: &Path, sender: &mpsc::Sender<Blob>) -> Result<Document, Error> {
    let file = |source| Error::File { doing: "read", path: path.to_owned(), source };
    let mut tar = tar::Archive::new(BufReader::with_capacity(CHUNK_BYTES, File::open(path).map_err(file)?));
    let mut index = None;
    for entry in tar.entries().map_err(file)? {
        let mut entry = entry.map_err(file)?;
        let name: PathBuf = entry.path().map_err(file)?.components().filter(|c| c.as_os_str() != ".").collect();
        let name = name.to_string_lossy().into_owned();
        if name == "index.json" {
            let mut text = Vec::new();
            entry.by_ref().take(super::DOCUMENT_MAX_BYTES as u64).read_to_end(&mut text).map_err(file)?;
            index = Some(serde_json::from_slice(&text).map_err(|error| layout(path, &format!("index.json: {error}")))?);
            continue;
        }
        let Some((algorithm, hex)) = name.strip_prefix("blobs/").and_then(|rest| rest.split_once('/')) else {
            continue;
        };
        let Ok(digest) = format!("{algorithm}:{hex}").parse::<Digest>() else { continue };
        let (chunk_sender, chunks) = mpsc::channel(4);
        if sender.blocking_send(Blob { digest, size: entry.size(), chunks }).is_err() {
            break;
        }
        send_chunks(&mut entry, &chunk_sender).map_err(file)?;
    }
    index.ok_or_else(|| layout(path, "it has no index.json: is it an OCI image layout in a tar?"))
}

/// Reads an entry to its end; a receiver that needs no more of it stops the reading early.
fn send_chunks(entry: &mut impl Read, sender: &mpsc::Sender<Vec<u8>>) -> std::io::Result<()> {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        if entry.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut chunk)? == 0 || sender.blocking_send(chunk).is_err()
        {
            return Ok(());
        }
    }
}

/// Writes one blob; one that exists already is left as it is.
async fn write(client: &Client, mut blob: Blob) -> Result<(), Error> {
    let expected = blob.digest.to_string();
    let first = WriteContentRequest {
        action: WriteAction::Stat.into(),
        r#ref: format!("import-{expected}"),
        total: blob.size as i64,
        expected: expected.clone(),
        ..WriteContentRequest::default()
    };
    let (sender, requests) = mpsc::channel(4);
    let feed = async move {
        // The stream's own end tells of a daemon that no longer listens.
        let mut open = sender.send(first).await.is_ok();
        let mut offset = 0i64;
        while let (true, Some(data)) = (open, blob.chunks.recv().await) {
            let length = data.len() as i64;
            let write = WriteContentRequest {
                action: WriteAction::Write.into(),
                offset,
                data: data.into(),
                ..WriteContentRequest::default()
            };
            open = sender.send(write).await.is_ok();
            offset += length;
        }
        let commit = WriteContentRequest {
            action: WriteAction::Commit.into(),
            offset,
            total: offset,
            expected,
            ..WriteContentRequest::default()
        };
        let _ = sender.send(commit).await;
    };
    let receive = async {
        let mut replies = client.content().write(ReceiverStream::new(requests)).await?.into_inner();
        while replies.message().await?.is_some() {}
        Ok::<(), tonic::Status>(())
    };
    let outcome = tokio::select! {
        outcome = receive => outcome,
        () = async { feed.await; std::future::pending::<()>().await } => Ok(()),
    };
    match outcome {
        Err(status) if status.code() == Code::AlreadyExists => Ok(()),
        other => other.map_err(Error::from),
    }
}

/// Labels a document so that it keeps what it names, down to the leaves.
async fn keep(client: &Client, link: &Link, depth: usize) -> Result<(), Error> {
    if depth > 4 {
        return Err(super::bad_digest(&link.digest));
    }
    let (digest, _, document) = document(client, &link.digest).await?;
    let mut labels: BTreeMap<String, String> = BTreeMap::new();
    for (number, child) in document.manifests.iter().enumerate() {
        // A layout may hold fewer platforms than its index names.
        match Box::pin(keep(client, child, depth + 1)).await {
            Ok(()) => {
                labels.insert(format!("containerd.io/gc.ref.content.m.{number}"), child.digest.clone());
            }
            Err(Error::Status(status)) if status.code() == Code::NotFound => {}
            Err(other) => return Err(other),
        }
    }
    if let Some(config) = document.config["digest"].as_str() {
        labels.insert("containerd.io/gc.ref.content.config".into(), config.to_owned());
    }
    for (number, layer) in document.layers.iter().enumerate() {
        labels.insert(format!("containerd.io/gc.ref.content.l.{number}"), layer.digest.clone());
    }
    label(client, digest.as_str(), labels).await
}

/// Sets labels of a blob and leaves its others.
pub(super) async fn label(client: &Client, digest: &str, labels: BTreeMap<String, String>) -> Result<(), Error> {
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let info = Info { digest: digest.to_owned(), labels, ..Info::default() };
    let request = UpdateRequest { info: Some(info), update_mask: Some(prost_types::FieldMask { paths }) };
    client.content().update(request).await?;
    Ok(())
}

/// Sets one label of a blob unless it has that value already: most containers start from an image that is unpacked, and
/// reading costs no synchronous write.
pub(super) async fn ensure_label(client: &Client, digest: &str, key: &str, value: &str) -> Result<(), Error> {
    let request = InfoRequest { digest: digest.to_owned() };
    let info = client.content().info(request).await?.into_inner().info.unwrap_or_default();
    if info.labels.get(key).is_some_and(|known| known == value) {
        return Ok(());
    }
    label(client, digest, [(key.to_owned(), value.to_owned())].into_iter().collect()).await
}

/// The full name of an image: containerd's annotation, or image-spec's when it is a full name.
fn name(link: &Link, path: &Path) -> Result<String, Error> {
    let annotation = |key: &str| link.annotations.get(key).filter(|name| !name.is_empty());
    let short = annotation("org.opencontainers.image.ref.name").filter(|name| name.contains('/'));
    annotation("io.containerd.image.name").or(short).cloned().ok_or_else(|| {
        layout(path, "a manifest in index.json has no full name: want the annotation io.containerd.image.name")
    })
}

fn layout(path: &Path, reason: &str) -> Error {
    Error::Layout { path: path.to_owned(), reason: reason.to_owned() }
}
