//! `Exchange`: one request to one peer, one answer, one deadline.
//!
//! The promise to the layer above: an answer is the peer's own, as a node has written it, or it is an
//! error. A network does three things that one machine does not:
//!
//! - It forgets connections. A request that fails on a connection that was used before is sent once
//!   more, on a new one; all our requests may be repeated.
//! - It gives a peer's address to a stranger. An answer that no node writes is not a value.
//! - Proxies and caches stand in it, which change answers. One that was packed, or kept by a cache, is
//!   a stranger's; and where something refuses batches, the peer is asked for each key by itself.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ureq::http::Response;
use ureq::http::response::Parts;
use ureq::{Agent, Body, RequestBuilder};

use super::addresses::Addresses;
use super::transport::{self, Connections};
use crate::clock::Clock;
use crate::http::frame::{self, Answer, MAX_TEXT_BYTES, Wanted};
use crate::http::wire;
use crate::{Loaded, PeerError, PoolOptions};

/// After this time a peer that refused batches is sent one again: it may have been replaced.
const TRY_BATCHES_AGAIN: Duration = Duration::from_secs(60);

/// Asks the peer at one base URL. Each question ends with its `timeout`.
pub(super) struct Exchange {
    /// As it is named in the list of peers, like `http://host:port`.
    base_url: String,
    connections: Connections,
    addresses: Addresses,
    /// Until when no batch is sent, in nanoseconds of the clock.
    no_batches_until: AtomicU64,
    clock: Clock,
    options: Arc<PoolOptions>,
}

impl Exchange {
    pub(super) fn new(base_url: String, options: Arc<PoolOptions>, clock: Clock) -> Self {
        let addresses = Addresses::of(&base_url, clock.clone());
        let connections = Connections::new(&options, addresses.clone(), clock.now());
        let no_batches_until = AtomicU64::new(0);
        Self { base_url, connections, addresses, no_batches_until, clock, options }
    }

    pub(super) fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Whether the peer may be sent batches: a Go node knows none, and a proxy may refuse them.
    pub(super) fn takes_batches(&self) -> bool {
        self.clock.now().as_nanos() >= self.no_batches_until.load(Ordering::Relaxed).into()
    }

    /// Asks for one key. Also tells whether the peer had it in its caches.
    pub(super) fn get(
        &self,
        group: &str,
        key: &str,
        timeout: Duration,
    ) -> Result<(Option<Loaded>, bool), PeerError> {
        let url = self.url(group, Some(key));
        let get = |agent: &Agent, left| self.prepare(agent.get(&url), Some(key), left).call();
        let reply = self.send(timeout, self.options.max_value_bytes, get)?;
        let was_cached = reply.header(wire::CACHE) != Some(wire::MISS);
        let millis = reply.header(wire::TTL_MS).and_then(|millis| millis.trim().parse().ok());
        let ttl = millis.map(Duration::from_millis);
        match reply.status() {
            200 if reply.is(wire::VALUE_TYPE) => {
                Ok((Some(Loaded { ttl, ..reply.body.into() }), was_cached))
            }
            404 if reply.header(wire::RESULT) == Some(wire::ABSENT) => Ok((None, was_cached)),
            _ => Err(reply.error()),
        }
    }

