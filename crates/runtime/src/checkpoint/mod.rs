//! Checkpoint and restore, by the program `criu`.
//!
//! [`Checkpointing`] writes a container's processes, memory and open files to a directory of images; [`Restoring`]
//! makes a running container of such a directory and of the bundle that it belongs to. Both are operations like all
//! others of this crate. What belongs to the host is left out of the images and taken from the specification again.
//!
//! **Invariant:** images are hostile. No link in their directory is followed out of it, mount points are made inside
//! of the root only, and a restored process that has more rights than the specification gives is killed before it runs.

mod criu;
mod dump;
mod external;
mod images;
mod message;
mod restore;
mod rights;
mod wire;

#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

pub use dump::Checkpointing;
pub use images::Parents;
pub use message::CgroupMode;
pub use restore::Restoring;

use crate::{Error, Plan};

/// What checkpoints and restores have in common. The names are CRIU's.
#[derive(Clone, Debug, Default)]
pub struct CriuOptions {
    /// Directory of the images.
    pub images: PathBuf,
    /// Directory of the log and of what CRIU writes besides; the images' one if there is none.
    pub work: Option<PathBuf>,
    /// Whether images may be based on others elsewhere.
    pub parents: Parents,
    /// Keep TCP connections.
    pub tcp_established: bool,
    /// Keep unix sockets whose other end is outside.
    pub ext_unix_sk: bool,
    /// The container's session or terminal belongs to somebody outside.
    pub shell_job: bool,
    /// Keep file locks.
    pub file_locks: bool,
    /// Keep memory that is equal to that of the parent once only.
    pub auto_dedup: bool,
    /// Fetch memory when it is used.
    pub lazy_pages: bool,
    /// What to do with cgroups.
    pub cgroups: CgroupMode,
}

/// What a checkpoint needs besides.
#[derive(Debug, Default)]
pub struct CheckpointOptions {
    /// Common options.
    pub criu: CriuOptions,
    /// Images of an earlier pre-dump, relative to the images.
    pub parent: Option<PathBuf>,
    /// Leave the container running.
    pub leave_running: bool,
    /// Memory only, in preparation of a dump; leaves the container running.
    pub pre_dump: bool,
    /// Leave out TCP connections that are being made.
    pub tcp_skip_in_flight: bool,
    /// Give unlinked files a name again.
    pub link_remap: bool,
    /// Address and port of a page server that gets the memory.
    pub page_server: Option<(String, u16)>,
    /// Gets a zero byte when the server of lazy pages is ready, and is closed.
    pub status: Option<OwnedFd>,
    /// What the container's standard streams were when it was created, as `/proc/<pid>/fd` shows them: pipes among
    /// them are replaced by others at the restore.
    pub descriptors: Vec<String>,
}

/// What a restore needs besides.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// Common options.
    pub criu: CriuOptions,
    /// An empty directory on the host where the root file system is mounted meanwhile.
    pub scratch: PathBuf,
    /// Profile of a security module, `TYPE:NAME`.
    pub lsm_profile: Option<String>,
    /// SELinux context for mounts.
    pub lsm_mount_context: Option<String>,
}

/// CRIU's configuration file for container runtimes, by runc's name for it, which engines' documentation has.
const CONFIG_FILE: &str = "/etc/criu/runc.conf";
/// The annotation that names another one; empty: none.
const CONFIG_ANNOTATION: &str = "org.criu.config";

/// The configuration file for a container. Options in it can make CRIU run programs, so one that the annotation names
/// must be this user's, writable for nobody else, and outside of the container's directories.
fn config_file(plan: &Plan) -> Result<Option<Vec<u8>>, Error> {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::MetadataExt as _;
    let Some(named) = plan.annotations.get(CONFIG_ANNOTATION) else {
        return Ok(Some(CONFIG_FILE.as_bytes().to_vec()));
    };
    if named.is_empty() {
        return Ok(None);
    }
    let field = || format!("annotations.{CONFIG_ANNOTATION}");
    let path = match std::fs::canonicalize(named) {
        // CRIU ignores one that is missing.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|source| Error::host(format!("opening {named}"), source))?,
    };
    let found = std::fs::metadata(&path).map_err(|source| Error::host(format!("looking at {named}"), source))?;
    let own = found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0;
    let inside = [&plan.bundle, &plan.root_path]
        .into_iter()
        .any(|directory| std::fs::canonicalize(directory).is_ok_and(|directory| path.starts_with(directory)));
    if !found.is_file() || !own || inside || !named.starts_with('/') {
        let problem = "must be an absolute path to a file that only this user can write, outside of the bundle";
        return Err(Error::invalid(field(), problem));
    }
    Ok(Some(path.as_os_str().as_bytes().to_vec()))
}
