//! A network of our own: a relay in front of a node, slow and unreliable as it is told to be.
//!
//! Loopback has no distance, no narrow link, and no box on the way that forgets connections. A
//! [`Relay`] listens in the place of a node, carries what comes to it, and can meanwhile be told
//! to delay it, to limit its rate, or to treat connections badly:
//!
//! ```text
//!            ┌───────────── Relay, one thread ─────────────┐
//!            │  bytes ─▶ link (bandwidth) ─▶ delay ─▶      │
//!   client ──┤                                             ├── target
//!            │      ◀─ delay ◀─ link (bandwidth) ◀─ bytes  │
//!            └─────────────────────────────────────────────┘
//! ```
//!
//! Each chunk is stamped with the time when it is due on the other side, and sleeps beside all
//! others that are on their way: a delay costs no throughput. All connections of a relay share its
//! link, one in each direction, and take turns in chunks on it. One thread with `epoll` does
//! everything without ever blocking: a thread per connection and direction would cost two more
//! wake-ups per chunk, which on two processors come out of what is measured. Nine tenths of what
//! remains is the kernel's, most of it to wake those that read.
//!
//! The handshake of a new connection is the kernel's and takes no time, so what the client sends
//! first waits one round trip longer.
//!
//! It depends on no other file, so that the benchmarks and the soak test can include it too.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use socket2::{Domain, SockRef, Socket, Type};

/// What happens to a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Treatment {
    /// It is carried.
    Carry,
    /// At the next byte, from either side, both sides are reset.
    Reset,
    /// What comes is dropped, from either side, and so is an end. The connection stays open.
    Swallow,
    /// After so many more bytes of the answers the client sees an end, or a reset. The target is
    /// left as well.
    Cut { after: usize, by: CutBy },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CutBy {
    End,
    Reset,
}

/// A relay to one address. It ends, with its connections and its thread, when it is dropped.
pub(crate) struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    // Bound and never listening: keeps the port while connections are refused.
    _reservation: Socket,
}

struct Shared {
    epoll: OwnedFd,
    waker: OwnedFd,
    // Guards everything. The thread holds it while it works and never while it waits.
    state: Mutex<State>,
}

impl Relay {
    /// A relay to `target` on a port of its own, which carries everything at once.
    pub(crate) fn to(target: SocketAddr) -> io::Result<Self> {
        let reservation = bind(SocketAddr::new(target.ip(), 0))?;
        let address = reservation.local_addr()?.as_socket().expect("an address of TCP");
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let edge = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &waker, EventData::new_u64(WAKER), edge)?;
        let state = State::new(target, listen(&epoll, address)?);
        let shared = Arc::new(Shared { epoll, waker, state: Mutex::new(state) });
        let thread = thread::Builder::new().name("relay".into()).spawn({
            let shared = shared.clone();
            move || shared.run()
        })?;
        Ok(Self { address, shared, thread: Some(thread), _reservation: reservation })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Half of `rtt` in each direction.
    pub(crate) fn set_delay(&self, rtt: Duration) {
        self.set_delays(rtt / 2, rtt / 2);
    }

    /// How long what comes from now on is on its way to the target, and back. Default: zero.
    pub(crate) fn set_delays(&self, there: Duration, back: Duration) {
        self.state().delay = [there, back];
    }

    /// How many bytes a second fit through the link to the target, and back, for all connections
    /// together. Default: no limit.
    pub(crate) fn set_bandwidth(&self, there: Option<NonZeroU64>, back: Option<NonZeroU64>) {
        let mut state = self.state();
        state.bandwidth = [there, back];
        state.free_at = [Instant::now(); 2];
        self.shared.wake(); // readers wait for the former link to be free
    }

    /// What happens to the connections that are open now. What is on its way still arrives.
    pub(crate) fn treat_existing(&self, treatment: Treatment) {
        for connection in self.state().connections.values_mut() {
            connection.treatment = treatment;
        }
    }

    /// What happens to the connections that are accepted from now on; after
    /// [`refuse_new`](Self::refuse_new) they are accepted again. Only those that are to be carried
    /// or cut reach the target.
    pub(crate) fn treat_new(&self, treatment: Treatment) {
        let mut state = self.state();
        state.new = treatment;
        if state.listener.is_none() {
            let listener = listen(&self.shared.epoll, self.address);
            state.listener = Some(listener.expect("the port is reserved"));
        }
    }

