//! What clients learn of the daemon and its runtimes, and the hook that is the daemon's own program.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use api_grpc::services::introspection::PluginInfoRequest;
use api_grpc::services::introspection::introspection_client::IntrospectionClient;
use api_grpc::services::snapshots::CleanupRequest;
use api_grpc::services::snapshots::snapshots_client::SnapshotsClient;
use api_grpc::types::{RuntimeInfo, RuntimeRequest};
use api_grpc::{decode, encode};
use testkit::{Daemon, binary};
use tonic::{Code, Request};

async fn connect(daemon: &Daemon) -> client::Client {
    client::Client::connect(Path::new(&daemon.address()), "default").await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_says_what_it_can_do() {
    let daemon = Daemon::start("introspection");
    let mut introspection = IntrospectionClient::new(connect(&daemon).await.channel());
    let mut ask = async |runtime: &str, options| {
        let question = RuntimeRequest { runtime_path: runtime.to_owned(), options };
        let question = PluginInfoRequest {
            r#type: "io.containerd.runtime.v2".to_owned(),
            id: "task".to_owned(),
            options: Some(encode::any(encode::pack(&question))),
        };
        introspection.plugin_info(Request::new(question)).await
    };
    for runtime in ["io.containerd.runc.v2", "io.containerd.gantry.v2"] {
        let extra = ask(runtime, None).await.unwrap().into_inner().extra.unwrap();
        assert_eq!(extra.type_url, "containerd.types.RuntimeInfo");
        let info: RuntimeInfo = decode::unpack(&decode::any(extra)).unwrap();
        let features = info.features.unwrap();
        assert_eq!(features.type_url, "types.containerd.io/opencontainers/runtime-spec/1/features/Features");
        let features: serde_json::Value = serde_json::from_slice(&features.value).unwrap();
        assert!(features["mountOptions"].as_array().unwrap().iter().any(|option| option == "rro"), "{features}");
        assert!(!info.name.is_empty());
    }
    // The options come back, whatever they are.
    let odd = prost_types::Any { type_url: "nobody.knows.It".to_owned(), value: vec![0xff; 100] };
    let extra = ask("io.containerd.runc.v2", Some(odd.clone())).await.unwrap().into_inner().extra.unwrap();
    let info: RuntimeInfo = decode::unpack(&decode::any(extra)).unwrap();
    assert_eq!(info.options, Some(odd));
    for runtime in ["", "../../bin/true", "/nonexistent", "/bin/false", "io.containerd.none.v9"] {
        assert_eq!(ask(runtime, None).await.unwrap_err().code(), Code::Unknown, "{runtime}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cleanup_removes_directories_without_a_record() {
    let daemon = Daemon::start("cleanup");
    let snapshots = daemon.directory().join("root/io.containerd.snapshotter.v1.native/snapshots");
    let orphan = snapshots.join("4711");
    std::fs::create_dir_all(orphan.join("fs/deep")).unwrap();
    daemon.ctr(&["snapshot", "--snapshotter", "native", "prepare", "kept"]).ok();
    let mut client = SnapshotsClient::new(connect(&daemon).await.channel());
    let mut cleanup = async |snapshotter: &str| {
        let mut request = Request::new(CleanupRequest { snapshotter: snapshotter.to_owned() });
        request.metadata_mut().insert("containerd-namespace", "default".parse().unwrap());
        client.cleanup(request).await
    };
    cleanup("native").await.unwrap();
    assert!(!orphan.exists());
    assert_eq!(std::fs::read_dir(&snapshots).unwrap().count(), 1, "the snapshot with a record is gone");
    for (snapshotter, want) in [("", Code::InvalidArgument), ("none", Code::InvalidArgument)] {
        assert_eq!(cleanup(snapshotter).await.unwrap_err().code(), want, "{snapshotter}");
    }
    daemon.ctr(&["snapshot", "--snapshotter", "native", "rm", "kept"]).ok();
}

#[test]
fn a_hook_becomes_the_program_it_names() {
    let bundle = tempfile::tempdir().unwrap();
    std::fs::write(bundle.path().join("config.json"), r#"{"root": {"path": "rootfs"}}"#).unwrap();
    let state = format!(
        r#"{{"ociVersion":"1.3.0","id":"c1","status":"created","pid":42,"bundle":"{}","annotations":{{"k":"v"}}}}"#,
        bundle.path().display()
    );
    let hook = |input: &str, words: &[&str]| {
        let mut child = Command::new(binary("gantryd"))
            .arg("oci-hook")
            .args(words)
            .env("OF_HOOK", "<{{id}}>")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A hook that refuses its arguments does not read.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    };
    let script = r#"echo "$0 $1 $2 $OF_HOOK"; exit 3"#;
    let output = hook(&state, &["--", "/bin/sh", "-c", script, "{{pid}}", "{{ annotation \"k\" }}", "{{rootfs}}"]);
    let want = format!("42 v {}/rootfs <c1>\n", bundle.path().display());
    assert_eq!((String::from_utf8_lossy(&output.stdout).as_ref(), output.status.code()), (want.as_str(), Some(3)));
    for (input, words) in [
        (state.as_str(), &["--", "/nonexistent"][..]),
        (&state, &["--", "/bin/echo", "{{ nothing }}"]),
        (&state, &["--", "/bin/echo", "{{"]),
        (&state, &[]),
        ("", &["--", "/bin/echo"]),
        (r#"{"id":"c","bundle":"/nonexistent"}"#, &["--", "/bin/echo"]),
    ] {
        let output = hook(input, words);
        assert!(!output.status.success() && output.stdout.is_empty() && !output.stderr.is_empty(), "{input} {words:?}");
    }
}
