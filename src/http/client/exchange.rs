//! `Exchange`: one request to one peer, one answer.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use ureq::http::Response;
use ureq::{Agent, Body, RequestBuilder};

use super::transport::{self, Addresses};
use crate::http::frame::{self, Heard};
use crate::http::wire;
use crate::{Loaded, PeerError, PoolOptions};

/// What a peer says about one key.
pub(super) type Answer = Result<Option<Loaded>, PeerError>;

/// Asks the peer at one base URL. Each call is one request, and ends with its `timeout`.
pub(super) struct Exchange {
    /// As it is named in the list of peers, like `http://host:port`.
    base_url: String,
    agent: Agent,
    addresses: Addresses,
    options: Arc<PoolOptions>,
}

impl Exchange {
    pub(super) fn new(base_url: String, options: Arc<PoolOptions>) -> Self {
        let (agent, addresses) = transport::agent(&options);
        Self { base_url, agent, addresses, options }
    }

    pub(super) fn base_url(&self) -> &str {
        &self.base_url
    }

    /// The next request looks the peer's name up again.
    pub(super) fn forget_addresses(&self) {
        self.addresses.forget();
    }

    /// Asks for one key.
    pub(super) fn get(&self, group: &str, key: &str, timeout: Duration) -> Answer {
        let url = self.url(&wire::path(&self.options.base_path, group, key));
        let request = self.with_token(self.agent.get(url));
        let request = request.config().timeout_global(Some(timeout)).build();
        let mut answer = request.call().map_err(failure)?;
        let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let ttl = header(wire::TTL_MS).and_then(wire::ttl_from_header);
        let is_absent = header(wire::RESULT) == Some(wire::ABSENT);
        match answer.status().as_u16() {
            200 => {
                let value = body(&mut answer, self.options.max_value_bytes)?;
                Ok(Some(Loaded { value, ttl }))
            }
            404 if is_absent => {
                // An empty body; reading it gives the connection back.
                let _ = body(&mut answer, 0);
                Ok(None)
            }
            _ => Err(status(&mut answer)),
        }
    }

    /// Asks for several keys; with `only_cached`, for those that the peer has in its caches. `None`
    /// for the keys that are to be asked for singly; [`PeerError::Unsupported`] if the peer knows no
    /// batches, as a Go node.
    pub(super) fn get_batch(
        &self,
        group: &str,
        keys: &[impl AsRef<str>],
        only_cached: bool,
        timeout: Duration,
    ) -> Result<Vec<Option<Answer>>, PeerError> {
        let url = self.url(&wire::group_path(&self.options.base_path, group));
        let mut request = self.with_token(self.agent.post(url)).content_type(wire::BATCH_TYPE);
        if only_cached {
            request = request.header("Cache-Control", wire::ONLY_IF_CACHED);
        }
        let request = request.config().timeout_global(Some(timeout)).build();
        let answer = request.send(&frame::write_question(keys)[..]);
        let mut answer = answer.map_err(failure)?;
        let is_batch = answer.body().mime_type() == Some(wire::BATCH_TYPE);
        match answer.status().as_u16() {
            200 if is_batch => {
                let body = body(&mut answer, frame::MAX_ANSWER_BYTES as u64)?;
                let heard = frame::read_answer(&body, keys.len());
                let heard =
                    heard.map_err(|w| PeerError::Transport(format!("a malformed batch: {w}")))?;
                Ok(heard.into_iter().map(|heard| self.answer_of(heard)).collect())
            }
            // As Go's servers answer a POST, each in its way; but not one of ours without the group.
            200 | 400 | 404 | 405 | 500 | 501 if !answer.headers().contains_key(wire::ERROR) => {
                let _ = status(&mut answer); // reading it gives the connection back
                Err(PeerError::Unsupported)
            }
            _ => Err(status(&mut answer)),
        }
    }

    fn answer_of(&self, heard: Heard) -> Option<Answer> {
        let limit = self.options.max_value_bytes;
        match heard {
            Heard::Value(loaded) if loaded.value.len() as u64 > limit => {
                Some(Err(PeerError::TooLarge { limit }))
            }
            Heard::Value(loaded) => Some(Ok(Some(loaded))),
            Heard::Absent => Some(Ok(None)),
            Heard::Failed(text) => Some(Err(PeerError::Status { code: 502, text })),
            Heard::NotHere => None,
        }
    }

    /// Tells the peer to remove a key, or all of a group.
    pub(super) fn remove(&self, group: &str, key: Option<&str>) -> Result<(), PeerError> {
        let path = match key {
            Some(key) => wire::path(&self.options.base_path, group, key),
            None => wire::group_path(&self.options.base_path, group),
        };
        let request = self.with_token(self.agent.delete(self.url(&path)));
        let mut answer = request.call().map_err(failure)?;
        match answer.status().as_u16() {
            204 => Ok(()),
            _ => Err(status(&mut answer)),
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base_url)
    }

    fn with_token<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
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

/// An unexpected status, with the start of its text.
fn status(answer: &mut Response<Body>) -> PeerError {
    let mut text = Vec::new();
    let _ = answer.body_mut().as_reader().take(frame::MAX_TEXT_BYTES as u64).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).trim_end().into();
    PeerError::Status { code: answer.status().as_u16(), text }
}
