//! Nodes that find each other by a name, while what the name leads to changes.
//!
//! The name is in a hosts file that the nodes alone have, each in a mount namespace of its own. That
//! takes the rights of root, or a system on which any user may be root in a namespace. Elsewhere there
//! is nothing to test here but the unit tests of `src/http/discovery.rs`, and a line says so.

use std::fs;
use std::process::{Command, Stdio};

use geecache::{Ring, RingHash};
use yaml_rust2::{Yaml, YamlLoader};

use crate::node::{Folder, Process, counted, program};
use crate::support::*;

const NAME: &str = "cache.geecache.test";

/// A hosts file, and nodes that see it as `/etc/hosts`.
struct Hosts {
    file: String,
    port: u16,
    /// What `unshare` is to part from.
    namespaces: &'static [&'static str],
}

impl Hosts {
    /// `None` if this user may not have a mount namespace of its own.
    fn new(folder: &Folder) -> Option<Self> {
        let mut hosts = Self { file: folder.path("hosts"), port: free_port(), namespaces: &[] };
        hosts.lead_to(&[]);
        for namespaces in [&["--mount"][..], &["--user", "--map-root-user", "--mount"]] {
            hosts.namespaces = namespaces;
            if hosts.in_namespace(Command::new("true")).output().ok()?.status.success() {
                return Some(hosts);
            }
        }
        eprintln!("skipped: this user may not have a mount namespace");
        None
    }

    /// Lets the name lead there. In place, since the nodes have this very file.
    fn lead_to(&self, hosts: &[&str]) {
        let lines: String = hosts.iter().map(|host| format!("{host} {NAME}\n")).collect();
        fs::write(&self.file, lines).unwrap();
    }

    fn in_namespace(&self, command: Command) -> Command {
        let mut unshare = Command::new("unshare");
        let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
        unshare.args(self.namespaces).args(["sh", "-c", script, &self.file]);
        unshare.arg(command.get_program());
        unshare.args(command.get_args()).env_remove("GEECACHE_TOKEN");
        unshare
    }

    fn url(&self, host: &str) -> String {
        format!("http://{host}:{}", self.port)
    }

    /// Starts the node at that address.
    fn node(&self, host: &str, database: &str) -> Process {
        let (url, name) = (self.url(host), format!("{NAME}:{}", self.port));
        let mut node = program();
        node.args(["--self-url", &url, "--peers-dns", &name, "--peers-every", "50ms"]);
        node.args(["--db", database, "--api", "127.0.0.1:0", "-v"]);
        let child = self.in_namespace(node).stderr(Stdio::piped()).spawn().unwrap();
        Process::of(child).wait_until_up()
    }
}

/// A port that is free on all addresses of the loopback network.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn knows(node: &Process, nodes: usize) -> bool {
    let ring: serde_json::Value = serde_json::from_slice(&node.ask("GET /api/ring").body).unwrap();
    ring["nodes"].as_array().unwrap().len() == nodes
}

#[test]
fn three_nodes_find_a_fourth_and_lose_it_again_and_no_get_fails() {
    let folder = Folder::new("discovery");
    let Some(hosts) = Hosts::new(&folder) else { return };
    let database = folder.database();
    let addresses = ["127.77.0.1", "127.77.0.2", "127.77.0.3", "127.77.0.4"];
    hosts.lead_to(&addresses[..3]);
    let mut nodes: Vec<_> = addresses[..3].iter().map(|host| hosts.node(host, &database)).collect();
    let get_all = |nodes: &[Process]| {
        for user in 0..30 {
            let (key, node) = (format!("user:{user:08}"), &nodes[user % nodes.len()]);
            assert_eq!(node.get(&key), (200, user.to_string()));
        }
    };
    let eventually_know = |nodes: &[Process], count: usize| {
        eventually("all nodes have the new list", || {
            get_all(nodes);
            nodes.iter().all(|node| knows(node, count))
        });
        get_all(nodes);
    };
    eventually_know(&nodes, 3);

    nodes.push(hosts.node(addresses[3], &database));
    hosts.lead_to(&addresses);
    eventually_know(&nodes, 4);
    // A key of the newcomer, asked of another one, is answered by the newcomer.
    let ring = Ring::new(addresses.map(|host| hosts.url(host)), 50, RingHash::Crc32);
    let newcomer = hosts.url(addresses[3]);
    let key =
        (100..).map(|i| format!("user:{i:08}")).find(|key| ring.owner(key) == Some(&*newcomer));
    let before = counted(&newcomer, "peer_requests");
    assert_eq!(nodes[0].get(&key.unwrap()).0, 200);
    assert_eq!(counted(&newcomer, "peer_requests"), before + 1);

    hosts.lead_to(&addresses[..3]);
    let newcomer = nodes.pop().unwrap();
    eventually_know(&nodes, 3);
    assert!(knows(&newcomer, 4), "it is in its own list, whatever the name says");
    get_all(&[newcomer]);

    // A name that leads nowhere changes nothing.
    hosts.lead_to(&[]);
    nodes[0].lines.line_with("the list of nodes stays as it is");
    eventually_know(&nodes, 3);
}

