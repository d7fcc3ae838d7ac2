//! The program of `examples/node`, in processes of its own.

use std::io::{Read, Write};
use std::iter::zip;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;
use std::{env, fs, process, slice, thread};

use geecache::{HttpPool, Ring, RingHash};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::*;
#[cfg(feature = "tls")]
use crate::tls::{Authority, TlsEnd};

/// A folder for the database of one test, which goes with it.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(test: &str) -> Self {
        let path = env::temp_dir().join(format!("geecache-{}-{test}", process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn database(&self) -> String {
        self.path("scores.db")
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).into_os_string().into_string().unwrap()
    }

    /// A file with this text, which may be read by those whom `mode` says.
    pub(crate) fn file(&self, name: &str, text: &str, mode: u32) -> String {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// URLs that are free, and stay so: nobody else uses addresses of that host.
pub(crate) fn urls<const N: usize>(host: &str) -> [String; N] {
    let listeners = [(); N].map(|()| TcpListener::bind((host, 0)).unwrap());
    listeners.map(|listener| url_of(listener.local_addr().unwrap()))
}

pub(crate) fn program() -> Command {
    let mut command = example("node");
    command.env_remove("GEECACHE_TOKEN");
    command
}

/// A node that runs, with its front.
pub(crate) struct Process {
    child: Child,
    pub(crate) lines: Lines,
    front: String,
}

impl Process {
    pub(crate) fn spawn(arguments: &[&str], environment: &[(&str, &str)]) -> (Child, Lines) {
        let mut command = program();
        command.args(arguments).envs(environment.iter().copied()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = Lines::of(child.stderr.take().unwrap());
        (child, lines)
    }

    /// A node that was started otherwise. `wait_until_up` is to follow.
    pub(crate) fn of(mut child: Child) -> Self {
        let lines = Lines::of(child.stderr.take().unwrap());
        Self { child, lines, front: String::new() }
    }

    /// Starts the node at `url`. `wait_until_up` is to follow.
    pub(crate) fn start(url: &str, peers: &[String], database: &str, more: &[&str]) -> Self {
        Self::start_in(&[], url, peers, database, more)
    }

    /// The same, with these variables in its environment.
    fn start_in(
        environment: &[(&str, &str)],
        url: &str,
        peers: &[String],
        database: &str,
        more: &[&str],
    ) -> Self {
        let peers = peers.join(",");
        let mut arguments = vec!["--self-url", url, "--peers", &peers, "--db", database, "-v"];
        if !more.contains(&"--api") {
            arguments.extend(["--api", "127.0.0.1:0"]);
        }
        let (child, lines) = Self::spawn(&[&arguments, more].concat(), environment);
        Self { child, lines, front: String::new() }
    }

    pub(crate) fn wait_until_up(mut self) -> Self {
        let line = self.lines.line_with("front on ");
        self.front = line[line.find("http://").unwrap()..].trim_end_matches('/').into();
        self
    }

    pub(crate) fn ask(&self, request: &str) -> Answer {
        ask(&self.front, request, &[])
    }

    pub(crate) fn get(&self, key: &str) -> (u16, String) {
        let answer = self.ask(&format!("GET /api?key={}", key.replace(' ', "%20")));
        (answer.status, answer.text().into())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn ended(&mut self) -> ExitStatus {
        ended(&mut self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the node at `url` has counted until now, of all peers together.
pub(crate) fn counted(url: &str, what: &str) -> u64 {
    let metrics = ask(url, "GET /metrics", &[]);
    let name = format!("geecache_{what}_total{{");
    let lines = metrics.text().lines().filter(|line| line.starts_with(&name));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn three_processes_that_start_on_one_new_database_fill_it_once() {
    let folder = Folder::new("seed");
    let (urls, database) = (urls::<3>("127.0.0.5"), folder.database());
    let nodes = urls.each_ref().map(|url| Process::start(url, &urls, &database, &[]));
    let nodes = nodes.map(Process::wait_until_up);
    for node in &nodes {
        for (key, score) in [("Tom", "630"), ("user:00000000", "0"), ("user:00009999", "9999")] {
            assert_eq!(node.get(key), (200, score.into()));
        }
        assert_eq!(node.get("kkk"), (404, "kkk not exist".into()));
    }
    let rows =
        Connection::open(&database)
            .unwrap()
            .query_row("SELECT count(*) FROM scores", [], |row| row.get::<_, i64>(0));
    assert_eq!(rows.unwrap(), 10_003);
}

#[test]
fn a_node_that_cannot_start_says_why_in_one_line_and_ends_with_2() {
    let folder = Folder::new("refuse");
    let [url] = urls("127.0.0.6");
    let taken = TcpListener::bind("127.0.0.6:0").unwrap();
    let taken_url = url_of(taken.local_addr().unwrap());
    let no_database = folder.path("notes.txt");
    fs::write(&no_database, "no database, but a text that is long enough for a header").unwrap();
    for (url, database, gist) in [
        (&taken_url, &*folder.database(), "cannot listen on"),
        (&url, &no_database, &no_database),
        (&url, folder.0.to_str().unwrap(), "database"),
    ] {
        let (mut child, lines) =
            Process::spawn(&["--self-url", url, "--peers", url, "--db", database], &[]);
        let status = ended(&mut child);
        let lines = lines.rest();
        assert_eq!((status.code(), lines.len()), (Some(2), 1), "{lines:?}");
        assert!(lines[0].starts_with("node: ") && lines[0].contains(gist), "{lines:?}");
    }
}

#[test]
fn a_node_that_is_told_to_end_answers_what_is_in_flight_first() {
    let folder = Folder::new("end");
    let urls = urls::<1>("127.0.0.7");
    let slow = ["--origin-delay", "300ms"];
    let mut node = Process::start(&urls[0], &urls, &folder.database(), &slow).wait_until_up();
    thread::scope(|scope| {
        let get = scope.spawn(|| node.get("Tom"));
        node.lines.line_with("search key Tom");
        node.signal(Signal::TERM);
        assert_eq!(get.join().unwrap(), (200, "630".into()));
    });
    assert_eq!(node.ended().code(), Some(0));
}

#[test]
fn a_second_signal_ends_a_node_at_once() {
    let folder = Folder::new("twice");
    let urls = urls::<1>("127.0.0.32");
    for signals in [[Signal::TERM, Signal::TERM], [Signal::INT, Signal::TERM]] {
        let slow = ["--origin-delay", "1h"];
        let mut node = Process::start(&urls[0], &urls, &folder.database(), &slow).wait_until_up();
        let mut client = Client::connect(&node.front);
        client.send("GET /api?key=Tom", &[]);
        node.lines.line_with("search key Tom");
        node.signal(signals[0]);
        node.lines.line_with("ending");
        node.signal(signals[1]);
        assert_eq!(node.ended().signal(), Some(signals[1].as_raw()));
    }
}

#[test]
fn a_node_that_is_told_to_end_does_within_five_seconds() {
    let folder = Folder::new("grace");
    let urls = urls::<1>("127.0.0.33");
    let slow = ["--origin-delay", "1h"];
    let mut node = Process::start(&urls[0], &urls, &folder.database(), &slow).wait_until_up();
    // On both of its sides.
    let mut clients = [&node.front, &urls[0]].map(|url| Client::connect(url));
    clients[0].send("GET /api?key=Tom", &[]);
    node.lines.line_with("search key Tom");
    clients[1].send("GET /_geecache/scores/Sam", &[]);
    node.lines.line_with("search key Sam");
    let start = Instant::now();
    node.signal(Signal::TERM);
    node.lines.line_with("not answered");
    assert_eq!(node.ended().code(), Some(0));
    let took = start.elapsed();
    assert!((4_900..9_500).contains(&took.as_millis()), "{took:?}");
}

#[test]
fn a_node_ends_with_its_parent_where_it_is_told_to() {
    let folder = Folder::new("parent");
    let ([url], database) = (urls("127.0.0.34"), folder.database());
    let arguments = ["--self-url", &url, "--peers", &url, "--db", &database, "--end-with"];
    let mut command = Command::new("sh");
    command.args(["-c", "\"$@\" $$ & wait", "sh"]).arg(program().get_program()).args(arguments);
    let mut parent = command.stderr(Stdio::piped()).spawn().unwrap();
    let lines = Lines::of(parent.stderr.take().unwrap());
    lines.line_with("listens on");
    parent.kill().unwrap();
    parent.wait().unwrap();
    lines.line_with("ending");
    eventually("the node ends", || TcpStream::connect(address_of(&url)).is_err());

    // A parent that has ended before cannot be waited for.
    let (mut child, lines) = Process::spawn(&[&arguments[..], &["1"]].concat(), &[]);
    assert_eq!(ended(&mut child).code(), Some(2));
    lines.line_with("not the node's parent");
}

#[test]
fn a_node_may_open_as_many_files_as_the_hard_limit_says() {
    let folder = Folder::new("files-limit");
    let ([url], database) = (urls("127.0.0.35"), folder.database());
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -Sn 100; ulimit -Hn 500; exec \"$@\"", "sh"]);
    command.arg(program().get_program());
    command.args(["--self-url", &url, "--peers", &url, "--db", &database, "-v"]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let lines = Lines::of(child.stderr.take().unwrap());
    let mut node = Process { child, lines, front: String::new() };
    node.lines.line_with("may open 500 files, 100 before");
    node.lines.line_with("listens on");
    let limits = fs::read_to_string(format!("/proc/{}/limits", node.pid())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().filter(|word| *word == "500").count(), 2, "{files}");
    node.signal(Signal::TERM);
    assert_eq!(node.ended().code(), Some(0));
}

#[test]
fn options_that_cannot_be_are_refused_with_what_was_typed() {
    let url = "http://127.0.0.36:8001";
    let two = |list: &str| list.replace('A', url).replace('B', "http://127.0.0.36:8002");
    for (option, values, gists) in [
        ("--origin-delay", &["2days"][..], &["2days", "--origin-delay", "an hour"][..]),
        ("--peers", &["A,,B"], &["--peers", "a comma has no URL before or behind it"]),
        ("--peers", &["A,B,"], &["--peers", "a comma has no URL before or behind it"]),
        ("--peers", &[",A"], &["--peers", "a comma has no URL before or behind it"]),
        ("--peers", &["A, B"], &["--peers", "' B'", "a space in the list"]),
        ("--peers", &["A ,B"], &["--peers", "'A '", "a space in the list"]),
        ("--peers", &["A,", "B"], &["'B'", "no spaces"]),
        ("--fronts", &["A,"], &["--fronts", "a comma has no URL before or behind it"]),
        ("--host", &["http://a"], &["--host", "http://a", "a host alone"]),
        ("--host", &["a:1"], &["--host", "a:1", "a host alone"]),
    ] {
        let mut arguments = vec!["--self-url", url, "--db", ":memory:"];
        if option != "--peers" {
            arguments.extend(["--peers", url]);
        }
        let values: Vec<_> = values.iter().map(|value| two(value)).collect();
        arguments.push(option);
        arguments.extend(values.iter().map(String::as_str));
        let (mut child, lines) = Process::spawn(&arguments, &[]);
        assert_eq!(ended(&mut child).code(), Some(2), "{values:?}");
        let lines = lines.rest();
        assert_eq!(lines.len(), 1, "{lines:?}");
        for gist in gists {
            assert!(lines[0].contains(&two(gist)), "{gist}: {lines:?}");
        }
    }
}

#[test]
fn the_front_answers_while_a_node_is_killed_and_comes_back() {
    let folder = Folder::new("kill");
    let (urls, database) = (urls::<2>("127.0.0.8"), folder.database());
    let start = |url| Process::start(url, &urls, &database, &[]).wait_until_up();
    let (asked, mut owner) = (start(&urls[0]), start(&urls[1]));
    let pool = HttpPool::new(&*urls[0]).unwrap();
    pool.set_peers(&urls).unwrap();
    let mut users = (0..10_000)
        .map(|user| (format!("user:{user:08}"), user.to_string()))
        .filter(|(key, _)| pool.owner(key) == urls[1]);
    let mut get_another = || {
        let (key, score) = users.next().unwrap();
        assert_eq!(asked.get(&key), (200, score), "{key}");
    };
    let answered_by_the_owner = || counted(&urls[0], "peer_loads");
    (0..10).for_each(|_| get_another());
    assert_eq!(answered_by_the_owner(), 10);
    owner.signal(Signal::KILL);
    owner.ended();
    (0..10).for_each(|_| get_another());
    assert_eq!(answered_by_the_owner(), 10);
    owner = start(&urls[1]);
    eventually("the owner answers again", || {
        thread::yield_now();
        get_another();
        answered_by_the_owner() > 10
    });
    drop(owner);
}

#[test]
fn the_front_answers_many_keys_with_one_json_object() {
    let folder = Folder::new("batch");
    let (urls, database) = (urls::<2>("127.0.0.9"), folder.database());
    let rows = Connection::open(&database).unwrap();
    rows.execute("CREATE TABLE scores (name TEXT PRIMARY KEY, score BLOB)", []).unwrap();
    for i in 0..100 {
        rows.execute("INSERT INTO scores VALUES (?1, ?2)", (format!("key {i}"), i)).unwrap();
    }
    rows.execute("INSERT INTO scores VALUES ('bytes', x'ff00'), ('none', NULL)", []).unwrap();
    let nodes = urls.each_ref().map(|url| Process::start(url, &urls, &database, &[]));
    for node in nodes.map(Process::wait_until_up) {
        let answer = node.ask("GET /api?key=key+7&key=bytes&key=kkk&key=&key=none&key=key%207");
        assert_eq!((answer.status, answer.header("Content-Type")), (200, Some("application/json")));
        let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        let keys: Vec<_> = json.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["key 7", "bytes", "kkk", "", "none"]);
        assert_eq!((&json["key 7"], &json["kkk"]), (&"7".into(), &serde_json::Value::Null));
        assert_eq!(json["bytes"], serde_json::json!({ "base64": "/wA=" }));
        for key in ["", "none"] {
            assert!(json[key]["error"].as_str().is_some_and(|error| error.len() > 1), "{json}");
        }
        let query: Vec<_> = (0..100).map(|i| format!("key=key+{i}")).collect();
        let answer = node.ask(&format!("GET /api?{}", query.join("&")));
        let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        for i in 0..100 {
            assert_eq!(json[format!("key {i}")], i.to_string());
        }
        assert_eq!(node.ask("GET /api?key=%ff&key=Tom").status, 400);
        assert_eq!(node.ask("GET /api").status, 400);
    }
}

#[test]
fn several_keys_are_found_as_one_key_is() {
    let folder = Folder::new("collation");
    let (urls, database) = (urls::<1>("127.0.0.29"), folder.database());
    for (columns, rows, keys) in [
        ("name TEXT COLLATE NOCASE PRIMARY KEY, score BLOB", "('Tom', 630)", ["tom", "TOM"]),
        ("name INTEGER PRIMARY KEY, score BLOB", "(7, 630)", ["7", "07"]),
        ("name, score BLOB", "('7', 630), (8, 1)", ["7", "8"]),
    ] {
        let _ = fs::remove_file(&database);
        let origin = Connection::open(&database).unwrap();
        let script = format!("CREATE TABLE scores ({columns}); INSERT INTO scores VALUES {rows}");
        origin.execute_batch(&script).unwrap();
        // No budget, so that each get is a search.
        let node = Process::start(&urls[0], &urls, &database, &["--max-bytes", "0"]);
        let node = node.wait_until_up();
        let batch = json(&node.ask(&format!("GET /api?key={}&key={}&key=x", keys[0], keys[1])));
        assert_eq!(batch[keys[0]], "630", "{columns}: {batch}");
        for key in [keys[0], keys[1], "x"] {
            let alone = match node.get(key) {
                (200, score) => score.into(),
                (404, _) => Value::Null,
                other => panic!("{other:?}"),
            };
            assert_eq!(batch[key], alone, "{columns}: {key}");
        }
    }
}

#[test]
fn the_front_is_asked_on_loopback_or_by_a_name_that_it_was_given() {
    let folder = Folder::new("host");
    let urls = urls::<1>("127.0.0.30");
    // `127.1` is loopback to those who look it up, and a name like any other to us.
    let more = ["--api", "127.1:0", "--fronts", "http://front.lan:10001"];
    let names = ["--host", "cache.lan", "--host", "Other.lan"];
    let more = [&more[..], &names].concat();
    let node = Process::start(&urls[0], &urls, &folder.database(), &more).wait_until_up();
    assert_eq!(node.get("Tom"), (200, "630".into()));
    let ask = |request: &str, host: &str| ask(&node.front, request, &[&format!("Host: {host}")]);
    for host in [
        ["localhost", "LocalHost:9999", "127.0.0.1", "127.0.0.1:80", "127.9.9.9:1"],
        ["[::1]", "[::1]:9999", "127.1:5", "cache.lan", "CACHE.lan:443"],
        ["other.lan:8443", "front.lan", "front.lan:10001", "Front.Lan:1", "[0:0:0:0:0:0:0:1]:2"],
    ]
    .as_flattened()
    {
        assert_eq!(ask("GET /api?key=Tom", host).text(), "630", "{host}");
        assert_eq!(ask("GET /", host).status, 200, "{host}");
    }
    for host in [
        ["evil.test", "evil.test:9999", "localhost.evil.test", "127.0.0.1.evil.test"],
        ["10.0.0.1", "128.0.0.1:9999", "[::2]:9999", "0.0.0.0"],
        ["", "localhost evil.test", "localhost@evil.test", "cache.lan.evil.test"],
        ["xcache.lan", "localhost\r\nHost: evil.test", "evil.test\r\nHost: localhost", ":9999"],
    ]
    .as_flattened()
    {
        for path in ["GET /", "GET /page.js", "GET /api?key=Tom", "GET /api/ring", "POST /"] {
            assert_eq!(ask(path, host).status, 421, "{path} of {host:?}");
        }
        for path in ["/api/status", "/api/trace?key=Tom", "/nothing"] {
            assert_eq!(ask(&format!("GET {path}"), host).status, 421, "{path} of {host:?}");
        }
        assert_eq!(ask("DELETE /api?key=Tom", host).status, 421, "{host:?}");
    }
    assert!(ask("GET /", "evil.test").text().contains("--host"));
    assert_eq!(json(&node.ask("GET /api/trace?key=Tom"))["trace"]["hit"], "main", "still there");
    // Not a browser.
    let mut old = TcpStream::connect(address_of(&node.front)).unwrap();
    old.set_read_timeout(Some(LONG)).unwrap();
    old.write_all(b"GET /api?key=Tom HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    old.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 ") && answer.ends_with("630"), "{answer}");
}

#[test]
fn the_front_answers_no_page_of_another_site() {
    let folder = Folder::new("origin");
    let urls = urls::<1>("127.0.0.31");
    let more = ["--host", "cache.lan"];
    let node = Process::start(&urls[0], &urls, &folder.database(), &more).wait_until_up();
    assert_eq!(node.get("Tom"), (200, "630".into()));
    let ask = |request: &str, host: &str, origin: &str| {
        let headers = [&*format!("Host: {host}"), &*format!("Origin: {origin}")];
        ask(&node.front, request, &headers).status
    };
    for (host, origin) in [
        ("localhost:9999", "http://evil.test"),
        ("localhost:9999", "http://evil.test:9999"),
        ("localhost:9999", "null"),
        ("localhost:9999", ""),
        ("localhost:9999", "http://localhost:9998"),
        ("localhost:9999", "http://127.0.0.1:9999"),
        ("localhost:9999", "http://localhost:99991"),
        ("cache.lan", "https://evil.test"),
        ("cache.lan", "https://cache.lan.evil.test"),
    ] {
        for path in ["GET /api?key=Tom", "DELETE /api?key=Tom", "OPTIONS /api?key=Tom", "GET /"] {
            assert_eq!(ask(path, host, origin), 403, "{path} of {origin:?}");
        }
    }
    assert_eq!(json(&node.ask("GET /api/trace?key=Tom"))["trace"]["hit"], "main", "still there");
    for (host, origin) in [
        ("localhost:9999", "http://localhost:9999"),
        ("[::1]:9999", "http://[::1]:9999"),
        // Behind a proxy that serves TLS.
        ("cache.lan", "https://cache.lan"),
    ] {
        assert_eq!(ask("GET /api?key=Tom", host, origin), 200, "{origin}");
        assert_eq!(ask("DELETE /api?key=Tom", host, origin), 204, "{origin}");
    }
}

#[test]
fn the_front_removes_from_all_nodes_or_names_those_that_it_did_not_reach() {
    let folder = Folder::new("remove");
    let (urls, database) = (urls::<2>("127.0.0.10"), folder.database());
    let nodes = urls.each_ref().map(|url| Process::start(url, &urls, &database, &[]));
    let [first, second] = nodes.map(Process::wait_until_up);
    let rows = Connection::open(&database).unwrap();
    rows.busy_timeout(LONG).unwrap();
    let get_all = || {
        // Thrice: loaded, copied, a hit.
        [&first, &second].map(|node| [(); 3].map(|()| node.get("Tom").1))
    };
    assert_eq!(get_all()[1][2], "630");
    rows.execute("UPDATE scores SET score = '700' WHERE name = 'Tom'", []).unwrap();
    assert_eq!(get_all()[1][2], "630", "nobody knows");
    let answer = second.ask("DELETE /api?key=Tom");
    assert_eq!((answer.status, answer.text()), (204, ""));
    assert!(get_all().as_flattened().iter().all(|score| score == "700"));

    for request in ["DELETE /api", "DELETE /api?key=Tom&key=Sam", "DELETE /api?key="] {
        assert_eq!(second.ask(request).status, 400, "{request}");
    }
    let answer = second.ask("POST /api?key=Tom");
    assert_eq!((answer.status, answer.header("Allow")), (405, Some("GET, HEAD, DELETE")));
    drop(first);
    let answer = second.ask("DELETE /api?key=Tom");
    assert_eq!(answer.status, 502);
    assert!(answer.text().contains(&urls[0]), "{}", answer.text());
}

#[test]
fn values_and_absences_live_as_long_as_the_options_say() {
    let folder = Folder::new("ttl");
    let urls = urls::<1>("127.0.0.11");
    let options = ["--ttl", "1h", "--negative-ttl", "1h"];
    let node = Process::start(&urls[0], &urls, &folder.database(), &options).wait_until_up();
    let answer = ask(&urls[0], "GET /_geecache/scores/Tom", &[]);
    let lives: u64 = answer.header("Geecache-Ttl-Ms").unwrap().parse().unwrap();
    assert!((1..=3_600_000).contains(&lives), "{lives}");
    for _ in 0..3 {
        assert_eq!(node.get("kkk").0, 404);
    }
    let metrics = ask(&urls[0], "GET /metrics", &[]);
    let line = "geecache_local_loads_total{group=\"scores\"} 2";
    assert!(metrics.text().lines().any(|l| l == line), "{}", metrics.text());
}

#[test]
fn while_the_database_is_broken_nodes_answer_what_they_had_and_then_recover_by_themselves() {
    let folder = Folder::new("broken");
    let (urls, database) = (urls::<2>("127.0.0.12"), folder.database());
    let options = ["--ttl", "200ms", "--refresh-ahead", "40ms", "--stale-if-error", "1h"];
    let start = |url| Process::start(url, &urls, &database, &options).wait_until_up();
    let nodes = [start(&urls[0]), start(&urls[1])];
    let keys: Vec<_> = (0..20).map(|user| format!("user:{user:08}")).collect();
    let all = format!("GET /api?key={}", keys.join("&key="));
    let check_all = |score: &str| {
        for node in &nodes {
            assert_eq!(node.get(&keys[7]), (200, score.into()));
            let answer = json(&node.ask(&all));
            for (user, key) in keys.iter().enumerate().filter(|&(user, _)| user != 7) {
                assert_eq!(answer[key], *user.to_string(), "{answer}");
            }
            assert_eq!(answer[&keys[7]], *score);
        }
    };
    check_all("7");
    let origin = Connection::open(&database).unwrap();
    origin.busy_timeout(LONG).unwrap();
    let sql = |text: &str| {
        origin.execute(text, []).unwrap();
    };
    sql("ALTER TABLE scores RENAME TO elsewhere");
    eventually("all values are past their time, and have been for a while", || {
        check_all("7");
        urls.iter().all(|url| counted(url, "stale") >= 200)
    });
    assert_eq!(nodes[0].get("user:00000099").0, 502, "of what it had not, it says so");
    sql("UPDATE elsewhere SET score = '77' WHERE name = 'user:00000007'");
    sql("ALTER TABLE elsewhere RENAME TO scores");
    eventually("the new value comes", || {
        nodes.iter().all(|node| {
            let (status, score) = node.get(&keys[7]);
            assert!(status == 200 && ["7", "77"].contains(&&*score), "{status} {score}");
            score == "77"
        })
    });
    eventually("nothing is stale any more", || {
        let before = urls.each_ref().map(|url| counted(url, "stale"));
        check_all("77");
        urls.each_ref().map(|url| counted(url, "stale")) == before
    });
}

#[test]
fn a_node_can_have_4096_workers_and_no_more() {
    let folder = Folder::new("workers");
    let ([url], database) = (urls("127.0.0.15"), folder.database());
    let start = |workers| {
        let arguments = ["--self-url", &url, "--peers", &url, "--db", &database];
        let arguments = [&arguments[..], &["--workers", workers]].concat();
        let (child, lines) = Process::spawn(&arguments, &[]);
        Process { child, lines, front: String::new() }
    };
    let mut node = start("4096");
    node.lines.line_with("listens on");
    assert_eq!(ask(&url, "GET /_geecache/scores/Tom", &[]).text(), "630");
    node.signal(Signal::TERM);
    assert_eq!(node.ended().code(), Some(0));

    let mut node = start("4097");
    assert_eq!(node.ended().code(), Some(2));
    assert!(node.lines.line_with("4097").contains("1..=4096"));
}

#[test]
fn nodes_answer_those_who_know_the_token_and_the_others_do_without_them() {
    const TOKEN: &str = "wgbGWnN2X0ds";
    let folder = Folder::new("token");
    let (urls, database) = (urls::<3>("127.0.0.12"), folder.database());
    let secret = folder.file("secret", &format!("{TOKEN}\n"), 0o600);
    let shown = folder.file("shown", TOKEN, 0o644);
    let start = |i: usize, environment: &[_], more: &[_]| {
        Process::start_in(environment, &urls[i], &urls, &database, more)
    };
    let by_file = start(0, &[("GEECACHE_TOKEN", "the-file-counts")], &["--token-file", &secret]);
    let by_file = by_file.wait_until_up();
    let by_environment = start(1, &[("GEECACHE_TOKEN", TOKEN)], &[]).wait_until_up();
    let pool = HttpPool::new(&*urls[0]).unwrap();
    pool.set_peers(&urls).unwrap();
    let mut users = (0..10_000).map(|user| (format!("user:{user:08}"), user.to_string()));
    let mut get_another = |node: &Process, owner: usize| {
        let (key, score) = users.find(|(key, _)| pool.owner(key) == urls[owner]).unwrap();
        assert_eq!(node.get(&key), (200, score), "{key}");
    };
    (0..5).for_each(|_| get_another(&by_file, 1));
    (0..5).for_each(|_| get_another(&by_environment, 0));
    assert_eq!([&urls[0], &urls[1]].map(|url| counted(url, "peer_loads")), [5, 5]);

    let mut nodes = vec![by_file, by_environment];
    for guess in [&[][..], &[("GEECACHE_TOKEN", "guess")]] {
        let stranger = start(2, guess, &[]).wait_until_up();
        let before = counted(&urls[0], "peer_requests");
        (0..5).for_each(|_| get_another(&stranger, 0));
        assert_eq!((counted(&urls[2], "fallbacks"), counted(&urls[2], "peer_loads")), (5, 0));
        assert_eq!(counted(&urls[0], "peer_requests"), before);
        get_another(&nodes[0], 2);
        let line = stranger.lines.line_with("401");
        assert!(line.contains("a token is required"), "{line}");
        drop(stranger);
    }

    let path = "/_geecache/scores";
    let by_hand = |headers: &[&str]| {
        let get = ask(&urls[0], &format!("GET {path}/Tom"), headers).status;
        let delete = ask(&urls[0], &format!("DELETE {path}/Tom"), headers).status;
        let clear = ask(&urls[0], &format!("DELETE {path}"), headers).status;
        [get, delete, clear, post(&urls[0], path, headers, &batch_of(&["Tom"])).status]
    };
    assert_eq!(by_hand(&[]), [401; 4]);
    assert_eq!(by_hand(&["Authorization: Bearer guess"]), [401; 4]);
    assert_eq!(by_hand(&[&format!("Authorization: Bearer {TOKEN}")]), [200, 204, 204, 200]);

    nodes.push(start(2, &[], &["--token-file", &shown]).wait_until_up());
    for (node, url) in nodes.iter_mut().zip(&urls) {
        assert!(!ask(url, "GET /metrics", &[]).text().contains(TOKEN));
        node.signal(Signal::TERM);
        assert_eq!(node.ended().code(), Some(0));
        let lines = node.lines.all();
        assert!(lines.iter().any(|line| line.contains("listens on")), "{lines:?}");
        assert!(!lines.iter().any(|line| line.contains(TOKEN)), "{lines:?}");
        let is_warned = lines.iter().any(|line| line.contains("every user of this machine"));
        assert_eq!(is_warned, *url == urls[2]);
    }
}

#[test]
fn a_token_that_cannot_be_is_refused_and_never_shown() {
    let folder = Folder::new("no-token");
    let [url] = urls("127.0.0.13");
    let file = |name, text| folder.file(name, text, 0o600);
    let start = |file: Option<&str>, environment: &[_]| {
        let database = folder.database();
        let arguments = ["--self-url", &url, "--peers", &url, "--db", &database];
        let more = file.map(|file| ["--token-file", file]);
        Process::spawn(&[&arguments[..], more.as_slice().as_flattened()].concat(), environment)
    };
    let files = [
        folder.path("missing"),
        file("empty", ""),
        file("newline", "\n"),
        file("spaces", "se cret"),
        file("lines", "se\ncret\n"),
        file("latin", "se\u{e9}cret"),
    ];
    let by_file = files.iter().map(|file| (start(Some(file), &[]), file.as_str()));
    let by_environment = ["", "se cret"].map(|token| {
        let variable = "GEECACHE_TOKEN";
        (start(None, &[(variable, token)]), variable)
    });
    for ((mut child, lines), place) in by_file.chain(by_environment) {
        let status = ended(&mut child);
        let lines = lines.rest();
        assert_eq!((status.code(), lines.len()), (Some(2), 1), "{lines:?}");
        let said = &lines[0];
        assert!(said.starts_with(&format!("node: the token in {place}: ")), "{said}");
        assert!(!said.replace(place, "").contains("cret"), "{said}");
    }
    let help = program().arg("--help").env("GEECACHE_TOKEN", "se-cret").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("GEECACHE_TOKEN") && !help.contains("se-cret"), "{help}");
}

#[cfg(feature = "tls")]
#[test]
fn nodes_behind_proxies_that_end_tls_ask_each_other_through_them() {
    let folder = Folder::new("tls");
    let (addresses, database) = (urls::<2>("127.0.0.14"), folder.database());
    let authority = Authority::new();
    let ends = addresses.each_ref().map(|url| TlsEnd::of(url, &authority, "127.0.0.1"));
    let urls = ends.each_ref().map(|end| end.url.clone());
    let roots = folder.file("root.pem", &authority.pem(), 0o644);
    let others = folder.file("other.pem", &Authority::new().pem(), 0o644);
    let start = |i: usize, roots: &str| {
        let more = ["--listen", address_of(&addresses[i]), "--root-certificates", roots];
        Process::start(&urls[i], &urls, &database, &more).wait_until_up()
    };
    let [asker, _owner] = [start(0, &roots), start(1, &roots)];
    let pool = HttpPool::new(&*urls[0]).unwrap();
    pool.set_peers(&urls).unwrap();
    let mut users = (0..10_000)
        .map(|user| (format!("user:{user:08}"), user.to_string()))
        .filter(|(key, _)| pool.owner(key) == urls[1]);
    for (key, score) in users.by_ref().take(10) {
        assert_eq!(asker.get(&key), (200, score));
    }
    assert_eq!(counted(&addresses[0], "peer_loads"), 10);
    assert_eq!(asker.ask("DELETE /api?key=Tom").status, 204);
    drop(asker);

    let asker = start(0, &others);
    let (key, score) = users.next().unwrap();
    assert_eq!(asker.get(&key), (200, score));
    let line = asker.lines.line_with("certificate");
    assert!(line.contains(&urls[1]), "{line}");
}

#[cfg(feature = "tls")]
#[test]
fn a_node_behind_a_proxy_has_to_be_told_where_to_listen_and_whom_to_believe() {
    let missing = "/nowhere/root.pem";
    for (more, gist) in [
        (&[][..], "--listen is required"),
        (&["--listen", "127.0.0.1:0", "--root-certificates", missing], missing),
        (&["--listen", "127.0.0.1:0", "--root-certificates", "/dev/null"], "no certificate"),
    ] {
        let (url, database) = ("https://localhost:8443", ":memory:");
        let arguments = ["--self-url", url, "--peers", url, "--db", database];
        let (mut child, lines) = Process::spawn(&[&arguments, more].concat(), &[]);
        let status = ended(&mut child);
        let lines = lines.rest();
        assert_eq!((status.code(), lines.len()), (Some(2), 1), "{lines:?}");
        assert!(lines[0].starts_with("node: ") && lines[0].contains(gist), "{lines:?}");
    }
}

fn json(answer: &Answer) -> Value {
    assert_eq!((answer.status, answer.header("Content-Type")), (200, Some("application/json")));
    serde_json::from_slice(&answer.body).unwrap()
}

#[test]
fn the_front_tells_the_ring_and_what_the_nodes_count() {
    let folder = Folder::new("status");
    let (mute, [own]) = (Stub::mute(), urls("127.0.0.16"));
    // Says little, and is asked for that.
    let (stub, questions) = recording(|_| {
        response(200, "text/plain", "geecache_gets_total{group=\"scores\"} 7\nmore or less\n")
    });
    let peers = [own.clone(), stub.url.clone(), mute.url.clone(), dead_url()];
    let node = Process::start(&own, &peers, &folder.database(), &[]).wait_until_up();
    let ring = Ring::new(peers.clone(), 50, RingHash::Crc32);

    let shown = json(&node.ask("GET /api/ring"));
    assert_eq!((&shown["self"], &shown["group"]), (&own.as_str().into(), &"scores".into()));
    let shares = ring.shares();
    assert_eq!(shown["nodes"].as_array().unwrap().len(), 4);
    for (node, (url, share)) in zip(shown["nodes"].as_array().unwrap(), shares) {
        let places = ring.points().filter(|&(_, node)| node == url).map(|(place, _)| place);
        assert_eq!((&node["url"], &node["front"]), (&url.into(), &Value::Null));
        assert_eq!(node["points"], Value::from_iter(places));
        assert!((node["share"].as_f64().unwrap() - share).abs() < 1e-9);
    }

    let mut own_keys =
        (0..).map(|i| format!("user:{i:08}")).filter(|k| ring.owner(k) == Some(&own));
    let key = own_keys.next().unwrap();
    for _ in 0..3 {
        assert_eq!(node.get(&key).0, 200);
    }
    let start = Instant::now();
    let mut status = Value::Null;
    eventually("the counters are seen", || {
        status = json(&node.ask("GET /api/status"));
        status["nodes"].as_array().unwrap().iter().any(|node| node["counters"]["gets"] == 3)
    });
    let of = |url: &str| {
        let nodes = status["nodes"].as_array().unwrap();
        nodes.iter().find(|node| node["url"] == url).unwrap().clone()
    };
    let counters = &of(&own)["counters"];
    assert_eq!((&counters["main_hits"], &counters["local_loads"]), (&2.into(), &1.into()));
    assert_eq!((&counters["hot_hits"], &counters["entries"]), (&0.into(), &1.into()));
    assert_eq!(counters["max_bytes"], 64 << 20);
    assert_eq!(of(&stub.url)["counters"]["gets"], 7);
    for silent in &peers[2..] {
        let report = of(silent);
        assert_eq!((&report["up"], &report["counters"]), (&false.into(), &Value::Null));
        assert!(report["why"].as_str().is_some_and(|why| !why.is_empty()), "{report}");
    }

    // However many look, no node is asked more often than about once a second.
    together(8, |_| (0..5).for_each(|_| drop(json(&node.ask("GET /api/status")))));
    let most = 1 + start.elapsed().as_millis() / 900;
    let questions = questions.lock().unwrap();
    let asked = questions.iter().filter(|question| question.path() == "/metrics").count();
    assert!(asked as u128 <= most, "{asked} times in {:?}", start.elapsed());
}

/// Else whoever wants to see why a node is slow would wait with all others.
#[test]
fn the_page_and_the_status_are_there_while_all_workers_wait() {
    let folder = Folder::new("busy");
    let [own] = urls("127.0.0.19");
    let more = ["--workers", "1", "--queue", "0", "--origin-delay", "4s"];
    let node = Process::start(&own, slice::from_ref(&own), &folder.database(), &more);
    let node = node.wait_until_up();
    thread::scope(|scope| {
        let get = |key| node.get(key).0;
        let waiting = scope.spawn(move || {
            while get("Tom") == 503 {}
            Instant::now()
        });
        eventually("the worker is busy", || !waiting.is_finished() && get("Jack") == 503);
        for path in ["/", "/page.js", "/page.css"] {
            let answer = node.ask(&format!("GET {path}"));
            assert_eq!(answer.status, 200, "{path}");
        }
        eventually("the status is there", || {
            let status = json(&node.ask("GET /api/status"));
            status["nodes"][0]["up"] == true
        });
        let seen = Instant::now();
        assert!(seen < waiting.join().unwrap(), "before the worker had time");
    });
}

#[test]
fn the_front_traces_a_get_here_and_at_the_other_fronts() {
    let folder = Folder::new("trace");
    let [a, b, front_a, front_b] = urls("127.0.0.17");
    let (urls, fronts) = ([a, b], [front_a, front_b]);
    let nodes = [0, 1].map(|i| {
        let api = fronts[i].strip_prefix("http://").unwrap();
        let more = ["--api", api, "--fronts", &fronts.join(",")];
        Process::start(&urls[i], &urls, &folder.database(), &more)
    });
    let nodes = nodes.map(Process::wait_until_up);
    let rows = Connection::open(folder.database()).unwrap();
    rows.busy_timeout(LONG).unwrap();
    rows.execute("INSERT INTO scores VALUES ('bytes', x'ff00')", []).unwrap();
    rows.execute("INSERT INTO scores VALUES ('long', ?1)", [format!("x{}", "ü".repeat(9_999))])
        .unwrap();
    let ring = Ring::new(urls.clone(), 50, RingHash::Crc32);
    let own = (0..).map(|i| format!("user:{i:08}")).find(|k| ring.owner(k) == Some(&urls[0]));
    let own = own.unwrap();
    let trace = |i: usize, query: &str| json(&nodes[i].ask(&format!("GET /api/trace?{query}")));

    // The owner loads, then it has a hit; the other asks it.
    let first = trace(0, &format!("key={own}"));
    assert_eq!(
        (&first["key"], &first["place"]),
        (&own.as_str().into(), &ring.position(&own).into())
    );
    assert_eq!((&first["node"], &first["owner"]), (&first["owner"], &urls[0].as_str().into()));
    let value = own.trim_start_matches("user:").parse::<u32>().unwrap().to_string();
    assert_eq!(first["answer"], serde_json::json!({ "value": value, "bytes": value.len() }));
    assert!(first["trace"]["loaded_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{first}");
    assert_eq!((&first["trace"]["hit"], &first["trace"]["asked"]), (&Value::Null, &Value::Null));
    let second = trace(0, &format!("key={own}"));
    let hit = serde_json::json!({
        "hit": "main", "asked": null, "handed_over": null, "loaded_ms": null, "waited_ms": null,
        "renews": false, "stale": null, "text": "main hit",
    });
    assert_eq!(second["trace"], hit);
    let other = trace(1, &format!("key={own}"));
    assert_eq!(other["trace"]["asked"]["peer"], *urls[0]);
    assert_eq!(other["trace"]["asked"]["error"], Value::Null);
    // The same two, each asked of the other's front.
    assert_eq!(trace(1, &format!("key={own}&node={}", urls[0]))["trace"], hit);
    assert_eq!(trace(1, &format!("key={own}&node={}", urls[1]))["node"], *urls[1]);

    for key in ["a b/ü+&=%", "<b>", "\"\\\u{1}", "kkk"] {
        let encoded = utf8_percent_encode(key, NON_ALPHANUMERIC).to_string();
        let shown = trace(0, &format!("key={encoded}&node={}", urls[1]));
        assert_eq!((&shown["key"], &shown["node"]), (&key.into(), &urls[1].as_str().into()));
        assert_eq!(shown["owner"], ring.owner(key).unwrap());
        assert_eq!(shown["answer"], serde_json::json!({ "value": null }));
    }
    let bytes = serde_json::json!({ "value": { "base64": "/wA=" }, "bytes": 2 });
    assert_eq!(trace(0, "key=bytes")["answer"], bytes);
    let long = trace(0, "key=long");
    let beginning = long["answer"]["value"].as_str().unwrap();
    assert_eq!((beginning.len(), &long["answer"]["bytes"]), (4_095, &19_999.into()));

    let too_long = format!("key={}", "k".repeat(16_385));
    for query in ["", "key=", "key=a&key=b", "key=%ff", "key=a&node=x&node=y", &too_long] {
        assert_eq!(nodes[0].ask(&format!("GET /api/trace?{query}")).status, 400, "{query:.30}");
    }
    let answer = nodes[0].ask("GET /api/trace?key=a&node=http://elsewhere:80");
    assert_eq!((answer.status, answer.text().contains("not known")), (502, true));
}

#[test]
fn the_page_may_load_nothing_from_elsewhere() {
    let folder = Folder::new("files");
    let urls = urls::<1>("127.0.0.18");
    let node = Process::start(&urls[0], &urls, &folder.database(), &[]).wait_until_up();
    for (path, kind) in
        [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")]
    {
        let answer = node.ask(&format!("GET {path}"));
        assert_eq!(answer.status, 200);
        assert!(answer.header("Content-Type").unwrap().starts_with(kind));
        assert_eq!(answer.header("X-Content-Type-Options"), Some("nosniff"));
        let policy = answer.header("Content-Security-Policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"));
        assert!(
            !answer.text().contains("https:") && !answer.text().contains("innerHTML"),
            "{path}"
        );
    }
    assert_eq!(node.ask("POST /").header("Allow"), Some("GET, HEAD"));
    assert_eq!(node.ask("GET /page").status, 404);
}
