//! Mounts on the running kernel. Each test runs itself again in a mount namespace of its own, with an empty tmpfs to
//! work in, so that nothing is left behind and tests do not see each other.

#![cfg(test)]

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use model::{Coded, Mount};
use mount::{Error, Feature, UnmountFlags};

const INSIDE: &str = "GANTRY_TEST_INSIDE_NAMESPACE";

/// Runs `test` in a private namespace with an empty working directory; `name` is the test's own.
fn isolated(name: &str, test: impl FnOnce(&Path)) {
    let directory = tempfile::tempdir().unwrap();
    if std::env::var_os(INSIDE).is_none() {
        let command = sys::spawn::Command::new("/usr/bin/unshare")
            .args(["--mount", "--propagation", "private"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .inherit_env()
            .env(INSIDE, "1")
            .borrow_fd(2, std::io::stderr().as_fd())
            .unwrap();
        assert_eq!(command.status().unwrap().exit, sys::process::Exit::Code(0), "see the output above");
        return;
    }
    let path = directory.path();
    mount::mount_all(&[filesystem("tmpfs", "tmpfs", &["mode=755"])], path).unwrap();
    test(path);
    mount::unmount_recursive(path, UnmountFlags::DETACH).unwrap();
}

fn forced() -> bool {
    sys::features().forced_fallbacks
}

fn filesystem(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        kind: kind.to_owned(),
        source: source.to_owned(),
        target: String::new(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

fn bind(source: &Path, options: &[&str]) -> Mount {
    filesystem("bind", source.to_str().unwrap(), options)
}

fn directory(path: PathBuf) -> PathBuf {
    fs::create_dir_all(&path).unwrap();
    path
}

/// The lines of the mount table about `path`: options, optional fields and the rest.
fn table(path: &Path) -> Vec<String> {
    let wanted = path.to_str().unwrap();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.split(' ').nth(4) == Some(wanted)).map(str::to_owned).collect()
}

fn is_read_only(path: &Path) -> bool {
    match File::create(path.join("probe")) {
        Ok(_) => {
            fs::remove_file(path.join("probe")).unwrap();
            false
        }
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
            true
        }
    }
}

#[test]
fn a_bind_is_read_only_and_its_source_is_not() {
    isolated("a_bind_is_read_only_and_its_source_is_not", |work| {
        let source = directory(work.join("source"));
        let target = directory(work.join("target"));
        mount::mount_all(&[bind(&source, &["rbind", "ro", "nosuid", "noexec", "noatime"])], &target).unwrap();
        assert!(is_read_only(&target) && !is_read_only(&source));
        let line = table(&target).remove(0);
        assert!(line.contains(" ro,nosuid,noexec,noatime "), "{line}");
        // Changed in place, and by name only.
        mount::mount_all(&[bind(&source, &["remount", "bind", "rw", "relatime"])], &target).unwrap();
        assert!(!is_read_only(&target));
        let line = table(&target).remove(0);
        assert!(line.contains(" rw,nosuid,noexec,relatime "), "{line}");
        mount::unmount_all(&target, UnmountFlags::empty()).unwrap();
        assert_eq!(table(&target), Vec::<String>::new());
    });
}

#[test]
fn a_file_can_be_bound() {
    isolated("a_file_can_be_bound", |work| {
        fs::write(work.join("source"), "source").unwrap();
        fs::write(work.join("target"), "target").unwrap();
        mount::mount_all(&[bind(&work.join("source"), &["bind", "ro"])], &work.join("target")).unwrap();
        assert_eq!(fs::read_to_string(work.join("target")).unwrap(), "source");
        assert!(fs::write(work.join("target"), "x").is_err());
    });
}

#[test]
fn a_bind_tree_brings_what_is_below_and_a_plain_bind_does_not() {
    isolated("a_bind_tree_brings_what_is_below_and_a_plain_bind_does_not", |work| {
        let source = directory(work.join("source/below"));
        mount::mount_all(&[filesystem("tmpfs", "", &[])], &source).unwrap();
        fs::write(source.join("file"), "").unwrap();
        let (one, tree) = (directory(work.join("one")), directory(work.join("tree")));
        mount::mount_all(&[bind(&work.join("source"), &["bind"])], &one).unwrap();
        mount::mount_all(&[bind(&work.join("source"), &["rbind", "ro"])], &tree).unwrap();
        assert!(!one.join("below/file").exists() && tree.join("below/file").exists());
        // `ro` is of the one mount, `rro` of all.
        assert!(is_read_only(&tree) && !is_read_only(&tree.join("below")));
        mount::unmount_recursive(&tree, UnmountFlags::empty()).unwrap();
        let result = mount::mount_all(&[bind(&work.join("source"), &["rbind", "rro"])], &tree);
        if forced() {
            assert!(matches!(result, Err(Error::Unsupported { feature: Feature::RecursiveAttributes, .. })));
        } else {
            result.unwrap();
            assert!(is_read_only(&tree) && is_read_only(&tree.join("below")) && !is_read_only(&source));
        }
    });
}

#[test]
fn a_target_never_leaves_its_root() {
    isolated("a_target_never_leaves_its_root", |work| {
        let root = directory(work.join("root"));
        directory(root.join("etc"));
        let outside = directory(work.join("etc"));
        symlink("/../../etc", root.join("evil")).unwrap();
        symlink(&outside, root.join("absolute")).unwrap();
        let base = directory(work.join("base"));
        directory(base.join("etc"));
        symlink("/../../etc", base.join("evil")).unwrap();
        for (target, seen) in [("evil", Some("etc")), ("/../../etc", Some("etc")), ("absolute", None)] {
            // The first mount becomes the root for the second one's target.
            let mut below = filesystem("tmpfs", "tmpfs", &["size=64k"]);
            below.target = target.to_owned();
            match (mount::mount_all(&[bind(&base, &["bind"]), below], &root), seen) {
                (Ok(()), Some(seen)) => assert_eq!(table(&root.join(seen)).len(), 1, "{target}"),
                (Err(error), None) => assert_eq!(error.code(), model::Code::NotFound, "{target}"),
                (result, _) => panic!("{target}: {result:?}"),
            }
            assert_eq!(table(&outside), Vec::<String>::new());
            mount::unmount_recursive(&root, UnmountFlags::empty()).unwrap();
        }
    });
}

#[test]
fn what_fails_half_way_is_undone() {
    isolated("what_fails_half_way_is_undone", |work| {
        let target = directory(work.join("target"));
        let good = filesystem("tmpfs", "tmpfs", &[]);
        for bad in [
            filesystem("no-such-file-system", "x", &[]),
            filesystem("tmpfs", "tmpfs", &["no-such-option=1"]),
            filesystem("tmpfs", "tmpfs", &["X-containerd.mkdir.path=/x"]),
            bind(&work.join("missing"), &["bind"]),
            bind(Path::new(""), &["bind"]),
            Mount { target: "missing".to_owned(), ..good.clone() },
        ] {
            let error = mount::mount_all(&[good.clone(), good.clone(), bad.clone()], &target).unwrap_err();
            assert_eq!(table(&target), Vec::<String>::new(), "{bad:?}: {error}");
        }
        let error = mount::mount_all(&[bind(&work.join("missing"), &["bind"])], &target).unwrap_err();
        assert_eq!(error.code(), model::Code::NotFound);
        let error = mount::mount_all(&[filesystem("tmpfs", "tmpfs", &["size=nonsense"])], &target).unwrap_err();
        let text = model::render(&error);
        assert!(text.contains("mounting \"tmpfs\"") && text.contains("Invalid argument"), "{text}");
        assert!(forced() || text.contains("option \"size\" (tmpfs: Bad value for 'size')"), "{text}");
    });
}

#[test]
fn file_systems_get_their_options() {
    isolated("file_systems_get_their_options", |work| {
        let target = directory(work.join("target"));
        let options = ["ro", "nosuid,nodev", "strictatime", "size=64k", "mode=711", "sync"];
        mount::mount_all(&[filesystem("tmpfs", "shm", &options)], &target).unwrap();
        let line = table(&target).remove(0);
        assert!(line.contains(" ro,nosuid,nodev - tmpfs shm ro,sync,"), "{line}");
        assert!(line.contains("size=64k") && line.contains("mode=711"), "{line}");
    });
}

#[test]
fn propagation_is_set_even_below_a_shared_mount() {
    isolated("propagation_is_set_even_below_a_shared_mount", |work| {
        let shared = directory(work.join("shared"));
        mount::mount_all(&[filesystem("tmpfs", "", &["shared"])], &shared).unwrap();
        assert!(table(&shared).remove(0).contains("shared:"));
        for (word, expected) in
            [("rprivate", ""), ("rslave", "master:"), ("shared", "shared:"), ("unbindable", "unbindable")]
        {
            let target = directory(shared.join(word));
            mount::mount_all(&[bind(&shared, &["rbind", word])], &target).unwrap();
            let line = table(&target).remove(0);
            let fields = line.split(" - ").next().unwrap().split(' ').skip(6).collect::<Vec<_>>().join(" ");
            assert!(fields.contains(expected) && (!expected.is_empty() || fields.is_empty()), "{word}: {line}");
            mount::unmount_all(&target, UnmountFlags::DETACH).unwrap();
        }
    });
}

/// Makes layers `<work>/layers/<n>/fs`, each with a file of its number, and one that all have.
fn layers(work: &Path, count: usize) -> String {
    let layer = |number: usize| {
        let path = directory(work.join("layers-with-a-name-that-is-long").join(number.to_string()).join("fs"));
        fs::write(path.join(number.to_string()), "").unwrap();
        fs::write(path.join("same"), number.to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    (0..count).map(layer).collect::<Vec<_>>().join(":")
}

#[test]
fn overlays_of_any_size() {
    isolated("overlays_of_any_size", |work| {
        // 2 fits into everything; 12 only into a page or by descriptors; 150 into neither without being shortened.
        for count in [2, 12, 150] {
            let (upper, inner) = (directory(work.join("upper")), directory(work.join("work")));
            let target = directory(work.join("target"));
            let options = [
                format!("lowerdir={}", layers(work, count)),
                format!("upperdir={}", upper.display()),
                format!("workdir={}", inner.display()),
            ];
            let options = options.iter().map(String::as_str).collect::<Vec<_>>();
            mount::mount_all(&[filesystem("overlay", "overlay", &options)], &target).unwrap();
            assert_eq!(fs::read_to_string(target.join("same")).unwrap(), "0");
            assert!(target.join((count - 1).to_string()).exists());
            fs::write(target.join("new"), "").unwrap();
            assert!(upper.join("new").exists());
            mount::unmount_all(&target, UnmountFlags::empty()).unwrap();
            fs::remove_dir_all(&upper).unwrap();
            fs::remove_dir_all(&inner).unwrap();
        }
    });
}

#[test]
fn an_overlay_in_a_very_long_place() {
    isolated("an_overlay_in_a_very_long_place", |work| {
        let deep = directory(work.join(format!("{0}/{0}", "long".repeat(40))));
        for name in ["lower:a", "lower-b", "upper", "work"] {
            directory(deep.join(name));
        }
        fs::write(deep.join("lower:a/file"), "").unwrap();
        let path = |name: &str| deep.join(name).to_str().unwrap().to_owned();
        let options = [
            format!("lowerdir={}:{}", path(r"lower\:a"), path("lower-b")),
            format!("upperdir={}", path("upper")),
            format!("workdir={}", path("work")),
        ];
        let options = options.iter().map(String::as_str).collect::<Vec<_>>();
        let target = directory(work.join("target"));
        mount::mount_all(&[filesystem("overlay", "overlay", &options)], &target).unwrap();
        assert!(target.join("file").exists());
    });
}

#[test]
fn a_detached_mount_is_seen_only_once_attached() {
    isolated("a_detached_mount_is_seen_only_once_attached", |work| {
        let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let result = mount::detached(&filesystem("tmpfs", "quiet", &["ro"]));
        if forced() {
            assert!(matches!(result, Err(Error::Unsupported { feature: Feature::Detached, .. })));
            return;
        }
        let quiet = result.unwrap();
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
        let target = directory(work.join("root/target"));
        symlink("/target", work.join("root/link")).unwrap();
        let root = File::open(work.join("root")).unwrap();
        mount::attach_in(quiet.as_fd(), root.as_fd(), Path::new("link")).unwrap();
        assert!(is_read_only(&target));
        // A detached mount that nobody attaches leaves nothing.
        drop(mount::detached(&bind(&target, &["rbind"])).unwrap());
        assert_eq!(table(&target).len(), 1);
    });
}

#[test]
fn owners_are_mapped() {
    isolated("owners_are_mapped", |work| {
        // On the disk of the host: tmpfs has id maps only since Linux 6.3.
        let disk = tempfile::tempdir().unwrap();
        let source = directory(disk.path().join("source"));
        fs::write(source.join("file"), "").unwrap();
        let target = directory(work.join("target"));
        let options = ["rbind", "uidmap=0:100000:65536", "gidmap=0:200000:65536"];
        let result = mount::mount_all(&[bind(&source, &options)], &target);
        if forced() {
            assert!(matches!(result, Err(Error::Unsupported { feature: Feature::IdMap, .. })));
            return;
        }
        if matches!(result, Err(Error::Unsupported { .. })) {
            println!("SKIP id-mapped mounts on this file system");
            return;
        }
        result.unwrap();
        let owner = fs::metadata(target.join("file")).unwrap();
        assert_eq!((owner.uid(), owner.gid()), (100_000, 200_000));
    });
}

#[test]
fn layers_of_an_overlay_are_mapped() {
    isolated("layers_of_an_overlay_are_mapped", |work| {
        let disk = tempfile::tempdir().unwrap();
        let lower = format!("lowerdir={}", layers(disk.path(), 3));
        let (upper, inner) = (directory(disk.path().join("upper")), directory(disk.path().join("work")));
        let upper = format!("upperdir={}", upper.display());
        let inner = format!("workdir={}", inner.display());
        let target = directory(work.join("target"));
        let options = [lower.as_str(), &upper, &inner, "uidmap=0:100000:65536", "gidmap=0:200000:65536"];
        match mount::mount_all(&[filesystem("overlay", "overlay", &options)], &target) {
            Err(Error::Unsupported { feature: Feature::IdMap, .. }) if forced() => {}
            Err(Error::Unsupported { feature: Feature::IdMappedOverlay, .. }) => {
                println!("SKIP id-mapped overlay, Linux 6.15");
            }
            result => {
                result.unwrap();
                let owner = fs::metadata(target.join("2")).unwrap();
                assert_eq!((owner.uid(), owner.gid()), (100_000, 200_000));
                assert_eq!(fs::read_to_string(target.join("same")).unwrap(), "0");
            }
        }
    });
}

#[test]
fn a_file_system_in_a_file() {
    isolated("a_file_system_in_a_file", |work| {
        let make = Path::new("/sbin/mke2fs");
        if !make.exists() || !Path::new("/dev/loop-control").exists() {
            println!("SKIP loop mounts: no mke2fs or no loop devices");
            return;
        }
        let disk = tempfile::tempdir().unwrap();
        let image = disk.path().join("image");
        File::create(&image).unwrap().set_len(1 << 20).unwrap();
        let made = sys::spawn::Command::new(make).args(["-q", "-F"]).arg(&image).status().unwrap();
        assert_eq!(made.exit, sys::process::Exit::Code(0));
        let target = directory(work.join("target"));
        let image = image.to_str().unwrap();
        for options in [&["loop"][..], &["loop", "ro"]] {
            mount::mount_all(&[filesystem("ext4", image, options)], &target).unwrap();
            assert!(target.join("lost+found").exists());
            assert_eq!(is_read_only(&target), options.contains(&"ro"));
            let device = table(&target).remove(0);
            let device = device.split(" - ").nth(1).unwrap().split(' ').nth(1).unwrap().to_owned();
            mount::unmount_all(&target, UnmountFlags::empty()).unwrap();
            let number = device.trim_start_matches("/dev/");
            assert!(!Path::new(&format!("/sys/block/{number}/loop/backing_file")).exists(), "{device}");
        }
        let error = mount::mount_all(&[filesystem("ext4", "/no/such/image", &["loop"])], &target).unwrap_err();
        assert_eq!(error.code(), model::Code::NotFound);
    });
}

#[test]
fn stacks_and_trees_are_unmounted() {
    isolated("stacks_and_trees_are_unmounted", |work| {
        let target = directory(work.join("a target\twith spaces"));
        for _ in 0..3 {
            mount::mount_all(&[filesystem("tmpfs", "", &[])], &target).unwrap();
        }
        mount::mount_all(&[filesystem("tmpfs", "", &[])], &directory(target.join("x/y"))).unwrap();
        mount::mount_all(&[filesystem("tmpfs", "", &[])], &directory(target.join("x/y/z"))).unwrap();
        let beside = directory(work.join("a target\twith spaces, too"));
        mount::mount_all(&[filesystem("tmpfs", "", &[])], &beside).unwrap();
        let count = || fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
        let before = count();
        mount::unmount_recursive(&target, UnmountFlags::empty()).unwrap();
        assert_eq!(count(), before - 5);
        // A link in place of the target is not followed.
        symlink(&beside, work.join("link")).unwrap();
        mount::unmount_all(&work.join("link"), UnmountFlags::empty()).unwrap();
        assert_eq!(count(), before - 5);
    });
}

#[test]
fn a_busy_mount_is_told_after_a_while_or_detached() {
    isolated("a_busy_mount_is_told_after_a_while_or_detached", |work| {
        let target = directory(work.join("target"));
        mount::mount_all(&[filesystem("tmpfs", "", &[])], &target).unwrap();
        let user = File::create(target.join("file")).unwrap();
        let error = mount::unmount_all(&target, UnmountFlags::empty()).unwrap_err();
        assert_eq!(error.errno(), Some(sys::Errno::BUSY));
        mount::unmount_all(&target, UnmountFlags::DETACH).unwrap();
        drop(user);
        assert_eq!(table(&target), Vec::<String>::new());
    });
}
