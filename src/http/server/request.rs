//! A request: its headers, and how its body is read.
//!
//! Where does a request end? tiny_http goes by the first header that says so, and a proxy in front may go by
//! another. Bytes that one of them takes for a body, the other could then take for the next request. So a
//! request whose headers leave that open is refused.

use std::io::{self, Read, Write};
use std::mem;
use std::net::SocketAddr;

use tiny_http::Request;

use super::reply::text;
use crate::http::frame::MAX_QUESTION_BYTES as MAX_BODY_BYTES;

/// The longest body that may be announced, in bytes. One that is longer than a question may be is
/// read all the same, since tiny_http cannot close the connection.
const MOST_ANNOUNCED: usize = 16 << 20;
/// tiny_http reads a body of up to so many bytes together with the header.
const SHORT: usize = 1024;
/// How much of a request is shown in the log, in characters.
const SHOWN: usize = 100;

/// Takes the bytes of the answer.
pub(super) type Writer = Box<dyn Write + Send>;

/// A request and its whole body.
pub(super) struct Question {
    pub(super) request: Request,
    pub(super) body: Vec<u8>,
    /// An answer that waits for nothing has not been looked for.
    pub(super) is_new: bool,
}

pub(super) fn client_of(request: &Request) -> SocketAddr {
    *request.remote_addr().expect("a TCP connection has an address")
}

/// Method and target for the log: cut, and without control characters, which a terminal would obey.
pub(super) fn shown(request: &Request) -> String {
    let text = format!("{} {}", request.method(), request.url()).escape_debug().to_string();
    if text.len() > SHOWN { format!("{text:.SHOWN$}…") } else { text }
}

/// The first header of that name, the one that tiny_http goes by.
pub(super) fn first<'r>(request: &'r Request, name: &'static str) -> Option<&'r str> {
    let header = request.headers().iter().find(|header| header.field.equiv(name));
    header.map(|header| header.value.as_str())
}

fn connection_header_has(request: &Request, what: &str) -> bool {
    first(request, "Connection").is_some_and(|value| value.to_lowercase().contains(what))
}

/// Whether the client asks for another protocol. tiny_http then takes all that follows for the
/// body, and ends the connection after the answer.
fn is_upgrade(request: &Request) -> bool {
    connection_header_has(request, "upgrade")
}

/// Whether tiny_http ends the connection after the answer.
pub(super) fn closes(request: &Request) -> bool {
    connection_header_has(request, "close") || is_upgrade(request)
}

/// Whether the body can be read without waiting for the client.
pub(super) fn has_arrived(request: &Request) -> bool {
    let short = if is_upgrade(request) { 0 } else { SHORT };
    first(request, "Transfer-Encoding").is_none()
        && first(request, "Expect").is_none()
        && request.body_length().is_none_or(|length| length <= short)
}

/// Reads the whole body. `None` if that cannot be done, or the body is refused: then the request is answered.
/// May wait for the client, unless the body [has arrived](has_arrived).
pub(super) fn read(mut request: Request) -> Option<Question> {
    let announced = request.body_length();
    if announced.is_some_and(|length| length > MOST_ANNOUNCED) {
        log::warn!("{}: announces a body of more than {MOST_ANNOUNCED} bytes", shown(&request));
        abandon(request);
        return None;
    }
    // In an upgrade the end of the body is ours to find.
    let most = if is_upgrade(&request) { announced.unwrap_or(0) } else { MOST_ANNOUNCED };
    let mut body = Vec::new();
    let mut reader = request.as_reader().take(most as u64);
    let read = reader
        .by_ref()
        .take(MAX_BODY_BYTES as u64 + 1)
        .read_to_end(&mut body)
        // The bytes over the limit are read, or they would be taken for the next request.
        .and_then(|_| io::copy(&mut reader, &mut io::sink()));
    let refusal = match read {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            text(408, "the body did not arrive in time")
        }
        Err(error) => text(400, error),
        Ok(_) if body.len() > MAX_BODY_BYTES => {
            text(413, format!("a body has up to {MAX_BODY_BYTES} bytes"))
        }
        Ok(_) if !is_framed_well(&request, body.len()) => {
            text(400, "it is not clear where the body ends")
        }
        Ok(_) => return Some(Question { request, body, is_new: true }),
    };
    // Sends the answer, and waits for the rest of the body.
    let _ = request.respond(refusal);
    None
}

/// Whether all readers of the headers see the end of the body at the same byte.
fn is_framed_well(request: &Request, length: usize) -> bool {
    let values = |name| {
        let headers = request.headers().iter().filter(move |header| header.field.equiv(name));
        headers.map(|header| header.value.as_str()).collect::<Vec<_>>()
    };
    match (&values("Content-Length")[..], &values("Transfer-Encoding")[..]) {
        ([], []) => true,
        ([announced], []) => {
            announced.bytes().all(|byte| byte.is_ascii_digit()) && announced.parse() == Ok(length)
        }
        ([], [coding]) => coding.eq_ignore_ascii_case("chunked") && !is_upgrade(request),
        _ => false,
    }
}

/// Answers `413` to a request that announces too long a body, and gives its connection up.
///
/// When a request is dropped or answered, tiny_http allocates as much as its client has announced
/// and not sent. If that cannot be allocated the process ends. So the request is leaked, and with
/// it a thread of tiny_http's and a socket; only `upgrade` answers without a drop.
fn abandon(request: Request) {
    mem::forget(request.upgrade("HTTP/1.1", text(413, "too long a body")));
}
