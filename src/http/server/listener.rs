//! The accepting side of the HTTP server: tiny_http 0.12 with its flaws cured. Skip it at the first
//! reading: requests come out of [`Generation::recv`], and nothing else depends on it.
//!
//! tiny_http turns a socket into [`Request`]s, with one thread per connection. It leaves four
//! things to its user, and they are done here.
//!
//! **Nothing times out.** A client that sends nothing, or reads nothing, holds its thread for
//! ever. On Linux an accepted socket inherits the timeouts of the listening one, so they are set
//! there. `accept` would then time out as well, but the knocks (below) come first.
//!
//! **Connections are left without a thread.** tiny_http's pool counts a thread as idle until it
//! has really woken. So of a burst of connections, some are queued for threads that are already
//! taken, and the queue is looked at again only when another connection ends. The cure is to
//! *knock*: to connect to ourselves and send an empty line. A pool thread answers that with a 400,
//! and then looks into the queue. If a knock finds no idle thread, the pool starts one more. We knock
//! some times when a request comes from a new address, again and again for 200 ms, and then once a second.
//!
//! **The acceptor ends at its first error.** Without file descriptors, or if no thread can be
//! started, it returns or panics, and the process lives on and accepts nothing. But then no knock is
//! answered either. So if one after the other is connected and not answered, a new *generation* begins:
//! another [`Server`] on the same socket, with an intake of its own. The old one runs on until its
//! connections must have ended. Connections that were waiting to be accepted are closed, or the new
//! acceptor would fail at them too. A knock that cannot be made says nothing of the acceptor.
//!
//! **It cannot stop accepting alone.** Dropping a [`Server`] also orphans its open connections.
//! Shutting the listening socket down ends only the acceptor, and frees the port.

use std::collections::HashSet;
use std::fmt::Display;
use std::io::{self, Read, Write};
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use socket2::SockRef;
use tiny_http::{Request, Server};

use super::request::client_of;

/// Connections the kernel holds for us until they are accepted; std asks for 128 only.
const BACKLOG: i32 = 1024;
/// How long one write may wait for a client that does not read. Then a slow thread tries again, so that
/// such clients do not hold up others.
const WRITE_TIMEOUT: Duration = Duration::from_millis(4);
/// The kernel ends a connection whose client has taken nothing for so long.
#[cfg(target_os = "linux")]
const DEAF_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the keeper knocks in any case, and a generation looks whether it is over.
const LOOK: Duration = Duration::from_millis(500);
/// The same after a new address, ten times.
const BUSY_LOOK: Duration = Duration::from_millis(20);
/// How many knocks a new address calls for, and how many addresses are noted in advance.
const KNOCKS: usize = 8;
const RINGS: usize = 16;
/// How many addresses are known, so that they are not new.
const MOST_KNOWN: usize = 4096;
/// How long a knock may take. One that takes longer may be queued behind other connections.
const KNOCK_TIMEOUT: Duration = Duration::from_millis(10);
/// After so many knocks in a row without an answer, 1.3 s, the acceptor counts as dead. The last six have
/// 20 ms to 640 ms, so that a node with little of a processor is not taken for one without an acceptor.
const DEAF: u32 = 12;
/// The threads that a [`Server`] starts with.
const SERVER_THREADS: usize = 5;

