//! Three nodes over HTTP in one process: a get through each, then the owner is stopped.
//!
//! Type `cargo run --example three`. The system chooses the ports, and they decide which node owns
//! Tom; that one is called A. It searches for all, and B keeps a copy of what A told it. When A has
//! stopped, C searches for itself, and keeps what it found, too:
//!
//! ```text
//! A owns Tom.
//! A searches for Tom
//! A: 630, searched
//! B: 630, told by A
//! A is stopped.
//! B: 630, had it
//! C searches for Tom
//! C: 630, searched, since A does not answer
//! C: 630, had it
//! ```
//!
//! C does not wait: where A listened, nobody answers any more.

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use geecache::{Error, Group, HttpPool, HttpServer, Ring, RingHash, ServerOptions, Trace};

struct Node {
    name: char,
    scores: Arc<Group>,
    server: HttpServer,
}

impl Node {
    /// The node at the address of `listener`, in a cluster of the nodes at `urls`.
    fn start(name: char, listener: TcpListener, urls: &[String]) -> Result<Self, Error> {
        let pool = HttpPool::new(url_of(&listener)?)?;
        pool.set_peers(urls)?;
        let search = move |key: &str| {
            println!("{name} searches for {key}");
            Ok::<_, Infallible>((key == "Tom").then_some("630"))
        };
        let scores = Group::builder("scores", search).peers(pool).build()?;
        let server = HttpServer::start(listener, [scores.clone()], ServerOptions::default())?;
        Ok(Self { name, scores, server })
    }

    /// Gets Tom, and prints how the answer came about.
    fn get(&self) -> Result<(), Error> {
        let (score, trace) = self.scores.get_traced("Tom");
        let way = match trace {
            Trace { hit: Some(_), .. } => "had it",
            Trace { asked: None, .. } => "searched",
            Trace { loaded: None, .. } => "told by A",
            _ => "searched, since A does not answer",
        };
        println!("{}: {}, {way}", self.name, score?.expect("Tom has a score"));
        Ok(())
    }
}

fn url_of(listener: &TcpListener) -> Result<String, Error> {
    Ok(format!("http://{}", listener.local_addr()?))
}

fn main() -> Result<(), Error> {
    let mut listeners = Vec::new();
    for _ in 0..3 {
        listeners.push(TcpListener::bind("127.0.0.1:0")?);
    }
    let urls = listeners.iter().map(url_of).collect::<Result<Vec<_>, _>>()?;

    let ring = Ring::new(urls.clone(), 50, RingHash::Crc32);
    let owner = urls.iter().position(|url| ring.owner("Tom") == Some(url));
    listeners.swap(0, owner.expect("one of them owns it"));
    println!("A owns Tom.");

    let mut nodes = Vec::new();
    for (name, listener) in ['A', 'B', 'C'].into_iter().zip(listeners) {
        nodes.push(Node::start(name, listener, &urls)?);
    }
    nodes[..2].iter().try_for_each(Node::get)?;

    nodes.remove(0).server.shutdown(Duration::from_secs(5));
    println!("A is stopped.");
    [0, 1, 1].into_iter().try_for_each(|i| nodes[i].get())
}
