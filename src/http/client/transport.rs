//! `Connections`: ureq's agent for one peer, with a resolver, TLS roots and a transport of our own.
//! Everything that names `ureq::unversioned`, which may change with each minor version, is here.
//!
//! ```text
//!  Agent    with its pool of idle connections
//!   └─ Link    a question leaves in one packet, and few calls of the kernel are made
//!       └─ RustlsConnector    with the feature `tls`, where the URL begins with https
//!           └─ TcpConnector  ◀── Addresses    looked up beforehand
//! ```
//!
//! A connection does not stay open for ever, and no end is told of it: a box on the way forgets it, the
//! peer's address is given to another host. And ureq's pool takes the connection first that has
//! been idle for longest, so that a trickle of requests keeps all open that a burst has opened. One
//! rule does for all of this: the agent is replaced, and with it the pool and all connections, after
//! [`MAX_AGE`] and when a question has failed on one of them.
//!
//! ureq's own resolver starts a thread for each request that has a deadline, for kept connections and
//! numeric addresses too, and panics where none can be had.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ureq::config::Config;
use ureq::http::Uri;
#[cfg(feature = "tls")]
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
#[cfg(feature = "tls")]
use ureq::unversioned::transport::RustlsConnector;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, NextTimeout, TcpConnector, Transport,
};
use ureq::{Agent, Error};

use super::addresses::Addresses;
use crate::PoolOptions;

/// The oldest connections are replaced after this time, and no idle one is used after it. Shorter than
/// the time after which a server closes it,
/// [`ServerOptions::idle_timeout`](crate::ServerOptions::idle_timeout).
pub(super) const MAX_AGE: Duration = Duration::from_secs(15);
/// Connecting, TLS included, may take this part of the time for a question: half a second of three.
const CONNECTING: u32 = 6;
/// How many idle connections are kept for each peer. More than there are lanes for combined gets;
/// large values and groups that miss much go beside those.
const MAX_IDLE: usize = 64;

/// The connections to one peer.
pub(super) struct Connections {
    connect: Box<dyn Fn() -> Agent + Send + Sync>,
    // Guards which connections are used. They are closed outside of it.
    current: Mutex<Arc<Generation>>,
}

/// Connections that are used as long as none of them has failed.
pub(super) struct Generation {
    pub(super) agent: Agent,
    began: Duration,
}

impl Connections {
    pub(super) fn new(options: &PoolOptions, addresses: Addresses, now: Duration) -> Self {
        let config = config(options);
        let connect = move || {
            let connector = ().chain(TcpConnector::default());
            // Below the links, so that bytes that are written together are one record, too.
            #[cfg(feature = "tls")]
            let connector = connector.chain(RustlsConnector::default());
            let connector = connector.chain(Links);
            Agent::with_parts(config.clone(), connector, addresses.clone())
        };
        let current = Mutex::new(Arc::new(Generation { agent: connect(), began: now }));
        Self { connect: Box::new(connect), current }
    }

    /// The connections that a question may use.
    pub(super) fn current(&self, now: Duration) -> Arc<Generation> {
        let current = self.current.lock().unwrap().clone();
        if now < current.began + MAX_AGE { current } else { self.replace(&current, now) }
    }

    /// The connections that are used instead of those, on which a question has failed: all of those are
    /// closed, the ones in use once their questions end.
    pub(super) fn replace(&self, old: &Arc<Generation>, now: Duration) -> Arc<Generation> {
        let mut current = self.current.lock().unwrap();
        if Arc::ptr_eq(&current, old) {
            // Nothing is closed under the lock: the caller has a share of the old ones.
            *current = Arc::new(Generation { agent: (self.connect)(), began: now });
        }
        current.clone()
    }
}

