//! FIFOs for a process's standard streams, as every containerd client makes them: the client creates them, the shim
//! opens the other ends.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;

use crate::Error;

/// The FIFOs of one process, in a directory of their own that is removed when this is dropped.
#[derive(Debug)]
pub struct Fifos {
    directory: PathBuf,
    stdin: Option<PathBuf>,
    stdout: PathBuf,
    stderr: Option<PathBuf>,
}

impl Fifos {
    /// Makes the FIFOs of `process` below `parent`. A terminal has no separate standard error.
    pub fn create(parent: &Path, process: &str, stdin: bool, terminal: bool) -> Result<Self, Error> {
        let failed = |doing: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| Error::File { doing, path, source }
        };
        std::fs::create_dir_all(parent).map_err(failed("make the directory", parent))?;
        let directory = unique_directory(parent).map_err(failed("make a directory in", parent))?;
        let mut fifos = Self {
            stdin: stdin.then(|| directory.join(format!("{process}-stdin"))),
            stdout: directory.join(format!("{process}-stdout")),
            stderr: (!terminal).then(|| directory.join(format!("{process}-stderr"))),
            directory: PathBuf::new(),
        };
        fifos.directory = directory;
        for path in [fifos.stdin.as_ref(), Some(&fifos.stdout), fifos.stderr.as_ref()].into_iter().flatten() {
            mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                .map_err(|errno| failed("make the FIFO", path)(errno.into()))?;
        }
        Ok(fifos)
    }

    /// The three paths as a request wants them, empty for none.
    pub fn paths(&self) -> (String, String, String) {
        let text = |path: Option<&PathBuf>| path.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        (text(self.stdin.as_ref()), text(Some(&self.stdout)), text(self.stderr.as_ref()))
    }

    /// Opens our ends and copies until the process's output ends. Call before the process is created, so that no
    /// end waits for the other; finish the result after the process was deleted.
    pub fn copy<O, E>(&self, output: O, error: E) -> Result<Copying, Error>
    where
        O: AsyncWrite + Unpin + Send + 'static,
        E: AsyncWrite + Unpin + Send + 'static,
    {
        let open = |path: &PathBuf| {
            pipe::OpenOptions::new().open_receiver(path).map_err(|source| Error::File {
                doing: "open the FIFO",
                path: path.clone(),
                source,
            })
        };
        let stdout = tokio::spawn(drain(open(&self.stdout)?, output));
        let stderr = self.stderr.as_ref().map(open).transpose()?.map(|fifo| tokio::spawn(drain(fifo, error)));
        Ok(Copying { stdout, stderr })
    }

    /// Copies `input` into the process's standard input until its end. Call after the process was created: the shim
    /// holds the other end from then on, until it is told to close it (`CloseIO`), which the caller does afterwards.
    pub async fn feed(&self, mut input: impl AsyncRead + Unpin) -> Result<(), Error> {
        let Some(path) = &self.stdin else { return Ok(()) };
        let failed = |source| Error::File { doing: "write the FIFO", path: path.clone(), source };
        // Opened for both directions so that opening does not wait for the shim; our own end never reads.
        let mut fifo = pipe::OpenOptions::new().read_write(true).open_sender(path).map_err(failed)?;
        tokio::io::copy(&mut input, &mut fifo).await.map_err(failed)?;
        fifo.flush().await.map_err(failed)
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        for path in [self.stdin.as_ref(), Some(&self.stdout), self.stderr.as_ref()].into_iter().flatten() {
            let _ = std::fs::remove_file(path);
        }
        let _ = std::fs::remove_dir(&self.directory);
    }
}

/// Output on its way.
#[derive(Debug)]
pub struct Copying {
    stdout: tokio::task::JoinHandle<()>,
    stderr: Option<tokio::task::JoinHandle<()>>,
}

impl Copying {
    /// Waits for the end of the output. The shim closes its ends when the process is deleted, so call this after.
    pub async fn finish(self) {
        let _ = self.stdout.await;
        if let Some(stderr) = self.stderr {
            let _ = stderr.await;
        }
    }
}

/// Copies until the last writer is gone. A FIFO that nobody writes yet is not at its end: end of file counts only once
/// a writer has been there, which polling tells apart (readable, or hung up).
async fn drain(mut fifo: pipe::Receiver, mut output: impl AsyncWrite + Unpin) {
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        match fifo.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                // A reader of ours that went away must not block the process: its output is dropped.
                let _ = output.write_all(&buffer[..count]).await;
                let _ = output.flush().await;
            }
        }
    }
}

/// A new directory with a name nobody uses.
fn unique_directory(parent: &Path) -> io::Result<PathBuf> {
    let mut number = std::process::id();
    loop {
        let directory = parent.join(format!("gantry-{}-{number}", std::process::id()));
        match std::fs::create_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number = number.wrapping_add(1),
            Err(error) => return Err(error),
            Ok(()) => return Ok(directory),
        }
    }
}
