//! `Exchange`: one request to one peer, one answer.
//!
//! Two things a network does that one machine does not: it forgets connections, and it gives a peer's
//! address to a stranger. A request that fails on an old connection is sent once more, on a new one;
//! all our requests may be repeated. And an answer counts only if it is written as nodes write it.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use ureq::http::Response;
use ureq::{Agent, Body, RequestBuilder};

use super::addresses::Addresses;
use super::transport::{self, Connections};
use crate::clock::Clock;
use crate::http::frame::{self, Answer};
use crate::http::wire;
use crate::{Loaded, PeerError, PoolOptions};

/// For which keys a peer is to answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// For all.
    All,
    /// For those that it has in its caches.
    Cached,
    /// The same, and it owned them before this node.
    HandedOver,
}

impl Wanted {
    /// Tells it to the peer.
    fn tell<B>(self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match self {
            Self::All => request,
            Self::Cached => request.header("Cache-Control", wire::ONLY_IF_CACHED),
            Self::HandedOver => Self::Cached.tell(request).header(wire::HAND_OVER, "1"),
        }
    }
}

/// Asks the peer at one base URL. Each question ends with its `timeout`.
pub(super) struct Exchange {
    /// As it is named in the list of peers, like `http://host:port`.
    base_url: String,
    agent: Agent,
    idle: Arc<Connections>,
    addresses: Addresses,
    clock: Clock,
    options: Arc<PoolOptions>,
}

impl Exchange {
    pub(super) fn new(base_url: String, options: Arc<PoolOptions>, clock: Clock) -> Self {
        let (agent, idle, addresses) = transport::agent(&base_url, &options, &clock);
        Self { base_url, agent, idle, addresses, clock, options }
    }

    pub(super) fn base_url(&self) -> &str {
        &self.base_url
    }

    /// A question that began at `since` has failed. Connections that have brought nothing since then
    /// are closed, and the peer's name is looked up again.
    pub(super) fn distrust(&self, since: Duration) {
        self.idle.distrust(since);
        self.addresses.doubt();
    }

    /// Closes the connections that have been idle for too long.
    pub(super) fn sweep(&self) {
        self.idle.sweep(self.clock.now());
    }

    /// Asks for one key. Also tells whether the peer had it in its caches. Go nodes must not be asked
    /// for what they have in their caches: to them it is a question like any other.
    pub(super) fn get(
        &self,
        group: &str,
        key: &str,
        wanted: Wanted,
        timeout: Duration,
    ) -> Result<(Option<Loaded>, bool), PeerError> {
        let url = self.url(group, Some(key));
        let get = |left| wanted.tell(self.prepare(self.agent.get(&url), left)).call();
        let mut answer = self.send(timeout, get)?;
        let was_cached = header(&answer, wire::CACHE) != Some(wire::MISS);
        let nothing = if wanted == Wanted::All { wire::ABSENT } else { wire::NOT_CACHED };
        let is_nothing = header(&answer, wire::RESULT) == Some(nothing);
        match answer.status().as_u16() {
            200 => Ok((Some(self.value(&mut answer)?), was_cached)),
            404 if is_nothing => {
                // An empty body; reading it gives the connection back.
                let _ = body(&mut answer, 0);
                Ok((None, was_cached))
            }
            _ => Err(status(&mut answer)),
        }
    }

    /// The value that a `200` brings.
    fn value(&self, answer: &mut Response<Body>) -> Result<Loaded, PeerError> {
        let ttl = header(answer, wire::TTL_MS).and_then(wire::ttl_from_header);
        let stale = is_stale(answer);
        check_origin(answer, wire::VALUE_TYPE)?;
        let value = body(answer, self.options.max_value_bytes)?;
        Ok(Loaded { ttl, stale, ..value.into() })
    }

    /// Asks for several keys. `None` for the keys that are not in the answer;
    /// [`PeerError::Unsupported`] if the peer knows no batches, as a Go node.
    pub(super) fn get_batch(
        &self,
        group: &str,
        keys: &[impl AsRef<str>],
        wanted: Wanted,
        timeout: Duration,
    ) -> Result<Vec<Option<Answer>>, PeerError> {
        let url = self.url(group, None);
        let question = frame::write_question(keys);
        let mut answer = self.send(timeout, |left| {
            let request = wanted.tell(self.prepare(self.agent.post(&url), left));
            request.content_type(wire::BATCH_TYPE).send(&question[..])
        })?;
        let is_batch = answer.body().mime_type() == Some(wire::BATCH_TYPE);
        match answer.status().as_u16() {
            200 if is_batch => {
                check_origin(&answer, wire::BATCH_TYPE)?;
                let has_stale = is_stale(&answer);
                let body = body(&mut answer, frame::MAX_ANSWER_BYTES as u64)?;
                let mut answers = frame::read_answer(&body, keys.len())
                    .map_err(|w| PeerError::Transport(format!("a malformed batch: {w}")))?;
                let limit = self.options.max_value_bytes;
                for answer in answers.iter_mut().flatten() {
                    if let Ok(Some(loaded)) = answer {
                        loaded.stale = has_stale && loaded.ttl == Some(Duration::ZERO);
                        if loaded.value.len() as u64 > limit {
                            *answer = Err(PeerError::TooLarge { limit });
                        }
                    }
                }
                Ok(answers)
            }
            // As Go's servers answer a POST, each in its way; but not one of ours without the group.
            200 | 400 | 404 | 405 | 500 | 501 if header(&answer, wire::ERROR).is_none() => {
                let _ = status(&mut answer); // reading it gives the connection back
                Err(PeerError::Unsupported)
            }
            _ => Err(status(&mut answer)),
        }
    }

