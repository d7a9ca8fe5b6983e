//! The configuration: what is printed, what older files become, and what SIGHUP changes.

use std::path::Path;
use std::process::{Command, Output};

use api_grpc::encode;
use api_grpc::services::introspection::PluginInfoRequest;
use api_grpc::services::introspection::introspection_client::IntrospectionClient;
use api_grpc::types::RuntimeRequest;
use rustix::process::Signal;
use testkit::{Daemon, Settings, binary, eventually};
use tonic::Status;

fn config(program: &Path, file: Option<&Path>, action: &str) -> Output {
    let mut command = Command::new(program);
    if let Some(file) = file {
        command.arg("-c").arg(file);
    }
    command.args(["config", action]).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn old_files_become_new_ones() {
    let directory = tempfile::tempdir().unwrap();
    let containerd = directory.path().join("containerd");
    std::os::unix::fs::symlink(binary("gantryd"), &containerd).unwrap();
    let default = text(&config(&containerd, None, "default"));
    assert!(default.starts_with("version = 4\n") && default.contains("/run/containerd/containerd.sock"), "{default}");
    let file = directory.path().join("config.toml");
    std::fs::write(&file, &default).unwrap();
    assert_eq!(text(&config(&containerd, Some(&file), "migrate")), default);
    assert_eq!(text(&config(&containerd, Some(&file), "dump")), default);

    let one = "[plugins.restart]\ninterval = '3s'\n[plugins.opt]\npath = '/opt/x'\n[grpc]\naddress = '/run/x/y.sock'";
    std::fs::write(&file, one).unwrap();
    let migrated = text(&config(&containerd, Some(&file), "migrate"));
    for want in ["io.containerd.monitor.container.v1.restart", "/opt/x", "address = \"/run/x/y.sock\""] {
        assert!(migrated.contains(want), "{want}: {migrated}");
    }
    std::fs::write(&file, &migrated).unwrap();
    assert_eq!(text(&config(&containerd, Some(&file), "migrate")), migrated);

    let deep = "x = ".to_owned() + &"[".repeat(100_000);
    for wrong in ["version = 9", "root = 7", "imports = ['none.toml']", "[plugins]\nx", "[grpc]\nuid = -1", &deep] {
        std::fs::write(&file, wrong).unwrap();
        let output = config(&containerd, Some(&file), "migrate");
        let shown: String = wrong.chars().take(40).collect();
        assert_eq!(output.status.code(), Some(1), "{shown}: {output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{shown}");
    }
}

async fn ask(daemon: &Daemon, runtime: &str) -> Result<(), Status> {
    let client = client::Client::connect(Path::new(&daemon.address()), "default").await.unwrap();
    let question = RuntimeRequest { runtime_path: runtime.to_owned(), options: None };
    let question = PluginInfoRequest {
        r#type: "io.containerd.runtime.v2".to_owned(),
        id: "task".to_owned(),
        options: Some(encode::any(encode::pack(&question))),
    };
    IntrospectionClient::new(client.channel()).plugin_info(question).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn hangup_reloads_what_can_be_reloaded() {
    let settings = Settings { config: "version = 3\nnonsense = 1\n".to_owned(), ..Settings::default() };
    let daemon = Daemon::start_with("reload", settings);
    assert!(daemon.log().contains("nonsense means nothing here"), "{}", daemon.log());
    ask(&daemon, "my.own.v1").await.unwrap_err();
    let file = daemon.directory().join("config.toml");
    let reload = |text: &str, wanted: &str| {
        std::fs::write(&file, text).unwrap();
        daemon.signal(Signal::HUP);
        eventually("the log tells", || if daemon.log().contains(wanted) { Ok(()) } else { Err(daemon.log()) });
    };
    let shim = binary("containerd-shim-gantry-v2");
    let runtimes = format!("[runtimes]\n'my.own.v1' = '{}'\n", shim.display());
    reload(&format!("version = 4\noom_score = 3\n{runtimes}"), "fixed=\"oom_score\"");
    ask(&daemon, "my.own.v1").await.unwrap();
    for (wrong, told) in [
        ("version = 4\nroot = 'relative", "configuration not reloaded"),
        ("version = 7", "version 7 is not supported"),
        ("[debug]\nformat = 'xml'", "must be text or json"),
    ] {
        reload(wrong, told);
        ask(&daemon, "my.own.v1").await.unwrap();
    }
    reload(&format!("version = 4\n{runtimes}[debug]\nformat = 'json'"), "\"message\":\"configuration reloaded\"");
    reload("version = 4\n[debug]\nformat = 'text'", "INFO gantryd::reload: configuration reloaded\n");
    ask(&daemon, "my.own.v1").await.unwrap_err();
}
