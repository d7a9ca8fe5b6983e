//! Class A: links and races in the root file system while mounts are made.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;

use crate::lab::{Bundle, Lab, Output, SECRET, Verdict};
use crate::race::race;
use crate::{Attack, attack};

pub(crate) const ATTACKS: &[Attack] = &[
    attack('A', "mount point made through a swapped link", "CVE-2024-45310", Some("paths"), race_making),
    attack('A', "mount through a swapped link", "CVE-2021-30465", Some("paths"), race_landing),
    attack('A', "mount through links and ..", "CVE-2019-16884 kin", Some("paths"), static_links),
    attack('A', "mount through magic links", "CVE-2024-21626 kin", Some("paths"), magic_links),
    attack('A', "masks by the container's /dev/null", "CVE-2025-31133", Some("null"), fake_null),
    attack('A', "/dev/console is a link", "CVE-2025-52565", Some("console"), console_link),
    attack('A', "/dev is a link", "CVE-2026-41579, CVE-2026-47766", Some("paths"), dev_link),
    attack('A', "device node through a link", "CVE-2026-41579 kin", Some("paths"), device_link),
    attack('A', "working directory made through a link", "CVE-2024-45310 kin", Some("paths"), directory_link),
    attack('A', "tmpcopyup through a swapped link", "CVE-2021-30465 kin", Some("paths"), copy_up),
];

fn tmpfs(destination: &str) -> serde_json::Value {
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]})
}

