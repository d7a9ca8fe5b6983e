use std::path::Path;

use model::{Code, Coded as _, Mount};

use crate::{Activate, Error, Manager};

struct Fixture {
    scratch: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir(scratch.path().join("root")).unwrap();
        Self { scratch }
    }

    fn open(&self, boot: &str) -> Manager {
        Manager::open(&self.scratch.path().join("state"), &self.scratch.path().join("root"), boot).unwrap()
    }

    fn root(&self, name: &str) -> String {
        self.scratch.path().join("root").join(name).display().to_string()
    }

    /// What is left in the directory of targets.
    fn left(&self) -> usize {
        std::fs::read_dir(self.scratch.path().join("state/io.containerd.mount-manager.v1.bolt/t")).unwrap().count()
    }

    fn mounted(&self) -> usize {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        points.filter(|point| Path::new(point).starts_with(self.scratch.path())).count()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = mount::unmount_recursive(self.scratch.path(), mount::UnmountFlags::DETACH);
    }
}

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    Mount { kind: kind.to_owned(), source: source.to_owned(), target: String::new(), options }
}

fn request(name: &str, mounts: Vec<Mount>) -> Activate {
    Activate { namespace: "n".to_owned(), name: name.to_owned(), mounts, ..Activate::default() }
}

fn layered() -> Vec<Mount> {
    vec![
        mount("tmpfs", "tmpfs", &["size=1m"]),
        mount("tmpfs", "tmpfs", &["size=1m"]),
        mount("format/overlay", "overlay", &["lowerdir={{ overlay 1 0 }}"]),
    ]
}

#[test]
fn life_of_an_activation() {
    let fixture = Fixture::new();
    let manager = fixture.open("boot");
    let mut first = request("a", layered());
    first.labels = [("k".to_owned(), "v".to_owned()), ("empty".to_owned(), String::new())].into();
    let made = manager.activate(first.clone()).unwrap();
    assert_eq!((made.active.len(), made.system.len(), made.labels.len()), (2, 1, 1));
    let points: Vec<&str> = made.active.iter().map(|active| active.mount_point.as_str()).collect();
    assert_eq!(made.system[0], mount("overlay", "overlay", &[&format!("lowerdir={}:{}", points[1], points[0])]));
    assert_eq!(fixture.mounted(), 2);
    assert!(matches!(manager.activate(first), Err(Error::Exists(_))));
    assert_eq!(manager.info("n", "a").unwrap(), made);
    assert!(matches!(manager.info("other", "a"), Err(Error::Missing(_))));
    assert_eq!(manager.list("n"), std::slice::from_ref(&made));

    // A restart changes nothing.
    drop(manager);
    let manager = fixture.open("boot");
    assert_eq!((manager.info("n", "a").unwrap(), fixture.mounted()), (made, 2));
    let labels = [("x".to_owned(), "y".to_owned())].into();
    let updated = manager.update("n", "a", &labels, &["labels.x".to_owned()]).unwrap();
    assert_eq!(updated.labels.len(), 2);
    assert_eq!(fixture.open("boot").info("n", "a").unwrap(), updated);
    assert_eq!(manager.update("n", "a", &labels, &["active".to_owned()]).unwrap_err().code(), Code::InvalidArgument);

    manager.deactivate("n", "a").unwrap();
    assert_eq!((fixture.mounted(), fixture.left()), (0, 0));
    assert!(matches!(manager.deactivate("n", "a"), Err(Error::Missing(_))));
}

