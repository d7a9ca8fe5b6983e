use std::path::PathBuf;

use serde_json::{Value, json};

use super::message::{CgroupMode, Features, Kind, Options, Request, Response};
use super::wire::{Reader, Writer};
use crate::{HostFeatures, Plan, PlanOptions};

/// A plan of the default specification with some members of `linux` replaced.
pub(super) fn plan(linux: Value) -> Plan {
    let mut spec = serde_json::to_value(oci::default_spec().unwrap()).unwrap();
    for (name, value) in linux.as_object().unwrap() {
        spec["linux"][name] = value.clone();
    }
    let spec = oci::parse_spec(spec.to_string().as_bytes()).unwrap();
    let options = PlanOptions { id: "test".into(), bundle: PathBuf::from("/bundle"), ..PlanOptions::default() };
    Plan::new(&spec, &HostFeatures::detect().unwrap(), &options).unwrap()
}

/// The fields of a message, by number: numbers as they are, bytes as text.
fn fields(bytes: &[u8]) -> Vec<(u64, String)> {
    let text = |value: super::wire::Value<'_>| match value {
        super::wire::Value::Number(number) => number.to_string(),
        super::wire::Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
    };
    Reader::new(bytes).map(|field| field.map(|(number, value)| (number, text(value))).unwrap()).collect()
}

#[test]
fn a_dump_as_bytes() {
    let options = Options {
        images: 7,
        pid: Some(300),
        log_file: "dump.log".into(),
        root: b"/r".to_vec(),
        leave_running: true,
        cgroup_mode: CgroupMode::Soft,
        mounts: vec![(b"/k".to_vec(), b"/v".to_vec())],
        empty_namespaces: 0x4000_0000,
        ..Options::default()
    };
    let request = Request::Act(Kind::Dump, &options).encode();
    let mut expected = vec![0x08, 1, 0x12, 52];
    // images_dir_fd, pid, leave_running, log_level, log_file
    expected.extend_from_slice(&[0x08, 7, 0x10, 0xac, 0x02, 0x18, 1, 0x48, 4, 0x52, 8]);
    expected.extend_from_slice(b"dump.log");
    // notify_scripts, root, ext_mnt, manage_cgroups
    expected.extend_from_slice(&[0x60, 1, 0x6a, 2, b'/', b'r']);
    expected.extend_from_slice(&[0xba, 0x01, 8, 0x0a, 2, b'/', b'k', 0x12, 2, b'/', b'v', 0xc0, 0x01, 1]);
    // manage_cgroups_mode, empty_ns, orphan_pts_master
    expected.extend_from_slice(&[0x90, 0x02, 3, 0xb0, 0x02, 0x80, 0x80, 0x80, 0x80, 0x04, 0x90, 0x03, 1]);
    assert_eq!(request.as_bytes(), expected);
}

#[test]
fn every_option_has_its_number() {
    let options = Options {
        images: 3,
        work: Some(4),
        pid: Some(5),
        log_file: "log".into(),
        root: b"root".to_vec(),
        parent: Some(b"../before".to_vec()),
        config_file: Some(b"/etc/criu/runc.conf".to_vec()),
        leave_running: true,
        ext_unix_sk: true,
        tcp_established: true,
        tcp_skip_in_flight: true,
        evasive_devices: true,
        shell_job: true,
        file_locks: true,
        link_remap: true,
        auto_dedup: true,
        lazy_pages: true,
        sibling: true,
        page_server: Some(("127.0.0.1".into(), 27277)),
        cgroup_mode: CgroupMode::Ignore,
        cgroup_roots: vec![("cpu".into(), "/x".into())],
        freeze_cgroup: Some(b"/sys/fs/cgroup/freezer/x".to_vec()),
        mounts: vec![(b"k".to_vec(), b"v".to_vec())],
        external: vec!["net[1]:extRootNetNS".into()],
        inherit: vec![("pipe:[1]".into(), 1)],
        join: vec![("ipc", b"/proc/1/ns/ipc".to_vec())],
        empty_namespaces: 1,
        lsm_profile: Some("apparmor:x".into()),
        lsm_mount_context: Some("context".into()),
    };
    let request = Request::Act(Kind::Restore, &options).encode();
    let message = Reader::new(request.as_bytes()).nth(1).unwrap().unwrap();
    let found = fields(message.1.bytes());
    let numbers: Vec<u64> = found.iter().map(|(number, _)| *number).collect();
    assert_eq!(
        numbers,
        [
            1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 23, 24, 25, 26, 27, 34, 37, 38, 39, 44, 46,
            48, 50, 51, 53, 63
        ]
    );
    let of = |wanted: u64| found.iter().find(|(number, _)| *number == wanted).unwrap().1.clone();
    assert_eq!(
        (of(13), of(14), of(34), of(44)),
        ("root".into(), "../before".into(), "0".into(), "/sys/fs/cgroup/freezer/x".into())
    );
    assert!(of(11).starts_with("\n\t127.0.0.1") && of(39).contains("/proc/1/ns/ipc"));
}

