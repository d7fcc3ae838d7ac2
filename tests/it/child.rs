//! A node in a process of its own, so that its threads, its memory and its log are its own too.
//!
//! The process is this test binary, told to run an ignored test below.
//!
//! Threads run out there by a limit of the address space: a stack takes so much of it that no
//! thread can be started, and everything else so little that it does not notice. Limits of the
//! number of threads do not bind root, or count what else a user runs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use geecache::{BoxError, Group, HttpServer, ServerOptions};
use log::LevelFilter;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

use crate::support::*;

/// How long the origin takes for keys that begin with `slow`.
pub(crate) const SLOW: Duration = Duration::from_millis(50);

/// The length of the value of the key `large`: eight of them may be on their way at a time.
pub(crate) const LARGE: usize = 32 << 20;

/// As many threads may be idle: tiny_http's end after five seconds without a connection, and some
/// ten connections a second are the listener's own.
pub(crate) const IDLE_THREADS: usize = 60;

/// The address space of a thread's stack, where threads are to run out.
const STACK: u64 = 256 << 20;
/// What is left of the address space then.
const REST: u64 = 100 << 20;

/// The settings of the node, set by [`Child::start`] alone.
const IDLE_TIMEOUT_MS: &str = "GEECACHE_TEST_IDLE_TIMEOUT_MS";
const FILES: &str = "GEECACHE_TEST_FILES";

/// The most files that a test may open; some systems begin with fewer than it is entitled to.
pub(crate) fn allow_many_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.map_or(65_536, |maximum| maximum.min(65_536));
    set_files(most);
    most
}

fn set_files(current: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum }).unwrap();
}

/// How many threads a process has.
pub(crate) fn threads_of(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}

/// The memory that a process holds, in bytes.
pub(crate) fn memory_of(pid: u32) -> u64 {
    status_of(pid, "VmRSS:")
}

pub(crate) struct Child {
    pub(crate) url: String,
    process: process::Child,
    output: Lines,
    log: Lines,
    // It ends by itself when this is closed, however the test ends.
    stdin: ChildStdin,
}

impl Child {
    /// A node with default options but for the idle timeout, which may open so many files.
    pub(crate) fn start(idle_timeout: Duration, files: u64) -> Self {
        Self::of(Self::command(idle_timeout, files))
    }

