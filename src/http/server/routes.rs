//! `Routes`: which question gets which answer.
//!
//! The other end of [`client`](crate::http::client); `guide::protocol` has the protocol as a table.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tiny_http::{Method, Request, ResponseBox};

use super::queue::Queue;
use super::reply::{bytes, header, text};
use super::request::{Question, first};
use crate::group::Told;
use crate::http::frame::Wanted;
use crate::http::options::ServerOptions;
use crate::http::{frame, wire};
use crate::metrics::{family, prometheus};
use crate::{Error, Group};

const PROMETHEUS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) struct Routes {
    tokens: Vec<String>,
    groups: HashMap<String, Arc<Group>>,
    /// The questions that wait for a worker, for `/metrics`.
    pub(super) queue: Arc<Queue<Question>>,
}

/// The keys that a peer asks for. The group may have to load them.
enum Gets<'r> {
    One(&'r Group, String),
    Many(&'r Group, Vec<&'r str>),
}

impl Routes {
    pub(super) fn new(
        groups: HashMap<String, Arc<Group>>,
        options: &ServerOptions,
        longest_wait: Option<Duration>,
    ) -> Self {
        let queue = Arc::new(Queue::new(options.workers, options.queue, longest_wait));
        Self { tokens: options.tokens.clone(), groups, queue }
    }

    /// The answer. `None` if it may wait for the origin, and the caller must not; all other answers take no
    /// longer than some tens of microseconds.
    pub(super) fn answer(
        &self,
        request: &Request,
        body: &[u8],
        may_wait: bool,
    ) -> Option<ResponseBox> {
        Some(match self.route(request, body) {
            Err(answer) => answer,
            Ok(Gets::One(group, key)) if may_wait => answer_get(group, &key),
            Ok(Gets::Many(group, keys)) if may_wait => batch(&group.answer_batch(&keys)),
            Ok(Gets::One(group, key)) => match group.answer_peer_cached(&key).ok()? {
                Told::NotCached => return None,
                told => answer_of(told),
            },
            Ok(Gets::Many(group, keys)) if group.has_cached(&keys) => {
                batch(&group.answer_batch_cached(&keys, |_| true))
            }
            Ok(Gets::Many(..)) => return None,
        })
    }

    /// The keys that may have to be loaded; or the answer, to any other request. A removal has been done by
    /// then.
    fn route<'r>(&'r self, request: &Request, body: &'r [u8]) -> Result<Gets<'r>, ResponseBox> {
        // A page of another site, in a browser on this network.
        if first(request, "Origin").is_some() {
            return Err(text(403, "this port is for peers, and not for browsers"));
        }
        let path = request.url().split('?').next().unwrap_or_default();
        match path.strip_prefix(wire::BASE_PATH) {
            Some(_) if !self.may_ask(request) => {
                Err(text(401, "a token is required")
                    .with_header(header("WWW-Authenticate", "Bearer")))
            }
            Some(rest) => self.route_peer(request, rest, body),
            None => Err(match (path, request.method()) {
                ("/healthz" | "/metrics", method)
                    if !matches!(method, Method::Get | Method::Head) =>
                {
                    not_allowed("GET, HEAD")
                }
                ("/healthz", _) => text(200, "ok"),
                ("/metrics", _) => {
                    bytes(200, self.metrics()).with_header(header("Content-Type", PROMETHEUS_TYPE))
                }
                _ => text(404, "no such page"),
            }),
        }
    }

    fn route_peer<'r>(
        &'r self,
        request: &Request,
        path: &str,
        body: &'r [u8],
    ) -> Result<Gets<'r>, ResponseBox> {
        let (group, key) = wire::parse(path).map_err(|what| text(400, what))?;
        let check = first(request, wire::KEY_CHECK);
        if check.is_some() && check != key.as_deref().and_then(wire::check_of).as_deref() {
            return Err(text(400, "the key was changed on its way"));
        }
        let Some(group) = self.groups.get(&group) else {
            return Err(text(404, format!("no such group: {}", group.escape_debug()))
                .with_header(header(wire::ERROR, wire::NO_GROUP)));
        };
        Err(match (request.method(), key) {
            (Method::Get, Some(key)) => return Ok(Gets::One(group, key)),
            // While the origin is slow, all workers may wait for it: that must not keep old values.
            (Method::Delete, Some(key)) => match group.answer_removal(&key) {
                Ok(()) => bytes(204, ""),
                Err(error) => text(400, error),
            },
            (Method::Delete, None) => {
                group.answer_clear();
                bytes(204, "")
            }
            (Method::Post, None) => {
                let question = frame::read_question(body).map_err(|what| text(400, what))?;
                match question {
                    (keys, Wanted::All) => return Ok(Gets::Many(group, keys)),
                    (keys, Wanted::Cached) => {
                        let fit = frame::cached_budget(keys.len());
                        batch(&group.answer_batch_cached(&keys, fit))
                    }
                }
            }
            (Method::Get, None) => text(400, "a key is required: {group}/{key}"),
            (_, Some(_)) => not_allowed("GET, DELETE"),
            (_, None) => not_allowed("POST, DELETE"),
        })
    }

    fn may_ask(&self, request: &Request) -> bool {
        let sent = first(request, "Authorization").and_then(|sent| sent.split_once(' '));
        let sent = sent.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Bearer"));
        let is_sent = |token: &String| {
            sent.is_some_and(|(_, sent)| are_equal(sent.trim().as_bytes(), token.as_bytes()))
        };
        // Each is looked at, so that the time does not tell which one it is.
        let matches = self.tokens.iter().filter(|token| is_sent(token)).count();
        self.tokens.is_empty() || matches > 0
    }

    pub(super) fn metrics(&self) -> String {
        let mut text = prometheus(self.groups.values().map(|group| (group.name(), group.stats())));
        let waiting = [("", self.queue.waiting() as u64)];
        family(&mut text, "geecache_queued_requests", "Requests that wait for a worker.", waiting);
        let shed = [("", self.queue.shed.load(Ordering::Relaxed))];
        family(&mut text, "geecache_shed_total", "Requests refused with 503.", shed);
        text
    }
}

fn not_allowed(allowed: &str) -> ResponseBox {
    text(405, "not allowed here").with_header(header("Allow", allowed))
}

fn answer_get(group: &Group, key: &str) -> ResponseBox {
    match group.answer_peer_traced(key) {
        Ok((told, was_cached)) if was_cached => answer_of(told),
        Ok((told, _)) => answer_of(told).with_header(header(wire::CACHE, wire::MISS)),
        Err(error @ Error::KeyLength(_)) => text(400, error),
        Err(error) => text(502, error).with_header(header(wire::ERROR, wire::LOAD_FAILED)),
    }
}

fn answer_of(told: Told) -> ResponseBox {
    let value = |value| bytes(200, value).with_header(header("Content-Type", wire::VALUE_TYPE));
    // Rounded down, so that no copy lives too long.
    let ttl = |ttl: Duration| header(wire::TTL_MS, &ttl.as_millis().to_string());
    match told {
        Told::Value(bytes, None) => value(bytes),
        Told::Value(bytes, Some(left)) => value(bytes).with_header(ttl(left)),
        Told::Absent => bytes(404, "").with_header(header(wire::RESULT, wire::ABSENT)),
        Told::NotCached => text(502, "not cached"),
    }
}

fn batch(answers: &[Result<Told, Error>]) -> ResponseBox {
    bytes(200, frame::write_answer(answers)).with_header(header("Content-Type", wire::BATCH_TYPE))
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
