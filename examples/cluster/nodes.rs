//! Three processes of `examples/node`, from the look at their ports to their end.

use std::io::{BufRead, BufReader};
use std::iter::{self, zip};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use geecache::{Ring, RingHash};
use rustix::process::{Pid, Signal, kill_process};

use crate::{Asked, Options};

pub(crate) const URLS: [&str; 3] =
    ["http://localhost:8001", "http://localhost:8002", "http://localhost:8003"];
/// Where each of them has its front.
const FRONTS: [&str; 3] = ["localhost:10001", "localhost:10002", FRONT];
/// The node whose front we ask, and where.
pub(crate) const FRONT_NODE: &str = URLS[2];
pub(crate) const FRONT: &str = "localhost:9999";

const START_TIMEOUT: Duration = Duration::from_secs(20);
/// A little more than the 5 s that a node gives its requests in flight.
const END_TIMEOUT: Duration = Duration::from_secs(7);
const POLL: Duration = Duration::from_millis(20);

/// How long values live in the demonstration, so that it can wait for their end.
pub(crate) const DEMO_TTL: &str = "5s";

/// Where the database is.
pub(crate) fn database(options: &Options) -> Result<PathBuf, String> {
    options.db.clone().map_or_else(|| beside_us("cluster.db"), Ok)
}

/// The nodes that run. Dropping it ends them all.
pub(crate) struct Nodes(Vec<Node>);

pub(crate) struct Node {
    pub(crate) url: &'static str,
    /// Where its front is, `host:port`.
    pub(crate) front: &'static str,
    /// What starts it, to be typed.
    pub(crate) command: String,
    child: Child,
    /// Prints what the node logs; ends with it.
    log: Option<JoinHandle<()>>,
}

impl Node {
    fn start(url: &'static str, front: &'static str, options: &Options) -> Result<Self, String> {
        let program = beside_us("node")?;
        let mut command = Command::new(&program);
        command.args(["--self-url", url, "--peers", &URLS.join(",")]);
        command.args(["--origin-delay", &options.origin_delay]).arg("--db");
        command.arg(database(options)?);
        if options.demo {
            command.args(["--ttl", DEMO_TTL, "--refresh-ahead", "1s", "--stale-if-error", "1h"]);
        }
        let fronts = FRONTS.map(|front| format!("http://{front}"));
        command.args(["--api", front, "--fronts", &fronts.join(",")]);
        if options.verbose {
            command.arg("-v");
        }
        let as_typed = as_typed(&command);
        // Also when we are killed. This is the thread that lives as long as we do, as is required.
        command.args(["--end-with", &process::id().to_string()]);
        // In a group of its own Ctrl-C does not reach it: we end it, in our own time.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| {
            format!("{}: {error}; `cargo build -p node` makes it", program.display())
        })?;
        let lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        let log = thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| eprintln!("{} | {line}", port(url)));
        });
        Ok(Self { url, front, command: as_typed, child, log: Some(log) })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Nodes {
    /// Starts the nodes and waits until each answers.
    pub(crate) fn start(options: &Options, asked: &Asked) -> Result<Self, String> {
        let ports = URLS.into_iter().chain(FRONTS).map(port);
        let is_taken = |port: &&str| TcpListener::bind(format!("127.0.0.1:{port}")).is_err();
        let taken: Vec<_> = ports.filter(is_taken).collect();
        if !taken.is_empty() {
            return Err(format!("in use, so nothing was started: port {}", taken.join(", ")));
        }
        let mut nodes = Self(Vec::new());
        for (url, front) in zip(URLS, FRONTS) {
            nodes.0.push(Node::start(url, front, options)?);
        }
        let deadline = Instant::now() + START_TIMEOUT;
        let pages = URLS.iter().map(|url| format!("{url}/healthz"));
        for page in pages.chain(FRONTS.map(|front| format!("http://{front}/"))) {
            while crate::get(&page).is_err() {
                if let Some((node, status)) = nodes.take_ended() {
                    return Err(format!("{} has ended at its start: {status}", node.url));
                }
                if asked.to_end() {
                    return Err("interrupted".into());
                }
                if Instant::now() > deadline {
                    return Err(format!("no answer from {page} within {START_TIMEOUT:?}"));
                }
                thread::sleep(POLL);
            }
        }
        Ok(nodes)
    }

    pub(crate) fn running(&self) -> &[Node] {
        &self.0
    }

    /// Takes out a node that has ended, if there is one.
    pub(crate) fn take_ended(&mut self) -> Option<(Node, ExitStatus)> {
        let ended = |node: &mut Node| node.child.try_wait().ok().flatten();
        let (at, status) =
            self.0.iter_mut().enumerate().find_map(|(at, node)| Some((at, ended(node)?)))?;
        let mut node = self.0.remove(at);
        // Its last words first.
        let _ = node.log.take().map(JoinHandle::join);
        Some((node, status))
    }

    /// Kills the node at `url`, as a crash would.
    pub(crate) fn kill(&mut self, url: &str) {
        for mut node in self.0.extract_if(.., |node| node.url == url) {
            let _ = node.child.kill();
            let _ = node.child.wait();
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in &self.0 {
            let _ = kill_process(Pid::from_child(&node.child), Signal::TERM);
        }
        let deadline = Instant::now() + END_TIMEOUT;
        while !self.0.is_empty() && Instant::now() < deadline {
            while self.take_ended().is_some() {}
            thread::sleep(POLL);
        }
        for url in URLS {
            self.kill(url);
        }
    }
}

/// A command with its arguments, to be pasted into a shell.
fn as_typed(command: &Command) -> String {
    let words = iter::once(command.get_program()).chain(command.get_args());
    let quoted = words.map(|word| match word.to_string_lossy() {
        word if word.contains(' ') => format!("'{word}'"),
        word => word.into_owned(),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// The URL of the node that owns `key`.
pub(crate) fn owner(key: &str) -> &'static str {
    let ring = Ring::new(URLS, RingHash::Crc32.default_points(), RingHash::Crc32);
    let is_owner = |url: &&str| ring.owner(key) == Some(url);
    URLS.into_iter().find(is_owner).expect("the ring has nodes")
}

pub(crate) fn port(address: &str) -> &str {
    address.rsplit(':').next().unwrap_or(address)
}

/// The path of a file in the folder of this program; cargo puts the programs of all packages into one.
fn beside_us(name: &str) -> Result<PathBuf, String> {
    let ours = std::env::current_exe().map_err(|error| error.to_string())?;
    Ok(ours.with_file_name(name))
}
