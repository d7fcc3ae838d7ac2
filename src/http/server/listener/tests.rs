use std::sync::mpsc;

use tiny_http::Response;

use super::*;

const SOON: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(30);

/// A listener each of whose intakes answers each request with its path, and tells when it ends.
struct Echo {
    addr: SocketAddr,
    listener: Listener,
    /// One for each generation that has begun.
    begun: mpsc::Receiver<()>,
    ended: mpsc::Receiver<()>,
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.listener.stop_accepting();
    }
}

fn echo(idle_timeout: Duration) -> Echo {
    echo_on(TcpListener::bind("127.0.0.1:0").unwrap(), idle_timeout)
}

fn echo_on(socket: TcpListener, idle_timeout: Duration) -> Echo {
    let doors = doors(socket.local_addr().unwrap());
    echo_with(socket, doors, idle_timeout)
}

fn echo_with(socket: TcpListener, doors: Vec<SocketAddr>, idle_timeout: Duration) -> Echo {
    let ((begins, begun), (ends, ended)) = (mpsc::channel(), mpsc::channel());
    let intake = move |mut generation: Generation| {
        let _ = begins.send(());
        while let Some(request) = generation.recv(|| {}) {
            let path = request.url().to_owned();
            let _ = request.respond(Response::from_string(path));
        }
        let _ = ends.send(());
    };
    let addr = socket.local_addr().unwrap();
    let listener = Listener::start(socket, doors, idle_timeout, intake).unwrap();
    begun.recv_timeout(SOON).unwrap();
    Echo { addr, listener, begun, ended }
}

fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn send(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
}

fn is_answered(stream: &mut TcpStream) -> bool {
    let mut answer = Vec::new();
    let mut part = [0; 1024];
    while !answer.ends_with(b"/hello") {
        match stream.read(&mut part) {
            Ok(n) if n > 0 => answer.extend_from_slice(&part[..n]),
            _ => return false,
        }
    }
    true
}

fn ask(stream: &mut TcpStream) -> bool {
    send(stream).is_ok() && is_answered(stream)
}

fn is_served(addr: SocketAddr) -> bool {
    connect(addr).is_ok_and(|mut stream| ask(&mut stream))
}

fn within(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if done() {
            return true;
        }
        thread::yield_now();
    }
    false
}

/// Opens `n` connections at once; all must be answered while all stay open.
fn burst(addr: SocketAddr, n: usize) -> Vec<TcpStream> {
    let mut streams: Vec<_> = (0..n)
        .map(|_| {
            let mut stream = connect(addr).unwrap();
            send(&mut stream).unwrap();
            stream
        })
        .collect();
    let answered = streams.iter_mut().map(is_answered).filter(|answered| *answered).count();
    assert_eq!(answered, n);
    streams
}

/// The acceptor dies with an error of `accept`, and so does the next one until this is dropped.
struct Killer(TcpListener);

impl Killer {
    fn of(spy: &TcpListener) -> Self {
        let spy = spy.try_clone().unwrap();
        SockRef::from(&spy).set_read_timeout(Some(Duration::from_micros(1))).unwrap();
        Self(spy)
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        SockRef::from(&self.0).set_read_timeout(Some(IDLE)).unwrap();
    }
}

#[test]
fn bursts_are_answered_from_the_start() {
    for n in [5, 16, 64] {
        for _ in 0..5 {
            let echo = echo(IDLE);
            burst(echo.addr, n);
        }
    }
}

#[test]
fn bursts_are_answered_after_others_have_left() {
    let echo = echo(IDLE);
    let addr = echo.addr;
    for n in [30, 5, 16, 64, 30, 64, 64] {
        let silent: Vec<_> = (0..20).map(|_| connect(addr).unwrap()).collect();
        drop(burst(addr, n));
        drop(silent);
    }
}

#[test]
fn silent_clients_are_sent_away_and_a_quiet_listener_lives() {
    let idle_timeout = Duration::from_millis(200);
    let echo = echo(idle_timeout);
    let addr = echo.addr;
    // Several timeouts pass without another connection.
    for _ in 0..6 {
        let mut silent = connect(addr).unwrap();
        assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0);
    }
    // On a busy machine this client may itself be silent for too long.
    assert!(within(SOON, || is_served(addr)));
    assert!(echo.ended.try_recv().is_err());
}

