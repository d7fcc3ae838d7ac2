//! The front: what people and programs ask, as against peers.

use std::fmt::Write;
use std::io::Cursor;
use std::str::Utf8Error;
use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine};
use geecache::tiny_http::{Header, Method, Request, Response, ResponseBox, StatusCode};
use geecache::{ByteView, Error, Group, HttpPool};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

pub(crate) struct Front {
    pub(crate) scores: Arc<Group>,
    pub(crate) pool: Arc<HttpPool>,
}

impl Front {
    pub(crate) fn answer(&self, request: &Request) -> ResponseBox {
        let (path, query) = request.url().split_once('?').unwrap_or((request.url(), ""));
        let is_get = matches!(request.method(), Method::Get | Method::Head);
        match path {
            "/" if is_get => bytes(200, "text/html; charset=utf-8", self.page()),
            "/api" if is_get => self.scores(query),
            "/api" if *request.method() == Method::Delete => self.removal(query),
            "/" => text(405, "ask by GET").with_header(header("Allow", "GET, HEAD")),
            "/api" => text(405, "ask by GET, remove by DELETE")
                .with_header(header("Allow", "GET, HEAD, DELETE")),
            _ => text(404, "no such page; / says what can be asked"),
        }
    }

    fn scores(&self, query: &str) -> ResponseBox {
        match keys_in(query) {
            Ok(keys) => match &keys[..] {
                [] => text(400, "a key is required: /api?key=Tom"),
                [key] => self.score(key),
                keys => self.batch(keys),
            },
            Err(_) => text(400, "a key is not UTF-8"),
        }
    }

    fn score(&self, key: &str) -> ResponseBox {
        match self.scores.get(key) {
            Ok(Some(score)) => bytes(200, "application/octet-stream", score),
            Ok(None) => text(404, &format!("{key} not exist")),
            Err(error) => refusal(&error),
        }
    }

    fn batch(&self, keys: &[String]) -> ResponseBox {
        let texts: Vec<&str> = keys.iter().map(String::as_str).collect();
        let scores = self.scores.get_many(&texts).into_iter().map(as_json);
        let object: Map<_, _> = keys.iter().cloned().zip(scores).collect();
        bytes(200, "application/json", format!("{}\n", Value::from(object)))
    }

    fn removal(&self, query: &str) -> ResponseBox {
        let keys = keys_in(query);
        let Some([key]) = keys.as_deref().ok() else {
            return text(400, "one key is required: /api?key=Tom");
        };
        match self.scores.remove(key) {
            Ok(()) => Response::empty(204).boxed(),
            Err(error) => refusal(&error),
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
        page += "<li><a href=\"/api?key=Tom&amp;key=Jack&amp;key=kkk\">\
                 /api?key=Tom&amp;key=Jack&amp;key=kkk</a>, a JSON object: null where there is no \
                 such key, {\"base64\":…} where a value is not UTF-8, {\"error\":…} where it could \
                 not be found out</li>\n\
                 <li>DELETE /api?key=Tom, which removes the key from all nodes: 204, or 502 with \
                 those that it did not reach</li>\n\
                 </ul>\n<h2>The nodes</h2>\n<ul>\n";
        for node in self.pool.ring().nodes() {
            let note = if node == me { " (this one)" } else { "" };
            let _ = writeln!(page, "<li>{node}{note}: <a href=\"{node}/metrics\">metrics</a>");
        }
        page + "</ul>\n</html>\n"
    }
}

/// The keys in a query. (`form_urlencoded` would replace what is not UTF-8, and so ask for
/// another key.)
fn keys_in(query: &str) -> Result<Vec<String>, Utf8Error> {
    let keys = query.split('&').filter_map(|pair| pair.strip_prefix("key="));
    let decode =
        |key: &str| percent_decode_str(&key.replace('+', " ")).decode_utf8().map(String::from);
    keys.map(decode).collect()
}

fn as_json(score: Result<Option<ByteView>, Error>) -> Value {
    match score {
        Ok(Some(score)) => match str::from_utf8(&score) {
            Ok(text) => text.into(),
            Err(_) => json!({ "base64": BASE64_STANDARD.encode(&score) }),
        },
        Ok(None) => Value::Null,
        Err(error) => json!({ "error": error.to_string() }),
    }
}

fn refusal(error: &Error) -> ResponseBox {
    let code = if matches!(error, Error::KeyLength(_)) { 400 } else { 502 };
    text(code, &error.to_string())
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
