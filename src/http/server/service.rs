//! `Service`: the way of a request, as [`server`](super) draws it.
//!
//! Which thread does what? For a hit, waking a worker takes longer than the answer, so the intake sends it
//! itself. A worker answers the questions that may have to wait for the origin. Neither waits for
//! a client for longer than the 4 ms of a write: the rest is left to a *slow thread*.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{io, thread};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use log::error;
use tiny_http::{Request, ResponseBox};

use super::clients::Clients;
use super::listener::Generation;
use super::queue::Queue;
use super::reply::{LARGE, Patient, header, length_of, printed, text, write_at_once};
use super::request::{Question, Writer, client_of, has_arrived, read, shown};
use crate::elastic::Elastic;
use crate::http::options::ServerOptions;

/// How many bytes of large answers may be on their way at the same time, so that clients that read
/// slowly do not take all the memory.
const MOST_ON_THE_WAY: usize = 256 << 20;

/// Answers a request with its body. `None` if that may have to wait, and the last argument says that it must
/// not.
pub(super) type Handler = Box<dyn Fn(&Request, &[u8], bool) -> Option<ResponseBox> + Send + Sync>;

pub(super) struct Service {
    clients: Clients<Request>,
    queue: Arc<Queue<Question>>,
    slow_threads: Elastic,
    // Guards the handler; `None` once nothing new is answered.
    handler: Mutex<Option<Arc<Shared>>>,
    // Disconnected when the last worker has ended and the last answer is sent.
    ended: Receiver<Infallible>,
    /// The bytes of the large answers that are on their way.
    on_the_way: AtomicUsize,
    idle_timeout: Duration,
}

/// The handler. Each thread that answers has a share of it, for which a shutdown waits.
struct Shared {
    handler: Handler,
    _ended: Sender<Infallible>,
}

impl Service {
    /// Starts all threads but the intake.
    pub(super) fn start(
        options: &ServerOptions,
        queue: Arc<Queue<Question>>,
        handler: Handler,
    ) -> io::Result<Arc<Self>> {
        let (sender, ended) = bounded(0);
        let shared = Arc::new(Shared { handler, _ended: sender });
        let service = Arc::new(Self {
            clients: Clients::new(),
            queue,
            // Each job is for a connection, which has a thread of tiny_http's in any case.
            slow_threads: Elastic::new("geecache-slow", usize::MAX, usize::MAX),
            handler: Mutex::new(Some(shared.clone())),
            ended,
            on_the_way: AtomicUsize::new(0),
            idle_timeout: options.idle_timeout,
        });
        // Those that were started end again.
        service.start_threads(options.workers, &shared).inspect_err(|_| service.close())?;
        Ok(service)
    }

    fn start_threads(self: &Arc<Self>, workers: usize, shared: &Arc<Shared>) -> io::Result<()> {
        self.slow_threads.keep_one()?;
        let service = self.clone();
        let refuser = thread::Builder::new().name("geecache-refuser".into());
        refuser.spawn(move || service.refuse_overdue())?;
        for i in 0..workers {
            let (service, shared) = (self.clone(), shared.clone());
            let worker = thread::Builder::new().name(format!("geecache-worker-{i}"));
            worker.spawn(move || service.work(&shared))?;
        }
        Ok(())
    }

    /// Refuses requests from now on, and waits until those that were accepted are answered and the workers
    /// have ended, but no longer than `grace`. Returns whether they have.
    pub(super) fn drain(&self, grace: Duration) -> bool {
        self.close();
        self.ended.recv_timeout(grace) == Err(RecvTimeoutError::Disconnected)
    }

    /// Refuses requests from now on. The workers end once the queue is empty.
    pub(super) fn close(&self) {
        self.queue.close();
        let _dropped_without_the_lock = self.handler.lock().unwrap().take();
    }

    /// The intake: takes one request after the other, until no connection can send one any more.
    ///
    /// If the next one is there already and a worker is idle, that worker takes this one: then all
    /// processors are used.
    pub(super) fn take_in(self: &Arc<Self>, mut generation: Generation) {
        // Once a second: jobs that found no thread get one, if there are threads again.
        let catch_up = || self.slow_threads.catch_up();
        let mut next = generation.recv(catch_up);
        while let Some(request) = next {
            let question = self.accept(request);
            next = if self.queue.has_idle() { generation.try_recv() } else { None };
            let left = match next {
                Some(_) => question.and_then(|question| self.queue.offer(question).err()),
                None => question,
            };
            if let Some(question) = left {
                self.answer(question);
            }
            next = next.or_else(|| generation.recv(catch_up));
        }
    }

    /// Is an earlier request of this client unanswered? Then this one is kept behind it. Is its body still
    /// on the way? Then a slow thread reads it, and goes on.
    fn accept(self: &Arc<Self>, request: Request) -> Option<Question> {
        let request = self.clients.enter(client_of(&request), request)?;
        if has_arrived(&request) {
            return self.read(request);
        }
        self.go_on_slowly(request);
        None
    }

    fn read(self: &Arc<Self>, request: Request) -> Option<Question> {
        let client = client_of(&request);
        let question = read(request);
        if question.is_none() {
            self.answered(client);
        }
        question
    }