/// The listening socket, and the thread that keeps it alive.
pub(super) struct Listener {
    is_stopped: Arc<AtomicBool>,
    bell: Sender<()>,
    // Guards the keeper; `None` once it is stopped.
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Listener {
    /// Starts accepting, and runs `intake` on a thread of its own for each generation. A connection that
    /// is silent for `idle_timeout` is closed. It knocks at the first of the `doors` that there is.
    pub(super) fn start(
        socket: TcpListener,
        doors: Vec<SocketAddr>,
        idle_timeout: Duration,
        intake: impl Fn(Generation) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let inherited = SockRef::from(&socket);
        inherited.set_read_timeout(Some(idle_timeout))?;
        inherited.set_write_timeout(Some(WRITE_TIMEOUT))?;
        #[cfg(target_os = "linux")]
        inherited.set_tcp_user_timeout(Some(DEAF_TIMEOUT))?;
        inherited.set_tcp_nodelay(true)?;
        inherited.listen(BACKLOG)?;

        let (bell, rings) = bounded(RINGS);
        let mut keeper = Keeper {
            socket,
            doors,
            idle_timeout,
            intake: Arc::new(intake),
            bell: bell.clone(),
            accepts: Arc::default(),
            unanswered: 0,
            is_troubled: false,
            has_been_answered: false,
        };
        keeper.begin_generation()?;
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stopped = is_stopped.clone();
        let thread = thread::Builder::new().name("geecache-keeper".into());
        let thread = thread.spawn(move || keeper.run(&rings, &stopped))?;
        Ok(Self { is_stopped, bell, keeper: Mutex::new(Some(thread)) })
    }

    /// Refuses new connections from now on and frees the port. Requests on open connections are still
    /// taken in, so that they can be told of the shutdown. Returns `false` if that had been done before.
    pub(super) fn stop_accepting(&self) -> bool {
        let keeper = self.keeper.lock().unwrap().take();
        let Some(thread) = keeper else { return false };
        self.is_stopped.store(true, Ordering::Relaxed);
        let _ = self.bell.try_send(());
        let _ = thread.join();
        true
    }
}

/// A server of tiny_http's, and the requests on the connections that it has accepted.
pub(super) struct Generation {
    server: Server,
    /// `false` once the next generation accepts, or none does.
    accepts: Arc<AtomicBool>,
    idle_timeout: Duration,
    silent_since: Instant,
    /// The addresses that requests have come from.
    known: HashSet<SocketAddr>,
    bell: Sender<()>,
}

impl Generation {
    /// The next request; waits for it, and calls `look` once a second at least. `None` if it accepts no
    /// more and its connections must have ended.
    pub(super) fn recv(&mut self, look: impl Fn()) -> Option<Request> {
        loop {
            look();
            // An error is the end of the acceptor, which the keeper finds out by itself.
            let request = self.server.recv_timeout(LOOK).ok().flatten();
            if request.is_some() || self.accepts.load(Ordering::Relaxed) {
                self.silent_since = Instant::now();
            }
            if request.is_some() {
                return self.noted(request);
            }
            if self.silent_since.elapsed() > self.idle_timeout + LOOK {
                return None;
            }
        }
    }

    /// The next request, if it is there already.
    pub(super) fn try_recv(&mut self) -> Option<Request> {
        let request = self.server.try_recv().ok().flatten();
        self.noted(request)
    }

    /// Asks for knocks if the request is the first from its address.
    fn noted(&mut self, request: Option<Request>) -> Option<Request> {
        if self.known.len() == MOST_KNOWN {
            self.known.clear();
        }
        if self.known.insert(client_of(request.as_ref()?)) {
            let _ = self.bell.try_send(());
        }
        request
    }
}

/// The thread that owns the listening socket, knocks, and replaces a dead server. When it is dropped,
/// nothing is accepted any more.
struct Keeper {
    socket: TcpListener,
    doors: Vec<SocketAddr>,
    idle_timeout: Duration,
    intake: Arc<dyn Fn(Generation) + Send + Sync>,
    bell: Sender<()>,
    /// Tells the current generation when it is no longer that.
    accepts: Arc<AtomicBool>,
    /// How many knocks in a row were not answered.
    unanswered: u32,
    /// A problem has been logged.
    is_troubled: bool,
    /// A knock has been answered once: the server can be reached from here.
    has_been_answered: bool,
}

impl Keeper {
    fn run(mut self, rings: &Receiver<()>, is_stopped: &AtomicBool) {
        let mut rung = Instant::now();
        while !is_stopped.load(Ordering::Relaxed) {
            let is_busy = rung.elapsed() < 10 * BUSY_LOOK;
            (0..if is_busy { KNOCKS } else { 1 }).for_each(|_| self.knock());
            let pause = match self.unanswered {
                1.. => Duration::ZERO,
                0 if is_busy => BUSY_LOOK,
                // Before `accept` times out.
                0 => LOOK.min(self.idle_timeout / 4),
            };
            if rings.recv_timeout(pause).is_ok() {
                rung = Instant::now();
            }
        }
        // The last knocks that can be accepted: they empty the pool's queue.
        (0..KNOCKS).for_each(|_| self.knock());
    }

    /// Knocks, and replaces a server that has not answered for long.
    fn knock(&mut self) {
        match self.try_knock() {
            Ok(true) => {
                (self.unanswered, self.has_been_answered) = (0, true);
                if mem::take(&mut self.is_troubled) {
                    log::info!("{} answers again", self.doors[0]);
                }
            }
            Ok(false) => {
                self.unanswered += 1;
                if self.unanswered == DEAF {
                    self.unanswered = 0;
                    self.warn("does not answer newcomers, accepting anew");
                    // Without descriptors or threads this fails, and is tried again after as many knocks.
                    let _ = self.replace();
                }
            }
            Err(error) => self.warn(format!("cannot be reached, newcomers may wait: {error}")),
        }
    }

