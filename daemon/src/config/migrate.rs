//! Older versions of the file format, table by table: what comes out is version 4.
//!
//! | version | differs by |
//! |---|---|
//! | 1 | short names of plugins |
//! | 2, 3 | `[grpc]`, `[ttrpc]`, `[metrics]` and the debug socket at the top; former names of some plugins |
//! | 4 | everything in `[plugins]` under its type and id |

use anyhow::{Context as _, bail};
use toml::{Table, Value};

/// The newest version of the file format, which is written; older ones are understood.
pub(crate) const VERSION: i64 = 4;

/// Short names of version 1.
const SHORT: [(&str, &str); 16] = [
    ("cri", "io.containerd.grpc.v1.cri"),
    ("cgroups", "io.containerd.monitor.v1.cgroups"),
    ("linux", "io.containerd.runtime.v1.linux"),
    ("scheduler", "io.containerd.gc.v1.scheduler"),
    ("bolt", "io.containerd.metadata.v1.bolt"),
    ("task", "io.containerd.runtime.v2.task"),
    ("opt", "io.containerd.internal.v1.opt"),
    ("restart", "io.containerd.internal.v1.restart"),
    ("tracing", "io.containerd.internal.v1.tracing"),
    ("otlp", "io.containerd.tracing.processor.v1.otlp"),
    ("aufs", "io.containerd.snapshotter.v1.aufs"),
    ("btrfs", "io.containerd.snapshotter.v1.btrfs"),
    ("devmapper", "io.containerd.snapshotter.v1.devmapper"),
    ("native", "io.containerd.snapshotter.v1.native"),
    ("overlayfs", "io.containerd.snapshotter.v1.overlayfs"),
    ("zfs", "io.containerd.snapshotter.v1.zfs"),
];

/// Plugins that have moved.
const MOVED: [(&str, &str); 2] = [
    ("io.containerd.internal.v1.restart", "io.containerd.monitor.container.v1.restart"),
    ("io.containerd.monitor.v1.cgroups", "io.containerd.monitor.task.v1.cgroups"),
];

/// What stood at the top and became a plugin: the section, its keys (all of them without any), the plugin.
const SECTIONS: [(&str, &[&str], &str); 5] = [
    ("debug", &["address", "uid", "gid"], "io.containerd.server.v1.debug"),
    ("metrics", &["grpc_histogram"], "io.containerd.metrics.v1.grpc-prometheus"),
    ("metrics", &[], "io.containerd.server.v1.metrics"),
    ("grpc", &[], "io.containerd.server.v1.grpc"),
    ("ttrpc", &[], "io.containerd.server.v1.ttrpc"),
];

/// Keys of `[grpc]` that belong to the server over TCP.
const TCP: [(&str, &str); 5] = [
    ("tcp_address", "address"),
    ("tcp_tls_ca", "tls_ca"),
    ("tcp_tls_cert", "tls_cert"),
    ("tcp_tls_key", "tls_key"),
    ("tcp_tls_common_name", "tls_common_name"),
];

/// Brings a file's table to version 4. A version that does not exist is an error.
pub(crate) fn migrate(mut table: Table) -> anyhow::Result<Table> {
    let version = match table.remove("version") {
        None | Some(Value::Integer(0)) => 1,
        Some(Value::Integer(version)) => version,
        Some(other) => bail!("version must be a number, not {other}"),
    };
    if !(1..=VERSION).contains(&version) {
        bail!("version {version} is not supported; versions 1 to {VERSION} are");
    }
    let mut plugins = section(&mut table, "plugins")?.unwrap_or_default();
    if version == 1 {
        plugins = plugins.into_iter().map(|(name, value)| (full_name(name), value)).collect();
    }
    for key in ["disabled_plugins", "required_plugins"] {
        for name in table.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
            if let (1, Value::String(text)) = (version, &mut *name) {
                *text = full_name(std::mem::take(text));
            }
        }
    }
    for (former, name) in MOVED {
        if let Some(value) = plugins.remove(former) {
            plugins.entry(name).or_insert(value);
        }
    }
    move_tcp(&mut table, &mut plugins)?;
    for (from, keys, plugin) in SECTIONS {
        let Some(mut found) = section(&mut table, from)? else { continue };
        let mut moved = Table::new();
        if keys.is_empty() {
            moved = found;
        } else {
            moved.extend(keys.iter().filter_map(|key| found.remove_entry(*key)));
            table.insert(from.to_owned(), Value::Table(found));
        }
        // One that is there already in the new place is what counts.
        if !moved.is_empty() && !plugins.contains_key(plugin) {
            plugins.insert(plugin.to_owned(), Value::Table(moved));
        }
    }
    table.insert("plugins".to_owned(), Value::Table(plugins));
    Ok(table)
}

