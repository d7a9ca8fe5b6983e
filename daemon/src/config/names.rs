//! Names that files of containerd have and that mean nothing here, and the nearest name to one that nobody knows.

/// Keys at the top.
pub(crate) const TOP: [&str; 6] =
    ["temp", "disabled_plugins", "required_plugins", "proxy_plugins", "timeouts", "stream_processors"];

/// Plugins, without the `io.containerd.` that all of them have.
const PLUGINS: [&str; 49] = [
    "content.v1.content",
    "cri.v1.images",
    "cri.v1.runtime",
    "differ.v1.erofs",
    "differ.v1.walking",
    "gc.v1.scheduler",
    "grpc.v1.containers",
    "grpc.v1.content",
    "grpc.v1.cri",
    "grpc.v1.diff",
    "grpc.v1.events",
    "grpc.v1.healthcheck",
    "grpc.v1.images",
    "grpc.v1.introspection",
    "grpc.v1.leases",
    "grpc.v1.namespaces",
    "grpc.v1.sandbox-controllers",
    "grpc.v1.snapshots",
    "grpc.v1.streaming",
    "grpc.v1.tasks",
    "grpc.v1.version",
    "image-verifier.v1.bindir",
    "internal.v1.opt",
    "internal.v1.tracing",
    "lease.v1.manager",
    "metadata.v1.bolt",
    "metrics.v1.grpc-prometheus",
    "monitor.container.v1.restart",
    "monitor.task.v1.cgroups",
    "mount-manager.v1.bolt",
    "nri.v1.nri",
    "runtime.v1.linux",
    "runtime.v2.shim",
    "runtime.v2.task",
    "sandbox.controller.v1.shim",
    "server.v1.grpc-tcp",
    "server.v1.metrics",
    "service.v1.diff-service",
    "service.v1.tasks-service",
    "shim.v1.manager",
    "snapshotter.v1.aufs",
    "snapshotter.v1.blockfile",
    "snapshotter.v1.btrfs",
    "snapshotter.v1.devmapper",
    "snapshotter.v1.erofs",
    "snapshotter.v1.native",
    "snapshotter.v1.overlayfs",
    "snapshotter.v1.zfs",
    "tracing.processor.v1.otlp",
];

/// What all plugins' names begin with.
pub(crate) const PREFIX: &str = "io.containerd.";

/// Whether containerd has a plugin of this name.
pub(crate) fn is_plugin(name: &str) -> bool {
    // transfer.v1.local and those above.
    name.strip_prefix(PREFIX).is_some_and(|rest| rest == "transfer.v1.local" || PLUGINS.contains(&rest))
}

/// The nearest of `known` to a name, if one is near.
pub(crate) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    // Two slips, or one in a short name; and longer names are not compared at all.
    let near = if name.len() < 5 { 1 } else { 2 };
    let candidates = known.iter().filter(|other| name.len() <= 64 && other.len().abs_diff(name.len()) <= near);
    candidates
        .map(|other| (distance(name, other), *other))
        .filter(|(far, _)| *far <= near)
        .min()
        .map(|(_, other)| other)
}

/// Levenshtein's distance of two short names.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, byte) in one.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (column, wanted) in other.bytes().enumerate() {
            let replaced = diagonal + usize::from(byte != wanted);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

/// The names of plugins that are near: those of containerd and the ones that mean something here.
pub(crate) fn nearest_plugin(name: &str, own: &[&'static str]) -> Option<String> {
    let rest = name.strip_prefix(PREFIX).unwrap_or(name);
    let known: Vec<&str> = PLUGINS.iter().chain(own).copied().collect();
    nearest(rest, &known).map(|found| format!("{PREFIX}{found}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names() {
        for (name, want) in [
            ("adress", Some("address")),
            ("address", Some("address")),
            ("udi", None),
            ("uib", Some("uid")),
            ("completely_else", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, &["address", "uid", "gid"]), want, "{name}");
        }
        let long = "x".repeat(100_000);
        assert_eq!(nearest(&long, &["address"]), None);
        assert_eq!(
            nearest_plugin("io.containerd.server.v1.grcp", &["server.v1.grpc"]).as_deref(),
            Some("io.containerd.server.v1.grpc")
        );
        assert!(is_plugin("io.containerd.cri.v1.runtime") && !is_plugin("cri.v1.runtime"));
    }
}
