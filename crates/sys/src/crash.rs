//! Places where a test build dies, to show that nothing is lost there.
//!
//! The feature `crash-points` is for the chaos suite only. Without it every [`point`] is nothing at compile time, and
//! the program does not contain [`MARK`]: `cargo xtask dist` looks for it.
//!
//! With it, a process that comes to a point takes the file `<directory>/<name>` away, if there is one, and kills itself:
//! the file is a token that kills once, whichever process comes first.

/// Stands in every program that was built with the feature.
pub const MARK: &str = "gantry-crash-points-build";

/// The environment variable that names the directory of tokens.
pub const VARIABLE: &str = "GANTRY_CRASH_POINTS";

macro_rules! points {
    ($($(#[$about:meta])* $name:ident = $text:literal,)*) => {
        $($(#[$about])* pub const $name: &str = $text;)*

        /// All of them.
        pub const ALL: &[&str] = &[$($name,)*];
    };
}

/// Points of gantryd.
pub mod daemon {
    points! {
        /// The bundle is there, its shim is not.
        BUNDLE_MADE = "daemon.bundle-made",
        /// The shim runs and was asked for nothing.
        SHIM_SPAWNED = "daemon.shim-spawned",
        /// The shim has made the container.
        CREATE_ANSWERED = "daemon.create-answered",
        /// The creation is told, not answered.
        CREATE_TOLD = "daemon.create-told",
        /// The shim has started init.
        START_ANSWERED = "daemon.start-answered",
        /// The start is told, not answered.
        START_TOLD = "daemon.start-told",
        /// The shim knows an additional process.
        EXEC_ANSWERED = "daemon.exec-answered",
        /// The addition is told, not answered.
        EXEC_TOLD = "daemon.exec-told",
        /// The shim has started an additional process.
        EXEC_START_ANSWERED = "daemon.exec-start-answered",
        /// That is told, not answered.
        EXEC_START_TOLD = "daemon.exec-start-told",
        /// The end of an additional process is known, not told.
        EXEC_EXIT_KNOWN = "daemon.exec-exit-known",
        /// It is told; nobody who waits knows.
        EXEC_EXIT_TOLD = "daemon.exec-exit-told",
        /// The end of init is known, not told.
        EXIT_KNOWN = "daemon.exit-known",
        /// It is told; nobody who waits knows.
        EXIT_TOLD = "daemon.exit-told",
        /// The container is frozen, which is not told.
        PAUSE_ANSWERED = "daemon.pause-answered",
        /// The container is thawed, which is not told.
        RESUME_ANSWERED = "daemon.resume-answered",
        /// An additional process is deleted, which is not answered.
        EXEC_DELETED = "daemon.exec-deleted",
        /// The shim has deleted the container.
        DELETE_ANSWERED = "daemon.delete-answered",
        /// The shim has ended, the files are there.
        SHIM_ENDED = "daemon.shim-ended",
        /// The bundle is under its hidden name.
        BUNDLE_HIDDEN = "daemon.bundle-hidden",
        /// Nothing is left; that is not told.
        FILES_REMOVED = "daemon.files-removed",
        /// The deletion is told, not answered.
        DELETE_TOLD = "daemon.delete-told",
        /// A shim has died and its container was killed.
        BURIAL_BEGUN = "daemon.burial-begun",
        /// Its leftovers are removed; no end is told.
        BURIAL_CLEANED = "daemon.burial-cleaned",
        /// A new daemon has looked at the bundles.
        ADOPT_SCANNED = "daemon.adopt-scanned",
        /// It has told what was not told of one task.
        ADOPT_TOLD = "daemon.adopt-told",
        /// It has removed what belongs to nobody.
        ADOPT_SWEPT = "daemon.adopt-swept",
        /// Half of an event is in the journal.
        JOURNAL_TORN = "daemon.journal-torn",
        /// An event is in the journal, and nobody was shown it.
        JOURNAL_APPENDED = "daemon.journal-appended",
        /// A transaction is committed, its events are not published.
        OUTBOX_COMMITTED = "daemon.outbox-committed",
        /// Its events are published, and still in the outbox.
        OUTBOX_PUBLISHED = "daemon.outbox-published",
    }
}

/// Points of the shim.
pub mod shim {
    points! {
        /// A creation is asked for.
        CREATE_BEGUN = "shim.create-begun",
        /// The container is there, its record is not.
        CREATED = "shim.created",
        /// The record is there, the answer is not.
        CREATE_RECORDED = "shim.create-recorded",
        /// Init was started, which is not recorded.
        STARTED = "shim.started",
        /// It is recorded, not answered.
        START_RECORDED = "shim.start-recorded",
        /// An additional process was started, which is not recorded.
        EXEC_STARTED = "shim.exec-started",
        /// It is recorded, not answered.
        EXEC_RECORDED = "shim.exec-recorded",
        /// A process has ended, which is not recorded.
        EXIT_SEEN = "shim.exit-seen",
        /// It is recorded, and a zombie.
        EXIT_RECORDED = "shim.exit-recorded",
        /// It is reaped, and nobody was told.
        EXIT_REAPED = "shim.exit-reaped",
        /// A deletion is asked for.
        DELETE_BEGUN = "shim.delete-begun",
        /// Nothing of the container is left; that is not answered.
        DELETED = "shim.deleted",
    }
}

/// A named point. Dies here if there is a token for it.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub const fn point(_: &str) {}

/// A named point. Dies here if there is a token for it; then the file `<name>.<pid>.hit` beside it holds the command line
/// of this process.
#[cfg(feature = "crash-points")]
pub fn point(name: &str) {
    use std::os::unix::ffi::OsStrExt as _;
    static DIRECTORY: std::sync::OnceLock<Option<std::path::PathBuf>> = std::sync::OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        let directory = std::env::var_os(VARIABLE)?;
        // A use of the mark, so that it is in the program.
        (directory != MARK).then(|| directory.into())
    });
    let Some(directory) = directory else { return };
    let hit = directory.join(format!("{name}.{}.hit", std::process::id()));
    if std::fs::rename(directory.join(name), &hit).is_err() {
        return;
    }
    let words: Vec<Vec<u8>> = std::env::args_os().map(|word| word.as_bytes().to_vec()).collect();
    // Who died is good to know; dying is what counts.
    let _ = std::fs::write(hit, words.join(&b' '));
    loop {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
