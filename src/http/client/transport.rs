//! `agent`: the ureq agent that asks one peer, with connections, a resolver and TLS roots of our own.
//! Everything that names `ureq::unversioned`, which may change with each minor version, is here.
//!
//! ```text
//!  Agent
//!   └─ Reusing    takes an idle connection, or makes one; gives it back after the answer
//!       └─ Coalesced    what is written leaves in one packet, when an answer is awaited
//!           └─ RustlsConnector    with the feature `tls`, where the URL begins with https
//!               └─ RoundedTimeouts    a time-out is set on the socket only where it changes
//!                   └─ TcpConnector  ◀── Addresses    looked up beforehand
//! ```
//!
//! ureq's own pool is not used: it takes the connection first that has been idle for longest, so that
//! a trickle of requests keeps all open that a burst has opened; and it does not say whether a
//! connection was used before, which decides what a failure means. A connection that a box on the way
//! has forgotten fails before a byte of the answer has come. That says nothing of the peer, so it is
//! told apart as [stale](is_stale).
//!
//! ureq's own resolver starts a thread for each request that has a deadline, for kept connections and
//! numeric addresses too, and panics where none can be had.
//!
//! For each request ureq sets both time-outs of the socket anew, since a little less time is
//! left than for the last one, and asks twice whether the connection is still open, with three
//! calls each. A small request takes one write and one read; the other eight calls cost as much.
//! So the time that is left is rounded up, which makes it the same as before, and a connection
//! on which something came a moment ago is taken to be open.
//!
//! A request with a body takes two writes, and the first wakes the peer for nothing. So what
//! is written is held back until an answer is awaited; above TLS, so that it is one record too.

use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io};

use ureq::config::Config;
use ureq::http::Uri;
#[cfg(feature = "tls")]
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
#[cfg(feature = "tls")]
use ureq::unversioned::transport::RustlsConnector;
use ureq::unversioned::transport::time::Duration as Left;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, NextTimeout, TcpConnector, Transport,
};
use ureq::{Agent, Error};

use super::addresses::{self, Addresses};
use super::idle::{Connection, Idle};
use crate::PoolOptions;
use crate::clock::Clock;

/// An agent for the peer at `base_url`, with its connections and addresses.
pub(super) fn agent(
    base_url: &str,
    options: &PoolOptions,
    clock: &Clock,
) -> (Agent, Arc<Connections>, Addresses) {
    let config = Agent::config_builder()
        .timeout_connect(Some(options.connect_timeout))
        .timeout_global(Some(options.timeout))
        .max_idle_connections(0)
        .max_idle_connections_per_host(0)
        .http_status_as_error(false)
        // What the environment says of proxies is not meant for peers, and an answer that
        // points elsewhere is not a peer's.
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent("geecache")
        .accept("")
        .accept_encoding("");
    #[cfg(feature = "tls")]
    let config =
        config.tls_config(trust(options.root_certificates.as_deref()).expect("the pool checks it"));
    let idle = Arc::new(Idle::new(options.max_idle_connections));
    let when_changed = {
        let (idle, clock) = (idle.clone(), clock.clone());
        move || idle.reopen(clock.now())
    };
    let name = host_and_port(base_url);
    let addresses = Addresses::new(name, clock.clone(), addresses::by_system, when_changed);
    let step = options.timeout / 16 + Duration::from_nanos(1); // never zero
    let connector = ().chain(TcpConnector::default()).chain(RoundedTimeouts { step });
    // Outside of the rounded time-outs: those are the socket's.
    #[cfg(feature = "tls")]
    let connector = connector.chain(RustlsConnector::default());
    let connector = Reusing { connector, idle: idle.clone(), clock: clock.clone() };
    let agent = Agent::with_parts(config.build(), connector, addresses.clone());
    (agent, idle, addresses)
}

