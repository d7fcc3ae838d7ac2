//! `HttpServer`: the side of a node that answers, from the socket to the last answer.
//!
//! The way of a question:
//!
//! ```text
//! tiny_http, a thread per connection ──▶ listener ──▶ intake, one thread
//!    is an earlier request of the same client unanswered? ── yes ─▶ clients keeps this one until then
//!    is its body still arriving? ── yes ─▶ slow_clients: a thread reads it, then takes the next steps
//!    does the answer wait for nothing? ── yes ─▶ reply, by the thread that is here
//!    is there room in the queue, and is the wait short? ── no ─▶ 503
//!       └─ yes ─▶ worker: routes ─▶ Group::answer_peer ─▶ reply
//!
//! after any reply, the same thread: the client's next request, from "is its body still arriving?" on
//! ```
//!
//! A *client* is one connection, by its remote address. It gets its answers in the order in which it
//! asked.
//!
//! A hit waits for nothing, and neither does the removal of a key, `/healthz`, `/metrics`, or a request that
//! is malformed or not allowed: `routes` has the answer immediately, and the intake sends it, however busy
//! the workers are. An answer of more than 64 KiB could block on a client that reads slowly, so a thread of
//! `slow_clients` sends it.
//!
//! A miss is queued for a worker, which loads the value from the origin. With 16 workers and room for 256
//! in the queue, 16 misses are being loaded while 256 wait; one more is refused with `503`. Where answers
//! take long, a question is refused sooner: if its wait, estimated from the mean time of the last answers,
//! is longer than both 50 ms and that mean. The peer that gets `503` loads the value by itself.
//!
//! | thread | how many | what for | started by | ends |
//! |---|---|---|---|---|
//! | tiny_http's, without a name | one per connection | reads requests | tiny_http | 5 s after its connection has ended |
//! | another of tiny_http's | 1 | accepts connections | tiny_http | when the server stops accepting |
//! | `http-keeper` | 1 | replaces an acceptor that died because files or threads had run out | [`listener`] | when the server stops accepting |
//! | `http-late` | one for each acceptor that died | passes on requests from the connections that it had accepted | the keeper | when these have ended or are idle for too long |
//! | `geecache-intake` | 1 that receives, and any that are still sending to a slow client | receives, and sends what waits for nothing | [`intake`] | after a shutdown, when no connection is open; or after such an answer, if another one receives by then |
//! | `geecache-standby` | 1 | starts an intake where the one that receives is held up | [`intake`] | after a shutdown, when no connection is open |
//! | `geecache-worker-0`, … | [`ServerOptions::workers`], 16 | asks the group | [`workers`] | in a shutdown, when the queue is empty |
//! | `geecache-slow-client` | one per client that is being waited for | reads bodies, sends large answers | [`slow_clients`] | 5 s after its last job |
//!
//! If a thread cannot be started, [`HttpServer::start`] fails. After the start, a request that needs a new
//! thread waits, and the standby tries again every second.
//!
//! In a shutdown the listener accepts no more connections, and the workers finish what is queued or being
//! loaded. Whatever else comes is answered by the intake with `503`, until all connections are closed; idle
//! ones are closed after [`ServerOptions::idle_timeout`].
//!
//! Read on in `routes`, `workers` and `queue`, then `intake` and `turn` (which thread is the intake), then
//! `clients`; `request` and `reply` have the types that these use.

mod clients;
mod intake;
mod listener;
mod queue;
mod reply;
mod request;
mod routes;
mod slow_clients;
mod turn;
mod workers;

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fmt, io};

use tiny_http::{Request, ResponseBox};

use self::listener::Listener;
use self::routes::Routes;
use self::workers::{Answer, Workers};
use super::options::ServerOptions;
use crate::{Error, Group};

