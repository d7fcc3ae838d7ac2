//! An answer: how it is built, and how it is sent.
//!
//! An answer of up to 64 KiB is written at once; a client that does not take it in a moment gets the rest
//! from a thread that may wait. How long may that take? The kernel ends a connection on which the client
//! takes nothing, see [`listener`](super::listener). But a client that takes a few bytes now and then could
//! hold a thread for ever. So there is a deadline for the answer as a whole, or for each MiB of a long one.

use std::fmt::Display;
use std::io::{self, Cursor, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, error};
use tiny_http::{Header, Method, Request, Response, ResponseBox};

use super::request::{Writer, closes, shown};

/// An answer that is longer, in bytes, may not fit into the kernel's buffers: sending it may then
/// have to wait for the client. Linux takes 78,192 bytes of a new connection over Ethernet before the
/// other end has acknowledged any.
pub(super) const LARGE: usize = 64 << 10;
/// How long a client may take for an answer; for one that is longer than a part, for each part. Longer
/// than the kernel gives a client that takes nothing.
const DEADLINE: Duration = Duration::from_secs(7);
const PART: usize = 1 << 20;
/// How long a thread sleeps before it tries again to write: from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(64));

/// An answer of one line of text.
pub(super) fn text(code: u16, line: impl Display) -> ResponseBox {
    bytes(code, format!("{line}\n"))
        .with_header(header("Content-Type", "text/plain; charset=utf-8"))
}

/// An answer of bytes. Never in chunks: peers look at the length before they read. And no cache on the
/// way may keep it.
pub(super) fn bytes(code: u16, body: impl AsRef<[u8]> + Send + 'static) -> ResponseBox {
    let length = body.as_ref().len();
    let headers = vec![header("Cache-Control", "no-store")];
    Response::new(code.into(), headers, Cursor::new(body), Some(length), None)
        .with_chunked_threshold(usize::MAX)
        .boxed()
}

pub(super) fn header(name: &str, value: &str) -> Header {
    Header::from_bytes(name, value).expect("headers are ASCII")
}

/// The length of an answer. If it is not known, the answer is taken for a large one.
pub(super) fn length_of(response: &ResponseBox) -> usize {
    response.data_length().unwrap_or(LARGE + 1)
}

/// A short answer as bytes. `is_last` asks the client to close the connection after it.
///
/// It is to be sent by a single write: tiny_http's own buffer has a kilobyte, so head and body would often
/// leave one after the other, and wake the client twice.
pub(super) fn printed(request: &Request, response: ResponseBox, is_last: bool) -> Vec<u8> {
    let (version, is_head) = (request.http_version(), *request.method() == Method::Head);
    let mut bytes = Vec::with_capacity(length_of(&response) + 512);
    let print = |response: ResponseBox, bytes: &mut Vec<u8>| {
        response.raw_print(bytes, version.clone(), request.headers(), is_head, None)
    };
    let done = catch_unwind(AssertUnwindSafe(|| print(response, &mut bytes)));
    if !matches!(done, Ok(Ok(()))) {
        error!("{}: the answer could not be read: {done:?}", shown(request));
        bytes.clear();
        print(text(500, "the answer could not be read"), &mut bytes).expect("a Vec takes all");
    }
    // tiny_http lets nobody set `Connection`.
    let end = bytes.windows(4).position(|at| at == b"\r\n\r\n");
    if let Some(end) = end.filter(|_| is_last || closes(request)) {
        bytes.splice(end..end, *b"\r\nConnection: close");
    }
    bytes
}

/// Writes `bytes`, as far as the client takes them in a moment. Returns how many it has taken if there
/// is a rest; `None` if there is none, or the connection has ended.
pub(super) fn write_at_once(writer: &mut Writer, bytes: &[u8]) -> Option<usize> {
    let taken = match writer.write(bytes) {
        Ok(taken) if taken < bytes.len() => return Some(taken),
        Ok(taken) => taken,
        Err(error) => return is_slow(&error).then_some(0),
    };
    writer.flush().is_err_and(|error| is_slow(&error)).then_some(taken)
}

/// Whether a write failed since the client does not read fast enough.
fn is_slow(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Writes until a deadline. A write that failed because the client does not read is tried again.
pub(super) struct Patient {
    writer: Writer,
    /// When the client must have taken this part, and how much of it it has, in bytes.
    deadline: Instant,
    taken: usize,
    /// The connection has ended.
    is_dead: bool,
}

impl Patient {
    pub(super) fn new(writer: Writer) -> Self {
        Self { writer, deadline: Instant::now() + DEADLINE, taken: 0, is_dead: false }
    }

    /// Sends what `write` writes. Returns the writer if that was not finished though the connection lives.
    pub(super) fn send(
        mut self,
        write: impl FnOnce(&mut Self) -> io::Result<()>,
    ) -> Result<(), Writer> {
        let write = || write(&mut self).and_then(|()| self.flush());
        let sent = catch_unwind(AssertUnwindSafe(write));
        if self.is_dead || matches!(sent, Ok(Ok(()))) {
            return Ok(());
        }
        debug!("an answer was not finished: {sent:?}");
        Err(self.writer)
    }

    fn attempt<T>(&mut self, mut write: impl FnMut(&mut Writer) -> io::Result<T>) -> io::Result<T> {
        let (mut pause, longest) = PAUSES;
        while Instant::now() < self.deadline {
            let written = write(&mut self.writer);
            if !written.as_ref().is_err_and(is_slow) {
                self.is_dead = written.is_err();
                return written;
            }
            thread::sleep(pause);
            pause = longest.min(2 * pause);
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.attempt(|writer| writer.write(bytes))?;
        self.taken += taken;
        if self.taken >= PART {
            (self.deadline, self.taken) = (Instant::now() + DEADLINE, 0);
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.attempt(|writer| writer.flush())
    }
}