/// What is in the host's directory besides the secret.
fn made_on_host(bundle: &Bundle) -> Option<String> {
    let mut names: Vec<String> = fs::read_dir(bundle.host())
        .expect("read the host's directory")
        .map(|entry| entry.expect("read an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name != "secret")
        .collect();
    names.sort();
    (!names.is_empty()).then(|| format!("made on the host: {}", names.join(" ")))
}

fn race_making(lab: &Lab) -> Verdict {
    let mut bundle = Bundle::new(lab, "true");
    bundle.share("/vol");
    bundle.mount(tmpfs("/vol/swap/new/point"));
    bundle.save();
    let (swap, link) = (bundle.volume().join("swap"), bundle.volume().join("link"));
    fs::create_dir(&swap).expect("make a directory");
    symlink(bundle.host(), &link).expect("make a link");
    race(lab, &swap, &link, || {
        let output = bundle.saved_run();
        bundle.delete();
        let reached = made_on_host(&bundle);
        let _ = fs::remove_dir_all(bundle.host().join("new"));
        for name in ["swap/new", "link/new"] {
            // Whichever of the two is the directory now.
            let place = bundle.volume().join(name);
            if fs::symlink_metadata(bundle.volume().join(&name[..4])).is_ok_and(|found| found.is_dir()) {
                let _ = fs::remove_dir_all(place);
            }
        }
        (reached, output)
    })
}

/// Tells, from a hook in the container's mount namespace whose root is still the host's, whether something is mounted
/// in the host's directory.
fn watch_mounts(bundle: &mut Bundle) {
    let script = format!(
        "own=$(stat -c %d {0}); for d in {1} {1}/* {1}/*/*; do \
         [ -d $d ] && [ $(stat -c %d $d) != $own ] && touch {0}/landed; done; exit 0",
        bundle.directory.display(),
        bundle.host().display(),
    );
    bundle.spec["hooks"] = json!({"createContainer": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
}

fn landed(bundle: &Bundle) -> Option<String> {
    fs::remove_file(bundle.directory.join("landed")).ok().map(|()| "mounted over the host's directory".to_owned())
}

fn race_landing(lab: &Lab) -> Verdict {
    let mut bundle = Bundle::new(lab, "true");
    bundle.share("/vol");
    bundle.mount(tmpfs("/vol/swap/point"));
    watch_mounts(&mut bundle);
    bundle.save();
    let (swap, link) = (bundle.volume().join("swap"), bundle.volume().join("link"));
    fs::create_dir_all(swap.join("point")).expect("make a directory");
    fs::create_dir(bundle.host().join("point")).expect("make a directory");
    symlink(bundle.host(), &link).expect("make a link");
    race(lab, &swap, &link, || {
        let output = bundle.saved_run();
        bundle.delete();
        (landed(&bundle), output)
    })
}

fn static_links(lab: &Lab) -> Verdict {
    let mut said = String::new();
    let up = "../".repeat(20);
    for (link, destination) in [
        ("/host/", "/link/new/point"),
        ("up/host/", "/link/new/point"),
        ("", "/up/host/new/point"),
        ("/host/dangling/", "/link"),
    ] {
        let mut bundle = Bundle::new(lab, "true");
        let host = bundle.host();
        let real = |text: &str| {
            let relative = format!("{up}{}/", host.strip_prefix("/").expect("absolute").display());
            text.replace("up/host/", &relative).replace("/host/", &format!("{}/", host.display()))
        };
        if !link.is_empty() {
            symlink(real(link).trim_end_matches('/'), bundle.rootfs().join("link")).expect("make a link");
        }
        bundle.mount(tmpfs(&real(destination)));
        watch_mounts(&mut bundle);
        let output = bundle.run();
        if let Some(reached) = made_on_host(&bundle).or_else(|| landed(&bundle)) {
            return Verdict::Bites(reached);
        }
        said = output.said();
    }
    Verdict::Stopped(said)
}

fn magic_links(lab: &Lab) -> Verdict {
    let mut said = String::new();
    let mut links = vec!["/proc/1/root".to_owned(), "/proc/self/root".to_owned(), "/proc/self/cwd".to_owned()];
    links.extend((3..12).map(|number| format!("/proc/self/fd/{number}")));
    for link in links {
        let mut bundle = Bundle::new(lab, "true");
        symlink(&link, bundle.rootfs().join("link")).expect("make a link");
        let host = bundle.host();
        let below = host.strip_prefix("/").expect("absolute").display();
        bundle.mount(tmpfs(&format!("/link/{below}/new")));
        watch_mounts(&mut bundle);
        let output = bundle.run();
        if let Some(reached) = made_on_host(&bundle).or_else(|| landed(&bundle)) {
            return Verdict::Bites(format!("{reached}, by {link}"));
        }
        said = output.said();
    }
    Verdict::Stopped(said)
}

/// `/dev` comes from a volume in which `null` is a link: what masks by it shows what the link names.
fn fake_null(lab: &Lab) -> Verdict {
    let mut bundle = Bundle::new(lab, "cat /masked");
    fs::write(bundle.rootfs().join("masked"), SECRET).expect("write a file");
    for destination in ["/dev", "/dev/pts"] {
        bundle.unmount(destination);
    }
    symlink("/masked", bundle.volume().join("null")).expect("make a link");
    bundle.share("/dev");
    bundle.spec["linux"]["maskedPaths"] = json!(["/masked"]);
    let output = bundle.run();
    Verdict::of(output.text.contains(SECRET).then(|| "the masked file can be read".to_owned()), output.said())
}

/// With a terminal, `/dev/console` becomes a mount: a link there must not lead it elsewhere.
fn console_link(lab: &Lab) -> Verdict {
    let socket_name = "console.socket";
    let mut bundle = Bundle::new(lab, "grep -q ' /victim ' /proc/self/mountinfo && echo COVERED; stat -c %F /victim");
    fs::write(bundle.rootfs().join("victim"), "x").expect("write a file");
    // A /dev of the image itself, so that nothing covers the link.
    for destination in ["/dev", "/dev/pts"] {
        bundle.unmount(destination);
    }
    bundle.mount(json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]}));
    symlink("/victim", bundle.rootfs().join("dev/console")).expect("make a link");
    bundle.spec["process"]["terminal"] = json!(true);
    bundle.save();
    let socket = bundle.directory.join(socket_name);
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("listen");
    let receiver = std::thread::spawn(move || crate::terminal::receive(&listener));
    let directory = bundle.directory.to_string_lossy().into_owned();
    let socket = socket.to_string_lossy().into_owned();
    let output = bundle.command(&["create", "--bundle", &directory, "--console-socket", &socket, &bundle.id]);
    if !output.ok() {
        // Nobody will connect any more.
        drop(std::os::unix::net::UnixStream::connect(&socket));
        let _ = receiver.join();
        return Verdict::Stopped(output.said());
    }
    bundle.command(&["start", &bundle.id]);
    let text = receiver.join().unwrap_or_default();
    Verdict::of(
        text.contains("COVERED").then(|| "the terminal is mounted on /victim".to_owned()),
        "mounted on /dev/console only",
    )
}

fn dev_link(lab: &Lab) -> Verdict {
    let mut bundle = Bundle::new(lab, "true");
    for destination in ["/dev", "/dev/pts"] {
        bundle.unmount(destination);
    }
    let dev = bundle.rootfs().join("dev");
    fs::remove_dir(&dev).expect("remove /dev");
    symlink(bundle.host(), &dev).expect("make a link");
    let output = bundle.run();
    Verdict::of(made_on_host(&bundle), output.said())
}

fn device_link(lab: &Lab) -> Verdict {
    let mut bundle = Bundle::new(lab, "true");
    symlink(bundle.host(), bundle.rootfs().join("link")).expect("make a link");
    bundle.spec["linux"]["devices"] =
        json!([{"path": "/link/evil", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0}]);
    let output = bundle.run();
    Verdict::of(made_on_host(&bundle), output.said())
}

fn directory_link(lab: &Lab) -> Verdict {
    let mut bundle = Bundle::new(lab, "true");
    symlink(bundle.host(), bundle.rootfs().join("link")).expect("make a link");
    bundle.spec["process"]["cwd"] = json!("/link/made/here");
    let output = bundle.run();
    Verdict::of(made_on_host(&bundle), output.said())
}

fn copy_up(lab: &Lab) -> Verdict {
    let mut bundle = Bundle::new(lab, "cat /vol/data/secret /vol/link/secret");
    bundle.share("/vol");
    bundle.mount(json!({"destination": "/vol/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}));
    bundle.save();
    let (data, link) = (bundle.volume().join("data"), bundle.volume().join("link"));
    fs::create_dir(&data).expect("make a directory");
    symlink(bundle.host(), &link).expect("make a link");
    let round = || -> (Option<String>, Output) {
        let output = bundle.saved_run();
        bundle.delete();
        (output.text.contains(SECRET).then(|| "a file of the host was copied in".to_owned()), output)
    };
    // At rest first: the destination is a link.
    swap(&data, &link);
    if let (Some(reached), _) = round() {
        return Verdict::Bites(format!("{reached}, without a race"));
    }
    race(lab, &data, &link, round)
}

fn swap(one: &Path, other: &Path) {
    rustix::fs::renameat_with(rustix::fs::CWD, one, rustix::fs::CWD, other, rustix::fs::RenameFlags::EXCHANGE)
        .expect("exchange two names");
}
