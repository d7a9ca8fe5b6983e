use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

/// An open blob. It stays readable after its deletion.
#[derive(Debug)]
pub struct Blob {
    file: File,
    size: u64,
}

impl Blob {
    pub(crate) fn new(file: File, size: u64) -> Self {
        Self { file, size }
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads bytes from `offset` on; fewer than the buffer takes only at the end. Any number of threads may call it.
    pub fn read_at(&self, mut buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0_usize;
        while !buffer.is_empty() {
            match self.file.read_at(buffer, offset + done as u64) {
                Ok(0) => break,
                Ok(count) => {
                    done += count;
                    buffer = &mut buffer[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// All its bytes in order, from `offset` on.
    pub fn into_reader(self, offset: u64) -> BlobReader {
        BlobReader { blob: self, offset }
    }
}

/// A blob as a stream.
#[derive(Debug)]
pub struct BlobReader {
    blob: Blob,
    offset: u64,
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.blob.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}
