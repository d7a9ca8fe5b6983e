//! The strings in which a client names the streams of a process.

use std::path::PathBuf;

use model::record::StdioPaths;

use super::logger::Program;
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
    /// To a program that reads both outputs: see [`program`].
    Program,
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
        "binary" | "binary-v2" => Ok((Output::Program, Output::Program)),
        _ => Err(Error::Stdio {
            uri: paths.stdout.clone(),
            problem: "unknown scheme, want a path, fifo://, file:// or binary://",
        }),
    }
}

/// The program that the outputs go to, if they do: its path, and the names and values of the query as arguments.
pub(super) fn program(paths: &StdioPaths) -> Result<Option<Program>, Error> {
    let (scheme, rest) = split(&paths.stdout);
    if !matches!(scheme, "binary" | "binary-v2") {
        return Ok(None);
    }
    let program = path(rest);
    if !program.is_absolute() {
        return Err(Error::Stdio { uri: paths.stdout.clone(), problem: "the program's path must be absolute" });
    }
    let query = rest.split_once('?').map_or("", |(_, query)| query);
    let mut arguments = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        for word in [name, value] {
            let bytes = unescape(word.replace('+', " ").as_bytes());
            let word = String::from_utf8(bytes).map_err(|_| Error::Stdio {
                uri: paths.stdout.clone(),
                problem: "the program's arguments are not UTF-8",
            })?;
            arguments.push(word);
        }
    }
    Ok(Some(Program { path: program, arguments, answers: scheme == "binary-v2" }))
}

/// The FIFO of standard input, if there is one.
pub(crate) fn input(paths: &StdioPaths) -> Result<Option<PathBuf>, Error> {
    match fifo(&paths.stdin)? {
        Output::Existing(path) => Ok(Some(path)),
        Output::Null | Output::Append(_) | Output::SameAsStdout | Output::Program => Ok(None),
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
    PathBuf::from(std::ffi::OsString::from_vec(unescape(rest)))
}

/// Resolves %XX.
fn unescape(rest: &[u8]) -> Vec<u8> {
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
    bytes
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
        for (stdout, stderr, text) in
            [("http://x", "", "unknown scheme"), ("/f/o", "file:///x", "as for standard output")]
        {
            let error = model::render(&outputs(&paths(stdout, stderr, false)).unwrap_err());
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn programs() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        for (uri, path, arguments, answers) in [
            ("binary:///bin/logger", "/bin/logger", words(&[]), false),
            ("binary:///bin/logger?a=b&c", "/bin/logger", words(&["a", "b", "c", ""]), false),
            ("binary-v2:///bin/my%20logger?_=%2Fx+y", "/bin/my logger", words(&["_", "/x y"]), true),
        ] {
            let want = Program { path: PathBuf::from(path), arguments, answers };
            assert_eq!(program(&paths(uri, uri, false)).unwrap(), Some(want), "{uri}");
            assert_eq!(outputs(&paths(uri, uri, false)).unwrap(), (Output::Program, Output::Program));
        }
        assert_eq!(program(&paths("/f/o", "", false)).unwrap(), None);
        assert!(program(&paths("binary://logger", "", false)).is_err());
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
