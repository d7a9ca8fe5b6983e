//! What the options of mounts do, and mounts in namespaces that are not the container's own.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::Path;

use serde_json::{Value, json};

use crate::Case;
use crate::fixture::{Bundle, end, exec, streams};

pub(crate) const CASES: &[Case] = &[
    ("mounts: recursive attributes", recursive_attributes),
    ("mounts: order", order),
    ("mounts: tmpfs copies up", copy_up),
    ("mounts: tmpfs takes the mode over", tmpfs_mode),
    ("mounts: read-only tmpfs", read_only_tmpfs),
    ("mounts: links into proc", links_into_proc),
    ("mounts: options of binds", bind_options),
    ("mounts: label", label),
    ("mounts: unbindable root", unbindable_root),
    ("mounts: cgroups", cgroups),
    ("mounts: recursive id maps", recursive_id_map),
    ("mounts: id map of a joined user namespace", joined_id_map),
    ("mounts: host's sysfs and procfs in a user namespace", views_of_host),
    ("mounts: FIFO in a user namespace", fifo),
    ("no mount namespace", no_mount_namespace),
    ("mount namespace joined", joined_mount_namespace),
];

fn mounted(mounts: &[Value]) -> impl FnOnce(&mut Value) {
    move |spec| spec["mounts"].as_array_mut().unwrap().extend_from_slice(mounts)
}

/// The options of the mount at `place` in a mountinfo.
fn options_at(mountinfo: &str, place: &str) -> String {
    let line = mountinfo.lines().find(|line| line.split(' ').nth(4) == Some(place));
    line.unwrap_or_else(|| panic!("no mount at {place}:\n{mountinfo}")).split(' ').nth(5).unwrap().to_owned()
}

fn recursive_attributes() {
    // The host's /dev has mounts below it.
    let cases: [(&[&str], &str, Option<&str>); 11] = [
        (&["rro"], "ro", Some("ro")),
        (&["ro"], "ro", Some("rw")),
        (&["rro", "rrw"], "rw", Some("rw")),
        (&["rnosuid"], "nosuid", Some("nosuid")),
        (&["rnodev"], "nodev", Some("nodev")),
        (&["rnoexec"], "noexec", Some("noexec")),
        (&["rnoatime"], "noatime", Some("noatime")),
        (&["rnodiratime"], "nodiratime", Some("nodiratime")),
        (&["rrelatime"], "relatime", Some("relatime")),
        (&["rnosymfollow"], "nosymfollow", Some("nosymfollow")),
        (&["rnoexec", "rexec"], "rw", None),
    ];
    let mount = |index: usize, words: &[&str]| {
        let options: Vec<&str> = ["rbind"].iter().chain(words).copied().collect();
        json!({"destination": format!("/m{index}"), "source": "/dev", "type": "bind", "options": options})
    };
    if sys::features().forced_fallbacks {
        let error = Bundle::new("true").with(mounted(&[mount(0, &["rro"])])).error();
        assert!(error.contains(".options") && error.contains("recursive"), "{error}");
        return;
    }
    let mounts: Vec<Value> = cases.iter().enumerate().map(|(index, (words, ..))| mount(index, words)).collect();
    let output = Bundle::new("cat /proc/self/mountinfo").with(mounted(&mounts)).output();
    for (index, (words, top, below)) in cases.iter().enumerate() {
        let has = |place: &str, word: &str| {
            let options = options_at(&output, place);
            assert!(options.split(',').any(|option| option == word), "{words:?}: {place} is {options}, not {word}");
        };
        has(&format!("/m{index}"), top);
        if let Some(below) = below {
            has(&format!("/m{index}/pts"), below);
        }
    }
    assert!(!options_at(&output, "/m10/pts").contains("noexec"), "{output}");
    let strict = Bundle::new("cat /proc/self/mountinfo").with(mounted(&[mount(0, &["rstrictatime"])])).output();
    assert!(!options_at(&strict, "/m0/pts").contains("atime"), "{strict}");
}

/// The kernel lists mounts in the order in which they were made.
fn order() {
    let host = tempfile::tempdir().unwrap();
    let output = Bundle::new("cut -d' ' -f5 /proc/self/mountinfo | grep ^/m")
        .with(mounted(&[
            json!({"destination": "m1", "type": "tmpfs", "source": "tmpfs"}),
            json!({"destination": "/m2", "source": host.path(), "type": "bind", "options": ["bind"]}),
            json!({"destination": "/./m3", "type": "tmpfs", "source": "tmpfs"}),
        ]))
        .output();
    assert_eq!(output, "/m1\n/m2\n/m3\n");
}

