//! The accepting side of the HTTP server: tiny_http 0.12 with its flaws cured. Skip it at the first
//! reading: requests come out of [`Listener::recv`], and nothing else depends on it.
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
//! and then looks into the queue. If a knock finds no idle thread, the pool starts one more. As
//! long as that happens, connections may still be queued, and we knock again. If no request has come
//! and the number of open files is the same as before, it is unlikely that connections have come,
//! and a knock each second is enough.
//!
//! **The acceptor ends at its first error.** Without file descriptors, or if no thread can be
//! started, it returns or panics, and the process lives on and accepts nothing. But then no knock is
//! answered either, and we put a new [`Server`] on the same socket. Clients of the old one are not forgotten: a thread hands
//! their requests over, until every connection that is still silent must have timed out.
//! Connections that were waiting to be accepted are closed, or the new acceptor would fail at them
//! too.
//!
//! **It cannot stop accepting alone.** Dropping a [`Server`] also orphans its open connections.
//! Shutting the listening socket down ends only the acceptor, and frees the port.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fs, mem};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use socket2::SockRef;
use tiny_http::{Request, Server};

/// Connections the kernel holds for us until they are accepted; std asks for 128 only.
const BACKLOG: i32 = 1024;
/// How long one write may wait for a client that does not read. It is tried again, see
/// [`reply`](super::reply), so this only says how exactly the deadline of an answer is met.
const WRITE_TIMEOUT: Duration = Duration::from_millis(250);
/// How often the keeper looks whether connections have come, ...
const TICK: Duration = Duration::from_millis(20);
/// ... and how often it knocks in any case: as many connections may have come as have gone.
const ROUND: Duration = Duration::from_millis(100);
/// The same while nothing happens.
const IDLE_TICK: Duration = Duration::from_millis(75);
const IDLE_ROUND: Duration = Duration::from_secs(1);
/// Knocks in one round at most, so that threads started elsewhere cannot keep us knocking.
const KNOCKS: usize = 64;
/// Knocks in one round if the threads cannot be counted.
const BLIND_KNOCKS: usize = 16;
/// The threads that a [`Server`] starts with.
const SERVER_THREADS: usize = 5;
/// How long a knock may take. One that takes longer is queued behind other connections.
const KNOCK_TIMEOUT: Duration = Duration::from_millis(10);
/// After this many knocks in a row without an answer, about a second, the acceptor counts as dead.
/// Knocks are counted, rather than time, so that a process that was suspended does not count.
const DEAF: u32 = 30;
/// After this many more it is tried again to replace it, if that failed.
const RETRY: u32 = 8;
/// How often a thread that waits for a request checks that its server has not been replaced.
const LOOK: Duration = Duration::from_secs(1);

/// A source of HTTP requests that survives bursts, idle clients and lack of file descriptors.
pub(crate) struct Listener {
    addr: SocketAddr,
    shared: Arc<Shared>,
    /// Requests on connections of replaced servers.
    late: Receiver<Request>,
    // Guards the keeper, and the channel whose end stops it. `None` once it is stopped.
    keeper: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

struct Shared {
    idle_timeout: Duration,
    /// `/proc/self`, or what stands for it in a test.
    proc: PathBuf,
    closed: AtomicBool,
    // Guards which server accepts.
    server: Mutex<Arc<Server>>,
    // Guards when the last request was received.
    last_request: Mutex<Instant>,
}

impl Shared {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn server(&self) -> Arc<Server> {
        self.server.lock().unwrap().clone()
    }

    fn note_request(&self) {
        *self.last_request.lock().unwrap() = Instant::now();
    }

    fn last_request(&self) -> Instant {
        *self.last_request.lock().unwrap()
    }
}

impl Listener {
    /// Starts accepting. A connection that is silent for `idle_timeout` is closed.
    pub(crate) fn new(socket: TcpListener, idle_timeout: Duration) -> io::Result<Listener> {
        Self::with_proc(socket, idle_timeout, "/proc/self".into())
    }

