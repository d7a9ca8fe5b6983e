use std::time::{Duration, Instant};

/// How long a scenario waits for something that must happen.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Repeats `probe` until it gives a value, for at most [`DEADLINE`]; the probe's last complaint is the failure.
pub fn eventually<T>(what: &str, probe: impl FnMut() -> Result<T, String>) -> T {
    eventually_within(DEADLINE, what, probe)
}

/// As [`eventually`], with a deadline of the caller's.
pub fn eventually_within<T>(deadline: Duration, what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let until = Instant::now() + deadline;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(complaint) if Instant::now() >= until => panic!("{what}: not within {deadline:?}: {complaint}"),
            Err(_) => std::thread::park_timeout(Duration::from_millis(5)),
        }
    }
}
