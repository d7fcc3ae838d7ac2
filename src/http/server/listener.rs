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
//! long as that happens, connections may still be queued, and we knock again. If the number of open
//! files has not changed since the last look, no connection has come, and one knock in ten ticks is
//! enough.
//!
//! **The acceptor ends at its first error.** Without file descriptors it returns, or panics, and
//! the process lives on and accepts nothing. But then no knock is answered either, and we put a
//! new [`Server`] on the same socket. Clients of the old one are not forgotten: a thread hands
//! their requests over, until every connection that is still silent must have timed out.
//! Connections that were waiting to be accepted are closed, or the new acceptor would fail at them
//! too.
//!
//! **It cannot stop accepting alone.** Dropping a [`Server`] also orphans its open connections.
//! Shutting the listening socket down ends only the acceptor, and frees the port.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
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
/// How long one write may wait for a client that does not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the keeper looks whether connections have come.
const TICK: Duration = Duration::from_millis(20);
/// How often it knocks in any case: as many connections may have come as have gone.
const ROUND: Duration = Duration::from_millis(100);
/// Knocks in one round at most, so that threads started elsewhere cannot keep us knocking.
const KNOCKS: usize = 64;
/// How long a knock may take. One that takes longer is queued behind other connections.
const KNOCK_TIMEOUT: Duration = Duration::from_millis(10);
/// After this many knocks in a row without an answer, about a second, the acceptor counts as dead.
/// Knocks are counted, rather than time, so that a process that was suspended does not count.
const DEAF: u32 = 30;
/// How often a thread that waits for a request checks that its server has not been replaced.
const LOOK: Duration = Duration::from_secs(1);
/// How long `close` waits for the threads that hand over requests.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

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
    closed: AtomicBool,
    // Guards which server accepts.
    server: Mutex<Arc<Server>>,
}

impl Shared {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn server(&self) -> Arc<Server> {
        self.server.lock().unwrap().clone()
    }

    fn replace_server(&self, new: Arc<Server>) -> Arc<Server> {
        mem::replace(&mut self.server.lock().unwrap(), new)
    }
}

impl Listener {
    /// Starts accepting. A connection that is silent for `idle_timeout` is closed.
    pub(crate) fn new(socket: TcpListener, idle_timeout: Duration) -> io::Result<Listener> {
        let inherited = SockRef::from(&socket);
        inherited.set_read_timeout(Some(idle_timeout))?;
        inherited.set_write_timeout(Some(idle_timeout.min(WRITE_TIMEOUT)))?;
        inherited.set_tcp_nodelay(true)?;
        inherited.listen(BACKLOG)?;

        let addr = socket.local_addr()?;
        let shared = Arc::new(Shared {
            closed: AtomicBool::new(false),
            server: Mutex::new(serve(&socket)?),
        });
        let (sender, late) = unbounded();
        let keeper =
            Keeper { socket, door: door(addr), idle_timeout, shared: shared.clone(), late: sender };
        let (stop, stopped) = bounded(0);
        let thread = thread::Builder::new()
            .name("http-keeper".into())
            .spawn(move || keeper.run(&stopped))?;
        Ok(Listener { addr, shared, late, keeper: Mutex::new(Some((stop, thread))) })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// The next request; waits for it. `None` once the listener is closed.
    pub(crate) fn recv(&self) -> Option<Request> {
        while !self.shared.is_closed() {
            if let Ok(request) = self.late.try_recv() {
                return Some(request);
            }
            // An error is the end of the acceptor, which the keeper finds out by itself.
            if let Ok(Some(request)) = self.shared.server().recv_timeout(LOOK) {
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
        }
    }

    /// Ends everything: every `recv` returns `None`, and open connections are answered no more.
    pub(crate) fn close(&self) {
        self.stop_accepting();
        self.shared.closed.store(true, Ordering::Relaxed);
        self.shared.server().unblock();
        // Each handing-over thread holds a sender: the channel ends with the last of them.
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        while self.late.recv_deadline(deadline).is_ok() {}
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
    idle_timeout: Duration,
    shared: Arc<Shared>,
    late: Sender<Request>,
}

impl Keeper {
    fn run(self, stopped: &Receiver<()>) {
        let mut files = 0;
        let mut round = Instant::now();
        let mut settled = false;
        let mut missed = 0;
        let mut troubled = false;
        while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
            let files_before = mem::replace(&mut files, open_files());
            if settled && files == files_before && round.elapsed() < ROUND {
                continue;
            }
            round = Instant::now();
            let knocked = self.knock_round();
            settled = matches!(knocked, Ok(true));
            match knocked {
                Ok(_) => {
                    missed = 0;
                    if mem::take(&mut troubled) {
                        log::info!("{} answers again", self.door);
                    }
                }
                Err(error) if is_timeout(&error) => {
                    missed += 1;
                    if missed == DEAF {
                        troubled = true;
                        log::warn!("{} does not answer newcomers, accepting anew", self.door);
                    }
                    if missed % DEAF == 0 {
                        // Without descriptors this fails, and is tried again.
                        let _ = self.replace();
                    }
                }
                // We could not even knock, for lack of descriptors. That says nothing of the server.
                Err(error) if !troubled => {
                    troubled = true;
                    log::warn!("{}: newcomers may not be answered: {error}", self.door);
                }
                Err(_) => {}
            }
        }
        // The last knocks that can be accepted: they empty the pool's queue.
        let _ = self.knock_round();
        let _ = SockRef::from(&self.socket).shutdown(Shutdown::Read);
    }

    /// Knocks until no connection is left without a thread; `false` if that takes more rounds.
    fn knock_round(&self) -> io::Result<bool> {
        for _ in 0..KNOCKS {
            let before = threads();
            knock(self.door)?;
            if threads() <= before {
                return Ok(true);
            }
        }
        Ok(false)
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
        let old = self.shared.replace_server(serve(&self.socket)?);
        // The thread that waits at the old one goes to the new one now.
        old.unblock();

        let (shared, late) = (self.shared.clone(), self.late.clone());
        // Twice the timeout: a connection may be silent for one before, and one after a request.
        let linger = self.idle_timeout.saturating_mul(2);
        thread::Builder::new().name("http-late".into()).spawn(move || {
            let mut last = Instant::now();
            while !shared.is_closed() && last.elapsed() < linger {
                if let Ok(Some(request)) = old.recv_timeout(LOOK) {
                    last = Instant::now();
                    let _ = late.send(request);
                    shared.server().unblock();
                }
            }
        })?;
        Ok(())
    }
}

/// Starts a server on a socket that stays ours.
fn serve(socket: &TcpListener) -> io::Result<Arc<Server>> {
    Server::from_listener(socket.try_clone()?, None).map(Arc::new).map_err(io::Error::other)
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

/// The number of threads in this process, up to a constant: the link count of its task folder.
fn threads() -> u64 {
    fs::metadata("/proc/self/task").map_or(0, |folder| folder.nlink())
}

/// The number of open files, which grows with each connection (0 before Linux 6.2).
fn open_files() -> u64 {
    fs::metadata("/proc/self/fd").map_or(0, |folder| folder.size())
}

#[cfg(test)]
mod tests;
