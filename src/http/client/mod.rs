//! `HttpGetter`: asks one peer, blocking, with a deadline.
//!
//! What may a question to a peer cost at the worst? [`PoolOptions::timeout`], once: the whole
//! exchange has one deadline, connections are kept between questions, and a peer that failed
//! is left alone for a while (see [`cooldown`](cooldown)).

mod combine;
mod cooldown;
#[cfg(feature = "tls")]
pub(super) mod tls;
mod transport;

use std::io::Read;
use std::iter::zip;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use log::{info, warn};
use ureq::config::Config;
use ureq::http::{Response, Uri};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Connector, NextTimeout, TcpConnector};
use ureq::{Agent, Body, RequestBuilder};

use self::combine::Combine;
use self::cooldown::Cooldown;
use self::transport::{Holding, Sparing};
use super::PoolOptions;
use super::frame::{self, Heard};
use super::wire;
use crate::clock::Clock;
use crate::{Loaded, PeerError, PeerGetter};

/// Asks the peer at one base URL.
#[doc(alias = "httpGetter")]
pub(crate) struct HttpGetter {
    /// As it is named in the list of peers, like `http://host:port`.
    base_url: String,
    agent: Agent,
    addresses: Addresses,
    cooldown: Cooldown,
    combine: Combine<Answer>,
    // Guards since when the peer is known to have no batches, as a Go node.
    no_batches: Mutex<Option<Duration>>,
    clock: Clock,
    options: Arc<PoolOptions>,
}

type Answer = Result<Option<Loaded>, PeerError>;

/// After this time a peer that knew no batches is tried again: it may have been replaced.
const TRY_BATCHES_AGAIN: Duration = Duration::from_secs(60);

impl HttpGetter {
    pub(crate) fn new(base_url: String, options: Arc<PoolOptions>) -> Self {
        let config = Agent::config_builder()
            .timeout_connect(Some(options.connect_timeout))
            .timeout_global(Some(options.timeout))
            .max_idle_connections(options.max_idle_connections)
            .max_idle_connections_per_host(options.max_idle_connections)
            .http_status_as_error(false)
            // What the environment says of proxies is not meant for peers, and an answer that
            // points elsewhere is not a peer's.
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent("geecache")
            .accept("")
            .accept_encoding("");
        #[cfg(feature = "tls")]
        let config = config.tls_config(
            tls::config(options.root_certificates.as_deref()).expect("the pool checks it"),
        );
        let addresses = Addresses::default();
        let step = options.timeout / 16 + Duration::from_nanos(1); // never zero
        let connector = ().chain(TcpConnector::default()).chain(Sparing { step });
        // Outside of what spares system calls: those are the socket's.
        #[cfg(feature = "tls")]
        let connector = connector.chain(ureq::unversioned::transport::RustlsConnector::default());
        let connector = connector.chain(Holding);
        Self {
            agent: Agent::with_parts(config.build(), connector, addresses.clone()),
            base_url,
            addresses,
            cooldown: Cooldown::default(),
            combine: Combine::new(),
            no_batches: Mutex::default(),
            clock: Clock::real(),
            options,
        }
    }

    /// Asks for one key by a request of its own.
    fn ask(&self, group: &str, key: &str, end: Duration) -> Answer {
        self.in_time(end, |left| self.ask_one(group, key, left))
    }