    fn warn(&mut self, what: impl Display) {
        if !mem::replace(&mut self.is_troubled, true) {
            log::warn!("{} {what}", self.doors[0]);
        }
    }

    /// Makes one pool thread answer 400 to an empty line. `false` if no answer comes; an error if no
    /// connection can be made.
    fn try_knock(&self) -> io::Result<bool> {
        let timeout = KNOCK_TIMEOUT * (1 << self.unanswered.saturating_sub(DEAF - 7));
        let mut failure = None;
        for door in &self.doors {
            match TcpStream::connect_timeout(door, timeout) {
                Ok(stream) => return Ok(is_answered(stream, timeout).unwrap_or(false)),
                Err(error) => failure = Some(error),
            }
        }
        let error = failure.expect("there is a door");
        // Where it could be reached before, the backlog is full: nobody accepts.
        let is_full = error.kind() == io::ErrorKind::TimedOut && self.has_been_answered;
        if is_full { Ok(false) } else { Err(error) }
    }

    /// Puts a new server in the place of one that does not accept any more.
    fn replace(&mut self) -> io::Result<()> {
        // Connections that wait are closed: all of them together would use up the descriptors again.
        self.socket.set_nonblocking(true)?;
        (0..BACKLOG).map_while(|_| self.socket.accept().ok()).for_each(drop);
        self.socket.set_nonblocking(false)?;
        self.begin_generation()
    }

    fn begin_generation(&mut self) -> io::Result<()> {
        let accepts = Arc::new(AtomicBool::new(true));
        let (intake, bell, is_current) = (self.intake.clone(), self.bell.clone(), accepts.clone());
        let (idle_timeout, (hand_over, server)) = (self.idle_timeout, bounded(1));
        // The thread first: without one, connections would be accepted in vain.
        thread::Builder::new().name("geecache-intake".into()).spawn(move || {
            if let Ok(server) = server.recv() {
                let (silent_since, known) = (Instant::now(), HashSet::new());
                let accepts = is_current;
                intake(Generation { server, accepts, idle_timeout, silent_since, known, bell });
            }
        })?;
        let server = serve(&self.socket)?;
        let _ = hand_over.send(server);
        mem::replace(&mut self.accepts, accepts).store(false, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = SockRef::from(&self.socket).shutdown(Shutdown::Read);
        self.accepts.store(false, Ordering::Relaxed);
    }
}

/// Starts a server on a socket that stays ours.
fn serve(socket: &TcpListener) -> io::Result<Server> {
    let socket = socket.try_clone()?;
    // tiny_http panics where it cannot start a thread. So we start as many first; if other threads
    // take their place meanwhile, it still panics.
    thread::scope(|scope| {
        let (_open, gate) = bounded::<()>(0);
        (0..SERVER_THREADS).try_for_each(|_| {
            let gate = gate.clone();
            let wait = move || gate.recv();
            thread::Builder::new().spawn_scoped(scope, wait).map(drop)
        })
    })?;
    match catch_unwind(|| Server::from_listener(socket, None)) {
        Ok(server) => server.map_err(io::Error::other),
        Err(_) => Err(io::Error::other("no thread for the acceptor")),
    }
}

/// The addresses at which to knock: a wildcard address is reached by the loopback of its family, or by
/// that of the other one, where a machine has no `::1`.
pub(super) fn doors(addr: SocketAddr) -> Vec<SocketAddr> {
    let (v4, v6) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
    let ips = match addr {
        _ if !addr.ip().is_unspecified() => vec![addr.ip()],
        SocketAddr::V4(_) => vec![v4],
        SocketAddr::V6(_) => vec![v6, v4],
    };
    ips.into_iter().map(|ip| SocketAddr::new(ip, addr.port())).collect()
}

fn is_answered(mut stream: TcpStream, timeout: Duration) -> io::Result<bool> {
    // Closing resets the connection, or the kernel would remember each of them for a minute.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(b"\r\n")?;
    // The end of the answer, not its start: now the thread is about to look into the queue.
    Ok(stream.take(1024).read_to_end(&mut Vec::new())? > 0)
}

#[cfg(test)]
mod tests;