    fn command(idle_timeout: Duration, files: u64) -> Command {
        let mut command = this_binary("child::the_process_of_a_child");
        command
            .env(IDLE_TIMEOUT_MS, idle_timeout.as_millis().to_string())
            .env(FILES, files.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// The same, of which threads can be [withheld](Self::withhold_threads).
    pub(crate) fn with_large_stacks(idle_timeout: Duration, files: u64) -> Self {
        let mut command = Self::command(idle_timeout, files);
        command.env("RUST_MIN_STACK", STACK.to_string());
        Self::of(command)
    }

    fn of(mut command: Command) -> Self {
        let mut process = command.spawn().unwrap();
        let output = Lines::of(process.stdout.take().unwrap());
        Self {
            url: output.url(),
            output,
            log: Lines::of(process.stderr.take().unwrap()),
            stdin: process.stdin.take().unwrap(),
            process,
        }
    }

    /// It can start no more threads, until this is called with `false`.
    pub(crate) fn withhold_threads(&self, withhold: bool) {
        let maximum = getrlimit(Resource::As).maximum;
        let current = if withhold { Some(self.status("VmSize:") + REST) } else { maximum };
        let pid = Pid::from_child(&self.process);
        prlimit(Some(pid), Resource::As, Rlimit { current, maximum }).unwrap();
    }

    /// Shuts the server down, and returns whether all was answered and how long it took.
    pub(crate) fn shut_down(&mut self) -> (bool, Duration) {
        writeln!(self.stdin, "shut down").unwrap();
        let line = self.output.line_with("all answered");
        let mut words = line.split(' ').skip(2);
        let mut word = || words.next().unwrap();
        (word().parse().unwrap(), Duration::from_millis(word().parse().unwrap()))
    }

    pub(crate) fn threads(&self) -> usize {
        threads_of(self.process.id())
    }

    /// Those whose names begin so.
    pub(crate) fn threads_named(&self, name: &str) -> usize {
        self.of_each_thread("comm").iter().filter(|own| own.starts_with(name)).count()
    }

    /// How often its threads have begun to wait, and so will wake up.
    pub(crate) fn wake_ups(&self) -> u64 {
        let field = |status: &String| {
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"));
            line.unwrap().split_whitespace().last().unwrap().parse::<u64>().unwrap()
        };
        self.of_each_thread("status").iter().map(field).sum()
    }

    /// What a file of `/proc` says of each thread; one may end meanwhile.
    fn of_each_thread(&self, file: &str) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join(file)).ok()).collect()
    }

    /// The memory that it holds, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        memory_of(self.process.id())
    }

    fn status(&self, field: &str) -> u64 {
        status_of(self.process.id(), field)
    }

    /// Waits for a line of the log.
    pub(crate) fn logs(&self, text: &str) -> String {
        self.log.line_with(text)
    }

    /// No thread of it has panicked since it was last asked, nor a handler.
    pub(crate) fn check_for_panics(&self) {
        let lines = self.log.so_far();
        assert!(!lines.iter().any(|line| line.contains("panic")), "{lines:#?}");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A field of the status of a process, in bytes.
fn status_of(process: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
#[ignore = "the process of the children"]
fn the_process_of_a_child() {
    let Ok(idle_timeout) = env::var(IDLE_TIMEOUT_MS) else { return };
    set_files(env::var(FILES).unwrap().parse().unwrap());
    simplelog::WriteLogger::init(LevelFilter::Info, Default::default(), std::io::stderr()).unwrap();
    let getter = |key: &str| {
        if key.starts_with("slow") {
            thread::sleep(SLOW);
        }
        let large = || vec![b'x'; LARGE];
        Ok::<_, BoxError>(Some(if key == "large" { large() } else { value_of(key).into() }))
    };
    let group = Group::builder("scores", getter).build().unwrap();
    let idle_timeout = Duration::from_millis(idle_timeout.parse().unwrap());
    let options = ServerOptions { idle_timeout, ..ServerOptions::default() };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = HttpServer::start(listener, [group], options).unwrap();
    println!("\n{}", url_of(server.local_addr()));
    let mut stdin = BufReader::new(std::io::stdin());
    if stdin.read_line(&mut String::new()).unwrap() > 0 {
        let start = Instant::now();
        let all_answered = server.shutdown(LONG);
        println!("all answered {all_answered} {}", start.elapsed().as_millis());
        let _ = stdin.read(&mut [0]);
    }
    process::exit(0);
}

/// Prints what a server says that is started where so many threads can be had, and that is asked.
#[test]
#[ignore = "the process of a test"]
fn starts_with_few_threads() {
    if env::var("RUST_MIN_STACK").is_err() {
        return;
    }
    let maximum = getrlimit(Resource::As).maximum;
    let limit = |current| setrlimit(Resource::As, Rlimit { current, maximum }).unwrap();
    for threads in 0..14 {
        let group = Group::builder("scores", Origin::of_all()).build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let options = ServerOptions { workers: 2, ..ServerOptions::default() };
        limit(Some(status_of(process::id(), "VmSize:") + threads * STACK + REST));
        let started = HttpServer::start(listener, [group], options);
        limit(maximum);
        match started {
            Ok(server) => {
                // It may have lacked threads for connections, which is noticed after a second.
                let url = url_of(server.local_addr());
                eventually("it answers", || is_answered(&url));
                println!("{threads} threads: it answers");
            }
            Err(error) => println!("{threads} threads: {error:?}"),
        }
    }
    println!("the end");
}

#[test]
fn a_server_that_has_no_threads_to_start_says_so() {
    let mut command = this_binary("child::starts_with_few_threads");
    command.env("RUST_MIN_STACK", STACK.to_string());
    let output = command.output().unwrap();
    let output = String::from_utf8_lossy(&output.stdout);
    println!("{output}");
    let lines: Vec<_> = output.lines().filter(|line| line.contains(" threads: ")).collect();
    assert_eq!(lines.len(), 14, "no start ended the process");
    assert!(output.contains("the end"));
    let has = |line: &&&str, what: &str| line.contains(what);
    let (refused, answering): (Vec<_>, Vec<_>) = lines.iter().partition(|line| has(line, "Io("));
    assert!(answering.iter().all(|line| has(line, "it answers")));
    assert!(refused.len() > 3 && answering.len() > 1);
}
