//! Redis beside it: the yardstick that people know. One blocking connection for each caller.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::remote::{Caller, Callers, callers, connect};

const PATIENCE: Duration = Duration::from_secs(10);

/// A Redis server of our own that keeps nothing on disk. It ends when this is dropped.
pub(crate) struct Redis {
    child: Child,
    address: SocketAddr,
}

impl Redis {
    /// `None` if there is no `redis-server` on this machine.
    pub(crate) fn start() -> Option<Self> {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = free.local_addr().expect("an address");
        drop(free);
        let mut command = Command::new("redis-server");
        command.args(["--port", &address.port().to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().ok()?;
        let redis = Self { child, address };
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(start.elapsed() < PATIENCE, "redis-server does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        Some(redis)
    }

    /// As many callers that ask for these keys, each of which has a value of so many bytes.
    pub(crate) fn callers<'c>(
        &self,
        count: usize,
        keys: &'c [String],
        value_bytes: usize,
    ) -> Callers<'c> {
        let mut first = Client::connect(self.address, value_bytes);
        let value = "v".repeat(value_bytes);
        for key in keys {
            first.ask(&["SET", key, &value]);
            assert_eq!(first.line(), "+OK");
        }
        callers(count, keys, || Box::new(Client::connect(self.address, value_bytes)))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Client {
    stream: BufReader<TcpStream>,
    value: Vec<u8>,
}

impl Client {
    fn connect(address: SocketAddr, value_bytes: usize) -> Self {
        let stream = BufReader::with_capacity(16 << 10, connect(address));
        Self { stream, value: vec![0; value_bytes + 2] }
    }

    /// Sends a command, as RESP has it, by one write.
    fn ask(&mut self, words: &[&str]) {
        let mut command = format!("*{}\r\n", words.len());
        words.iter().for_each(|word| command += &format!("${}\r\n{word}\r\n", word.len()));
        self.stream.get_mut().write_all(command.as_bytes()).expect("a connection");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("an answer");
        line.trim_end().into()
    }
}

impl Caller for Client {
    fn get(&mut self, key: &str) {
        self.ask(&["GET", key]);
        assert_eq!(self.line(), format!("${}", self.value.len() - 2));
        self.stream.read_exact(&mut self.value).expect("a value and the end of its line");
    }
}
