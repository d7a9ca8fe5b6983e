//! What a daemon and `<shim> start` tell each other.
//!
//! | shims | want on standard input | reply |
//! |---|---|---|
//! | before containerd 2.3 | nothing, or the runtime options as a bare `Any` | address as plain text, or JSON |
//! | since | `BootstrapParams` | `BootstrapResult`, or JSON |
//!
//! Neither can be asked what it wants, and each fails on the other's input before it has started anything, so what a
//! program took is remembered for as long as its file stays the same.
//!
//! **Invariant:** a reply is data of a stranger: it is parsed within limits, and what it asks for beyond our means is
//! refused by name.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use api_grpc::containerd::runtime::bootstrap::v1::{BootstrapParams, BootstrapResult, Extension};
use model::Any;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::{Config, Error};

/// The newest version of the task service that we speak.
const VERSION_MAX: i64 = 3;

/// How `start` is told what it has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `BootstrapParams`.
    Params,
    /// The runtime options alone.
    Options,
}

/// Which dialect each program took.
#[derive(Debug, Default)]
pub(crate) struct Dialects(Mutex<HashMap<(PathBuf, u64, u64, i64), Dialect>>);

impl Dialects {
    /// The dialects to try with a program, the likelier first: one if it is known.
    pub(crate) fn of(&self, program: &Path) -> Vec<Dialect> {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        if ["shim-runc-v1", "shim-runhcs-v1"].iter().any(|old| name.contains(old)) {
            return vec![Dialect::Options];
        }
        let known = key(program).and_then(|key| self.lock().get(&key).copied());
        known.map_or_else(|| vec![Dialect::Params, Dialect::Options], |known| vec![known])
    }

    /// A program has started a shim.
    pub(crate) fn learn(&self, program: &Path, dialect: Dialect) {
        if let Some(key) = key(program) {
            self.lock().insert(key, dialect);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(PathBuf, u64, u64, i64), Dialect>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A program's file, as long as nobody replaces it.
fn key(program: &Path) -> Option<(PathBuf, u64, u64, i64)> {
    let metadata = program.metadata().ok()?;
    Some((program.to_owned(), metadata.ino(), metadata.size(), metadata.mtime()))
}

/// Standard input of `start`.
pub(crate) fn input(
    dialect: Dialect,
    config: &Config,
    namespace: &str,
    id: &str,
    binary: &str,
    options: Option<&Any>,
) -> Vec<u8> {
    let options = options.cloned().map(api_grpc::encode::any);
    match dialect {
        Dialect::Options => options.map(|options| options.encode_to_vec()).unwrap_or_default(),
        Dialect::Params => BootstrapParams {
            instance_id: id.to_owned(),
            namespace: namespace.to_owned(),
            log_level: if config.debug { -4 } else { 0 },
            containerd_version: model::BUILD.to_owned(),
            containerd_ttrpc_address: config.ttrpc_address.clone(),
            containerd_grpc_address: config.grpc_address.clone(),
            containerd_binary: binary.to_owned(),
            extensions: options.into_iter().map(|options| Extension { value: Some(options) }).collect(),
            socket_dir: None,
        }
        .encode_to_vec(),
    }
}

/// Where a shim serves, as `bootstrap.json` keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bootstrap {
    /// Version of the task service: 2 or 3.
    pub(crate) version: i64,
    pub(crate) address: String,
    pub(crate) protocol: String,
    /// Ours: the shim writes no records, so the daemon does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) kept_by_daemon: bool,
}

impl Bootstrap {
    /// Reads what `start` printed.
    pub(crate) fn parse(program: &Path, reply: &[u8]) -> Result<Self, Error> {
        let text = || String::from_utf8_lossy(reply).trim().chars().take(1024).collect::<String>();
        let bootstrap = if let Some(result) = protobuf(reply) {
            result
        } else if let Ok(json) = serde_json::from_slice::<Self>(reply) {
            json
        } else {
            Self { version: 2, address: text(), protocol: "ttrpc".to_owned(), kept_by_daemon: false }
        };
        let refuse = |problem| Error::ShimReply { program: program.to_owned(), problem, reply: text() };
        if bootstrap.address.is_empty() || bootstrap.address.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(refuse("it is no address"));
        }
        if !(2..=VERSION_MAX).contains(&bootstrap.version) {
            return Err(refuse("versions 2 and 3 of the task service are supported"));
        }
        if bootstrap.protocol != "ttrpc" {
            return Err(refuse("only the protocol ttrpc is supported"));
        }
        bootstrap.endpoint().ok_or_else(|| refuse("only unix sockets are supported")).map(|_| bootstrap)
    }

    /// Reads the one that was kept in a bundle.
    pub(crate) fn read(bundle: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(bundle.join(FILE)).ok()?).ok()
    }

    /// The socket; `None` for another kind of address.
    pub(crate) fn endpoint(&self) -> Option<Endpoint> {
        match self.address.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Some(Endpoint::Path(PathBuf::from(path))),
            Some(_) => None,
            // Shims before 1.4 listened on abstract sockets.
            None if self.address.len() < 107 => Some(Endpoint::Abstract(self.address.clone())),
            None => None,
        }
    }
}

