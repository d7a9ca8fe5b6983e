//! Foreign suites on a checkout that is given, and benchmarks beside their peers.

mod attacks;
mod containerd_client;
mod results;
mod room;
mod runc_bats;
mod runtime_tools;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{cargo, dist, root, run, setup};

/// Benchmarks: name and what they print.
const BENCHES: &[(&str, &str)] = &[
    (
        "tasks",
        "lives and execs of `true` through gRPC, gantryd and Debian's containerd in turns: --count N, --binary crun",
    ),
    ("density", "memory and threads of idle shims, memory and descriptors of the daemons: --count N"),
    ("restart", "kill -9 and restart with 500 containers, until all are RUNNING: --count N"),
    ("stdio", "throughput of output into a file, a FIFO whose daemon and reader are stopped: --count MIB"),
    ("soak", "what of gantryd grows with 10,000 lives: --count N"),
    ("runtime", "gantry-oci, runc, crun and the bare kernel in turns: --rounds N, --runtime PATH, --seccomp PATH"),
];

/// Suites: name, what DIR is, and what it runs.
const SUITES: &[(&str, &str, &str)] = &[
    (
        "containerd-client",
        "a checkout of containerd",
        "its client integration tests [--mode own|address] [--binaries DIR] [PATTERN...]",
    ),
    ("host-service", "a directory with the program `vm` that boots Debian", "the systemd unit under cgroup v2"),
    ("runc-bats", "a checkout of opencontainers/runc", "its integration tests [--runtime PATH] [FILE...]"),
    (
        "runtime-tools",
        "a checkout of opencontainers/runtime-tools",
        "its validation programs [--runtime PATH] [--without-v2] [PROGRAM...]",
    ),
    (
        "cgroups",
        "a directory with the program `vm` that boots Debian",
        "both cgroup drivers of gantry-oci under systemd",
    ),
    (
        "ctr",
        "a checkout of containerd, or nothing for Debian's packages",
        "lines typed at gantryd and containerd by its own ctr; prints the table",
    ),
    ("criu", "a directory with the program `vm` that boots Debian", "checkpoint and restore by CRIU on Linux 6.1"),
];

/// Runs a benchmark on the release binaries.
pub(crate) fn bench(arguments: &[&str]) -> Result<()> {
    let Some((name, rest)) = arguments.split_first() else {
        for (name, what) in BENCHES {
            println!("{name:<14} {what}");
        }
        return Ok(());
    };
    if !BENCHES.iter().any(|(known, _)| known == name) {
        bail!("no benchmark {name:?}: `cargo xtask bench` lists them");
    }
    setup::for_tests()?;
    if *name == "runtime" {
        let programs = ["gantry-oci", "bench-runtime", "bench-engine", "bench-floor"];
        let selection: Vec<&str> = programs.iter().flat_map(|name| ["--bin", name]).collect();
        let built = dist::build_static(&selection)?;
        return run(Command::new(built.join("bench-runtime")).args(rest));
    }
    dist::dist()?;
    run(cargo()
        .args(["bench", "--locked", "--quiet", "-p", "blackbox", "--bench", "beside", "--", name])
        .args(rest)
        .env("GANTRY_BIN_DIR", dist::directory()))
}

/// Runs a foreign suite.
pub(crate) fn suite(arguments: &[&str]) -> Result<()> {
    match arguments {
        [] => {
            for (name, source, what) in SUITES {
                println!("{name:<18} {what}; DIR is {source}");
            }
            println!("{:<18} attacks on runtimes; --runtime [LABEL=]PATH names them, words choose attacks", "attacks");
            Ok(())
        }
        ["attacks", rest @ ..] => attacks::attacks(rest),
        ["host-service", "--src", directory] => host_service(Path::new(directory)),
        ["containerd-client", "--src", directory, words @ ..] => {
            containerd_client::containerd_client(Path::new(directory), words)
        }
        ["runc-bats", "--src", directory, words @ ..] => runc_bats::runc_bats(Path::new(directory), words),
        ["runtime-tools", "--src", directory, "--runtime", runtime, only @ ..] => {
            runtime_tools::runtime_tools(Path::new(directory), Some(runtime), only)
        }
        ["runtime-tools", "--src", directory, only @ ..] => {
            runtime_tools::runtime_tools(Path::new(directory), None, only)
        }
        ["cgroups", "--src", directory] => cgroups(Path::new(directory)),
        ["ctr"] => ctr(None),
        ["ctr", "--src", directory] => ctr(Some(Path::new(directory))),
        ["criu", "--src", directory] => criu(Path::new(directory)),
        [name, "--src", _] => bail!("no suite {name:?}: `cargo xtask suite` lists them"),
        _ => bail!("usage: cargo xtask suite NAME --src DIR"),
    }
}

