//! `Receiver`: takes requests from the listener, one after the other.
//!
//! Who answers them? A worker has to be woken up, and for a hit that takes longer than the answer.
//! So what is at hand, which waits for nobody, is answered where it was received. But where the
//! next request waits already and a worker is idle, it is left to that: so all processors are used.
//!
//! Only one thread may receive, for two requests of the same client must be taken on in the order
//! in which they were sent. And yet a client that does not read may hold up whoever answers it.
//! So the thread says when it answers, and one that has not finished with it a tick later loses
//! its turn to another one.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{io, thread};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use log::error;
use tiny_http::{Request, ResponseBox};

use super::listener::Listener;
use super::workers::Workers;

/// An answer that takes longer than one to two of these is held up by its client.
const TICK: Duration = Duration::from_millis(20);
/// How long [`Receiver::close`] waits for the threads.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) struct Receiver {
    /// Nothing is sent: its end stops the thread that stands by.
    stop: Option<Sender<Infallible>>,
    /// Disconnected when all threads have ended.
    ended: crossbeam_channel::Receiver<Infallible>,
}

type AtHand = dyn Fn(&Request, &[u8]) -> Option<ResponseBox> + Send + Sync;

struct Shared {
    listener: Arc<Listener>,
    workers: Arc<Workers>,
    at_hand: Box<AtHand>,
    /// Even while a thread receives, odd while nobody does or the thread is answering: then
    /// whoever makes it even receives from there on.
    turn: AtomicU64,
}

impl Receiver {
    /// Starts to receive. `at_hand` gives the answers that wait for nobody.
    pub(super) fn start(
        listener: Arc<Listener>,
        workers: Arc<Workers>,
        at_hand: impl Fn(&Request, &[u8]) -> Option<ResponseBox> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let at_hand = Box::new(at_hand);
        let shared = Arc::new(Shared { listener, workers, at_hand, turn: AtomicU64::new(1) });
        let (stop, stopped) = bounded::<Infallible>(0);
        let (running, ended) = bounded(0);
        let receiver = Self { stop: Some(stop), ended };
        shared.receive_from(1, running.clone())?;
        thread::Builder::new().name("geecache-standby".into()).spawn(move || {
            let (mut last, mut failed) = (0, false);
            while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                let turn = shared.turn.load(Ordering::SeqCst);
                let is_held_up = turn % 2 == 1 && turn == last;
                last = turn;
                if !is_held_up {
                    continue;
                }
                match shared.receive_from(turn, running.clone()) {
                    Ok(()) => failed = false,
                    Err(_) if failed => {}
                    Err(error) => {
                        failed = true;
                        error!("no thread to receive requests: {error}");
                    }
                }
            }
        })?;
        Ok(receiver)
    }

    /// Waits for the threads, once the listener is closed.
    pub(super) fn close(&mut self) {
        drop(self.stop.take());
        let _ = self.ended.recv_timeout(CLOSE_TIMEOUT);
    }
}

impl Shared {
    /// Starts a thread that receives, if nobody else has gone on from that turn.
    fn receive_from(self: &Arc<Self>, turn: u64, running: Sender<Infallible>) -> io::Result<()> {
        let shared = self.clone();
        let thread = thread::Builder::new().name("geecache-receiver".into());
        thread.spawn(move || {
            if shared.go_on(turn) {
                shared.receive(turn + 1);
            }
            drop(running);
        })?;
        Ok(())
    }

    fn receive(&self, number: u64) {
        let mut turn = Turn { shared: self, number };
        let mut next = self.listener.recv();
        while let Some(request) = next {
            let question = self.workers.take(request);
            next = if self.workers.has_idle() { self.listener.try_recv() } else { None };
            match question {
                None => {}
                Some(question) if next.is_some() => self.workers.hand(question),
                Some(question) => match (self.at_hand)(&question.request, &question.body) {
                    None => self.workers.hand(question),
                    Some(response) => {
                        self.turn.store(turn.number + 1, Ordering::SeqCst);
                        self.workers.answer(question, response);
                        if !self.go_on(turn.number + 1) {
                            return;
                        }
                        turn.number += 2;
                    }
                },
            }
            next = next.or_else(|| self.listener.recv());
        }
    }

    /// Whether the turn was still that one.
    fn go_on(&self, turn: u64) -> bool {
        let order = Ordering::SeqCst;
        self.turn.compare_exchange(turn, turn + 1, order, order).is_ok()
    }
}

/// An even turn, to be left to others if its thread panics.
struct Turn<'s> {
    shared: &'s Shared,
    number: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.shared.go_on(self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::workers::text;
    use super::*;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};

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
    fn after_a_panic_another_thread_receives() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let listener = Arc::new(Listener::new(socket, LONG).unwrap());
        let by_worker = |_: &Request, _: &[u8]| text(200, "by a worker");
        let workers = Arc::new(Workers::start(1, 8, Arc::default(), by_worker).unwrap());
        let at_hand = |request: &Request, _: &[u8]| match request.url() {
            "/hit" => Some(text(200, "at hand")),
            "/miss" => None,
            _ => panic!("on purpose"),
        };
        let mut receiver = Receiver::start(listener.clone(), workers.clone(), at_hand).unwrap();
        let address = listener.local_addr();
        for _ in 0..2 {
            assert_eq!(ask(address, "hit"), "at hand");
            assert_eq!(ask(address, "miss"), "by a worker");
            ask(address, "bomb");
        }
        listener.stop_accepting();
        assert!(workers.drain(LONG));
        listener.close();
        receiver.close();
        assert_eq!(receiver.ended.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected));
    }
}
