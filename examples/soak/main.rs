//! Everything at once: three nodes that are asked, changed, killed, frozen, restarted and taken
//! out of each other's lists at random, over a network that delays, resets, swallows and cuts, and
//! every answer checked.
//!
//! Type `make soak`. This program starts itself three times more as nodes, is the origin that they
//! load from and the network between them, and has callers that ask them. What a get may answer is
//! in `truth.rs`, what callers do in `callers.rs`, what happens to the nodes and the network in
//! `disorder.rs`; `nodes.rs` and `node.rs` are the two ends of a process.

mod callers;
mod disorder;
mod node;
mod nodes;
// The network between the nodes, which has no other file.
#[allow(dead_code)]
#[path = "../../tests/it/support/relay.rs"]
mod relay;
mod settle;
mod truth;

use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use geecache::{HttpServer, ServerOptions};
use indicatif::{ProgressBar, ProgressStyle};
use ureq::Agent;

use callers::{CALLERS, Tally, World};
use disorder::Happened;
use nodes::Nodes;
use truth::{KEYS, Rule, Truth};

/// Asks three nodes at random while they are killed, frozen, restarted and taken out of each
/// other's lists, and their connections delayed, reset, swallowed and cut; checks every answer.
#[derive(Parser)]
#[command(name = "soak", args_conflicts_with_subcommands = true)]
struct Options {
    /// For how long; not before each has happened to each node
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// What is drawn at random depends on it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Subcommand)]
enum Part {
    /// A node
    #[command(hide = true)]
    Node {
        url: String,
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        origin: String,
        peers: Vec<String>,
    },
}

fn main() -> ExitCode {
    let Options { seconds, seed, part } = Options::parse();
    let ended = match part {
        Some(Part::Node { url, listen, origin, peers }) => {
            node::run(&url, listen, &peers, &origin).map_err(|error| error.to_string())
        }
        None => soak(Duration::from_secs(seconds), seed),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}

fn soak(time: Duration, seed: u64) -> Result<(), String> {
    println!("seed {seed}, {time:?}, {} nodes, {CALLERS} callers, {KEYS} keys", nodes::NODES);
    let truth = Arc::new(Truth::new(KEYS + settle::KEYS));
    let origin = serve(truth.clone()).map_err(|error| format!("the origin: {error}"))?;
    let nodes = Nodes::start(format!("http://{}", origin.local_addr()))?;
    let problems = Problems { bar: progress(time), found: AtomicUsize::new(0) };
    let world = World { nodes: &nodes, truth: &truth, problems: &problems };
    let (mut happened, mut tally) = (Happened::default(), Tally::new());
    let end = AtomicBool::new(false);
    let (memory_at_start, ended) = thread::scope(|scope| {
        let ask = |i| callers::ask_at_random(world, seed, i, &end);
        let callers: Vec<_> = (0..CALLERS as u64).map(|i| scope.spawn(move || ask(i))).collect();
        let at_the_end = Ends(&end);
        thread::sleep(WARM_UP);
        let memory_at_start = nodes.memory();
        let ended = disorder::run(world, seed, Instant::now() + time, &mut happened);
        drop(at_the_end);
        callers.into_iter().for_each(|caller| tally += caller.join().expect("a caller panicked"));
        (memory_at_start, ended)
    });
    problems.bar.finish_and_clear();
    nodes.calm();
    let settled = ended.and_then(|()| settle::settle(world));
    summarise(&tally, &happened, &settled, memory_at_start, &nodes);
    match tally.wrong + tally.failed {
        0 => settled.map(drop),
        _ => Err("not every answer was right".into()),
    }
}

/// Tells the callers to end when it is dropped, also by a panic: the scope waits for them.
struct Ends<'e>(&'e AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn summarise(
    tally: &Tally,
    happened: &Happened,
    settled: &Result<String, String>,
    memory_at_start: [f64; nodes::NODES],
    nodes: &Nodes,
) {
    let line = |name: &str, value: String| println!("{name:<70}{value:>14}");
    line("gets", tally.gets.to_string());
    line("answers wrong", tally.wrong.to_string());
    line("gets failed", tally.failed.to_string());
    line("gets whose load failed at the origin, with no older value", tally.down.to_string());
    for (rule, checked) in
        [Rule::Newest, Rule::Changing, Rule::HalfRemoved].iter().zip(tally.checked)
    {
        line(&format!("  allowed: {rule}"), checked.to_string());
    }
    line("batches among them", tally.batches.to_string());
    line("removals", tally.removals.to_string());
    line("  that did not reach all nodes", tally.incomplete.to_string());
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        let micros = tally.latencies.value_at_quantile(quantile);
        line(&format!("{name} of a single get"), format!("{:.1} ms", micros as f64 / 1e3));
    }
    for (name, times) in disorder::NAMES.iter().zip(happened) {
        line(name, times.to_string());
    }
    line("keys handed over to the nodes that run at the end", nodes.handed_over().to_string());
    for (name, memory) in [("start", memory_at_start), ("end", nodes.memory())] {
        let memory = memory.map(|mebibytes| format!("{mebibytes:.0}")).join(", ");
        line(&format!("memory of the nodes at the {name}"), format!("{memory} MiB"));
    }
    if let Ok(settled) = settled {
        line("loads after things have settled", settled.clone());
    }
}

/// Where the nodes load from.
fn serve(truth: Arc<Truth>) -> Result<HttpServer, geecache::Error> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let options = ServerOptions { workers: 64, queue: 4_096, ..ServerOptions::default() };
    HttpServer::serve(listener, options, move |request, _, may_wait| {
        may_wait.then(|| truth.answer(request))
    })
}

fn progress(time: Duration) -> ProgressBar {
    let style = ProgressStyle::with_template("{elapsed} of {len} s {wide_bar} {msg}");
    let bar = ProgressBar::new(time.as_secs()).with_style(style.expect("a valid template"));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// What was found to be wrong. The first of it is printed when it is found.
struct Problems {
    bar: ProgressBar,
    found: AtomicUsize,
}

impl Problems {
    const PRINTED: usize = 20;

    fn add(&self, what: String) {
        if self.found.fetch_add(1, Ordering::Relaxed) < Self::PRINTED {
            let (when, event) = (self.bar.elapsed(), self.bar.message());
            self.bar.suspend(|| eprintln!("after {when:.3?}, {event}: {what}"));
        }
    }
}

/// The memory of the nodes counts from here on: their caches and threads are there by now.
const WARM_UP: Duration = Duration::from_secs(2);

/// No request is under way for longer, nor what a node has in flight when it is told to end.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A client. (ureq's overall deadlines would cost a thread for each request.)
fn agent() -> Agent {
    let time = Some(TIMEOUT);
    let config = Agent::config_builder().timeout_connect(time).timeout_recv_response(time);
    let config = config.timeout_recv_body(time).http_status_as_error(false).proxy(None);
    config.max_idle_connections(100).max_idle_connections_per_host(100).build().into()
}

/// The status and the text of an answer to a `POST` of lines, or to a `GET`.
fn ask(agent: &Agent, url: &str, lines: Option<&str>) -> Result<(u16, String), String> {
    let answer = match lines {
        Some(lines) => agent.post(url).send(lines),
        None => agent.get(url).call(),
    };
    let mut answer = answer.map_err(|error| format!("{url}: {error}"))?;
    let text = answer.body_mut().read_to_string().map_err(|error| format!("{url}: {error}"))?;
    Ok((answer.status().as_u16(), text))
}
