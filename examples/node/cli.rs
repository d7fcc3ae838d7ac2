//! The options of a node, and what is said about those that cannot be used.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Parser, value_parser};

use crate::visitors::host_of;

/// One process of a geecache cluster, with a SQLite file as the origin of the group `scores`.
#[derive(Parser)]
#[command(name = "node", after_help = AFTER_HELP)]
pub(crate) struct Options {
    /// This node as the others know it, like http://localhost:8001
    #[arg(long, value_name = "URL")]
    pub(crate) self_url: String,

    /// All nodes of the cluster, this one among them, written alike everywhere
    #[arg(long, value_name = "URL,URL,…", value_delimiter = ',', value_parser = url)]
    #[arg(required_unless_present = "peers_dns", conflicts_with = "peers_dns")]
    pub(crate) peers: Vec<String>,

    /// In place of --peers: all addresses that this name leads to, as of a headless service
    #[arg(long, value_name = "NAME:PORT", conflicts_with = "fronts")]
    pub(crate) peers_dns: Option<String>,

    /// How often that name is looked up
    #[arg(long, value_name = "TIME", default_value = "5s", requires = "peers_dns")]
    #[arg(value_parser = humantime::parse_duration)]
    pub(crate) peers_every: Duration,

    /// Where to listen for peers [default: the host and port of --self-url]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,

    /// Where to serve the front and its page, like localhost:9999 [default: nowhere]
    #[arg(long, value_name = "ADDR")]
    pub(crate) api: Option<String>,

    /// The fronts of all nodes, in the order of --peers, so that the page can ask a key of each
    #[arg(long, value_name = "URL,URL,…", value_delimiter = ',', value_parser = url)]
    pub(crate) fronts: Vec<String>,

    /// Another name by which the front may be asked, like cache.lan; can be given several times.
    /// Others than loopback, the host of --api and that of its own URL in --fronts get 421
    #[arg(long, value_name = "NAME", value_parser = host_name)]
    pub(crate) host: Vec<String>,

    /// The database; a missing file is created, with Tom, Jack, Sam and 10,000 users
    #[arg(long, value_name = "FILE", default_value = "scores.db")]
    pub(crate) db: PathBuf,

    /// The budget of the cache
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub(crate) max_bytes: ByteSize,

    /// How long values live, like 5min [default: until they are evicted or removed]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) ttl: Option<Duration>,

    /// How long it is remembered that there is no such key [default: not at all]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) negative_ttl: Option<Duration>,

    /// Search anew, in the background, what is asked for when it expires within this time, like 1min
    /// [default: values expire first]
    #[arg(long, value_name = "TIME", default_value = "0s", hide_default_value = true)]
    #[arg(value_parser = humantime::parse_duration)]
    pub(crate) refresh_ahead: Duration,

    /// How much longer than --ttl values are kept, to answer while the database fails, like 1h
    /// [default: not at all]
    #[arg(long, value_name = "TIME", default_value = "0s", hide_default_value = true)]
    #[arg(value_parser = humantime::parse_duration)]
    pub(crate) stale_if_error: Duration,

    /// Make each search of the database slower by this much
    #[arg(long, value_name = "TIME", default_value = "0ms")]
    #[arg(value_parser = delay)]
    pub(crate) origin_delay: Duration,

    /// Requests answered at the same time, by the peers' side and the front each
    #[arg(long, value_name = "N", default_value_t = 16)]
    #[arg(value_parser = value_parser!(u16).range(1..=4096))]
    pub(crate) workers: u16,

    /// Requests that wait for a worker before further ones get 503
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) queue: u16,

    /// The file with the secret that peers ask each other for [default: what the environment says
    /// in GEECACHE_TOKEN]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,

    /// The file with the certificates, in PEM, by which peers behind https:// are believed
    /// [default: those that browsers know]
    #[cfg(feature = "tls")]
    #[arg(long, value_name = "FILE")]
    pub(crate) root_certificates: Option<PathBuf>,

    /// End as if by SIGTERM when this process, which has started the node, ends
    #[arg(long, value_name = "PID")]
    pub(crate) end_with: Option<i32>,

    /// Log the story of each get
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

const LONGEST_DELAY: Duration = Duration::from_secs(60 * 60);

const AFTER_HELP: &str = "\
A cluster of two, each in a terminal of its own:
  node --self-url http://localhost:8001 --peers http://localhost:8001,http://localhost:8002 -v
  node --self-url http://localhost:8002 --peers http://localhost:8001,http://localhost:8002 -v \\
       --api localhost:9999
