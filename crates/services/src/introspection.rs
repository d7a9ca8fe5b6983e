use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::{fs, process};

use api_grpc::google::rpc;
use api_grpc::services::introspection as api;
use api_grpc::services::introspection::introspection_server::Introspection;
use api_grpc::types::{Platform, RuntimeRequest};
use api_grpc::{decode, encode};
use model::Code;
use model::filter::Filters;
use supervisor::Supervisor;
use tonic::{Request, Response, Status};

use crate::Error;

/// The plugin that can be asked about runtimes.
const RUNTIMES: (&str, &str) = ("runtime.v2", "task");

/// What the daemon consists of, told in containerd's words: clients look for plugins by type and id.
#[derive(Clone, Debug)]
pub struct Plugin {
    kind: &'static str,
    id: String,
    requires: Vec<&'static str>,
    exports: BTreeMap<String, String>,
    capabilities: Vec<String>,
    platform: bool,
    failure: Option<String>,
}

impl Plugin {
    /// The plugin `io.containerd.<kind>/<id>`.
    pub fn new(kind: &'static str, id: impl Into<String>) -> Self {
        let (exports, capabilities) = (BTreeMap::new(), Vec::new());
        Self { kind, id: id.into(), requires: Vec::new(), exports, capabilities, platform: false, failure: None }
    }

    /// Adds the kinds of plugins that it builds on, `metadata.v1` for instance.
    #[must_use]
    pub fn requires(mut self, kinds: &[&'static str]) -> Self {
        self.requires.extend(kinds);
        self
    }

    /// Adds something that clients read of it.
    #[must_use]
    pub fn export(mut self, key: &str, value: impl Into<String>) -> Self {
        self.exports.insert(key.to_owned(), value.into());
        self
    }

    /// Adds something that it can do.
    #[must_use]
    pub fn capability(mut self, name: &str) -> Self {
        self.capabilities.push(name.to_owned());
        self
    }

    /// Says that it works for the platform of this machine.
    #[must_use]
    pub fn platform(mut self) -> Self {
        self.platform = true;
        self
    }

    /// Says why it is not there. Clients count a text that ends in "skip plugin" as absent on purpose.
    #[must_use]
    pub fn failed(mut self, why: impl Into<String>) -> Self {
        self.failure = Some(why.into());
        self
    }

    fn kind(&self) -> String {
        format!("io.containerd.{}", self.kind)
    }

    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["type"] => Some(self.kind()),
            ["id"] => Some(self.id.clone()),
            _ => None,
        }
    }

    fn encode(&self) -> api::Plugin {
        let init_err = self.failure.as_ref().map(|message| rpc::Status {
            code: Code::Unknown.grpc(),
            message: message.clone(),
            details: Vec::new(),
        });
        api::Plugin {
            r#type: self.kind(),
            id: self.id.clone(),
            requires: self.requires.iter().map(|kind| format!("io.containerd.{kind}")).collect(),
            platforms: if self.platform { vec![this_platform()] } else { Vec::new() },
            exports: self.exports.clone(),
            capabilities: self.capabilities.clone(),
            init_err,
        }
    }
}

/// Operating system and processor in Go's words.
fn this_platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Platform { os: "linux".to_owned(), architecture: architecture.to_owned(), ..Platform::default() }
}

/// The identity of this daemon.
#[derive(Clone, Debug)]
pub struct Server {
    /// Version of the program.
    pub version: String,
    /// Revision of its source; may be empty.
    pub revision: String,
    /// Stays the same as long as the root directory does.
    pub uuid: String,
    /// Its parts, in the order in which they were made.
    pub plugins: Arc<Vec<Plugin>>,
}

impl Server {
    /// Reads the uuid of `root`, or makes it one. Blocks on the disk.
    pub fn open(root: &Path, version: &str, revision: &str, plugins: Vec<Plugin>) -> io::Result<Self> {
        let uuid = persistent_uuid(&root.join("io.containerd.grpc.v1.introspection"))?;
        Ok(Self { version: version.to_owned(), revision: revision.to_owned(), uuid, plugins: Arc::new(plugins) })
    }
}

fn persistent_uuid(directory: &Path) -> io::Result<String> {
    let path = directory.join("uuid");
    match fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    fs::create_dir_all(directory)?;
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned();
    let partial = directory.join("uuid.new");
    let mut file = fs::File::create(&partial)?;
    file.write_all(uuid.as_bytes())?;
    file.sync_all()?;
    fs::rename(&partial, &path)?;
    fs::File::open(directory)?.sync_all()?;
    Ok(uuid)
}

/// The service `Introspection`.
pub(crate) struct IntrospectionService {
    pub(crate) server: Server,
    pub(crate) supervisor: Supervisor,
}

impl IntrospectionService {
    /// Asks the plugin that runs tasks about a runtime.
    async fn runtime(&self, question: prost_types::Any) -> Result<prost_types::Any, Status> {
        let question: RuntimeRequest = decode::unpack(&decode::any(question)).map_err(|_| Error::NoAnswer)?;
        let options = question.options.map(decode::any);
        let info = self.supervisor.runtime_info(&question.runtime_path, options).await;
        Ok(encode::any(encode::pack(&info.map_err(|error| api_grpc::status(&error))?)))
    }
}

