//! What a client is answered: building an answer, and sending it.

use std::fmt::Display;
use std::io::{self, Cursor, Write};
use std::mem;

use log::error;
use tiny_http::{Header, Method, Request, Response, ResponseBox};

use super::request::{Refusal, is_short, is_upgrade};

/// An answer that is longer, in bytes, may not fit into the kernel's buffers: sending it may then
/// have to wait for the client.
pub(super) const LARGE: usize = 8 << 10;

/// An answer of one line of text.
pub(super) fn text(code: u16, line: impl Display) -> ResponseBox {
    bytes(code, format!("{line}\n"))
        .with_header(header("Content-Type", "text/plain; charset=utf-8"))
}

/// An answer of bytes, never in chunks: peers look at the length before they read.
pub(super) fn bytes(code: u16, body: impl AsRef<[u8]> + Send + 'static) -> ResponseBox {
    let length = body.as_ref().len();
    Response::new(code.into(), Vec::new(), Cursor::new(body), Some(length), None)
        .with_chunked_threshold(usize::MAX)
        .boxed()
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

/// Sends an answer; a short one by a single write. tiny_http's own buffer has a kilobyte, so head
/// and body would often leave one after the other, and wake the client twice.
pub(super) fn send(request: Request, response: ResponseBox) -> io::Result<()> {
    let length = length_of(&response);
    if length > LARGE || is_upgrade(&request) || !is_short(&request) {
        return request.respond(response);
    }
    let mut bytes = Vec::with_capacity(length + 512);
    let (version, is_head) = (request.http_version().clone(), *request.method() == Method::Head);
    if let Err(error) = response.raw_print(&mut bytes, version, request.headers(), is_head, None) {
        error!("{} {}: no answer: {error}", request.method(), request.url());
        return request.respond(text(500, "the answer could not be read"));
    }
    let mut writer = request.into_writer();
    match writer.write_all(&bytes).and_then(|()| writer.flush()) {
        // As in tiny_http: a client that has gone misses nothing.
        Err(error) if is_gone(&error) => Ok(()),
        sent => sent,
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Answers `413` to a request that announces too long a body, and gives its connection up.
///
/// When a request is dropped or answered, tiny_http allocates as much as its client has announced
/// and not sent. If that cannot be allocated the process ends. So the request is leaked, and with
/// it a thread of tiny_http's and a socket; only `upgrade` answers without a drop.
pub(super) fn abandon(request: Request) {
    mem::forget(request.upgrade("HTTP/1.1", bytes(413, "")));
}