#[test]
fn what_fails_leaves_nothing() {
    let fixture = Fixture::new();
    let manager = fixture.open("boot");
    let tmpfs = || mount("tmpfs", "tmpfs", &[]);
    let many = vec![tmpfs(); 256];
    for (mounts, code) in [
        (vec![], Code::Unimplemented),
        (vec![tmpfs()], Code::Unimplemented),
        (vec![tmpfs(), mount("format/overlay", "o", &["lowerdir={{ mount 7 }}"])], Code::InvalidArgument),
        (vec![tmpfs(), mount("nonsense", "x", &[]), mount("format/bind", "{{ mount 1 }}", &[])], Code::Unknown),
        (vec![tmpfs(), mount("mkdir/bind", "/", &["X-containerd.mkdir.path=/etc/x"])], Code::Unimplemented),
        (vec![mount("tmpfs", "x", &["X-containerd.other=1"]), mount("format/bind", "", &[])], Code::InvalidArgument),
        (vec![mount("loop", "/nonexistent", &[])], Code::Unknown),
        (vec![mount("loop", "/dev/null", &["suid"])], Code::InvalidArgument),
        (vec![mount("format/overlay", "o", &["x{{ overlay 0 0 }}"; 20000])], Code::InvalidArgument),
        (many, Code::InvalidArgument),
    ] {
        let kinds: Vec<String> = mounts.iter().take(3).map(|mount| mount.kind.clone()).collect();
        let error = manager.activate(request("a", mounts)).unwrap_err();
        let unknown = code == Code::Unknown && error.code() != Code::InvalidArgument;
        assert!(error.code() == code || unknown, "{kinds:?}: {}", model::render(&error));
        assert_eq!((fixture.mounted(), fixture.left()), (0, 0), "{kinds:?}");
    }
    // Templates that grow: each text is small, all together are not.
    let mut growing = vec![tmpfs(); 20];
    growing.push(mount("format/overlay", "o", &["{{ overlay 0 19 }}"; 4000]));
    assert_eq!(manager.activate(request("a", growing)).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!((fixture.mounted(), fixture.left()), (0, 0));
    for name in ["", &"x".repeat(481)] {
        assert!(matches!(manager.activate(request(name, layered())), Err(Error::Name { .. })));
    }
}

#[test]
fn what_belongs_to_nobody_is_swept() {
    let fixture = Fixture::new();
    let manager = fixture.open("boot");
    manager.activate(request("kept", layered())).unwrap();
    manager.activate(request("half", layered())).unwrap();
    drop(manager);
    // The daemon died before it had written the record of the second.
    std::fs::remove_file(fixture.scratch.path().join("state/io.containerd.mount-manager.v1.bolt/t/2/record.json"))
        .unwrap();
    let manager = fixture.open("boot");
    assert_eq!((manager.list("n").len(), fixture.mounted(), fixture.left()), (1, 2, 1));
    // Another boot: whatever is said to be active is not, and here still is.
    drop(manager);
    let manager = fixture.open("another boot");
    assert_eq!((manager.list("n").len(), fixture.mounted(), fixture.left()), (0, 0, 0));
    assert_eq!(manager.activate(request("kept", layered())).unwrap().active.len(), 2);
    manager.deactivate("n", "kept").unwrap();
}

#[test]
fn a_busy_mount_goes_later() {
    let fixture = Fixture::new();
    let manager = fixture.open("boot");
    let made = manager.activate(request("a", layered())).unwrap();
    let held = std::fs::File::create(Path::new(&made.active[1].mount_point).join("file")).unwrap();
    assert!(matches!(manager.deactivate("n", "a"), Err(Error::Unmount(_))));
    assert!(matches!(manager.info("n", "a"), Err(Error::Missing(_))));
    manager.sweep();
    assert_eq!((fixture.mounted(), fixture.left()), (0, 0));
    drop(held);
}

#[test]
fn a_temporary_activation_is_bound_as_a_whole() {
    let fixture = Fixture::new();
    let manager = fixture.open("boot");
    let made = manager.activate(Activate { temporary: true, ..request("a", layered()) }).unwrap();
    let point = &made.active[2].mount_point;
    assert_eq!(made.system, [mount("bind", point, &["rbind"])]);
    assert!(Path::new(point).is_dir());
    assert_eq!(fixture.mounted(), 3);
    manager.deactivate("n", "a").unwrap();
    assert_eq!((fixture.mounted(), fixture.left()), (0, 0));
}

#[test]
fn a_file_system_on_a_file_behind_a_device() {
    let fixture = Fixture::new();
    let manager = fixture.open("boot");
    let image = fixture.root("image");
    let made = manager.activate(request(
        "a",
        vec![
            mount("mkfs/loop", &image, &["X-containerd.mkfs.size=8m"]),
            mount("format/ext4", "{{ mount 0 }}", &[]),
            mount("format/mkdir/bind", "{{ mount 1 }}/up", &["rbind", "X-containerd.mkdir.path={{ mount 1 }}/up:0755"]),
        ],
    ));
    let made = match made {
        Err(Error::File { operation: "put behind a loop device", .. } | Error::Format { .. }) => {
            println!("SKIP loop devices or mkfs.ext4");
            return;
        }
        made => made.unwrap(),
    };
    let device = std::fs::read_link(&made.active[0].mount_point).unwrap();
    let backing = Path::new("/sys/block").join(device.file_name().unwrap()).join("loop/backing_file");
    assert!(backing.exists());
    assert_eq!(made.system, [mount("bind", &format!("{}/up", made.active[1].mount_point), &["rbind"])]);
    assert!(Path::new(&made.system[0].source).is_dir());
    manager.deactivate("n", "a").unwrap();
    assert!(!backing.exists(), "the device is still there");
    assert_eq!((fixture.mounted(), fixture.left()), (0, 0));
    assert_eq!(std::fs::metadata(&image).unwrap().len(), 8 << 20);
}

#[test]
fn one_name_at_a_time() {
    let fixture = Fixture::new();
    let manager = fixture.open("boot");
    let winners: usize = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| manager.activate(request("a", layered())).is_ok())).collect();
        threads.into_iter().map(|thread| usize::from(thread.join().unwrap())).sum()
    });
    assert_eq!((winners, fixture.mounted()), (1, 2));
    manager.deactivate("n", "a").unwrap();
}