#[tonic::async_trait]
impl Introspection for IntrospectionService {
    async fn plugins(&self, request: Request<api::PluginsRequest>) -> Result<Response<api::PluginsResponse>, Status> {
        let filters = Filters::parse(&request.into_inner().filters).map_err(Error::Filter)?;
        let matching = self.server.plugins.iter().filter(|plugin| filters.matches(|path| plugin.field(path)));
        Ok(Response::new(api::PluginsResponse { plugins: matching.map(Plugin::encode).collect() }))
    }

    async fn server(&self, _: Request<()>) -> Result<Response<api::ServerResponse>, Status> {
        // Zero where /proc is not readable: clients only compare it.
        let pidns = fs::metadata("/proc/self/ns/pid").map_or(0, |metadata| metadata.ino());
        Ok(Response::new(api::ServerResponse {
            uuid: self.server.uuid.clone(),
            pid: u64::from(process::id()),
            pidns,
            deprecations: Vec::new(),
        }))
    }

    async fn plugin_info(
        &self,
        request: Request<api::PluginInfoRequest>,
    ) -> Result<Response<api::PluginInfoResponse>, Status> {
        let request = request.into_inner();
        let wanted = |plugin: &&Plugin| plugin.kind() == request.r#type && plugin.id == request.id;
        let Some(plugin) = self.server.plugins.iter().find(wanted) else {
            return Err(Error::NoPlugin { kind: request.r#type, id: request.id }.into());
        };
        let extra = match request.options {
            None => None,
            Some(_) if plugin.failure.is_some() => return Err(Error::PluginFailed.into()),
            Some(question) if (plugin.kind, plugin.id.as_str()) == RUNTIMES => Some(self.runtime(question).await?),
            Some(_) => return Err(Error::NoAnswer.into()),
        };
        Ok(Response::new(api::PluginInfoResponse { plugin: Some(plugin.encode()), extra }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> (IntrospectionService, tempfile::TempDir) {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let journal = events::Journal::open(root.path(), "boot", events::Config::default()).unwrap();
        let shim = path("containerd-shim-gantry-v2");
        let config = supervisor::Config::new(path("s"), path("r"), shim, "/a".into());
        let supervisor = Supervisor::new(config, journal).unwrap();
        let plugins = vec![
            Plugin::new("snapshotter.v1", "native").export("root", "/r"),
            Plugin::new("snapshotter.v1", "overlayfs").failed("no overlay: skip plugin"),
            Plugin::new("runtime.v2", "task").platform(),
        ];
        let server = Server { version: "1".into(), revision: String::new(), uuid: "u".into(), plugins: plugins.into() };
        (IntrospectionService { server, supervisor }, root)
    }

    #[tokio::test]
    async fn plugins_by_filter() {
        for (filter, want) in [
            ("", vec!["native", "overlayfs", "task"]),
            ("type==io.containerd.snapshotter.v1", vec!["native", "overlayfs"]),
            ("type==io.containerd.snapshotter.v1,id==native", vec!["native"]),
            ("platforms", vec![]),
        ] {
            let request = Request::new(api::PluginsRequest { filters: vec![filter.to_owned()] });
            let plugins = service().0.plugins(request).await.unwrap().into_inner().plugins;
            let ids: Vec<&str> = plugins.iter().map(|plugin| plugin.id.as_str()).collect();
            assert_eq!(ids, want, "{filter}");
        }
    }

    #[tokio::test]
    async fn info_of_one_plugin() {
        let ask = |kind: &str, id: &str, options| {
            Request::new(api::PluginInfoRequest { r#type: kind.to_owned(), id: id.to_owned(), options })
        };
        let (service, _root) = service();
        let found = service.plugin_info(ask("io.containerd.runtime.v2", "task", None)).await.unwrap().into_inner();
        assert_eq!(found.plugin.map(|plugin| plugin.platforms.len()), Some(1));
        let question = |runtime: &str| {
            let runtime_path = runtime.to_owned();
            Some(encode::any(encode::pack(&RuntimeRequest { runtime_path, options: None })))
        };
        for (kind, id, options, want) in [
            ("io.containerd.x", "y", None, "plugin io.containerd.x.y not found"),
            ("io.containerd.runtime.v2", "task", Some(prost_types::Any::default()), ": not implemented"),
            ("io.containerd.snapshotter.v1", "native", question("x"), ": not implemented"),
            ("io.containerd.snapshotter.v1", "overlayfs", question("x"), ": failed precondition"),
            ("io.containerd.runtime.v2", "task", question("a/b"), "invalid runtime name a/b"),
            ("io.containerd.runtime.v2", "task", question("io.containerd.none.v1"), "not installed"),
        ] {
            let refused = service.plugin_info(ask(kind, id, options)).await.unwrap_err();
            assert!(refused.message().contains(want), "{refused}");
        }
    }

    #[test]
    fn uuid_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let open = || Server::open(root.path(), "1", "", Vec::new()).unwrap().uuid;
        let first = open();
        assert_eq!(first.len(), 36);
        assert_eq!(open(), first);
        fs::write(root.path().join("io.containerd.grpc.v1.introspection/uuid"), "").unwrap();
        assert_ne!(open(), first);
    }
}
