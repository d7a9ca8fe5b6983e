//! Building detached mounts.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use model::Mount;
use rustix::fs::{CWD, Mode, OFlags};
use sys::Errno;
use sys::mount::{
    FsMountFlags, FsOpenFlags, MountAttr, MountAttrFlags, OpenTreeFlags, attr, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, mount_setattr, open_tree,
};

use crate::overlay::{Held, MAX_FSCONFIG_STRING, Overlay, common_parent};
use crate::{Attributes, Bind, Error, Feature, ParsedOptions, Propagation, Result};

/// Builds `mount` detached: nobody sees it before it is attached, and it goes away with the descriptor. All
/// attributes and id maps are in place; for propagation see [`set_propagation`]. Its `target` field is not looked at.
///
/// [`Error::Unsupported`] where the kernel cannot (or fallbacks are forced), and for an overlay of many layers before
/// Linux 6.7; then use [`crate::mount_all`].
pub fn detached(mount: &Mount) -> Result<OwnedFd> {
    detached_with(&mount.kind, &mount.source, &crate::parse_options(&mount.options)?)
}

/// As [`detached`], with options that are already told apart.
pub fn detached_with(kind: &str, source: &str, options: &ParsedOptions) -> Result<OwnedFd> {
    require_new_api(kind)?;
    if is_bind(kind, options) {
        if source.is_empty() {
            return Err(Error::Invalid { kind: kind.to_owned(), reason: "a bind mount needs a source" });
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let source = rustix::fs::openat(CWD, source, flags, Mode::empty())
            .map_err(|errno| Error::Source { path: source.to_owned(), source: errno })?;
        return detached_bind(source.as_fd(), options);
    }
    detached_filesystem(kind, source, options)
}

/// Builds a detached bind of what `source` refers to (an `O_PATH` descriptor will do), with `options`.
pub fn detached_bind(source: BorrowedFd<'_>, options: &ParsedOptions) -> Result<OwnedFd> {
    let step = Step { kind: "bind", source: "" };
    require_new_api(step.kind)?;
    refuse_remount(step.kind, options)?;
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if options.bind == Some(Bind::Tree) {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let mount = open_tree(source, c"", flags).map_err(step.failed("open_tree(OPEN_TREE_CLONE)"))?;
    set_id_map(mount.as_fd(), &step, options)?;
    set_attributes(mount.as_fd(), &step, &options.attributes, false)?;
    set_attributes(mount.as_fd(), &step, &options.recursive_attributes, true)?;
    set_early_propagation(mount.as_fd(), options)?;
    Ok(mount)
}

/// Builds a detached mount of a file system, `tmpfs` or `proc` for instance.
pub fn detached_filesystem(kind: &str, source: &str, options: &ParsedOptions) -> Result<OwnedFd> {
    require_new_api(kind)?;
    refuse_remount(kind, options)?;
    if kind.starts_with("fuse.") || kind.starts_with("fuse3.") {
        return Err(Error::Unsupported { kind: kind.to_owned(), feature: Feature::Helper });
    }
    let device = loop_device(source, options)?;
    let source = device.as_ref().map_or(source, |device| device.path.as_str());
    let step = Step { kind, source };
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(step.failed("fsopen"))?;
    let context = Context { fd: context, step };

    let mut held = Held::default();
    context.set_source(source, &mut held)?;
    if options.is_read_only() {
        context.set_flag("ro")?;
    }
    for (flag, word) in ParsedOptions::SUPERBLOCK_WORDS {
        if options.superblock_flags & flag != 0 {
            context.set_flag(word)?;
        }
    }
    let id_mapped_overlay = kind == "overlay" && options.id_map.is_some();
    let layers = if kind == "overlay" { Overlay::parse(&options.data) } else { None };
    // What the layers are reached through must live until the file system is made.
    let through = match &layers {
        Some(overlay) => context.set_overlay(overlay, options, &mut held)?,
        None if id_mapped_overlay => {
            return Err(Error::Invalid {
                kind: kind.to_owned(),
                reason: "an id-mapped overlay needs a plain lowerdir",
            });
        }
        None => {
            for option in &options.data {
                context.set_option(option)?;
            }
            None
        }
    };
    let created = fsconfig_create(&context.fd);
    if created == Err(Errno::INVAL) && through.is_some() {
        // Before Linux 6.15 overlayfs takes no layers from a mount that is not attached.
        return Err(Error::Unsupported { kind: kind.to_owned(), feature: Feature::IdMappedOverlay });
    }
    created.map_err(context.failed("fsconfig(CREATE)"))?;
    let attributes = MountAttrFlags::from_bits_retain(u32::try_from(options.attributes.set).unwrap_or(0));
    let mount = fsmount(&context.fd, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(context.failed("fsmount"))?;
    if !id_mapped_overlay {
        set_id_map(mount.as_fd(), &step, options)?;
    }
    set_attributes(mount.as_fd(), &step, &options.recursive_attributes, true)?;
    set_early_propagation(mount.as_fd(), options)?;
    Ok(mount)
}

/// Sets the propagation that `options` names on a mount that is attached. Whoever attaches a detached mount calls this
/// afterwards: below a shared mount it has become shared, and `unbindable` cannot be set before.
pub fn set_propagation(mount: BorrowedFd<'_>, options: &ParsedOptions) -> Result<()> {
    propagate(mount, options.propagation.iter())
}

/// As [`set_propagation`], before the mount is attached: the kernel refuses to attach an unbindable tree below a
/// shared mount.
fn set_early_propagation(mount: BorrowedFd<'_>, options: &ParsedOptions) -> Result<()> {
    propagate(mount, options.propagation.iter().filter(|change| change.kind != Propagation::UNBINDABLE))
}

fn propagate<'a>(mount: BorrowedFd<'_>, changes: impl Iterator<Item = &'a Propagation>) -> Result<()> {
    let step = Step { kind: "", source: "" };
    for Propagation { kind, recursive } in changes {
        let change = MountAttr { propagation: *kind, ..MountAttr::default() };
        mount_setattr(mount, c"", *recursive, &change).map_err(step.failed("setting propagation"))?;
    }
    Ok(())
}

/// Whether a mount is a bind: its options say so, or its type does, as crun and Docker understand it.
pub(crate) fn is_bind(kind: &str, options: &ParsedOptions) -> bool {
    options.bind.is_some() || kind == "bind"
}

/// The loop device for `source` if the options ask for one.
pub(crate) fn loop_device(source: &str, options: &ParsedOptions) -> Result<Option<sys::loopdev::LoopDevice>> {
    let Some(wanted) = options.loop_device else { return Ok(None) };
    let failed = |errno| Error::LoopDevice { path: source.to_owned(), source: errno };
    let access = if options.is_read_only() { OFlags::RDONLY } else { OFlags::RDWR };
    let file = rustix::fs::openat(CWD, source, access | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    sys::loopdev::attach(file.as_fd(), source, options.is_read_only(), wanted.direct_io).map(Some).map_err(failed)
}

fn require_new_api(kind: &str) -> Result<()> {
    if sys::features().new_mount_api && sys::features().mount_setattr {
        return Ok(());
    }
    Err(Error::Unsupported { kind: kind.to_owned(), feature: Feature::Detached })
}

fn refuse_remount(kind: &str, options: &ParsedOptions) -> Result<()> {
    if !options.remount {
        return Ok(());
    }
    Err(Error::Invalid { kind: kind.to_owned(), reason: "a remount needs a mount that is there" })
}

/// Changes attributes. In a user namespace some are locked: EPERM for clearing them is no failure as long as all that
/// are to be set can be.
pub(crate) fn set_attributes(
    mount: BorrowedFd<'_>,
    step: &Step<'_>,
    attributes: &Attributes,
    recursive: bool,
) -> Result<()> {
    if attributes.is_empty() {
        return Ok(());
    }
    let change = MountAttr { set: attributes.set, clear: attributes.clear, ..MountAttr::default() };
    let result = match mount_setattr(mount, c"", recursive, &change) {
        Err(Errno::PERM) if attributes.clear != 0 => {
            let locked = MountAttr { set: attributes.set & !attr::ATIME, ..MountAttr::default() };
            mount_setattr(mount, c"", recursive, &locked)
        }
        result => result,
    };
    result.map_err(step.failed("setting mount attributes"))
}

pub(crate) fn set_id_map(mount: BorrowedFd<'_>, step: &Step<'_>, options: &ParsedOptions) -> Result<()> {
    let Some(map) = &options.id_map else { return Ok(()) };
    let namespace = map.user_namespace()?;
    let change = MountAttr { user_namespace: Some(namespace.as_fd()), ..MountAttr::default() };
    mount_setattr(mount, c"", options.id_mapped == Some(true), &change).map_err(|errno| {
        if errno == Errno::INVAL {
            return Error::Unsupported { kind: step.kind.to_owned(), feature: Feature::IdMap };
        }
        step.failed("setting id maps")(errno)
    })
}

/// What is being mounted, for errors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step<'a> {
    pub(crate) kind: &'a str,
    pub(crate) source: &'a str,
}

impl<'a> Step<'a> {
    pub(crate) fn failed<'s>(self, step: &'s str) -> impl FnOnce(Errno) -> Error + use<'a, 's> {
        move |source| self.error(step, String::new(), source)
    }

    fn error(self, step: &str, log: String, source: Errno) -> Error {
        Error::Mount {
            kind: self.kind.to_owned(),
            mount_source: self.source.to_owned(),
            step: step.to_owned(),
            log,
            source,
        }
    }
}

/// A file system being configured.
struct Context<'a> {
    fd: OwnedFd,
    step: Step<'a>,
}

