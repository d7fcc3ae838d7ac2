//! `Workers`: a fixed number of threads that answer requests from a bounded queue.
//!
//! What happens when more is asked than can be answered? A server that queues without a bound
//! answers everybody too late. Here nobody is let in who would wait much longer than an answer
//! takes: who comes then gets `503` at once, which makes a peer fall back while its caller still
//! waits.
//!
//! A worker answers what [`intake`](super::intake) does not, and waits for the origin if it has
//! to. What a client sends slowly, or takes slowly, is left to [`SlowClients`]; only
//! one that takes not even a short answer holds a worker, for the write timeout, and is then given
//! up. Of a client that sends requests without waiting for answers one is under way at a time.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::io::{self, Cursor, Read, Write};
use std::mem;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use log::{debug, error, warn};
use tiny_http::{Header, Method, Request, Response, ResponseBox};

use super::slow_clients::SlowClients;
use crate::http::frame::MAX_QUESTION_BYTES as MAX_BODY_BYTES;
use crate::stats::Counter;

/// How long one may have to wait for a worker, where an answer takes less than that.
const PATIENCE: Duration = Duration::from_millis(50);
/// An answer that is longer may not fit into the kernel's buffers, and then takes the client's
/// time: in bytes.
const LARGE: usize = 8 << 10;
/// The large answers that may be on their way at the same time, in bytes of all together: clients
/// that take them slowly are not to take the memory.
const MOST_ON_THE_WAY: usize = 256 << 20;
/// The longest body that may be announced, in bytes. What is longer than a question may be is
/// read all the same, since tiny_http cannot close the connection.
const MOST_ANNOUNCED: usize = 16 << 20;

pub(crate) struct Workers {
    shared: Arc<Shared>,
    // Disconnected when the last worker has ended and the last answer is out.
    ended: Receiver<Infallible>,
}

type Handler = dyn Fn(&Request, &[u8]) -> ResponseBox + Send + Sync;

struct Shared {
    handler: Box<Handler>,
    threads: usize,
    // Guards what waits for a worker. Not a channel: its receivers spin before they sleep, and
    // take a processor from those who have something to do.
    queue: Mutex<Queue>,
    arrived: Condvar,
    // Guards the connections that wait for an answer, each with the requests sent ahead of it.
    ahead: Mutex<HashMap<SocketAddr, VecDeque<Request>>>,
    slow_clients: SlowClients,
    /// The bytes of the large answers that are on their way.
    on_the_way: AtomicUsize,
    /// How long a worker takes for an answer: a moving mean, in nanoseconds.
    pace: AtomicU64,
    shed: Arc<Counter>,
}

struct Queue {
    /// Up to one for each idle worker, and up to `room` that wait.
    questions: VecDeque<Question>,
    idle: usize,
    room: usize,
    /// Whoever answers has a copy; `None` once the pool drains.
    running: Option<Sender<Infallible>>,
}

/// A request and its body.
pub(super) struct Question {
    pub(super) request: Request,
    pub(super) body: Vec<u8>,
}

