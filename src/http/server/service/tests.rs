use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use super::super::HttpServer;
use super::super::listener::{Listener, doors};
use super::*;

const LONG: Duration = Duration::from_secs(30);

fn ask(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    write!(stream, "GET /{path} HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().last().unwrap_or_default().into()
}

#[test]
fn a_panic_is_answered_and_ends_no_thread_and_all_end_after_the_last_connection() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let (open, gate) = bounded::<()>(0);
    let handler = Box::new(move |request: &Request, _: &[u8], may_wait| match request.url() {
        "/hit" => Some(text(200, "immediately")),
        "/miss" if may_wait => {
            gate.recv_timeout(LONG).unwrap();
            Some(text(200, "by a worker"))
        }
        "/miss" => None,
        _ => panic!("on purpose"),
    });
    let idle_timeout = Duration::from_secs(1);
    let options = ServerOptions { workers: 1, idle_timeout, ..ServerOptions::default() };
    let queue = Arc::new(Queue::new(1, 16, None));
    let service = Service::start(&options, queue, handler).unwrap();
    let for_intake = service.clone();
    let intake = move |generation| for_intake.take_in(generation);
    let address = socket.local_addr().unwrap();
    let listener = Listener::start(socket, doors(address), idle_timeout, intake).unwrap();
    for _ in 0..2 {
        // One that panics comes behind one that has the only worker, and is answered there.
        let mut both = TcpStream::connect(address).unwrap();
        both.set_read_timeout(Some(LONG)).unwrap();
        let bomb = "GET /bomb HTTP/1.1\r\nConnection: close\r\n\r\n";
        write!(both, "GET /miss HTTP/1.1\r\n\r\n{bomb}").unwrap();
        assert_eq!(ask(address, "bomb"), "the handler panicked");
        assert_eq!(ask(address, "hit"), "immediately");
        open.send_timeout((), LONG).unwrap();
        let mut answers = String::new();
        both.read_to_string(&mut answers).unwrap();
        assert!(answers.contains("by a worker") && answers.contains("panicked"), "{answers}");
    }
    listener.stop_accepting();
    assert!(service.drain(LONG));
    let start = Instant::now();
    while Arc::strong_count(&service) > 1 {
        assert!(start.elapsed() < LONG, "the threads do not end");
        thread::yield_now();
    }
}

#[test]
fn an_answer_that_needs_no_worker_is_looked_for_first_also_by_workers() {
    let server = HttpServer::serve(
        TcpListener::bind("127.0.0.1:0").unwrap(),
        ServerOptions::default(),
        |request, _, may_wait| match request.url() {
            "/hit" => Some(text(200, if may_wait { "by a worker" } else { "immediately" })),
            "/none" => None,
            _ => may_wait.then(|| text(200, "by a worker")),
        },
    )
    .unwrap();
    let address = server.local_addr();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..100 {
                    assert_eq!(ask(address, "hit"), "immediately");
                    assert_eq!(ask(address, "miss"), "by a worker");
                    assert_eq!(ask(address, "none"), "the handler gave no answer");
                }
            });
        }
    });
}

/// Reads as a body that is short, and fails or panics.
struct Broken(bool);

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        if self.0 { panic!("on purpose") } else { Err(io::Error::other("on purpose")) }
    }
}

#[test]
fn an_answer_that_cannot_be_read_is_a_500() {
    let server = HttpServer::serve(
        TcpListener::bind("127.0.0.1:0").unwrap(),
        ServerOptions::default(),
        |request, _, _| {
            let body = Broken(request.url() == "/panics");
            Some(tiny_http::Response::new(200.into(), vec![], body, Some(9), None).boxed())
        },
    )
    .unwrap();
    for path in ["fails", "panics"] {
        assert_eq!(ask(server.local_addr(), path), "the answer could not be read");
    }
}