impl Context<'_> {
    /// As [`Step::failed`], with what the file system has to say.
    fn failed(&self, step: &str) -> impl FnOnce(Errno) -> Error {
        move |source| self.step.error(step, self.log(), source)
    }

    fn option_failed(&self, key: &str) -> impl FnOnce(Errno) -> Error {
        move |source| self.step.error(&format!("option {key:?}"), self.log(), source)
    }

    /// The messages of the file system: lines that begin with their severity.
    fn log(&self) -> String {
        let mut text = String::new();
        let mut buffer = [0_u8; 1024];
        // ENODATA ends the messages; sixteen are more than the kernel keeps.
        for _ in 0..16 {
            let Ok(count) = rustix::io::read(&self.fd, &mut buffer[..]) else { break };
            let line = String::from_utf8_lossy(&buffer[..count]);
            let line = line.trim();
            text.push_str(if text.is_empty() { " (" } else { "; " });
            text.push_str(line.strip_prefix("e ").unwrap_or(line));
        }
        if !text.is_empty() {
            text.push(')');
        }
        text
    }

    fn set_flag(&self, key: &str) -> Result<()> {
        fsconfig_set_flag(&self.fd, key).map_err(self.option_failed(key))
    }

    fn set_string(&self, key: &str, value: &str) -> Result<()> {
        fsconfig_set_string(&self.fd, key, value).map_err(self.option_failed(key))
    }

    fn set_source(&self, source: &str, held: &mut Held) -> Result<()> {
        match source {
            "" => self.set_string("source", "none"),
            _ if source.len() > MAX_FSCONFIG_STRING => self.set_string("source", &held.short(source)?),
            _ => self.set_string("source", source),
        }
    }

    fn set_option(&self, option: &str) -> Result<()> {
        match option.split_once('=') {
            Some((key, value)) if value.len() > MAX_FSCONFIG_STRING => {
                let error = Error::Unsupported { kind: self.step.kind.to_owned(), feature: Feature::LongOption };
                // Said only if the kernel does not take it after all.
                fsconfig_set_string(&self.fd, key, value).map_err(|_| error)
            }
            // What mount(2) takes in quotes, fsconfig wants without.
            Some((key, value)) => self.set_string(key, value.trim_matches('"')),
            None => self.set_flag(option),
        }
    }

    /// Gives an overlay its directories. Returns the id-mapped tree that the layers are reached through, if any.
    fn set_overlay(&self, overlay: &Overlay<'_>, options: &ParsedOptions, held: &mut Held) -> Result<Option<OwnedFd>> {
        let (lower, through) = match &options.id_map {
            Some(_) => {
                let (lower, through) = id_mapped_layers(&overlay.lower, options)?;
                (lower, Some(through))
            }
            None => (overlay.lower.clone(), None),
        };
        self.set_lower(&lower, held, sys::features().overlay_lowerdir_append())?;
        for option in &overlay.rest {
            match option.split_once('=') {
                Some((key @ ("upperdir" | "workdir"), path)) if path.len() > MAX_FSCONFIG_STRING => {
                    self.set_string(key, &held.short(path)?)?;
                }
                _ => self.set_option(option)?,
            }
        }
        Ok(through)
    }

    fn set_lower(&self, lower: &[String], held: &mut Held, one_by_one: bool) -> Result<()> {
        if one_by_one {
            for path in lower {
                let path = if path.len() > MAX_FSCONFIG_STRING { &held.short(path)? } else { path };
                self.set_string("lowerdir+", path)?;
            }
            return Ok(());
        }
        let mut joined = Overlay::joined(lower);
        if joined.len() > MAX_FSCONFIG_STRING {
            let short: Vec<String> = lower.iter().map(|path| held.short(path)).collect::<Result<_>>()?;
            joined = short.join(":");
        }
        if joined.len() > MAX_FSCONFIG_STRING {
            return Err(Error::Unsupported { kind: self.step.kind.to_owned(), feature: Feature::ManyLayers });
        }
        self.set_string("lowerdir", &joined)
    }
}

