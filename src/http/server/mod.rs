//! `HttpServer`: the side of a node that answers, from the socket to the last answer.
//!
//! The way of a question:
//!
//! ```text
//! tiny_http, a thread per connection ──▶ listener ──▶ intake
//!    an earlier request of this client unanswered? ── yes ─▶ kept in order until that is answered
//!    body still arriving? ── yes ─▶ slow_clients reads it, and it goes on to the queue
//!    answer in a cache? ── yes ─▶ replied by the thread that received it
//!    room in the queue? ── no ─▶ 503
//!       └─ yes ─▶ worker: routes ─▶ Group::answer_peer ─▶ reply
//!                            └─▶ the next request of the same client
//! ```
//!
//! So a question that hits is answered by the one thread that receives, however busy the workers
//! are. One that misses is queued for a worker, which loads the value from the origin. With 16
//! workers and room for 256 in the queue, the 300th that waits is refused with `503`, and where
//! answers take long that happens sooner: nobody is let in who would wait for more than 50 ms and
//! for longer than one answer takes. The peer that gets `503` loads the value by itself.
//!
//! An answer of more than 8 KiB may have to wait for its client, so a thread of `slow_clients`
//! sends it.
//!
//! | thread | how many | started by | ends |
//! |---|---|---|---|
//! | tiny_http's, without a name | one per connection, and the acceptor | tiny_http | with the connection, or 5 s later |
//! | `http-keeper` | 1 | [`listener`] | when the server stops accepting |
//! | `http-late` | one for each acceptor that had died | the keeper | when that one's connections have timed out |
//! | `geecache-intake` | 1, and one for each that a client holds up | [`intake`] | when the listener is closed, or another has its turn |
//! | `geecache-standby` | 1 | [`intake`] | when the listener is closed |
//! | `geecache-worker-0`, … | [`ServerOptions::workers`] | [`workers`] | when the server drains and the queue is empty |
//! | `geecache-slow-client` | one per client that is being waited for | [`slow_clients`] | 5 s after its last job |
//!
//! A shutdown goes the other way round: the listener accepts no more connections, the workers
//! finish what was let in, then the threads end.
//!
//! Read on in `routes`, `workers` and `queue`, then `intake` and `turn`; `request` and `reply` are
//! what these are written in.

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
use std::time::Duration;

use tiny_http::{Request, ResponseBox};

use self::intake::Intake;
use self::listener::Listener;
use self::routes::Routes;
use self::workers::Workers;
use super::options::ServerOptions;
use crate::stats::Counter;
use crate::{Error, Group};

/// Answers peers over HTTP, misses on a pool of worker threads, until it is
/// [shut down](Self::shutdown) or dropped.
///
/// Besides the questions of peers it answers `GET /healthz` and `GET /metrics`.
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
pub struct HttpServer {
    listener: Arc<Listener>,
    workers: Arc<Workers>,
    intake: Option<Intake>,
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
        let shed = Arc::new(Counter::default());
        let routes = Arc::new(Routes {
            groups: by_name,
            base_path: options.base_path.clone(),
            token: options.token.clone(),
            shed: shed.clone(),
        });
        let caches = routes.clone();
        let from_caches =
            move |request: &Request, body: &[u8]| caches.answer_from_caches(request, body);
        let handler = move |request: &Request, body: &[u8]| routes.answer(request, body);
        Self::run(listener, &options, shed, from_caches, handler)
    }

    /// Serves anything, with the same listener, workers and shutdown: a front of your own, for
    /// example. The handler gets a request and its whole body, of up to 1 MiB. A body that was sent
    /// in chunks may have been cut short by its client: tiny_http does not tell.
    /// `base_path` and `token` are ignored.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn serve(
        listener: TcpListener,
        options: ServerOptions,
        handler: impl Fn(&Request, &[u8]) -> ResponseBox + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        Self::run(listener, &options, Arc::default(), |_, _| None, handler)
    }

    fn run(
        listener: TcpListener,
        options: &ServerOptions,
        shed: Arc<Counter>,
        from_caches: impl Fn(&Request, &[u8]) -> Option<ResponseBox> + Send + Sync + 'static,
        handler: impl Fn(&Request, &[u8]) -> ResponseBox + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        options.check()?;
        let listener = Arc::new(Listener::new(listener, options.idle_timeout)?);
        let workers = Arc::new(Workers::start(options.workers, options.queue, shed, handler)?);
        let intake = Intake::start(listener.clone(), workers.clone(), from_caches)
            .inspect_err(|_| listener.close())?;
        Ok(Self { listener, workers, intake: Some(intake) })
    }

    /// The address that is listened on.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Accepts no more connections, answers new requests with `503`, finishes what is in flight
    /// for up to `grace`, and ends the threads. Returns whether everything that was accepted has
    /// been answered. A worker whose getter takes longer ends when that returns.
    pub fn shutdown(mut self, grace: Duration) -> bool {
        self.stop(grace)
    }

    fn stop(&mut self, grace: Duration) -> bool {
        let Some(mut intake) = self.intake.take() else { return true };
        self.listener.stop_accepting();
        let finished = self.workers.drain(grace);
        intake.close();
        finished
    }
}

/// Shuts down with a grace of 5 seconds.
impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stop(Duration::from_secs(5));
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
        let token = Some("from a file\n".into());
        assert!(start(vec![], ServerOptions { token, ..default() }).is_some());
        assert!(start(vec![], ServerOptions { base_path: "/x".into(), ..default() }).is_some());
    }
}
