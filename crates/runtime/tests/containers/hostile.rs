//! What an image or a container does to get at the runtime itself. The suite of attacks (`tests/attacks`) mounts many
//! more, on the command line.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use serde_json::json;

use crate::Case;
use crate::fixture::{Bundle, end, exec, streams};

pub(crate) const CASES: &[Case] = &[
    ("hostile: our program as an interpreter", own_program),
    ("hostile: links into procfs", links_into_procfs),
    ("hostile: a hook that talks without end", endless_hook),
];

fn script(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// CVE-2019-5736: by init, by an exec, by a hook in the container, through a script that interprets a script.
fn own_program() {
    for line in ["#!/proc/self/exe\n", "#! /proc/thread-self/exe x\n", "#!/other\n"] {
        let bundle = Bundle::new("").with(|spec| spec["process"]["args"] = json!(["/evil"]));
        script(&bundle.rootfs().join("evil"), line);
        script(&bundle.rootfs().join("other"), "#!/proc/1/exe\n");
        let error = bundle.error();
        assert!(error.contains("permission denied"), "{line}: {error}");
    }
    let bundle = Bundle::new("sleep 100");
    script(&bundle.rootfs().join("evil"), "#!/proc/self/exe\n");
    let mut container = bundle.create(streams().0).unwrap();
    runtime::wait(&mut container.start().unwrap()).unwrap();
    for program in ["/evil", "/proc/self/exe"] {
        let process = json!({"user": {"uid": 0, "gid": 0}, "args": [program], "cwd": "/"});
        let error = model::render(&exec(&container, &process).unwrap_err());
        assert!(error.contains("permission denied"), "{program}: {error}");
    }
    end(container);
    if sys::features().forced_fallbacks {
        // A hook's interpreter is not looked at: only where the process cannot let go of its program.
        return;
    }
    let bundle = Bundle::new("true").with(|spec| spec["hooks"] = json!({"startContainer": [{"path": "/evil"}]}));
    script(&bundle.rootfs().join("evil"), "#!/proc/self/exe\n");
    let error = bundle.error();
    assert!(error.contains("exit status 127"), "{error}");
}

/// CVE-2025-52881: what the plan refuses by its name must not be had by a link.
fn links_into_procfs() {
    for (link, target, destination) in
        [("x", "/proc", "/x/sys"), ("x", "/proc/sys/kernel", "/x"), ("y", "proc/irq", "/y")]
    {
        let bundle = Bundle::new("true").with(|spec| {
            let mount = json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"});
            spec["mounts"].as_array_mut().unwrap().push(mount);
        });
        symlink(target, bundle.rootfs().join(link)).unwrap();
        let error = bundle.error();
        assert!(error.contains("inside /proc"), "{destination}: {error}");
    }
}

fn endless_hook() {
    let command = "head -c 3000000 /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 3";
    let error = Bundle::new("true")
        .with(|spec| spec["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", command]}]}))
        .error();
    assert!(error.contains("exit status 3") && error.contains("the end") && error.len() < 4096, "{error}");
}
