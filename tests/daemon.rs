//! The daemon as an operator meets it: flags, configuration, sockets, a second instance, installed as `containerd`.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use testkit::{Daemon, Settings, binary, eventually, run};

#[test]
fn sockets_are_private_and_a_second_daemon_is_refused() {
    let daemon = Daemon::start("sockets");
    for name in ["gantryd.sock", "gantryd.sock.ttrpc"] {
        let mode = std::fs::metadata(daemon.directory().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660, "{name}");
    }
    assert_eq!(std::fs::metadata(daemon.directory().join("root")).unwrap().permissions().mode() & 0o777, 0o700);
    let (root, state) = (daemon.directory().join("root"), daemon.directory().join("state"));
    let second = run(
        binary("gantryd"),
        &["--root", &root.to_string_lossy(), "--state", &state.to_string_lossy(), "--address", &daemon.address()],
    )
    .unwrap();
    assert_ne!(second.code, 0, "two daemons on one root: {}", second.text());
    daemon.ctl(&["version"]).ok();
}

#[test]
fn configuration_is_printed_and_read() {
    let default = run(binary("gantryd"), &["config", "default"]).unwrap().ok();
    assert!(default.stdout.contains("version = ") && default.stdout.contains("root = "), "{}", default.stdout);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    std::fs::write(
        &file,
        "version = 2\nroot = \"/somewhere/root\"\nno_such_key = 1\n[grpc]\naddress = \"/somewhere/sock\"\n",
    )
    .unwrap();
    let dump = run(binary("gantryd"), &["--config", &file.to_string_lossy(), "config", "dump"]).unwrap().ok();
    assert!(dump.stdout.contains("/somewhere/root") && dump.stdout.contains("/somewhere/sock"), "{}", dump.text());
    let missing = run(binary("gantryd"), &["--config", "/no/such/file", "config", "dump"]).unwrap();
    assert!(missing.code != 0 && missing.text().contains("/no/such/file"), "{}", missing.text());
    std::fs::write(&file, "version = \"x").unwrap();
    let broken = run(binary("gantryd"), &["--config", &file.to_string_lossy(), "config", "dump"]).unwrap();
    assert_ne!(broken.code, 0, "{}", broken.text());
}

/// dockerd and the integration suite start a program named `containerd` with nothing but a configuration file.
#[test]
fn installed_as_containerd_it_serves() {
    let directory = tempfile::tempdir().unwrap();
    let text = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    for (from, to) in [("gantryd", "containerd"), ("containerd-shim-gantry-v2", "containerd-shim-gantry-v2")] {
        std::fs::copy(binary(from), directory.path().join(to)).unwrap();
    }
    let config = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\noom_score = 0\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = {:?}\n  uid = 0\n  gid = 0\n  max_recv_message_size = 16777216\n  max_send_message_size = 16777216\n[debug]\n  address = \"\"\n  level = \"debug\"\n[timeouts]\n  \"io.containerd.timeout.shim.load\" = \"5s\"\n",
        text("root"),
        text("state"),
        text("containerd.sock")
    );
    std::fs::write(directory.path().join("config.toml"), config).unwrap();
    let mut child = Command::new(directory.path().join("containerd"))
        .args(["--config", &text("config.toml"), "--log-level", "debug"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(std::fs::File::create(directory.path().join("log")).unwrap()))
        .spawn()
        .unwrap();
    eventually("it serves", || {
        let version = run(binary("gantryctl"), &["--address", &text("containerd.sock"), "version"]).unwrap();
        if version.code == 0 {
            Ok(())
        } else {
            Err(std::fs::read_to_string(directory.path().join("log")).unwrap_or_default())
        }
    });
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}

/// Text logs are for people, JSON logs for collectors; both say that the daemon serves.
#[test]
fn logs_are_json_when_configured() {
    let config = "version = 2\n[debug]\nformat = \"json\"\n".to_owned();
    let daemon = Daemon::start_with("json", Settings { config, ..Settings::default() });
    let log = daemon.log();
    let line = log.lines().next().expect("a log line");
    serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{line}: {error}"));
}
