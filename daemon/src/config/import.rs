//! A file and what it imports, as one table of version 4.
//!
//! The rules are containerd's: imports are relative to the file that names them and may have `*` and `?`; what is read
//! later wins, but an empty value wins over nothing; lists are joined; a section of a plugin is replaced as a whole.

use std::collections::{BTreeSet, VecDeque};
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use toml::{Table, Value};

use super::migrate::migrate;

/// More files than this are a mistake.
const FILES_MAX: usize = 256;
const FILE_MAX_BYTES: u64 = 1 << 20;

/// Tables whose entries are replaced as a whole.
const BY_ENTRY: [&str; 5] = ["plugins", "proxy_plugins", "timeouts", "stream_processors", "runtimes"];

/// Reads a file and its imports.
pub(crate) fn read(path: &Path) -> anyhow::Result<Table> {
    let mut merged = Table::new();
    let mut seen = BTreeSet::new();
    let mut pending = VecDeque::from([path.to_owned()]);
    while let Some(path) = pending.pop_front() {
        // One that imports itself is read once.
        if !seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
            continue;
        }
        ensure!(seen.len() <= FILES_MAX, "more than {FILES_MAX} configuration files are imported");
        let read = || -> anyhow::Result<(Table, Vec<PathBuf>)> {
            let mut table = migrate(parse(&path)?)?;
            let imports: Vec<String> = match table.remove("imports") {
                Some(imports) => imports.try_into().context("imports")?,
                None => Vec::new(),
            };
            Ok((table, resolve(&path, &imports)?))
        };
        let (table, imports) = read().with_context(|| format!("read configuration {}", path.display()))?;
        merge(&mut merged, table);
        pending.extend(imports);
    }
    Ok(merged)
}

fn parse(path: &Path) -> anyhow::Result<Table> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_MAX_BYTES + 1).read_to_string(&mut text)?;
    ensure!(text.len() as u64 <= FILE_MAX_BYTES, "it has more than {FILE_MAX_BYTES} bytes");
    Ok(text.parse()?)
}

/// The files that imports mean. A plain name must exist, a pattern may match nothing.
fn resolve(file: &Path, imports: &[String]) -> anyhow::Result<Vec<PathBuf>> {
    let directory = file.parent().unwrap_or(Path::new("/"));
    let mut found = Vec::new();
    for import in imports {
        let path = directory.join(import);
        if import.contains(['*', '?']) {
            found.extend(glob(&path)?);
        } else {
            found.push(path);
        }
        ensure!(found.len() <= FILES_MAX, "more than {FILES_MAX} configuration files are imported");
    }
    Ok(found)
}

/// The files that match a pattern, in order of their names.
fn glob(pattern: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    for component in pattern.components() {
        let Some(wanted) = component.as_os_str().to_str() else { bail!("{} is not text", pattern.display()) };
        if !matches!(component, Component::Normal(_)) || !wanted.contains(['*', '?']) {
            found.iter_mut().for_each(|path| path.push(component));
            found.retain(|path| path.exists());
            continue;
        }
        let mut next = Vec::new();
        for directory in &found {
            // What cannot be listed has no names.
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                let name = entry.file_name();
                if name.to_str().is_some_and(|name| matches_pattern(wanted.as_bytes(), name.as_bytes())) {
                    next.push(entry.path());
                }
                ensure!(next.len() <= FILES_MAX, "more than {FILES_MAX} files match {}", pattern.display());
            }
        }
        next.sort();
        found = next;
    }
    Ok(found)
}

/// Whether a name matches a pattern with `*` and `?`. Takes at most the product of both lengths.
fn matches_pattern(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut read, mut star) = (0, 0, None);
    while read < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(wanted) if *wanted == b'?' || *wanted == name[read] => {
                at += 1;
                read += 1;
            }
            _ => match star {
                // The star takes one more.
                Some((star_at, taken)) => {
                    star = Some((star_at, taken + 1));
                    (at, read) = (star_at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        let by_entry = BY_ENTRY.contains(&key.as_str());
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) if by_entry => old.extend(new),
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (Some(Value::Array(old)), Value::Array(new)) => {
                for item in new {
                    if !old.contains(&item) {
                        old.push(item);
                    }
                }
            }
            (Some(_), value) if is_empty(&value) => {}
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

/// Go's zero values: they win over nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Integer(number) => *number == 0,
        Value::Boolean(set) => !set,
        Value::Array(items) => items.is_empty(),
        Value::Float(_) | Value::Datetime(_) | Value::Table(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, want) in [
            ("*.toml", "a.toml", true),
            ("*.toml", "a.tom", false),
            ("*", "", true),
            ("?", "", false),
            ("a?c*", "abc", true),
            ("*a*b", "xaxbxb", true),
            ("**", "x", true),
            ("a", "ab", false),
        ] {
            assert_eq!(matches_pattern(pattern.as_bytes(), name.as_bytes()), want, "{pattern} {name}");
        }
    }

    #[test]
    fn imports_are_merged() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        let main = write(
            "config.toml",
            "version = 2\nroot = '/r'\noom_score = 1\nimports = ['conf.d/*.toml', 'config.toml']\n\
             disabled_plugins = ['io.a.b']\n[debug]\nlevel = 'info'\nformat = 'json'\n\
             [plugins.'io.x.v1.y']\na = 1\nb = 2",
        );
        write(
            "conf.d/2.toml",
            "version = 4\noom_score = 0\ndisabled_plugins = ['io.a.b', 'io.c.d']\n[debug]\nlevel = 'warn'",
        );
        write("conf.d/1.toml", "version = 3\nroot = '/other'\nimports = ['../deep/*']\n[plugins.'io.x.v1.y']\nc = 3");
        write("conf.d/ignored.txt", "broken = ");
        write("deep/3", "version = 4\nstate = '/s'\nimports = ['../config.toml']");
        let table = read(&main).unwrap();
        assert_eq!((table["root"].as_str(), table["state"].as_str()), (Some("/other"), Some("/s")));
        assert_eq!(table["oom_score"].as_integer(), Some(1));
        assert_eq!(table["disabled_plugins"].as_array().unwrap().len(), 2);
        assert_eq!((table["debug"]["level"].as_str(), table["debug"]["format"].as_str()), (Some("warn"), Some("json")));
        assert_eq!(table["plugins"]["io.x.v1.y"], Value::Table("c = 3".parse().unwrap()));
        assert!(!table.contains_key("imports"));

        for text in ["imports = ['missing.toml']", "imports = 3", "imports = ['conf.d/ignored.txt']"] {
            let path = write("wrong.toml", text);
            assert!(read(&path).is_err(), "{text}");
        }
        assert!(read(&write("none.toml", "imports = ['nothing/*.toml', '*/*/*.toml']")).is_ok());
    }
}