impl Workers {
    /// Starts `threads` workers that answer with `handler`, and a queue of `queue` requests.
    /// Counts those that are refused in `shed`.
    pub(crate) fn start(
        threads: usize,
        queue: usize,
        shed: Arc<Counter>,
        handler: impl Fn(&Request, &[u8]) -> ResponseBox + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let (running, ended) = bounded(0);
        let questions = VecDeque::new();
        let queue = Queue { questions, idle: 0, room: queue, running: Some(running.clone()) };
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            threads,
            queue: Mutex::new(queue),
            arrived: Condvar::new(),
            ahead: Mutex::default(),
            slow_clients: SlowClients::new(),
            on_the_way: AtomicUsize::default(),
            pace: AtomicU64::default(),
            shed,
        });
        // From here on: if a thread cannot be started, those that were end.
        let workers = Self { shared, ended };
        for i in 0..threads {
            let (shared, running) = (workers.shared.clone(), running.clone());
            thread::Builder::new().name(format!("geecache-worker-{i}")).spawn(move || {
                while let Some(question) = shared.next_question() {
                    shared.answer(question, &running);
                }
            })?;
        }
        Ok(workers)
    }

    /// Takes a request on, which is then to be [handed](Self::hand) over or
    /// [answered](Self::answer). `None` where its client is to be waited for first: then that is
    /// seen to. Never waits.
    pub(super) fn take(&self, request: Request) -> Option<Question> {
        let first = match self.shared.ahead.lock().unwrap().entry(client_of(&request)) {
            Entry::Vacant(client) => {
                client.insert(VecDeque::new());
                request
            }
            Entry::Occupied(mut client) => {
                client.get_mut().push_back(request);
                return None;
            }
        };
        self.shared.read(first)
    }

    /// Leaves a question to a worker, or refuses it. Never waits.
    pub(super) fn hand(&self, question: Question) {
        self.shared.admit(question);
    }

    /// Whether a worker has nothing to do.
    pub(super) fn has_idle(&self) -> bool {
        let queue = self.shared.queue.lock().unwrap();
        queue.idle > queue.questions.len()
    }

    /// Sends an answer from this thread, or refuses the question. May wait for its client.
    pub(super) fn answer(&self, question: Question, response: ResponseBox) {
        let running = self.shared.queue.lock().unwrap().running.clone();
        match running {
            Some(running) => self.shared.deliver(question.request, response, &running),
            None => self.hand(question),
        }
    }

    /// Refuses what comes from now on, waits until what was accepted is answered and the workers
    /// have ended, but no longer than `grace`. Whether they have.
    pub(crate) fn drain(&self, grace: Duration) -> bool {
        self.shared.close();
        self.ended.recv_timeout(grace) == Err(RecvTimeoutError::Disconnected)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    /// Reads the body, on another thread if it is still on its way.
    fn read(self: &Arc<Self>, request: Request) -> Option<Question> {
        if has_arrived(&request) {
            return self.with_body(request);
        }
        if announces_too_much(&request) {
            warn!("{}: announces a body of more than {MOST_ANNOUNCED} bytes", request.url());
            self.next(client_of(&request));
            self.slow_clients.run(move || abandon(request));
        } else {
            let shared = self.clone();
            self.slow_clients.run(move || {
                shared.with_body(request).into_iter().for_each(|question| shared.admit(question))
            });
        }
        None
    }

    fn with_body(self: &Arc<Self>, mut request: Request) -> Option<Question> {
        match read_body(&mut request) {
            Ok(body) => Some(Question { request, body }),
            Err(refusal) => {
                self.refuse(request, refusal);
                None
            }
        }
    }

    /// Queues a question, or refuses it.
    fn admit(self: &Arc<Self>, question: Question) {
        if let Some(question) = self.queue(question) {
            self.refuse(question.request, self.overloaded());
        }
    }

    fn refuse(self: &Arc<Self>, request: Request, refusal: ResponseBox) {
        let shared = self.clone();
        self.slow_clients.run(move || shared.send(request, refusal));
    }

    /// Queues a question. It comes back if there is no room for it.
    fn queue(&self, question: Question) -> Option<Question> {
        let mut queue = self.queue.lock().unwrap();
        let has_room = match queue.questions.len().checked_sub(queue.idle) {
            None => true, // somebody is idle
            Some(waiting) => waiting < queue.room && !self.is_long(waiting),
        };
        if queue.running.is_none() || !has_room {
            return Some(question);
        }
        queue.questions.push_back(question);
        drop(queue);
        self.arrived.notify_one();
        None
    }

    /// The question that has waited longest; waits for one. `None` once the pool drains and none
    /// is left.
    fn next_question(&self) -> Option<Question> {
        let mut queue = self.queue.lock().unwrap();
        queue.idle += 1;
        let nothing_yet = |queue: &mut Queue| queue.running.is_some() && queue.questions.is_empty();
        let mut queue = self.arrived.wait_while(queue, nothing_yet).unwrap();
        queue.idle -= 1;
        queue.questions.pop_front()
    }

    /// The way into the queue closes, and the workers end once it is empty.
    fn close(&self) {
        self.queue.lock().unwrap().running = None;
        self.arrived.notify_all();
    }

    /// Whether one more behind `waiting` others would wait too long. As many as there are workers
    /// wait about as long as an answer takes, whatever that is.
    fn is_long(&self, waiting: usize) -> bool {
        let (waiting, threads) = (waiting as u64, self.threads as u64);
        let wait = Duration::from_nanos(self.pace.load(Ordering::Relaxed) * waiting / threads);
        waiting >= threads && wait > PATIENCE
    }

    /// Answers a question. Whatever happens to it, the worker lives on.
    fn answer(self: &Arc<Self>, question: Question, running: &Sender<Infallible>) {
        let Question { request, body } = question;
        let start = Instant::now();
        let response = catch_unwind(AssertUnwindSafe(|| (self.handler)(&request, &body)));
        self.took(start.elapsed());
        let response = response.unwrap_or_else(|_| {
            error!("{} {}: a panic while answering", request.method(), request.url());
            text(500, "the handler panicked\n")
        });
        self.deliver(request, response, running);
    }

    /// Sends an answer, on another thread if it may take the client's time.
    fn deliver(
        self: &Arc<Self>,
        request: Request,
        response: ResponseBox,
        running: &Sender<Infallible>,
    ) {
        let length = length_of(&response);
        if length <= LARGE {
            return self.send(request, response);
        }
        let others = self.on_the_way.fetch_add(length, Ordering::Relaxed);
        if others > 0 && others + length > MOST_ON_THE_WAY {
            self.on_the_way.fetch_sub(length, Ordering::Relaxed);
            return self.send(request, self.overloaded());
        }
        let (shared, running) = (self.clone(), running.clone());
        self.slow_clients.run(move || {
            shared.send(request, response);
            shared.on_the_way.fetch_sub(length, Ordering::Relaxed);
            drop(running);
        });
    }

    /// The answer to a request that is refused, and counted as such.
    fn overloaded(&self) -> ResponseBox {
        self.shed.add_one();
        text(503, "overloaded or shutting down, try again\n")
            .with_header(header("Retry-After", "1"))
    }

    /// Notes how long an answer took. Two at once may note only one of them.
    fn took(&self, time: Duration) {
        let mean = self.pace.load(Ordering::Relaxed);
        // One that was held up says little of the others: many in a row must be slow.
        let time = (time.as_nanos() as u64).min(4 * mean + 1_000_000);
        self.pace.store(mean - mean / 8 + time / 8, Ordering::Relaxed);
    }

    /// Sends an answer, then turns to what the same client has sent ahead.
    fn send(self: &Arc<Self>, request: Request, response: ResponseBox) {
        let client = client_of(&request);
        let (method, path) = (request.method().clone(), request.url().to_string());
        match catch_unwind(AssertUnwindSafe(|| respond(request, response))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                debug!("{method} {path}: the answer was not sent: {error}");
                // Who does not read gets no more: the next answer would come in the middle of this.
                while let Some(ahead) = self.next(client) {
                    match announces_too_much(&ahead) {
                        true => mem::forget(ahead),
                        false => self.slow_clients.run(move || drop(ahead.into_writer())),
                    }
                }
                return;
            }
            Err(_) => error!("{method} {path}: a panic while sending the answer"),
        }
        if let Some(question) = self.next(client).and_then(|next| self.read(next)) {
            self.admit(question);
        }
    }

    /// What a client has sent ahead. `None` if that is nothing: then it waits for no answer.
    fn next(&self, client: SocketAddr) -> Option<Request> {
        let mut ahead = self.ahead.lock().unwrap();
        let next = ahead.get_mut(&client)?.pop_front();
        if next.is_none() {
            ahead.remove(&client);
        }
        next
    }
}

