//! `Workers`: a fixed number of threads that answer what waits in the queue.
//!
//! A worker answers what may have to wait for the origin. It never waits for a client, except for
//! one that does not take even a short answer, for 5 s. Bodies that arrive slowly and large answers
//! are left to [`SlowClients`], the order of one client's requests to [`Clients`].

use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{io, mem, thread};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use log::{error, warn};
use tiny_http::{Request, ResponseBox};

use super::clients::{Clients, Next};
use super::queue::Queue;
use super::reply::{LARGE, Sent, header, length_of, refuse_unread, send, text};
use super::request::{
    Connection, MOST_ANNOUNCED, Question, abandon, announces_too_much, client_of, has_arrived,
    part, read_body, shown,
};
use super::slow_clients::SlowClients;
use crate::http::options::ServerOptions;
use crate::stats::Counter;

/// How many bytes of large answers may be on their way at the same time, so that clients that read
/// slowly do not take all the memory.
const MOST_ON_THE_WAY: usize = 256 << 20;

pub(super) struct Workers {
    shared: Arc<Shared>,
    // Disconnected when the last worker has ended and the last answer is sent.
    ended: Receiver<Infallible>,
}

pub(super) type Answer<A> = Box<dyn Fn(&Request, &[u8]) -> A + Send + Sync>;

/// What is answered.
pub(super) struct Answers {
    /// Gives the answers that wait for nothing.
    pub(super) immediate: Answer<Option<ResponseBox>>,
    /// Gives all others, on a worker.
    pub(super) handler: Answer<ResponseBox>,
    /// What waits for a worker.
    pub(super) queue: Arc<Queue<Question>>,
    /// Counts the requests that are refused.
    pub(super) shed: Arc<Counter>,
}

/// What each thread that answers has a copy of.
#[derive(Clone)]
struct Running {
    answers: Arc<Answers>,
    _ended: Sender<Infallible>,
}

/// An answer that waits for nothing, to be [sent](Workers::reply_now).
pub(super) struct Immediate {
    response: ResponseBox,
    running: Running,
}

struct Shared {
    queue: Arc<Queue<Question>>,
    // Guards what is answered; `None` once the pool drains.
    running: Mutex<Option<Running>>,
    clients: Clients,
    slow_clients: SlowClients,
    /// The bytes of the large answers that are on their way.
    on_the_way: AtomicUsize,
    shed: Arc<Counter>,
}

