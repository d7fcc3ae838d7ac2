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
use super::reply::{LARGE, Sent, header, length_of, send, text};
use super::request::{
    Connection, MOST_ANNOUNCED, Question, abandon, client_of, has_arrived, part, read_body, shown,
};
use super::slow_clients::SlowClients;
use crate::http::options::ServerOptions;

/// How many bytes of large answers may be on their way at the same time, so that clients that read
/// slowly do not take all the memory.
const MOST_ON_THE_WAY: usize = 256 << 20;

pub(super) struct Workers {
    queue: Arc<Queue<Question>>,
    // Guards what is answered; `None` once the pool drains.
    answers: Mutex<Option<Arc<Answers>>>,
    // Disconnected when the last worker has ended and the last answer is sent.
    ended: Receiver<Infallible>,
    clients: Clients,
    slow_clients: Arc<SlowClients>,
    /// The bytes of the large answers that are on their way.
    on_the_way: AtomicUsize,
}

pub(super) type Answer<A> = Box<dyn Fn(&Request, &[u8]) -> A + Send + Sync>;

/// What is answered. Each thread that answers has a share of it, for which a shutdown waits.
struct Answers {
    /// Gives the answers that wait for nothing.
    immediate: Answer<Option<ResponseBox>>,
    /// Gives all others, on a worker.
    handler: Answer<ResponseBox>,
    _ended: Sender<Infallible>,
}

impl Answers {
    fn immediate(&self, question: &Question) -> Option<ResponseBox> {
        let answer = || (self.immediate)(&question.request, &question.body);
        caught(question, answer).unwrap_or_else(Some)
    }

    fn by_handler(&self, question: &Question) -> ResponseBox {
        let answer = || (self.handler)(&question.request, &question.body);
        caught(question, answer).unwrap_or_else(|failure| failure)
    }
}

impl Workers {
    pub(super) fn start(
        options: &ServerOptions,
        queue: Arc<Queue<Question>>,
        immediate: Answer<Option<ResponseBox>>,
        handler: Answer<ResponseBox>,
    ) -> io::Result<Arc<Self>> {
        let (sender, ended) = bounded(0);
        let answers = Arc::new(Answers { immediate, handler, _ended: sender });
        let workers = Arc::new(Self {
            queue,
            answers: Mutex::new(Some(answers.clone())),
            ended,
            clients: Clients::new(options.idle_timeout),
            slow_clients: Arc::default(),
            on_the_way: AtomicUsize::default(),
        });
        for i in 0..options.workers {
            let (worker, answers) = (workers.clone(), answers.clone());
            let thread = thread::Builder::new().name(format!("geecache-worker-{i}"));
            let work = move || {
                while let Some(question) = worker.queue.pop() {
                    worker.answer(question, &answers);
                }
            };
            // Those that were started end again.
            thread.spawn(work).inspect_err(|_| workers.close())?;
        }
        Ok(workers)
    }

    /// Takes a request from the listener. Returns it with its body, to [go on](Self::go_on) with.
    /// `None` if it has to wait for its body, or for an earlier answer to the same client: that is
    /// arranged. Never waits.
    pub(super) fn accept(self: &Arc<Self>, request: Request) -> Option<Question> {
        if request.body_length().is_some_and(|length| length > MOST_ANNOUNCED) {
            warn!("{}: announces a body of more than {MOST_ANNOUNCED} bytes", shown(&request));
            if self.clients.has_part(client_of(&request)) {
                mem::forget(request); // as `abandon`, without the answer
            } else {
                self.slow_clients.run(move || abandon(request));
            }
            return None;
        }
        let (request, connection) = self.clients.accept(request)?;
        self.read(request, connection)
    }

    /// Leaves a question to an idle worker, or to another thread. Never waits.
    pub(super) fn leave(self: &Arc<Self>, question: Question) {
        if let Err(question) = self.queue.offer(question) {
            let workers = self.clone();
            self.slow_clients.run(move || workers.go_on(Some(question)));
        }
    }

    /// Whether a worker has nothing to do.
    pub(super) fn has_idle(&self) -> bool {
        self.queue.has_idle()
    }

    /// Goes on with what had to wait: to be called about once a second.
    pub(super) fn look_after(self: &Arc<Self>) {
        self.slow_clients.start_missing();
        for client in self.clients.look_after() {
            self.start_probe(client);
        }
    }

    /// Refuses what comes from now on, and waits until what was accepted is answered and the
    /// workers have ended, but no longer than `grace`. Returns whether they have.
    pub(super) fn drain(&self, grace: Duration) -> bool {
        self.close();
        self.ended.recv_timeout(grace) == Err(RecvTimeoutError::Disconnected)
    }

    /// Refuses what comes from now on. The workers end once the queue is empty.
    pub(super) fn close(&self) {
        self.queue.close();
        *self.answers.lock().unwrap() = None;
    }

    /// Reads the body; on another thread, if it is still on its way.
    fn read(self: &Arc<Self>, request: Request, connection: Connection) -> Option<Question> {
        if has_arrived(&request) {
            return self.with_body(request, connection);
        }
        let workers = self.clone();
        self.slow_clients.run(move || workers.go_on(workers.with_body(request, connection)));
        None
    }