    /// New connections are refused, as if nobody listened.
    pub(crate) fn refuse_new(&self) {
        self.state().listener = None;
    }

    /// How many connections were accepted.
    pub(crate) fn accepted(&self) -> usize {
        self.state().accepted
    }

    /// How many connections are open, on either side.
    pub(crate) fn open(&self) -> usize {
        self.state().connections.len()
    }

    /// How many bytes were delivered to the target, and back.
    pub(crate) fn carried(&self) -> [u64; 2] {
        self.state().carried
    }

    /// How much later than due the chunks arrived that were delivered since the last call and that
    /// had to wait.
    pub(crate) fn lateness(&self) -> Lateness {
        mem::take(&mut self.state().late).sum_up()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // A poisoned lock means that the thread has panicked and ended.
        if let Ok(mut state) = self.shared.state.lock() {
            state.is_over = true;
        }
        self.shared.wake();
        let ended = self.thread.take().expect("it is joined once").join();
        if !thread::panicking() {
            ended.expect("the relay does not panic");
        }
    }
}

/// How precisely a relay delivers.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Lateness {
    pub(crate) deliveries: usize,
    /// In microseconds, as the next.
    pub(crate) mean: f64,
    pub(crate) p99: f64,
}

// The directions, and the ends that they read from; each writes to the other end.
const THERE: usize = 0;
const BACK: usize = 1;
const CLIENT: usize = 0;
const TARGET: usize = 1;

// Who an event is for: one of these, or the end `n % 2` of the connection `n / 2`.
const LISTENER: u64 = 0;
const WAKER: u64 = 1;
const FIRST_CONNECTION: u64 = 1;

/// How much is read at once, at the most.
const CHUNK: usize = 64 << 10;
/// The same while the bandwidth is limited, so that connections share the link evenly.
const LIMITED_CHUNK: usize = 16 << 10;
/// How far the link may be occupied in advance. It is the queue in front of the link; all that
/// does not fit waits in the sockets, each connection for its turn.
const AHEAD: Duration = Duration::from_millis(1);
/// How much may be on its way in one direction of a connection, as TCP's window would have it.
const WINDOW: usize = 8 << 20;

struct State {
    target: SocketAddr,
    listener: Option<TcpListener>,
    new: Treatment,
    delay: [Duration; 2],
    bandwidth: [Option<NonZeroU64>; 2],
    /// When each link has sent all that it was given.
    free_at: [Instant; 2],
    connections: HashMap<u64, Connection>,
    next_id: u64,
    /// The connections from which can be read, in turns.
    ready: [VecDeque<u64>; 2],
    /// When the first chunk of a connection's direction is due, for each that has any and whose
    /// receiver takes more.
    due: BinaryHeap<Reverse<(Instant, u64, usize)>>,
    /// A connection could not be accepted, for want of a file perhaps.
    accept_again: bool,
    accepted: usize,
    carried: [u64; 2],
    late: Late,
    is_over: bool,
}

struct Connection {
    treatment: Treatment,
    /// When the handshake would have ended.
    established: Instant,
    /// The client and the target. Without a target if it was not to be carried.
    ends: [Option<TcpStream>; 2],
    ways: [Way; 2],
}

/// One direction of a connection.
#[derive(Default)]
struct Way {
    /// It is in `State::ready`.
    is_ready: bool,
    /// The sender's end is there to be read, behind the bytes.
    is_ending: bool,
    /// There is something to read, but no place in `on_the_way`.
    is_full: bool,
    on_the_way: VecDeque<(Instant, Item)>,
    bytes: usize,
    /// The receiver takes no more for now.
    is_blocked: bool,
    /// Nothing more comes from the sender.
    has_ended: bool,
    /// The receiver has been told so.
    is_closed: bool,
}

enum Item {
    /// Those behind the index are still to be written.
    Bytes(Vec<u8>, usize),
    End,
    Reset,
}

