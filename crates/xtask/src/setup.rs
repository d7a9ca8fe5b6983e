//! Debian packages that the tests and the demo use, installed when missing.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

/// What the scenarios need: the image's busybox, the foreign clients and daemons, a tracer, a file system maker, and the
/// library that our system call filters are compared with.
const TEST_PACKAGES: &[(&str, &str)] = &[
    ("busybox-static", "/bin/busybox"),
    ("containerd", "/usr/bin/ctr"),
    ("runc", "/usr/sbin/runc"),
    ("strace", "/usr/bin/strace"),
    ("e2fsprogs", "/sbin/mkfs.ext4"),
    ("mount", "/bin/mount"),
    ("libseccomp2", "/usr/lib/x86_64-linux-gnu/libseccomp.so.2"),
    ("podman", "/usr/bin/podman"),
    ("conmon", "/usr/bin/conmon"),
    ("docker.io", "/usr/sbin/dockerd"),
];

/// Installs what the tests need.
pub(crate) fn for_tests() -> Result<()> {
    install(TEST_PACKAGES)
}

/// What runc's integration tests call.
const RUNC_BATS_PACKAGES: &[(&str, &str)] = &[
    ("bats", "/usr/bin/bats"),
    ("bsdutils", "/usr/bin/script"),
    ("busybox-static", "/bin/busybox"),
    ("debootstrap", "/usr/sbin/debootstrap"),
    ("gawk", "/usr/bin/gawk"),
    ("gcc", "/usr/bin/gcc"),
    ("jq", "/usr/bin/jq"),
    ("make", "/usr/bin/make"),
];

/// Installs what runc's integration tests need.
pub(crate) fn for_runc_bats() -> Result<()> {
    install(RUNC_BATS_PACKAGES)
}

/// What containerd's client tests call, and what serves their images.
const CONTAINERD_CLIENT_PACKAGES: &[(&str, &str)] = &[
    ("busybox-static", "/bin/busybox"),
    ("curl", "/usr/bin/curl"),
    ("docker-registry", "/usr/bin/docker-registry"),
    ("iproute2", "/sbin/ip"),
    ("lsof", "/usr/bin/lsof"),
    ("openssl", "/usr/bin/openssl"),
    ("procps", "/bin/ps"),
    ("skopeo", "/usr/bin/skopeo"),
    ("xfsprogs", "/sbin/mkfs.xfs"),
];

/// Installs what containerd's client tests need.
pub(crate) fn for_containerd_client() -> Result<()> {
    install(CONTAINERD_CLIENT_PACKAGES)
}

/// Installs what the demo needs.
pub(crate) fn for_demo() -> Result<()> {
    install(&TEST_PACKAGES[..1])
}

fn install(packages: &[(&str, &str)]) -> Result<()> {
    // A dynamic busybox has the same name, and is of no use in an image.
    let there = |name: &str, file: &str| match name {
        "busybox-static" => testkit::requires_busybox().is_ok(),
        _ => Path::new(file).exists(),
    };
    let missing: Vec<&str> = packages.iter().filter(|(name, file)| !there(name, file)).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(" "));
    let apt = |arguments: &[&str]| -> Result<bool> {
        let mut command = Command::new("apt-get");
        command.args(["--quiet", "--quiet", "--yes"]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        Ok(command.stdout(std::process::Stdio::null()).status()?.success())
    };
    let mut words = vec!["install", "--no-install-recommends"];
    words.extend(&missing);
    // The package lists of a fresh machine may be missing or old.
    let installed = apt(&words)? || (apt(&["update"])? && apt(&words)?);
    if !installed {
        bail!("apt-get could not install {}", missing.join(" "));
    }
    Ok(())
}
