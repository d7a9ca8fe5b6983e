//! Which shim a runtime name means.
//!
//! The rules are containerd's, except that nothing is looked for in the daemon's working directory.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::{Config, Error};

/// The names that mean our shim unless the configuration says otherwise.
const OWN_NAMES: [&str; 2] = ["io.containerd.gantry.v2", "io.containerd.runc.v2"];

/// A shim to execute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// Absolute.
    pub(crate) path: PathBuf,
    /// It is the one that was installed with this daemon, whatever name or link led to it.
    pub(crate) own: bool,
}

/// The shim that `runtime` means.
pub(crate) fn resolve(config: &Config, search_path: Option<&OsStr>, runtime: &str) -> Result<Program, Error> {
    if let Some(path) = config.runtimes.get(runtime) {
        return installed(config, runtime, path);
    }
    if OWN_NAMES.contains(&runtime) {
        return installed(config, runtime, config.shim.clone());
    }
    if Path::new(runtime).is_absolute() {
        return installed(config, runtime, PathBuf::from(runtime));
    }
    let binary = binary_name(runtime)?;
    let beside = config.shim.parent().map(Path::to_path_buf);
    let found = search_path
        .into_iter()
        .flat_map(std::env::split_paths)
        .chain(beside)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(&binary))
        .find(|path| executable(path))
        .ok_or_else(|| Error::RuntimeMissing { runtime: runtime.to_owned(), binary })?;
    Ok(Program { own: is_own(config, &found), path: found })
}

/// Whether a path leads to our own shim.
pub(crate) fn is_own(config: &Config, path: &Path) -> bool {
    path == config.shim
        || matches!((path.canonicalize(), config.shim.canonicalize()), (Ok(found), Ok(ours)) if found == ours)
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

fn installed(config: &Config, runtime: &str, path: PathBuf) -> Result<Program, Error> {
    if executable(&path) {
        Ok(Program { own: is_own(config, &path), path })
    } else {
        Err(Error::RuntimeMissing { runtime: runtime.to_owned(), binary: path.display().to_string() })
    }
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
        let link = bin.path().join("containerd-shim-link-v1");
        std::os::unix::fs::symlink(&shim, &link).unwrap();
        let config = Config::new("/s".into(), "/r".into(), shim.clone(), "/a".into());
        config.runtimes.replace(
            [("io.containerd.mine.v1".into(), shim.clone()), ("io.containerd.other.v1".into(), foreign.clone())].into(),
        );
        let missing = "failed to start shim: failed to resolve runtime path: runtime \"io.containerd.foo.v1\" binary not installed \"containerd-shim-foo-v1\": file does not exist";
        for (runtime, want) in [
            ("io.containerd.gantry.v2", Ok((&shim, true))),
            ("io.containerd.runc.v2", Ok((&shim, true))),
            ("io.containerd.mine.v1", Ok((&shim, true))),
            ("io.containerd.other.v1", Ok((&foreign, false))),
            ("io.containerd.link.v1", Ok((&link, true))),
            ("io.containerd.wasm.v1", Ok((&foreign, false))),
            (shim.to_str().unwrap(), Ok((&shim, true))),
            (foreign.to_str().unwrap(), Ok((&foreign, false))),
            ("/nonexistent/shim", Err("binary not installed \"/nonexistent/shim\"")),
            ("io.containerd.foo.v1", Err(missing)),
            ("a/b", Err("invalid runtime name a/b")),
            ("nodots", Err("invalid runtime name nodots")),
            (".v2", Err("invalid runtime name .v2")),
            ("", Err("invalid runtime name ,")),
        ] {
            match (resolve(&config, Some(OsStr::new("relative:")), runtime), want) {
                (Ok(program), Ok((path, own))) => assert_eq!((&program.path, program.own), (path, own), "{runtime}"),
                (Err(error), Err(want)) => assert!(render(&error).contains(want), "{runtime}: {}", render(&error)),
                (got, want) => panic!("{runtime}: {got:?}, want {want:?}"),
            }
        }
    }
}