#[test]
fn a_node_that_could_not_be_found_says_why() {
    let folder = Folder::new("found");
    for (arguments, gist) in [
        (&["--self-url", "http://localhost:8001", "--peers-dns", "cache:8001"][..], "its address"),
        (&["--self-url", "http://127.77.0.9:8001", "--peers-dns", "cache"], "a name and a port"),
        (&["--self-url", "http://127.77.0.9:8001", "--peers-dns", "cache:1"], "the port 1"),
        (&["--self-url", "http://127.77.0.9:8001", "--peers", "x", "--peers-dns", "c:1"], "used"),
        (&["--self-url", "http://127.77.0.9:8001"], "--peers"),
    ] {
        // Whatever port its URL names, it listens on a free one.
        let others = ["--listen", "127.0.0.1:0", "--db", &folder.database()];
        let (mut child, lines) = Process::spawn(&[arguments, &others].concat(), &[]);
        let status = ended(&mut child);
        let lines = lines.rest();
        assert_eq!((status.code(), lines.len()), (Some(2), 1), "{lines:?}");
        assert!(lines[0].starts_with("node: ") && lines[0].contains(gist), "{lines:?}");
    }
}

/// What stands in `yaml` under these names, one within the other.
fn at<'y>(yaml: &'y Yaml, path: &[&str]) -> &'y Yaml {
    path.iter().fold(yaml, |yaml, name| &yaml[*name])
}

#[test]
fn the_manifest_for_kubernetes_starts_nodes_that_find_each_other() {
    let manifest = include_str!("../../examples/kubernetes.yaml");
    let manifest = YamlLoader::load_from_str(manifest).unwrap();
    let [service, deployment] = &manifest[..] else { panic!("{manifest:?}") };
    let pod = at(deployment, &["spec", "template"]);
    let container = &at(pod, &["spec", "containers"])[0];
    let port = at(service, &["spec", "ports"])[0]["port"].as_i64().unwrap();
    assert_eq!(at(service, &["spec", "clusterIP"]).as_str(), Some("None"), "headless");
    assert_eq!(at(service, &["spec", "selector"]), at(pod, &["metadata", "labels"]));
    for probe in ["readinessProbe", "livenessProbe"] {
        assert_eq!(at(container, &[probe, "httpGet", "port"]).as_i64(), Some(port));
        assert_eq!(at(container, &[probe, "httpGet", "path"]).as_str(), Some("/healthz"));
    }
    let seconds = |path: &[&str], yaml| at(yaml, path).as_i64().unwrap();
    let sleep = seconds(&["lifecycle", "preStop", "sleep", "seconds"], container);
    let grace = seconds(&["spec", "terminationGracePeriodSeconds"], pod);
    assert!(sleep >= 30 + 15, "it leaves the lists after 30 s, and is then asked for its values");
    assert!(grace > sleep + 5, "the node has its own grace of 5 s after the sleep");

    // With `--help` last, the node looks at the other options and does nothing.
    let arguments = container["args"].as_vec().unwrap().iter().map(|text| text.as_str().unwrap());
    let mut node = program();
    assert!(node.args(arguments).arg("--help").output().unwrap().status.success());
}
