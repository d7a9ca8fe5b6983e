//! The configuration: containerd's file format as far as it means something here, with our own keys beside it.
//!
//! ```text
//! file and its imports ─► migrate: version 4 ─► merge ─► Config ◄─ flags
//! ```
//!
//! **Invariant:** an unknown key is a warning, never an error, so that a file written for containerd starts gantryd; a
//! known key of the wrong type is an error, because ignoring it would do something else than was asked for.

mod import;
mod migrate;
mod names;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use crate::cli::Arguments;

/// The plugins whose sections mean something here, without the common prefix.
const OWN_PLUGINS: [&str; 3] = ["server.v1.grpc", "server.v1.ttrpc", "server.v1.debug"];

/// A socket's path may have this many bytes (`sockaddr_un` takes 107; ".ttrpc" must fit into a shim's as well).
const ADDRESS_MAX_BYTES: usize = 104;

/// Everything that can be configured, with its defaults.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) root: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) oom_score: i32,
    pub(crate) grpc: Grpc,
    pub(crate) ttrpc: Ttrpc,
    pub(crate) debug: Debug,
    pub(crate) cgroup: Cgroup,
    /// Names of runtimes and the shim that each means, besides our own.
    pub(crate) runtimes: BTreeMap<String, PathBuf>,
    /// What a file says to containerd alone; it is written again with the rest.
    pub(crate) foreign: toml::Table,
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
            foreign: toml::Table::new(),
        }
    }

    /// The defaults of this program, under the name it was called by.
    pub(crate) fn defaults() -> Self {
        Self::named(&program())
    }

    /// The configuration as a file of the newest version.
    pub(crate) fn to_toml(&self) -> anyhow::Result<String> {
        let mut table = self.foreign.clone();
        let mut put = |name: &str, value: toml::Value| drop(table.insert(name.to_owned(), value));
        put("root", toml::Value::try_from(&self.root)?);
        put("state", toml::Value::try_from(&self.state)?);
        put("oom_score", i64::from(self.oom_score).into());
        put("debug", toml::Value::try_from(&self.debug)?);
        put("cgroup", toml::Value::try_from(&self.cgroup)?);
        put("runtimes", toml::Value::try_from(&self.runtimes)?);
        let plugins = table.entry("plugins").or_insert_with(|| toml::Table::new().into());
        if let Some(plugins) = plugins.as_table_mut() {
            plugins.insert(plugin("server.v1.grpc"), toml::Value::try_from(&self.grpc)?);
            plugins.insert(plugin("server.v1.ttrpc"), toml::Value::try_from(&self.ttrpc)?);
        }
        Ok(format!("version = {}\n{}", migrate::VERSION, toml::to_string(&table)?))
    }

    /// What differs in another configuration and needs a restart to change.
    pub(crate) fn fixed_differences(&self, other: &Self) -> Vec<&'static str> {
        let differ = [
            ("root", self.root != other.root),
            ("state", self.state != other.state),
            ("oom_score", self.oom_score != other.oom_score),
            ("the grpc server", self.grpc != other.grpc),
            ("the ttrpc server", self.ttrpc != other.ttrpc),
            ("cgroup", self.cgroup != other.cgroup),
        ];
        differ.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
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

/// A file of version 4 as it is written: nothing is needed. The rest is collected and warned about.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    root: Option<PathBuf>,
    state: Option<PathBuf>,
    oom_score: Option<i32>,
    debug: DebugFile,
    cgroup: CgroupFile,
    runtimes: BTreeMap<String, PathBuf>,
    plugins: toml::Table,
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
struct CgroupFile {
    path: Option<String>,
    #[serde(flatten)]
    unknown: toml::Table,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DebugFile {
    level: Option<String>,
    format: Option<String>,
    #[serde(rename = "log_trace_id")]
    _log_trace_id: Option<bool>,
    #[serde(flatten)]
    unknown: toml::Table,
}

/// What is strange about a file.
#[derive(Debug, Default)]
struct Strange {
    warnings: Vec<String>,
    /// What is containerd's and means nothing here.
    foreign: Vec<String>,
}

impl Strange {
    fn unknown(&mut self, section: &str, table: toml::Table, known: &[&str]) {
        for key in table.into_iter().map(|(key, _)| key.chars().take(128).collect::<String>()) {
            let near = names::nearest(&key, known).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            self.warnings.push(format!("configuration: {section}{key} means nothing here{near}"));
        }
    }

