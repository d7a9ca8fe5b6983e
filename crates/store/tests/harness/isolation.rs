//! Processes of their own, and mounts that nobody else sees.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{describe, run, this_test};

const ALONE: &str = "STORE_TEST_ALONE";

/// Whether this is a process of the test's own; else the test is run in one, and its outcome is this one's.
pub(crate) fn in_own_process(test: &str) -> bool {
    again(&[], test)
}

/// Like [`in_own_process`], with mounts that nobody else sees. Prints SKIP on a machine that has no loop devices for us.
pub(crate) fn in_mount_namespace(test: &str) -> bool {
    let loops = std::fs::File::options().write(true).open("/dev/loop-control");
    if let Err(error) = loops {
        #[expect(clippy::print_stdout, reason = "who runs the tests must see what was not tested")]
        {
            println!("SKIP {test}: loop devices: {error}");
        }
        return false;
    }
    again(&["unshare", "--mount", "--propagation", "private"], test)
}

fn again(wrapper: &[&str], test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let output = this_test(wrapper, test).env(ALONE, "1").output().unwrap();
    let text = describe(output.status, &output.stdout, &output.stderr);
    assert!(output.status.success(), "{text}");
    #[expect(clippy::print_stdout, reason = "the figures of the process that stands in for this one")]
    {
        println!("{text}");
    }
    false
}

/// A file system on a loop device, which the kernel frees with the mount.
pub(crate) struct Mount(pub(crate) PathBuf);

impl Mount {
    pub(crate) fn new(image: &Path, target: &Path, options: &str) -> Self {
        std::fs::create_dir_all(target).unwrap();
        run(Command::new("mount").args(["-t", "ext4", "-o", options]).args([image, target]));
        Self(target.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A thread of the database may hold its file a moment longer; a lazy unmount ends with it.
        run(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}
