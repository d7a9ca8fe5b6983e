//! One write stream of the content service.
//!
//! ```text
//!          first message, with a ref         COMMIT
//!  start ────────────────────────────► open ────────► ended: the last reply once more, then OK
//!                                      │  ▲ │ half-close: the same, without a blob
//!                          STAT, WRITE └──┘ └ error or cancel: the ingest stays and can be resumed
//! ```
//!
//! **Invariant:** every message gets exactly one reply, and the reference is free again before the stream's end is
//! told, because clients open it again at once.

use api_grpc::encode;
use api_grpc::services::content::{WriteAction, WriteContentRequest, WriteContentResponse};
use metadata::{Metadata, Scope, Writer, WriterOptions};
use model::{Coded, Digest};
use tonic::Status;

use crate::Error;

/// The state of a stream between two messages.
#[derive(Debug)]
pub(crate) struct WriteSession {
    metadata: Metadata,
    scope: Scope,
    /// Absent before the first message and after a commit.
    writer: Option<Writer>,
    reference: String,
    /// Size announced so far; 0 for unknown.
    total: u64,
    /// Digest announced so far.
    expected: Option<Digest>,
    /// Fields that a message does not set keep their value from an earlier one, as with containerd.
    reply: WriteContentResponse,
}

/// Whether more messages may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The ingest is open.
    Open,
    /// It has become a blob.
    Committed,
}

fn refuse(error: &dyn Coded) -> Status {
    api_grpc::status(error)
}

impl WriteSession {
    pub(crate) fn new(metadata: Metadata, scope: Scope) -> Self {
        Self {
            metadata,
            scope,
            writer: None,
            reference: String::new(),
            total: 0,
            expected: None,
            reply: WriteContentResponse::default(),
        }
    }

    /// The answer to the message handled last.
    pub(crate) fn reply(&self) -> WriteContentResponse {
        self.reply.clone()
    }

    /// Whether a first message has been handled.
    pub(crate) fn is_open(&self) -> bool {
        self.writer.is_some()
    }

    /// Handles one message. Blocks on the disk. After an error the session is of no further use.
    pub(crate) fn step(&mut self, message: WriteContentRequest) -> Result<Step, Status> {
        let action = WriteAction::try_from(message.action).map_err(|_| Error::WriteAction(message.action))?;
        let announced = match message.expected.as_str() {
            "" => None,
            text => Some(text.parse::<Digest>().map_err(Error::Digest)?),
        };
        self.announce(&message, announced)?;
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => self.open(&message.r#ref)?,
        };
        self.reply.action = message.action;
        match action {
            WriteAction::Stat => {
                let status = writer.status();
                self.reply.started_at = encode::timestamp(status.started_at);
                self.reply.updated_at = encode::timestamp(status.updated_at);
                self.reply.total = signed(self.total);
                self.reply.offset = signed(status.offset);
            }
            WriteAction::Write | WriteAction::Commit => {
                append(&mut writer, message.offset, &message.data)?;
                self.reply.offset = signed(writer.offset());
            }
        }
        if action == WriteAction::Commit {
            let (digest, _) =
                writer.commit(self.total, self.expected.as_ref(), message.labels).map_err(|error| refuse(&error))?;
            self.reply.digest = digest.as_str().to_owned();
            return Ok(Step::Committed);
        }
        self.reply.digest = writer.digest().as_str().to_owned();
        self.writer = Some(writer);
        Ok(Step::Open)
    }

    /// Takes over what a message says about the whole: any message may, and the newest counts.
    fn announce(&mut self, message: &WriteContentRequest, expected: Option<Digest>) -> Result<(), Status> {
        if let Some(writer) = &mut self.writer {
            if !message.r#ref.is_empty() && message.r#ref != self.reference {
                let (have, want) = (self.reference.clone(), message.r#ref.chars().take(128).collect());
                return Err(Error::ReferenceChanged { have, want }.into());
            }
            // It may have come into the namespace since the stream was opened.
            if let Some(expected) = &expected {
                writer.expect(expected).map_err(|error| refuse(&error))?;
            }
        }
        if expected.is_some() {
            self.expected = expected;
        }
        if let Ok(total @ 1..) = u64::try_from(message.total) {
            self.total = total;
        }
        Ok(())
    }

