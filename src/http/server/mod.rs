//! `HttpServer`: the side of a node that answers, from the socket to the last answer.
//!
//! The way of a request:
//!
//! ```text
//! tiny_http, a thread per connection ──▶ its queue ──▶ the intake, one thread
//!    is an earlier request of the same client unanswered? ── yes ─▶ clients keeps this one behind it
//!    is its body still on the way? ── yes ─▶ a slow thread reads it, then takes the next steps
//!    does another request wait behind it, and is a worker idle? ── yes ─▶ that worker takes this one
//!    is there an answer that waits for nothing? ── yes ─▶ sent from here
//!    is there room in the queue, and has nobody waited there for long? ── no ─▶ 503
//!       └─ yes ─▶ worker: routes ─▶ Group::answer_peer ─▶ sent
//!             └─ not taken by a worker for 50 ms ─▶ the refuser: 503
//!
//! an answer of more than 64 KiB, or one that its client does not take in 4 ms ─▶ a slow thread sends it
//! after any answer: if the client has sent the next request ahead, a slow thread goes on with that
//! ```
//!
//! [`service`] has these steps, in this order. A *client* is one connection, by its remote address.
//! It gets its answers in the order in which it asked.
//!
//! A hit waits for nothing, and neither does a removal, `/healthz`, `/metrics`, or a request that
//! is malformed or not allowed: `routes` has the answer immediately, and the intake sends it, however busy
//! the workers are. But large answers that are on their way have 256 MiB together; the next one is a `503`.
//!
//! A miss is queued for a worker, which loads the value from the origin. With 16 workers and room for 256
//! in the queue, a burst of 272 misses has room; the next one is refused with `503`. If the workers take long,
//! refusals begin sooner: as soon as 16, as many as there are workers, wait and the oldest has waited for
//! 20 ms. And a peer's question that no worker has taken after 50 ms gets `503` too: the peer then loads the
//! value by itself. The requests of a server of one's own ([`HttpServer::serve`]) stay in the queue until a
//! worker takes them.
//!
//! A body may take [`ServerOptions::idle_timeout`] between two bytes. An answer has 7 s, a long one 7 s for
//! each MiB. If it is not finished by then, nothing more is sent on that connection, and its slow thread ends
//! when tiny_http has closed it.
//!
//! | thread | how many | what for | started by | ends |
//! |---|---|---|---|---|
//! | tiny_http's, without a name | one per connection | reads requests | tiny_http | 5 s after its connection has ended |
//! | another of tiny_http's | 1 | accepts connections | tiny_http | when the server stops accepting |
//! | `geecache-keeper` | 1 | knocks: it connects to this server now and then, so that no connection is left without a thread; if the acceptor died, since files or threads had run out, it starts another tiny_http server on the same socket, with an intake of its own: a *generation* | [`listener`] | when the server stops accepting |
//! | `geecache-intake` | 1 for each generation | receives, and sends the answers that wait for nothing | [`listener`] | when no connection of its generation can be open any more |
//! | `geecache-worker-0`, … | [`ServerOptions::workers`], 16 | asks the group | [`service`] | in a shutdown, when the queue is empty |
//! | `geecache-refuser` | 1 | sends `503` to peers whose questions are not taken by a worker | [`service`] | in a shutdown |
//! | `geecache-slow` | 1, and one more for each client that is being waited for | reads bodies, sends large answers, answers requests that were sent ahead | [`elastic`](crate::elastic) | 5 s after its last job; one of them stays as long as the service |
//!
//! If a thread cannot be started, [`HttpServer::start`] fails. If a slow thread cannot be started later, the
//! request waits until one is free, or until there are threads again.
//!
//! In a shutdown the listener accepts no more connections, and the workers finish the questions that are
//! queued or being loaded. All other requests get `503` from the intake, hits and probes too, until each
//! connection has been silent for [`ServerOptions::idle_timeout`], and so is closed.
//!
//! Read on in `routes` and `service`. In the second reading `queue`, `clients`, `request` and `reply` follow, and
//! `listener`, which works around the faults of tiny_http's acceptor.

mod clients;
mod listener;
mod queue;
mod reply;
mod request;
mod routes;
mod service;

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use tiny_http::{Request, ResponseBox};