fn copy_up() {
    let mount = json!({"destination": "/up", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]});
    let bundle = Bundle::new(
        "cd /up; cat file deep/er/file; readlink link; stat -c '%n %a %u:%g %s' . file deep deep/er big; \
         stat -c %F pipe; touch new; echo changed > file; rm -r deep; grep -c ' /up .* tmpfs ' /proc/self/mountinfo",
    )
    .with(mounted(std::slice::from_ref(&mount)));
    let up = bundle.rootfs().join("up");
    std::fs::create_dir_all(up.join("deep/er")).unwrap();
    std::fs::write(up.join("file"), "below\n").unwrap();
    std::fs::write(up.join("deep/er/file"), "deeper\n").unwrap();
    std::fs::write(up.join("big"), vec![7; 3 << 20]).unwrap();
    symlink("/etc/passwd", up.join("link")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, up.join("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    std::os::unix::fs::chown(up.join("file"), Some(7), Some(8)).unwrap();
    for (path, mode) in [("", 0o751), ("file", 0o4666), ("deep", 0o1777), ("deep/er", 0o700), ("big", 0o640)] {
        std::fs::set_permissions(up.join(path), PermissionsExt::from_mode(mode)).unwrap();
    }
    let want = "below\ndeeper\n/etc/passwd\n. 751 0:0 140\nfile 4666 7:8 6\ndeep 1777 0:0 60\ndeep/er 700 0:0 60\n\
                big 640 0:0 3145728\nfifo\n1\n";
    assert_eq!(bundle.output(), want);
    assert_eq!(std::fs::read_to_string(up.join("file")).unwrap(), "below\n");
    assert!(up.join("deep/er/file").exists() && !up.join("new").exists());
    // Deeper than it would be safe to go.
    let deep = Bundle::new("true").with(mounted(&[mount]));
    std::fs::create_dir_all(deep.rootfs().join(format!("up{}", "/d".repeat(100)))).unwrap();
    assert!(deep.error().contains("/up"));
    let bind = json!({"destination": "/x", "source": "/etc", "options": ["bind", "tmpcopyup"]});
    assert!(Bundle::new("true").with(mounted(&[bind])).error().contains("tmpcopyup is for a tmpfs"));
}

fn tmpfs_mode() {
    let tmpfs = |place: &str, options: &[&str]| json!({"destination": place, "type": "tmpfs", "source": "tmpfs", "options": options});
    let bundle = Bundle::new("stat -c '%n %a' /there /given /new").with(mounted(&[
        tmpfs("/there", &["nosuid"]),
        tmpfs("/given", &["mode=0700"]),
        tmpfs("/new", &[]),
    ]));
    for place in ["there", "given"] {
        std::fs::create_dir(bundle.rootfs().join(place)).unwrap();
        let mode = PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(bundle.rootfs().join(place), mode).unwrap();
    }
    assert_eq!(bundle.output(), "/there 711\n/given 700\n/new 1777\n");
}

fn read_only_tmpfs() {
    let output = Bundle::new("touch /t/x 2>/dev/null || echo refused; ls /t; cat /t/passwd >/dev/null && echo read")
        .with(mounted(&[
            json!({"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "mode=755"]}),
            json!({"destination": "/t/passwd", "source": "/etc/passwd", "options": ["bind", "ro"]}),
        ]))
        .output();
    assert_eq!(output, "refused\npasswd\nread\n");
}

fn links_into_proc() {
    for (link, leads, place) in
        [("sneak", "/proc/sys", "/sneak/kernel"), ("sneak", "proc", "/sneak/sys"), ("a", "/proc/self/attr", "/a")]
    {
        let mount = json!({"destination": place, "type": "tmpfs", "source": "tmpfs"});
        let bundle = Bundle::new("echo ran").with(mounted(&[mount]));
        symlink(leads, bundle.rootfs().join(link)).unwrap();
        let error = bundle.error();
        assert!(error.contains("inside /proc"), "{place}: {error}");
    }
    for place in ["proc", "sys"] {
        let bundle = Bundle::new("echo ran");
        std::fs::remove_dir(bundle.rootfs().join(place)).unwrap();
        symlink("/tmp", bundle.rootfs().join(place)).unwrap();
        let error = bundle.error();
        assert!(error.contains("must be mounted on ordinary directory"), "{place}: {error}");
    }
    // The host's procfs in place of an own one is fine, and so are links of the image to other places.
    let bind = json!({"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind"]});
    let bundle = Bundle::new("cat /proc/self/comm; ls -d /run/x").with(|spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/proc");
        mounts.push(bind);
        mounts.push(json!({"destination": "/var/run/x", "type": "tmpfs", "source": "tmpfs"}));
        spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
    });
    std::fs::create_dir_all(bundle.rootfs().join("var")).unwrap();
    symlink("../run", bundle.rootfs().join("var/run")).unwrap();
    assert_eq!(bundle.output(), "cat\n/run/x\n");
}

fn bind_options() {
    for option in ["copy-symlink", "src-nofollow", "dest-nofollow"] {
        let mount = json!({"destination": "/m", "source": "/etc", "options": ["bind", option]});
        let error = Bundle::new("true").with(mounted(&[mount])).error();
        assert!(error.contains(option) && error.contains("mounts["), "{error}");
    }
    let mount = json!({"destination": "/m", "source": "/etc/passwd", "options": ["bind", "size=1k"]});
    let (io, _) = streams();
    let container = Bundle::new("true").with(mounted(&[mount])).create(io).unwrap();
    assert!(container.warnings().iter().any(|warning| warning.contains("size=1k")), "{:?}", container.warnings());
    end(container);
}

fn label() {
    if Path::new("/sys/fs/selinux/enforce").exists() {
        return;
    }
    let bundle = Bundle::new("true").with(|spec| spec["linux"]["mountLabel"] = json!("system_u:object_r:x:s0"));
    let (io, _) = streams();
    let container = bundle.create(io).unwrap();
    let warned = container.warnings().iter().any(|warning| warning.contains("linux.mountLabel"));
    assert!(warned, "{:?}", container.warnings());
    end(container);
}

fn unbindable_root() {
    for (value, unbindable) in [("unbindable", true), ("runbindable", true), ("private", false), ("slave", false)] {
        let output = Bundle::new("grep -E '^[^ ]+ [^ ]+ [^ ]+ [^ ]+ / ' /proc/self/mountinfo")
            .with(|spec| spec["linux"]["rootfsPropagation"] = json!(value))
            .output();
        assert_eq!(output.contains("unbindable"), unbindable, "{value}: {output}");
    }
}

fn cgroups() {
    for own_view in [true, false] {
        for option in ["ro", "rw"] {
            let mount = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                               "options": ["nosuid", "noexec", "nodev", option]});
            let bundle = Bundle::new(
                "d=/sys/fs/cgroup; [ -d $d/pids ] && d=$d/pids; grep -c '^1$' $d/cgroup.procs; \
                 if mkdir $d/sub 2>/dev/null; then rmdir $d/sub; echo rw; else echo ro; fi",
            )
            .with(|spec| {
                let mounts = spec["mounts"].as_array_mut().unwrap();
                mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
                mounts.push(mount);
                let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
                namespaces.retain(|namespace| namespace["type"] != "cgroup");
                if own_view {
                    namespaces.push(json!({"type": "cgroup"}));
                }
            });
            assert_eq!(bundle.output(), format!("1\n{option}\n"), "own view: {own_view}");
        }
    }
}