/// How many deliveries were late, by microseconds.
#[derive(Default)]
struct Late {
    counts: Vec<usize>,
    sum: Duration,
}

/// What has become of a connection.
#[derive(PartialEq, Eq)]
enum Fate {
    Lives,
    Over,
    /// To be reset on both sides.
    Broken,
}

impl Shared {
    fn wake(&self) {
        let _ = rustix::io::write(&self.waker, &1_u64.to_ne_bytes());
    }

    fn run(&self) {
        // Otherwise each sleep is 50 µs longer.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let mut events = Vec::with_capacity(1024);
        let mut buffer = vec![0; CHUNK];
        let mut wait = None;
        loop {
            let timeout = wait.map(|wait: Duration| Timespec {
                tv_sec: wait.as_secs() as _,
                tv_nsec: wait.subsec_nanos() as _,
            });
            // An interruption brings no events and costs a look around.
            let _ = epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref());
            let mut state = self.state.lock().unwrap();
            if state.is_over {
                return state.connections.clear();
            }
            for event in events.drain(..) {
                state.note(&self.epoll, event.data.u64(), event.flags);
            }
            if state.accept_again {
                state.accept(&self.epoll);
            }
            state.read(&mut buffer);
            wait = state.wait();
        }
    }
}

impl State {
    fn new(target: SocketAddr, listener: TcpListener) -> Self {
        Self {
            target,
            listener: Some(listener),
            new: Treatment::Carry,
            delay: [Duration::ZERO; 2],
            bandwidth: [None; 2],
            free_at: [Instant::now(); 2],
            connections: HashMap::new(),
            next_id: FIRST_CONNECTION,
            ready: [VecDeque::new(), VecDeque::new()],
            due: BinaryHeap::new(),
            accept_again: false,
            accepted: 0,
            carried: [0; 2],
            late: Late::default(),
            is_over: false,
        }
    }

    fn note(&mut self, epoll: &OwnedFd, token: u64, flags: EventFlags) {
        if token == LISTENER {
            return self.accept(epoll);
        }
        let (id, end) = (token / 2, (token % 2) as usize);
        let Some(connection) = self.connections.get_mut(&id) else { return }; // or the waker
        let trouble = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        let incoming = &mut connection.ways[end];
        incoming.is_ending |= flags.intersects(trouble);
        if flags.intersects(EventFlags::IN | trouble) && !incoming.is_ready {
            incoming.is_ready = true;
            self.ready[end].push_back(id);
        }
        let way = 1 - end;
        if flags.intersects(EventFlags::OUT | trouble) && connection.ways[way].is_blocked {
            connection.ways[way].is_blocked = false;
            self.deliver(id, way, false);
        }
    }

