//! `Exchange`: one request to one peer, one answer, one deadline.
//!
//! What it promises to the layer above: an answer is the peer's own, as a node has written it, or it is
//! an error. A network does three things that one machine does not:
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
use ureq::{Agent, Body, RequestBuilder};

use super::addresses::Addresses;
use super::transport::{self, Connections};
use crate::clock::Clock;
use crate::http::frame::{self, Answer, Wanted};
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
        self.send(timeout, get, |answer| {
            let was_cached = header(answer, wire::CACHE) != Some(wire::MISS);
            let is_absent = header(answer, wire::RESULT) == Some(wire::ABSENT);
            match answer.status().as_u16() {
                200 => Ok((Some(self.value(answer)?), was_cached)),
                404 if is_absent => {
                    // An empty body; reading it gives the connection back.
                    let _ = body(answer, 0);
                    Ok((None, was_cached))
                }
                _ => Err(status(answer)),
            }
        })
    }

    /// The value that a `200` brings.
    fn value(&self, answer: &mut Response<Body>) -> Result<Loaded, PeerError> {
        let ttl = header(answer, wire::TTL_MS).and_then(wire::ttl_from_header);
        check_origin(answer, wire::VALUE_TYPE)?;
        let value = body(answer, self.options.max_value_bytes)?;
        Ok(Loaded { ttl, ..value.into() })
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
        self.send(timeout, post, |answer| {
            let is_batch = answer.body().mime_type() == Some(wire::BATCH_TYPE);
            match answer.status().as_u16() {
                200 if is_batch => self.batch(answer, keys.len()),
                // Of a node or a proxy: no token, too many requests.
                401 | 429 | 503 => Err(status(answer)),
                // A Go node answers in its own way, and a proxy as it likes; a node of ours marks it.
                200 | 400.. if header(answer, wire::ERROR).is_none() => {
                    let _ = status(answer);
                    let until = self.clock.now() + TRY_BATCHES_AGAIN;
                    self.no_batches_until.store(until.as_nanos() as u64, Ordering::Relaxed);
                    Err(PeerError::Unsupported)
                }
                _ => Err(status(answer)),
            }
        })
    }

    /// The answers that a batch brings.
    fn batch(
        &self,
        answer: &mut Response<Body>,
        keys: usize,
    ) -> Result<Vec<Option<Answer>>, PeerError> {
        check_origin(answer, wire::BATCH_TYPE)?;
        let body = body(answer, frame::MAX_ANSWER_BYTES as u64)?;
        let mut answers = frame::read_answer(&body, keys)
            .map_err(|w| PeerError::Transport(format!("a malformed batch: {w}")))?;
        let limit = self.options.max_value_bytes;
        for answer in answers.iter_mut().flatten() {
            if let Ok(Some(loaded)) = answer {
                if loaded.value.len() as u64 > limit {
                    *answer = Err(PeerError::TooLarge { limit });
                }
            }
        }
        Ok(answers)
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
        self.send(timeout, delete, |answer| {
            let has_no_group = header(answer, wire::ERROR) == Some(wire::NO_GROUP);
            match answer.status().as_u16() {
                204 => Ok(()),
                // A node without the group has nothing of it.
                404 if has_no_group => {
                    let _ = status(answer); // reading it gives the connection back
                    Ok(())
                }
                _ => Err(status(answer)),
            }
        })
    }

    /// Sends a request and reads its answer. Once more, if the connection was an old one that the
    /// network had forgotten.
    fn send<T>(
        &self,
        timeout: Duration,
        request: impl Fn(&Agent, Duration) -> Result<Response<Body>, ureq::Error>,
        read: impl FnOnce(&mut Response<Body>) -> Result<T, PeerError>,
    ) -> Result<T, PeerError> {
        let began = self.clock.now();
        let mut used = self.connections.current(began);
        let mut answer = request(&used.agent, timeout);
        if answer.as_ref().is_err_and(transport::is_stale) {
            let now = self.clock.now();
            used = self.connections.replace(&used, now);
            let left = (began + timeout).saturating_sub(now);
            answer = request(&used.agent, left);
        }
        let found = answer.map_err(failure).and_then(|mut answer| {
            check_way(&answer)?;
            read(&mut answer)
        });
        if found.as_ref().is_err_and(PeerError::is_transport) {
            self.connections.replace(&used, self.clock.now());
            self.addresses.doubt();
        }
        found
    }

    fn url(&self, group: &str, key: Option<&str>) -> String {
        format!("{}{}", self.base_url, wire::path(&self.options.base_path, group, key))
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

fn header<'r>(answer: &'r Response<Body>, name: &str) -> Option<&'r str> {
    answer.headers().get(name).and_then(|value| value.to_str().ok())
}

/// Refuses an answer that something on its way has kept or packed.
fn check_way(answer: &Response<Body>) -> Result<(), PeerError> {
    let is_packed = |coding: &str| !coding.trim().eq_ignore_ascii_case("identity");
    if let Some(coding) = header(answer, "Content-Encoding").filter(|coding| is_packed(coding)) {
        return Err(PeerError::Stranger(format!("packed with {coding}")));
    }
    match answer.headers().get("Age") {
        Some(_) => Err(PeerError::Stranger("from a cache".into())),
        None => Ok(()),
    }
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
