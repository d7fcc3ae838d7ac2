//! What a client is answered: building an answer, and sending it within a deadline.
//!
//! How long may a client take for its answer? The [`listener`](super::listener) lets a write to a
//! client that does not read fail after a moment. But one that takes a few bytes now and then could
//! hold a thread for ever, by one successful write after the other. So there is a deadline for the
//! answer as a whole, or for each MiB of a long one.

use std::fmt::Display;
use std::io::{self, Cursor, Read, Write};
use std::time::{Duration, Instant};

use log::{debug, error};
use tiny_http::{Header, Method, Request, Response, ResponseBox};

use super::request::{Question, Refusal, Writer, closes, shown};

/// An answer that is longer, in bytes, may not fit into the kernel's buffers: sending it may then
/// have to wait for the client. Linux takes 78,192 bytes of a new connection over Ethernet before the
/// other end has acknowledged any.
pub(super) const LARGE: usize = 64 << 10;
/// How long a client may take for an answer; for one that is longer than a part, for each part.
const DEADLINE: Duration = Duration::from_secs(5);
const PART: usize = 1 << 20;

/// An answer of one line of text.
pub(super) fn text(code: u16, line: impl Display) -> ResponseBox {
    bytes(code, format!("{line}\n"))
        .with_header(header("Content-Type", "text/plain; charset=utf-8"))
}

/// An answer of bytes.
pub(super) fn bytes(code: u16, body: impl AsRef<[u8]> + Send + 'static) -> ResponseBox {
    let length = body.as_ref().len();
    of_length(code, length, Cursor::new(body))
}

/// The same; the bytes are made by the thread that sends them.
pub(super) fn bytes_later(
    code: u16,
    length: usize,
    make: impl FnOnce() -> Vec<u8> + Send + 'static,
) -> ResponseBox {
    of_length(code, length, Later { make: Some(make), made: Cursor::default() })
}

/// Never in chunks: peers look at the length before they read. And never to be kept by a cache on the
/// way, which no removal would reach.
fn of_length(code: u16, length: usize, body: impl Read + Send + 'static) -> ResponseBox {
    let headers = vec![header("Cache-Control", "no-store")];
    Response::new(code.into(), headers, body, Some(length), None)
        .with_chunked_threshold(usize::MAX)
        .boxed()
}

struct Later<M> {
    make: Option<M>,
    made: Cursor<Vec<u8>>,
}

impl<M: FnOnce() -> Vec<u8>> Read for Later<M> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if let Some(make) = self.make.take() {
            self.made = Cursor::new(make());
        }
        self.made.read(to)
    }
}

pub(super) fn header(name: &str, value: &str) -> Header {
    Header::from_bytes(name, value).expect("headers are ASCII")
}

impl From<Refusal> for ResponseBox {
    fn from(refusal: Refusal) -> Self {
        text(refusal.status, refusal.text)
    }
}

/// The length of an answer. If it is not known, the answer is taken for a large one.
pub(super) fn length_of(response: &ResponseBox) -> usize {
    response.data_length().unwrap_or(LARGE + 1)
}

/// What became of an answer.
pub(super) enum Sent {
    /// It has been sent, or its client has closed the connection.
    Whole,
    /// A part of it, so that nothing may follow on the connection. tiny_http lets nobody write
    /// there as long as this lives.
    Part(Writer),
}

/// Sends an answer. `is_last` asks the client to close the connection after it.
pub(super) fn send(question: Question, response: ResponseBox, is_last: bool) -> Sent {
    let Question { request, connection, writer, .. } = question;
    let mut patient;
    let sent = if length_of(&response) <= LARGE {
        // By a single write: tiny_http's own buffer has a kilobyte, so head and body would often
        // leave one after the other, and wake the client twice.
        let bytes = printed(&request, response, is_last || closes(&request));
        patient = Patient::new(writer.unwrap_or_else(|| request.into_writer()));
        patient.write_all(&bytes)
    } else {
        let (version, headers) = (request.http_version().clone(), request.headers().to_vec());
        let is_head = *request.method() == Method::Head;
        patient = Patient::new(writer.unwrap_or_else(|| request.into_writer()));
        response.raw_print(&mut patient, version, &headers, is_head, None)
    };
    match sent.and_then(|()| patient.flush()) {
        Err(error) if !is_gone(&error) => {
            debug!("{}: an answer was not sent: {error}", connection.client);
            Sent::Part(patient.writer)
        }
        _ => Sent::Whole,
    }
}

/// An answer as bytes.
fn printed(request: &Request, response: ResponseBox, is_last: bool) -> Vec<u8> {
    let code = response.status_code().0;
    let (version, is_head) = (request.http_version(), *request.method() == Method::Head);
    let mut bytes = Vec::with_capacity(length_of(&response) + 512);
    let print = |response: ResponseBox, bytes: &mut Vec<u8>| {
        response.raw_print(bytes, version.clone(), request.headers(), is_head, None)
    };
    if let Err(error) = print(response, &mut bytes) {
        error!("{}: no answer: {error}", shown(request));
        bytes.clear();
        print(text(500, "the answer could not be read"), &mut bytes).expect("a Vec takes all");
    }
    correct_head(&mut bytes, code, is_last);
    bytes
}

/// tiny_http gives a `204` a length, which it must not have, and lets nobody set `Connection`.
fn correct_head(answer: &mut Vec<u8>, code: u16, is_last: bool) {
    const LENGTH: &[u8] = b"Content-Length: 0\r\n";
    let find = |answer: &[u8], what: &[u8]| answer.windows(what.len()).position(|at| at == what);
    if code == 204 {
        if let Some(at) = find(answer, LENGTH) {
            answer.drain(at..at + LENGTH.len());
        }
    }
    if is_last {
        if let Some(end) = find(answer, b"\r\n\r\n") {
            answer.splice(end..end, *b"\r\nConnection: close");
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Writes until a deadline. A write that failed because the client does not read is tried again.
struct Patient {
    writer: Writer,
    /// When the client must have taken this part, and how much of it it has, in bytes.
    deadline: Instant,
    taken: usize,
}

impl Patient {
    fn new(writer: Writer) -> Self {
        Self { writer, deadline: Instant::now() + DEADLINE, taken: 0 }
    }

    fn attempt<T>(&mut self, mut write: impl FnMut(&mut Writer) -> io::Result<T>) -> io::Result<T> {
        while Instant::now() < self.deadline {
            match write(&mut self.writer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
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
