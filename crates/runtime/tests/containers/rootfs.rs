//! Mounts, devices and everything else below the root.

use std::os::unix::fs::symlink;

use serde_json::json;

use crate::Case;
use crate::fixture::{Bundle, streams};

pub(crate) const CASES: &[Case] = &[
    ("default mounts", default_mounts),
    ("devices", devices),
    ("devices of the spec", spec_devices),
    ("bind mounts", binds),
    ("id-mapped bind mounts", id_mapped),
    ("propagation of binds", bind_propagation),
    ("missing mountpoints", mountpoints),
    ("read-only root", read_only_root),
    ("masked and read-only paths", masked),
    ("detached root", detached_root),
    ("no pivot", no_pivot),
    ("mount errors", mount_errors),
    ("propagation", propagation),
    ("hostile root: links", hostile_links),
    ("hostile root: masked links", hostile_masks),
    ("places in proc", places_in_proc),
];

fn add_mount(mount: serde_json::Value) -> impl FnOnce(&mut serde_json::Value) {
    move |spec| spec["mounts"].as_array_mut().unwrap().push(mount)
}

fn default_mounts() {
    let output = Bundle::new("cat /proc/self/mountinfo").output();
    let has = |place: &str, kind: &str, options: &[&str]| {
        let line = output
            .lines()
            .find(|line| line.split(' ').nth(4) == Some(place))
            .unwrap_or_else(|| panic!("no mount at {place}:\n{output}"));
        assert!(line.contains(&format!(" - {kind} ")), "{line}");
        let have: Vec<&str> = line.split(' ').nth(5).unwrap().split(',').collect();
        for option in options {
            assert!(have.contains(option), "{option}: {line}");
        }
    };
    has("/proc", "proc", &["rw"]);
    has("/dev", "tmpfs", &["nosuid"]);
    has("/dev/pts", "devpts", &["nosuid", "noexec"]);
    has("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev"]);
    has("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]);
    has("/sys", "sysfs", &["ro", "nosuid", "noexec", "nodev"]);
    assert!(output.contains("size=65536k"), "{output}");
    assert!(!output.contains("/ /oldroot"), "{output}");
    let first = output.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    assert!(!first.contains("shared:"), "{first}");
}

fn devices() {
    let output = Bundle::new(
        "for d in null zero full random urandom tty; do stat -c '%n %a %t:%T' /dev/$d; done; \
         for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; echo x > /dev/null; head -c 2 /dev/zero | od -An -tx1",
    )
    .output();
    let want = "/dev/null 666 1:3\n/dev/zero 666 1:5\n/dev/full 666 1:7\n/dev/random 666 1:8\n/dev/urandom 666 1:9\n\
                /dev/tty 666 5:0\n/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n 00 00\n";
    assert_eq!(output, want);
}

fn spec_devices() {
    let output = Bundle::new("stat -c '%n %a %t:%T %u:%g %F' /dev/sub/own /dev/null /dev/pipe")
        .with(|spec| {
            spec["linux"]["devices"] = json!([
                {"path": "/dev/sub/own", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 7, "gid": 8},
                {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600},
                {"path": "/dev/pipe", "type": "p", "fileMode": 0o622}]);
        })
        .output();
    let want = "/dev/sub/own 640 1:3 7:8 character special file\n/dev/null 600 1:3 0:0 character special file\n\
                /dev/pipe 622 0:0 0:0 fifo\n";
    assert_eq!(output, want);
    let error = Bundle::new("true")
        .with(|spec| spec["linux"]["devices"] = json!([{"path": "/dev/x", "type": "c", "major": -1, "minor": 0}]))
        .error();
    assert!(error.contains("linux.devices"), "{error}");
}

fn binds() {
    let host = tempfile::tempdir().unwrap();
    std::fs::create_dir(host.path().join("dir")).unwrap();
    std::fs::write(host.path().join("dir/f"), "file\n").unwrap();
    let at = |name: &str| host.path().join(name).to_str().unwrap().to_owned();
    let bundle = Bundle::new(
        "cat /d/f /f /ro/f; touch /d/new; touch /ro/new 2>/dev/null || echo refused; \
         grep ' /ro ' /proc/self/mountinfo | cut -d' ' -f6; echo x >> /f",
    )
    .with(|spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts
            .push(json!({"destination": "/d", "source": at("dir"), "type": "bind", "options": ["rbind", "rprivate"]}));
        mounts.push(json!({"destination": "/f", "source": at("dir/f"), "options": ["bind"]}));
        mounts.push(json!({"destination": "/ro", "source": at("dir"), "type": "bind",
                           "options": ["rbind", "ro", "nosuid", "nodev", "noexec"]}));
    });
    let output = bundle.output();
    assert!(output.starts_with("file\nfile\nfile\nrefused\nro,nosuid,nodev,noexec"), "{output}");
    assert!(host.path().join("dir/new").exists());
    assert_eq!(std::fs::read_to_string(host.path().join("dir/f")).unwrap(), "file\nx\n");
    assert!(bundle.rootfs().join("f").is_file());
}