#[test]
fn the_kernel_ends_connections_whose_clients_do_not_read() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let (ended, end) = mpsc::channel();
    let addr = socket.local_addr().unwrap();
    let listener = Listener::start(socket, doors(addr), IDLE, move |mut generation: Generation| {
        let Some(request) = generation.recv(|| {}) else { return };
        let mut writer = request.into_writer();
        let start = Instant::now();
        let error = loop {
            match writer.write(&[0; 1 << 20]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    assert!(start.elapsed() < IDLE, "it may wait for ever");
                }
                Err(error) => break error,
                Ok(_) => {}
            }
        };
        let _ = ended.send(error.kind());
    });
    let mut client = connect(addr).unwrap();
    send(&mut client).unwrap();
    let error = end.recv_timeout(IDLE).unwrap();
    listener.unwrap().stop_accepting();
    // The thread that reads there may have been told the cause.
    assert!(matches!(error, io::ErrorKind::TimedOut | io::ErrorKind::BrokenPipe), "{error}");
}

#[test]
fn a_dead_acceptor_is_replaced_and_open_connections_live_on() {
    let socket = TcpListener::bind("0.0.0.0:0").unwrap();
    let spy = socket.try_clone().unwrap();
    let echo = echo_on(socket, IDLE);
    let addr = doors(echo.addr)[0];
    let mut open = vec![connect(addr).unwrap()];
    for generation in 1..=2 {
        let killer = Killer::of(&spy);
        assert!(within(SOON, || {
            assert!(open.iter_mut().all(ask));
            echo.begun.try_recv().is_ok()
        }));
        drop(killer);
        assert!(within(SOON, || is_served(addr)), "{generation}");
        open.push(connect(addr).unwrap());
        assert!(open.iter_mut().all(ask), "those of all generations");
    }
}

#[test]
fn a_dead_acceptor_is_replaced_also_if_no_connection_can_be_made_any_more() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let spy = socket.try_clone().unwrap();
    let echo = echo_on(socket, IDLE);
    let addr = echo.addr;
    assert!(is_served(addr));
    // So few connections wait until they are accepted that knocks find no room.
    SockRef::from(&spy).listen(0).unwrap();
    let killer = Killer::of(&spy);
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&addr, Duration::from_millis(100)) {
        waiting.push(stream);
        assert!(waiting.len() < 10_000, "somebody accepts");
    }
    drop(killer);
    assert!(within(2 * SOON, || echo.begun.try_recv().is_ok()));
    assert!(within(SOON, || is_served(addr)));
    drop(waiting);
}

/// One that no connection reaches, as behind a firewall, and one that refuses.
#[test]
fn a_listener_that_cannot_reach_itself_serves_on_and_replaces_nothing() {
    let full = TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&full).listen(0).unwrap();
    let full = full.local_addr().unwrap();
    let _waiting = [(); 3].map(|()| TcpStream::connect_timeout(&full, Duration::from_millis(100)));
    let refusing = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for door in [full, refusing] {
        let echo = echo_with(TcpListener::bind("127.0.0.1:0").unwrap(), vec![door], IDLE);
        // Three times as long as it takes to replace one that is dead.
        assert!(echo.begun.recv_timeout(Duration::from_secs(4)).is_err(), "{door}");
        assert!(is_served(echo.addr));
    }
}

#[test]
fn a_listener_knocks_at_the_first_door_that_there_is() {
    let refusing = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let (spy, addr) = (socket.try_clone().unwrap(), socket.local_addr().unwrap());
    let echo = echo_with(socket, vec![refusing, addr], IDLE);
    drop(burst(addr, 64));
    let killer = Killer::of(&spy);
    assert!(within(SOON, || echo.begun.try_recv().is_ok()), "it found that nobody accepts");
    drop(killer);
    let port = addr.port();
    let doors = |addr: &str| doors(format!("{addr}:{port}").parse().unwrap());
    assert_eq!(doors("[::]").len(), 2);
    assert_eq!((doors("0.0.0.0"), doors("127.0.0.1")), (vec![addr], vec![addr]));
}

#[test]
fn stops_accepting_but_serves_open_connections_until_all_are_silent() {
    let idle_timeout = Duration::from_secs(2);
    let echo = echo(idle_timeout);
    let addr = echo.addr;
    let mut open = burst(addr, 8);
    open.push(connect(addr).unwrap());
    echo.listener.stop_accepting();
    let stopped = Instant::now();
    assert!(connect(addr).is_err());
    let _next = echo_on(TcpListener::bind(addr).unwrap(), IDLE);
    assert!(is_served(addr));
    // On a busy machine they may have been silent for too long.
    assert!(open.iter_mut().all(ask) || stopped.elapsed() > idle_timeout);
    echo.ended.recv_timeout(IDLE).unwrap();
    assert!(stopped.elapsed() > idle_timeout, "not before they must have been closed");
}
