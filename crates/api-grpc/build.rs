//! Compiles `proto/` without `protoc`: protox reads the files, prost and tonic generate Rust.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    collect(&root, &mut files)?;
    files.sort();

    let descriptors = protox::compile(&files, [&root])?;
    let mut config = tonic_prost_build::Config::new();
    // Full names are the type URLs of the event stream.
    config.enable_type_names();
    tonic_prost_build::configure()
        // Maps in key order make replies deterministic, and are the label maps of `model` as they are.
        .btree_map(".")
        // Blob data is not copied between the wire and the store.
        .bytes(".containerd.services.content.v1")
        .bytes(".containerd.types.transfer")
        // Clients bring their own channel; the server side does not need one.
        .build_transport(false)
        .include_file("api.rs")
        .emit_rerun_if_changed(false)
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}

/// Appends every `.proto` file below `directory`.
fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
