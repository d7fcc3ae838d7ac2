//! What takes a process of its own: to be killed, and to have another environment.
//!
//! The process is this test binary, told to run one of the two ignored tests below.

use std::env;
use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, ChildStdin, Stdio};
use std::thread;
use std::time::Instant;

use geecache::{BoxError, Group, HttpServer, ServerOptions};

use crate::support::*;

/// Where the node is to listen; set by [`NodeProcess::start`] alone.
const LISTEN: &str = "GEECACHE_TEST_LISTEN";
/// Set for [`a_client_behind_a_proxy`].
const BEHIND_A_PROXY: &str = "GEECACHE_TEST_BEHIND_A_PROXY";

/// A node in a process of its own. It loads `slow` for ever.
struct NodeProcess {
    url: String,
    child: Child,
    lines: Lines,
    // It ends by itself when this is closed, however the test ends.
    _stdin: ChildStdin,
}

impl NodeProcess {
    fn start(address: &str) -> Self {
        let mut command = this_binary("processes::the_process_of_a_node");
        command.env(LISTEN, address).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = Lines::of(child.stdout.take().unwrap());
        let _stdin = child.stdin.take().unwrap();
        Self { url: lines.url(), child, lines, _stdin }
    }

    /// By SIGKILL.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
#[ignore = "the other process of the tests below"]
fn the_process_of_a_node() {
    let Ok(address) = env::var(LISTEN) else { return };
    let listener = TcpListener::bind(address).unwrap();
    let getter = |key: &str| {
        if key.starts_with("slow") {
            println!("loading {key}");
            loop {
                thread::park();
            }
        }
        Ok::<_, BoxError>(Some(value_of(key)))
    };
    let group = Group::builder("scores", getter).build().unwrap();
    let server = HttpServer::start(listener, [group], ServerOptions::default()).unwrap();
    println!("\n{}", url_of(server.local_addr()));
    let _ = std::io::stdin().read(&mut [0]);
    std::process::exit(0);
}

#[test]
fn an_owner_that_is_killed_in_mid_request_leaves_the_get_to_the_origin_and_returns() {
    // An address of its own keeps the port free between the two lives of the node.
    let mut owner = NodeProcess::start("127.0.0.4:0");
    let [node] = Cluster::over(&Origin::of_all()).peer(&owner.url).start();
    let key = node.key_of(&owner.url);
    assert_eq!(node.get(&key), Some(value_of(&key)));
    assert_eq!(node.stats().peer_loads, 1);

    let slow = (0..).map(|i| format!("slow {i}")).find(|k| node.pool.owner(k) == owner.url);
    let slow = slow.unwrap();
    thread::scope(|scope| {
        let get = scope.spawn(|| node.get(&slow));
        owner.lines.line_with("loading slow");
        owner.kill();
        let killed = Instant::now();
        assert_eq!(get.join().unwrap(), Some(value_of(&slow)));
        assert!(killed.elapsed() < LONG / 2, "without waiting for a deadline");
    });
    assert_eq!((node.stats().fallbacks, node.believes_in_its_peer()), (1, false));

    let address = owner.url.strip_prefix("http://").unwrap().to_string();
    owner = NodeProcess::start(&address);
    let mut keys = node.keys_of(&owner.url);
    eventually("the owner answers again", || {
        let key = keys.next().unwrap();
        assert_eq!(node.get(&key), Some(value_of(&key)));
        node.stats().peer_loads > 1
    });
    assert!(node.believes_in_its_peer());
}

#[test]
#[ignore = "the other process of the test below"]
fn a_client_behind_a_proxy() {
    if env::var(BEHIND_A_PROXY).is_err() {
        return;
    }
    let [asker, owner] = Cluster::over(&Origin::of_all()).start();
    let key = asker.key_of(&owner.url);
    assert_eq!(asker.get(&key), Some(value_of(&key)));
    assert_eq!(asker.stats().peer_loads, 1);
    println!("\nanswered by the owner");
}

#[test]
fn a_proxy_in_the_environment_is_ignored() {
    let proxy = Stub::answering(502, "a proxy that knows no such host");
    let mut command = this_binary("processes::a_client_behind_a_proxy");
    command.env(BEHIND_A_PROXY, "1").env_remove("no_proxy").env_remove("NO_PROXY");
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env(name, &proxy.url);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("answered by the owner"), "{text}");
    assert_eq!(proxy.connections(), 0);
}