/// Answers peers over HTTP, misses on a pool of worker threads, until it is
/// [shut down](Self::shutdown) or dropped. A drop waits for up to 5 s.
///
/// Besides the questions of peers it answers `GET /healthz` and `GET /metrics`, also while all
/// workers are busy. A request with the header `Origin`, which browsers send for pages of other
/// sites, gets `403`.
///
/// ```
/// use geecache::{Group, HttpServer, ServerOptions};
/// use std::{net::TcpListener, time::Duration};
///
/// let scores = Group::builder("scores", |_: &str| Ok::<_, std::io::Error>(Some("630"))).build()?;
/// let listener = TcpListener::bind("127.0.0.1:0")?;
/// let server = HttpServer::start(listener, [scores], ServerOptions::default())?;
/// println!("listening on {}", server.local_addr());
/// assert!(server.shutdown(Duration::from_secs(5)));
/// # Ok::<(), geecache::Error>(())
/// ```
#[doc(alias = "ServeHTTP")]
#[must_use = "dropping it shuts the server down"]
pub struct HttpServer {
    listener: Arc<Listener>,
    workers: Arc<Workers>,
    routes: Arc<Routes>,
    is_running: AtomicBool,
}

impl HttpServer {
    /// Serves `groups` to peers.
    ///
    /// # Errors
    /// [`Error::Config`] if two groups have the same name or an option cannot work; [`Error::Io`]
    /// if the listener cannot be set up.
    pub fn start(
        listener: TcpListener,
        groups: impl IntoIterator<Item = Arc<Group>>,
        options: ServerOptions,
    ) -> Result<Self, Error> {
        let mut by_name = HashMap::new();
        for group in groups {
            if let Some(twin) = by_name.insert(group.name().to_string(), group) {
                return Err(Error::Config(format!("two groups are named {:?}", twin.name())));
            }
        }
        let routes = Arc::new(Routes::new(by_name, &options));
        let [for_immediate, for_handler] = [routes.clone(), routes.clone()];
        let immediate =
            Box::new(move |request: &Request, body: &[u8]| for_immediate.immediate(request, body));
        let handler =
            Box::new(move |request: &Request, body: &[u8]| for_handler.answer(request, body));
        Self::run(listener, &options, routes, immediate, handler)
    }