    fn open(&mut self, reference: &str) -> Result<Writer, Status> {
        if reference.is_empty() {
            return Err(Error::NoReference.into());
        }
        self.reference = reference.to_owned();
        let options = WriterOptions { reference, expected: self.expected.as_ref(), total: self.total };
        self.metadata.content().open_writer(&self.scope, &options).map_err(|error| refuse(&error))
    }
}

/// Appends data at an offset. Offset 0 while there are bytes begins again; any other offset must be the current one.
fn append(writer: &mut Writer, offset: i64, data: &[u8]) -> Result<(), Status> {
    let current = writer.offset();
    if offset == 0 && current > 0 {
        writer.truncate().map_err(|error| refuse(&error))?;
    } else if offset != signed(current) && offset != 0 {
        return Err(Error::WriteOffset { offset, current }.into());
    }
    writer.write(data).map_err(|error| refuse(&error))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::testing::Fixture;

    /// A message in short form.
    fn message(action: WriteAction, offset: i64, data: &str) -> WriteContentRequest {
        WriteContentRequest {
            action: action as i32,
            offset,
            data: data.to_owned().into(),
            ..WriteContentRequest::default()
        }
    }

    fn named(reference: &str) -> WriteContentRequest {
        WriteContentRequest { r#ref: reference.to_owned(), ..message(WriteAction::Stat, 0, "") }
    }

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn commit(total: i64, expected: &str) -> WriteContentRequest {
        WriteContentRequest { total, expected: expected.to_owned(), ..message(WriteAction::Commit, 0, "abc") }
    }

    #[test]
    fn stat_write_commit() {
        let fixture = Fixture::new();
        let mut session = fixture.session("a");
        assert_eq!(session.step(WriteContentRequest { total: 3, ..named("r") }).unwrap(), Step::Open);
        let reply = session.reply();
        assert_eq!((reply.offset, reply.total, reply.digest.as_str()), (0, 3, EMPTY));
        assert!(reply.started_at.is_some());
        assert_eq!(session.step(message(WriteAction::Write, 0, "ab")).unwrap(), Step::Open);
        assert_eq!((session.reply().offset, session.reply().total), (2, 3));
        // A STAT's times and total stay in later replies.
        assert!(session.reply().started_at.is_some());
        let mut last = message(WriteAction::Commit, 2, "c");
        last.labels = BTreeMap::from([("k".to_owned(), "v".to_owned()), ("empty".to_owned(), String::new())]);
        assert_eq!(session.step(last).unwrap(), Step::Committed);
        assert_eq!((session.reply().offset, session.reply().digest.as_str()), (3, ABC));
        let info = fixture.info("a", ABC).unwrap();
        assert_eq!((info.size, info.labels), (3, BTreeMap::from([("k".to_owned(), "v".to_owned())])));
    }

    #[test]
    fn offsets() {
        let fixture = Fixture::new();
        let mut session = fixture.session("a");
        session.step(named("r")).unwrap();
        let refused = session.step(message(WriteAction::Write, 5, "x")).unwrap_err();
        assert_eq!(refused.message(), "write @5 must occur at current offset 0: out of range");
        drop(session);
        let mut session = fixture.session("a");
        session.step(named("r")).unwrap();
        session.step(message(WriteAction::Write, 0, "long")).unwrap();
        // Offset 0 begins again; a WRITE without data at 0 does as well.
        session.step(message(WriteAction::Write, 0, "abc")).unwrap();
        assert_eq!((session.reply().offset, session.reply().digest.as_str()), (3, ABC));
        for offset in [-1, 2, 4, i64::MAX, i64::MIN] {
            let mut other = fixture.session("b");
            other.step(named("r")).unwrap();
            other.step(message(WriteAction::Write, 0, "abc")).unwrap();
            let refused = other.step(message(WriteAction::Write, offset, "d")).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::OutOfRange, "{offset}");
        }
    }

    #[test]
    fn refused_messages() {
        let fixture = Fixture::new();
        let first = |message| fixture.session("a").step(message).unwrap_err();
        let refused = first(named(""));
        assert_eq!(refused.message(), "first message must have a reference: invalid argument");
        let absurd = WriteContentRequest { expected: "x".repeat(5000), ..named("r") };
        assert_eq!(first(absurd).code(), tonic::Code::InvalidArgument);
        assert_eq!(first(WriteContentRequest { action: 7, ..named("r") }).code(), tonic::Code::InvalidArgument);
        let mut session = fixture.session("a");
        session.step(named("r")).unwrap();
        assert_eq!(session.step(named("other")).unwrap_err().code(), tonic::Code::InvalidArgument);
    }

    #[test]
    fn one_writer_per_reference() {
        let fixture = Fixture::new();
        let mut first = fixture.session("a");
        first.step(named("r")).unwrap();
        let locked = fixture.session("a").step(named("r")).unwrap_err();
        assert_eq!(locked.code(), tonic::Code::Unavailable);
        assert!(locked.message().starts_with("ref a/1/r locked for "), "{locked}");
        assert!(locked.message().ends_with(": unavailable"), "{locked}");
        assert!(fixture.session("b").step(named("r")).is_ok());
        drop(first);
        assert!(fixture.session("a").step(named("r")).is_ok());
    }

    #[test]
    fn commits_that_contradict_keep_the_ingest() {
        let fixture = Fixture::new();
        for (request, want) in [
            (commit(99, ""), "\"r\" failed size validation: 3 != 99: failed precondition"),
            (commit(0, EMPTY), "unexpected commit digest"),
        ] {
            let mut session = fixture.session("a");
            session.step(named("r")).unwrap();
            let refused = session.step(request).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
            assert!(refused.message().starts_with(want), "{refused}");
            drop(session);
            let mut resumed = fixture.session("a");
            resumed.step(named("r")).unwrap();
            assert_eq!((resumed.reply().offset, resumed.reply().digest.as_str()), (3, ABC));
        }
        let mut resumed = fixture.session("a");
        resumed.step(named("r")).unwrap();
        resumed.step(WriteContentRequest { offset: 3, data: "".into(), ..commit(3, ABC) }).unwrap();
        assert!(fixture.info("a", ABC).is_ok());
    }

    #[test]
    fn what_exists_already() {
        let fixture = Fixture::new();
        let mut session = fixture.session("a");
        session.step(named("r")).unwrap();
        session.step(commit(3, ABC)).unwrap();
        // Known at the opening, at a later message, and at the commit.
        let known = WriteContentRequest { expected: ABC.to_owned(), ..named("s") };
        assert_eq!(fixture.session("a").step(known.clone()).unwrap_err().code(), tonic::Code::AlreadyExists);
        let mut later = fixture.session("a");
        later.step(named("s")).unwrap();
        let exists = later.step(WriteContentRequest { r#ref: String::new(), ..known.clone() }).unwrap_err();
        assert_eq!(exists.message(), format!("content {ABC}: already exists"));
        drop(later);
        let mut last = fixture.session("a");
        last.step(named("s")).unwrap();
        assert_eq!(last.step(commit(0, "")).unwrap_err().code(), tonic::Code::AlreadyExists);
        drop(last);
        // Another namespace gets the bytes without sending them.
        let mut shared = fixture.session("b");
        shared.step(known).unwrap();
        assert_eq!((shared.reply().offset, shared.reply().digest.as_str()), (3, ABC));
        let end = WriteContentRequest { offset: 3, ..message(WriteAction::Commit, 3, "") };
        assert_eq!(shared.step(end).unwrap(), Step::Committed);
        assert!(fixture.info("b", ABC).is_ok());
    }
}