    fn ask_one(&self, group: &str, key: &str, timeout: Duration) -> Answer {
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

    /// Asks for several keys by one request. `None` for those that are to be asked for singly:
    /// all of them, where the peer knows no batches.
    fn ask_batch(
        &self,
        group: &str,
        keys: &[impl AsRef<str>],
        only_cached: bool,
        end: Duration,
    ) -> Result<Vec<Option<Answer>>, PeerError> {
        self.in_time(end, |left| self.ask_many(group, keys, only_cached, left))
    }

    fn ask_many(
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
                *self.no_batches.lock().unwrap() = Some(self.clock.now());
                Ok(keys.iter().map(|_| None).collect())
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

    fn knows_batches(&self) -> bool {
        let since = *self.no_batches.lock().unwrap();
        since.is_none_or(|since| self.clock.now() >= since + TRY_BATCHES_AGAIN)
    }

    fn delete(&self, path: &str) -> Result<(), PeerError> {
        let request = self.with_token(self.agent.delete(self.url(path)));
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

    /// When a question that begins now is to end.
    fn end(&self) -> Duration {
        self.clock.now() + self.options.timeout
    }

    /// Asks with what is left of the caller's time. One that began late and ran out of it says
    /// nothing of the peer: who has waited for others, or asks for one key after the other, may
    /// leave it a moment only.
    fn in_time<T>(
        &self,
        end: Duration,
        ask: impl FnOnce(Duration) -> Result<T, PeerError>,
    ) -> Result<T, PeerError> {
        let left = end.saturating_sub(self.clock.now());
        if left.is_zero() {
            return Err(PeerError::NoTimeLeft);
        }
        ask(left).map_err(|error| match error {
            PeerError::Timeout if left < self.options.timeout / 2 => PeerError::NoTimeLeft,
            error => error,
        })
    }

    /// Asks, unless the peer is cooling down, and notes whether it could be reached.
    fn reach<T>(&self, ask: impl FnOnce() -> Result<T, PeerError>) -> Result<T, PeerError> {
        let attempt = self.cooldown.attempt(self.clock.now()).ok_or(PeerError::CoolingDown)?;
        let answer = ask();
        match &answer {
            Err(error) if error.is_transport() => {
                self.addresses.forget();
                if let Some(pause) = attempt.failed(self.clock.now()) {
                    warn!("peer {}: {error}; not asked again for {pause:?}", self.base_url);
                }
            }
            // Nobody asked it, or not for long, so nobody knows; no answer is taken for one.
            Err(PeerError::NoTimeLeft) => drop(attempt),
            _ => {
                if attempt.succeeded() {
                    info!("peer {}: answers again", self.base_url);
                }
            }
        }
        answer
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

/// An answer that is none, with the beginning of its text.
fn status(answer: &mut Response<Body>) -> PeerError {
    let mut text = Vec::new();
    let _ = answer.body_mut().as_reader().take(frame::MAX_TEXT_BYTES as u64).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).trim_end().into();
    PeerError::Status { code: answer.status().as_u16(), text }
}

impl PeerGetter for HttpGetter {
    fn name(&self) -> &str {
        &self.base_url
    }

    fn get(&self, group: &str, key: &str) -> Answer {
        self.reach(|| {
            let end = self.end();
            let plain = || self.ask(group, key, end);
            if !self.options.combine || !self.knows_batches() {
                return plain();
            }
            let batch = |keys: &[String]| match self.ask_batch(group, keys, true, end) {
                // The others may have more time left than who leads.
                Err(PeerError::NoTimeLeft) => Ok(keys.iter().map(|_| None).collect()),
                Err(error) if !error.is_transport() => {
                    Ok(keys.iter().map(|_| Some(Err(error.clone()))).collect())
                }
                answers => answers.map_err(Err),
            };
            let answer =
                self.combine.get(group, key, self.options.timeout, frame::fit, batch, plain);
            answer.unwrap_or(Err(PeerError::NoTimeLeft))
        })
    }

    fn get_many(&self, group: &str, keys: &[&str]) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(keys.len());
        while answers.len() < keys.len() {
            let rest = &keys[answers.len()..];
            let part = &rest[..frame::fitting(rest)];
            // One deadline for the part, also where its keys are asked for singly.
            let end = self.end();
            let asked = match self.knows_batches() {
                true => self.reach(|| self.ask_batch(group, part, false, end)),
                false => Ok(part.iter().map(|_| None).collect()),
            };
            match asked {
                Err(error) => answers.extend(part.iter().map(|_| Err(error.clone()))),
                Ok(asked) => answers.extend(zip(part, asked).map(|(key, answer)| {
                    answer.unwrap_or_else(|| self.reach(|| self.ask(group, key, end)))
                })),
            }
        }
        answers
    }

    fn is_up(&self) -> bool {
        self.cooldown.is_well()
    }

    fn remove(&self, group: &str, key: &str) -> Result<(), PeerError> {
        // Also of a peer that cools down: a removal that is not even tried leaves an old value.
        self.delete(&wire::path(&self.options.base_path, group, key))
    }

    fn clear(&self, group: &str) -> Result<(), PeerError> {
        self.delete(&wire::group_path(&self.options.base_path, group))
    }
}

/// The peer's addresses, looked up once and again after a failure.
///
/// ureq's own resolver starts a thread for each request that has a deadline, kept-alive
/// connections and numeric addresses included; that costs more than the request.
#[derive(Clone, Debug, Default)]
struct Addresses {
    // Guards what was looked up last. Not held during a look-up.
    known: Arc<Mutex<Option<Vec<std::net::SocketAddr>>>>,
}

impl Addresses {
    fn forget(&self) {
        *self.known.lock().unwrap() = None;
    }
}

impl Resolver for Addresses {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut addresses = self.empty();
        if let Some(known) = &*self.known.lock().unwrap() {
            known.iter().for_each(|&address| addresses.push(address));
            return Ok(addresses);
        }
        let mut found = DefaultResolver::default().resolve(uri, config, timeout)?.to_vec();
        // IPv4 first, where a node called `localhost` listens first.
        found.sort_by_key(|address| address.is_ipv6());
        found.iter().for_each(|&address| addresses.push(address));
        *self.known.lock().unwrap() = Some(found);
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_began_late_says_nothing_of_the_peer() {
        let getter = HttpGetter::new("http://localhost:1".into(), Arc::default());
        let getter = HttpGetter { clock: Clock::by_hand(), ..getter };
        let end = getter.end();
        let ask = || getter.in_time(end, |_| Err::<(), _>(PeerError::Timeout));
        assert_eq!(ask(), Err(PeerError::Timeout));
        getter.clock.advance(getter.options.timeout / 2);
        assert_eq!(ask(), Err(PeerError::Timeout));
        getter.clock.advance(Duration::from_millis(1));
        assert_eq!(ask(), Err(PeerError::NoTimeLeft));
        let refused = Err::<(), _>(PeerError::Transport("refused".into()));
        assert_eq!(getter.in_time(end, |_| refused.clone()), refused, "that is found out at once");
    }
}
