//! The matrix: {gantryd, Debian's containerd} × {our shim, Debian's shim} × eight scenarios, and our shim with other
//! runtimes. Clients, containerd, its shim, runc and crun are Debian's, unmodified.

mod house;
mod scenarios;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use house::House;
use testkit::{Daemon, Settings, skip};

const DEBIANS_SHIM: &str = "/usr/bin/containerd-shim-runc-v2";
const RUNC: &str = "/usr/sbin/runc";
const CRUN: &str = "/usr/bin/crun";

/// Says so and gives true where a program is missing.
fn missing(scenario: &str, programs: &[&str]) -> bool {
    let absent = programs.iter().find(|program| !Path::new(program).exists());
    if let Some(program) = absent {
        skip(scenario, &format!("{program} is not installed"));
    }
    absent.is_some()
}

#[test]
fn gantryd_with_our_shim() {
    if missing("gantryd_with_our_shim", &["/usr/bin/ctr"]) {
        return;
    }
    scenarios::all(&mut House::gantry(Daemon::start("own"), &["--runtime", "io.containerd.gantry.v2"]));
}

#[test]
fn gantryd_with_debians_shim() {
    if missing("gantryd_with_debians_shim", &["/usr/bin/ctr", DEBIANS_SHIM, RUNC]) {
        return;
    }
    scenarios::all(&mut House::gantry(Daemon::start("foreign"), &["--runtime", DEBIANS_SHIM]));
}

/// The same shim by a name of the configuration.
#[test]
fn gantryd_with_a_shim_of_its_configuration() {
    if missing("gantryd_with_a_shim_of_its_configuration", &["/usr/bin/ctr", DEBIANS_SHIM, RUNC]) {
        return;
    }
    let config = format!("version = 2\n[runtimes]\n\"my.runtime.v1\" = {DEBIANS_SHIM:?}\n");
    let daemon = Daemon::start_with("named", Settings { config, ..Settings::default() });
    let house = House::gantry(daemon, &["--runtime", "my.runtime.v1"]);
    assert_eq!(house.run("named", &["--rm"], &["echo", "named"]).ok().stdout, "named\n");
}

#[test]
fn containerd_with_our_shim() {
    if missing("containerd_with_our_shim", &["/usr/bin/containerd", "/usr/bin/ctr"]) {
        return;
    }
    scenarios::all(&mut House::debian("guest", &["--runtime", "io.containerd.gantry.v2"]));
}

#[test]
fn containerd_with_its_own_shim() {
    if missing("containerd_with_its_own_shim", &["/usr/bin/containerd", "/usr/bin/ctr", DEBIANS_SHIM, RUNC]) {
        return;
    }
    scenarios::all(&mut House::debian("stock", &["--runtime", "io.containerd.runc.v2"]));
}

/// Our shim with another runtime.
fn with_runtime(name: &str, binary: &str) {
    let flags = ["--runtime", "io.containerd.runc.v2", "--runc-binary", binary];
    scenarios::all(&mut House::gantry(Daemon::start(name), &flags));
}

fn script(directory: &Path, text: &str) -> String {
    let path = directory.join("runtime.sh");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_string_lossy().into_owned()
}

#[test]
fn our_shim_with_runc_by_its_path() {
    if !missing("our_shim_with_runc_by_its_path", &["/usr/bin/ctr", RUNC]) {
        with_runtime("runc", RUNC);
    }
}

#[test]
fn our_shim_with_crun() {
    if missing("our_shim_with_crun", &["/usr/bin/ctr", CRUN]) {
        return;
    }
    let controllers = fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers").unwrap_or_default();
    if controllers.trim().is_empty() {
        return with_runtime("crun", "crun");
    }
    // crun refuses a host where version 2 has controllers beside version 1: it gets a view without.
    let directory = tempfile::tempdir().unwrap();
    let hidden = format!("exec unshare --mount sh -c 'umount /sys/fs/cgroup/unified && exec {CRUN} \"$@\"' sh \"$@\"");
    with_runtime("crun", &script(directory.path(), &hidden));
}

