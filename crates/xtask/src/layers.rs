//! The order of the crates: each may use only lower layers, and each program is free of what it must not contain.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::cargo;

/// Layers from the bottom up. A crate that stands in none of them is an error: new crates get their place here.
const LAYERS: &[&[&str]] = &[
    &["model", "sys", "oci"],
    &["api-grpc", "api-shim", "store", "mount", "cgroups", "archive"],
    &["content", "snapshots", "mounts", "events", "runtime", "registry", "client"],
    &["metadata", "supervisor"],
    &["transfer", "restart"],
    &["services", "cri"],
    &["gantryd", "gantryctl", "shim"],
];

/// For tests and automation only; no other crate may use them.
const DEVELOPMENT: &[&str] = &["testkit", "xtask", "blackbox", "bench-runtime"];

/// Within a layer, these uses are meant: words are built from words, engines from one engine below.
const WITHIN: &[(&str, &str)] = &[("oci", "model"), ("sys", "model"), ("snapshots", "content")];

/// What a program's closure must not contain.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("gantryd", &["runtime", "api-shim"]),
    ("shim", &["tonic", "api-grpc", "store", "sled"]),
    ("gantryctl", &["services", "metadata", "supervisor", "runtime", "store", "sled"]),
];

pub(crate) fn layers() -> Result<()> {
    let output = cargo().args(["metadata", "--format-version", "1", "--locked"]).output().context("cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let uses = uses(&metadata)?;
    let members: BTreeSet<String> = members(&metadata);
    let mut wrong = Vec::new();
    for name in &members {
        check_member(name, &uses, &members, &mut wrong);
    }
    for (program, forbidden) in FORBIDDEN {
        let closure = closure(program, &uses);
        for name in *forbidden {
            if closure.contains(*name) {
                wrong.push(format!("{program} must not contain {name}"));
            }
        }
    }
    test_features(&metadata, &mut wrong);
    if !wrong.is_empty() {
        bail!("layers:\n  {}", wrong.join("\n  "));
    }
    println!("layers: {} crates in order", members.len());
    Ok(())
}

/// The features that let a defence be left out and a process die are asked for on the command line only, never by a crate.
fn test_features(metadata: &Value, wrong: &mut Vec<String>) {
    for node in metadata["resolve"]["nodes"].as_array().into_iter().flatten() {
        for name in ["undefended", "crash-points"] {
            if node["features"].as_array().into_iter().flatten().any(|feature| feature == name) {
                wrong.push(format!("{} has the feature `{name}` switched on", node["id"]));
            }
        }
    }
}

fn check_member(
    name: &str,
    uses: &BTreeMap<String, BTreeSet<String>>,
    members: &BTreeSet<String>,
    wrong: &mut Vec<String>,
) {
    if DEVELOPMENT.contains(&name) {
        return;
    }
    let Some(own) = layer(name) else {
        wrong.push(format!("{name} stands in no layer: give it its place in crates/xtask/src/layers.rs"));
        return;
    };
    for used in uses.get(name).into_iter().flatten().filter(|used| members.contains(*used)) {
        let below = layer(used).is_some_and(|other| other < own);
        if !below && !WITHIN.contains(&(name, used.as_str())) {
            wrong.push(format!("{name} (layer {own}) must not use {used}"));
        }
    }
}

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&name))
}

fn members(metadata: &Value) -> BTreeSet<String> {
    let ids: BTreeSet<&str> = strings(&metadata["workspace_members"]);
    packages(metadata).filter(|(id, _)| ids.contains(id)).map(|(_, name)| name.to_owned()).collect()
}

/// What each package needs to be built and run, without what only its tests need.
fn uses(metadata: &Value) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let names: BTreeMap<&str, &str> = packages(metadata).collect();
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().context("cargo metadata without a resolution")? {
        let name = names.get(node["id"].as_str().unwrap_or_default()).copied().unwrap_or_default();
        for dependency in node["deps"].as_array().into_iter().flatten() {
            let normal = dependency["dep_kinds"].as_array().into_iter().flatten().any(|kind| kind["kind"].is_null());
            if let (true, Some(used)) = (normal, names.get(dependency["pkg"].as_str().unwrap_or_default())) {
                uses.entry(name.to_owned()).or_default().insert((*used).to_owned());
            }
        }
    }
    Ok(uses)
}

fn closure(name: &str, uses: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut open = vec![name.to_owned()];
    while let Some(next) = open.pop() {
        for used in uses.get(&next).into_iter().flatten() {
            if seen.insert(used.clone()) {
                open.push(used.clone());
            }
        }
    }
    seen
}

fn packages(metadata: &Value) -> impl Iterator<Item = (&str, &str)> {
    metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|package| (package["id"].as_str().unwrap_or_default(), package["name"].as_str().unwrap_or_default()))
}

fn strings(value: &Value) -> BTreeSet<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}