    /// Serves any HTTP requests by your handler, with the same listener, workers and shutdown: a front
    /// end, for example. The handler gets each request, `/healthz` too, and its whole body, of up to 1 MiB;
    /// a longer one gets `413`. A body that was sent in chunks may have been cut short by its client:
    /// tiny_http gives no way to tell. `base_path` and `tokens` are not used.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn serve(
        listener: TcpListener,
        options: ServerOptions,
        handler: impl Fn(&Request, &[u8]) -> ResponseBox + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        Self::serve_with(listener, options, |_, _| None, handler)
    }

    /// As [`serve`](Self::serve), with answers that need no worker: they are given while all
    /// workers are busy, and while others are refused with `503` since too many wait. Health checks
    /// belong there.
    ///
    /// `immediate` is asked first, and the handler if it returns `None`. It mostly runs on the thread
    /// that receives the requests, one after the other, and now and then on others beside it; so it must
    /// not wait: no I/O, no lock that is held for long. If an answer takes time to produce, return a
    /// response whose `data_length` is `None`: another thread reads its body while it is sent.
    ///
    /// ```
    /// use geecache::{HttpServer, ServerOptions, tiny_http::Response};
    /// use std::net::TcpListener;
    ///
    /// let server = HttpServer::serve_with(
    ///     TcpListener::bind("127.0.0.1:0")?,
    ///     ServerOptions::default(),
    ///     |request, _| (request.url() == "/healthz").then(|| Response::from_string("ok").boxed()),
    ///     |_, _| Response::from_string("from a database").boxed(),
    /// )?;
    /// # Ok::<(), geecache::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn serve_with(
        listener: TcpListener,
        options: ServerOptions,
        immediate: impl Fn(&Request, &[u8]) -> Option<ResponseBox> + Send + Sync + 'static,
        handler: impl Fn(&Request, &[u8]) -> ResponseBox + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let (immediate, handler) = (Box::new(immediate), Box::new(handler));
        // Routes without groups: for the metrics alone.
        let routes = Arc::new(Routes::new(HashMap::new(), &options));
        Self::run(listener, &options, routes, immediate, handler)
    }

    fn run(
        listener: TcpListener,
        options: &ServerOptions,
        routes: Arc<Routes>,
        immediate: Answer<Option<ResponseBox>>,
        handler: Answer<ResponseBox>,
    ) -> Result<Self, Error> {
        options.check()?;
        let workers = Workers::start(options, routes.queue.clone(), immediate, handler)?;
        let start_receiving = || {
            let listener = Arc::new(Listener::new(listener, options.idle_timeout)?);
            intake::start(listener.clone(), workers.clone())?;
            Ok(listener)
        };
        let listener = start_receiving().inspect_err(|_: &io::Error| workers.close())?;
        Ok(Self { listener, workers, routes, is_running: AtomicBool::new(true) })
    }

    /// The address that is listened on.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// The text that `GET /metrics` returns here: the metrics of the groups, as
    /// [`prometheus`](crate::prometheus) writes them, and of this server. For a program that serves its own
    /// metrics beside these.
    pub fn metrics(&self) -> String {
        self.routes.metrics()
    }

    /// Accepts no more connections, answers new requests with `503`, finishes what is queued or being
    /// loaded for up to `grace`, and ends the workers. Returns whether all of that has been answered. A
    /// worker that is still loading after `grace` ends when its load returns.
    ///
    /// If the process lives on, requests on connections that are still open get `503` with
    /// `Connection: close`. The intake and the standby stay for that until all are closed, and four idle
    /// threads of tiny_http for 5 s. A second call waits for up to its own `grace`.
    ///
    /// This blocks, so an async program calls it by `spawn_blocking`: after its own server has stopped, and
    /// before its runtime ends if the getters need that. It does not wait for
    /// [renewals](crate::GroupBuilder::refresh_ahead), which run on threads of the group: one that still
    /// uses the runtime when that ends panics, which is caught and logged.
    ///
    /// `tiny_http` logs `Error accepting new client: Invalid argument`, as an error, when it stops
    /// accepting. This is not an error, and cannot be avoided here. What else it logs as an error this
    /// library logs as well, so a program can turn the log target `tiny_http` off.
    pub fn shutdown(&self, grace: Duration) -> bool {
        self.is_running.store(false, Ordering::Relaxed);
        self.listener.stop_accepting();
        self.workers.drain(grace)
    }
}

impl fmt::Debug for HttpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpServer").field("local_addr", &self.local_addr()).finish_non_exhaustive()
    }
}

/// Shuts down with a grace of 5 seconds, unless it was shut down before.
impl Drop for HttpServer {
    fn drop(&mut self) {
        if self.is_running.load(Ordering::Relaxed) {
            self.shutdown(Duration::from_secs(5));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let start = |groups: Vec<Arc<Group>>, options| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            HttpServer::start(listener, groups, options).err().map(|error| error.to_string())
        };
        let group =
            || Group::builder("scores", |_: &str| Ok::<_, Error>(Some("630"))).build().unwrap();
        let default = ServerOptions::default;
        assert_eq!(
            start(vec![group(), group()], default()).unwrap(),
            "two groups are named \"scores\""
        );
        assert!(start(vec![], ServerOptions { workers: 0, ..default() }).is_some());
        assert!(start(vec![], ServerOptions { workers: 4_097, ..default() }).is_some());
        let tokens = vec!["good".into(), "from a file\n".into()];
        assert!(start(vec![], ServerOptions { tokens, ..default() }).is_some());
        let idle_timeout = Duration::from_millis(999);
        assert!(start(vec![], ServerOptions { idle_timeout, ..default() }).is_some());
        assert!(start(vec![], ServerOptions { base_path: "/x".into(), ..default() }).is_some());
    }
}
