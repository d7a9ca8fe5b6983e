//! Words of the command line. Options may stand before and after the container's id.

use std::path::{Component, Path, PathBuf};

use super::Error;

/// An option.
#[derive(Debug)]
pub(crate) struct Flag {
    /// Without dashes.
    pub(crate) long: &'static str,
    /// One letter, or nothing.
    pub(crate) short: &'static str,
    /// Whether a value follows.
    pub(crate) value: bool,
    pub(crate) about: &'static str,
}

/// An option without a value.
pub(crate) const fn switch(long: &'static str, short: &'static str, about: &'static str) -> Flag {
    Flag { long, short, value: false, about }
}

/// An option with a value.
pub(crate) const fn option(long: &'static str, short: &'static str, about: &'static str) -> Flag {
    Flag { long, short, value: true, about }
}

impl Flag {
    pub(crate) fn help(&self) -> String {
        let value = if self.value { " value" } else { "" };
        let short = if self.short.is_empty() { String::new() } else { format!(", -{}{value}", self.short) };
        format!("   {:<32} {}\n", format!("--{}{value}{short}", self.long), self.about)
    }
}

/// Options before the command.
pub(crate) const GLOBAL: &[Flag] = &[
    option("root", "", "directory of the containers' state (default: /run/gantry-oci)"),
    option("log", "", "file that errors are appended to (default: standard error)"),
    option("log-format", "", "text (default) or json"),
    switch("debug", "", "log what is done"),
    switch("systemd-cgroup", "", "make cgroups as scopes of systemd; cgroupsPath is then slice:prefix:name"),
    option("rootless", "", "auto, true or false; only whether the caller is root decides"),
];

/// The global options.
#[derive(Debug)]
pub(crate) struct Global {
    pub(crate) root: PathBuf,
    /// Whether the root was named, and not just the default.
    pub(crate) root_given: bool,
    pub(crate) debug: bool,
    pub(crate) log: Option<PathBuf>,
    pub(crate) json_log: bool,
    pub(crate) systemd_cgroup: bool,
    pub(crate) version: bool,
    pub(crate) help: bool,
}

impl Default for Global {
    fn default() -> Self {
        Self {
            root: default_root(),
            root_given: false,
            debug: false,
            log: None,
            json_log: false,
            systemd_cgroup: false,
            version: false,
            help: false,
        }
    }
}

impl Global {
    /// Takes the global options; what is left begins with the command.
    pub(crate) fn parse(&mut self, words: Vec<String>) -> Result<Vec<String>, Error> {
        let global = self;
        let mut words = words.into_iter().peekable();
        while let Some(word) = words.next_if(|word| word.starts_with('-')) {
            match word.as_str() {
                "-v" | "--version" => {
                    global.version = true;
                    continue;
                }
                "-h" | "--help" => {
                    global.help = true;
                    continue;
                }
                _ => {}
            }
            let (name, value) = one(&word, GLOBAL, &mut words)?;
            match (name, value) {
                ("root", Some(root)) => {
                    global.root = absolute(&root)?;
                    global.root_given = true;
                }
                ("debug", value) => global.debug = value.as_deref() != Some("false"),
                ("log", Some(log)) => global.log = Some(PathBuf::from(log)).filter(|log| !log.as_os_str().is_empty()),
                ("log-format", Some(format)) => {
                    global.json_log = match format.as_str() {
                        "json" => true,
                        "text" | "" => false,
                        _ => return Err(Error::Usage(format!("invalid log-format: {format}"))),
                    };
                }
                ("systemd-cgroup", value) => global.systemd_cgroup = value.as_deref() != Some("false"),
                _ => {}
            }
        }
        Ok(words.collect())
    }
}

/// Where a caller without the rights of root may write, where there is such a place.
fn default_root() -> PathBuf {
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|place| !place.is_empty());
    match own.filter(|_| !rustix::process::geteuid().is_root()) {
        Some(place) => PathBuf::from(place).join("gantry-oci"),
        None => PathBuf::from("/run/gantry-oci"),
    }
}

