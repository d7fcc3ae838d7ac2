//! The front: what people and programs ask, as against peers.
//!
//! `/` is the page, and `page.rs` what it asks for; `/api` is for programs.

use std::io::Cursor;
use std::str::Utf8Error;
use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine};
use geecache::tiny_http::{Header, Method, Request, Response, ResponseBox, StatusCode};
use geecache::{ByteView, Error, Group};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use crate::page::{POLICY, Page};
use crate::visitors::Visitors;

pub(crate) struct Front {
    pub(crate) scores: Arc<Group>,
    pub(crate) page: Page,
    pub(crate) visitors: Visitors,
}

impl Front {
    /// Answers that wait neither for the database nor for another node need no worker: the page has them
    /// while all workers are busy, too.
    pub(crate) fn answer(&self, request: &Request, may_wait: bool) -> Option<ResponseBox> {
        let path = request.url().split('?').next().unwrap_or_default();
        let waits = ["/api", "/api/ring", "/api/trace"].contains(&path);
        let answer =
            || self.visitors.refusal(request).unwrap_or_else(|| self.answer_visitor(request));
        (may_wait || !waits).then(answer)
    }

    fn answer_visitor(&self, request: &Request) -> ResponseBox {
        let (path, query) = request.url().split_once('?').unwrap_or((request.url(), ""));
        let is_get = matches!(request.method(), Method::Get | Method::Head);
        match path {
            "/api" if is_get => self.scores(query),
            "/api" if *request.method() == Method::Delete => self.removal(query),
            "/api" => text(405, "ask by GET, remove by DELETE")
                .with_header(header("Allow", "GET, HEAD, DELETE")),
            _ if !is_get => text(405, "ask by GET").with_header(header("Allow", "GET, HEAD")),
            "/api/ring" => json(&self.page.ring()),
            "/api/status" => self.status(),
            "/api/trace" => self.trace(query),
            _ => match Page::file(path) {
                Some((kind, file)) => {
                    bytes(200, kind, file).with_header(header("Content-Security-Policy", POLICY))
                }
                None => text(404, "no such page; / is one, and node --help tells the others"),
            },
        }
    }

    /// Without a length: its body waits, so it is read on a thread of its own.
    fn status(&self) -> ResponseBox {
        let kind = header("Content-Type", "application/json");
        let headers = vec![kind, header("Cache-Control", "no-store")];
        Response::new(StatusCode(200), headers, self.page.status(), None, None).boxed()
    }

    fn scores(&self, query: &str) -> ResponseBox {
        match values_in(query, "key") {
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
        json(&object.into())
    }

    fn removal(&self, query: &str) -> ResponseBox {
        let keys = values_in(query, "key");
        let Some([key]) = keys.as_deref().ok() else {
            return text(400, "one key is required: /api?key=Tom");
        };
        match self.scores.remove(key) {
            Ok(()) => Response::empty(204).boxed(),
            Err(error) => refusal(&error),
        }
    }

    fn trace(&self, query: &str) -> ResponseBox {
        let (keys, nodes) = (values_in(query, "key"), values_in(query, "node"));
        match (keys.as_deref(), nodes.as_deref()) {
            (Ok([key]), Ok([node])) if !self.page.is_of(node) => {
                match self.page.trace_at(node, key) {
                    Ok(trace) => json_text(trace),
                    Err(why) => text(502, &why),
                }
            }
            (Ok([key]), Ok([] | [_])) => match self.page.trace(key) {
                Ok(trace) => json(&trace),
                Err(error) => refusal(&error),
            },
            _ => text(400, "one key is required, and one node at the most: /api/trace?key=Tom"),
        }
    }
}

/// The values that a query has for `name`. (`form_urlencoded` would replace what is not UTF-8,
/// and so ask for another key.)
fn values_in(query: &str, name: &str) -> Result<Vec<String>, Utf8Error> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let values = pairs.filter(|(n, _)| *n == name).map(|(_, value)| value.replace('+', " "));
    values.map(|value| percent_decode_str(&value).decode_utf8().map(String::from)).collect()
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

fn json(value: &Value) -> ResponseBox {
    json_text(value.to_string())
}

fn json_text(text: String) -> ResponseBox {
    bytes(200, "application/json", text + "\n").with_header(header("Cache-Control", "no-store"))
}

pub(crate) fn text(code: u16, text: &str) -> ResponseBox {
    bytes(code, "text/plain; charset=utf-8", text.to_string())
}

fn bytes(code: u16, kind: &str, body: impl AsRef<[u8]> + Send + 'static) -> ResponseBox {
    let length = body.as_ref().len();
    // The type is what we say it is: no value may pass for a page.
    let headers = vec![header("Content-Type", kind), header("X-Content-Type-Options", "nosniff")];
    Response::new(StatusCode(code), headers, Cursor::new(body), Some(length), None)
        .with_chunked_threshold(usize::MAX)
        .boxed()
}

fn header(name: &str, value: &str) -> Header {
    Header::from_bytes(name, value).expect("headers are ASCII")
}
