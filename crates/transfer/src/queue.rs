//! A bounded queue of buffers between the thread that decompresses and the one that writes files.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Size of a buffer, and how many of them are on their way at most: all the memory that the queue takes.
const BUFFER_BYTES: usize = 256 << 10;
const BUFFERS: usize = 6;

struct Filled {
    bytes: Vec<u8>,
    length: usize,
}

/// The end that is filled from a reader.
pub(crate) struct Sender {
    filled: SyncSender<io::Result<Filled>>,
    empty: Receiver<Vec<u8>>,
}

/// The end that is read from.
pub(crate) struct QueueReader {
    filled: Receiver<io::Result<Filled>>,
    empty: SyncSender<Vec<u8>>,
    current: Filled,
    at: usize,
}

pub(crate) fn queue() -> (Sender, QueueReader) {
    let (filled_sender, filled_receiver) = sync_channel(BUFFERS);
    let (empty_sender, empty_receiver) = sync_channel(BUFFERS);
    for _ in 0..BUFFERS {
        // There is room for all of them.
        let _ = empty_sender.try_send(Vec::new());
    }
    let current = Filled { bytes: Vec::new(), length: 0 };
    (
        Sender { filled: filled_sender, empty: empty_receiver },
        QueueReader { filled: filled_receiver, empty: empty_sender, current, at: 0 },
    )
}

impl Sender {
    /// Sends everything that `reader` has, or its error. Ends early when the other end is gone.
    pub(crate) fn send_all(self, reader: &mut impl Read) {
        while let Ok(mut bytes) = self.empty.recv() {
            bytes.resize(BUFFER_BYTES, 0);
            let mut length = 0;
            let mut result = Ok(());
            // Full buffers, so that the threads wake each other seldom.
            while length < bytes.len() {
                match reader.read(&mut bytes[length..]) {
                    Ok(0) => break,
                    Ok(count) => length += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
            }
            let ended = length < bytes.len();
            if length > 0 && self.filled.send(Ok(Filled { bytes, length })).is_err() {
                return;
            }
            if let Err(error) = result {
                let _ = self.filled.send(Err(error));
                return;
            }
            if ended {
                return;
            }
        }
    }
}

impl Read for QueueReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.at == self.current.length {
            // A closed queue is the end of the stream.
            let Ok(next) = self.filled.recv() else { return Ok(0) };
            let done = std::mem::replace(&mut self.current, next?);
            self.at = 0;
            if done.length > 0 {
                let _ = self.empty.try_send(done.bytes);
            }
        }
        let count = buffer.len().min(self.current.length - self.at);
        buffer[..count].copy_from_slice(&self.current.bytes[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives `length` bytes in small pieces, then perhaps an error.
    struct Source {
        length: usize,
        given: usize,
        fails: bool,
    }

    impl Read for Source {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.given == self.length && self.fails {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let count = buffer.len().min(self.length - self.given).min(10_007);
            for (offset, byte) in buffer[..count].iter_mut().enumerate() {
                *byte = u8::try_from((self.given + offset) % 251).unwrap_or(0);
            }
            self.given += count;
            Ok(count)
        }
    }

    #[test]
    fn everything_passes_in_order() {
        for (length, fails) in [(0, false), (1, false), (BUFFER_BYTES, false), (5_000_001, false), (700_000, true)] {
            let (sender, mut reader) = queue();
            let thread = std::thread::spawn(move || sender.send_all(&mut Source { length, given: 0, fails }));
            let mut bytes = Vec::new();
            let result = reader.read_to_end(&mut bytes);
            thread.join().expect("sender");
            assert_eq!(result.is_err(), fails);
            assert_eq!(bytes.len(), length);
            assert!(bytes.iter().enumerate().all(|(at, byte)| usize::from(*byte) == at % 251));
        }
    }

    #[test]
    fn a_reader_that_leaves_ends_the_sender() {
        let (sender, reader) = queue();
        let thread = std::thread::spawn(move || {
            sender.send_all(&mut Source { length: usize::MAX, given: 0, fails: false });
        });
        drop(reader);
        thread.join().expect("sender");
    }
}