    /// Has a slow thread read the body of a request, and go on with it.
    fn go_on_slowly(self: &Arc<Self>, request: Request) {
        let service = self.clone();
        self.run_slowly(move || {
            if let Some(question) = service.read(request) {
                service.answer(question);
            }
        });
    }

    /// Is there an answer that waits for nothing? Then it is sent from here. Is there room in the queue?
    /// Else the answer is `503`.
    fn answer(self: &Arc<Self>, mut question: Question) {
        question.is_new = false;
        let share = self.handler.lock().unwrap().clone();
        match share.as_ref().and_then(|share| share.answer(&question, false)) {
            Some(response) => self.send(question, response, share),
            None => {
                if let Err(question) = self.queue.push(question) {
                    self.refuse(question);
                }
            }
        }
    }

    /// A worker: answers the questions in the queue.
    fn work(self: &Arc<Self>, shared: &Arc<Shared>) {
        while let Some(question) = self.queue.pop() {
            let immediate = if question.is_new { shared.answer(&question, false) } else { None };
            let answer = immediate.or_else(|| shared.answer(&question, true));
            let answer = answer.unwrap_or_else(|| text(500, "the handler gave no answer"));
            self.send(question, answer, Some(shared.clone()));
        }
    }

    /// The refuser: answers the questions that have been in the queue for too long, however busy the workers
    /// are.
    fn refuse_overdue(self: &Arc<Self>) {
        while let Some(question) = self.queue.pop_overdue() {
            self.refuse(question);
        }
    }

    fn refuse(self: &Arc<Self>, question: Question) {
        self.queue.shed.fetch_add(1, Ordering::Relaxed);
        let overloaded = text(503, "overloaded or shutting down, try again");
        self.send(question, overloaded.with_header(header("Retry-After", "1")), None);
    }

    /// Sends an answer; by a slow thread, if it is large or its client does not take it at once.
    fn send(
        self: &Arc<Self>,
        question: Question,
        response: ResponseBox,
        share: Option<Arc<Shared>>,
    ) {
        let Question { request, .. } = &question;
        let (client, length) = (client_of(request), length_of(&response));
        if length <= LARGE {
            let is_last = self.handler.lock().unwrap().is_none(); // its body is read without the lock
            let bytes = printed(request, response, is_last);
            let mut writer = question.request.into_writer();
            if let Some(taken) = write_at_once(&mut writer, &bytes) {
                let rest = move |to: &mut Patient| io::Write::write_all(to, &bytes[taken..]);
                return self.send_slowly(client, writer, rest, 0, share);
            }
            drop(writer); // so that tiny_http lets the next answer out
            return self.answered(client);
        }
        let others = self.on_the_way.fetch_add(length, Ordering::Relaxed);
        if others > 0 && others + length > MOST_ON_THE_WAY {
            self.on_the_way.fetch_sub(length, Ordering::Relaxed);
            return self.refuse(question);
        }
        let (version, headers) = (request.http_version().clone(), request.headers().to_vec());
        let is_head = *request.method() == tiny_http::Method::Head;
        let print =
            move |to: &mut Patient| response.raw_print(to, version, &headers, is_head, None);
        self.send_slowly(client, question.request.into_writer(), print, length, share);
    }

    /// Has a slow thread send an answer, of which `length` bytes are accounted for.
    fn send_slowly(
        self: &Arc<Self>,
        client: SocketAddr,
        writer: Writer,
        write: impl FnOnce(&mut Patient) -> io::Result<()> + Send + 'static,
        length: usize,
        share: Option<Arc<Shared>>,
    ) {
        let service = self.clone();
        self.run_slowly(move || {
            let sent = Patient::new(writer).send(write);
            service.on_the_way.fetch_sub(length, Ordering::Relaxed);
            drop(share);
            if let Err(writer) = sent {
                service.outlast(client, writer);
            }
            service.answered(client);
        });
    }

    /// Keeps a connection whose answer was not finished until tiny_http has closed it, since it is silent:
    /// another answer would be taken for the rest of that one. tiny_http sends none as long as the writer
    /// lives.
    fn outlast(&self, client: SocketAddr, writer: Writer) {
        thread::sleep(self.idle_timeout + Duration::from_secs(1));
        drop(writer);
        // Not answered: only a writer that is never used sends nothing.
        while let Some(late) = self.clients.next(client) {
            drop(late.into_writer());
        }
    }

    /// The request of `client` is answered. If it has sent the next one ahead, a slow thread goes on with
    /// that, so that this thread is free for other clients.
    fn answered(self: &Arc<Self>, client: SocketAddr) {
        if let Some(request) = self.clients.next(client) {
            self.go_on_slowly(request);
        }
    }

    fn run_slowly(&self, job: impl FnOnce() + Send + 'static) {
        // The job never comes back, since one thread stays and the queue has no bound.
        if let Err(job) = self.slow_threads.run(Box::new(job)) {
            job();
        }
    }
}

impl Shared {
    /// The handler's answer. If it panics, the answer that says so.
    fn answer(&self, question: &Question, may_wait: bool) -> Option<ResponseBox> {
        let answer = || (self.handler)(&question.request, &question.body, may_wait);
        catch_unwind(AssertUnwindSafe(answer)).unwrap_or_else(|_| {
            error!("{}: a panic while answering", shown(&question.request));
            Some(text(500, "the handler panicked"))
        })
    }
}

#[cfg(test)]
mod tests;
