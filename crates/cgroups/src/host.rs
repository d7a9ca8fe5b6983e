//! Which control groups this host has, and where.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use rustix::fs::statfs;
use sys::Errno;

use crate::{Error, Result};

/// Where every system mounts them.
const USUAL_PLACE: &str = "/sys/fs/cgroup";
/// `CGROUP_SUPER_MAGIC`
const MAGIC_V1: i64 = 0x0027_e0eb;
/// `CGROUP2_SUPER_MAGIC`
const MAGIC_V2: i64 = 0x6367_7270;

/// The control groups of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// One hierarchy per controller, as mounted; a hybrid host counts as this.
    V1 {
        /// Controller (`cpu`, `name=systemd`) and where it is mounted, each controller once. Controllers of one
        /// hierarchy have the same place. The version 2 hierarchy of a hybrid host comes last, with no name.
        controllers: Vec<(String, PathBuf)>,
    },
    /// The one hierarchy of version 2.
    V2 {
        /// Where it is mounted.
        mount: PathBuf,
    },
}

impl Host {
    /// Finds the control groups that the caller's mount namespace shows. Do it once.
    ///
    /// What is mounted at `/sys/fs/cgroup` decides: version 2 if that itself is a cgroup2 file system, whatever it
    /// hides; else the version 1 hierarchies of the mount table; else a cgroup2 file system mounted elsewhere.
    pub fn detect() -> Result<Self> {
        let usual = Path::new(USUAL_PLACE);
        if magic(usual) == Some(MAGIC_V2) {
            return Ok(Self::V2 { mount: usual.to_owned() });
        }
        let table = mount_table().map_err(|error| Error::Detect {
            reason: "the mount table cannot be read",
            source: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        })?;
        Self::from_table(&table, |place, magic_of| magic(place) == Some(magic_of))
            .ok_or(Error::Detect { reason: "no cgroup file system is mounted", source: Errno::NOENT })
    }

    /// Whether this is version 2.
    pub fn is_v2(&self) -> bool {
        matches!(self, Self::V2 { .. })
    }

    /// Reads the mount table; where that leaves open whether a later mount hides a place, `is` tells whether it really
    /// shows a file system of this kind.
    fn from_table(table: &str, is: impl Fn(&Path, i64) -> bool) -> Option<Self> {
        let places = Places::new(table);
        let shows = |field: &str, place: &Path, kind| places.in_sight(field) || is(place, kind);
        let mut controllers: Vec<(String, PathBuf)> = Vec::new();
        let mut v2 = None;
        for line in table.lines() {
            let Some((mount, file_system)) = line.split_once(" - ") else { continue };
            let Some(field) = mount.split(' ').nth(4) else { continue };
            let place = PathBuf::from(field.replace("\\040", " "));
            let mut fields = file_system.split(' ');
            match (fields.next(), fields.nth(1)) {
                (Some("cgroup"), Some(options)) if shows(field, &place, MAGIC_V1) => {
                    for controller in options.split(',').filter(|option| is_controller(option)) {
                        if controllers.iter().all(|(known, _)| known != controller) {
                            controllers.push((controller.to_owned(), place.clone()));
                        }
                    }
                }
                (Some("cgroup2"), _) if v2.is_none() && shows(field, &place, MAGIC_V2) => v2 = Some(place),
                _ => {}
            }
        }
        // A named hierarchy alone, as systemd has one beside version 2, limits nothing.
        if controllers.iter().any(|(name, _)| !name.starts_with("name=")) || (v2.is_none() && !controllers.is_empty()) {
            // Of use to those who tell containers apart by their group there, as eBPF programs do.
            controllers.extend(v2.map(|mount| (String::new(), mount)));
            return Some(Self::V1 { controllers });
        }
        v2.map(|mount| Self::V2 { mount })
    }
}

/// The mount table, in few reads: that of a busy host is long, and its size is not known before.
fn mount_table() -> std::io::Result<String> {
    let mut table = String::with_capacity(16 << 10);
    std::io::Read::read_to_string(&mut std::fs::File::open("/proc/self/mountinfo")?.take(u64::MAX), &mut table)?;
    Ok(table)
}

/// The mount points of a table, to tell which of them are in sight.
struct Places<'table>(Vec<Place<'table>>);

#[derive(Clone, Copy)]
struct Place<'table> {
    id: &'table str,
    parent: &'table str,
    path: &'table str,
}

