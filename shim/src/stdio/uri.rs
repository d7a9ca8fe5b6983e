//! The strings in which a client names the streams of a process.

use std::path::PathBuf;

use model::record::StdioPaths;

use crate::error::Error;

/// Where an output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Nowhere.
    Null,
    /// To a FIFO, or whatever else exists under that name; never made by us.
    Existing(PathBuf),
    /// To the end of a file, which is made when it is missing.
    Append(PathBuf),
    /// To where standard output goes, by the same open file.
    SameAsStdout,
}

/// Where standard output and standard error go. The scheme of standard output decides for both.
pub(crate) fn outputs(paths: &StdioPaths) -> Result<(Output, Output), Error> {
    let (scheme, rest) = split(&paths.stdout);
    match scheme {
        "" | "fifo" => {
            let stdout = existing(scheme, rest);
            let stderr = if paths.terminal { Output::Null } else { fifo(&paths.stderr)? };
            let same = stdout != Output::Null && stdout == stderr;
            Ok((stdout, if same { Output::SameAsStdout } else { stderr }))
        }
        "file" => Ok((Output::Append(path(rest)), Output::SameAsStdout)),
        "binary" => Err(Error::Unimplemented(format!(
            "logging to a program ({}): use a FIFO or file:///path instead",
            paths.stdout
        ))),
        _ => {
            Err(Error::Stdio { uri: paths.stdout.clone(), problem: "unknown scheme, want a path, fifo:// or file://" })
        }
    }
}

/// The FIFO of standard input, if there is one.
pub(crate) fn input(paths: &StdioPaths) -> Result<Option<PathBuf>, Error> {
    match fifo(&paths.stdin)? {
        Output::Existing(path) => Ok(Some(path)),
        Output::Null | Output::Append(_) | Output::SameAsStdout => Ok(None),
    }
}

fn fifo(uri: &str) -> Result<Output, Error> {
    match split(uri) {
        (scheme @ ("" | "fifo"), rest) => Ok(existing(scheme, rest)),
        _ => Err(Error::Stdio { uri: uri.to_owned(), problem: "want a path or fifo://, as for standard output" }),
    }
}

fn existing(scheme: &str, rest: &str) -> Output {
    match (scheme, rest) {
        (_, "") => Output::Null,
        ("", plain) => Output::Existing(PathBuf::from(plain)),
        (_, uri) => Output::Existing(path(uri)),
    }
}

/// Scheme and path; a plain path has no scheme.
fn split(uri: &str) -> (&str, &str) {
    uri.split_once("://").unwrap_or(("", uri))
}

/// The path of a URI: without query, and with %XX resolved.
fn path(rest: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    let rest = rest.split_once('?').map_or(rest, |(path, _)| path).as_bytes();
    let mut bytes = Vec::with_capacity(rest.len());
    let mut at = 0;
    while let Some(&byte) = rest.get(at) {
        let hex = rest.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match hex.filter(|_| byte == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(decoded) => {
                bytes.push(decoded);
                at += 3;
            }
            None => {
                bytes.push(byte);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(stdout: &str, stderr: &str, terminal: bool) -> StdioPaths {
        StdioPaths { stdin: String::new(), stdout: stdout.to_owned(), stderr: stderr.to_owned(), terminal }
    }

    #[test]
    fn uris_of_real_clients() {
        let existing = |text: &str| Output::Existing(PathBuf::from(text));
        for (stdout, stderr, terminal, want) in [
            ("", "", false, (Output::Null, Output::Null)),
            ("/f/o", "/f/e", false, (existing("/f/o"), existing("/f/e"))),
            ("/f%20/o?", "", true, (existing("/f%20/o?"), Output::Null)),
            ("/f/o", "/f/e", true, (existing("/f/o"), Output::Null)),
            ("", "/f/e", false, (Output::Null, existing("/f/e"))),
            ("fifo:///f/o", "fifo:///f/e", false, (existing("/f/o"), existing("/f/e"))),
            ("/log", "/log", false, (existing("/log"), Output::SameAsStdout)),
            ("file:///l/a%20b", "", false, (Output::Append(PathBuf::from("/l/a b")), Output::SameAsStdout)),
            ("file:///l", "file:///l", false, (Output::Append(PathBuf::from("/l")), Output::SameAsStdout)),
            ("file:///l%zz?x=y", "", false, (Output::Append(PathBuf::from("/l%zz")), Output::SameAsStdout)),
        ] {
            assert_eq!(outputs(&paths(stdout, stderr, terminal)).unwrap(), want, "{stdout}");
        }
    }

    #[test]
    fn refusals() {
        for (stdout, stderr, text) in [
            ("binary:///bin/logger?a=b", "", "not implemented"),
            ("http://x", "", "unknown scheme"),
            ("/f/o", "file:///x", "as for standard output"),
        ] {
            let error = model::render(&outputs(&paths(stdout, stderr, false)).unwrap_err());
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn stdin_is_a_fifo() {
        let mut given = paths("", "", false);
        assert_eq!(input(&given).unwrap(), None);
        given.stdin = "/f/i".to_owned();
        assert_eq!(input(&given).unwrap(), Some(PathBuf::from("/f/i")));
        given.stdin = "file:///x".to_owned();
        assert!(input(&given).is_err());
    }
}
