//! What the power-cut tests share: a workload whose every state can be recomputed, and the check of what a cut left.
//!
//! Transaction `n` is a pure function of `n`, and writes `n` itself. So what is found after a cut must be exactly the
//! state after some number of transactions, and that number must not be below the last one acknowledged: nothing
//! acknowledged is lost, nothing is half there, and nothing later is there without everything before it.

pub(crate) mod isolation;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitStatus};

/// Keys and what a transaction sets them to.
pub(crate) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;
pub(crate) type State = BTreeMap<Vec<u8>, Vec<u8>>;

pub(crate) const COUNTER: &[u8] = b"counter";
const KEYS: u64 = 400;
/// Small, so that the log comes round often.
pub(crate) const SEGMENT_BYTES: usize = 64 << 10;

/// A database under test.
pub(crate) trait Database: Sized {
    fn open(dir: &Path) -> Result<Self, String>;
    /// Commits the next transaction and returns its number when it is acknowledged, as durable if `on_disk`.
    fn commit(&self, on_disk: bool) -> Result<u64, String>;
    fn state(&self) -> Result<State, String>;
}

/// A small generator: the tests must be the same everywhere.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// What transaction `n` changes: mostly overwrites of a bounded set of keys, so that the log must reuse its segments.
pub(crate) fn changes(n: u64) -> Changes {
    let mut random = Random(n);
    let mut changes = Changes::new();
    // A few are larger than a segment of the log.
    let large = random.below(100) == 0;
    for _ in 0..if large { 50 } else { 1 + random.below(6) } {
        let key = format!("key/{:03}", random.below(KEYS)).into_bytes();
        let length = match random.below(20) {
            _ if large => 1000 + random.below(1000),
            0 => 2000,
            1..4 => 0,
            _ => random.below(240),
        };
        let value = (0..length).flat_map(|at| (n * 1000 + at).to_le_bytes()).take(length as usize).collect();
        changes.insert(key, if random.below(5) == 0 { None } else { Some(value) });
    }
    changes.insert(COUNTER.to_vec(), Some(n.to_string().into_bytes()));
    changes
}

/// The number that [`COUNTER`] holds.
pub(crate) fn count(value: Option<&[u8]>) -> Result<u64, String> {
    let Some(value) = value else { return Ok(0) };
    String::from_utf8_lossy(value).parse().map_err(|_| "the counter is damaged".to_owned())
}

/// The state after each transaction, computed once and in order.
#[derive(Default)]
pub(crate) struct Model {
    /// After every 64th transaction.
    checkpoints: Vec<State>,
}

impl Model {
    pub(crate) fn after(&mut self, count: u64) -> State {
        if self.checkpoints.is_empty() {
            self.checkpoints.push(State::new());
        }
        while (self.checkpoints.len() as u64) <= count / 64 {
            let base = self.checkpoints.len() as u64 - 1;
            let mut state = self.checkpoints[base as usize].clone();
            (base * 64 + 1..=base * 64 + 64).for_each(|n| apply(&mut state, n));
            self.checkpoints.push(state);
        }
        let mut state = self.checkpoints[(count / 64) as usize].clone();
        (count / 64 * 64 + 1..=count).for_each(|n| apply(&mut state, n));
        state
    }
}

fn apply(state: &mut State, n: u64) {
    for (key, value) in changes(n) {
        match value {
            Some(value) => state.insert(key, value),
            None => state.remove(&key),
        };
    }
}

/// Opens what a cut left and says what is wrong with it, if anything; `acknowledged` is the last durable transaction.
pub(crate) fn check<D: Database>(dir: &Path, acknowledged: u64, model: &mut Model) -> Result<u64, String> {
    let database = D::open(dir).map_err(|error| format!("it does not open: {error}"))?;
    let state = database.state().map_err(|error| format!("it does not read: {error}"))?;
    let count = count(state.get(COUNTER).map(Vec::as_slice))?;
    if count < acknowledged {
        return Err(format!("{acknowledged} were acknowledged, {count} are there"));
    }
    if state != model.after(count) {
        return Err(format!("it is not the state after {count} transactions"));
    }
    // What was recovered must also be good to go on with.
    let next = database.commit(true).map_err(|error| format!("it does not write: {error}"))?;
    assert_eq!(next, count + 1);
    let state = database.state().map_err(|error| format!("it does not read: {error}"))?;
    if state == model.after(count + 1) { Ok(count) } else { Err("it does not keep what is written".into()) }
}

/// This test's own binary, to run one of its tests in a process of its own.
pub(crate) fn this_test(wrapper: &[&str], name: &str) -> Command {
    let exe = std::env::current_exe().unwrap();
    let mut command = match wrapper.split_first() {
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments).arg(exe);
            command
        }
        None => Command::new(exe),
    };
    command.args(["--exact", name, "--nocapture", "--test-threads", "1"]);
    command
}

/// Runs a command to its end and fails with its output when it fails.
pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", describe(output.status, &output.stdout, &output.stderr));
}

pub(crate) fn describe(status: ExitStatus, stdout: &[u8], stderr: &[u8]) -> String {
    format!("{status}\n{}{}", String::from_utf8_lossy(stdout), String::from_utf8_lossy(stderr))
}
