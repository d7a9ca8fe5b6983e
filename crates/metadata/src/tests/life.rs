//! What one life of a container costs.

use super::*;

/// Environment of the child that lives a life under strace.
const CHILD: &str = "GANTRY_TEST_LIFE";

#[test]
fn one_life_of_a_container_costs_three_flushes() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return live(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let run = std::process::Command::new("strace")
        .args(["-f", "-y", "-e", "trace=fsync,fdatasync,sync_file_range,syncfs,sync,msync,write", "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "tests::life::one_life_of_a_container_costs_three_flushes", "--nocapture"])
        .env(CHILD, dir.path())
        .output();
    let Ok(run) = run else {
        println!("SKIP one_life_of_a_container_costs_three_flushes: no strace here");
        return;
    };
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let trace = std::fs::read_to_string(trace).unwrap();
    let life: Vec<_> = trace
        .lines()
        .skip_while(|line| !line.contains("LIFE BEGINS"))
        .take_while(|line| !line.contains("LIFE ENDS"))
        .filter(|line| line.contains("sync") && !line.contains("resumed"))
        .collect();
    assert_eq!(life.len(), 3, "{life:#?}");
}

fn live(dir: &Path) {
    let (store, content, drivers, journal) = parts(dir, "boot");
    let metadata = Metadata::open(store, content, drivers, journal).unwrap();
    metadata.collect_and_wait().unwrap();
    let n = scope("n");
    let no_labels = Labels::new();
    let lives = |id: &str| {
        let new = NewSnapshot { snapshotter: "native", key: id, parent: "", labels: &no_labels };
        metadata.snapshots().prepare(&n, &new).unwrap();
        let used = Container { snapshotter: "native".into(), snapshot_key: id.into(), ..container(id) };
        metadata.containers().create(&n, used).unwrap();
        metadata.containers().delete(&n, id).unwrap();
        metadata.snapshots().remove(&n, "native", id).unwrap();
        // With the collection that it causes, and the removal of its directories.
        metadata.collect_and_wait().unwrap();
    };
    // The first one makes the namespace and opens segments of the log.
    lives("first");
    println!("LIFE BEGINS");
    lives("second");
    println!("LIFE ENDS");
}
