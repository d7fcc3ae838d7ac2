//! `Workers`: a fixed number of threads that answer what waits in the queue.
//!
//! A worker answers what [`intake`](super::intake) does not, and waits for the origin if it has to.
//! It never waits for a client, except for one that does not take even a short answer; that one is
//! given up after the write timeout. Bodies that arrive slowly and large answers are left to
//! [`SlowClients`].
//!
//! If a client sends several requests without waiting for the answers, one of them is under way at
//! a time.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{io, mem, thread};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use log::{debug, error, warn};
use tiny_http::{Request, ResponseBox};

use super::queue::Queue;
use super::reply::{LARGE, abandon, header, length_of, send, text};
use super::request::{
    MOST_ANNOUNCED, Question, announces_too_much, client_of, has_arrived, read_body,
};
use super::slow_clients::SlowClients;
use crate::stats::Counter;

/// How many bytes of large answers may be on their way at the same time, so that clients that read
/// slowly do not take all the memory.
const MOST_ON_THE_WAY: usize = 256 << 20;

pub(super) struct Workers {
    shared: Arc<Shared>,
    // Disconnected when the last worker has ended and the last answer is sent.
    ended: Receiver<Infallible>,
}

type Handler = dyn Fn(&Request, &[u8]) -> ResponseBox + Send + Sync;

struct Shared {
    handler: Box<Handler>,
    queue: Queue<Question>,
    // Guards a sender that each thread that answers has a copy of; `None` once the pool drains.
    running: Mutex<Option<Sender<Infallible>>>,
    // Guards the clients that wait for an answer, each with the requests that it has sent since.
    ahead: Mutex<HashMap<SocketAddr, VecDeque<Request>>>,
    slow_clients: SlowClients,
    /// The bytes of the large answers that are on their way.
    on_the_way: AtomicUsize,
    shed: Arc<Counter>,
}

impl Workers {
    /// Starts `threads` workers that answer with `handler`. Up to `room` requests wait for them;
    /// those that are refused are counted in `shed`.
    pub(super) fn start(
        threads: usize,
        room: usize,
        shed: Arc<Counter>,
        handler: impl Fn(&Request, &[u8]) -> ResponseBox + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let (running, ended) = bounded(0);
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            queue: Queue::new(threads, room),
            running: Mutex::new(Some(running.clone())),
            ahead: Mutex::default(),
            slow_clients: SlowClients::new(),
            on_the_way: AtomicUsize::default(),
            shed,
        });
        // From here on: if a thread cannot be started, dropping `workers` ends those that were.
        let workers = Self { shared, ended };
        for i in 0..threads {
            let (shared, running) = (workers.shared.clone(), running.clone());
            thread::Builder::new().name(format!("geecache-worker-{i}")).spawn(move || {
                while let Some(question) = shared.queue.pop() {
                    shared.answer(question, &running);
                }
            })?;
        }
        Ok(workers)
    }

    /// Takes a request from the listener. Returns it with its body, to be
    /// [queued](Self::enqueue) or [answered](Self::reply_now). `None` if it has to wait for its
    /// body, or for an earlier answer to the same client: that is arranged. Never waits.
    pub(super) fn accept(&self, request: Request) -> Option<Question> {
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
    pub(super) fn enqueue(&self, question: Question) {
        self.shared.admit(question);
    }

    /// Whether a worker has nothing to do.
    pub(super) fn has_idle(&self) -> bool {
        self.shared.queue.has_idle()
    }

    /// Sends an answer from this thread, or refuses the question if the pool drains. May wait for
    /// the client.
    pub(super) fn reply_now(&self, question: Question, response: ResponseBox) {
        let running = self.shared.running.lock().unwrap().clone();
        match running {
            Some(running) => self.shared.deliver(question.request, response, &running),
            None => self.shared.refuse(question.request, self.shared.overloaded()),
        }
    }

    /// Refuses what comes from now on, and waits until what was accepted is answered and the
    /// workers have ended, but no longer than `grace`. Returns whether they have.
    pub(super) fn drain(&self, grace: Duration) -> bool {
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
    /// The workers end once the queue is empty.
    fn close(&self) {
        self.queue.close();
        *self.running.lock().unwrap() = None;
    }

    /// Reads the body; on another thread, if it is still on its way.
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
                if let Some(question) = shared.with_body(request) {
                    shared.admit(question);
                }
            });
        }
        None
    }

    fn with_body(self: &Arc<Self>, mut request: Request) -> Option<Question> {
        match read_body(&mut request) {
            Ok(body) => Some(Question { request, body }),
            Err(refusal) => {
                self.refuse(request, refusal.into());
                None
            }
        }
    }

    /// Queues a question, or refuses it.
    fn admit(self: &Arc<Self>, question: Question) {
        if let Err(question) = self.queue.push(question) {
            self.refuse(question.request, self.overloaded());
        }
    }

    fn refuse(self: &Arc<Self>, request: Request, refusal: ResponseBox) {
        let shared = self.clone();
        self.slow_clients.run(move || shared.reply(request, refusal));
    }

    /// The answer to a request that is refused, and counted as such.
    fn overloaded(&self) -> ResponseBox {
        self.shed.add_one();
        text(503, "overloaded or shutting down, try again").with_header(header("Retry-After", "1"))
    }

    /// Answers a question. Whatever happens to it, the worker lives on.
    fn answer(self: &Arc<Self>, question: Question, running: &Sender<Infallible>) {
        let Question { request, body } = question;
        let start = Instant::now();
        let response = catch_unwind(AssertUnwindSafe(|| (self.handler)(&request, &body)));
        self.queue.took(start.elapsed());
        let response = response.unwrap_or_else(|_| {
            error!("{} {}: a panic while answering", request.method(), request.url());
            text(500, "the handler panicked")
        });
        self.deliver(request, response, running);
    }

    /// Sends an answer; on another thread, if it may have to wait for the client.
    fn deliver(
        self: &Arc<Self>,
        request: Request,
        response: ResponseBox,
        running: &Sender<Infallible>,
    ) {
        let length = length_of(&response);
        if length <= LARGE {
            return self.reply(request, response);
        }
        let others = self.on_the_way.fetch_add(length, Ordering::Relaxed);
        if others > 0 && others + length > MOST_ON_THE_WAY {
            self.on_the_way.fetch_sub(length, Ordering::Relaxed);
            return self.reply(request, self.overloaded());
        }
        let (shared, running) = (self.clone(), running.clone());
        self.slow_clients.run(move || {
            shared.reply(request, response);
            shared.on_the_way.fetch_sub(length, Ordering::Relaxed);
            drop(running);
        });
    }

    /// Sends an answer, then goes on with what the same client has sent meanwhile.
    fn reply(self: &Arc<Self>, request: Request, response: ResponseBox) {
        let client = client_of(&request);
        let (method, path) = (request.method().clone(), request.url().to_string());
        match catch_unwind(AssertUnwindSafe(|| send(request, response))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                debug!("{method} {path}: the answer was not sent: {error}");
                // A client that does not read gets nothing more: it would land inside this answer.
                while let Some(ahead) = self.next(client) {
                    if announces_too_much(&ahead) {
                        mem::forget(ahead);
                    } else {
                        self.slow_clients.run(move || drop(ahead.into_writer()));
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

    /// Takes the client's next request; forgets the client if there is none.
    fn next(&self, client: SocketAddr) -> Option<Request> {
        let mut ahead = self.ahead.lock().unwrap();
        let next = ahead.get_mut(&client)?.pop_front();
        if next.is_none() {
            ahead.remove(&client);
        }
        next
    }
}