impl Workers {
    pub(super) fn start(options: &ServerOptions, answers: Answers) -> io::Result<Self> {
        let (sender, ended) = bounded(0);
        let (queue, shed) = (answers.queue.clone(), answers.shed.clone());
        let running = Running { answers: Arc::new(answers), _ended: sender };
        let shared = Arc::new(Shared {
            queue,
            running: Mutex::new(Some(running.clone())),
            clients: Clients::new(options.idle_timeout),
            slow_clients: SlowClients::new(),
            on_the_way: AtomicUsize::default(),
            shed,
        });
        // From here on: if a thread cannot be started, dropping `workers` ends those that were.
        let workers = Self { shared, ended };
        for i in 0..options.workers {
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
    /// [answered](Self::immediate) or [queued](Self::enqueue). `None` if it has to wait for its
    /// body, or for an earlier answer to the same client: that is arranged. Never waits.
    pub(super) fn accept(&self, request: Request) -> Option<Question> {
        let shared = &self.shared;
        if announces_too_much(&request) {
            warn!("{}: announces a body of more than {MOST_ANNOUNCED} bytes", shown(&request));
            if shared.clients.has_part(client_of(&request)) {
                mem::forget(request); // as `abandon`, without the answer
            } else {
                shared.slow_clients.run(move || abandon(request));
            }
            return None;
        }
        let client = client_of(&request);
        match shared.clients.accept(request) {
            Ok((request, connection)) => return shared.read(request, connection),
            Err(waits) if waits.is_to_be_probed => shared.start_probe(client),
            Err(_) => {}
        }
        None
    }

    /// The answer to a question, if it waits for nothing.
    pub(super) fn immediate(&self, question: &Question) -> Option<Immediate> {
        self.shared.immediate(question)
    }

    /// Sends an answer from this thread. May wait for the client.
    pub(super) fn reply_now(&self, question: Question, answer: Immediate) {
        let next = self.shared.deliver(question, answer.response, &answer.running);
        self.shared.go_on(next);
    }

    /// Sends an answer from another thread.
    pub(super) fn reply_elsewhere(&self, question: Question, answer: Immediate) {
        let shared = self.shared.clone();
        self.shared.slow_clients.run(move || {
            let next = shared.deliver(question, answer.response, &answer.running);
            shared.go_on(next);
        });
    }

    /// Leaves a question to an idle worker. If there is none, it comes back.
    pub(super) fn offer(&self, question: Question) -> Option<Question> {
        self.shared.queue.offer(question).err()
    }

    /// Leaves a question to a worker, or refuses it. Never waits.
    pub(super) fn enqueue(&self, question: Question) {
        self.shared.enqueue(question);
    }

    /// Whether a worker has nothing to do.
    pub(super) fn has_idle(&self) -> bool {
        self.shared.queue.has_idle()
    }

    /// Goes on with what had to wait: to be called about once a second.
    pub(super) fn look_after(&self) {
        self.shared.slow_clients.start_missing();
        for client in self.shared.clients.look_after() {
            self.shared.start_probe(client);
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
    fn read(self: &Arc<Self>, request: Request, connection: Connection) -> Option<Question> {
        if has_arrived(&request) {
            return self.with_body(request, connection);
        }
        let shared = self.clone();
        self.slow_clients.run(move || shared.go_on(shared.with_body(request, connection)));
        None
    }

    fn with_body(
        self: &Arc<Self>,
        mut request: Request,
        connection: Connection,
    ) -> Option<Question> {
        match read_body(&mut request) {
            Ok(body) => return Some(Question { request, body, connection, writer: None }),
            Err(refusal) if refusal.is_read => {
                let question = Question { request, body: Vec::new(), connection, writer: None };
                self.refuse(question, refusal.into());
            }
            Err(refusal) => {
                let shared = self.clone();
                self.slow_clients.run(move || {
                    refuse_unread(request, refusal);
                    shared.go_on(shared.answered(connection, Sent::Whole));
                });
            }
        }
        None
    }

    /// Answers the questions of a client, one after the other, until the next one has to wait. (A
    /// client may have sent any number ahead: if each answer called for the next, the stack would
    /// overflow.)
    fn go_on(self: &Arc<Self>, mut next: Option<Question>) {
        while let Some(question) = next {
            next = match self.immediate(&question) {
                Some(answer) => self.deliver(question, answer.response, &answer.running),
                None => return self.enqueue(question),
            }
        }
    }

    fn immediate(&self, question: &Question) -> Option<Immediate> {
        let running = self.running.lock().unwrap().clone()?;
        let response = (running.answers.immediate)(&question.request, &question.body)?;
        Some(Immediate { response, running })
    }

    fn enqueue(self: &Arc<Self>, question: Question) {
        if let Err(question) = self.queue.push(question) {
            self.refuse(question, self.overloaded());
        }
    }

    fn refuse(self: &Arc<Self>, question: Question, refusal: ResponseBox) {
        let shared = self.clone();
        self.slow_clients.run(move || shared.go_on(shared.reply(question, refusal)));
    }

    /// The answer to a request that is refused, and counted as such.
    fn overloaded(&self) -> ResponseBox {
        self.shed.add_one();
        text(503, "overloaded or shutting down, try again").with_header(header("Retry-After", "1"))
    }

    /// Answers a question. Whatever happens to it, the worker lives on.
    fn answer(self: &Arc<Self>, question: Question, running: &Running) {
        let start = Instant::now();
        let handler = || (running.answers.handler)(&question.request, &question.body);
        let response = catch_unwind(AssertUnwindSafe(handler));
        self.queue.took(start.elapsed());
        let response = response.unwrap_or_else(|_| {
            error!("{}: a panic while answering", shown(&question.request));
            text(500, "the handler panicked")
        });
        let next = self.deliver(question, response, running);
        self.go_on(next);
    }

    /// Sends an answer; on another thread, if it may have to wait for the client. Returns the
    /// client's next question, if that is to be answered now.
    fn deliver(
        self: &Arc<Self>,
        question: Question,
        response: ResponseBox,
        running: &Running,
    ) -> Option<Question> {
        let length = length_of(&response);
        if length <= LARGE {
            return self.reply(question, response);
        }
        let others = self.on_the_way.fetch_add(length, Ordering::Relaxed);
        if others > 0 && others + length > MOST_ON_THE_WAY {
            self.on_the_way.fetch_sub(length, Ordering::Relaxed);
            return self.reply(question, self.overloaded());
        }
        let (shared, running) = (self.clone(), running.clone());
        self.slow_clients.run(move || {
            let next = shared.reply(question, response);
            shared.on_the_way.fetch_sub(length, Ordering::Relaxed);
            shared.go_on(next);
            drop(running);
        });
        None
    }

    /// Sends an answer. Returns the client's next question, if that is to be answered now.
    fn reply(self: &Arc<Self>, question: Question, response: ResponseBox) -> Option<Question> {
        let connection = question.connection;
        let is_last = self.running.lock().unwrap().is_none();
        let sent = catch_unwind(AssertUnwindSafe(|| send(question, response, is_last)));
        self.answered(
            connection,
            sent.unwrap_or_else(|_| {
                error!("{}: a panic while sending an answer", connection.client);
                Sent::Whole
            }),
        )
    }

    fn answered(self: &Arc<Self>, connection: Connection, sent: Sent) -> Option<Question> {
        match self.clients.answered(connection, sent) {
            Next::None => {}
            Next::UnderWay(next) => return self.read(next, connection),
            Next::Dropped(requests) if requests.is_empty() => {}
            Next::Dropped(requests) => {
                let shared = self.clone();
                self.slow_clients.run(move || {
                    let writers = requests.into_iter().map(Request::into_writer).collect();
                    shared.clients.keep(connection.client, writers);
                });
            }
        }
        None
    }

    /// Waits, on another thread, until it is the turn of the client's next request on its own
    /// connection, and answers it then.
    fn start_probe(self: &Arc<Self>, client: SocketAddr) {
        let shared = self.clone();
        self.slow_clients.run(move || {
            let Some(mut request) = shared.clients.next_to_probe(client) else { return };
            let body = read_body(&mut request);
            let (request, mut writer) = part(request);
            shared.clients.waits_for_turn(client);
            // Nothing is in its buffer, so nothing is sent.
            let _ = writer.flush();
            let Some((connection, writer)) = shared.clients.has_turn(client, writer) else {
                return;
            };
            let writer = Some(writer);
            shared.go_on(match body {
                Ok(body) => Some(Question { request, body, connection, writer }),
                Err(refusal) => {
                    let body = Vec::new();
                    let question = Question { request, body, connection, writer };
                    shared.reply(question, refusal.into())
                }
            });
        });
    }
}
