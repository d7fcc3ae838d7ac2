//! Two nodes of the service and their database, as processes, asked through both fronts.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use ureq::Agent;

/// No wait is longer.
const LONG: Duration = Duration::from_secs(60);

/// A process of the service, and what it logs.
struct Process {
    child: Child,
    lines: Receiver<String>,
    /// Where it is asked.
    url: String,
}

impl Process {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_axum-service"));
        let mut child = command.args(arguments).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let log = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            log.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)))
        });
        let mut process = Self { child, lines, url: String::new() };
        let mut log = Vec::new();
        process.url = loop {
            let line = process.lines.recv_timeout(LONG);
            log.push(line.unwrap_or_else(|_| panic!("it does not say where it listens: {log:?}")));
            let line = log.last().unwrap();
            if let Some(at) = line.find("http://") {
                break line[at..].to_string();
            }
        };
        process
    }

    fn ask(&self, request: ureq::http::request::Builder, body: &str) -> (u16, String) {
        let config = Agent::config_builder().http_status_as_error(false).proxy(None);
        let agent = Agent::new_with_config(config.timeout_global(Some(LONG)).build());
        let mut answer = agent.run(request.body(body.to_string()).unwrap()).unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.ask(ureq::http::Request::get(format!("{}{path}", self.url)), "")
    }

    fn put(&self, path: &str, value: &str) -> u16 {
        self.ask(ureq::http::Request::put(format!("{}{path}", self.url)), value).0
    }

    /// The sum of a metric over its labels.
    fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.get("/metrics");
        let lines = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
    }

    /// Tells it to end; what it has logged, once it has.
    fn end(mut self) -> Vec<String> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let start = Instant::now();
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(start.elapsed() < LONG, "it does not end"),
            }
            thread::yield_now();
        };
        assert!(status.success(), "{status}");
        std::iter::from_fn(|| self.lines.recv_timeout(LONG).ok()).collect()
    }
}

/// Also if the test fails.
impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two URLs that are free and stay so: nobody else uses addresses of that host.
fn urls() -> [String; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.50:0").unwrap());
    listeners.map(|listener| format!("http://{}", listener.local_addr().unwrap()))
}

fn service() -> (Process, [Process; 2]) {
    let origin = Process::start(&["origin", "--listen", "127.0.0.1:0"]);
    let (urls, address) = (urls(), origin.url.trim_start_matches("http://"));
    let start = |me: &str, other: &str| {
        let at = ["serve", "--front", "127.0.0.1:0", "--self-url", me, "--peer", other];
        Process::start(&[&at[..], &["--origin", address]].concat())
    };
    let nodes = [start(&urls[0], &urls[1]), start(&urls[1], &urls[0])];
    (origin, nodes)
}

#[test]
fn two_nodes_load_once_see_each_update_and_end_without_an_alarm() {
    let (origin, [a, b]) = service();
    assert_eq!((a.get("/readyz").0, b.get("/readyz").0), (200, 200));
    let path = |id: usize| format!("/users/user%20{id}");
    for id in 0..20 {
        assert_eq!(a.put(&path(id), &format!("v1 of {id}")), 204);
    }
    for id in 0..20 {
        for node in [&a, &b, &a, &b] {
            assert_eq!(node.get(&path(id)), (200, format!("v1 of {id}")));
        }
    }
    let loads = || a.metric("geecache_local_loads_total") + b.metric("geecache_local_loads_total");
    assert_eq!(loads(), 20, "one for each, in both nodes together");
    assert!(a.metric("geecache_peer_loads_total") + b.metric("geecache_peer_loads_total") > 0);
    assert_eq!(a.get("/users/nobody"), (404, "no such user".into()));
    let long = format!("/users/{}", "k".repeat(20_000));
    assert_eq!(a.get(&long).0, 400);

    // An update by either node is seen by both.
    for (id, writer) in [(0, &a), (1, &a), (2, &b), (3, &b)] {
        assert_eq!(writer.put(&path(id), "v2"), 204);
        for node in [&a, &b] {
            assert_eq!(node.get(&path(id)), (200, "v2".into()));
        }
    }
    assert_eq!(a.metric("service_updates_total"), 22, "its own, beside the library's");

    // Some cached, some not, one that is not there.
    assert_eq!(b.put("/users/new", "v1"), 204);
    let (status, users) = a.get("/users?id=user%200&id=new&id=nobody");
    let users: Value = serde_json::from_str(&users).unwrap();
    assert_eq!((status, users), (200, json!({"new": "v1", "nobody": null, "user 0": "v2"})));

    // The origin is gone: what was loaded is there still, what was not is an error, and no panic.
    drop(origin);
    assert_eq!(a.get(&path(0)), (200, "v2".into()));
    for node in [&a, &b] {
        for id in 100..110 {
            let (status, text) = node.get(&path(id));
            assert!(status == 502 && !text.contains("panic"), "{status} {text}");
        }
        assert_eq!(node.get("/users?id=user%20110&id=user%20111").0, 502);
    }

    // B still runs when A ends, and loads by itself what A owned.
    let from_a = a.end();
    assert_eq!(b.get(&path(0)), (200, "v2".into()));
    assert!((200..220).all(|id| b.get(&path(id)).0 == 502));
    let from_b = b.end();
    assert!(from_b.iter().any(|line| line.contains("falls back")), "the library's log: {from_b:?}");
    for log in [from_a, from_b] {
        assert!(log.iter().any(|line| line.contains("ending")), "{log:?}");
        assert!(!log.iter().any(|line| line.contains("ERROR")), "{log:?}");
    }
}
