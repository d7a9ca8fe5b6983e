//! The type `loop`: a file becomes a device, named by a symbolic link where other mounts have a directory.
//!
//! **Invariant:** a device is given back only if it shows the link's own path as its backing file, so one that somebody
//! else has got in the meantime (after a crash, or in another boot) is left alone. Until the link stands the device goes
//! away by itself.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use model::Mount;
use rustix::fs::{CWD, Mode, OFlags, openat};
use sys::loopdev;

use crate::Error;

/// Puts the source behind a device and links it at `link`.
pub(crate) fn attach(mount: &Mount, link: &Path) -> Result<(), Error> {
    let read_only = mount.options.iter().any(|option| option == "ro");
    let direct_io = mount.options.iter().any(|option| option == "direct-io");
    if let Some(option) =
        mount.options.iter().find(|option| !["ro", "rw", "direct-io", "loop"].contains(&option.as_str()))
    {
        return Err(Error::Option { option: option.clone(), problem: "means nothing to a loop device" });
    }
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    // A FIFO would block for ever.
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = openat(CWD, &mount.source, flags, Mode::empty()).map_err(|e| Error::file("open", &mount.source, e))?;
    let device = loopdev::attach(file.as_fd(), &name(link), read_only, direct_io)
        .map_err(|errno| Error::file("put behind a loop device", &mount.source, errno))?;
    std::os::unix::fs::symlink(&device.path, link).map_err(|source| Error::file("link", link, source))?;
    loopdev::keep(device.fd.as_fd(), true).map_err(|errno| {
        // Nobody will find the device by it.
        let _ = fs::remove_file(link);
        Error::file("keep the device of", link, errno)
    })
}

/// Gives the device of `link` back, if it is still ours, and removes the link. The device goes when its last user does.
pub(crate) fn detach(link: &Path) -> Result<(), Error> {
    let device = fs::read_link(link).map_err(|source| Error::file("read link", link, source))?;
    match File::open(&device) {
        Ok(file) => match loopdev::backing_name(file.as_fd()) {
            Ok(shown) if shown == name(link) => {
                loopdev::keep(file.as_fd(), false).map_err(|errno| Error::file("give back", &device, errno))?;
            }
            // Somebody else's, or nobody's.
            Ok(_) | Err(_) => {}
        },
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound) => {}
        Err(error) => return Err(Error::file("open", &device, error)),
    }
    fs::remove_file(link).map_err(|source| Error::file("remove", link, source))
}

/// What the device shows as its file: the end of the link's path, which is unique to this daemon and activation.
fn name(link: &Path) -> String {
    let text = link.display().to_string();
    let skip = text.len().saturating_sub(loopdev::NAME_MAX_BYTES);
    // A character that is cut in two goes whole.
    text.char_indices().find(|(at, _)| *at >= skip).map(|(at, _)| text[at..].to_owned()).unwrap_or_default()
}