    fn with_body(
        self: &Arc<Self>,
        mut request: Request,
        connection: Connection,
    ) -> Option<Question> {
        let refusal = match read_body(&mut request) {
            Ok(body) => return Some(Question::new(request, body, connection, None)),
            Err(refusal) => refusal,
        };
        let workers = self.clone();
        self.slow_clients.run(move || {
            workers.go_on(if refusal.is_read {
                let question = Question::new(request, Vec::new(), connection, None);
                workers.reply(question, refusal.into())
            } else {
                // Sends the answer, and then waits for the rest of the body. (Whoever takes the writer
                // waits for that first.)
                let _ = request.respond(ResponseBox::from(refusal));
                workers.answered(connection, Sent::Whole)
            });
        });
        None
    }

    /// Answers a question that waits for nothing; others it leaves to a worker, or refuses. Then the
    /// next one of the same client. (A client may have sent any number ahead: if each answer called
    /// for the next, the stack would overflow.) May wait for the client.
    pub(super) fn go_on(self: &Arc<Self>, mut next: Option<Question>) {
        while let Some(mut question) = next {
            if let Some((response, answers)) = self.immediate(&question) {
                next = self.deliver(question, response, &answers);
                continue;
            }
            question.is_new = false;
            next = match self.queue.push(question) {
                Ok(()) => None,
                Err(question) => self.reply(question, self.overloaded()),
            };
        }
    }

    /// The answer to a question that waits for nothing, and what a shutdown waits for until that is
    /// sent.
    fn immediate(&self, question: &Question) -> Option<(ResponseBox, Arc<Answers>)> {
        let answers = self.answers.lock().unwrap().clone()?;
        let response = answers.immediate(question)?;
        Some((response, answers))
    }

    /// The answer to a request that is refused, and counted as such.
    fn overloaded(&self) -> ResponseBox {
        self.queue.shed.add_one();
        text(503, "overloaded or shutting down, try again").with_header(header("Retry-After", "1"))
    }

    /// Answers a question. Whatever happens to it, the worker lives on.
    fn answer(self: &Arc<Self>, question: Question, answers: &Arc<Answers>) {
        let start = Instant::now();
        let immediate = if question.is_new { answers.immediate(&question) } else { None };
        let response = immediate.unwrap_or_else(|| answers.by_handler(&question));
        self.queue.took(start.elapsed());
        let next = self.deliver(question, response, answers);
        self.go_on(next);
    }

    /// Sends an answer; on another thread, if it may have to wait for the client. Returns the
    /// client's next question, if that is to be answered now.
    fn deliver(
        self: &Arc<Self>,
        question: Question,
        response: ResponseBox,
        answers: &Arc<Answers>,
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
        let (workers, answers) = (self.clone(), answers.clone());
        self.slow_clients.run(move || {
            let next = workers.reply(question, response);
            workers.on_the_way.fetch_sub(length, Ordering::Relaxed);
            workers.go_on(next);
            drop(answers);
        });
        None
    }

    /// Sends an answer. Returns the client's next question, if that is to be answered now.
    fn reply(self: &Arc<Self>, question: Question, response: ResponseBox) -> Option<Question> {
        let connection = question.connection;
        let is_last = self.answers.lock().unwrap().is_none();
        let sent = catch_unwind(AssertUnwindSafe(|| send(question, response, is_last)));
        let sent = sent.unwrap_or_else(|_| {
            error!("{}: a panic while sending an answer", connection.client);
            Sent::Whole
        });
        self.answered(connection, sent)
    }

    fn answered(self: &Arc<Self>, connection: Connection, sent: Sent) -> Option<Question> {
        match self.clients.answered(connection, sent) {
            Next::None => {}
            Next::UnderWay(next) => return self.read(next, connection),
            Next::Dropped(requests) => {
                let workers = self.clone();
                self.slow_clients.run(move || {
                    let writers = requests.into_iter().map(Request::into_writer).collect();
                    workers.clients.keep(connection.client, writers);
                });
            }
        }
        None
    }

    /// Waits, on another thread, until it is the turn of the client's next request on its own
    /// connection, and answers it then.
    fn start_probe(self: &Arc<Self>, client: SocketAddr) {
        let workers = self.clone();
        self.slow_clients.run(move || {
            let Some(mut request) = workers.clients.next_to_probe(client) else { return };
            let body = read_body(&mut request);
            let (request, mut writer) = part(request);
            workers.clients.waits_for_turn(client);
            // Nothing is in its buffer, so nothing is sent.
            let _ = writer.flush();
            let Some((connection, writer)) = workers.clients.has_turn(client, writer) else {
                return;
            };
            let writer = Some(writer);
            workers.go_on(match body {
                Ok(body) => Some(Question::new(request, body, connection, writer)),
                Err(refusal) => {
                    let question = Question::new(request, Vec::new(), connection, writer);
                    workers.reply(question, refusal.into())
                }
            });
        });
    }
}

/// What `answer` gives; if it panics, the answer that says so.
fn caught<A>(question: &Question, answer: impl FnOnce() -> A) -> Result<A, ResponseBox> {
    catch_unwind(AssertUnwindSafe(answer)).map_err(|_| {
        error!("{}: a panic while answering", shown(&question.request));
        text(500, "the handler panicked")
    })
}