fn move_tcp(table: &mut Table, plugins: &mut Table) -> anyhow::Result<()> {
    let Some(mut grpc) = section(table, "grpc")? else { return Ok(()) };
    let moved = TCP.iter().filter_map(|(from, to)| grpc.remove(*from).map(|value| ((*to).to_owned(), value)));
    let moved: Table = moved.filter(|(_, value)| value.as_str() != Some("")).collect();
    if !moved.is_empty() {
        plugins.entry("io.containerd.server.v1.grpc-tcp").or_insert(Value::Table(moved));
    }
    table.insert("grpc".to_owned(), Value::Table(grpc));
    Ok(())
}

fn section(table: &mut Table, name: &str) -> anyhow::Result<Option<Table>> {
    let value = table.remove(name);
    value.map(|value| value.try_into().with_context(|| format!("[{name}]"))).transpose()
}

/// The name of a plugin in version 2.
fn full_name(name: String) -> String {
    if name.contains('.') {
        return name;
    }
    match SHORT.iter().find(|(short, _)| *short == name) {
        Some((_, full)) => (*full).to_owned(),
        None if name.ends_with("-service") => format!("io.containerd.service.v1.{name}"),
        None => format!("io.containerd.grpc.v1.{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migrated(text: &str) -> anyhow::Result<String> {
        Ok(toml::to_string(&migrate(text.parse()?)?)?)
    }

    #[test]
    fn every_version() {
        let four = "root = '/r'\n[plugins.'io.containerd.server.v1.grpc']\naddress = '/a'\n";
        let want = migrated(&format!("version = 4\n{four}")).unwrap();
        for text in [
            "version = 2\nroot = '/r'\n[grpc]\naddress = '/a'",
            "version = 3\nroot = '/r'\n[grpc]\naddress = '/a'",
            "root = '/r'\n[grpc]\naddress = '/a'\ntcp_address = ''",
            "version = 3\nroot = '/r'\n[grpc]\naddress = '/old'\n[plugins.'io.containerd.server.v1.grpc']\naddress = '/a'",
        ] {
            assert_eq!(migrated(text).unwrap(), want, "{text}");
        }
        let one = "disabled_plugins = ['cri', 'x']\n[plugins.restart]\ninterval = '10s'\n[plugins.diff-service]\n\
                   [metrics]\naddress = '1.1.1.1:1'\ngrpc_histogram = true\n[debug]\nlevel = 'info'\naddress = '/d'\n\
                   [grpc]\ntcp_address = '1.1.1.1:2'";
        let table = migrate(one.parse().unwrap()).unwrap();
        let names: Vec<&str> = table["plugins"].as_table().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "io.containerd.metrics.v1.grpc-prometheus",
                "io.containerd.monitor.container.v1.restart",
                "io.containerd.server.v1.debug",
                "io.containerd.server.v1.grpc-tcp",
                "io.containerd.server.v1.metrics",
                "io.containerd.service.v1.diff-service",
            ]
        );
        assert_eq!(table["disabled_plugins"][1].as_str(), Some("io.containerd.grpc.v1.x"));
        assert_eq!(table["debug"], Value::Table("level = 'info'".parse().unwrap()));
    }

    #[test]
    fn refusals() {
        for text in ["version = 5", "version = -1", "version = 'x'", "plugins = 3", "version = 2\ngrpc = 'x'"] {
            assert!(migrated(text).is_err(), "{text}");
        }
    }
}
