//! The runtime in process, as the shim uses it: `bench-engine BUNDLE` makes one container of the bundle for every byte
//! on standard input, from its document to the end of its process, and answers the nanoseconds.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use runtime::{Creating, HostFeatures, Plan, PlanOptions, ProcessIo, Rootfs, wait};

fn main() -> Result<()> {
    let bundle = PathBuf::from(std::env::args_os().nth(1).context("usage: bench-engine BUNDLE")?);
    let host = HostFeatures::detect()?;
    let mut byte = [0];
    while std::io::stdin().read(&mut byte)? == 1 {
        let nanoseconds = life(&bundle, &host)?;
        let mut answer = std::io::stdout();
        answer.write_all(&nanoseconds.to_ne_bytes())?;
        answer.flush()?;
    }
    Ok(())
}

/// One life. What comes after the end, as the removal of the cgroup, is not in the time.
fn life(bundle: &Path, host: &HostFeatures) -> Result<u64> {
    let began = Instant::now();
    let spec = oci::parse_spec(&std::fs::read(bundle.join("config.json"))?)?;
    let options = PlanOptions { id: "engine".to_owned(), bundle: bundle.to_owned(), ..PlanOptions::default() };
    let plan = Plan::new(&spec, host, &options)?;
    drop(spec);
    let null = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    let io = ProcessIo::Streams { stdin: null()?, stdout: null()?, stderr: null()? };
    let rootfs = Rootfs::Path(plan.root_path().to_owned());
    let mut container = wait(&mut Creating::begin(plan, host, rootfs, io, None)?)?;
    wait(&mut container.start()?)?;
    let end = sys::process::wait(container.pidfd())?;
    let took = began.elapsed();
    ensure!(end.exit == sys::process::Exit::Code(0), "the container ended with {:?}", end.exit);
    wait(&mut container.delete(true)?)?;
    Ok(u64::try_from(took.as_nanos())?)
}