fn recursive_id_map() {
    if sys::features().forced_fallbacks {
        return;
    }
    /// A directory of the host with a mount below it, for as long as the case runs.
    struct Below(tempfile::TempDir);
    impl Drop for Below {
        fn drop(&mut self) {
            let _ = sys::mount::umount_detach(self.0.path().join("below"));
        }
    }
    let host = Below(tempfile::tempdir().unwrap());
    let place = host.0.path().join("below");
    std::fs::create_dir(&place).unwrap();
    sys::mount::mount("tmpfs", &place, "tmpfs", sys::mount::MountFlags::empty(), None).unwrap();
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    for (option, below) in [("idmap", 0), ("ridmap", 1000)] {
        let mount = json!({"destination": "/m", "source": host.0.path(), "type": "bind", "options": ["rbind", option],
                           "uidMappings": map, "gidMappings": map});
        let output = Bundle::new("stat -c %u /m /m/below").with(mounted(&[mount])).output();
        assert_eq!(output, format!("1000\n{below}\n"), "{option}");
    }
}

fn with_user(bundle: Bundle) -> Bundle {
    std::os::unix::fs::chown(bundle.rootfs(), Some(100_000), Some(100_000)).unwrap();
    bundle.with(|spec| {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    })
}

fn joined_id_map() {
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("f"), "x").unwrap();
    std::os::unix::fs::chown(host.path().join("f"), Some(7), Some(8)).unwrap();
    let mount = json!({"destination": "/m", "source": host.path(), "type": "bind", "options": ["bind", "idmap"]});
    let first = with_user(Bundle::new("sleep 1000"));
    let own = with_user(Bundle::new("stat -c %u:%g /m/f")).with(mounted(std::slice::from_ref(&mount)));
    if sys::features().forced_fallbacks {
        assert!(own.error().contains("uidMappings"));
        return;
    }
    assert_eq!(own.output(), "7:8\n");
    let (io, _) = streams();
    let mut container = first.create(io).unwrap();
    runtime::wait(&mut container.start().unwrap()).unwrap();
    let path = |name: &str| format!("/proc/{}/ns/{name}", container.pid());
    let second = with_user(Bundle::new("stat -c %u:%g /m/f")).with(mounted(&[mount])).with(|spec| {
        spec["linux"].as_object_mut().unwrap().remove("uidMappings");
        spec["linux"].as_object_mut().unwrap().remove("gidMappings");
        spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"},
            {"type": "user", "path": path("user")}, {"type": "network", "path": path("net")}]);
    });
    assert_eq!(second.output(), "7:8\n");
    end(container);
}

