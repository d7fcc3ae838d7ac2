//! What a client asks: the headers and the body of tiny_http's `Request`.
//!
//! Where does a request end? tiny_http goes by the first header that says so, and a proxy in front
//! may go by another. What one of them takes for a body, the other could then take for the next
//! request. So a request whose headers leave that open is refused.

use std::io::{self, Read};
use std::net::SocketAddr;

use tiny_http::{Header, Request};

use crate::http::frame::MAX_QUESTION_BYTES as MAX_BODY_BYTES;

/// The longest body that may be announced, in bytes. One that is longer than a question may be is
/// read all the same, since tiny_http cannot close the connection.
pub(super) const MOST_ANNOUNCED: usize = 16 << 20;

/// A request and its whole body.
pub(super) struct Question {
    pub(super) request: Request,
    pub(super) body: Vec<u8>,
}

/// Why a request is not answered: the status and the text that its client gets instead.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) text: String,
}

pub(super) fn client_of(request: &Request) -> SocketAddr {
    *request.remote_addr().expect("a TCP connection has an address")
}

pub(super) fn path_of(request: &Request) -> &str {
    request.url().split('?').next().unwrap_or_default()
}

/// The first header of that name, the one that tiny_http goes by.
pub(super) fn first<'r>(request: &'r Request, name: &'static str) -> Option<&'r str> {
    let header = request.headers().iter().find(|header| header.field.equiv(name));
    header.map(|header| header.value.as_str())
}

/// The bytes of all names and values of the header.
pub(super) fn header_bytes(request: &Request) -> usize {
    let bytes = |header: &Header| header.field.as_str().as_str().len() + header.value.len();
    request.headers().iter().map(bytes).sum()
}

/// Whether the connection is to become another protocol's: then tiny_http takes all that follows
/// for the body, and nothing for a request.
pub(super) fn is_upgrade(request: &Request) -> bool {
    first(request, "Connection").is_some_and(|value| value.to_lowercase().contains("upgrade"))
}

/// Whether the body can be read without waiting for the client.
pub(super) fn has_arrived(request: &Request) -> bool {
    is_upgrade(request) || is_short(request)
}

/// Whether tiny_http has read the body already, as it does with short ones.
pub(super) fn is_short(request: &Request) -> bool {
    first(request, "Transfer-Encoding").is_none()
        && first(request, "Expect").is_none()
        && request.body_length().is_none_or(|length| length <= 1024)
}

pub(super) fn announces_too_much(request: &Request) -> bool {
    request.body_length().is_some_and(|length| length > MOST_ANNOUNCED)
}

/// Reads the whole body.
pub(super) fn read_body(request: &mut Request) -> Result<Vec<u8>, Refusal> {
    if is_upgrade(request) {
        return Ok(Vec::new());
    }
    let refusal = |status, text| Err(Refusal { status, text });
    let mut body = Vec::new();
    let mut reader = request.as_reader().take(MOST_ANNOUNCED as u64);
    let read = reader
        .by_ref()
        .take(MAX_BODY_BYTES as u64 + 1)
        .read_to_end(&mut body)
        // What is over the limit is read, or it would be taken for the next request.
        .and_then(|_| io::copy(&mut reader, &mut io::sink()));
    match read {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            refusal(408, "the body did not arrive in time".into())
        }
        Err(error) => refusal(400, error.to_string()),
        Ok(_) if body.len() > MAX_BODY_BYTES => {
            refusal(413, format!("a body has up to {MAX_BODY_BYTES} bytes"))
        }
        Ok(_) if !is_framed_well(request, body.len()) => {
            refusal(400, "it is not clear where the body ends".into())
        }
        Ok(_) => Ok(body),
    }
}

/// Whether everyone who reads the headers sees the end of the body at the same byte.
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
        ([], [coding]) => coding.eq_ignore_ascii_case("chunked"),
        _ => false,
    }
}
