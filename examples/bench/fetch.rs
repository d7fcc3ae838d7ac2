//! What does it cost to get a key that another process holds?
//!
//! Beside bare TCP to the same process, Redis where it is found, and with HTTP in front of the asking
//! group as well.

use std::io::{self, BufRead, BufReader, Cursor, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use geecache::tiny_http::Response;
use geecache::{Group, HttpServer, ServerOptions};

use crate::redis::Redis;
use crate::remote::{Asking, Bare, Caller, Owner, callers, connect, take_turns};
use crate::table::{Cell, Report, Table};
use crate::{Settings, progress};

const VALUE_BYTES: [usize; 2] = [3, 4 << 10];
const CALLERS: [usize; 3] = [1, 16, 64];
const SYSTEMS: [&str; 5] =
    ["bare TCP", "Group::get", "Group::get, not combined", "HTTP in, get, HTTP out", "Redis"];

pub(crate) fn run(settings: &Settings) -> Report {
    let turns = settings.pick((5, Duration::from_millis(200)), (15, Duration::from_millis(300)));
    let redis = Redis::start();
    let systems = if redis.is_some() { &SYSTEMS[..] } else { &SYSTEMS[..SYSTEMS.len() - 1] };
    let steps = VALUE_BYTES.len() * CALLERS.len() * turns.0 * systems.len();
    let bar = progress("fetch", steps);
    let mut table = Table::new(
        "1,000 keys of another process, asked for by blocking callers; Group::get combines what is \
         asked for at the same time (the default) where nothing else is said",
        &[
            "value bytes",
            "callers",
            "system",
            "requests/s",
            "p50 µs",
            "p99 µs",
            "of bare TCP",
            "of Redis",
            "new connections",
        ],
    );
    let owner = Owner::start();
    for value_bytes in VALUE_BYTES {
        let [combined, plain] =
            [true, false].map(|combine| Asking::new(&owner, value_bytes, combine));
        let front = front(combined.group.clone());
        for count in CALLERS {
            let browser = || Box::new(Browser::connect(front.local_addr(), value_bytes)) as _;
            let mut asked = vec![
                Bare::callers(count, &owner, &combined.keys, value_bytes),
                combined.callers(count),
                plain.callers(count),
                callers(count, &combined.keys, browser),
            ];
            asked.extend(redis.iter().map(|it| it.callers(count, &combined.keys, value_bytes)));
            let answered = take_turns(&mut asked, &owner, turns, &bar);
            for (i, name) in systems.iter().enumerate() {
                let of_redis = || answered.rates.ratio(i, systems.len() - 1);
                table.row([
                    value_bytes.into(),
                    count.into(),
                    (*name).into(),
                    Cell::Number(answered.rates.median(i), 0),
                    Cell::Number(answered.microseconds(i, 0.5), 0),
                    Cell::Number(answered.microseconds(i, 0.99), 0),
                    Cell::Number(answered.rates.ratio(i, 0), 2),
                    redis.as_ref().map_or("".into(), |_| Cell::Number(of_redis(), 2)),
                    answered.opened[i].into(),
                ]);
            }
        }
        [combined, plain].iter().for_each(Asking::assert_that_the_owner_answered);
    }
    Report { topic: "fetch", tables: vec![table] }
}

/// An HTTP server in front of the asking group: the path is the key.
fn front(group: Arc<Group>) -> HttpServer {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let answer = move |key: &str| match group.get(key) {
        Ok(Some(value)) => {
            let length = value.len();
            Response::new(200.into(), vec![], Cursor::new(value), Some(length), None).boxed()
        }
        other => Response::from_string(format!("{other:?}")).with_status_code(500).boxed(),
    };
    // Who waits for a peer holds a worker, so there is one for each caller.
    let options = ServerOptions { workers: CALLERS[2], ..ServerOptions::default() };
    HttpServer::serve(listener, options, move |request, _, may_wait| {
        may_wait.then(|| answer(request.url().trim_start_matches('/')))
    })
    .expect("a server")
}

/// A client of the front, with a connection that it keeps.
struct Browser {
    stream: BufReader<TcpStream>,
    value: Vec<u8>,
}

impl Browser {
    fn connect(address: SocketAddr, value_bytes: usize) -> Self {
        Self { stream: BufReader::new(connect(address)), value: vec![0; value_bytes] }
    }

    fn try_get(&mut self, key: &str) -> io::Result<()> {
        let request = format!("GET /{key} HTTP/1.1\r\nHost: bench\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        assert!(line.starts_with("HTTP/1.1 200 "), "{line}");
        while line != "\r\n" {
            line.clear();
            self.stream.read_line(&mut line)?;
        }
        self.stream.read_exact(&mut self.value)
    }
}

impl Caller for Browser {
    fn get(&mut self, key: &str) {
        self.try_get(key).expect("an answer of the front");
    }
}
