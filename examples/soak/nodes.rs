//! Three processes of a node: started, asked, killed, frozen, ended and started again.

use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};
use std::{array, env, fs, process, thread};

use rustix::process::{Pid, Signal, kill_process};
use ureq::Agent;

use crate::relay::{Relay, Treatment};

pub(crate) const NODES: usize = 3;

/// More than a node gives what is in flight, on both of its sides.
const END: Duration = crate::TIMEOUT.saturating_mul(3);

pub(crate) struct Nodes {
    nodes: Vec<Node>,
    origin: String,
}

struct Node {
    /// That of the relay.
    url: String,
    /// Where it listens, behind the relay.
    address: SocketAddr,
    /// The network between it and its peers. It refuses connections while nobody listens.
    relay: Relay,
    /// Held by each caller who asks here; `None` while the node is not to be asked. As a balancer
    /// in front of them would, we let callers finish before something happens to the node. Its
    /// peers are not told.
    front: RwLock<Option<Front>>,
    process: Mutex<Option<Child>>,
}

/// Where callers ask a node.
struct Front {
    url: String,
    agent: Agent,
}

impl Nodes {
    pub(crate) fn start(origin: String) -> Result<Self, String> {
        // An address of our own: ports that a dead node has left are still free when it returns.
        let [_, a, b, c] = process::id().to_be_bytes();
        let host = Ipv4Addr::new(127, 128 | a, b, c);
        let reserved = [(); NODES].map(|()| TcpListener::bind((host, 0)));
        let node = |reserved: &io::Result<TcpListener>| {
            let reserved = reserved.as_ref().map_err(|error| io::Error::from(error.kind()))?;
            let address = reserved.local_addr()?;
            let relay = Relay::to(address)?;
            let url = format!("http://{}", relay.address());
            Ok(Node { url, address, relay, front: RwLock::new(None), process: Mutex::new(None) })
        };
        let nodes: io::Result<Vec<Node>> = reserved.iter().map(node).collect();
        let nodes = nodes.map_err(|error| format!("the network: {error}"))?;
        drop(reserved);
        let nodes = Self { nodes, origin };
        (0..NODES).try_for_each(|node| nodes.start_one(node))?;
        Ok(nodes)
    }

