//! A node in a process of its own, so that its threads, its memory and its log are its own too.
//!
//! The process is this test binary, told to run the ignored test below.

use std::io::Read;
use std::net::TcpListener;
use std::process::{ChildStdin, Stdio};
use std::time::Duration;
use std::{env, fs, process, thread};

use geecache::{BoxError, Group, HttpServer, ServerOptions};
use log::LevelFilter;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::*;

/// How long the origin takes for keys that begin with `slow`.
pub(crate) const SLOW: Duration = Duration::from_millis(50);

/// As many threads may be idle: tiny_http's end after five seconds without a connection, and some
/// ten connections a second are the listener's own.
pub(crate) const IDLE_THREADS: usize = 60;

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
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

pub(crate) struct Child {
    pub(crate) url: String,
    process: process::Child,
    log: Lines,
    // It ends by itself when this is closed, however the test ends.
    _stdin: ChildStdin,
}

impl Child {
    /// A node with default options but for the idle timeout, which may open so many files.
    pub(crate) fn start(idle_timeout: Duration, files: u64) -> Self {
        let mut command = this_binary("child::the_process_of_a_child");
        command
            .env(IDLE_TIMEOUT_MS, idle_timeout.as_millis().to_string())
            .env(FILES, files.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        Self {
            url: Lines::of(process.stdout.take().unwrap()).url(),
            log: Lines::of(process.stderr.take().unwrap()),
            _stdin: process.stdin.take().unwrap(),
            process,
        }
    }

    pub(crate) fn threads(&self) -> usize {
        threads_of(self.process.id())
    }

    /// The memory that it holds, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        memory_of(self.process.id())
    }

    /// Waits for a line of the log.
    pub(crate) fn logs(&self, text: &str) {
        self.log.line_with(text);
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
        Ok::<_, BoxError>(Some(value_of(key)))
    };
    let group = Group::builder("scores", getter).build().unwrap();
    let idle_timeout = Duration::from_millis(idle_timeout.parse().unwrap());
    let options = ServerOptions { idle_timeout, ..ServerOptions::default() };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = HttpServer::start(listener, [group], options).unwrap();
    println!("\n{}", url_of(server.local_addr()));
    let _ = std::io::stdin().read(&mut [0]);
    process::exit(0);
}