fn config(options: &PoolOptions) -> Config {
    let config = Agent::config_builder()
        .timeout_global(Some(options.timeout))
        .timeout_resolve(Some(options.timeout / CONNECTING))
        .timeout_connect(Some(options.timeout / CONNECTING))
        .max_idle_connections(MAX_IDLE)
        .max_idle_connections_per_host(MAX_IDLE)
        .max_idle_age(MAX_AGE)
        .http_status_as_error(false)
        // The environment's proxies are not meant for peers, and an answer that
        // points elsewhere is not a peer's.
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent("geecache")
        .accept("")
        // Some proxies compress unless they are told not to.
        .accept_encoding("identity");
    #[cfg(feature = "tls")]
    let config = config
        .tls_config(trust(options.root_certificates.as_deref()).expect("the options are checked"));
    config.build()
}

/// Which certificates this node trusts behind `https://`: those that lead to one of `roots`, which
/// are in PEM, or else to one of the Mozilla roots. Serving TLS is left to a proxy; see `guide::access`.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config) if there is no certificate in `roots`.
#[cfg(feature = "tls")]
pub(in crate::http) fn trust(roots: Option<&[u8]>) -> Result<TlsConfig, crate::Error> {
    let Some(roots) = roots else { return Ok(TlsConfig::default()) };
    let wrong = |what: String| crate::Error::Config(format!("root_certificates: {what}"));
    let certificate = |item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
        Ok(_) => None,
        Err(error) => Some(Err(wrong(format!("{error}")))),
    };
    let roots: Vec<_> = parse_pem(roots).filter_map(certificate).collect::<Result<_, _>>()?;
    if roots.is_empty() {
        return Err(wrong("no certificate in PEM form".into()));
    }
    Ok(TlsConfig::builder().root_certs(RootCerts::from(roots)).build())
}

/// A connection that was in use this shortly before is not tested. Not longer: a peer that restarts
/// closes connections that were just in use.
const A_MOMENT: Duration = Duration::from_millis(1);
/// So many bytes are held back at the most.
const MOST_HELD: usize = 16 << 10;

/// The outermost connector: makes a [`Link`] of the connection that the others have made.
#[derive(Debug)]
struct Links;

/// A connection that costs few calls of the kernel, and knows whether its failure says anything.
///
/// - For each request ureq asks twice whether the connection is still open, with three calls each. One on
///   which something came a moment ago is taken to be open.
/// - A request with a body takes two writes, and the first wakes the peer for nothing. So the bytes are
///   held back until an answer is awaited.
/// - A connection that a box on the way has forgotten fails before a byte of the answer has come. That
///   says nothing of the peer, so it is told apart as [stale](is_stale).
#[derive(Debug)]
struct Link<T> {
    inner: T,
    last_use: Instant,
    /// Written and not sent.
    held: Vec<u8>,
    /// It has carried an answer before, and no byte of the next one has come.
    may_be_stale: bool,
}

impl<T: Transport> Connector<T> for Links {
    type Out = Link<T>;

    fn connect(
        &self,
        _details: &ConnectionDetails<'_>,
        chained: Option<T>,
    ) -> Result<Option<Link<T>>, Error> {
        Ok(chained.map(Link::new))
    }
}

impl<T: Transport> Link<T> {
    fn new(inner: T) -> Self {
        Self { inner, last_use: Instant::now(), held: Vec::new(), may_be_stale: false }
    }

    /// The error as this layer tells it; a time-out always counts.
    fn failed(&self, error: Error) -> Error {
        match error {
            Error::Timeout(_) => error,
            _ if self.may_be_stale => Error::ConnectionFailed,
            error => error,
        }
    }

    fn send_held(&mut self, timeout: NextTimeout) -> Result<(), Error> {
        let room = self.inner.buffers().output().len();
        for part in self.held.chunks(room) {
            self.inner.buffers().output()[..part.len()].copy_from_slice(part);
            self.inner.transmit_output(part.len(), timeout)?;
        }
        self.held.clear();
        Ok(())
    }
}

