//! `Workers`: a fixed number of threads that answer requests from a bounded queue.
//!
//! What happens when more is asked than can be answered? A server that queues without a bound
//! answers everybody too late. Here the queue is short, and who finds it full gets `503` at
//! once, which makes a peer fall back while its caller still waits.

use std::convert::Infallible;
use std::io::{self, Cursor};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded, unbounded};
use log::{debug, error, warn};
use tiny_http::{Header, Request, Response, ResponseBox};

use crate::stats::Counter;

pub(crate) struct Workers {
    // Guards the way into the queue; `None` once the pool drains.
    queue: Mutex<Option<Sender<Request>>>,
    // Who is refused is told by a thread of its own: a client that pipelines or does not read
    // can hold a write up, and must not hold up the thread that hands out the requests.
    refused: Sender<Request>,
    // Disconnected when the last worker has ended.
    ended: Receiver<Infallible>,
    shed: Arc<Counter>,
}

impl Workers {
    /// Starts `threads` workers that answer with `handler`, and a queue of `queue` requests.
    /// Counts those that are refused in `shed`.
    pub(crate) fn start(
        threads: usize,
        queue: usize,
        shed: Arc<Counter>,
        handler: impl Fn(&mut Request) -> Option<ResponseBox> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let (sender, requests) = bounded(queue);
        // Without a bound, as tiny_http's own queue is: the receiver must never wait.
        let (refused, refusals) = unbounded();
        let (running, ended) = bounded(0);
        let handler = Arc::new(handler);
        for i in 0..threads {
            let (requests, handler, running) = (requests.clone(), handler.clone(), running.clone());
            thread::Builder::new().name(format!("geecache-worker-{i}")).spawn(move || {
                let _running: Sender<Infallible> = running;
                requests.iter().for_each(|request| answer(request, &*handler));
            })?;
        }
        thread::Builder::new().name("geecache-refuser".into()).spawn(move || {
            refusals.iter().for_each(|request| answer(request, |_| Some(overloaded())));
        })?;
        Ok(Self { queue: Mutex::new(Some(sender)), refused, ended, shed })
    }

    /// Queues a request, or refuses it if the queue is full or the pool drains.
    pub(crate) fn hand(&self, request: Request) {
        if request.body_length().is_some_and(|length| length > MOST_ANNOUNCED) {
            warn!("{}: announces a body of more than {MOST_ANNOUNCED} bytes", request.url());
            return abandon(request);
        }
        let queued = match &*self.queue.lock().unwrap() {
            Some(queue) => queue.try_send(request),
            None => Err(TrySendError::Disconnected(request)),
        };
        if let Err(TrySendError::Full(request) | TrySendError::Disconnected(request)) = queued {
            self.shed.add_one();
            let _ = self.refused.send(request);
        }
    }

    /// Refuses what comes from now on, waits until what was accepted is answered and the workers
    /// have ended, but no longer than `grace`. Whether they have.
    pub(crate) fn drain(&self, grace: Duration) -> bool {
        drop(self.queue.lock().unwrap().take());
        self.ended.recv_timeout(grace) == Err(RecvTimeoutError::Disconnected)
    }
}

/// The longest body that a request may announce, in bytes.
const MOST_ANNOUNCED: usize = 16 << 20;

/// Gives up a request and its connection, without an answer.
///
/// When a request is dropped or answered, tiny_http allocates and reads what its client announced
/// and we have not read. A length that cannot be allocated ends the process, and a client that
/// drips holds the thread. So such a request is leaked; it costs a thread of tiny_http's.
fn abandon(request: Request) {
    std::mem::forget(request);
}

/// Answers one request, or abandons it if the handler has no answer. Whatever happens to it, the
/// thread lives on.
fn answer(mut request: Request, handler: impl Fn(&mut Request) -> Option<ResponseBox>) {
    let (method, path) = (request.method().clone(), request.url().to_string());
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let response = catch_unwind(AssertUnwindSafe(|| handler(&mut request)));
        let panicked = response.is_err();
        match response.unwrap_or_else(|_| Some(text(500, "the handler panicked\n"))) {
            Some(response) => (request.respond(response), panicked),
            None => {
                abandon(request);
                (Ok(()), panicked)
            }
        }
    }));
    match outcome {
        Ok((Ok(()), false)) => {}
        Ok((Err(error), false)) => debug!("{method} {path}: the answer was not sent: {error}"),
        Ok((_, true)) | Err(_) => error!("{method} {path}: a panic while answering"),
    }
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

fn overloaded() -> ResponseBox {
    text(503, "overloaded or shutting down, try again\n").with_header(header("Retry-After", "1"))
}