impl<'table> Places<'table> {
    fn new(table: &'table str) -> Self {
        let place = |line: &'table str| {
            let mut fields = line.split(' ');
            let (id, parent) = (fields.next()?, fields.next()?);
            Some(Place { id, parent, path: fields.nth(2)? })
        };
        Self(table.lines().filter_map(place).collect())
    }

    /// Whether nothing can be mounted over this place: nothing else is mounted on it, and it hangs on the one mount that
    /// its path leads through, for which the same holds. False also where the table does not tell.
    fn in_sight(&self, path: &str) -> bool {
        let on = |path: &str| {
            let mut found = self.0.iter().filter(|place| place.path == path);
            found.next().filter(|_| found.next().is_none())
        };
        let Some(mut place) = on(path) else { return false };
        while place.path != "/" {
            let mut above = place.path;
            let next = loop {
                above = match above.rfind('/') {
                    Some(0) if above != "/" => "/",
                    Some(slash) if slash > 0 => &above[..slash],
                    _ => return false,
                };
                if self.0.iter().any(|place| place.path == above) {
                    break on(above);
                }
            };
            match next {
                Some(next) if next.id == place.parent => place = next,
                _ => return false,
            }
        }
        true
    }
}

/// Tells a controller from the other options of a version 1 mount.
fn is_controller(option: &str) -> bool {
    !matches!(
        option,
        "" | "rw"
            | "ro"
            | "none"
            | "noprefix"
            | "xattr"
            | "clone_children"
            | "cpuset_v2_mode"
            | "favordynmods"
            | "nofavordynmods"
    ) && !option.starts_with("release_agent=")
}

#[expect(clippy::unnecessary_cast, reason = "the type of f_type differs between architectures")]
fn magic(place: &Path) -> Option<i64> {
    statfs(place).ok().map(|status| status.f_type as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    fn at(place: &str) -> PathBuf {
        PathBuf::from(place)
    }

    #[test]
    fn a_hybrid_host_is_version_1() {
        let Some(Host::V1 { controllers }) = Host::from_table(HYBRID, |_, _| true) else { panic!("not version 1") };
        let expected = [
            ("cpu", "/sys/fs/cgroup/cpu,cpuacct"),
            ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
            ("memory", "/sys/fs/cgroup/memory"),
            ("name=systemd", "/sys/fs/cgroup/systemd"),
            ("", "/sys/fs/cgroup/unified"),
        ];
        assert_eq!(controllers, expected.map(|(name, place)| (name.to_owned(), at(place))));
    }

    #[test]
    fn hidden_mounts_do_not_count() {
        let only_v2 = |_: &Path, kind| kind == MAGIC_V2;
        assert_eq!(Host::from_table(HYBRID, only_v2), Some(Host::V2 { mount: at("/sys/fs/cgroup/unified") }));
        assert_eq!(Host::from_table(HYBRID, |_, _| false), None);
        // systemd's named hierarchy beside version 2 does not make a version 1 host.
        let named: String = HYBRID.lines().skip(3).map(|line| format!("{line}\n")).collect();
        assert!(Host::from_table(&named, |_, _| true).unwrap().is_v2());
    }

    #[test]
    fn what_the_table_tells_needs_no_look() {
        let root = "1 0 8:1 / / rw - ext4 /dev/x rw\n23 1 0:22 / /sys rw - sysfs sysfs rw\n";
        let plain = format!("{root}{HYBRID}");
        assert!(!Host::from_table(&plain, |_, _| panic!("asked")).unwrap().is_v2());
        let places = Places::new(&plain);
        assert!(places.in_sight("/sys/fs/cgroup/memory") && !places.in_sight("/sys/fs/cgroup/pids"));
        // Over the place itself, over one above it, and on a mount that is hidden by one above.
        for line in ["60 35 0:9 / /sys/fs/cgroup/memory rw", "60 31 0:9 / /sys/fs/cgroup rw", "60 1 0:9 / /sys rw"] {
            let hidden = format!("{plain}{line} - tmpfs tmpfs rw\n");
            assert!(!Places::new(&hidden).in_sight("/sys/fs/cgroup/memory"), "{line}");
        }
        let other_parent = plain.replace("35 31 ", "35 23 ");
        assert!(!Places::new(&other_parent).in_sight("/sys/fs/cgroup/memory"));
    }

    #[test]
    fn this_host_has_some() {
        Host::detect().unwrap();
    }
}