impl<T: Transport> Transport for Link<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.held.extend_from_slice(&self.inner.buffers().output()[..amount]);
        if self.held.len() <= MOST_HELD {
            return Ok(());
        }
        self.send_held(timeout).map_err(|error| self.failed(error))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let progress = self.send_held(timeout).and_then(|()| self.inner.await_input(timeout));
        let progress = progress.map_err(|error| self.failed(error))?;
        if self.may_be_stale && !progress {
            return Err(Error::ConnectionFailed);
        }
        self.may_be_stale = false;
        self.last_use = Instant::now();
        Ok(progress)
    }

    /// ureq asks this when it gives the connection to its pool, and when it takes it from there.
    fn is_open(&mut self) -> bool {
        self.may_be_stale = true;
        self.last_use.elapsed() < A_MOMENT || self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

impl Resolver for Addresses {
    fn resolve(
        &self,
        _uri: &Uri,
        _config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let mut addresses = self.empty();
        match self.get(*timeout.after) {
            Ok(found) => {
                // As many as ureq takes.
                let taken = found.into_iter().map_while(|address| addresses.try_push(address).ok());
                taken.for_each(drop);
                Ok(addresses)
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                Err(Error::Timeout(timeout.reason))
            }
            Err(error) => Err(Error::Io(error)),
        }
    }
}

/// Whether the error says something of an old connection alone, and nothing of the peer. ureq itself says
/// so only of connectors that make no connection, and ours does.
pub(super) fn is_stale(error: &Error) -> bool {
    matches!(error, Error::ConnectionFailed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ureq::unversioned::transport::LazyBuffers;

    #[derive(Debug)]
    struct Wire {
        buffers: LazyBuffers,
        sent: Vec<Vec<u8>>,
    }

    impl Transport for Wire {
        fn buffers(&mut self) -> &mut dyn Buffers {
            &mut self.buffers
        }

        fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), Error> {
            self.sent.push(self.buffers.output()[..amount].to_vec());
            Ok(())
        }

        fn await_input(&mut self, _: NextTimeout) -> Result<bool, Error> {
            Ok(true)
        }

        fn is_open(&mut self) -> bool {
            true
        }
    }

    impl Link<Wire> {
        fn write(&mut self, bytes: &[u8]) {
            self.buffers().output()[..bytes.len()].copy_from_slice(bytes);
            self.transmit_output(bytes.len(), NextTimeout::default()).unwrap();
        }

        fn read(&mut self) -> Vec<Vec<u8>> {
            assert!(self.await_input(NextTimeout::default()).unwrap());
            std::mem::take(&mut self.inner.sent)
        }
    }

    #[test]
    fn what_is_written_leaves_together_when_an_answer_is_awaited() {
        let wire = Wire { buffers: LazyBuffers::new(1 << 10, 2 * MOST_HELD), sent: vec![] };
        let mut held = Link::new(wire);
        held.write(b"head, ");
        held.write(b"body");
        assert!(held.inner.sent.is_empty());
        assert_eq!(held.read(), [b"head, body"]);
        assert_eq!(held.read(), [[0; 0]; 0], "nothing is sent twice");

        // What is long leaves in time, and in order.
        let long = vec![b'x'; 2 * MOST_HELD];
        held.write(b"head");
        held.write(&long);
        held.write(b"end");
        assert_eq!(held.inner.sent.concat(), [b"head", &long[..]].concat());
        assert_eq!(held.read().concat(), [b"head", &long[..], b"end"].concat());
    }

    #[cfg(feature = "tls")]
    #[test]
    fn roots_that_are_no_certificates_are_refused() {
        for roots in ["", "no PEM", "-----BEGIN CERTIFICATE-----\n~\n-----END CERTIFICATE-----\n"] {
            let root_certificates = Some(roots.into());
            let options = PoolOptions { root_certificates, ..PoolOptions::default() };
            assert!(options.check().is_err());
        }
    }
}
