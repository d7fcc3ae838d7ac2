use std::sync::mpsc;

use tiny_http::Response;

use super::*;

const SOON: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(30);

/// A listener with two threads that answer each request with its path.
struct Echo {
    listener: Arc<Listener>,
    workers: mpsc::Receiver<()>,
}

fn echo(idle_timeout: Duration) -> Echo {
    echo_on(TcpListener::bind("127.0.0.1:0").unwrap(), idle_timeout)
}

fn echo_on(socket: TcpListener, idle_timeout: Duration) -> Echo {
    echo_of(Listener::new(socket, idle_timeout).unwrap())
}

fn echo_of(listener: Listener) -> Echo {
    let listener = Arc::new(listener);
    let (ended, workers) = mpsc::channel();
    for _ in 0..2 {
        let (listener, ended) = (listener.clone(), ended.clone());
        thread::spawn(move || {
            while let Some(request) = listener.recv() {
                let path = request.url().to_owned();
                let _ = request.respond(Response::from_string(path));
            }
            let _ = ended.send(());
        });
    }
    Echo { listener, workers }
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

fn within(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if done() {
            return true;
        }
        thread::sleep(Duration::from_millis(10));
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

#[test]
fn bursts_are_answered_from_the_start() {
    for n in [5, 16, 64] {
        for _ in 0..5 {
            burst(echo(IDLE).listener.local_addr(), n);
        }
    }
}

#[test]
fn bursts_are_answered_after_others_have_left() {
    let echo = echo(IDLE);
    let addr = echo.listener.local_addr();
    for n in [30, 5, 16, 64, 30, 64, 64] {
        let silent: Vec<_> = (0..20).map(|_| connect(addr).unwrap()).collect();
        drop(burst(addr, n));
        drop(silent);
    }
}

/// In a chroot, or on another Unix.
#[test]
fn bursts_are_answered_without_proc() {
    for n in [5, 16, 64] {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let listener = Listener::with_proc(socket, IDLE, "/nowhere".into()).unwrap();
        let echo = echo_of(listener);
        let addr = echo.listener.local_addr();
        for _ in 0..5 {
            let first = burst(addr, n);
            burst(addr, n);
            drop(first);
        }
    }
}

#[test]
fn a_listener_is_deserted_when_the_last_connection_closes() {
    let echo = echo(IDLE);
    let mut open = burst(echo.listener.local_addr(), 3);
    assert!(!echo.listener.is_deserted(), "it accepts");
    echo.listener.stop_accepting();
    assert!(!echo.listener.is_deserted());
    assert!(open.iter_mut().all(ask));
    drop(open);
    assert!(within(SOON, || echo.listener.is_deserted()));
}

#[test]
fn a_listener_is_deserted_when_all_connections_must_have_timed_out() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    // Without /proc it cannot look whether there are any.
    let echo = echo_of(Listener::with_proc(socket, IDLE / 30, "/nowhere".into()).unwrap());
    echo.listener.stop_accepting();
    assert!(!echo.listener.is_deserted());
    assert!(within(SOON, || echo.listener.is_deserted()));
}

#[test]
fn silent_clients_are_sent_away_and_a_quiet_listener_lives() {
    let idle_timeout = Duration::from_millis(200);
    let echo = echo(idle_timeout);
    let addr = echo.listener.local_addr();
    let mut silent = connect(addr).unwrap();
    let start = Instant::now();
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0);
    assert!(start.elapsed() < SOON);
    // Several timeouts pass without a connection.
    while start.elapsed() < 6 * idle_timeout {
        thread::sleep(idle_timeout);
    }
    // On a busy machine this client may itself be silent for too long.
    assert!(within(SOON, || ask(&mut connect(addr).unwrap())));
}

#[test]
fn clients_that_do_not_read_are_left() {
    let listener =
        Listener::new(TcpListener::bind("[::1]:0").unwrap(), Duration::from_millis(300)).unwrap();
    let mut client = connect(listener.local_addr()).unwrap();
    send(&mut client).unwrap();
    let request = listener.recv().unwrap();
    let (ended, end) = mpsc::channel();
    thread::spawn(move || ended.send(request.respond(Response::from_data(vec![0; 64 << 20]))));
    assert!(end.recv_timeout(SOON).unwrap().is_err());
}

#[test]
fn a_dead_acceptor_is_replaced_and_open_connections_live_on() {
    let socket = TcpListener::bind("0.0.0.0:0").unwrap();
    let spy = socket.try_clone().unwrap();
    let echo = echo_on(socket, IDLE);
    let addr = door(echo.listener.local_addr());
    let mut open = connect(addr).unwrap();
    assert!(ask(&mut open));
    for _ in 0..2 {
        let server = echo.listener.shared.server();
        // Now `accept` times out at once, and with its error the acceptor ends.
        SockRef::from(&spy).set_read_timeout(Some(Duration::from_micros(1))).unwrap();
        assert!(within(SOON, || {
            assert!(ask(&mut open));
            !Arc::ptr_eq(&server, &echo.listener.shared.server())
        }));
        SockRef::from(&spy).set_read_timeout(Some(IDLE)).unwrap();
        assert!(within(SOON, || connect(addr).is_ok_and(|mut stream| ask(&mut stream))));
        assert!(ask(&mut open));
        // By now nobody waits at the replaced server but the thread that hands over.
        thread::sleep(LOOK);
        let start = Instant::now();
        assert!(ask(&mut open));
        assert!(start.elapsed() < LOOK / 2);
    }
}

#[test]
fn stops_accepting_but_serves_open_connections() {
    let echo = echo(IDLE);
    let addr = echo.listener.local_addr();
    let mut open = burst(addr, 8);
    let mut silent = connect(addr).unwrap();
    echo.listener.stop_accepting();
    assert!(connect(addr).is_err());
    let next = echo_on(TcpListener::bind(addr).unwrap(), IDLE);
    assert!(ask(&mut connect(addr).unwrap()));
    assert!(open.iter_mut().all(ask));
    assert!(ask(&mut silent));

    echo.listener.close();
    for _ in 0..2 {
        echo.workers.recv_timeout(SOON).unwrap();
    }
    assert!(echo.listener.recv().is_none());
    assert!(ask(&mut connect(addr).unwrap()));
    drop(next);
}
