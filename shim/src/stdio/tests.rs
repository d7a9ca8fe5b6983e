use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode};

use super::*;

fn make_fifo(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    path
}

fn paths(dir: &Path, terminal: bool) -> StdioPaths {
    StdioPaths {
        stdin: make_fifo(dir, "in").display().to_string(),
        stdout: make_fifo(dir, "out").display().to_string(),
        stderr: if terminal { String::new() } else { make_fifo(dir, "err").display().to_string() },
        terminal,
    }
}

/// Opens as a client that must not hang does.
fn client(path: &str, write: bool) -> File {
    File::options().read(!write).write(write).custom_flags(libc_nonblock()).open(path).unwrap()
}

fn libc_nonblock() -> i32 {
    i32::try_from(OFlags::NONBLOCK.bits()).unwrap()
}

fn streams(io: ProcessIo) -> (File, File, File) {
    match io {
        ProcessIo::Streams { stdin, stdout, stderr } => (stdin.into(), stdout.into(), stderr.into()),
        ProcessIo::Console { .. } | ProcessIo::Inherited => panic!("not three streams"),
    }
}

async fn read_until(reader: &mut File, want: &[u8]) {
    let mut seen = Vec::new();
    let reading = async {
        while seen != want {
            let mut chunk = [0; 4096];
            match reader.read(&mut chunk) {
                Ok(count) => seen.extend_from_slice(&chunk[..count]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reading).await.expect("all bytes in time");
}

#[tokio::test]
async fn bytes_go_straight_through_and_survive_an_absent_client() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(dir.path(), false);
    let (mut stdio, io) = Stdio::open(&paths, None, None).unwrap();
    let (mut stdin, mut stdout, stderr) = streams(io);
    assert!(stdout.metadata().unwrap().file_type().is_fifo());

    // No client reads, and one that came and went leaves no trace.
    stdout.write_all(b"early ").unwrap();
    drop(client(&paths.stdout, false));
    stdout.write_all(b"late").unwrap();

    // A client that dies does not end standard input; CloseIO does.
    let mut writer = client(&paths.stdin, true);
    writer.write_all(b"typed").unwrap();
    drop(writer);
    let mut typed = [0; 5];
    stdin.read_exact(&mut typed).unwrap();
    assert_eq!(&typed, b"typed");
    rustix::fs::fcntl_setfl(&stdin, OFlags::NONBLOCK).unwrap();
    assert_eq!(stdin.read(&mut typed).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    stdio.close_stdin();
    assert_eq!(stdin.read(&mut typed).unwrap(), 0);

    // The process ends; a client that comes only now reads everything and then the end of file.
    drop((stdin, stdout, stderr));
    stdio.ended();
    tokio::task::yield_now().await;
    let mut reader = client(&paths.stdout, false);
    let mut seen = [0; 10];
    reader.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"early late");
    stdio.draining().finish().await;
    drop(stdio);
    tokio::task::yield_now().await;
    assert_eq!(reader.read(&mut seen).unwrap(), 0);
}

#[tokio::test]
async fn a_live_client_sees_the_end_of_file_before_delete() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(dir.path(), false);
    let (mut stdio, io) = Stdio::open(&paths, None, None).unwrap();
    let (stdin, mut stdout, stderr) = streams(io);
    let mut reader = client(&paths.stdout, false);
    stdout.write_all(b"bye").unwrap();
    drop((stdin, stdout, stderr));
    stdio.ended();
    read_until(&mut reader, b"bye").await;
    let end = async {
        // The lingering write end goes within milliseconds of the last byte.
        while !matches!(reader.read(&mut [0; 1]), Ok(0)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), end).await.unwrap();
}

#[tokio::test]
async fn another_user_gets_pipes_of_his_own() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(dir.path(), false);
    let (mut stdio, io) = Stdio::open(&paths, Some(Owner { uid: 1234, gid: 99 }), None).unwrap();
    let (mut stdin, mut stdout, stderr) = streams(io);
    let made = stdout.metadata().unwrap();
    assert_eq!((made.uid(), made.gid()), (1234, 99));
    let mut reader = client(&paths.stdout, false);
    // More than a pipe holds.
    let bulk = vec![7; 300_000];
    let want = bulk.clone();
    let writer = std::thread::spawn(move || stdout.write_all(&bulk));
    read_until(&mut reader, &want).await;
    writer.join().unwrap().unwrap();
    client(&paths.stdin, true).write_all(b"hi").unwrap();
    stdio.close_stdin();
    rustix::fs::fcntl_setfl(&stdin, OFlags::NONBLOCK).unwrap();
    read_until(&mut stdin, b"hi").await;
    drop((stdin, stderr));
    stdio.ended();
    stdio.draining().finish().await;
}

