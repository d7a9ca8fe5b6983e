//! What every thread of this process does, for SIGUSR1.

use std::fs;

/// Logs one line per thread: its name, its state and where in the kernel it waits.
pub(crate) fn report() {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return };
    let mut count = 0;
    for task in tasks.flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        // The state is the first field behind the name, which may contain anything but ends with the last parenthesis.
        let stat = read("stat");
        let state = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').next()).unwrap_or("?");
        let (name, waits) = (read("comm"), read("wchan"));
        tracing::info!(thread = ?task.file_name(), name = name.trim_end(), state, waits, "thread");
        count += 1;
    }
    let files = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count());
    tracing::info!(threads = count, files, "thread summary");
}
