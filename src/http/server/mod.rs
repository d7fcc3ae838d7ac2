//! `HttpServer`: one node's listening side, from the socket to the last answer.
//!
//! Requests come out of the listener, are received one after the other, and answered there or by
//! the workers. A shutdown goes the other way round: nobody new, then what was accepted, then the
//! threads.

mod intake;
mod listener;
mod routes;
mod slow_clients;
mod workers;

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tiny_http::{Request, ResponseBox};

use self::intake::Receiver;
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
    receiver: Option<Receiver>,
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
        let at_hand = move |request: &Request, body: &[u8]| caches.answer_at_hand(request, body);
        let handler = move |request: &Request, body: &[u8]| routes.answer(request, body);
        Self::run(listener, &options, shed, at_hand, handler)
    }

    /// Serves anything, with the same listener, workers and shutdown: a front of your own, say.
    /// The handler is given a request with its whole body, which has up to 1 MiB. One that is sent
    /// in chunks may have been cut short by its client: tiny_http does not tell.
    /// `base_path` and `token` are not looked at.
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
        at_hand: impl Fn(&Request, &[u8]) -> Option<ResponseBox> + Send + Sync + 'static,
        handler: impl Fn(&Request, &[u8]) -> ResponseBox + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        options.check()?;
        let listener = Arc::new(Listener::new(listener, options.idle_timeout)?);
        let workers = Arc::new(Workers::start(options.workers, options.queue, shed, handler)?);
        let receiver = Receiver::start(listener.clone(), workers.clone(), at_hand)
            .inspect_err(|_| listener.close())?;
        Ok(Self { listener, workers, receiver: Some(receiver) })
    }

    /// The address that is listened on.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Accepts no more connections, answers new requests with `503`, finishes what is in flight
    /// for up to `grace`, and ends the threads. Whether all that was accepted has been answered;
    /// a worker whose getter takes longer ends when that returns.
    pub fn shutdown(mut self, grace: Duration) -> bool {
        self.stop(grace)
    }

    fn stop(&mut self, grace: Duration) -> bool {
        let Some(mut receiver) = self.receiver.take() else { return true };
        self.listener.stop_accepting();
        let finished = self.workers.drain(grace);
        self.listener.close();
        receiver.close();
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
