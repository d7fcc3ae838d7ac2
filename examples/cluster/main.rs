//! Three nodes on this machine, to be played with, or a demonstration that plays by itself.
//!
//! Type `make cluster` or `make demo`. This program starts three processes of `examples/node`,
//! prints what to try, and takes all of them down on Ctrl-C or when one of them ends.

mod demo;
mod nodes;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use clap::Parser;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use ureq::Agent;

use nodes::{FRONT, Nodes, owner};

/// Starts three nodes, on the ports 8001, 8002 and 8003, with fronts on 10001, 10002 and 9999.
///
/// They end on Ctrl-C, or when one of them ends.
#[derive(Parser)]
#[command(name = "cluster")]
struct Options {
    /// Ask for some keys, kill a node and ask again, break the database and mend it, tell what happens,
    /// and end
    #[arg(long, conflicts_with = "keep_going")]
    demo: bool,

    /// When a node ends, keep the others up, and say how to start it again
    #[arg(long)]
    keep_going: bool,

    /// The database, created if it is missing [default: cluster.db beside this program]
    #[arg(long, value_name = "FILE")]
    db: Option<PathBuf>,

    /// Make each search of the database slower by this much
    #[arg(long, value_name = "TIME", default_value = "50ms")]
    origin_delay: String,

    /// Log the story of each get
    #[arg(short, long)]
    verbose: bool,
}

/// Whether a signal asked us to end.
struct Asked(Arc<AtomicBool>);

impl Asked {
    fn new() -> std::io::Result<Self> {
        let asked = Arc::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&asked))?;
        }
        Ok(Self(asked))
    }

    fn to_end(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let asked = Asked::new().map_err(|error| error.to_string())?;
    let mut nodes = Nodes::start(options, &asked)?;
    if options.demo {
        return demo::run(&mut nodes, &nodes::database(options)?, &asked);
    }
    print_what_to_try(&nodes, options.keep_going);
    while !asked.to_end() {
        if let Some((node, status)) = nodes.take_ended() {
            let end = format!("{} (pid {}) has ended: {status}", node.url, node.pid());
            if !options.keep_going {
                return Err(format!("{end}; the others are taken down"));
            }
            if nodes.running().is_empty() {
                return Err(format!("{end}, as the last one"));
            }
            println!("\n{end}. The others go on. This starts it again:\n  {}", node.command);
        }
        thread::sleep(Duration::from_millis(50));
    }
    println!("\nending");
    Ok(())
}

fn print_what_to_try(nodes: &Nodes, keep_going: bool) {
    println!("\nThe nodes are ready:");
    for node in nodes.running() {
        println!("  {}  pid {:<8}  front http://{}/", node.url, node.pid(), node.front);
    }
    let Some(owner) = nodes.running().iter().find(|node| node.url == owner("Tom")) else { return };
    let (url, pid) = (owner.url, owner.pid());
    let after = if keep_going {
        "the others go on: Tom is still 630"
    } else {
        "and all with it; `make cluster KEEP=1` keeps the others up"
    };
    println!("\nOpen http://{FRONT}/ in a browser: it shows the ring, and the way of each get.");
    println!("Try, in another terminal:");
    for (command, result) in [
        (format!("curl \"http://{FRONT}/api?key=Tom\""), format!("630, which {url} owns")),
        (format!("curl \"http://{FRONT}/api?key=kkk\""), "kkk not exist".into()),
        (format!("curl {url}/metrics"), "what that node counts".into()),
        (format!("kill {pid}"), format!("that node ends, {after}")),
    ] {
        println!("  {command:40}  {result}");
    }
    println!("\nCtrl-C ends them all.");
}

/// The status and the text at a URL.
fn get(url: &str) -> Result<(u16, String), String> {
    // One for all questions: it keeps connections.
    static AGENT: LazyLock<Agent> = LazyLock::new(|| {
        let config = Agent::config_builder().http_status_as_error(false).proxy(None);
        config.timeout_global(Some(Duration::from_secs(10))).build().into()
    });
    let mut answer = AGENT.get(url).call().map_err(|error| format!("{url}: {error}"))?;
    let text = answer.body_mut().read_to_string().map_err(|error| format!("{url}: {error}"))?;
    Ok((answer.status().as_u16(), text))
}
