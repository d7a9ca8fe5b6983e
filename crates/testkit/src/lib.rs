//! What black-box scenarios need: a real gantryd in a private root, an image made on the spot, foreign daemons to
//! compare with, a pseudo terminal, and a check that nothing is left behind.
//!
//! **Invariant:** everything made here lies below one temporary directory and one cgroup path, both named after the
//! scenario and this process, and is gone when the value that made it is dropped; what is not gone fails the test.

mod command;
mod daemon;
mod dockerd;
mod image;
mod layout;
mod leaks;
mod peer;
mod podman;
mod pty;
mod spec;
mod wait;

pub use command::{Output, binary, run, run_with_input};
pub use daemon::{Daemon, Settings};
pub use dockerd::Dockerd;
pub use image::{
    Files, Layer, busybox_files, busybox_image, image_tar, labelled_image_tar, requires_busybox, rootfs_tar,
};
pub use layout::{Platform, image_layout};
pub use leaks::{Leaks, processes_naming};
pub use peer::Containerd;
pub use podman::{ENGINE_IMAGE, Podman, program_named};
pub use pty::Pty;
pub use spec::specification;
pub use wait::{DEADLINE, eventually, eventually_within};

/// Says on the test's output that something was left out, and why; the runner counts these lines.
pub fn skip(what: &str, reason: &str) {
    println!("SKIP {what}: {reason}");
}