    fn accept(&mut self, epoll: &OwnedFd) {
        self.accept_again = false;
        while let Some(listener) = &self.listener {
            match listener.accept().and_then(|(client, _)| self.open(epoll, client)) {
                Ok(()) => self.accepted += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.accept_again = true;
                    return;
                }
            }
        }
    }

    fn open(&mut self, epoll: &OwnedFd, client: TcpStream) -> io::Result<()> {
        let id = self.next_id;
        let add = |stream: &TcpStream, end: usize| -> io::Result<()> {
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            Ok(epoll::add(epoll, stream, EventData::new_u64(2 * id + end as u64), flags)?)
        };
        let target = match self.new {
            Treatment::Carry | Treatment::Cut { .. } => {
                let socket = Socket::new(Domain::for_address(self.target), Type::STREAM, None)?;
                socket.set_nonblocking(true)?;
                // It is under way; if it fails, so does the first read.
                let _ = socket.connect(&self.target.into());
                let target = TcpStream::from(socket);
                add(&target, TARGET)?;
                Some(target)
            }
            Treatment::Reset | Treatment::Swallow => None,
        };
        add(&client, CLIENT)?;
        self.next_id += 1;
        let connection = Connection {
            treatment: self.new,
            established: Instant::now() + self.delay[THERE] + self.delay[BACK],
            ends: [Some(client), target],
            ways: Default::default(),
        };
        self.connections.insert(id, connection);
        Ok(())
    }

    /// Reads once from each connection that is ready, as far as the links have room, and delivers
    /// what is due meanwhile.
    fn read(&mut self, buffer: &mut [u8]) {
        self.deliver_due();
        for way in [THERE, BACK] {
            for _ in 0..self.ready[way].len() {
                if self.is_occupied(way) {
                    break;
                }
                let Some(id) = self.ready[way].pop_front() else { break };
                self.read_from(id, way, buffer);
                self.deliver_due();
            }
        }
    }

    fn read_from(&mut self, id: u64, way: usize, buffer: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let passage = &mut connection.ways[way];
        passage.is_ready = false;
        if passage.has_ended {
            return;
        }
        if passage.bytes >= WINDOW {
            passage.is_full = true;
            return;
        }
        let size = match self.bandwidth[way] {
            Some(bandwidth) => (bandwidth.get() as usize / 1000).clamp(1, LIMITED_CHUNK),
            None => CHUNK,
        };
        let Some(stream) = &mut connection.ends[way] else { return };
        let read = stream.read(&mut buffer[..size]);
        if read.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
            return;
        }
        let bytes = &buffer[..*read.as_ref().unwrap_or(&0)];
        if bytes.is_empty() {
            passage.has_ended = true;
        } else if bytes.len() == size || passage.is_ending {
            passage.is_ready = true;
            self.ready[way].push_back(id);
        } // or else it is read empty, and what comes then is an event
        match connection.treatment {
            Treatment::Swallow => {
                if connection.is_left() {
                    self.remove(id, Fate::Over);
                }
            }
            Treatment::Reset if !bytes.is_empty() => self.remove(id, Fate::Broken),
            Treatment::Cut { after, by } if way == BACK && bytes.len() >= after => {
                connection.treatment = Treatment::Swallow;
                self.send(id, way, &bytes[..after]);
                let item = if by == CutBy::End { Item::End } else { Item::Reset };
                self.put(id, way, item, 0);
            }
            treatment => {
                if let Treatment::Cut { after, .. } = &mut connection.treatment
                    && way == BACK
                {
                    *after -= bytes.len();
                }
                debug_assert!(treatment != Treatment::Swallow);
                match read {
                    Ok(1..) => self.send(id, way, bytes),
                    Ok(0) => self.put(id, way, Item::End, 0),
                    Err(_) => self.put(id, way, Item::Reset, 0),
                }
            }
        }
    }

    fn send(&mut self, id: u64, way: usize, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.put(id, way, Item::Bytes(bytes.into(), 0), bytes.len());
        }
    }

    /// Lets a chunk of so many bytes set out.
    fn put(&mut self, id: u64, way: usize, item: Item, bytes: usize) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let now = Instant::now();
        let sent = match self.bandwidth[way] {
            Some(bandwidth) => {
                let takes = Duration::from_secs_f64(bytes as f64 / bandwidth.get() as f64);
                self.free_at[way] = self.free_at[way].max(now) + takes;
                self.free_at[way]
            }
            None => now,
        };
        let due = match self.delay[THERE] + self.delay[BACK] {
            Duration::ZERO => sent,
            _ => sent.max(connection.established) + self.delay[way],
        };
        let passage = &mut connection.ways[way];
        // Chunks do not overtake each other when the delay becomes shorter.
        let due = passage.on_the_way.back().map_or(due, |(last, _)| due.max(*last));
        passage.on_the_way.push_back((due, item));
        passage.bytes += bytes;
        match passage.on_the_way.len() {
            1 if due <= now => self.deliver(id, way, false),
            1 => self.due.push(Reverse((due, id, way))),
            _ => {} // those before it come first
        }
    }

    fn deliver_due(&mut self) {
        while let Some(Reverse((due, id, way))) = self.due.peek().copied() {
            if due > Instant::now() {
                return;
            }
            self.due.pop();
            self.deliver(id, way, true);
        }
    }

    /// Delivers what is due, as far as the receiver takes it.
    fn deliver(&mut self, id: u64, way: usize, in_time: bool) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut fate = Fate::Lives;
        while fate == Fate::Lives {
            let now = Instant::now();
            let passage = &mut connection.ways[way];
            let Some((due, item)) = passage.on_the_way.front_mut() else { break };
            if *due > now {
                self.due.push(Reverse((*due, id, way)));
                break;
            }
            let receiver = &mut connection.ends[1 - way];
            match (item, receiver) {
                (Item::Bytes(bytes, from), Some(receiver)) => {
                    if in_time && *from == 0 {
                        self.late.note(now - *due);
                    }
                    match receiver.write(&bytes[*from..]) {
                        Ok(written) => {
                            *from += written;
                            self.carried[way] += written as u64;
                            if *from < bytes.len() {
                                continue;
                            }
                            passage.bytes -= bytes.len();
                        }
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            passage.is_blocked = true;
                            break;
                        }
                        Err(_) => fate = Fate::Broken,
                    }
                }
                (Item::End, Some(receiver)) => {
                    let _ = receiver.shutdown(Shutdown::Write);
                    passage.is_closed = true;
                    if connection.treatment == Treatment::Swallow {
                        // It was cut.
                        connection.ends[TARGET] = None;
                        connection.ways[THERE].on_the_way.clear();
                        connection.ways[THERE].bytes = 0;
                    }
                    fate = connection.fate();
                }
                // There is nobody to carry it to: the connection was not to be carried.
                (Item::Reset, _) | (_, None) => fate = Fate::Broken,
            }
            connection.ways[way].on_the_way.pop_front();
        }
        let passage = &mut connection.ways[way];
        if passage.is_full && passage.bytes < WINDOW {
            (passage.is_full, passage.is_ready) = (false, true);
            self.ready[way].push_back(id);
        }
        if fate != Fate::Lives {
            self.remove(id, fate);
        }
    }

    fn remove(&mut self, id: u64, fate: Fate) {
        let Some(connection) = self.connections.remove(&id) else { return };
        if fate == Fate::Broken {
            for stream in connection.ends.iter().flatten() {
                // Closing it then resets it.
                let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
            }
        }
    }

    fn is_occupied(&self, way: usize) -> bool {
        self.bandwidth[way].is_some() && self.free_at[way] > Instant::now() + AHEAD
    }

    /// How long there is nothing to do; `None`: until something comes.
    fn wait(&self) -> Option<Duration> {
        let due = self.due.peek().map(|Reverse((due, ..))| *due);
        let link = |way: usize| match self.ready[way].is_empty() {
            true => None,
            false if self.is_occupied(way) => Some(self.free_at[way] - AHEAD),
            false => Some(Instant::now()),
        };
        let again = self.accept_again.then(|| Instant::now() + Duration::from_millis(10));
        let next = [due, link(THERE), link(BACK), again].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }
}