/// As the system's resolver wants it: `host:port`, with the scheme's own port where none is given.
fn host_and_port(base_url: &str) -> String {
    let uri: Uri = base_url.parse().expect("the pool checks it");
    let authority = uri.authority().expect("the pool checks it");
    let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(default))
}

/// Which certificates this node trusts behind `https://`: those that lead to one of `roots`, which
/// are in PEM, or else to one of the Mozilla roots. Serving TLS is left to a proxy; see the README.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config) if there is no certificate in `roots`.
#[cfg(feature = "tls")]
fn trust(roots: Option<&[u8]>) -> Result<TlsConfig, crate::Error> {
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

/// Refuses options from which no [`agent`] can be made.
pub(in crate::http) fn check(options: &PoolOptions) -> Result<(), crate::Error> {
    #[cfg(feature = "tls")]
    trust(options.root_certificates.as_deref())?;
    let _ = options;
    Ok(())
}

/// A connection that was in use this shortly before is not tested. Not longer: a peer that restarts
/// closes connections that were just in use.
const A_MOMENT: Duration = Duration::from_millis(1);

/// Wraps the connection that the connector before it in the chain has made.
#[derive(Debug)]
struct RoundedTimeouts {
    /// Remaining time is rounded up to a multiple of this, so a deadline may be that late.
    step: Duration,
}

#[derive(Debug)]
struct Rounded<T> {
    inner: T,
    step: Duration,
    last_use: Instant,
}

impl<T: Transport> Connector<T> for RoundedTimeouts {
    type Out = Rounded<T>;

    fn connect(
        &self,
        _details: &ConnectionDetails<'_>,
        chained: Option<T>,
    ) -> Result<Option<Rounded<T>>, Error> {
        let rounded = |inner| Rounded { inner, step: self.step, last_use: Instant::now() };
        Ok(chained.map(rounded))
    }
}

impl<T: Transport> Rounded<T> {
    fn rounded(&self, timeout: NextTimeout) -> NextTimeout {
        let after = match timeout.after {
            Left::Exact(left) if !left.is_zero() => Left::Exact(round_up(left, self.step)),
            after => after,
        };
        NextTimeout { after, ..timeout }
    }
}

impl<T: Transport> Transport for Rounded<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.inner.transmit_output(amount, self.rounded(timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let progress = self.inner.await_input(self.rounded(timeout))?;
        self.last_use = Instant::now();
        Ok(progress)
    }

    fn is_open(&mut self) -> bool {
        self.last_use.elapsed() < A_MOMENT || self.inner.is_open()
    }
}

fn round_up(left: Duration, step: Duration) -> Duration {
    let steps = left.as_nanos().div_ceil(step.as_nanos());
    step.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX))
}

/// So many bytes are held back at the most.
const MOST_HELD: usize = 16 << 10;

/// Holds back what is written until an answer is awaited.
#[derive(Debug)]
struct Coalesced<T> {
    inner: T,
    // Written and not sent.
    held: Vec<u8>,
}

impl<T: Transport> Coalesced<T> {
    fn send_held(&mut self, timeout: NextTimeout) -> Result<(), Error> {
        let room = self.inner.buffers().output().len();
        for part in self.held.chunks(room) {
            self.inner.buffers().output()[..part.len()].copy_from_slice(part);
            self.inner.transmit_output(part.len(), timeout)?;
        }
        self.held.clear();
        self.held.shrink_to(MOST_HELD);
        Ok(())
    }
}

impl<T: Transport> Transport for Coalesced<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.held.extend_from_slice(&self.inner.buffers().output()[..amount]);
        if self.held.len() > MOST_HELD { self.send_held(timeout) } else { Ok(()) }
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.send_held(timeout)?;
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
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

/// The idle connections of one peer.
pub(super) type Connections = Idle<Box<dyn Transport>>;

/// The outermost connector: makes a connection, with [`Coalesced`] writes, where none is idle.
#[derive(Debug)]
struct Reusing<C> {
    connector: C,
    idle: Arc<Connections>,
    clock: Clock,
}

