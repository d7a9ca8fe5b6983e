//! Snapshots as directories that overlayfs stacks: an active snapshot is an upper directory over its parents.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::OnceLock;

use model::{Labels, Mount};
use rustix::fs::{AtFlags, Gid, Mode, Uid};

use crate::dirs::Dirs;
use crate::{Driver, Error, Kind, Usage, idmap, tree};

/// The switch of overlayfs's inode index, where the kernel has one.
const INDEX_PARAMETER: &str = "/sys/module/overlay/parameters/index";

/// How overlay mounts are made.
#[derive(Clone, Debug, Default)]
pub struct OverlayOptions {
    /// Options of the administrator, put behind ours into every overlay mount.
    pub mount_options: Vec<String>,
}

/// The snapshotter `overlayfs`.
#[derive(Debug)]
pub struct Overlay {
    dirs: Dirs,
    options: OverlayOptions,
    /// Set once the overlay module is there: it may be loaded by the first mount.
    index_off: OnceLock<()>,
}

impl Overlay {
    /// Opens or makes the driver's directory (`<root>/io.containerd.snapshotter.v1.overlayfs`). Fails with
    /// [`Error::NoFileTypes`] on a file system that overlayfs cannot use.
    pub fn open(root: &Path, options: OverlayOptions) -> Result<Self, Error> {
        let dirs = Dirs::open(root)?;
        if !dirs.has_file_types()? {
            return Err(Error::NoFileTypes { dir: root.to_owned() });
        }
        Ok(Self { dirs, options, index_off: OnceLock::new() })
    }

    /// Makes `fs` and, for an active snapshot, `work`. The root of an overlay shows the owner and mode of its uppermost
    /// directory, so `fs` takes those of the nearest parent.
    fn make(&self, id: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<(), Error> {
        let mapped = idmap::mapped_root(labels)?;
        let (mode, owner) = match parents.first() {
            Some(parent) => {
                let failed = |errno| Error::io("examine parent", self.dirs.fs_path(*parent), errno);
                let fs = self.dirs.open_fs(*parent)?;
                let stat = rustix::fs::fstat(&fs).map_err(failed)?;
                (Mode::from_raw_mode(stat.st_mode), Some((stat.st_uid, stat.st_gid)))
            }
            None => (Mode::from_raw_mode(0o755), None),
        };
        self.dirs.create(id, |dir, path| {
            let failed = |errno| Error::io("make directories in", path, errno);
            rustix::fs::mkdirat(dir, "fs", Mode::RWXU).map_err(failed)?;
            if let Some((user, group)) = mapped.or(owner) {
                let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
                rustix::fs::chownat(dir, "fs", Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            }
            // After the change of owner, which clears bits; and against any umask.
            rustix::fs::chmodat(dir, "fs", mode, AtFlags::empty()).map_err(failed)?;
            if kind == Kind::Active {
                rustix::fs::mkdirat(dir, "work", Mode::from_raw_mode(0o711)).map_err(failed)?;
            }
            Ok(())
        })
    }

    fn wants_index_off(&self) -> bool {
        // The administrator's own choice stands.
        if self.options.mount_options.iter().any(|option| option.starts_with("index=")) {
            return false;
        }
        if self.index_off.get().is_none() && Path::new(INDEX_PARAMETER).exists() {
            let _ = self.index_off.set(());
        }
        self.index_off.get().is_some()
    }

    fn text(&self, id: u64) -> String {
        // `Dirs::open` refused roots that are not UTF-8.
        self.dirs.fs_path(id).to_string_lossy().into_owned()
    }

    fn bind(&self, id: u64, access: &str) -> Vec<Mount> {
        vec![Mount {
            kind: "bind".to_owned(),
            source: self.text(id),
            target: String::new(),
            options: vec![access.to_owned(), "rbind".to_owned()],
        }]
    }
}

impl Driver for Overlay {
    fn name(&self) -> &'static str {
        "overlayfs"
    }

    fn root(&self) -> &Path {
        self.dirs.root()
    }

    fn capabilities(&self) -> &'static [&'static str] {
        &["rebase"]
    }

    fn prepare(&self, id: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<(), Error> {
        // A view of parents has nothing of its own.
        if kind == Kind::View && !parents.is_empty() { Ok(()) } else { self.make(id, kind, parents, labels) }
    }

    fn mounts(&self, id: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<Vec<Mount>, Error> {
        let own = kind == Kind::Active || parents.is_empty();
        if own && !self.dirs.exists(id)? {
            self.make(id, kind, parents, labels)?;
        }
        match (kind, parents) {
            (Kind::View, []) => return Ok(self.bind(id, "ro")),
            (_, []) => return Ok(self.bind(id, "rw")),
            (Kind::View, [parent]) => return Ok(self.bind(*parent, "ro")),
            (Kind::View | Kind::Active | Kind::Committed, _) => {}
        }
        let mut options = Vec::new();
        if kind == Kind::Active {
            options.push(format!("workdir={}", self.dirs.work_path(id).to_string_lossy()));
            options.push(format!("upperdir={}", self.text(id)));
        }
        let lower: Vec<String> = parents.iter().map(|parent| self.text(*parent)).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
        options.extend(self.options.mount_options.iter().cloned());
        if self.wants_index_off() {
            options.push("index=off".to_owned());
        }
        Ok(vec![Mount { kind: "overlay".to_owned(), source: "overlay".to_owned(), target: String::new(), options }])
    }

    fn commit(&self, id: u64) -> Result<Usage, Error> {
        commit(&self.dirs, id)
    }

    fn usage(&self, id: u64) -> Result<Usage, Error> {
        usage(&self.dirs, id)
    }

    fn remove(&self, id: u64) -> Result<(), Error> {
        self.dirs.remove(id)
    }

    fn ids(&self) -> Result<Vec<u64>, Error> {
        self.dirs.ids()
    }

    fn sweep(&self) -> Result<(), Error> {
        self.dirs.sweep()
    }
}

/// Brings the files of `id` to disk and measures them.
///
/// The whole file system is flushed at once: one journal commit, where an fsync of each of a layer's thousands of files
/// would be thousands. An empty directory needs only its name flushed.
pub(crate) fn commit(dirs: &Dirs, id: u64) -> Result<Usage, Error> {
    let fs = dirs.open_fs(id)?;
    let path = dirs.fs_path(id);
    let usage = tree::measure(fs.as_fd(), &path)?;
    if usage.inodes > 1 {
        rustix::fs::syncfs(&fs).map_err(|e| Error::io("flush the file system of", &path, e))?;
    } else {
        dirs.sync_names(id, fs.as_fd())?;
    }
    Ok(usage)
}

/// Measures the files of `id`; nothing for one without directories.
pub(crate) fn usage(dirs: &Dirs, id: u64) -> Result<Usage, Error> {
    match dirs.open_fs(id) {
        Ok(fs) => tree::measure(fs.as_fd(), &dirs.fs_path(id)),
        Err(Error::Lost { .. }) => Ok(Usage::default()),
        Err(error) => Err(error),
    }
}