    fn with_proc(
        socket: TcpListener,
        idle_timeout: Duration,
        proc: PathBuf,
    ) -> io::Result<Listener> {
        let inherited = SockRef::from(&socket);
        inherited.set_read_timeout(Some(idle_timeout))?;
        inherited.set_write_timeout(Some(WRITE_TIMEOUT))?;
        inherited.set_tcp_nodelay(true)?;
        inherited.listen(BACKLOG)?;

        let addr = socket.local_addr()?;
        let shared = Arc::new(Shared {
            idle_timeout,
            proc,
            closed: AtomicBool::new(false),
            server: Mutex::new(serve(&socket)?),
            last_request: Mutex::new(Instant::now()),
        });
        let (sender, late) = unbounded();
        let keeper = Keeper { socket, door: door(addr), shared: shared.clone(), late: sender };
        let (stop, stopped) = bounded(0);
        let thread = thread::Builder::new()
            .name("http-keeper".into())
            .spawn(move || keeper.run(&stopped))?;
        let keeper = Mutex::new(Some((stop, thread)));
        Ok(Listener { addr, shared, late, keeper })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// The next request; waits for it. `None` once the listener is closed.
    pub(crate) fn recv(&self) -> Option<Request> {
        while !self.shared.is_closed() {
            // An error is the end of the acceptor, which the keeper finds out by itself.
            let newcomer = || self.shared.server().recv_timeout(LOOK).ok().flatten();
            if let Some(request) = self.late.try_recv().ok().or_else(newcomer) {
                self.shared.note_request();
                return Some(request);
            }
        }
        // One `unblock` wakes one thread, so each passes it on.
        self.shared.server().unblock();
        None
    }

    /// The next request, if it is there already.
    pub(crate) fn try_recv(&self) -> Option<Request> {
        self.late.try_recv().ok().or_else(|| self.shared.server().try_recv().ok().flatten())
    }

    /// Refuses new connections from now on and frees the port. Requests on open connections
    /// still come out of [`recv`](Self::recv), so that they can be told of the shutdown.
    pub(crate) fn stop_accepting(&self) {
        let keeper = self.keeper.lock().unwrap().take();
        if let Some((stop, thread)) = keeper {
            drop(stop);
            let _ = thread.join();
            // From now on connections have `idle_timeout` to be used once more.
            self.shared.note_request();
        }
    }

    /// Whether no request can come any more: accepting has stopped, and no connection is open.
    pub(crate) fn is_deserted(&self) -> bool {
        let has_stopped = self.keeper.lock().unwrap().is_none();
        let shared = &self.shared;
        let is_silent = || shared.last_request().elapsed() > shared.idle_timeout + LOOK;
        shared.is_closed()
            || has_stopped && (is_silent() || !has_connections(&shared.proc, self.addr.port()))
    }

    /// Ends everything: every `recv` returns `None`, and open connections are answered no more.
    pub(crate) fn close(&self) {
        self.stop_accepting();
        self.shared.closed.store(true, Ordering::Relaxed);
        self.shared.server().unblock();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close();
    }
}

/// The thread that owns the listening socket, knocks, and replaces a dead server.
struct Keeper {
    socket: TcpListener,
    /// Where to knock.
    door: SocketAddr,
    shared: Arc<Shared>,
    late: Sender<Request>,
}

impl Keeper {
    fn run(self, stopped: &Receiver<()>) {
        let (mut files, mut files_before) = (None, None);
        let mut requests = self.shared.last_request();
        let (mut round, mut active) = (Instant::now(), Instant::now());
        let mut is_settled = false;
        let mut knocks_left = DEAF;
        let mut is_troubled = false;
        if self.threads().is_none() {
            log::warn!(
                "{}: without {} some connections of a burst may be answered late",
                self.door,
                self.shared.proc.display()
            );
        }
        let tick = |active: Instant| if active.elapsed() < IDLE_ROUND { TICK } else { IDLE_TICK };
        while stopped.recv_timeout(tick(active)) == Err(RecvTimeoutError::Timeout) {
            let (now, last_request) = (self.open_files(), self.shared.last_request());
            let is_same = now == files;
            let is_unknown = now.is_none() || last_request != requests;
            // A change that was seen at one look alone may be the knock of another listener.
            if is_unknown || now != files_before {
                active = Instant::now();
            }
            (files_before, files) = (files, now);
            let pause = if is_unknown { ROUND } else { IDLE_ROUND };
            if is_settled && is_same && round.elapsed() < pause {
                continue;
            }
            (round, requests) = (Instant::now(), last_request);
            let knocked = self.knock_round();
            is_settled = matches!(knocked, Ok(true));
            match knocked {
                Ok(_) => {
                    knocks_left = DEAF;
                    if mem::take(&mut is_troubled) {
                        log::info!("{} answers again", self.door);
                    }
                }
                Err(error) if is_timeout(&error) => {
                    active = Instant::now();
                    knocks_left -= 1;
                    if knocks_left > 0 {
                        continue;
                    }
                    if !mem::replace(&mut is_troubled, true) {
                        log::warn!("{} does not answer newcomers, accepting anew", self.door);
                    }
                    // Without descriptors or threads this fails.
                    knocks_left = if self.replace().is_ok() { DEAF } else { RETRY };
                }
                // We could not even knock, for lack of descriptors. That says nothing of the server.
                Err(error) => {
                    if !mem::replace(&mut is_troubled, true) {
                        log::warn!("{}: newcomers may not be answered: {error}", self.door);
                    }
                }
            }
        }
        // The last knocks that can be accepted: they empty the pool's queue.
        let _ = self.knock_round();
        let _ = SockRef::from(&self.socket).shutdown(Shutdown::Read);
    }

