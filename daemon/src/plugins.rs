//! What the daemon consists of, in containerd's words: clients look for plugins by type and id.
//!
//! **Invariant:** what stands here is there, or says why it is not; the order is that of a daemon that starts.

use std::path::Path;
use std::sync::Arc;

use services::Plugin;
use snapshots::Driver;

/// The restart policies that clients may ask for.
const POLICIES: [&str; 4] = ["no", "always", "on-failure", "unless-stopped"];

/// What stands below the records.
pub(crate) fn foundation(content: &Path) -> Vec<Plugin> {
    vec![
        Plugin::new("event.v1", "exchange"),
        Plugin::new("warning.v1", "deprecations"),
        Plugin::new("content.v1", "content").export("root", text(content)),
    ]
}

/// A snapshotter that was opened, or why it was not.
pub(crate) fn snapshotter(name: &str, opened: Result<&Arc<dyn Driver>, String>) -> Plugin {
    let plugin = Plugin::new("snapshotter.v1", name).platform();
    match opened {
        Ok(driver) => {
            let exported = plugin.export("root", text(driver.root()));
            driver.capabilities().iter().fold(exported, |plugin, name| plugin.capability(name))
        }
        Err(why) => plugin.failed(format!("{why}: skip plugin")),
    }
}

/// What stands on the records in the database `store`.
pub(crate) fn house(store: &Path) -> Vec<Plugin> {
    let metadata = Plugin::new("metadata.v1", "bolt").requires(&["content.v1", "event.v1", "snapshotter.v1"]);
    let restart = Plugin::new("monitor.container.v1", "restart").requires(&["event.v1", "service.v1"]);
    let mut plugins = vec![
        metadata.export("path", text(store)).export("policy", "shared"),
        Plugin::new("gc.v1", "scheduler").requires(&["metadata.v1"]),
        Plugin::new("lease.v1", "manager").requires(&["metadata.v1", "gc.v1"]),
        Plugin::new("differ.v1", "walking").requires(&["metadata.v1"]).platform(),
        Plugin::new("mount-manager.v1", "bolt").requires(&["metadata.v1"]),
        Plugin::new("sandbox.store.v1", "local").requires(&["metadata.v1"]),
        Plugin::new("streaming.v1", "manager").requires(&["metadata.v1"]),
        Plugin::new("transfer.v1", "local").requires(&["lease.v1", "metadata.v1", "differ.v1"]),
        Plugin::new("monitor.task.v1", "cgroups").requires(&["event.v1"]).platform(),
        Plugin::new("shim.v1", "manager").requires(&["event.v1", "metadata.v1"]).platform(),
        Plugin::new("runtime.v2", "task")
            .requires(&["shim.v1", "mount-manager.v1"])
            .platform()
            .export("log-uri-schemes", "fifo,file,binary"),
        POLICIES.iter().fold(restart, |plugin, policy| plugin.capability(policy)),
    ];
    plugins.extend(services());
    plugins.extend(doors());
    plugins
}

fn services() -> impl Iterator<Item = Plugin> {
    let services: [(&str, &[&str]); 8] = [
        ("containers", &["event.v1", "metadata.v1"]),
        ("content", &["metadata.v1"]),
        ("diff", &["differ.v1"]),
        ("images", &["metadata.v1", "gc.v1", "warning.v1"]),
        ("introspection", &["warning.v1"]),
        ("namespaces", &["event.v1", "metadata.v1"]),
        ("snapshots", &["metadata.v1"]),
        ("tasks", &["event.v1", "runtime.v2", "metadata.v1", "monitor.task.v1", "warning.v1"]),
    ];
    services.into_iter().map(|(name, on)| Plugin::new("service.v1", format!("{name}-service")).requires(on))
}

fn doors() -> impl Iterator<Item = Plugin> {
    let doors: [(&str, &[&str]); 16] = [
        ("containers", &["service.v1"]),
        ("content", &["service.v1"]),
        ("diff", &["service.v1"]),
        ("events", &["event.v1"]),
        ("healthcheck", &[]),
        ("images", &["service.v1"]),
        ("introspection", &["service.v1"]),
        ("leases", &["lease.v1"]),
        ("mounts", &["mount-manager.v1"]),
        ("namespaces", &["service.v1"]),
        ("sandboxes", &["sandbox.store.v1"]),
        ("snapshots", &["service.v1"]),
        ("streaming", &["streaming.v1"]),
        ("tasks", &["service.v1"]),
        ("transfer", &["transfer.v1", "streaming.v1"]),
        ("version", &[]),
    ];
    let servers = ["grpc", "ttrpc"].map(|name| Plugin::new("server.v1", name).requires(&["grpc.v1"]));
    doors.into_iter().map(|(name, on)| Plugin::new("grpc.v1", name).requires(on)).chain(servers)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