#[tokio::test]
async fn a_terminal_is_copied_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(dir.path(), true);
    let (mut stdio, io) = Stdio::open(&paths, None, None).unwrap();
    assert!(matches!(io, ProcessIo::Console { .. }));
    let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
    let slave = rustix::fs::openat(CWD, &name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    let mut raw = rustix::termios::tcgetattr(&slave).unwrap();
    raw.make_raw();
    rustix::termios::tcsetattr(&slave, rustix::termios::OptionalActions::Now, &raw).unwrap();
    stdio.attach(master).unwrap();
    stdio.resize(ConsoleSize { rows: 12, columns: 34 }).unwrap();
    let size = rustix::termios::tcgetwinsize(&slave).unwrap();
    assert_eq!((size.ws_row, size.ws_col), (12, 34));
    let mut slave = File::from(slave);
    let mut reader = client(&paths.stdout, false);
    client(&paths.stdin, true).write_all(b"k").unwrap();
    rustix::fs::fcntl_setfl(&slave, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
    read_until(&mut slave, b"k").await;
    slave.write_all(b"last words").unwrap();
    drop(slave);
    stdio.ended();
    stdio.draining().finish().await;
    read_until(&mut reader, b"last words").await;
}

#[tokio::test]
async fn what_is_not_there_is_an_error_and_files_are_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("made/for/me.log");
    let mut paths = StdioPaths { stdout: format!("file://{}", log.display()), ..StdioPaths::default() };
    for word in ["one ", "two "] {
        let (_stdio, io) = Stdio::open(&paths, None, None).unwrap();
        let (_, mut stdout, mut stderr) = streams(io);
        stdout.write_all(word.as_bytes()).unwrap();
        stderr.write_all(b"err ").unwrap();
    }
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "one err two err ");
    paths.stdout = "/does/not/exist".to_owned();
    let error = Stdio::open(&paths, None, None).unwrap_err();
    assert!(model::render(&error).ends_with("not found"), "{error}");
    paths.stdout = log.display().to_string();
    assert!(Stdio::open(&paths, None, None).is_ok());
}

#[tokio::test]
async fn a_program_reads_both_outputs() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("logger");
    let script = "#!/bin/sh\nprintf x >&5; exec 5>&-\n(cat <&3 > $2.out) & (cat <&4 > $2.err)\nwait\n\
        echo \"$CONTAINER_NAMESPACE/$CONTAINER_ID $*\" > $2\n";
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let log = dir.path().join("log");
    for scheme in ["binary", "binary-v2"] {
        let uri = format!("{scheme}://{}?log={}", program.display(), log.display());
        let paths = StdioPaths { stdout: uri.clone(), stderr: uri, ..StdioPaths::default() };
        let logger = Logger::start(&paths, None, "c1", "ns").await.unwrap();
        let (mut stdio, io) = Stdio::open(&paths, None, logger).unwrap();
        let ProcessIo::Streams { stdout, stderr, .. } = io else { panic!("streams") };
        rustix::io::write(&stdout, b"said").unwrap();
        rustix::io::write(&stderr, b"complained").unwrap();
        drop((stdout, stderr));
        stdio.ended();
        stdio.draining().finish().await;
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!((read("log.out").as_str(), read("log.err").as_str()), ("said", "complained"));
        assert_eq!(read("log"), format!("ns/c1 log {}\n", log.display()));
        std::fs::remove_file(&log).unwrap();
    }
    for (program, text) in [("/bin/false", "has ended before it was ready"), ("/nonexistent", "No such file")] {
        let paths = StdioPaths { stdout: format!("binary-v2://{program}"), ..StdioPaths::default() };
        let error = model::render(&Logger::start(&paths, None, "c1", "ns").await.unwrap_err());
        assert!(error.contains(text), "{error}");
    }
}