fn client_of(request: &Request) -> SocketAddr {
    *request.remote_addr().expect("a TCP connection has an address")
}

fn announces_too_much(request: &Request) -> bool {
    request.body_length().is_some_and(|length| length > MOST_ANNOUNCED)
}

/// The first header of that name, the one that tiny_http goes by.
pub(super) fn first<'r>(request: &'r Request, name: &'static str) -> Option<&'r str> {
    let header = request.headers().iter().find(|header| header.field.equiv(name));
    header.map(|header| header.value.as_str())
}

/// Whether the connection is to become another protocol's: then tiny_http takes all that follows
/// for the body, and nothing for a request.
fn is_upgrade(request: &Request) -> bool {
    first(request, "Connection").is_some_and(|value| value.to_lowercase().contains("upgrade"))
}

/// Whether the body can be read without waiting.
fn has_arrived(request: &Request) -> bool {
    is_upgrade(request) || is_short(request)
}

/// Whether tiny_http has read the body, as it does with short ones.
fn is_short(request: &Request) -> bool {
    first(request, "Transfer-Encoding").is_none()
        && first(request, "Expect").is_none()
        && request.body_length().is_none_or(|length| length <= 1024)
}

/// An answer whose length is not known is taken for a large one.
fn length_of(response: &ResponseBox) -> usize {
    response.data_length().unwrap_or(LARGE + 1)
}

