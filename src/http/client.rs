//! `HttpGetter`: asks one peer, blocking, with a deadline.
//!
//! What may a question to a peer cost at the worst? [`PoolOptions::timeout`], once: the whole
//! exchange has one deadline, connections are kept between questions, and a peer that failed
//! is left alone for a while (see [`cooldown`](super::cooldown)).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use log::{info, warn};
use ureq::Agent;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use super::PoolOptions;
use super::cooldown::Cooldown;
use super::wire;
use crate::clock::Clock;
use crate::{Loaded, PeerError, PeerGetter};

/// Asks the peer at one base URL.
#[doc(alias = "httpGetter")]
pub(crate) struct HttpGetter {
    /// As it is named in the list of peers, `http://host:port`.
    base_url: String,
    agent: Agent,
    addresses: Addresses,
    cooldown: Cooldown,
    clock: Clock,
    options: Arc<PoolOptions>,
}

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
            .accept_encoding("")
            .build();
        let addresses = Addresses::default();
        Self {
            agent: Agent::with_parts(config, DefaultConnector::new(), addresses.clone()),
            base_url,
            addresses,
            cooldown: Cooldown::default(),
            clock: Clock::real(),
            options,
        }
    }

    /// Whether the peer answered last time, or was never asked.
    pub(crate) fn is_well(&self) -> bool {
        self.cooldown.is_well()
    }

    fn ask(&self, group: &str, key: &str) -> Result<Option<Loaded>, PeerError> {
        let url = format!("{}{}", self.base_url, wire::path(&self.options.base_path, group, key));
        let mut request = self.agent.get(url);
        if let Some(token) = &self.options.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let mut answer = request.call().map_err(|error| self.failure(error))?;
        let status = answer.status().as_u16();
        let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let ttl = header(wire::TTL_MS).and_then(wire::ttl_from_header);
        let is_absent = header(wire::RESULT) == Some(wire::ABSENT);
        let limit = self.options.max_value_bytes;
        let body = answer.body_mut();
        match status {
            200 if body.content_length().is_some_and(|length| length > limit) => {
                Err(PeerError::TooLarge { limit })
            }
            200 => {
                // One more than the limit, to tell a value of just that size from a larger one.
                let value = body.with_config().limit(limit + 1).read_to_vec();
                Ok(Some(Loaded { value: value.map_err(|error| self.failure(error))?, ttl }))
            }
            404 if is_absent => {
                // An empty body; reading it gives the connection back.
                let _ = body.with_config().limit(1 << 10).read_to_vec();
                Ok(None)
            }
            code => {
                let text = body.with_config().limit(1 << 10).lossy_utf8(true).read_to_string();
                Err(PeerError::Status { code, text: text.unwrap_or_default().trim_end().into() })
            }
        }
    }

    fn failure(&self, error: ureq::Error) -> PeerError {
        match error {
            ureq::Error::Timeout(_) => PeerError::Timeout,
            ureq::Error::BodyExceedsLimit(_) => {
                PeerError::TooLarge { limit: self.options.max_value_bytes }
            }
            error => PeerError::Transport(error.to_string()),
        }
    }
}

impl PeerGetter for HttpGetter {
    fn name(&self) -> &str {
        &self.base_url
    }

    fn get(&self, group: &str, key: &str) -> Result<Option<Loaded>, PeerError> {
        let attempt = self.cooldown.attempt(self.clock.now()).ok_or(PeerError::CoolingDown)?;
        let was_well = self.cooldown.is_well();
        let answer = self.ask(group, key);
        match &answer {
            Err(error) if error.is_transport() => {
                self.addresses.forget();
                if let Some(pause) = attempt.failed(self.clock.now()) {
                    warn!("peer {}: {error}; not asked again for {pause:?}", self.base_url);
                }
            }
            _ => {
                attempt.succeeded();
                if !was_well {
                    info!("peer {}: answers again", self.base_url);
                }
            }
        }
        answer
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

/// The longest that any part of the defaults lets a caller wait for a peer.
pub(super) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3);
