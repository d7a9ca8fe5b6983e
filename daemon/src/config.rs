//! The configuration: containerd's file format as far as it means something here, with our own keys beside it.
//!
//! **Invariant:** an unknown key is a warning, never an error, so that a file written for containerd starts gantryd; a
//! known key of the wrong type is an error, because ignoring it would do something else than was asked for.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::cli::Arguments;

/// The newest version of the file format that is understood; older ones are, too.
const VERSION_MAX: i64 = 4;

/// A socket's path may have this many bytes (`sockaddr_un` takes 107; ".ttrpc" must fit into a shim's as well).
const ADDRESS_MAX_BYTES: usize = 104;

/// Everything that can be configured, with its defaults.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Config {
    pub(crate) version: i64,
    pub(crate) root: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) oom_score: i32,
    pub(crate) grpc: Grpc,
    pub(crate) ttrpc: Ttrpc,
    pub(crate) debug: Debug,
    pub(crate) cgroup: Cgroup,
    /// Names of runtimes and the shim that each means, besides our own.
    pub(crate) runtimes: BTreeMap<String, PathBuf>,
}

/// The API's socket.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Grpc {
    pub(crate) address: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) max_recv_message_size: usize,
    pub(crate) max_send_message_size: usize,
}

/// The socket that shims report to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Ttrpc {
    pub(crate) address: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Debug {
    pub(crate) level: String,
    pub(crate) format: String,
}

/// Where the daemon itself goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Cgroup {
    /// Relative to the hierarchies; empty for where it was started.
    pub(crate) path: String,
}

/// A configuration and what was strange about its file.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    pub(crate) warnings: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self::named("gantryd")
    }
}

