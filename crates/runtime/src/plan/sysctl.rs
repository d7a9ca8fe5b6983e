//! Kernel parameters of the container's namespaces.

use std::ffi::CString;

use oci::runtime::Linux;
use sys::clone::flags;
use sys::undefended::{Defence, left_out};

use super::Spaces;
use crate::Error;

/// The files below `/proc` to write, and what. Only what belongs to a namespace of the container may be set: anything
/// else would change the host. A value is what is written to that one file and nothing else, whatever is in it
/// (CVE-2022-0811).
pub(crate) fn sysctls(linux: Option<&Linux>, spaces: &Spaces) -> Result<Vec<(CString, Vec<u8>)>, Error> {
    let mut list = Vec::new();
    for (key, value) in linux.into_iter().flat_map(|linux| linux.sysctl().iter().flatten()) {
        let invalid = |problem: String| Error::invalid("linux.sysctl", problem);
        let path = path(key).ok_or_else(|| invalid(format!("{key:?} is no name of a sysctl")))?;
        if path == "kernel/hostname" && spaces.has(flags::NEWUTS) {
            let problem = format!("sysctl {key:?} is not allowed as it conflicts with the OCI \"hostname\" field");
            return Err(invalid(problem));
        }
        let owner = owner(&path)
            .or(left_out(Defence::Sysctls).then_some(flags::NEWNS))
            .ok_or_else(|| invalid(format!("sysctl {key:?} is not in a separate kernel namespace")))?;
        if !spaces.has(owner) {
            let problem = match owner {
                flags::NEWIPC => format!("sysctl {key:?} is not allowed in the hosts ipc namespace"),
                flags::NEWNET => format!("sysctl {key:?} not allowed in host network namespace"),
                flags::NEWUSER => format!("setting ucounts without a user namespace not allowed: {key}"),
                _ => format!("sysctl {key:?} is not in a separate kernel namespace"),
            };
            return Err(invalid(problem));
        }
        let path = CString::new(format!("sys/{path}")).map_err(|_| invalid("NUL byte".to_owned()))?;
        list.push((path, value.clone().into_bytes()));
    }
    list.sort();
    Ok(list)
}

/// Whether any of them is about the network.
pub(crate) fn of_network(list: &[(CString, Vec<u8>)]) -> bool {
    list.iter().any(|(path, _)| path.as_bytes().starts_with(b"sys/net/"))
}

/// The path below `/proc/sys`. The first separator of a name says which of the two separates; the other one is part of
/// a name, as of an interface with a dot in it (sysctl(8)).
fn path(key: &str) -> Option<String> {
    let dotted = key.find(['.', '/']).is_some_and(|at| key[at..].starts_with('.'));
    let swap = |letter: char| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let path: String = if dotted { key.chars().map(swap).collect() } else { key.to_owned() };
    let good = |name: &str| {
        let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.:@".contains(&byte));
        letters && !name.is_empty() && name != "." && name != ".."
    };
    (path.split('/').all(good) || left_out(Defence::Sysctls)).then_some(path)
}

/// The namespace that a parameter belongs to.
fn owner(path: &str) -> Option<u64> {
    const IPC: [&str; 8] = ["msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"];
    let below = |directory: &str| path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'));
    if below("net") {
        return Some(flags::NEWNET);
    }
    if below("fs/mqueue") {
        return Some(flags::NEWIPC);
    }
    if below("user") {
        return Some(flags::NEWUSER);
    }
    match path.strip_prefix("kernel/") {
        Some("domainname") => Some(flags::NEWUTS),
        Some(name) if IPC.contains(&name) => Some(flags::NEWIPC),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (key, want) in [
            ("net.ipv4.ip_forward", Some("net/ipv4/ip_forward")),
            ("net/ipv4/ip_forward", Some("net/ipv4/ip_forward")),
            ("net.ipv4.conf.eth0/100.rp_filter", Some("net/ipv4/conf/eth0.100/rp_filter")),
            ("net/ipv4/conf/eth0.100/rp_filter", Some("net/ipv4/conf/eth0.100/rp_filter")),
            ("kernel.shm_rmid_forced", Some("kernel/shm_rmid_forced")),
            ("", None),
            (".", None),
            ("net..x", None),
            ("net/../../x", None),
            ("net.ipv4.//.x", None),
            ("net.ipv4./.x", None),
            ("/net/x", None),
            ("net.x\n", None),
            ("net.a b", None),
            ("net.a=b", None),
            ("net.a+b", None),
        ] {
            assert_eq!(path(key).as_deref(), want, "{key}");
        }
    }

    #[test]
    fn owners() {
        for (path, want) in [
            ("net/x", Some(flags::NEWNET)),
            ("network", None),
            ("user/max_user_namespaces", Some(flags::NEWUSER)),
            ("fs/mqueue/msg_max", Some(flags::NEWIPC)),
            ("fs/file-max", None),
            ("kernel/sem", Some(flags::NEWIPC)),
            ("kernel/core_pattern", None),
            ("kernel/domainname", Some(flags::NEWUTS)),
        ] {
            assert_eq!(owner(path), want, "{path}");
        }
    }
}