#[test]
fn questions_keep_the_connection() {
    assert_eq!(Request::Version.encode().as_bytes(), [0x08, 10, 0x20, 1]);
    let wanted = Features { memory_tracking: true, lazy_pages: false };
    assert_eq!(Request::FeatureCheck(wanted).encode().as_bytes(), [0x08, 9, 0x20, 1, 0x2a, 2, 0x08, 1]);
    assert_eq!(Request::Notified { success: true }.encode().as_bytes(), [0x08, 6, 0x18, 1]);
    assert_eq!(Request::Notified { success: false }.encode().as_bytes(), [0x08, 6, 0x18, 0]);
}

#[test]
fn answers() {
    let mut notify = Writer::default();
    notify.bytes(1, "post-restore");
    notify.signed(2, 1234);
    let mut version = Writer::default();
    version.number(1, 3);
    version.number(2, 17);
    version.number(4, 1);
    let mut restored = Writer::default();
    restored.number(1, 77);
    let mut features = Writer::default();
    features.flag(2, true);
    let mut message = Writer::default();
    message.number(1, 6);
    message.number(2, 1);
    message.message(4, &restored);
    message.message(5, &notify);
    message.signed(7, 13);
    message.message(8, &features);
    message.bytes(9, "why");
    message.message(10, &version);
    message.number(99, 1);
    let response = Response::decode(message.as_bytes()).unwrap();
    let expected = Response {
        kind: Some(Kind::Notify),
        success: true,
        restored: Some(77),
        notification: Some(("post-restore".into(), 1234)),
        errno: 13,
        features: Features { memory_tracking: false, lazy_pages: true },
        version: 31_701,
    };
    assert_eq!(response, expected);
    assert!(Response::decode(&[0x08]).is_err());
    assert_eq!(Response::decode(&[0x08, 0xc8, 0x01]).map(|response| response.kind), Ok(None));
}

#[test]
fn the_configuration_file_is_nobody_elses() {
    let top = tempfile::tempdir().unwrap();
    let file = top.path().join("criu.conf");
    std::fs::write(&file, "").unwrap();
    let named = |path: &str| {
        let mut plan = plan(json!({}));
        plan.annotations.insert("org.criu.config".into(), path.into());
        super::config_file(&plan)
    };
    let path = file.to_str().unwrap();
    assert_eq!(super::config_file(&plan(json!({}))).unwrap().unwrap(), b"/etc/criu/runc.conf");
    assert_eq!(named("").unwrap(), None);
    assert_eq!(named("/does/not/exist").unwrap(), None);
    assert!(named(path).unwrap().is_some());
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let error = named(path).unwrap_err().to_string();
    assert!(error.contains("annotations.org.criu.config"), "{error}");
    let mut inside = plan(json!({}));
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    inside.annotations.insert("org.criu.config".into(), path.into());
    inside.root_path = top.path().to_owned();
    assert!(super::config_file(&inside).is_err());
}