    /// Tells the peer to remove a key, or all of a group.
    pub(super) fn remove(
        &self,
        group: &str,
        key: Option<&str>,
        timeout: Duration,
    ) -> Result<(), PeerError> {
        let url = self.url(group, key);
        let delete = |left| self.prepare(self.agent.delete(&url), left).call();
        let mut answer = self.send(timeout, delete)?;
        match answer.status().as_u16() {
            204 => Ok(()),
            // A node without the group has nothing of it.
            404 if header(&answer, wire::ERROR) == Some(wire::NO_GROUP) => {
                let _ = status(&mut answer); // reading it gives the connection back
                Ok(())
            }
            _ => Err(status(&mut answer)),
        }
    }

    /// Sends a request, and gives the head of the answer. Once more, if the connection was an old one
    /// that the network had forgotten.
    fn send(
        &self,
        timeout: Duration,
        request: impl Fn(Duration) -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, PeerError> {
        let began = self.clock.now();
        let mut answer = request(timeout);
        if answer.as_ref().is_err_and(transport::is_stale) {
            self.idle.distrust(began);
            let left = (began + timeout).saturating_sub(self.clock.now());
            answer = request(left);
        }
        answer.map_err(failure)
    }

    fn url(&self, group: &str, key: Option<&str>) -> String {
        format!("{}{}", self.base_url, wire::path(&self.options.base_path, group, key))
    }

    /// Gives a request its deadline, and the token.
    fn prepare<B>(&self, request: RequestBuilder<B>, left: Duration) -> RequestBuilder<B> {
        let request = request.config().timeout_global(Some(left)).build();
        match &self.options.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        }
    }
}

fn failure(error: ureq::Error) -> PeerError {
    match error {
        ureq::Error::Timeout(_) => PeerError::Timeout,
        error => PeerError::Transport(error.to_string()),
    }
}

fn header<'r>(answer: &'r Response<Body>, name: &str) -> Option<&'r str> {
    answer.headers().get(name).and_then(|value| value.to_str().ok())
}

fn is_stale(answer: &Response<Body>) -> bool {
    header(answer, wire::STALE) == Some(wire::IS_STALE)
}

/// Refuses an answer that no node writes: a peer's address may have been given to another server.
fn check_origin(answer: &Response<Body>, mime_type: &str) -> Result<(), PeerError> {
    let stranger = |what: String| Err(PeerError::Stranger(what));
    match answer.body().mime_type() {
        Some(found) if found == mime_type => {}
        Some(found) => return stranger(format!("200 with the content type {found}")),
        None => return stranger("200 without a content type".into()),
    }
    let is_chunked = header(answer, "Transfer-Encoding")
        .is_some_and(|coding| coding.trim().eq_ignore_ascii_case("chunked"));
    if header(answer, "Content-Length").is_none() && !is_chunked {
        return stranger("200 without a length".into());
    }
    Ok(())
}

/// The body, if it is no longer than `limit`.
fn body(answer: &mut Response<Body>, limit: u64) -> Result<Vec<u8>, PeerError> {
    let body = answer.body_mut();
    if body.content_length().is_some_and(|length| length > limit) {
        return Err(PeerError::TooLarge { limit });
    }
    // One more than the limit, to tell a body of just that size from a larger one.
    match body.with_config().limit(limit.saturating_add(1)).read_to_vec() {
        Ok(bytes) if bytes.len() as u64 <= limit => Ok(bytes),
        Ok(_) | Err(ureq::Error::BodyExceedsLimit(_)) => Err(PeerError::TooLarge { limit }),
        Err(error) => Err(failure(error)),
    }
}

/// What a status says that is no answer, with the start of its text.
fn status(answer: &mut Response<Body>) -> PeerError {
    let code = answer.status().as_u16();
    if matches!(code, 200..400) {
        return PeerError::Stranger(format!("{code}"));
    }
    let has_failed = header(answer, wire::ERROR) == Some(wire::LOAD_FAILED);
    let mut text = Vec::new();
    let _ = answer.body_mut().as_reader().take(frame::MAX_TEXT_BYTES as u64).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).trim_end().into();
    if has_failed { PeerError::LoadFailed(text) } else { PeerError::Status { code, text } }
}