fn views_of_host() {
    let bundle = with_user(Bundle::new(
        "ls -d /sys/class/net/lo /proc/1; (echo x > /sys/kernel/uevent_helper) 2>/dev/null || echo closed; id -u",
    ))
    .with(|spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| !matches!(namespace["type"].as_str(), Some("network" | "pid")));
        spec["linux"]["maskedPaths"] = json!([]);
        spec["linux"]["readonlyPaths"] = json!([]);
    });
    assert_eq!(bundle.output(), "/proc/1\n/sys/class/net/lo\nclosed\n0\n");
}

fn fifo() {
    let bundle = with_user(Bundle::new("stat -c '%F %a' /dev/pipe; stat -c %F /dev/full")).with(|spec| {
        spec["linux"]["devices"] = json!([{"path": "/dev/pipe", "type": "p", "fileMode": 0o622}]);
    });
    assert_eq!(bundle.output(), "fifo 622\ncharacter special file\n");
}

/// Only what does not need the namespace.
fn without_masks(spec: &mut Value, mount_namespace: Option<&str>) {
    spec["linux"]["maskedPaths"] = json!([]);
    spec["linux"]["readonlyPaths"] = json!([]);
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "mount");
    if let Some(path) = mount_namespace {
        namespaces.push(json!({"type": "mount", "path": path}));
    }
}

fn no_mount_namespace() {
    let script = "readlink /proc/self/ns/mnt; ls -d /bin /usr 2>/dev/null; cat /up/f; sleep 1000";
    let bundle = Bundle::new(script)
        .with(|spec| without_masks(spec, None))
        .with(mounted(&[json!({"destination": "/up", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]})]));
    std::fs::create_dir(bundle.rootfs().join("up")).unwrap();
    std::fs::write(bundle.rootfs().join("up/f"), "copied\n").unwrap();
    let own = std::fs::metadata("/proc/self/ns/mnt").unwrap().ino();
    let (io, _) = streams();
    let mut container = bundle.create(io).unwrap();
    runtime::wait(&mut container.start().unwrap()).unwrap();
    // An exec has the same root, although its mount namespace is the host's.
    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
                         "args": ["sh", "-c", "readlink /proc/self/ns/mnt; ls -d /bin /usr 2>/dev/null; cat /up/f"]});
    let outcome = exec(&container, &process).unwrap();
    assert_eq!(outcome.output, format!("mnt:[{own}]\n/bin\ncopied\n"));
    end(container);
    // That no mount is left is checked by the bundle. An unsuccessful creation leaves none either.
    let failing = Bundle::new("true")
        .with(|spec| without_masks(spec, None))
        .with(mounted(&[json!({"destination": "/x", "source": "x", "type": "nonsense"})]));
    failing.error();
    let masked = Bundle::new("true").with(|spec| {
        without_masks(spec, None);
        spec["linux"]["maskedPaths"] = json!(["/etc"]);
    });
    assert!(masked.error().contains("linux.maskedPaths"));
}

fn joined_mount_namespace() {
    let mut holder = std::process::Command::new("unshare").args(["--mount", "sleep", "1000"]).spawn().unwrap();
    let path = format!("/proc/{}/ns/mnt", holder.id());
    let own = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while std::fs::read_link(&path).unwrap() == own {
        assert!(std::time::Instant::now() < deadline, "unshare does not unshare");
        std::thread::yield_now();
    }
    let theirs = std::fs::metadata(&path).unwrap().ino();
    let root_before = std::fs::metadata(format!("/proc/{}/root/", holder.id())).unwrap().ino();
    let bundle = Bundle::new("readlink /proc/self/ns/mnt; ls -d /bin /usr 2>/dev/null; cat /proc/sys/kernel/msgmax")
        .with(|spec| {
            without_masks(spec, Some(&path));
            spec["linux"]["sysctl"] = json!({"kernel.msgmax": "4096"});
        });
    let output = bundle.output();
    let root_after = std::fs::metadata(format!("/proc/{}/root/", holder.id())).unwrap().ino();
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(output, format!("mnt:[{theirs}]\n/bin\n4096\n"));
    assert_eq!(root_before, root_after, "the root of the others in the namespace was changed");
}
