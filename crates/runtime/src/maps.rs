//! Id maps of a new user namespace, written by its parent (user_namespaces(7)).

use std::path::PathBuf;

use crate::Error;

/// CAP_SETGID and CAP_SETUID, in whose hands any map may be written.
const ANY_MAP: u64 = 1 << 6 | 1 << 7;

/// Writes both maps of the process `pid`; each is as in `uid_map`: inside, outside, length, a line per range.
///
/// Without the right to write any map, one that maps a single id to the caller's own is written as it is, with groups
/// frozen for a map of groups; others go through `newuidmap` and `newgidmap`, which check them against `/etc/subuid`
/// and `/etc/subgid`. Those are waited for: they are short and the host's own.
pub(crate) fn write(pid: u32, uid_map: &str, gid_map: &str) -> Result<(), Error> {
    if uid_map.is_empty() && gid_map.is_empty() {
        return Ok(());
    }
    let file = |name: &str, text: &str| {
        let path = format!("/proc/{pid}/{name}");
        std::fs::write(&path, text).map_err(|source| Error::host(format!("writing {path}"), source))
    };
    let sets = sys::caps::get().map_err(|errno| Error::host("reading the capabilities of this process", errno))?;
    let any = sets.effective & ANY_MAP == ANY_MAP;
    if any || is_own(uid_map, rustix::process::geteuid().as_raw()) {
        file("uid_map", uid_map)?;
    } else {
        by_helper("newuidmap", pid, uid_map)?;
    }
    if any {
        file("gid_map", gid_map)
    } else if is_own(gid_map, rustix::process::getegid().as_raw()) {
        // Else a process could drop a group that keeps it from something.
        file("setgroups", "deny")?;
        file("gid_map", gid_map)
    } else {
        by_helper("newgidmap", pid, gid_map)
    }
}

/// Whether a map is of one id, the caller's.
fn is_own(map: &str, own: u32) -> bool {
    let mut numbers = map.split_ascii_whitespace().skip(1);
    numbers.next().and_then(|outside| outside.parse().ok()) == Some(own) && numbers.eq(["1"])
}

fn by_helper(name: &str, pid: u32, map: &str) -> Result<(), Error> {
    let failed = |source: std::io::Error| Error::host(format!("running {name}"), source);
    let program = find(name).ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
    let ended = sys::spawn::Command::new(program)
        .arg(pid.to_string())
        .args(map.split_ascii_whitespace())
        .status()
        .map_err(|errno| failed(errno.into()))?;
    match ended.exit {
        sys::process::Exit::Code(0) => Ok(()),
        exit @ (sys::process::Exit::Code(_) | sys::process::Exit::Signal(_)) => {
            Err(failed(std::io::Error::other(format!("{name} ended with status {}", exit.status()))))
        }
    }
}

/// Where the caller's `PATH` has a program.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).filter(|place| place.is_absolute()).map(|place| place.join(name)).find(|p| p.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_maps() {
        for (map, own) in [
            ("0 1000 1\n", true),
            ("7 1000 1\n", true),
            ("0 1000 2\n", false),
            ("0 1001 1\n", false),
            ("0 1000 1\n1 100000 65536\n", false),
            ("", false),
        ] {
            assert_eq!(is_own(map, 1000), own, "{map}");
        }
    }
}