#[test]
fn our_shim_with_a_script() {
    if missing("our_shim_with_a_script", &["/usr/bin/ctr", RUNC]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let calls = directory.path().join("calls");
    let text = format!("echo \"$@\" >> {}\nexec {RUNC} \"$@\"", calls.display());
    with_runtime("script", &script(directory.path(), &text));
    let calls = fs::read_to_string(calls).unwrap();
    for command in ["create", "start", "exec", "kill", "pause", "resume", "ps", "delete"] {
        assert!(calls.lines().any(|line| line.contains(&format!(" {command} "))), "{command} is asked of the runtime");
    }
}

#[test]
fn a_runtime_that_is_not_there_is_named() {
    if missing("a_runtime_that_is_not_there_is_named", &["/usr/bin/ctr"]) {
        return;
    }
    let flags = ["--runtime", "io.containerd.runc.v2", "--runc-binary", "no-runc"];
    let house = House::gantry(Daemon::start("none"), &flags);
    let failed = house.run("none", &["--rm"], &["true"]);
    assert!(failed.code != 0 && failed.text().contains("exec: \"no-runc\""), "{}", failed.text());
    assert!(house.shims().is_empty() && house.directory().exists());
}

/// What a daemon asks before it uses a runtime: the features are those of the one that the options name.
#[test]
fn features_are_those_of_the_runtime() {
    if missing("features_are_those_of_the_runtime", &[RUNC]) {
        return;
    }
    // An Any with runc's options, of which only the name of the binary (field 6) is set.
    let any = |binary: &str| {
        let value = [&[0x32, u8::try_from(binary.len()).unwrap()], binary.as_bytes()].concat();
        let url = "containerd.runc.v1.Options";
        let head = [&[0x0a, u8::try_from(url.len()).unwrap()], url.as_bytes()].concat();
        [head, vec![0x12, u8::try_from(value.len()).unwrap()], value].concat()
    };
    let info = |binary: &str| {
        let input = String::from_utf8(any(binary)).unwrap();
        let shim = testkit::binary("containerd-shim-gantry-v2");
        testkit::run_with_input(shim, &["-info"], &input).unwrap().ok().stdout
    };
    let theirs = testkit::run(RUNC, &["features"]).unwrap().ok().stdout;
    let theirs: serde_json::Value = serde_json::from_str(&theirs).unwrap();
    let version = theirs["annotations"]["org.opencontainers.runc.version"].as_str().unwrap();
    assert!(info(RUNC).contains(version) && !info("runc").contains(version));
    let absent = testkit::run_with_input(
        testkit::binary("containerd-shim-gantry-v2"),
        &["-info"],
        &String::from_utf8(any("no-runc")).unwrap(),
    );
    assert!(absent.unwrap().text().contains("exec: \"no-runc\""));
}

/// dockerd names `runc` and means no file: that name, and no name, execute none.
#[test]
fn bare_runc_runs_no_program() {
    if missing("bare_runc_runs_no_program", &["/usr/bin/ctr", "/usr/bin/strace", RUNC]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace");
    let executed = |binary: &str| {
        let wrapper = ["strace", "--follow-forks", "--output", &trace.to_string_lossy(), "-e", "trace=execve"];
        let wrapper = wrapper.map(str::to_owned).to_vec();
        let daemon = Daemon::start_with("trace", Settings { wrapper, ..Settings::default() });
        let flags = ["--runtime", "io.containerd.runc.v2", "--runc-binary", binary];
        let house = House::gantry(daemon, &flags);
        house.run("web", &["-d"], &["sleep", "1000"]).ok();
        house.ctr(&["task", "exec", "--exec-id", "e", "web", "true"]).ok();
        house.ctr(&["task", "kill", "--signal", "SIGKILL", "web"]).ok();
        house.until("web", "STOPPED");
        assert_eq!(house.remove("web"), 137);
        let text = fs::read_to_string(&trace).unwrap();
        let programs = text.lines().filter_map(|line| line.split("execve(\"").nth(1)?.split('"').next());
        programs.map(str::to_owned).collect::<Vec<_>>()
    };
    let runs = |programs: &[String]| programs.iter().filter(|program| program.ends_with("/runc")).count();
    for binary in ["runc", "gantry-oci"] {
        let programs = executed(binary);
        assert!(programs.iter().any(|program| program.ends_with("containerd-shim-gantry-v2")), "{programs:?}");
        assert_eq!(runs(&programs), 0, "{programs:?}");
    }
    let programs = executed(RUNC);
    println!("{RUNC} by its path is executed {} times, runc by its name never", runs(&programs));
    assert!(runs(&programs) > 0, "the trace sees what a path executes: {programs:?}");
}