/// Sends an answer, by one write if it is short: tiny_http's own buffer has a kilobyte, so head and
/// body would often leave one by one, and wake the client twice.
fn respond(request: Request, response: ResponseBox) -> io::Result<()> {
    let length = length_of(&response);
    if length > LARGE || is_upgrade(&request) || !is_short(&request) {
        return request.respond(response);
    }
    let mut bytes = Vec::with_capacity(length + 512);
    let (version, is_head) = (request.http_version().clone(), *request.method() == Method::Head);
    if let Err(error) = response.raw_print(&mut bytes, version, request.headers(), is_head, None) {
        error!("{} {}: no answer: {error}", request.method(), request.url());
        return request.respond(text(500, "the answer could not be read\n"));
    }
    let mut writer = request.into_writer();
    match writer.write_all(&bytes).and_then(|()| writer.flush()) {
        // As tiny_http: who has gone misses nothing.
        Err(error) if is_gone(&error) => Ok(()),
        sent => sent,
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Reads the whole body. If that is not a proper one, the error is the answer.
fn read_body(request: &mut Request) -> Result<Vec<u8>, ResponseBox> {
    if is_upgrade(request) {
        return Ok(Vec::new());
    }
    let mut body = Vec::new();
    let mut reader = request.as_reader().take(MOST_ANNOUNCED as u64);
    reader
        .by_ref()
        .take(MAX_BODY_BYTES as u64 + 1)
        .read_to_end(&mut body)
        // What is over the limit is read, or it would be taken for the next request.
        .and_then(|_| io::copy(&mut reader, &mut io::sink()))
        .map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => text(408, "the body did not arrive in time\n"),
            _ => text(400, &format!("{error}\n")),
        })?;
    if body.len() > MAX_BODY_BYTES {
        return Err(text(413, &format!("a body has up to {MAX_BODY_BYTES} bytes\n")));
    }
    if !is_framed_well(request, body.len()) {
        return Err(text(400, "it is not clear where the body ends\n"));
    }
    Ok(body)
}

/// Whether everybody who reads the headers sees the end of the body at the same place.
fn is_framed_well(request: &Request, length: usize) -> bool {
    let values = |name| {
        let headers = request.headers().iter().filter(move |header| header.field.equiv(name));
        headers.map(|header| header.value.as_str()).collect::<Vec<_>>()
    };
    match (&values("Content-Length")[..], &values("Transfer-Encoding")[..]) {
        ([], []) => true,
        ([announced], []) => {
            announced.bytes().all(|byte| byte.is_ascii_digit()) && announced.parse() == Ok(length)
        }
        ([], [coding]) => coding.eq_ignore_ascii_case("chunked"),
        _ => false,
    }
}

/// Gives up a request and its connection.
///
/// When a request is dropped or answered, tiny_http allocates as much as its client has announced
/// and not sent. If that cannot be allocated the process ends. So the request is leaked, and with
/// it a thread of tiny_http's and a socket; an upgrade alone can be answered without a drop.
fn abandon(request: Request) {
    mem::forget(request.upgrade("HTTP/1.1", text(413, "")));
}

/// An answer of one line of text.
pub(crate) fn text(code: u16, text: &str) -> ResponseBox {
    bytes(code, text.as_bytes().to_vec())
        .with_header(header("Content-Type", "text/plain; charset=utf-8"))
}

/// An answer of bytes, never in chunks: peers look at the length before they read.
pub(crate) fn bytes(code: u16, body: impl AsRef<[u8]> + Send + 'static) -> ResponseBox {
    let length = body.as_ref().len();
    Response::new(code.into(), Vec::new(), Cursor::new(body), Some(length), None)
        .with_chunked_threshold(usize::MAX)
        .boxed()
}

pub(crate) fn header(name: &str, value: &str) -> Header {
    Header::from_bytes(name, value).expect("headers are ASCII")
}