use self::listener::{Listener, doors};
use self::routes::Routes;
use self::service::{Handler, Service};
use super::options::ServerOptions;
use crate::{Error, Group};

/// How long a peer's question waits for a worker; then the peer had better load the value by itself.
const LONGEST_WAIT: Duration = Duration::from_millis(50);

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
    local_addr: SocketAddr,
    listener: Listener,
    service: Arc<Service>,
    routes: Arc<Routes>,
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
        let routes = Arc::new(Routes::new(by_name, &options, Some(LONGEST_WAIT)));
        let shared = routes.clone();
        let handler =
            move |request: &Request, body: &[u8], may_wait| shared.answer(request, body, may_wait);
        Self::run(listener, &options, routes, Box::new(handler))
    }

    /// Serves any HTTP requests by your handler, with the same listener, workers and shutdown: a front
    /// end, for example. The handler gets each request, `/healthz` too, and its whole body, of up to 1 MiB;
    /// a longer one gets `413`. A body that was sent in chunks may have been cut short by its client:
    /// tiny_http gives no way to tell. `tokens` are not used.
    ///
    /// **Begin a handler that waits for anything by** `may_wait.then(|| …)`: one that ignores its last argument
    /// holds up all clients. For it is asked first, with `false`, whether it has an answer that needs no
    /// worker. Such answers
    /// are given while all workers are busy, and while others are refused with `503` since too many wait:
    /// health checks belong there. This mostly runs on the thread that receives the requests, one after the
    /// other, and now and then on others beside it; so it must not wait: no I/O, no lock that is held for
    /// long. If an answer takes time to produce, return a response whose `data_length` is `None`: another
    /// thread reads its body while it is sent. If the handler returns `None`, a worker asks it once more,
    /// with `true`: now it may wait, and has to answer; another `None` is answered by `500`.
    ///
    /// ```
    /// use geecache::{HttpServer, ServerOptions, tiny_http::Response};
    /// use std::net::TcpListener;
    ///
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let server = HttpServer::serve(listener, ServerOptions::default(), |request, _, may_wait| {
    ///     match request.url() {
    ///         "/healthz" => Some(Response::from_string("ok").boxed()),
    ///         _ => may_wait.then(|| Response::from_string("from a database").boxed()),
    ///     }
    /// })?;
    /// # Ok::<(), geecache::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn serve(
        listener: TcpListener,
        options: ServerOptions,
        handler: impl Fn(&Request, &[u8], bool) -> Option<ResponseBox> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        // Routes without groups: for the metrics alone.
        let routes = Arc::new(Routes::new(HashMap::new(), &options, None));
        Self::run(listener, &options, routes, Box::new(handler))
    }

    fn run(
        listener: TcpListener,
        options: &ServerOptions,
        routes: Arc<Routes>,
        handler: Handler,
    ) -> Result<Self, Error> {
        options.check()?;
        let local_addr = listener.local_addr()?;
        let service = Service::start(options, routes.queue.clone(), handler)?;
        let for_intake = service.clone();
        let intake = move |generation| for_intake.take_in(generation);
        let listener = Listener::start(listener, doors(local_addr), options.idle_timeout, intake)
            .inspect_err(|_: &io::Error| service.close())?;
        Ok(Self { local_addr, listener, service, routes })
    }

    /// The address that is listened on.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The text that `GET /metrics` returns here: the metrics of the groups, as
    /// [`prometheus`](crate::prometheus) writes them, and of this server. For a program that serves its own
    /// metrics beside these.
    pub fn metrics(&self) -> String {
        self.routes.metrics()
    }

    /// Accepts no more connections, answers new requests with `503`, finishes those that are queued or being
    /// loaded for up to `grace`, and ends the workers. Returns whether all of that has been answered. A
    /// worker that is still loading after `grace` ends when its load returns.
    ///
    /// If the process lives on, requests on connections that are still open get `503` with
    /// `Connection: close`. Two threads stay for that until none has sent a request for
    /// [`idle_timeout`](ServerOptions::idle_timeout), and four idle threads of tiny_http for 5 s. A second
    /// call waits for up to its own `grace`.
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
        self.listener.stop_accepting();
        self.service.drain(grace)
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
        if self.listener.stop_accepting() {
            self.service.drain(Duration::from_secs(5));
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
    }
}
