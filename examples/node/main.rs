//! One process of a cluster, over a SQLite file as the origin.
//!
//! Type `cargo run -p node -- --help`, or `make cluster` for three of them. A node is two
//! servers over one group: one that peers ask, and a front with workers of its own, so that
//! callers who wait for a peer never keep a peer waiting.
//!
//! Read [`run`] first; then `front.rs`, `visitors.rs`, `page.rs`, `watch.rs`, `database.rs`, `token.rs` and `cli.rs`.

mod cli;
mod database;
mod front;
mod page;
mod token;
mod visitors;
mod watch;

use std::error::Error;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use clap::Parser;
use geecache::{Group, HttpPool, HttpServer, PoolOptions, ServerOptions};
use log::{LevelFilter, debug, info, warn};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit,
};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use simplelog::{ColorChoice, ConfigBuilder, TermLogger, TerminalMode};

use cli::{Options, bind};
use database::Database;
use front::Front;
use page::Page;
use visitors::Visitors;

/// How long requests in flight may take when the node is told to end, on both sides together.
const GRACE: Duration = Duration::from_secs(5);

/// How long a node waits for the first look-up of the others before it serves.
const LOOK_UP: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let ended = match Options::try_parse() {
        Ok(options) => run(&options).map_err(|error| error.to_string()),
        Err(error) if error.use_stderr() => Err(cli::one_line(&error)),
        Err(help) => help.print().map_err(|error| error.to_string()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("node: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    // First, so that a signal which comes early is not lost.
    let mut signals = signals()?;
    if let Some(parent) = options.end_with {
        end_with(parent)?;
    }

    let default = PoolOptions::default();
    // The owner may have to ask the origin before it answers.
    let timeout = default.timeout + options.origin_delay;
    let token = token::read(options.token_file.as_deref())?;
    let pool_options = PoolOptions { timeout, token: token.clone(), ..default };
    #[cfg(feature = "tls")]
    let pool_options =
        PoolOptions { root_certificates: root_certificates(options)?, ..pool_options };
    let pool = HttpPool::with_options(&options.self_url, pool_options)?;
    let listener = bind(options.listen()?)?;
    let front_listener = options.api.as_deref().map(bind).transpose()?;
    let database = Database::open(&options.db, options.origin_delay)
        .map_err(|error| format!("database {}: {error}", options.db.display()))?;

    let mut scores = Group::builder("scores", database)
        .max_bytes(usize::try_from(options.max_bytes.as_u64())?)
        .refresh_ahead(options.refresh_ahead)
        .stale_if_error(options.stale_if_error)
        .peers(pool.clone());
    if let Some(ttl) = options.ttl {
        scores = scores.ttl(ttl);
    }
    if let Some(ttl) = options.negative_ttl {
        scores = scores.negative_ttl(ttl);
    }
    let scores = scores.build()?;

    log_to_stderr(options.verbose)?;
    allow_many_files();
    if let Some(file) = &options.token_file
        && token::is_open_to_all(file)
    {
        warn!("every user of this machine can read the token in {}", file.display());
    }
    let following = match &options.peers_dns {
        Some(name) => Some(pool.follow(name, options.peers_every)?),
        None => {
            pool.set_peers(&options.peers)?;
            None
        }
    };
    if following.as_ref().is_some_and(|following| !following.wait(LOOK_UP)) {
        warn!("the other nodes are not looked up yet; until then this node is alone");
    }
    let server_options = ServerOptions {
        workers: options.workers.into(),
        queue: options.queue.into(),
        tokens: token.into_iter().collect(),
        ..ServerOptions::default()
    };
    let server = HttpServer::start(listener, [scores.clone()], server_options.clone())?;
    info!("node {} listens on {}", pool.self_url(), server.local_addr());
    let front = match front_listener {
        Some(listener) => {
            // A get may wait for the owner first, and then for the origin.
            let page = Page::new(scores.clone(), pool, options.fronts()?, 2 * timeout);
            let front = Front { scores, page, visitors: Visitors::of(options.hosts()?) };
            let answer = move |request: &_, _: &_, may_wait| front.answer(request, may_wait);
            let front = HttpServer::serve(listener, server_options, answer)?;
            info!("front on http://{}/", front.local_addr());
            Some(front)
        }
        None => None,
    };

    signals.forever().next();
    info!("ending");
    // So that no list changes while the last requests are answered.
    drop(following);
    // The front first: what it has in flight may need the other side's answers.
    let end = Instant::now() + GRACE;
    let rest = || end.saturating_duration_since(Instant::now());
    let all_answered = front.is_none_or(|front| front.shutdown(rest())) & server.shutdown(rest());
    if !all_answered {
        warn!("some requests were not answered within {GRACE:?}");
    }
    Ok(())
}

/// The signals that tell the node to end. The second one is not among them: it does what signals
/// do to a process that does not handle them.
fn signals() -> io::Result<Signals> {
    let is_told = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_default(signal, is_told.clone())?;
        flag::register(signal, is_told.clone())?;
    }
    Signals::new([SIGINT, SIGTERM])
}

/// Has the node told to end when its parent ends, however that comes about.
fn end_with(parent: i32) -> Result<(), Box<dyn Error>> {
    set_parent_process_death_signal(Some(Signal::TERM))?;
    // It may have ended before.
    if getppid() != Pid::from_raw(parent) {
        return Err(format!("--end-with {parent}: that is not the node's parent").into());
    }
    Ok(())
}

/// Each connection is a file, and the soft limit is low for the sake of programs that use `select`.
fn allow_many_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    let [before, now] =
        [current, maximum].map(|limit| limit.map_or("any number of".into(), |n| n.to_string()));
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => debug!("may open {now} files, {before} before"),
        Err(error) => warn!("may open only {before} files: {error}"),
    }
}

#[cfg(feature = "tls")]
fn root_certificates(options: &Options) -> Result<Option<Vec<u8>>, String> {
    let Some(file) = &options.root_certificates else { return Ok(None) };
    let read = std::fs::read(file);
    read.map(Some).map_err(|error| format!("the certificates in {}: {error}", file.display()))
}

/// The library's story and ours; what others log is left out.
fn log_to_stderr(verbose: bool) -> Result<(), log::SetLoggerError> {
    let level = if verbose { LevelFilter::Debug } else { LevelFilter::Info };
    let config = ConfigBuilder::new()
        .add_filter_allow_str("geecache")
        .add_filter_allow_str("node")
        .set_target_level(LevelFilter::Off)
        .set_thread_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        .build();
    let is_terminal = io::stderr().is_terminal();
    let colours = if is_terminal { ColorChoice::Auto } else { ColorChoice::Never };
    TermLogger::init(level, config, TerminalMode::Stderr, colours)
}