fn id_mapped() {
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("f"), "x").unwrap();
    std::os::unix::fs::chown(host.path().join("f"), Some(7), Some(8)).unwrap();
    let map = |from: u32, to: u32| json!([{"containerID": from, "hostID": to, "size": 10}]);
    let mount = json!({"destination": "/m", "source": host.path(), "type": "bind", "options": ["rbind"],
                       "uidMappings": map(0, 1000), "gidMappings": map(0, 2000)});
    let bundle = Bundle::new("stat -c %u:%g /m/f").with(add_mount(mount.clone()));
    if sys::features().forced_fallbacks {
        assert!(bundle.error().contains("uidMappings"));
        return;
    }
    assert_eq!(bundle.output(), "1007:2008\n");
    let mut half = mount;
    half.as_object_mut().unwrap().remove("gidMappings");
    assert!(Bundle::new("true").with(add_mount(half)).error().contains("uidMappings"));
}

fn bind_propagation() {
    let host = tempfile::tempdir().unwrap();
    for (option, want) in [("rprivate", ""), ("rshared", "shared:"), ("runbindable", "unbindable"), ("rslave", "")] {
        let mount = json!({"destination": "/m", "source": host.path(), "type": "bind", "options": ["rbind", option]});
        let output = Bundle::new("grep ' /m ' /proc/self/mountinfo").with(add_mount(mount)).output();
        for word in ["shared:", "unbindable"] {
            assert_eq!(output.contains(word), word == want, "{option}: {output}");
        }
    }
}

fn mountpoints() {
    let bundle = Bundle::new("grep -c ' /a/b/c ' /proc/self/mountinfo; touch /var/run/x; ls /run").with(|spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/a/b/c", "type": "tmpfs", "source": "tmpfs"}));
        mounts.push(json!({"destination": "/var/run", "type": "tmpfs", "source": "tmpfs"}));
    });
    // A link whose end is missing: made inside.
    std::fs::create_dir(bundle.rootfs().join("var")).unwrap();
    symlink("/run", bundle.rootfs().join("var/run")).unwrap();
    assert_eq!(bundle.output(), "1\nx\n");
}

fn read_only_root() {
    let output = Bundle::new("touch /x 2>/dev/null || echo refused; touch /dev/shm/x && echo ok")
        .with(|spec| spec["root"]["readonly"] = json!(true))
        .output();
    assert_eq!(output, "refused\nok\n");
}

fn masked() {
    let bundle = Bundle::new(
        "cat /secret; ls /closed; touch /closed/x 2>/dev/null || echo refused; touch /fixed/x 2>/dev/null || echo refused; \
         cat /fixed/f; (echo 1 > /proc/sys/kernel/hostname) 2>/dev/null || echo refused; chmod 000 /secret 2>/dev/null || echo refused",
    )
    .with(|spec| {
        spec["linux"]["maskedPaths"] = json!(["/secret", "/closed", "/nope", "/proc/kcore", "/sys/firmware", "/etc/passwd/x"]);
        spec["linux"]["readonlyPaths"] = json!(["/fixed", "/nope", "/proc/sys"]);
    });
    std::fs::write(bundle.rootfs().join("secret"), "secret").unwrap();
    for directory in ["closed", "fixed"] {
        std::fs::create_dir(bundle.rootfs().join(directory)).unwrap();
        std::fs::write(bundle.rootfs().join(directory).join("f"), "seen\n").unwrap();
    }
    assert_eq!(bundle.output(), "refused\nrefused\nseen\nrefused\nrefused\n");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata("/dev/null").unwrap());
    assert_eq!(mode & 0o777, 0o666, "the host's null device was changed");
}

fn detached_root() {
    if sys::features().forced_fallbacks {
        return;
    }
    let bundle = Bundle::new("echo from-detached; touch /made");
    let tree = {
        use rustix::mount::OpenTreeFlags;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        rustix::mount::open_tree(rustix::fs::CWD, bundle.rootfs(), flags).unwrap()
    };
    let (io, output) = streams();
    let mut container = bundle.create_from(runtime::Rootfs::Detached(tree), io).unwrap();
    runtime::wait(&mut container.start().unwrap()).unwrap();
    assert_eq!(crate::fixture::reap(container.pidfd().try_clone_to_owned().unwrap()), 0);
    runtime::wait(&mut container.delete(false).unwrap()).unwrap();
    assert_eq!(crate::fixture::read(output), "from-detached\n");
    assert!(bundle.rootfs().join("made").exists());
}

fn no_pivot() {
    let bundle = Bundle::new("ls -d /bin /rootfs /work 2>/dev/null; echo $(($(ls / | wc -l) < 12))");
    let spec = oci::parse_spec(bundle.spec.to_string().as_bytes()).unwrap();
    let options = runtime::PlanOptions { no_pivot: true, ..bundle.options() };
    let plan = runtime::Plan::new(&spec, &bundle.host, &options).unwrap();
    let (io, output) = streams();
    let creating = runtime::Creating::begin(plan, &bundle.host, runtime::Rootfs::Path(bundle.rootfs()), io, None);
    let mut container = runtime::wait(&mut creating.unwrap()).unwrap();
    runtime::wait(&mut container.start().unwrap()).unwrap();
    crate::fixture::reap(container.pidfd().try_clone_to_owned().unwrap());
    runtime::wait(&mut container.delete(false).unwrap()).unwrap();
    assert_eq!(crate::fixture::read(output), "/bin\n1\n");
}

