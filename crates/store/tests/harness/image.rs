//! Power cuts by images: ext4 on a file, copied while it is mounted. The file has what a disk would have.

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::isolation::Mount;
use crate::harness::{Database, Random, SEGMENT_BYTES, describe, run, this_test};

const CHECK: &str = "STORE_TEST_CHECK";
const IMAGE_BYTES: u64 = 64 << 20;

/// Whether the caller of the `round`th transaction waits for the disk: mostly, then for a while hardly ever, so that the
/// log goes through several segments on nothing but the order of its writes.
pub(crate) fn on_disk(round: u64) -> bool {
    if (round / 150).is_multiple_of(2) { !round.is_multiple_of(7) } else { round.is_multiple_of(120) }
}

/// What a cut's own process is to check, if this is one.
pub(crate) fn to_check() -> Option<(PathBuf, u64)> {
    let (acknowledged, dir) = std::env::var(CHECK).ok()?.split_once(':').map(|(n, dir)| (n.parse(), dir.into()))?;
    Some((dir, acknowledged.unwrap()))
}

pub(crate) struct Outcome {
    pub(crate) cuts: usize,
    pub(crate) failures: Vec<String>,
    /// Segments of the log file, and how many of them hold something else than what was first written there.
    pub(crate) segments: (usize, usize),
}

/// Runs `transactions` on a fresh file system, cuts the power `cuts` times, and checks each cut by the test `checker`.
///
/// The database is opened again now and then.
pub(crate) fn cut<D: Database>(transactions: u64, cuts: u64, checker: &str) -> Outcome {
    let work = tempfile::TempDir::new().unwrap();
    let disk = work.path().join("disk.img");
    std::fs::File::create(&disk).unwrap().set_len(IMAGE_BYTES).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "-J", "size=4", "-E", "lazy_itable_init=0"]).arg(&disk));
    let mounted = Mount::new(&disk, &work.path().join("mounted"), "loop,commit=300,noauto_da_alloc");
    let dir = mounted.0.join("database");
    let mut random = Random(transactions);
    let mut at: Vec<u64> = (0..cuts).map(|_| 1 + random.below(transactions)).collect();
    at.sort_unstable();
    at.dedup();
    while (at.len() as u64) < cuts {
        let extra = 1 + random.below(transactions);
        if let Err(place) = at.binary_search(&extra) {
            at.insert(place, extra);
        }
    }
    let mut outcome = Outcome { cuts: 0, failures: Vec::new(), segments: (0, 0) };
    let mut database = Some(D::open(&dir).unwrap());
    let mut acknowledged = 0;
    for n in 1..=transactions {
        let on_disk = on_disk(n);
        assert_eq!(database.as_ref().unwrap().commit(on_disk), Ok(n));
        if on_disk {
            acknowledged = n;
        }
        if at.binary_search(&n).is_ok() {
            outcome.cuts += 1;
            if let Err(error) = check_cut(&disk, work.path(), acknowledged, checker) {
                outcome.failures.push(format!("cut after transaction {n}: {error}"));
            }
        }
        if n.is_multiple_of(transactions / 5) {
            drop(database.take());
            database = Some(D::open(&dir).unwrap());
        }
    }
    outcome.segments = segments(&std::fs::read(dir.join("db")).unwrap());
    drop(database);
    outcome
}

fn check_cut(disk: &Path, work: &Path, acknowledged: u64, checker: &str) -> Result<(), String> {
    let copy = work.join("cut.img");
    copy_sparse(disk, &copy);
    let mounted = Mount::new(&copy, &work.join("cut"), "loop");
    let mut command = this_test(&["timeout", "60"], checker);
    let output = command.env(CHECK, format!("{acknowledged}:{}/database", mounted.0.display())).output().unwrap();
    if output.status.success() {
        return Ok(());
    }
    let text = describe(output.status, &output.stdout, &output.stderr);
    let line = text.lines().find_map(|line| line.strip_prefix("FOUND: ")).unwrap_or(&text);
    Err(line.to_owned())
}

/// Counts segments by their headers: a position in the log (bytes 4 to 12, inverted) that is not the place in the file.
fn segments(log: &[u8]) -> (usize, usize) {
    let position = |segment: &[u8]| u64::from_le_bytes(segment[4..12].try_into().unwrap()) ^ (u64::MAX >> 1);
    let places = (0_u64..).step_by(SEGMENT_BYTES);
    let all: Vec<_> =
        log.chunks(SEGMENT_BYTES).filter(|segment| segment.len() > 12).map(position).zip(places).collect();
    (all.len(), all.iter().filter(|(position, place)| position != place && *position < 1 << 40).count())
}

/// Copies the parts of a file that are not holes.
fn copy_sparse(from: &Path, to: &Path) {
    let from = std::fs::File::open(from).unwrap();
    let to = std::fs::File::create(to).unwrap();
    to.set_len(IMAGE_BYTES).unwrap();
    let seek = |offset: u64, whence| {
        // SAFETY: lseek takes no pointers, and the descriptor is open.
        #[expect(unsafe_code, reason = "the standard library does not seek for holes")]
        let result = unsafe { libc::lseek(from.as_raw_fd(), offset as i64, whence) };
        u64::try_from(result).unwrap_or(IMAGE_BYTES)
    };
    let mut offset = seek(0, libc::SEEK_DATA);
    while offset < IMAGE_BYTES {
        let end = seek(offset, libc::SEEK_HOLE);
        let mut bytes = vec![0; (end - offset) as usize];
        from.read_exact_at(&mut bytes, offset).unwrap();
        to.write_all_at(&bytes, offset).unwrap();
        offset = seek(end, libc::SEEK_DATA);
    }
}