/// The root as an absolute path without `..`; never `/` itself, below which everything would be a container.
fn absolute(root: &str) -> Result<PathBuf, Error> {
    let whole = match std::path::absolute(root) {
        Ok(path) => path,
        // An empty one is the working directory's.
        Err(_) => PathBuf::from("/"),
    };
    let mut folded = PathBuf::from("/");
    for part in whole.components() {
        match part {
            Component::Normal(name) => folded.push(name),
            Component::ParentDir => {
                folded.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if folded == Path::new("/") {
        return Err(Error::Usage("Option --root argument should not be set to /".to_owned()));
    }
    Ok(folded)
}

type Given = (&'static str, Option<String>);

/// One option, with its value if it has one.
fn one(word: &str, flags: &'static [Flag], words: &mut impl Iterator<Item = String>) -> Result<Given, Error> {
    let (name, inline) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (word, None),
    };
    // As runc's parser: one dash serves for long names too.
    let bare = name.trim_start_matches('-');
    let flag = flags
        .iter()
        .find(|flag| flag.long == bare || (!flag.short.is_empty() && flag.short == bare))
        .ok_or_else(|| Error::Usage(format!("flag provided but not defined: {name}")))?;
    if !flag.value {
        return Ok((flag.long, inline));
    }
    let value = inline.or_else(|| words.next());
    value.map(|value| (flag.long, Some(value))).ok_or_else(|| Error::Usage(format!("flag needs an argument: {name}")))
}

/// The words of a command.
#[derive(Debug, Default)]
pub(crate) struct Words {
    /// The command that they belong to.
    command: &'static str,
    given: Vec<Given>,
    /// What is no option.
    pub(crate) plain: Vec<String>,
}

impl Words {
    pub(crate) fn parse(
        command: &'static str,
        words: Vec<String>,
        flags: &'static [Flag],
        rest_is_command: bool,
    ) -> Result<Self, Error> {
        let mut parsed = Self { command, ..Self::default() };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            if word == "--" {
                parsed.plain.extend(words);
                break;
            }
            if word.len() < 2 || !word.starts_with('-') {
                parsed.plain.push(word);
                if rest_is_command {
                    parsed.plain.extend(words);
                    break;
                }
                continue;
            }
            if word == "-h" || word == "--help" {
                parsed.given.push(("help", None));
                continue;
            }
            let given = one(&word, flags, &mut words)?;
            parsed.given.push(given);
        }
        Ok(parsed)
    }

    /// Whether a switch is on.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.given
            .iter()
            .rev()
            .find(|(given, _)| *given == name)
            .is_some_and(|(_, value)| value.as_deref() != Some("false"))
    }

    /// Whether an option was named at all.
    pub(crate) fn given(&self, name: &str) -> bool {
        self.given.iter().any(|(given, _)| *given == name)
    }

    /// The last value of an option; an empty one counts as none.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        let found = self.given.iter().rev().find(|(given, _)| *given == name)?;
        found.1.as_deref().filter(|value| !value.is_empty())
    }

    /// All values of an option.
    pub(crate) fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.given.iter().filter(move |(given, _)| *given == name).filter_map(|(_, value)| value.as_deref())
    }

    /// The value of an option as a number.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Error> {
        let Some(value) = self.value(name) else { return Ok(None) };
        value.parse().map(Some).map_err(|_| Error::Usage(format!("invalid value {value:?} for flag -{name}")))
    }

    /// The error of a wrong number of plain words, `exactly 1` or `a minimum of 1` for instance.
    pub(crate) fn wrong(&self, number: &str) -> Error {
        Error::Usage(format!("{}: {:?} requires {number} argument(s)", super::name(), self.command))
    }

    /// Refuses plain words.
    pub(crate) fn no_plain(&self) -> Result<(), Error> {
        if self.plain.is_empty() { Ok(()) } else { Err(self.wrong("exactly 0")) }
    }

    /// The container's id, the only plain word.
    pub(crate) fn id(&self) -> Result<&str, Error> {
        match self.plain.as_slice() {
            [id] => Ok(id),
            _ => Err(self.wrong("exactly 1")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[switch("force", "f", ""), option("bundle", "b", ""), option("env", "e", "")];

    fn words(line: &str) -> Vec<String> {
        line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn options_stand_anywhere() {
        for line in ["-b /x --force id", "id --bundle=/x -f", "--bundle /x id --force=true", "-bundle=/x -f -- id"] {
            let parsed = Words::parse("x", words(line), FLAGS, false).unwrap();
            assert_eq!(
                (parsed.id().unwrap(), parsed.value("bundle"), parsed.has("force")),
                ("id", Some("/x"), true),
                "{line}"
            );
        }
        let parsed = Words::parse("x", words("-e A=1 --env B=2 id ls -l --force"), FLAGS, true).unwrap();
        assert_eq!(parsed.values("env").collect::<Vec<_>>(), ["A=1", "B=2"]);
        assert_eq!(parsed.plain, ["id", "ls", "-l", "--force"]);
        assert!(!parsed.has("force"));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, want) in
            [("--nope id", "--nope"), ("id --bundle", "--bundle"), ("", "exactly 1"), ("a b", "exactly 1")]
        {
            let error = Words::parse("x", words(line), FLAGS, false)
                .and_then(|parsed| parsed.id().map(str::to_owned))
                .unwrap_err();
            assert!(error.to_string().contains(want), "{error}");
        }
    }

    #[test]
    fn global_options_come_first() {
        let mut global = Global::default();
        let rest = global.parse(words("--root /r --log=/l --log-format json create --bundle b id")).unwrap();
        assert_eq!((global.root, global.log, global.json_log), ("/r".into(), Some("/l".into()), true));
        assert_eq!(rest[0], "create");
        for (line, on) in [("--systemd-cgroup run", true), ("--systemd-cgroup=false run", false), ("run", false)] {
            let mut global = Global::default();
            global.parse(words(line)).unwrap();
            assert_eq!(global.systemd_cgroup, on, "{line}");
        }
        assert!(Global::default().parse(words("--log-format xml run")).is_err());
        for bad in ["--root=", "--root /", "--root /a/../.. list"] {
            assert!(Global::default().parse(words(bad)).is_err(), "{bad}");
        }
    }
}