/// Name of the file in the bundle that keeps a [`Bootstrap`].
pub(crate) const FILE: &str = "bootstrap.json";

/// A unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Path(PathBuf),
    /// Without its leading NUL.
    Abstract(String),
}

impl Endpoint {
    /// For messages.
    pub(crate) fn name(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Abstract(name) => PathBuf::from(format!("@{name}")),
        }
    }
}

/// Any bytes may pass for a message; this one has all of its three fields.
fn protobuf(reply: &[u8]) -> Option<Bootstrap> {
    let result = BootstrapResult::decode(reply).ok()?;
    let complete = result.version >= 2 && !result.address.is_empty() && !result.protocol.is_empty();
    complete.then(|| Bootstrap {
        version: i64::from(result.version),
        address: result.address,
        protocol: result.protocol,
        kept_by_daemon: false,
    })
}

#[cfg(test)]
mod tests {
    use model::{Code, Coded as _, render};

    use super::*;

    #[test]
    fn replies() {
        let bootstrap = |version, address: &str| {
            Ok(Bootstrap { version, address: address.to_owned(), protocol: "ttrpc".to_owned(), kept_by_daemon: false })
        };
        let message = |version, protocol: &str| {
            let (address, protocol) = ("unix:///s/1".to_owned(), protocol.to_owned());
            BootstrapResult { version, address, protocol, ..BootstrapResult::default() }.encode_to_vec()
        };
        let cases: [(Vec<u8>, Result<Bootstrap, &str>); 11] = [
            (b"unix:///s/1\n".to_vec(), bootstrap(2, "unix:///s/1")),
            (b"/containerd-shim/x.sock".to_vec(), bootstrap(2, "/containerd-shim/x.sock")),
            (br#"{"version":2,"address":"unix:///s/1","protocol":"ttrpc"}"#.to_vec(), bootstrap(2, "unix:///s/1")),
            (br#"{"version":3,"address":"unix:///s/1","protocol":"ttrpc"}"#.to_vec(), bootstrap(3, "unix:///s/1")),
            (message(3, "ttrpc"), bootstrap(3, "unix:///s/1")),
            (message(4, "ttrpc"), Err("versions 2 and 3")),
            (message(3, "grpc"), Err("only the protocol ttrpc")),
            (br#"{"version":4,"address":"unix:///s/1","protocol":"ttrpc"}"#.to_vec(), Err("versions 2 and 3")),
            (br#"{"version":3,"address":"vsock://3:1","protocol":"ttrpc"}"#.to_vec(), Err("only unix sockets")),
            (b"".to_vec(), Err("no address")),
            (b"panic: no such thing".to_vec(), Err("no address")),
        ];
        for (reply, want) in cases {
            match (Bootstrap::parse(Path::new("/shim"), &reply), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want),
                (Err(error), Err(want)) => {
                    assert!(render(&error).contains(want), "{}", render(&error));
                    assert_eq!(error.code(), Code::Unimplemented);
                }
                (got, want) => panic!("{got:?}, want {want:?}"),
            }
        }
    }

    #[test]
    fn a_dialect_is_remembered_for_a_file() {
        let bin = tempfile::tempdir().unwrap();
        let program = bin.path().join("containerd-shim-runc-v2");
        std::fs::write(&program, "1").unwrap();
        let dialects = Dialects::default();
        assert_eq!(dialects.of(&program), [Dialect::Params, Dialect::Options]);
        dialects.learn(&program, Dialect::Options);
        assert_eq!(dialects.of(&program), [Dialect::Options]);
        std::fs::write(&program, "another").unwrap();
        assert_eq!(dialects.of(&program), [Dialect::Params, Dialect::Options]);
        assert_eq!(dialects.of(Path::new("/x/containerd-shim-runc-v1")), [Dialect::Options]);
    }

    #[test]
    fn what_start_is_told() {
        let config = Config::new("/s".into(), "/r".into(), "/shim".into(), "/a".into());
        let options = Any { type_url: "x.Options".into(), value: vec![1, 2] };
        let told = |dialect, options| input(dialect, &config, "ns", "id", "/bin/d", options);
        assert!(told(Dialect::Options, None).is_empty());
        let bare = prost_types::Any::decode(told(Dialect::Options, Some(&options)).as_slice()).unwrap();
        assert_eq!((bare.type_url.as_str(), bare.value.as_slice()), ("x.Options", &[1, 2][..]));
        let params = BootstrapParams::decode(told(Dialect::Params, Some(&options)).as_slice()).unwrap();
        assert_eq!((params.instance_id.as_str(), params.namespace.as_str()), ("id", "ns"));
        assert_eq!(
            (params.containerd_ttrpc_address.as_str(), params.containerd_binary.as_str()),
            ("/a.ttrpc", "/bin/d")
        );
        assert_eq!(params.extensions[0].value.as_ref().unwrap().value, [1, 2]);
    }
}