    /// Asks for several keys. `None` for the keys that are not in the answer;
    /// [`PeerError::Unsupported`] if the peer takes no batches.
    pub(super) fn get_batch(
        &self,
        group: &str,
        keys: &[impl AsRef<str>],
        wanted: Wanted,
        timeout: Duration,
    ) -> Result<Vec<Option<Answer>>, PeerError> {
        let url = self.url(group, None);
        let question = frame::write_question(keys, wanted);
        let post = |agent: &Agent, left| {
            let request = self.prepare(agent.post(&url), None, left);
            request.content_type(wire::BATCH_TYPE).send(&question[..])
        };
        let reply = self.send(timeout, frame::MAX_ANSWER_BYTES as u64, post)?;
        match reply.status() {
            200 if reply.is(wire::BATCH_TYPE) => {
                let malformed = |what| PeerError::Transport(format!("a malformed batch: {what}"));
                let mut answers = frame::read_answer(&reply.body, keys.len()).map_err(malformed)?;
                let limit = self.options.max_value_bytes;
                for answer in answers.iter_mut().flatten() {
                    if matches!(answer, Ok(Some(loaded)) if loaded.value.len() as u64 > limit) {
                        *answer = Err(PeerError::TooLarge { limit });
                    }
                }
                Ok(answers)
            }
            // Of a node or a proxy: no token, too many requests.
            401 | 429 | 503 => Err(reply.error()),
            // A Go node answers in its own way, and a proxy as it likes. A node of ours marks the errors that
            // a good batch can get: no such group, and a failed load.
            200 | 400.. if reply.header(wire::ERROR).is_none() => {
                let until = self.clock.now() + TRY_BATCHES_AGAIN;
                self.no_batches_until.store(until.as_nanos() as u64, Ordering::Relaxed);
                Err(PeerError::Unsupported)
            }
            _ => Err(reply.error()),
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
        let delete = |agent: &Agent, left| self.prepare(agent.delete(&url), key, left).call();
        let reply = self.send(timeout, self.options.max_value_bytes, delete)?;
        match reply.status() {
            204 => Ok(()),
            // A node without the group has nothing of it.
            404 if reply.header(wire::ERROR) == Some(wire::NO_GROUP) => Ok(()),
            _ => Err(reply.error()),
        }
    }

    /// Sends a request and reads its answer, if that brings no more than `limit` bytes. Once more, if the
    /// connection was an old one that the network had forgotten.
    fn send(
        &self,
        timeout: Duration,
        limit: u64,
        request: impl Fn(&Agent, Duration) -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Reply, PeerError> {
        let began = self.clock.now();
        let mut used = self.connections.current(began);
        let mut answer = request(&used.agent, timeout);
        if answer.as_ref().is_err_and(transport::is_stale) {
            let now = self.clock.now();
            used = self.connections.replace(&used, now);
            let left = (began + timeout).saturating_sub(now);
            answer = request(&used.agent, left);
        }
        let reply = answer.map_err(failure).and_then(|answer| Reply::read(answer, limit));
        if reply.as_ref().is_err_and(PeerError::is_transport) {
            self.connections.replace(&used, self.clock.now());
            self.addresses.doubt();
        }
        reply
    }

    fn url(&self, group: &str, key: Option<&str>) -> String {
        format!("{}{}", self.base_url, wire::path(group, key))
    }

    /// Gives a request its deadline, the token, and the check of its key.
    fn prepare<B>(
        &self,
        request: RequestBuilder<B>,
        key: Option<&str>,
        left: Duration,
    ) -> RequestBuilder<B> {
        let mut request = request.config().timeout_global(Some(left)).build();
        if let Some(token) = &self.options.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if let Some(check) = key.and_then(wire::check_of) {
            request = request.header(wire::KEY_CHECK, check);
        }
        request
    }
}

fn failure(error: ureq::Error) -> PeerError {
    match error {
        ureq::Error::Timeout(_) => PeerError::Timeout,
        error => PeerError::Transport(error.to_string()),
    }
}

/// The answer to a request.
struct Reply {
    head: Parts,
    /// The whole body of a `200`; else the start of a text.
    body: Vec<u8>,
}

impl Reply {
    /// Reads an answer, unless that is a stranger's. Reading it to its end gives the connection back.
    fn read(answer: Response<Body>, limit: u64) -> Result<Self, PeerError> {
        let (head, mut body) = answer.into_parts();
        let mut reply = Self { head, body: Vec::new() };
        reply.check()?;
        if reply.status() != 200 {
            let _ = body.as_reader().take(MAX_TEXT_BYTES as u64).read_to_end(&mut reply.body);
            return Ok(reply);
        }
        if body.content_length().is_some_and(|length| length > limit) {
            return Err(PeerError::TooLarge { limit });
        }
        // One byte more than the limit, to tell a body of just that size from a larger one.
        let mut reader = body.as_reader().take(limit.saturating_add(1));
        reader.read_to_end(&mut reply.body).map_err(|error| failure(error.into()))?;
        if reply.body.len() as u64 > limit { Err(PeerError::TooLarge { limit }) } else { Ok(reply) }
    }

    /// Refuses an answer that something on its way has packed or kept, and a value that may have lost its
    /// end: no node writes such a one.
    fn check(&self) -> Result<(), PeerError> {
        let has_length =
            self.header("Content-Length").or(self.header("Transfer-Encoding")).is_some();
        let what = match (self.header("Content-Encoding"), self.header("Age")) {
            (Some(coding), _) => format!("packed with {coding}"),
            (_, Some(_)) => "from a cache".into(),
            _ if self.status() == 200 && !has_length => "200 without a length".into(),
            _ => return Ok(()),
        };
        Err(PeerError::Stranger(what))
    }

    fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Whether the body is of that type.
    fn is(&self, mime_type: &str) -> bool {
        let found = self.header("Content-Type").and_then(|found| found.split(';').next());
        found.is_some_and(|found| found.trim().eq_ignore_ascii_case(mime_type))
    }

    /// Why this is no answer to the question.
    fn error(&self) -> PeerError {
        let code = self.status();
        let text = || String::from_utf8_lossy(&self.body).trim_end().to_string();
        match code {
            200..400 => {
                let found = self.header("Content-Type").unwrap_or("no content type");
                PeerError::Stranger(format!("{code} with {found}"))
            }
            _ if self.header(wire::ERROR) == Some(wire::LOAD_FAILED) => {
                PeerError::LoadFailed(text())
            }
            _ => PeerError::Status { code, text: text() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;
    use std::thread;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(30);

    /// A peer that knows how many connections are open.
    struct Peer {
        url: String,
        opened: Arc<AtomicUsize>,
        open: Arc<AtomicUsize>,
    }

    impl Peer {
        /// Answers the first question of each of `burst` connections once all have asked.
        fn new(burst: usize) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let (opened, open) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
            let peer = Self { url, opened: opened.clone(), open: open.clone() };
            let all_have_asked = Arc::new(Barrier::new(burst));
            thread::spawn(move || {
                // Two more connections than the burst, at the most.
                for stream in listener.incoming().take(burst + 2).map(Result::unwrap) {
                    let number = opened.fetch_add(1, Ordering::SeqCst);
                    open.fetch_add(1, Ordering::SeqCst);
                    let (open, all_have_asked) = (open.clone(), all_have_asked.clone());
                    thread::spawn(move || {
                        let wait = || (number < burst).then(|| all_have_asked.wait());
                        let _ = answer(&stream, wait);
                        open.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            });
            peer
        }

        fn open(&self) -> usize {
            self.open.load(Ordering::SeqCst)
        }
    }

    fn answer<T>(
        mut stream: &TcpStream,
        before_the_first: impl FnOnce() -> T,
    ) -> std::io::Result<()> {
        stream.set_read_timeout(Some(LONG))?;
        let mut before_the_first = Some(before_the_first);
        let mut line = String::new();
        let mut reader = BufReader::new(stream);
        while reader.read_line(&mut line)? > 0 {
            if line.ends_with("\r\n\r\n") {
                before_the_first.take().map(|wait| wait());
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n";
                write!(stream, "{head}Content-Length: 3\r\n\r\n630")?;
                line.clear();
            }
        }
        Ok(())
    }

    #[test]
    fn a_trickle_does_not_keep_the_connections_open_that_a_burst_has_opened() {
        const BURST: usize = 64;
        let (peer, clock) = (Peer::new(BURST), Clock::by_hand());
        let exchange = Exchange::new(peer.url.clone(), Arc::default(), clock.clone());
        let get = || assert!(exchange.get("scores", "Tom", LONG).unwrap().0.is_some());
        thread::scope(|scope| (0..BURST).for_each(|_| drop(scope.spawn(get))));
        assert_eq!(peer.open(), BURST);
        // Five a second, for half a minute.
        for _ in 0..150 {
            clock.advance(Duration::from_millis(200));
            get();
        }
        let start = Instant::now();
        while peer.open() > 1 {
            assert!(start.elapsed() < LONG, "{} are open", peer.open());
            thread::yield_now();
        }
        assert_eq!(
            peer.opened.load(Ordering::SeqCst),
            BURST + 2,
            "one each {:?}",
            transport::MAX_AGE
        );
    }
}