impl Config {
    /// The defaults of a program that is installed as `program`: under containerd's name, containerd's.
    fn named(program: &str) -> Self {
        let (root, state, socket) = match program {
            "containerd" => ("/var/lib/containerd", "/run/containerd", "containerd.sock"),
            _ => ("/var/lib/gantry", "/run/gantry", "gantryd.sock"),
        };
        let address = format!("{state}/{socket}");
        Self {
            version: 2,
            root: root.into(),
            state: state.into(),
            oom_score: 0,
            grpc: Grpc {
                address: address.clone(),
                uid: 0,
                gid: 0,
                max_recv_message_size: services::MESSAGE_MAX_BYTES,
                max_send_message_size: services::MESSAGE_MAX_BYTES,
            },
            ttrpc: Ttrpc { address: format!("{address}.ttrpc"), uid: 0, gid: 0 },
            debug: Debug { level: "info".to_owned(), format: "text".to_owned() },
            cgroup: Cgroup::default(),
            runtimes: BTreeMap::new(),
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        for (name, path) in [("root", &self.root), ("state", &self.state)] {
            ensure!(path.is_absolute(), "{name} must be an absolute path, not {path:?}");
        }
        ensure!(self.root != self.state, "root and state must be different directories, both are {:?}", self.root);
        for (name, address) in [("grpc.address", &self.grpc.address), ("ttrpc.address", &self.ttrpc.address)] {
            ensure!(Path::new(address).is_absolute(), "{name} must be an absolute path, not {address:?}");
            ensure!(
                address.len() <= ADDRESS_MAX_BYTES,
                "{name} {address:?} is {} bytes long; a socket's path may have {ADDRESS_MAX_BYTES}",
                address.len()
            );
        }
        for (name, path) in &self.runtimes {
            ensure!(path.is_absolute(), "runtimes.{name:?} must be the absolute path of a shim, not {path:?}");
        }
        Ok(())
    }
}

/// A file as it is written: nothing is needed. Keys that are containerd's but mean nothing here are named, so that they
/// are no surprise; the rest is collected and warned about.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    version: Option<i64>,
    root: Option<PathBuf>,
    state: Option<PathBuf>,
    oom_score: Option<i32>,
    grpc: Server,
    ttrpc: Server,
    debug: DebugFile,
    cgroup: CgroupFile,
    runtimes: BTreeMap<String, PathBuf>,
    plugins: BTreeMap<String, toml::Value>,
    #[serde(flatten)]
    unknown: toml::Table,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Server {
    address: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
    max_recv_message_size: Option<usize>,
    max_send_message_size: Option<usize>,
    #[serde(flatten)]
    unknown: toml::Table,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DebugFile {
    level: Option<String>,
    format: Option<String>,
    /// Of a profiling socket, which we do not have; dockerd writes it.
    #[serde(rename = "address")]
    _address: Option<String>,
    #[serde(rename = "uid")]
    _uid: Option<i64>,
    #[serde(rename = "gid")]
    _gid: Option<i64>,
    #[serde(flatten)]
    unknown: toml::Table,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CgroupFile {
    path: Option<String>,
    #[serde(flatten)]
    unknown: toml::Table,
}

impl File {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut file: Self = toml::from_str(text)?;
        let version = file.version.unwrap_or(1);
        if !(1..=VERSION_MAX).contains(&version) {
            bail!("version {version} is not supported; versions 1 to {VERSION_MAX} are");
        }
        // Version 4 moved the sockets into plugins.
        for (id, section) in [("grpc", &mut file.grpc), ("ttrpc", &mut file.ttrpc)] {
            let id = format!("io.containerd.server.v1.{id}");
            if let Some(value) = file.plugins.remove(&id) {
                *section = value.try_into().with_context(|| format!("plugins.{id:?}"))?;
            }
        }
        Ok(file)
    }

    fn apply(self, config: &mut Config) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut unknown = |section: &str, table: toml::Table| {
            warnings
                .extend(table.into_iter().map(|(key, _)| format!("configuration: {section}{key} means nothing here")));
        };
        set(&mut config.root, self.root);
        set(&mut config.state, self.state);
        set(&mut config.oom_score, self.oom_score);
        set(&mut config.debug.level, self.debug.level.filter(|level| !level.is_empty()));
        set(&mut config.debug.format, self.debug.format.filter(|format| !format.is_empty()));
        set(&mut config.cgroup.path, self.cgroup.path);
        config.runtimes.extend(self.runtimes);

        let Server { address, uid, gid, max_recv_message_size, max_send_message_size, unknown: rest } = self.grpc;
        set(&mut config.grpc.uid, uid);
        set(&mut config.grpc.gid, gid);
        set(&mut config.grpc.max_recv_message_size, max_recv_message_size.filter(|bytes| *bytes > 0));
        set(&mut config.grpc.max_send_message_size, max_send_message_size.filter(|bytes| *bytes > 0));
        if let Some(address) = address.filter(|address| !address.is_empty()) {
            set_address(config, &address);
        }
        unknown("grpc.", rest);

        let Server { address, uid, gid, unknown: rest, .. } = self.ttrpc;
        if let Some(address) = address.filter(|address| !address.is_empty()) {
            config.ttrpc.address = address;
        }
        (config.ttrpc.uid, config.ttrpc.gid) = (uid.unwrap_or(config.grpc.uid), gid.unwrap_or(config.grpc.gid));
        unknown("ttrpc.", rest);
        unknown("debug.", self.debug.unknown);
        unknown("cgroup.", self.cgroup.unknown);
        unknown("", self.unknown);
        warnings.extend(self.plugins.into_keys().map(|id| format!("configuration: plugins.{id:?} means nothing here")));
        warnings
    }
}

fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

/// The shims' socket stands beside the API's unless it is configured otherwise.
fn set_address(config: &mut Config, address: &str) {
    let unix = address.strip_prefix("unix://").unwrap_or(address);
    config.grpc.address = unix.to_owned();
    config.ttrpc.address = format!("{unix}.ttrpc");
}

/// Reads the file, puts the flags over it, and checks the result.
pub(crate) fn load(arguments: &Arguments) -> anyhow::Result<Loaded> {
    let program = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let program = program.file_name().and_then(|name| name.to_str()).unwrap_or("gantryd");
    let mut config = Config::named(program);
    let mut warnings = Vec::new();
    let default_path = if program == "containerd" { "/etc/containerd/config.toml" } else { "/etc/gantry/config.toml" };
    let path = arguments.config.clone().unwrap_or_else(|| default_path.into());
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let file = File::parse(&text).with_context(|| format!("read configuration {}", path.display()))?;
            warnings = file.apply(&mut config);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && arguments.config.is_none() => {}
        Err(error) => return Err(error).with_context(|| format!("read configuration {}", path.display())),
    }
    set(&mut config.root, arguments.root.clone());
    set(&mut config.state, arguments.state.clone());
    set(&mut config.debug.level, arguments.log_level.clone());
    if let Some(address) = &arguments.address {
        set_address(&mut config, address);
    }
    config.check()?;
    Ok(Loaded { config, warnings })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn load_text(text: &str, flags: &[&str]) -> anyhow::Result<Loaded> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        let words = ["gantryd", "--config", path.to_str().unwrap()];
        load(&Arguments::parse_from(words.iter().chain(flags)))
    }

    #[test]
    fn dockerd_and_suite_files() {
        let docker = r#"
            version = 2
            root = "/a"
            state = "/b"
            disabled_plugins = ["io.containerd.grpc.v1.cri"]
            oom_score = -500
            [grpc]
            address = "/b/containerd.sock"
            uid = 7
            gid = 8
            max_recv_message_size = 16777216
            max_send_message_size = 16777216
            [debug]
            address = "/b/debug.sock"
            level = "debug"
            [cgroup]
            path = "c"
            [plugins."io.containerd.grpc.v1.cri"]
            anything = [1, 2]
        "#;
        let Loaded { config, warnings } = load_text(docker, &[]).unwrap();
        assert_eq!((config.grpc.address.as_str(), config.grpc.uid, config.ttrpc.gid), ("/b/containerd.sock", 7, 8));
        assert_eq!(config.ttrpc.address, "/b/containerd.sock.ttrpc");
        assert_eq!((config.debug.level.as_str(), config.oom_score), ("debug", -500));
        assert_eq!(config.cgroup.path, "c");
        assert_eq!(warnings.len(), 2, "{warnings:?}");

        let flags = ["--root", "/r", "--state", "/s", "--address", "/s/a", "--log-level", "trace"];
        let config = load_text(docker, &flags).unwrap().config;
        assert_eq!((config.root, config.state), ("/r".into(), "/s".into()));
        assert_eq!((config.ttrpc.address.as_str(), config.debug.level.as_str()), ("/s/a.ttrpc", "trace"));
    }

    #[test]
    fn other_versions() {
        for text in ["", "version = 1", "version = 3\nimports = ['x']", "nonsense = 1\n[more]\nof = 'it'"] {
            assert!(load_text(text, &[]).is_ok(), "{text}");
        }
        let four = "version = 4\n[plugins.'io.containerd.server.v1.grpc']\naddress = '/x/y'\nuid = 3";
        let config = load_text(four, &[]).unwrap().config;
        assert_eq!((config.grpc.address.as_str(), config.grpc.uid), ("/x/y", 3));
    }

    #[test]
    fn refused_files() {
        let long = format!("[grpc]\naddress = '/{}'", "x".repeat(104));
        for (text, want) in [
            ("version = 5", "version 5 is not supported"),
            ("root = 7", "read configuration"),
            ("= broken", "read configuration"),
            ("root = '/a'\nstate = '/a'", "root and state must be different"),
            ("root = 'a'", "root must be an absolute path"),
            (long.as_str(), "a socket's path may have 104"),
            ("[runtimes]\nx = 'relative'", "must be the absolute path of a shim"),
        ] {
            let error = format!("{:#}", load_text(text, &[]).unwrap_err());
            assert!(error.contains(want), "{text}: {error}");
        }
        let arguments = Arguments::parse_from(["gantryd", "--config", "/nonexistent/config.toml"]);
        assert!(load(&arguments).is_err());
    }

    #[test]
    fn what_is_printed_can_be_read() {
        let text = toml::to_string(&Config::default()).unwrap();
        let Loaded { config, warnings } = load_text(&text, &[]).unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(Config::named("containerd").grpc.address, "/run/containerd/containerd.sock");
    }
}