    /// Starts a node and lets callers ask it. To be called by the first thread: a node ends with
    /// the thread that has started it.
    pub(crate) fn start_one(&self, i: usize) -> Result<(), String> {
        let node = &self.nodes[i];
        let program = env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.args(["node", &node.url, "--listen", &node.address.to_string()]);
        command.args(["--origin", &self.origin]).args(self.urls());
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| format!("{}: {error}", node.url))?;
        let mut url = String::new();
        let _ = BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut url);
        *node.process.lock().unwrap() = Some(child);
        if url.is_empty() {
            return Err(format!("{} has ended at its start", node.url));
        }
        node.relay.treat_new(Treatment::Carry);
        node.admit(Front { url: url.trim().into(), agent: crate::agent() });
        Ok(())
    }

    pub(crate) fn urls(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|node| &*node.url)
    }

    /// Asks a node, `first` or the next one that may be asked, which meanwhile stays as it is. The
    /// status and the text.
    pub(crate) fn ask(
        &self,
        first: usize,
        what: &str,
        lines: &str,
    ) -> Result<(u16, String), String> {
        let admitted =
            |i: usize| self.nodes[i % NODES].front.try_read().ok().filter(|f| f.is_some());
        let front = (first..).find_map(admitted).expect("the search does not end");
        front.as_ref().expect("it is there").ask(what, lines)
    }

    /// By SIGKILL.
    pub(crate) fn kill(&self, i: usize) {
        self.nodes[i].dismiss();
        let child = self.nodes[i].process.lock().unwrap().take();
        if let Some(mut child) = child {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.nodes[i].relay.refuse_new();
    }

    /// By SIGTERM, and waits until it has ended.
    pub(crate) fn end(&self, i: usize) -> Result<(), String> {
        let node = &self.nodes[i];
        node.dismiss();
        node.signal(Signal::TERM);
        let deadline = Instant::now() + END;
        loop {
            match node.ended() {
                Some(status) if status.success() => {
                    node.relay.refuse_new();
                    return Ok(());
                }
                Some(status) => return Err(format!("{} was told to end: {status}", node.url)),
                None if Instant::now() > deadline => {
                    return Err(format!("{} does not end", node.url));
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Stops a node where it stands, and lets it go on after a while.
    pub(crate) fn freeze(&self, i: usize, time: Duration) {
        let front = self.nodes[i].dismiss();
        self.nodes[i].signal(Signal::STOP);
        thread::sleep(time);
        self.nodes[i].signal(Signal::CONT);
        front.into_iter().for_each(|front| self.nodes[i].admit(front));
    }

    /// The network between a node and those that ask it.
    pub(crate) fn relay(&self, i: usize) -> &Relay {
        &self.nodes[i].relay
    }

    /// From now on the network does not delay. Connections that it has forgotten stay so.
    pub(crate) fn calm(&self) {
        self.nodes.iter().for_each(|node| node.relay.set_delay(Duration::ZERO));
    }

    /// Gives all nodes but `absent` a list without it; all nodes a full one if that is `None`.
    pub(crate) fn set_lists(&self, absent: Option<usize>) -> Result<(), String> {
        let all: Vec<&str> = self.urls().collect();
        for i in (0..NODES).filter(|&i| Some(i) != absent) {
            let others = all.iter().filter(|&&url| absent.is_none_or(|absent| url != all[absent]));
            self.set_list(i, &others.copied().collect::<Vec<_>>().join("\n"))?;
        }
        Ok(())
    }

    /// Gives a node a list of itself.
    pub(crate) fn set_alone(&self, i: usize) -> Result<(), String> {
        self.set_list(i, &self.nodes[i].url)
    }

    fn set_list(&self, i: usize, list: &str) -> Result<(), String> {
        let front = self.nodes[i].front.read().unwrap();
        let front = front.as_ref().ok_or_else(|| format!("node {i} is not there"))?;
        match front.ask("/peers", list)? {
            (200, _) => Ok(()),
            (status, text) => Err(format!("node {i}: {status} {text}")),
        }
    }

    /// How many keys the nodes that run now have taken over from earlier owners.
    pub(crate) fn handed_over(&self) -> u64 {
        let of_node = |i| self.ask(i, "/handed-over", "").ok()?.1.parse::<u64>().ok();
        (0..NODES).filter_map(of_node).sum()
    }

    /// Those that have ended by themselves.
    pub(crate) fn ended(&self) -> Vec<String> {
        let ended = |node: &Node| Some(format!("{} has ended: {}", node.url, node.ended()?));
        self.nodes.iter().filter_map(ended).collect()
    }

    /// The resident memory of each, in MiB.
    pub(crate) fn memory(&self) -> [f64; NODES] {
        array::from_fn(|i| self.nodes[i].memory().unwrap_or(f64::NAN))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        (0..NODES).for_each(|i| self.kill(i));
    }
}

impl Node {
    fn admit(&self, front: Front) {
        *self.front.write().unwrap() = Some(front);
    }

    fn dismiss(&self) -> Option<Front> {
        self.front.write().unwrap().take()
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &*self.process.lock().unwrap() {
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }

    fn ended(&self) -> Option<ExitStatus> {
        let mut process = self.process.lock().unwrap();
        let status = process.as_mut()?.try_wait().ok()??;
        *process = None;
        Some(status)
    }

    fn memory(&self) -> Option<f64> {
        let pid = self.process.lock().unwrap().as_ref()?.id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().ok()?;
        Some(kibibytes / 1024.0)
    }
}

impl Front {
    fn ask(&self, what: &str, lines: &str) -> Result<(u16, String), String> {
        crate::ask(&self.agent, &format!("{}{what}", self.url), Some(lines))
    }
}
