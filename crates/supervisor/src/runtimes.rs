//! Which shim a runtime name means.
//!
//! **Invariant:** what [`resolve`] returns is our own shim; everything else is an error that says what was found.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::{Config, Error};

/// The names that mean our shim unless the configuration says otherwise.
const OWN_NAMES: [&str; 2] = ["io.containerd.gantry.v2", "io.containerd.runc.v2"];

/// The shim that `runtime` means, an absolute path.
pub(crate) fn resolve(config: &Config, search_path: Option<&OsStr>, runtime: &str) -> Result<PathBuf, Error> {
    if let Some(path) = config.runtimes.get(runtime) {
        return own(config, runtime, installed(runtime, path.clone())?);
    }
    if OWN_NAMES.contains(&runtime) {
        return installed(runtime, config.shim.clone());
    }
    if Path::new(runtime).is_absolute() {
        return own(config, runtime, installed(runtime, PathBuf::from(runtime))?);
    }
    let binary = binary_name(runtime)?;
    let beside = config.shim.parent().map(Path::to_path_buf);
    let found = search_path
        .into_iter()
        .flat_map(std::env::split_paths)
        .chain(beside)
        .map(|directory| directory.join(&binary))
        .find(|path| executable(path))
        .ok_or_else(|| Error::RuntimeMissing { runtime: runtime.to_owned(), binary })?;
    own(config, runtime, found)
}

/// `io.containerd.runc.v2` becomes `containerd-shim-runc-v2`.
fn binary_name(runtime: &str) -> Result<String, Error> {
    let refuse = || Error::RuntimeName(runtime.chars().take(128).collect());
    if runtime.contains('/') {
        return Err(refuse());
    }
    let mut components = runtime.rsplit('.');
    match (components.next(), components.next()) {
        (Some(version), Some(name)) if !runtime.starts_with('.') && !name.is_empty() && !version.is_empty() => {
            Ok(format!("containerd-shim-{name}-{version}"))
        }
        _ => Err(refuse()),
    }
}

fn executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn installed(runtime: &str, path: PathBuf) -> Result<PathBuf, Error> {
    if executable(&path) {
        Ok(path)
    } else {
        Err(Error::RuntimeMissing { runtime: runtime.to_owned(), binary: path.display().to_string() })
    }
}

/// Refuses what is not our shim under another name or link.
fn own(config: &Config, runtime: &str, path: PathBuf) -> Result<PathBuf, Error> {
    let same = match (path.canonicalize(), config.shim.canonicalize()) {
        (Ok(found), Ok(ours)) => found == ours,
        _ => false,
    };
    if same { Ok(path) } else { Err(Error::RuntimeForeign { runtime: runtime.to_owned(), path }) }
}

#[cfg(test)]
mod tests {
    use model::render;

    use super::*;

    fn program(directory: &Path, name: &str) -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn names() {
        let bin = tempfile::tempdir().unwrap();
        let shim = program(bin.path(), "containerd-shim-gantry-v2");
        let foreign = program(bin.path(), "containerd-shim-wasm-v1");
        let mut config = Config::new("/s".into(), "/r".into(), shim.clone(), "/a".into());
        config.runtimes.insert("io.containerd.mine.v1".into(), shim.clone());
        let shim = shim.display().to_string();
        let missing = "failed to start shim: failed to resolve runtime path: runtime \"io.containerd.foo.v1\" binary not installed \"containerd-shim-foo-v1\": file does not exist";
        let foreign_text = format!(
            "runtime \"io.containerd.wasm.v1\" is {}, a foreign shim, which gantryd cannot drive; use io.containerd.gantry.v2 or io.containerd.runc.v2: not implemented",
            foreign.display()
        );
        for (runtime, want) in [
            ("io.containerd.gantry.v2", Ok(shim.as_str())),
            ("io.containerd.runc.v2", Ok(shim.as_str())),
            ("io.containerd.mine.v1", Ok(shim.as_str())),
            (shim.as_str(), Ok(shim.as_str())),
            ("io.containerd.foo.v1", Err(missing)),
            ("io.containerd.wasm.v1", Err(foreign_text.as_str())),
            ("a/b", Err("invalid runtime name a/b")),
            ("nodots", Err("invalid runtime name nodots")),
            (".v2", Err("invalid runtime name .v2")),
            ("", Err("invalid runtime name ,")),
        ] {
            match (resolve(&config, None, runtime), want) {
                (Ok(path), Ok(want)) => assert_eq!(path, Path::new(want), "{runtime}"),
                (Err(error), Err(want)) => assert!(render(&error).contains(want), "{runtime}: {}", render(&error)),
                (got, want) => panic!("{runtime}: {got:?}, want {want:?}"),
            }
        }
    }
}
