//! `Intake`: takes requests from the listener, one after the other.
//!
//! Which thread answers them? For a hit, waking a worker takes longer than the answer. So what the
//! caches hold, which waits for nobody, is answered by the thread that received the request. Only
//! if the next request is waiting already and a worker is idle, the worker gets this one: then all
//! processors are used.
//!
//! One thread receives at a time; [`Turn`] says which, and why.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

use crossbeam_channel::{Receiver, Sender, bounded};
use log::error;
use tiny_http::{Request, ResponseBox};

use super::listener::Listener;
use super::turn::{Holder, Turn};
use super::workers::Workers;

/// A thread that answers for longer than one to two of these is held up by its client.
const TICK: Duration = Duration::from_millis(20);
/// How often the standby looks in any case.
const IDLE_TICK: Duration = Duration::from_secs(1);
/// How long [`Intake::close`] waits for the threads.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) struct Intake {
    shared: Arc<Shared>,
    /// Disconnected when all threads that receive have ended.
    ended: Receiver<Infallible>,
}

type FromCaches = dyn Fn(&Request, &[u8]) -> Option<ResponseBox> + Send + Sync;

struct Shared {
    listener: Arc<Listener>,
    workers: Arc<Workers>,
    from_caches: Box<FromCaches>,
    turn: Turn,
}

impl Intake {
    /// Starts to receive. `from_caches` gives the answers that wait for nobody.
    pub(super) fn start(
        listener: Arc<Listener>,
        workers: Arc<Workers>,
        from_caches: impl Fn(&Request, &[u8]) -> Option<ResponseBox> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let (from_caches, turn) = (Box::new(from_caches), Turn::default());
        let shared = Arc::new(Shared { listener, workers, from_caches, turn });
        let (running, ended) = bounded(0);
        shared.start_receiving(&running)?;
        let intake = Self { shared: shared.clone(), ended };
        thread::Builder::new().name("geecache-standby".into()).spawn(move || {
            let mut has_failed = false;
            while let Some(is_free) = shared.turn.watch(TICK, IDLE_TICK) {
                if !is_free {
                    continue;
                }
                match shared.start_receiving(&running) {
                    Ok(()) => has_failed = false,
                    Err(_) if has_failed => {}
                    Err(error) => {
                        has_failed = true;
                        error!("no thread to receive requests: {error}");
                    }
                }
            }
        })?;
        Ok(intake)
    }

    /// Closes the listener and waits for the threads.
    pub(super) fn close(&mut self) {
        self.shared.turn.close();
        self.shared.listener.close();
        let _ = self.ended.recv_timeout(CLOSE_TIMEOUT);
    }
}

impl Shared {
    /// Starts a thread that receives, unless another thread has the turn by then.
    fn start_receiving(self: &Arc<Self>, running: &Sender<Infallible>) -> io::Result<()> {
        let (shared, running) = (self.clone(), running.clone());
        thread::Builder::new().name("geecache-intake".into()).spawn(move || {
            if let Some(me) = shared.turn.take(TICK) {
                shared.receive(&Release { turn: &shared.turn, me });
            }
            drop(running);
        })?;
        Ok(())
    }

    /// Receives until the listener is closed or another thread has taken the turn.
    fn receive(&self, &Release { turn, me }: &Release<'_>) {
        let mut next = self.listener.recv();
        while let Some(request) = next {
            let question = self.workers.accept(request);
            next = if self.workers.has_idle() { self.listener.try_recv() } else { None };
            match question {
                None => {}
                Some(question) if next.is_some() => self.workers.enqueue(question),
                Some(question) => match (self.from_caches)(&question.request, &question.body) {
                    None => self.workers.enqueue(question),
                    Some(response) => {
                        turn.begin_answer(me);
                        self.workers.reply_now(question, response);
                        if !turn.end_answer(me) {
                            return;
                        }
                    }
                },
            }
            next = next.or_else(|| self.listener.recv());
        }
    }
}

/// Gives the turn back when its thread ends, also by a panic.
struct Release<'t> {
    turn: &'t Turn,
    me: Holder,
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.turn.release(self.me);
    }
}

#[cfg(test)]
mod tests {
    use super::super::reply::text;
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
        let from_caches = |request: &Request, _: &[u8]| match request.url() {
            "/hit" => Some(text(200, "from the caches")),
            "/miss" => None,
            _ => panic!("on purpose"),
        };
        let mut intake = Intake::start(listener.clone(), workers.clone(), from_caches).unwrap();
        let address = listener.local_addr();
        for _ in 0..2 {
            assert_eq!(ask(address, "hit"), "from the caches");
            assert_eq!(ask(address, "miss"), "by a worker");
            ask(address, "bomb");
        }
        listener.stop_accepting();
        assert!(workers.drain(LONG));
        intake.close();
        assert_eq!(intake.ended.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected));
    }
}