    fn warnings(mut self) -> Vec<String> {
        if !self.foreign.is_empty() {
            let names = self.foreign.join(", ");
            self.warnings.push(format!("configuration: these sections mean something to containerd alone: {names}"));
        }
        self.warnings
    }
}

impl File {
    fn apply(mut self, config: &mut Config) -> anyhow::Result<Vec<String>> {
        let mut strange = Strange::default();
        let grpc = self.server("server.v1.grpc")?;
        let ttrpc = self.server("server.v1.ttrpc")?;
        // Of a profiling socket, which we do not have; dockerd writes it.
        drop(self.plugins.remove(&plugin("server.v1.debug")));
        set(&mut config.root, self.root);
        set(&mut config.state, self.state);
        set(&mut config.oom_score, self.oom_score);
        set(&mut config.debug.level, self.debug.level.filter(|level| !level.is_empty()));
        set(&mut config.debug.format, self.debug.format.filter(|format| !format.is_empty()));
        set(&mut config.cgroup.path, self.cgroup.path);
        config.runtimes.extend(self.runtimes);
        apply_servers(config, grpc, ttrpc, &mut strange);
        strange.unknown("cgroup.", self.cgroup.unknown, &["path"]);
        strange.unknown("debug.", self.debug.unknown, &["level", "format", "address", "uid", "gid"]);

        let (foreign, unknown): (toml::Table, toml::Table) =
            self.unknown.into_iter().partition(|(key, _)| names::TOP.contains(&key.as_str()));
        strange.foreign.extend(foreign.keys().cloned());
        let known =
            ["version", "root", "state", "oom_score", "grpc", "ttrpc", "debug", "cgroup", "plugins", "runtimes"];
        strange.unknown("", unknown, &[&known[..], &names::TOP, &["imports", "metrics"]].concat());
        for name in self.plugins.keys() {
            if names::is_plugin(name) {
                strange.foreign.push(name.clone());
                continue;
            }
            let near = names::nearest_plugin(name, &OWN_PLUGINS);
            let near = near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
            let name: String = name.chars().take(128).collect();
            strange.warnings.push(format!("configuration: plugins.{name:?} means nothing here{near}"));
        }
        config.foreign = foreign;
        if !self.plugins.is_empty() {
            config.foreign.insert("plugins".to_owned(), self.plugins.into());
        }
        Ok(strange.warnings())
    }

    fn server(&mut self, id: &str) -> anyhow::Result<Server> {
        let Some(value) = self.plugins.remove(&plugin(id)) else { return Ok(Server::default()) };
        value.try_into().with_context(|| format!("plugins.{:?}", plugin(id)))
    }
}

fn apply_servers(config: &mut Config, grpc: Server, ttrpc: Server, strange: &mut Strange) {
    const KEYS: [&str; 5] = ["address", "uid", "gid", "max_recv_message_size", "max_send_message_size"];
    let Server { address, uid, gid, max_recv_message_size, max_send_message_size, unknown } = grpc;
    set(&mut config.grpc.uid, uid);
    set(&mut config.grpc.gid, gid);
    set(&mut config.grpc.max_recv_message_size, max_recv_message_size.filter(|bytes| *bytes > 0));
    set(&mut config.grpc.max_send_message_size, max_send_message_size.filter(|bytes| *bytes > 0));
    if let Some(address) = address.filter(|address| !address.is_empty()) {
        set_address(config, &address);
    }
    strange.unknown("grpc.", unknown, &KEYS);
    let Server { address, uid, gid, unknown, .. } = ttrpc;
    if let Some(address) = address.filter(|address| !address.is_empty()) {
        config.ttrpc.address = address;
    }
    (config.ttrpc.uid, config.ttrpc.gid) = (uid.unwrap_or(config.grpc.uid), gid.unwrap_or(config.grpc.gid));
    strange.unknown("ttrpc.", unknown, &KEYS);
}

fn plugin(id: &str) -> String {
    format!("{}{id}", names::PREFIX)
}

/// The name that this program was called by.
fn program() -> String {
    let program = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    program.file_name().and_then(|name| name.to_str()).unwrap_or("gantryd").to_owned()
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
    let program = program();
    let mut config = Config::named(&program);
    let mut warnings = Vec::new();
    let default_path = if program == "containerd" { "/etc/containerd/config.toml" } else { "/etc/gantry/config.toml" };
    let path = arguments.config.clone().unwrap_or_else(|| default_path.into());
    if arguments.config.is_some() || path.exists() {
        let table = import::read(&path)?;
        let file: File = table.try_into().with_context(|| format!("read configuration {}", path.display()))?;
        warnings = file.apply(&mut config).with_context(|| format!("read configuration {}", path.display()))?;
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
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].ends_with("disabled_plugins, io.containerd.grpc.v1.cri"), "{warnings:?}");