impl Late {
    fn note(&mut self, late: Duration) {
        const MOST: usize = 100_000; // what is later counts as this
        let microseconds = (late.as_micros() as usize).min(MOST);
        if self.counts.len() <= microseconds {
            self.counts.resize(microseconds + 1, 0);
        }
        self.counts[microseconds] += 1;
        self.sum += late;
    }

    fn sum_up(self) -> Lateness {
        let deliveries: usize = self.counts.iter().sum();
        let mut below = 0;
        let p99 = self.counts.iter().position(|count| {
            below += count;
            below * 100 >= deliveries * 99
        });
        let mean = self.sum.as_secs_f64() * 1e6 / deliveries.max(1) as f64;
        Lateness { deliveries, mean, p99: p99.unwrap_or(0) as f64 }
    }
}

impl Connection {
    /// Whether all who were there have ended it, unheard by each other.
    fn is_left(&self) -> bool {
        (0..2).all(|end| self.ends[end].is_none() || self.ways[end].has_ended)
    }

    fn fate(&self) -> Fate {
        let is_closed = self.ways.iter().all(|way| way.is_closed);
        let is_left = self.treatment == Treatment::Swallow && self.is_left();
        if is_closed || is_left { Fate::Over } else { Fate::Lives }
    }
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listen(epoll: &OwnedFd, address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bind(address)?;
    socket.set_nonblocking(true)?;
    socket.listen(4096)?;
    let edge = EventFlags::IN | EventFlags::ET;
    epoll::add(epoll, socket.as_fd(), EventData::new_u64(LISTENER), edge)?;
    Ok(socket.into())
}
