//! The intake: takes requests from the listener, one after the other.
//!
//! Which thread answers them? For a hit, waking a worker takes longer than the answer. So what waits
//! for nothing is answered by the thread that received it. Only if the next request is waiting
//! already and a worker is idle, the worker gets this one: then all processors are used.
//!
//! One thread receives at a time; [`Turn`] says which, and why.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use log::error;

use super::listener::Listener;
use super::turn::{Holder, Turn};
use super::workers::Workers;

/// A thread that answers for longer than one to two of these is held up by its client.
const TICK: Duration = Duration::from_millis(20);
/// How often the standby looks after what had to wait.
const LOOK: Duration = Duration::from_secs(1);

struct Intake {
    listener: Arc<Listener>,
    workers: Arc<Workers>,
    turn: Turn,
}

/// Starts to receive. It ends by itself when no connection can be used any more after
/// [`Listener::stop_accepting`], or when the listener is closed.
pub(super) fn start(listener: Arc<Listener>, workers: Arc<Workers>) -> io::Result<()> {
    let intake = Arc::new(Intake { listener, workers, turn: Turn::default() });
    intake.start_receiving()?;
    let standby = intake.clone();
    let thread = thread::Builder::new().name("geecache-standby".into());
    thread.spawn(move || standby.stand_by()).map(drop).inspect_err(|_| intake.listener.close())
}

impl Intake {
    /// Starts a thread that receives, unless another thread has the turn by then.
    fn start_receiving(self: &Arc<Self>) -> io::Result<()> {
        let intake = self.clone();
        thread::Builder::new().name("geecache-intake".into()).spawn(move || {
            if let Some(me) = intake.turn.take(TICK) {
                // A thread that ends by a panic gives the turn back as well.
                let _ = catch_unwind(AssertUnwindSafe(|| intake.receive(me)));
                intake.turn.release(me);
            }
        })?;
        Ok(())
    }

    /// Receives until the listener is closed or another thread has taken the turn.
    fn receive(&self, me: Holder) {
        let mut next = self.listener.recv();
        while let Some(request) = next {
            let question = self.workers.accept(request);
            next = if self.workers.has_idle() { self.listener.try_recv() } else { None };
            match (question, &next) {
                (Some(question), Some(_)) => self.workers.leave(question),
                (question, None) => {
                    self.turn.begin_answer(me);
                    self.workers.go_on(question);
                    if !self.turn.end_answer(me) {
                        return;
                    }
                    next = self.listener.recv();
                }
                (None, Some(_)) => {}
            }
        }
    }

    /// Starts what had no thread, or was held up.
    fn stand_by(self: &Arc<Self>) {
        let (mut has_failed, mut looked) = (false, Instant::now());
        loop {
            // Between two looks, or each answer would wake this thread.
            thread::sleep(TICK);
            if self.turn.watch(TICK, LOOK) {
                let started = self.start_receiving();
                if let (Err(error), false) = (&started, has_failed) {
                    error!("no thread to receive requests: {error}");
                }
                has_failed = started.is_err();
            }
            if looked.elapsed() < LOOK {
                continue;
            }
            looked = Instant::now();
            self.workers.look_after();
            if self.listener.is_deserted() {
                return self.listener.close();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::HttpServer;
    use super::super::queue::Queue;
    use super::super::reply::text;
    use super::*;
    use crate::http::options::ServerOptions;
    use crossbeam_channel::bounded;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use tiny_http::Request;

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
    fn a_panic_is_answered_and_ends_no_thread_and_all_end_with_the_last_connection() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let listener = Arc::new(Listener::new(socket, LONG).unwrap());
        let (open, gate) = bounded::<()>(0);
        let handler = Box::new(move |_: &Request, _: &[u8]| {
            gate.recv_timeout(LONG).unwrap();
            text(200, "by a worker")
        });
        let immediate = Box::new(|request: &Request, _: &[u8]| match request.url() {
            "/hit" => Some(text(200, "immediately")),
            "/miss" => None,
            _ => panic!("on purpose"),
        });
        let options = ServerOptions { workers: 1, ..ServerOptions::default() };
        let queue = Arc::new(Queue::new(1, 16));
        let workers = Workers::start(&options, queue, immediate, handler).unwrap();
        start(listener.clone(), workers.clone()).unwrap();
        let address = listener.local_addr();
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
        assert!(workers.drain(LONG));
        let start = Instant::now();
        while Arc::strong_count(&listener) > 1 {
            assert!(start.elapsed() < LONG, "the threads do not end");
            thread::yield_now();
        }
    }

    #[test]
    fn what_needs_no_worker_is_asked_first_also_where_many_ask_and_workers_are_idle() {
        let server = HttpServer::serve_with(
            TcpListener::bind("127.0.0.1:0").unwrap(),
            ServerOptions::default(),
            |request, _| (request.url() == "/hit").then(|| text(200, "immediately")),
            |_, _| text(200, "by a worker"),
        )
        .unwrap();
        let address = server.local_addr();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        assert_eq!(ask(address, "hit"), "immediately");
                        assert_eq!(ask(address, "miss"), "by a worker");
                    }
                });
            }
        });
    }
}