/// Types `tests/surface` at both daemons, with the programs of a checkout if one is given, and prints the table.
fn ctr(directory: Option<&Path>) -> Result<()> {
    setup::for_tests()?;
    dist::dist()?;
    let scratch = std::env::temp_dir().join(format!("gantry-ctr-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    if let Some(directory) = directory {
        for name in ["ctr", "containerd", "containerd-shim-runc-v2"] {
            let package = format!("./cmd/{name}");
            run(Command::new("go").args(["build", "-o"]).arg(scratch.join(name)).arg(package).current_dir(directory))?;
        }
    }
    let table = scratch.join("table.md");
    let path = format!("{}:{}", scratch.display(), std::env::var("PATH").unwrap_or_default());
    let outcome = run(cargo()
        .args(["test", "--locked", "--quiet", "-p", "blackbox", "--test", "surface"])
        .env("PATH", path)
        .env("GANTRY_BIN_DIR", dist::directory())
        .env("GANTRY_SURFACE_TABLE", &table));
    if let Ok(text) = std::fs::read_to_string(&table) {
        println!("{text}");
    }
    std::fs::remove_dir_all(&scratch).with_context(|| format!("remove {}", scratch.display()))?;
    outcome
}

/// Boots a machine with a kernel that Debian's CRIU knows, and runs `tests/criu.sh` on it.
fn criu(directory: &Path) -> Result<()> {
    setup::for_tests()?;
    dist::dist()?;
    let mut command = Command::new(directory.join("vm"));
    command.env("VM_PACKAGES", "criu busybox-static python3-minimal");
    command.args(["run", "--backend", "tcg", "--boot-timeout", "600", "--timeout", "900"]);
    command.arg("--copy").arg(format!("{}:/usr/local/bin/gantry-oci", dist::directory().join("gantry-oci").display()));
    command.arg("--copy").arg(format!("{}:/root/criu.sh", root().join("tests/criu.sh").display()));
    run(command.args(["--", "bash", "/root/criu.sh"]))
}

/// Boots a machine with systemd and cgroup v2, installs the unit and the binaries, and runs `tests/host-service.sh`.
fn host_service(directory: &Path) -> Result<()> {
    setup::for_tests()?;
    dist::dist()?;
    let scratch = std::env::temp_dir().join(format!("gantry-host-service-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let image = scratch.join("busybox.tar");
    testkit::busybox_image(&image, "docker.io/library/busybox:latest")?;
    let outcome = boot(&directory.join("vm"), &image);
    std::fs::remove_dir_all(&scratch).with_context(|| format!("remove {}", scratch.display()))?;
    outcome
}

/// Boots a machine with systemd and cgroup v2, and runs `tests/cgroups-suite.sh` with gantry-oci.
fn cgroups(directory: &Path) -> Result<()> {
    dist::dist()?;
    let mut command = Command::new(directory.join("vm"));
    command.args(["run", "--backend", "uml", "--packages", "jq"]);
    for (from, to) in [
        (dist::directory().join("gantry-oci"), "/usr/local/bin/gantry-oci"),
        (root().join("tests/cgroups-suite.sh"), "/root/cgroups-suite.sh"),
    ] {
        command.arg("--copy").arg(format!("{}:{to}", from.display()));
    }
    run(command.args(["--", "bash", "/root/cgroups-suite.sh"]))
}

fn boot(vm: &Path, image: &Path) -> Result<()> {
    let mut copies: Vec<(PathBuf, String)> = ["gantryd", "gantryctl", "containerd-shim-gantry-v2", "gantry-oci"]
        .iter()
        .map(|name| (dist::directory().join(name), format!("/usr/local/bin/{name}")))
        .collect();
    copies.push((root().join("daemon/gantryd.service"), "/etc/systemd/system/gantryd.service".into()));
    copies.push((image.to_owned(), "/root/busybox.tar".into()));
    copies.push((root().join("tests/host-service.sh"), "/root/host-service.sh".into()));
    let mut command = Command::new(vm);
    command.args(["run", "--backend", "uml"]);
    for (from, to) in copies {
        command.arg("--copy").arg(format!("{}:{to}", from.display()));
    }
    run(command.args(["--", "bash", "/root/host-service.sh"]))
}
