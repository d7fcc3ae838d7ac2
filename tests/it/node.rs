//! The program of `examples/node`, in processes of its own.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::{env, fs, process, thread};

use geecache::HttpPool;
use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::*;
#[cfg(feature = "tls")]
use crate::tls::{Authority, TlsEnd};

/// A folder for the database of one test, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = env::temp_dir().join(format!("geecache-{}-{test}", process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn database(&self) -> String {
        self.path("scores.db")
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).into_os_string().into_string().unwrap()
    }

    /// A file with this text, which may be read by those whom `mode` says.
    fn file(&self, name: &str, text: &str, mode: u32) -> String {
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
fn urls<const N: usize>(host: &str) -> [String; N] {
    let listeners = [(); N].map(|()| TcpListener::bind((host, 0)).unwrap());
    listeners.map(|listener| url_of(listener.local_addr().unwrap()))
}

fn program() -> Command {
    // Beside the folder of this test's own binary.
    let folder = env::current_exe().unwrap().parent().unwrap().with_file_name("examples");
    let program = folder.join("node");
    assert!(program.exists(), "`cargo test` or `cargo build --example node` makes {program:?}");
    let mut command = Command::new(program);
    command.env_remove("GEECACHE_TOKEN");
    command
}

/// A node that runs, with its front.
struct Process {
    child: Child,
    lines: Lines,
    front: String,
}

impl Process {
    fn spawn(arguments: &[&str], environment: &[(&str, &str)]) -> (Child, Lines) {
        let mut command = program();
        command.args(arguments).envs(environment.iter().copied()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = Lines::of(child.stderr.take().unwrap());
        (child, lines)
    }

    /// Starts the node at `url`. `wait_until_up` is to follow.
    fn start(url: &str, peers: &[String], database: &str, more: &[&str]) -> Self {
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
        let arguments =
            ["--self-url", url, "--peers", &peers, "--db", database, "--api", "127.0.0.1:0", "-v"];
        let (child, lines) = Self::spawn(&[&arguments, more].concat(), environment);
        Self { child, lines, front: String::new() }
    }

    fn wait_until_up(mut self) -> Self {
        let line = self.lines.line_with("front on ");
        self.front = line[line.find("http://").unwrap()..].trim_end_matches('/').into();
        self
    }

    fn ask(&self, request: &str) -> Answer {
        ask(&self.front, request, &[])
    }

    fn get(&self, key: &str) -> (u16, String) {
        let answer = self.ask(&format!("GET /api?key={}", key.replace(' ', "%20")));
        (answer.status, answer.text().into())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn ended(&mut self) -> ExitStatus {
        ended(&mut self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ended(child: &mut Child) -> ExitStatus {
    let mut status = None;
    eventually("the process ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

/// What the node at `url` has counted until now, of all peers together.
fn counted(url: &str, what: &str) -> u64 {
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
    let no_database = folder.0.join("notes.txt").into_os_string().into_string().unwrap();
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