        let flags = ["--root", "/r", "--state", "/s", "--address", "/s/a", "--log-level", "trace"];
        let config = load_text(docker, &flags).unwrap().config;
        assert_eq!((config.root, config.state), ("/r".into(), "/s".into()));
        assert_eq!((config.ttrpc.address.as_str(), config.debug.level.as_str()), ("/s/a.ttrpc", "trace"));
    }

    #[test]
    fn other_versions() {
        for text in ["", "version = 1", "version = 3\nimports = ['x*']", "nonsense = 1\n[more]\nof = 'it'"] {
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
    fn unknown_names() {
        let text = "rooot = '/x'\nnonsense = 1\n[grpc]\nadress = 'x'\n[plugins.'io.containerd.server.v1.grpcs']\n\
                    [plugins.'my.own']\n[debug]\nlevle = 'x'\n[cgroup]\nx = 1";
        let warnings = load_text(text, &[]).unwrap().warnings;
        for want in [
            "rooot means nothing here; did you mean root?",
            "nonsense means nothing here",
            "grpc.adress means nothing here; did you mean address?",
            "debug.levle means nothing here; did you mean level?",
            "did you mean \"io.containerd.server.v1.grpc\"?",
            "plugins.\"my.own\" means nothing here",
            "cgroup.x means nothing here",
        ] {
            assert!(warnings.iter().any(|warning| warning.ends_with(want)), "{want}: {warnings:?}");
        }
        assert_eq!(warnings.len(), 7);
    }

    #[test]
    fn what_needs_a_restart() {
        let (one, mut other) = (Config::default(), Config::default());
        other.debug.level = "warn".to_owned();
        other.runtimes.insert("x".to_owned(), "/y".into());
        assert!(one.fixed_differences(&other).is_empty());
        other.root = "/x".into();
        other.grpc.uid = 7;
        assert_eq!(one.fixed_differences(&other), ["root", "the grpc server"]);
    }

    #[test]
    fn what_is_printed_can_be_read() {
        let text = Config::default().to_toml().unwrap();
        assert!(text.starts_with("version = 4\n"));
        let Loaded { config, warnings } = load_text(&text, &[]).unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(Config::named("containerd").grpc.address, "/run/containerd/containerd.sock");

        // What only containerd understands is not lost on the way to the newest version.
        let old = "version = 2\ndisabled_plugins = ['io.a.b']\n[plugins.'io.containerd.internal.v1.restart']\ninterval = '1s'";
        let text = load_text(old, &[]).unwrap().config.to_toml().unwrap();
        let again = load_text(&text, &[]).unwrap().config.to_toml().unwrap();
        assert_eq!(text, again);
        assert!(
            text.contains("io.containerd.monitor.container.v1.restart") && text.contains("disabled_plugins"),
            "{text}"
        );
    }
}