    /// Knocks until no connection is left without a thread; `false` if that takes more rounds.
    fn knock_round(&self) -> io::Result<bool> {
        let Some(mut before) = self.threads() else {
            return (0..BLIND_KNOCKS).try_for_each(|_| knock(self.door)).map(|()| true);
        };
        for _ in 0..KNOCKS {
            knock(self.door)?;
            let now = self.threads().unwrap_or(before);
            if now <= mem::replace(&mut before, now) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The number of threads in this process, up to a constant: the link count of its task folder.
    fn threads(&self) -> Option<u64> {
        fs::metadata(self.shared.proc.join("task")).ok().map(|folder| folder.nlink())
    }

    /// The number of open files, which grows with each connection. (Before Linux 6.2 the folder has
    /// no size.)
    fn open_files(&self) -> Option<u64> {
        let folder = fs::metadata(self.shared.proc.join("fd")).ok()?;
        Some(folder.size()).filter(|size| *size > 0)
    }

    /// Puts a new server in the place of one that does not accept any more.
    fn replace(&self) -> io::Result<()> {
        // Connections that wait are closed: all of them together would use up the descriptors again.
        self.socket.set_nonblocking(true)?;
        let error = loop {
            if let Err(error) = self.socket.accept() {
                break error;
            }
        };
        self.socket.set_nonblocking(false)?;
        if !is_timeout(&error) {
            return Err(error);
        }
        // The thread first: without one, the requests of the old server would be lost.
        let (shared, late) = (self.shared.clone(), self.late.clone());
        let (hand_over, handed_over) = bounded::<Arc<Server>>(1);
        // Twice the timeout: a connection may be silent for one before, and one after a request.
        let linger = self.shared.idle_timeout.saturating_mul(2);
        thread::Builder::new().name("http-late".into()).spawn(move || {
            let Ok(old) = handed_over.recv() else { return };
            let mut last = Instant::now();
            while !shared.is_closed() && last.elapsed() < linger {
                if let Ok(Some(request)) = old.recv_timeout(LOOK) {
                    last = Instant::now();
                    let _ = late.send(request);
                    shared.server().unblock();
                }
            }
        })?;
        let new = serve(&self.socket)?;
        let old = mem::replace(&mut *self.shared.server.lock().unwrap(), new);
        // The thread that waits at the old one goes to the new one now.
        old.unblock();
        let _ = hand_over.send(old);
        Ok(())
    }
}

/// Starts a server on a socket that stays ours.
fn serve(socket: &TcpListener) -> io::Result<Arc<Server>> {
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
        Ok(server) => server.map(Arc::new).map_err(io::Error::other),
        Err(_) => Err(io::Error::other("no thread for the acceptor")),
    }
}

/// Whether this process may have open connections to a port. `true` if it cannot be found out.
fn has_connections(proc: &Path, port: u16) -> bool {
    const LISTENS: &str = "0A";
    const TIME_WAIT: &str = "06";
    let is_open = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().take(4).collect();
        let [_, local, _, state] = fields[..] else { return false };
        local.ends_with(&format!(":{port:04X}")) && ![LISTENS, TIME_WAIT].contains(&state)
    };
    let tables = ["net/tcp", "net/tcp6"].map(|table| fs::read_to_string(proc.join(table)));
    let mut tables = tables.iter().flatten().peekable();
    tables.peek().is_none() || tables.any(|table| table.lines().any(is_open))
}

/// The address to knock at: a wildcard address is reached by the loopback of its family.
fn door(mut addr: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() {
        addr.set_ip(match addr {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    addr
}

/// Makes one pool thread answer 400 to an empty line.
fn knock(door: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&door, KNOCK_TIMEOUT)?;
    // Closing resets the connection: 50 a second would fill the kernel with TIME_WAITs.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    stream.set_read_timeout(Some(KNOCK_TIMEOUT))?;
    stream.write_all(b"\r\n")?;
    // The end of the answer, not its start: now the thread is about to look into the queue.
    stream.read_to_end(&mut Vec::new()).map(drop)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests;