impl<C: Connector> Connector for Reusing<C> {
    type Out = InUse;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _chained: Option<()>,
    ) -> Result<Option<InUse>, Error> {
        let now = self.clock.now();
        let in_use = |connection, may_be_stale| InUse {
            connection: Some(connection),
            idle: self.idle.clone(),
            clock: self.clock.clone(),
            may_be_stale,
            is_whole: false,
        };
        while let Some(mut connection) = self.idle.take(now) {
            if connection.transport.is_open() {
                return Ok(Some(in_use(connection, true)));
            }
        }
        let transport = self.connector.connect(details, None)?;
        Ok(transport.map(|transport| {
            let transport = Box::new(Coalesced { inner: transport, held: Vec::new() });
            in_use(Connection { transport, opened: now, answered: now }, false)
        }))
    }
}

/// A connection that carries a question. When it is dropped after a whole answer, it is idle again.
#[derive(Debug)]
struct InUse {
    // `None` once it is given back.
    connection: Option<Connection<Box<dyn Transport>>>,
    idle: Arc<Connections>,
    clock: Clock,
    /// It was used before, and no byte of the answer has come.
    may_be_stale: bool,
    /// The answer has been read to its end.
    is_whole: bool,
}

impl InUse {
    fn connection(&mut self) -> &mut Connection<Box<dyn Transport>> {
        self.connection.as_mut().expect("it is given back only when it is dropped")
    }

    /// What a failure means; a time-out always counts.
    fn failed(&self, error: Error) -> Error {
        match error {
            Error::Timeout(_) => error,
            error if self.may_be_stale => Error::Other(Box::new(Stale(error))),
            error => error,
        }
    }
}

impl Transport for InUse {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.connection().transport.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let sent = self.connection().transport.transmit_output(amount, timeout);
        sent.map_err(|error| self.failed(error))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let progress = match self.connection().transport.await_input(timeout) {
            Ok(false) if self.may_be_stale => {
                Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
            }
            progress => progress,
        };
        let progress = progress.map_err(|error| self.failed(error))?;
        self.may_be_stale &= !progress;
        self.connection().answered = self.clock.now();
        Ok(progress)
    }

    /// Asked by ureq once the answer was read to its end, and only if it leaves the connection open.
    fn is_open(&mut self) -> bool {
        self.is_whole = self.connection().transport.is_open();
        self.is_whole
    }

    fn is_tls(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.transport.is_tls())
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take().filter(|_| self.is_whole) {
            self.idle.put(connection, self.clock.now());
        }
    }
}

/// Why a question failed on a connection that had been used before, before a byte of the answer.
#[derive(Debug)]
struct Stale(Error);

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Stale {}

/// Whether the error says something of an old connection alone, and nothing of the peer.
pub(super) fn is_stale(error: &Error) -> bool {
    matches!(error, Error::Other(error) if error.is::<Stale>())
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

    impl Coalesced<Wire> {
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
        let mut held = Coalesced { inner: wire, held: vec![] };
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

    #[test]
    fn what_is_left_is_rounded_up_by_less_than_a_step() {
        let millis = Duration::from_millis;
        for (left, rounded) in
            [(3_000, 3_000), (2_999, 3_000), (2_801, 3_000), (2_800, 2_800), (1, 200)]
        {
            assert_eq!(round_up(millis(left), millis(200)), millis(rounded));
        }
    }

    #[cfg(feature = "tls")]
    #[test]
    fn roots_that_are_no_certificates_are_refused() {
        for roots in ["", "no PEM", "-----BEGIN CERTIFICATE-----\n~\n-----END CERTIFICATE-----\n"] {
            let root_certificates = Some(roots.into());
            let options = PoolOptions { root_certificates, ..PoolOptions::default() };
            assert!(check(&options).is_err());
        }
    }
}
