//! `delete`: what is left of a task whose shim died is killed, unmounted and reported.
//!
//! A daemon also runs this after a clean delete; then nothing is left, and that is fine.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use api_shim::convert;
use api_shim::messages::DeleteResponse;
use model::Timestamp;
use model::record::{EXITS_DIR, ExitRecord, TASK_FILE, TaskRecord};
use protobuf::Message as _;
use rustix::process::Signal;
use serde::de::DeserializeOwned;

use crate::args::Arguments;
use crate::error::Error;
use crate::foreign::Runtime;
use crate::record::{CGROUP_FILE, PLANNED_CGROUP_FILE};

/// What a task that nobody saw ending is said to have ended with: killed.
const KILLED_STATUS: u32 = 137;

/// Cleans up and prints a `DeleteResponse`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Error> {
    let bundle = if arguments.bundle.is_empty() {
        std::env::current_dir().map_err(|source| Error::System { operation: "find the bundle", source })?
    } else {
        PathBuf::from(&arguments.bundle)
    };
    let response = clean(&bundle, &arguments.id)?;
    let bytes = response.write_to_bytes().map_err(|source| Error::Encode { what: "the answer", source })?;
    super::print(&bytes)
}

fn clean(bundle: &Path, id: &str) -> Result<DeleteResponse, Error> {
    let boot_id = sys::boot_id().map_err(|errno| Error::system("read the boot id", errno))?;
    let task: Option<TaskRecord> = read(&bundle.join(TASK_FILE)).filter(|task: &TaskRecord| task.boot_id == boot_id);
    let exit: Option<ExitRecord> =
        read(&bundle.join(EXITS_DIR).join("init.json")).filter(|exit: &ExitRecord| exit.boot_id == boot_id);
    if let Some(task) = &task {
        kill_init(task);
    }
    // A foreign runtime's own notes go too. It needs the cgroup to do so, hence first.
    let deleted = Runtime::of_bundle(bundle).map_or(Ok(()), |runtime| runtime.delete_now(id));
    kill_cgroup(bundle)?;
    crate::listing::remove_of(bundle);
    let rootfs = bundle.join("rootfs");
    if rootfs.exists() {
        mount::unmount_recursive(&rootfs, mount::UnmountFlags::empty()).map_err(Error::Unmount)?;
    }
    remove_socket(bundle);
    // A runtime that does not answer has kept nothing else from being removed.
    deleted?;
    let mut response = DeleteResponse::new();
    response.pid = task.as_ref().map_or(0, |task| task.init.pid);
    response.exit_status = exit.as_ref().map_or(KILLED_STATUS, |exit| exit.exit_status);
    response.exited_at = convert::timestamp(exit.as_ref().map_or_else(Timestamp::now, |exit| exit.exited_at));
    Ok(response)
}

/// Removes the socket of a shim that died without doing it. That of a group's shim that lives on stays.
fn remove_socket(bundle: &Path) {
    let Ok(address) = std::fs::read_to_string(bundle.join(super::start::ADDRESS_FILE)) else { return };
    let Some(socket) = address.strip_prefix("unix://") else { return };
    if UnixStream::connect(socket).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
        // Someone else's removal is as good.
        let _ = std::fs::remove_file(socket);
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Kills init, if it is still the process that the record names. With a pid namespace of its own that is all of them.
fn kill_init(task: &TaskRecord) {
    let identity = sys::process::ProcessIdentity { pid: task.init.pid, start_time: task.init.start_time };
    if let Ok(pidfd) = sys::process::pidfd_of(identity) {
        // Gone in between is as good.
        let _ = sys::process::pidfd_send_signal(&pidfd, Signal::KILL.as_raw());
    }
}

fn kill_cgroup(bundle: &Path) -> Result<(), Error> {
    if let Ok(path) = std::fs::read_to_string(bundle.join(CGROUP_FILE)) {
        let Some(cgroup) = open_cgroup(&path)? else { return Ok(()) };
        cgroup.kill_all()?;
        // Waits for those that were killed: the root cannot be unmounted while they use it.
        return Ok(cgroup.delete()?);
    }
    // The shim died while it made the container: its process ends by itself, and what does not is somebody else's.
    if let Ok(path) = std::fs::read_to_string(bundle.join(PLANNED_CGROUP_FILE))
        && let Some(cgroup) = open_cgroup(&path)?
    {
        let _ = cgroup.delete();
    }
    Ok(())
}

fn open_cgroup(path: &str) -> Result<Option<cgroups::Cgroup>, Error> {
    match cgroups::Cgroup::open(&cgroups::Host::detect()?, &cgroups::CgroupPath::new(path)?) {
        Ok(cgroup) => Ok(Some(cgroup)),
        Err(cgroups::Error::Gone { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use model::record::{ProcessIdentity, Status, StdioPaths};

    use super::*;

    #[test]
    fn a_dead_shims_socket_goes_and_a_live_ones_stays() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        std::fs::write(dir.path().join("address"), format!("unix://{}", socket.display())).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        clean(dir.path(), "a").unwrap();
        assert!(socket.exists());
        drop(listener);
        clean(dir.path(), "a").unwrap();
        assert!(!socket.exists());
    }

    #[test]
    fn nothing_left_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let response = clean(dir.path(), "a").unwrap();
        assert_eq!((response.pid, response.exit_status), (0, KILLED_STATUS));
        assert!(response.exited_at.seconds > 0);
    }

    #[test]
    fn the_exit_record_is_believed_and_the_process_killed() {
        let dir = tempfile::tempdir().unwrap();
        let child = sys::spawn::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let identity = sys::process::identity(child.pid).unwrap();
        let init = ProcessIdentity { pid: identity.pid, start_time: identity.start_time };
        let boot_id = sys::boot_id().unwrap().to_owned();
        let task = TaskRecord {
            boot_id: boot_id.clone(),
            shim: init,
            init,
            status: Status::Running,
            started: true,
            stdio: StdioPaths::default(),
        };
        std::fs::write(dir.path().join(TASK_FILE), serde_json::to_vec(&task).unwrap()).unwrap();
        assert_eq!(clean(dir.path(), "a").unwrap().pid, child.pid);
        let end = sys::process::wait(std::os::fd::AsFd::as_fd(&child.pidfd)).unwrap();
        assert_eq!(end.exit.status(), 137);

        let exit = ExitRecord {
            boot_id,
            pid: 1,
            exit_status: 7,
            signal: 0,
            exited_at: Timestamp { seconds: 9, nanos: 0 },
            user_us: 0,
            system_us: 0,
            max_rss_kib: 0,
            oom_kills: 0,
            oom_cgroup: None,
        };
        std::fs::create_dir(dir.path().join(EXITS_DIR)).unwrap();
        std::fs::write(dir.path().join(EXITS_DIR).join("init.json"), serde_json::to_vec(&exit).unwrap()).unwrap();
        let response = clean(dir.path(), "a").unwrap();
        assert_eq!((response.exit_status, response.exited_at.seconds), (7, 9));
    }
}