/// The layers seen through one id-mapped, read-only, detached clone of the directory they have in common: overlayfs
/// itself cannot be id-mapped, its layers can.
fn id_mapped_layers(lower: &[String], options: &ParsedOptions) -> Result<(Vec<String>, OwnedFd)> {
    let step = Step { kind: "overlay", source: "" };
    let parent = common_parent(lower).ok_or(Error::Invalid {
        kind: "overlay".to_owned(),
        reason: "the layers of an id-mapped overlay need a directory in common",
    })?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, &parent, flags).map_err(step.failed("cloning the directory of the layers"))?;
    set_id_map(tree.as_fd(), &step, options)?;
    set_attributes(tree.as_fd(), &step, &Attributes { set: attr::RDONLY, clear: 0 }, false)?;
    let base = sys::fs::proc_path(tree.as_fd());
    let through = lower.iter().map(|path| format!("{base}{}", path.strip_prefix(&parent).unwrap_or(path))).collect();
    Ok((through, tree))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ways to name layers lead to the same mount; the joined one is what Linux 5.15 to 6.6 gets.
    #[test]
    fn layers_are_taken_joined_and_one_by_one() {
        let directory = tempfile::tempdir().unwrap();
        let layer = |number: usize| {
            let path = directory.path().join(format!("a-layer-with-a-long-name-{number}"));
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join(number.to_string()), "").unwrap();
            path.to_str().unwrap().to_owned()
        };
        let lower: Vec<String> = (0..12).map(layer).collect();
        let step = Step { kind: "overlay", source: "overlay" };
        for one_by_one in [false, true] {
            let context = Context { fd: fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap(), step };
            let mut held = Held::default();
            if one_by_one && !sys::features().overlay_lowerdir_append() {
                println!("SKIP lowerdir+, Linux 6.7");
                continue;
            }
            context.set_lower(&lower, &mut held, one_by_one).unwrap();
            fsconfig_create(&context.fd).unwrap();
            let mount = fsmount(&context.fd, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
            for number in 0..12 {
                rustix::fs::accessat(
                    &mount,
                    number.to_string(),
                    rustix::fs::Access::EXISTS,
                    rustix::fs::AtFlags::empty(),
                )
                .unwrap();
            }
        }
    }

    #[test]
    fn too_many_layers_to_join_are_left_to_the_fallback() {
        let directory = tempfile::tempdir().unwrap();
        let lower = vec![directory.path().to_str().unwrap().to_owned(); 40];
        let step = Step { kind: "overlay", source: "overlay" };
        let context = Context { fd: fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap(), step };
        let error = context.set_lower(&lower, &mut Held::default(), false).unwrap_err();
        assert!(matches!(error, Error::Unsupported { feature: Feature::ManyLayers, .. }));
    }
}
