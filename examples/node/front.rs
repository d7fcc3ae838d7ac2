//! The front: what people and programs ask, as against peers.

use std::fmt::Write;
use std::io::Cursor;
use std::str::Utf8Error;
use std::sync::Arc;

use geecache::tiny_http::{Header, Method, Request, Response, ResponseBox, StatusCode};
use geecache::{Error, Group, HttpPool};
use percent_encoding::percent_decode_str;

pub(crate) struct Front {
    pub(crate) scores: Arc<Group>,
    pub(crate) pool: Arc<HttpPool>,
}

impl Front {
    pub(crate) fn answer(&self, request: &Request) -> ResponseBox {
        let (path, query) = request.url().split_once('?').unwrap_or((request.url(), ""));
        match (path, request.method()) {
            ("/" | "/api", method) if !matches!(method, Method::Get | Method::Head) => {
                text(405, "ask by GET").with_header(header("Allow", "GET, HEAD"))
            }
            ("/api", _) => self.score(query),
            ("/", _) => bytes(200, "text/html; charset=utf-8", self.page()),
            _ => text(404, "no such page; / says what can be asked"),
        }
    }

    fn score(&self, query: &str) -> ResponseBox {
        let key = match key_in(query) {
            Some(Ok(key)) => key,
            Some(Err(_)) => return text(400, "the key is not UTF-8"),
            None => return text(400, "a key is required: /api?key=Tom"),
        };
        match self.scores.get(&key) {
            Ok(Some(score)) => bytes(200, "application/octet-stream", score),
            Ok(None) => text(404, &format!("{key} not exist")),
            Err(error @ Error::KeyLength(_)) => text(400, &error.to_string()),
            Err(error) => text(502, &error.to_string()),
        }
    }

    fn page(&self) -> String {
        let me = self.pool.self_url();
        let mut page = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<title>geecache: {me}</title>\n\
             <h1>geecache</h1>\n<p>This is the front of the node {me}.</p>\n\
             <h2>What can be asked</h2>\n<ul>\n"
        );
        for key in ["Tom", "Jack", "Sam", "user:00000042", "kkk"] {
            let owner = self.pool.owner(key);
            let _ = writeln!(
                page,
                "<li><a href=\"/api?key={key}\">/api?key={key}</a>, owned by {owner}"
            );
        }
        page += "</ul>\n<h2>The nodes</h2>\n<ul>\n";
        for node in self.pool.ring().nodes() {
            let note = if node == me { " (this one)" } else { "" };
            let _ = writeln!(page, "<li>{node}{note}: <a href=\"{node}/metrics\">metrics</a>");
        }
        page + "</ul>\n</html>\n"
    }
}

/// The key in a query, if there is one. (`form_urlencoded` would replace what is not UTF-8, and
/// so ask for another key.)
fn key_in(query: &str) -> Option<Result<String, Utf8Error>> {
    let key = query.split('&').find_map(|pair| pair.strip_prefix("key="))?.replace('+', " ");
    Some(percent_decode_str(&key).decode_utf8().map(String::from))
}

fn text(code: u16, text: &str) -> ResponseBox {
    bytes(code, "text/plain; charset=utf-8", text.to_string())
}

fn bytes(code: u16, kind: &str, body: impl AsRef<[u8]> + Send + 'static) -> ResponseBox {
    let length = body.as_ref().len();
    let headers = vec![header("Content-Type", kind)];
    Response::new(StatusCode(code), headers, Cursor::new(body), Some(length), None)
        .with_chunked_threshold(usize::MAX)
        .boxed()
}

fn header(name: &str, value: &str) -> Header {
    Header::from_bytes(name, value).expect("headers are ASCII")
}
