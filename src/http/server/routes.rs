//! `Routes`: which question gets which answer.
//!
//! The other end of [`client`](crate::http::client); `lib.rs` has the protocol as a table.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tiny_http::{Method, Request, ResponseBox};

use super::reply::{bytes, header, text};
use super::request::{first, header_bytes, path_of};
use crate::group::Told;
use crate::http::{frame, wire};
use crate::metrics::{head, prometheus};
use crate::stats::Counter;
use crate::{ByteView, Error, Group};

/// The most bytes in the names and values of a header.
const MAX_HEADER_BYTES: usize = 64 << 10;

const PROMETHEUS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) struct Routes {
    pub(super) groups: HashMap<String, Arc<Group>>,
    pub(super) base_path: String,
    pub(super) token: Option<String>,
    pub(super) shed: Arc<Counter>,
}

impl Routes {
    pub(super) fn answer(&self, request: &Request, body: &[u8]) -> ResponseBox {
        if header_bytes(request) > MAX_HEADER_BYTES {
            return text(431, format!("a header has up to {MAX_HEADER_BYTES} bytes"));
        }
        let path = path_of(request);
        match path.strip_prefix(&*self.base_path) {
            Some(_) if !self.may_ask(request) => {
                text(401, "a token is required").with_header(header("WWW-Authenticate", "Bearer"))
            }
            Some(rest) => self.answer_peer(request, rest, body),
            None => match path {
                "/healthz" => text(200, "ok"),
                "/metrics" => {
                    bytes(200, self.metrics()).with_header(header("Content-Type", PROMETHEUS_TYPE))
                }
                _ => text(404, "no such page"),
            },
        }
    }

    /// The answer to a peer that asks for what the caches hold: it waits for nobody, and takes no
    /// longer than some tens of microseconds.
    pub(super) fn answer_from_caches(&self, request: &Request, body: &[u8]) -> Option<ResponseBox> {
        let path = path_of(request).strip_prefix(&*self.base_path)?;
        if !self.may_ask(request) || header_bytes(request) > MAX_HEADER_BYTES {
            return None;
        }
        let (group, key) = wire::parse(path).ok()?;
        let group = self.groups.get(&group)?;
        match (request.method(), key) {
            (Method::Get, Some(key)) if is_only_if_cached(request) => Some(hand_over(group, &key)),
            (Method::Get, Some(key)) => match group.answer_peer_cached(&key).ok()? {
                Told::Value(value, ttl) => Some(value_or_absent(Some((value, ttl)))),
                Told::Absent => Some(value_or_absent(None)),
                Told::NotCached => None,
            },
            (Method::Post, None) if is_only_if_cached(request) => {
                let keys = frame::read_question(body).ok()?;
                Some(batch_from_caches(group, &keys, request))
            }
            _ => None,
        }
    }

    fn answer_peer(&self, request: &Request, path: &str, body: &[u8]) -> ResponseBox {
        let (group, key) = match wire::parse(path) {
            Ok(parts) => parts,
            Err(what) => return text(400, what),
        };
        let Some(group) = self.groups.get(&group) else {
            return text(404, format!("no such group: {group}"))
                .with_header(header(wire::ERROR, wire::NO_GROUP));
        };
        match (request.method(), key) {
            (Method::Get, Some(key)) if is_only_if_cached(request) => hand_over(group, &key),
            (Method::Get, Some(key)) => answer_get(group, &key),
            (Method::Delete, Some(key)) => match group.answer_removal(&key) {
                Ok(()) => bytes(204, ""),
                Err(error) => text(400, error),
            },
            (Method::Delete, None) => {
                group.answer_clear();
                bytes(204, "")
            }
            (Method::Post, None) => answer_batch(group, body, request),
            (Method::Get, None) => text(400, "a key is required: {group}/{key}"),
            (_, key) => {
                let allowed = if key.is_some() { "GET, DELETE" } else { "POST, DELETE" };
                text(405, "not allowed here").with_header(header("Allow", allowed))
            }
        }
    }

    fn may_ask(&self, request: &Request) -> bool {
        let Some(token) = &self.token else { return true };
        let sent = first(request, "Authorization").and_then(|sent| sent.strip_prefix("Bearer "));
        sent.is_some_and(|sent| are_equal(sent.as_bytes(), token.as_bytes()))
    }

    fn metrics(&self) -> String {
        let mut metrics =
            prometheus(self.groups.values().map(|group| (group.name(), group.stats())));
        head(&mut metrics, "geecache_shed_total", "counter", "Requests refused with 503.");
        metrics + &format!("geecache_shed_total {}\n", self.shed.get())
    }
}

fn answer_get(group: &Group, key: &str) -> ResponseBox {
    match group.answer_peer_traced(key) {
        Ok((found, was_cached)) if was_cached => value_or_absent(found),
        Ok((found, _)) => value_or_absent(found).with_header(header(wire::CACHE, wire::MISS)),
        Err(error @ Error::KeyLength(_)) => text(400, error),
        Err(error) => text(502, error),
    }
}

/// The answer to the key's new owner. It asks nobody.
fn hand_over(group: &Group, key: &str) -> ResponseBox {
    match group.answer_handover(key) {
        Ok(None) => bytes(404, "").with_header(header(wire::RESULT, wire::NOT_CACHED)),
        Ok(found) => value_or_absent(found),
        Err(error) => text(400, error),
    }
}

fn value_or_absent(found: Option<(ByteView, Option<Duration>)>) -> ResponseBox {
    let Some((value, ttl)) = found else {
        return bytes(404, "").with_header(header(wire::RESULT, wire::ABSENT));
    };
    let answer = bytes(200, value).with_header(header("Content-Type", wire::VALUE_TYPE));
    match ttl {
        Some(ttl) => answer.with_header(header(wire::TTL_MS, &wire::ttl_to_header(ttl))),
        None => answer,
    }
}

fn answer_batch(group: &Group, body: &[u8], request: &Request) -> ResponseBox {
    match frame::read_question(body) {
        Ok(keys) if is_only_if_cached(request) => batch_from_caches(group, &keys, request),
        Ok(keys) => batch(&group.answer_batch(&keys)),
        Err(what) => text(400, what),
    }
}

fn batch_from_caches(group: &Group, keys: &[&str], request: &Request) -> ResponseBox {
    batch(&match first(request, wire::HAND_OVER) {
        Some(_) => group.answer_handover_batch(keys, frame::hand_over_budget()),
        None => group.answer_batch_cached(keys, frame::cached_budget()),
    })
}

fn batch(answers: &[Result<Told, Error>]) -> ResponseBox {
    bytes(200, frame::write_answer(answers)).with_header(header("Content-Type", wire::BATCH_TYPE))
}

fn is_only_if_cached(request: &Request) -> bool {
    request.headers().iter().any(|header| {
        header.field.equiv("Cache-Control") && header.value.as_str() == wire::ONLY_IF_CACHED
    })
}

/// Compares without telling by the time it takes how much of a guess is right.
fn are_equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len()
        && std::hint::black_box(a.iter().zip(b).fold(0, |bits, (a, b)| bits | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use super::are_equal;

    #[test]
    fn tokens_are_compared_whole() {
        assert!(are_equal(b"secret", b"secret"));
        for other in [&b"Secret"[..], b"secreT", b"secre", b"secrets", b""] {
            assert!(!are_equal(other, b"secret"));
        }
    }
}
