//! `oci-hook`: a hook of a container that becomes another program, with what is known of the container in its arguments.
//!
//! A runtime runs `gantryd oci-hook -- PROGRAM ARGUMENT…` as a hook, with the container's state on standard input.
//! Arguments and environment are templates: `{{id}}`, `{{bundle}}`, `{{rootfs}}`, `{{pid}}`, `{{status}}` and
//! `{{annotation "KEY"}}`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use model::template::{self, Argument};
use serde::Deserialize;

/// State and specification are small; more than this is not read.
const DOCUMENT_MAX_BYTES: u64 = 16 << 20;

/// The state of a container, runtime-spec 1.3, "State".
#[derive(Debug, Default, Deserialize)]
struct State {
    id: String,
    #[serde(default)]
    status: String,
    /// Absent once the container has stopped.
    #[serde(default)]
    pid: i64,
    bundle: PathBuf,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// What is read of a specification.
#[derive(Debug, Deserialize)]
struct Specification {
    root: Option<Root>,
}

#[derive(Debug, Deserialize)]
struct Root {
    #[serde(default)]
    path: PathBuf,
}

/// What templates are rendered with.
#[derive(Debug)]
struct Container {
    state: State,
    rootfs: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum HookError {
    #[error(transparent)]
    Template(#[from] template::TemplateError),
    #[error("a template calls {0:?} with {1} arguments; there is no such function")]
    Function(String, usize),
}

/// Executes `command` in this process. Returns only on an error.
pub(crate) fn run(command: &[String]) -> anyhow::Result<()> {
    let state: State = document(std::io::stdin().lock()).context("read the container's state")?;
    let container = Container::read(state)?;
    let arguments = command.iter().map(|word| container.render(word)).collect::<Result<Vec<_>, _>>()?;
    let Some(program) = arguments.first().map(PathBuf::from) else { bail!("no program for the hook") };
    let environment = environment(&container)?;
    let replaced = sys::replace_process(&program, &arguments, &environment, &[]);
    match replaced.with_context(|| format!("execute {}", program.display()))? {}
}

/// The variables of this process, rendered. What is not text is passed on as it is.
fn environment(container: &Container) -> Result<Vec<OsString>, HookError> {
    let render = |(name, value): (OsString, OsString)| {
        let mut variable = name;
        variable.push("=");
        variable.push(value);
        match variable.into_string() {
            Ok(text) => Ok(container.render(&text)?.into()),
            Err(bytes) => Ok(bytes),
        }
    };
    std::env::vars_os().map(render).collect()
}

fn document<T: serde::de::DeserializeOwned>(reader: impl Read) -> anyhow::Result<T> {
    let mut bytes = Vec::new();
    reader.take(DOCUMENT_MAX_BYTES + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= DOCUMENT_MAX_BYTES, "it has more than {DOCUMENT_MAX_BYTES} bytes");
    Ok(serde_json::from_slice(&bytes)?)
}

impl Container {
    fn read(state: State) -> anyhow::Result<Self> {
        let path = state.bundle.join("config.json");
        let read = || document::<Specification>(File::open(&path)?);
        let specification = read().with_context(|| format!("read {}", path.display()))?;
        let root =
            specification.root.map(|root| root.path).with_context(|| format!("{} has no root", path.display()))?;
        let rootfs = absolute(&state.bundle, &root);
        Ok(Self { state, rootfs })
    }

    fn render(&self, text: &str) -> Result<String, HookError> {
        let state = &self.state;
        template::render(text, |name, arguments| match (name, arguments) {
            ("id", []) => Ok(state.id.clone()),
            ("bundle", []) => Ok(state.bundle.display().to_string()),
            ("rootfs", []) => Ok(self.rootfs.display().to_string()),
            ("pid", []) => Ok(state.pid.to_string()),
            ("status", []) => Ok(state.status.clone()),
            ("annotation", [Argument::Text(key)]) => Ok(state.annotations.get(key).cloned().unwrap_or_default()),
            _ => Err(HookError::Function(name.to_owned(), arguments.len())),
        })
    }
}

/// `join` takes an absolute path as it is.
fn absolute(bundle: &Path, root: &Path) -> PathBuf {
    bundle.join(root).components().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_templates_know() {
        let bundle = tempfile::tempdir().unwrap();
        let text = bundle.path().display().to_string();
        std::fs::write(bundle.path().join("config.json"), r#"{"root": {"path": "./rootfs"}, "more": 1}"#).unwrap();
        let json = format!(
            r#"{{"ociVersion":"1.3.0","id":"c","status":"creating","pid":7,"bundle":"{text}","annotations":{{"a.b":"{{{{id}}}}"}}}}"#
        );
        let container = Container::read(document(json.as_bytes()).unwrap()).unwrap();
        for (template, want) in [
            ("--pid={{pid}}", "--pid=7".to_owned()),
            ("{{id}} {{ status }}", "c creating".to_owned()),
            ("{{bundle}}", text.clone()),
            ("{{rootfs}}", format!("{text}/rootfs")),
            // Not rendered twice.
            ("{{annotation \"a.b\"}}", "{{id}}".to_owned()),
            ("{{annotation \"none\"}}.", ".".to_owned()),
        ] {
            assert_eq!(container.render(template).unwrap(), want, "{template}");
        }
        for template in ["{{nothing}}", "{{pid 1}}", "{{annotation}}", "{{annotation 1}}", "{{"] {
            assert!(container.render(template).is_err(), "{template}");
        }
    }

    #[test]
    fn documents_that_are_none() {
        for text in ["", "[]", r#"{"id": 1}"#, "null"] {
            assert!(document::<State>(text.as_bytes()).is_err(), "{text}");
        }
        let state = State { bundle: "/nonexistent".into(), ..State::default() };
        assert!(Container::read(state).is_err());
    }
}
