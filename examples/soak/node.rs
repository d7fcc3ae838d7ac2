//! A node in a process of its own, and the front by which it is told what to do.

use std::error::Error;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use geecache::tiny_http::{Request, Response, ResponseBox};
use geecache::{
    BoxError, ByteView, Group, HttpPool, HttpServer, PoolOptions, RingHash, ServerOptions,
};
use rustix::process::{Signal, set_parent_process_death_signal};
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

use crate::TIMEOUT;
use crate::truth::{GRACE, TTL};

/// How long a question to a peer may take. Some freezes are longer.
const DEADLINE: Duration = Duration::from_secs(1);

/// Runs a node until it is told to end: where it is to the others and to itself, all nodes, where
/// the origin is.
pub(crate) fn run(
    url: &str,
    listen: SocketAddr,
    peers: &[String],
    origin: &str,
) -> Result<(), Box<dyn Error>> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut signals = Signals::new([SIGTERM])?;
    let options =
        PoolOptions { hash: RingHash::Crc32Mixed, timeout: DEADLINE, ..PoolOptions::default() };
    let pool = HttpPool::with_options(url, options)?;
    pool.set_peers(peers)?;

    let (agent, origin) = (crate::agent(), origin.to_string());
    let load = move |key: &str| match crate::ask(&agent, &format!("{origin}/{key}"), None)? {
        (200, value) => Ok(Some(value)),
        (404, _) => Ok(None),
        (status, text) => Err(BoxError::from(format!("the origin answers {status}: {text}"))),
    };
    let group = Group::builder("soak", load)
        // Room for half of what it owns, so that entries give way as well.
        .max_bytes(512 << 10)
        .ttl(TTL)
        .ttl_jitter(0.1)
        .negative_ttl(TTL / 10)
        .hot_ttl(TTL / 5)
        .refresh_ahead(TTL * 3 / 10)
        .stale_if_error(GRACE)
        .peers(pool.clone())
        .build()?;

    let listener = TcpListener::bind(listen)?;
    let server = HttpServer::start(listener, [group.clone()], ServerOptions::default())?;
    let listener = TcpListener::bind((server.local_addr().ip(), 0))?;
    let front = Front { group, pool };
    let answer = move |request: &Request, body: &[u8], may_wait: bool| {
        may_wait.then(|| front.answer(request.url(), body))
    };
    let front = HttpServer::serve(listener, ServerOptions::default(), answer)?;
    println!("http://{}", front.local_addr());

    signals.forever().next();
    match front.shutdown(TIMEOUT) & server.shutdown(TIMEOUT) {
        true => Ok(()),
        false => Err("some requests were not answered in time".into()),
    }
}

struct Front {
    group: Arc<Group>,
    pool: Arc<HttpPool>,
}

impl Front {
    /// What is asked for is the path; keys and URLs are the lines of the body.
    fn answer(&self, path: &str, body: &[u8]) -> ResponseBox {
        let Ok(body) = str::from_utf8(body) else { return said(Err("not UTF-8")) };
        let lines: Vec<&str> = body.lines().collect();
        match (path, &lines[..]) {
            ("/get", [key]) => Response::from_string(line_of(self.group.get(key))).boxed(),
            ("/get", keys) => {
                let answers = self.group.get_many(keys).into_iter().map(line_of);
                Response::from_string(answers.collect::<Vec<_>>().join("\n")).boxed()
            }
            ("/remove", [key]) => said(self.group.remove(key)),
            ("/clear", []) => said(self.group.clear()),
            ("/peers", urls) => said(self.pool.set_peers(urls.iter().copied())),
            ("/well", []) => match self.pool.peers().iter().all(|(_, is_well)| *is_well) {
                true => said(Ok::<_, BoxError>(())),
                false => said(Err("not all peers")),
            },
            ("/handed-over", []) => {
                let stats = self.group.stats();
                Response::from_string(stats.handed_over.to_string()).boxed()
            }
            ("/fallbacks", []) => {
                Response::from_string(self.group.stats().fallbacks.to_string()).boxed()
            }
            (path, _) => said(Err(format!("{path} is not known"))),
        }
    }
}

/// A value behind `=`, `-` where there is no such key, an error behind `!`.
fn line_of(answer: Result<Option<ByteView>, geecache::Error>) -> String {
    match answer {
        Ok(Some(value)) => format!("={value}"),
        Ok(None) => "-".into(),
        Err(error) => format!("!{error}"),
    }
}

fn said(done: Result<(), impl ToString>) -> ResponseBox {
    match done {
        Ok(()) => Response::empty(200).boxed(),
        Err(error) => Response::from_string(error.to_string()).with_status_code(502).boxed(),
    }
}