and then, in a browser, http://localhost:9999/, or
  curl \"http://localhost:9999/api?key=Tom\"
  curl \"http://localhost:9999/api?key=Tom&key=kkk\"        {\"Tom\":\"630\",\"kkk\":null}
  curl -X DELETE \"http://localhost:9999/api?key=Tom\"      leaves all nodes

Where nodes come and go, each is started with an address of its own, and finds the others by a name:
  node --self-url http://$POD_IP:8001 --peers-dns cache.default.svc.cluster.local:8001

Of several keys the answer is a JSON object: null where there is no such key, {\"base64\":…} where
a value is not UTF-8, {\"error\":…} where it could not be found out. A removal is answered by 204,
or by 502 with the nodes that it did not reach.

What the page asks for is JSON that others may ask for too:
  /api/ring             the nodes, their shares, and the places of their points on the ring
  /api/status           which nodes answer, and what each counts; up to a second old
  /api/trace?key=Tom    a get, how it was answered and in how many milliseconds; up to 4,096
                        bytes of the value. With &node=URL it is asked of that node's front.

Ctrl-C or SIGTERM ends a node once the requests in flight are answered, after 5 s at the latest;
a second one ends it at once. The status is 0 after the first, and 2 if the node could not start.";

impl Options {
    /// Where to listen for peers.
    pub(crate) fn listen(&self) -> Result<&str, String> {
        let from_url = || self.self_url.strip_prefix("http://");
        self.listen.as_deref().or_else(from_url).ok_or_else(|| {
            format!("--listen is required: a proxy listens at {} and asks there", self.self_url)
        })
    }

    /// The hosts by which the front may be asked, as far as these options name them.
    pub(crate) fn hosts(&self) -> Result<impl Iterator<Item = String>, String> {
        let own = self.fronts()?.remove(&self.self_url);
        let own = own.as_deref().and_then(|url| url.split_once("://")).map(|(_, host)| host);
        let known = self.api.as_deref().into_iter().chain(own).filter_map(host_of);
        Ok(known.chain(self.host.iter().cloned()).collect::<Vec<_>>().into_iter())
    }

    /// The front of each node, by the node's URL.
    pub(crate) fn fronts(&self) -> Result<HashMap<String, String>, String> {
        if ![0, self.peers.len()].contains(&self.fronts.len()) {
            let (fronts, peers) = (self.fronts.len(), self.peers.len());
            return Err(format!("{fronts} --fronts for {peers} --peers: name one for each"));
        }
        let fronts = self.fronts.iter().map(|front| front.trim_end_matches('/').to_string());
        Ok(self.peers.iter().cloned().zip(fronts).collect())
    }
}

/// One of several URLs; the node's own checks find what else is wrong with it.
fn url(text: &str) -> Result<String, &'static str> {
    match text {
        "" => Err("a comma has no URL before or behind it"),
        _ if text.contains(char::is_whitespace) => Err("there is a space in the list"),
        _ => Ok(text.into()),
    }
}

fn host_name(text: &str) -> Result<String, &'static str> {
    let host = host_of(text).filter(|host| host.eq_ignore_ascii_case(text));
    host.ok_or("a host alone, like cache.lan")
}

/// Peers wait for so long in addition, and their timeout has a limit.
fn delay(text: &str) -> Result<Duration, String> {
    let delay = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if delay > LONGEST_DELAY {
        return Err("an hour is the most".into());
    }
    Ok(delay)
}

/// The gist of a complaint about options: its first paragraph, as one line.
pub(crate) fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let gist = text.trim_start_matches("error: ").lines().take_while(|line| !line.is_empty());
    let gist = gist.map(str::trim).collect::<Vec<_>>().join(" ");
    let is_of_a_list = gist.starts_with("unexpected argument 'http");
    let hint = if is_of_a_list { "; a list of URLs has no spaces" } else { "" };
    format!("{gist}{hint}; --help tells more")
}

/// Listens on `host:port`. A host with several addresses, such as `localhost`, is listened to on
/// one, IPv4 first: were the next one tried when a port is taken, two nodes could share it.
pub(crate) fn bind(addr: &str) -> Result<TcpListener, String> {
    let wrong = |error| format!("cannot listen on {addr}: {error}");
    let found = addr.to_socket_addrs();
    let found = found.map_err(|error| wrong(format!("{error}, write it like localhost:8001")))?;
    let first = found.min_by_key(SocketAddr::is_ipv6);
    let first = first.ok_or_else(|| wrong("the host has no address".into()))?;
    TcpListener::bind(first).map_err(|error| wrong(error.to_string()))
}