fn mount_errors() {
    for (mount, why) in [
        (json!({"destination": "/x", "source": "/nope", "options": ["bind"]}), "no such file or directory"),
        (json!({"destination": "/x", "source": "x", "type": "nonsense"}), "error"),
        (json!({"destination": "/bin/busybox", "source": "tmpfs", "type": "tmpfs"}), "not a directory"),
        (json!({"destination": "/", "source": "tmpfs", "type": "tmpfs"}), "mounts["),
        (json!({"destination": "/x", "source": "tmpfs", "type": "tmpfs", "options": ["remount"]}), "remount"),
    ] {
        let error = Bundle::new("true").with(add_mount(mount.clone())).error().to_lowercase();
        assert!(error.contains(why), "{mount}: {error}");
    }
}

fn propagation() {
    for (value, want) in [("rshared", "shared:"), ("rslave", ""), ("rprivate", "")] {
        let output = Bundle::new("grep ' / / ' /proc/self/mountinfo || cat /proc/self/mountinfo | head -1")
            .with(|spec| spec["linux"]["rootfsPropagation"] = json!(value))
            .output();
        assert_eq!(output.contains("shared:"), !want.is_empty(), "{value}: {output}");
    }
    let error = Bundle::new("true").with(|spec| spec["linux"]["rootfsPropagation"] = json!("odd")).error();
    assert!(error.contains("linux.rootfsPropagation"), "{error}");
}

/// Places that lead out of the root, were they followed as the host would.
fn hostile_links() {
    let outside = tempfile::tempdir().unwrap();
    for place in ["dev", "proc", "sys", "d"] {
        let bundle = Bundle::new("echo ran")
            .with(add_mount(json!({"destination": "/d/deep", "type": "tmpfs", "source": "tmpfs"})));
        let path = bundle.rootfs().join(place);
        let _ = std::fs::remove_dir(&path);
        symlink(outside.path(), &path).unwrap();
        let _ = bundle.run();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0, "{place} led outside");
        let up = Bundle::new("echo ran");
        let path = up.rootfs().join(place);
        let _ = std::fs::remove_dir(&path);
        symlink("../../../../../../../..", &path).unwrap();
        let _ = up.run();
    }
    assert!(!std::path::Path::new("/deep").exists());
    // A working directory that is a way out through one of our descriptors (CVE-2024-21626).
    for number in 3..20 {
        let bundle =
            Bundle::new("pwd; ls").with(|spec| spec["process"]["cwd"] = json!(format!("/proc/self/fd/{number}")));
        match bundle.run() {
            Err(error) => {
                let error = model::render(&error);
                let refused = error.contains("too many levels of symbolic links") || error.contains("no such file");
                // Without openat2 the text of the link is taken for a path inside the root, which may be anything.
                assert!(refused || sys::features().forced_fallbacks, "{error}");
            }
            Ok(outcome) => {
                assert!(sys::features().forced_fallbacks, "{outcome:?}");
                assert!(!outcome.output.lines().any(|name| name == "usr"), "the host's root: {outcome:?}");
            }
        }
    }
    let bundle = Bundle::new("pwd").with(|spec| spec["process"]["cwd"] = json!("/leak"));
    symlink("/proc/self/fd/9", bundle.rootfs().join("leak")).unwrap();
    let _ = bundle.run();
}

/// A masked path that is a link must not mask something of the host.
fn hostile_masks() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("f"), "x").unwrap();
    let bundle = Bundle::new("true").with(|spec| {
        spec["linux"]["maskedPaths"] = json!(["/link/f", "/null"]);
        spec["linux"]["readonlyPaths"] = json!(["/link"]);
    });
    symlink(outside.path(), bundle.rootfs().join("link")).unwrap();
    // What masks is our null device, whatever the root calls one (CVE-2025-31133).
    symlink("/proc/sys/kernel/core_pattern", bundle.rootfs().join("null")).unwrap();
    bundle.run().unwrap();
    assert_eq!(std::fs::read_to_string(outside.path().join("f")).unwrap(), "x");
}

fn places_in_proc() {
    for place in ["/proc", "/proc/self", "/proc/sys", "/proc/./sys", "/x/../proc/1"] {
        let mount = json!({"destination": place, "type": "tmpfs", "source": "tmpfs"});
        let error = Bundle::new("true").with(add_mount(mount)).error();
        assert!(error.contains("inside /proc"), "{place}: {error}");
    }
    let host = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(host.path(), "faked\n").unwrap();
    let mount = json!({"destination": "/proc/uptime", "type": "bind", "source": host.path(), "options": ["bind"]});
    assert_eq!(Bundle::new("cat /proc/uptime").with(add_mount(mount)).output(), "faked\n");
}
