//! What a cluster does, shown: where each answer came from is read off the nodes' counters.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::Asked;
use crate::nodes::{DEMO_TTL, FRONT, FRONT_NODE, Nodes, owner, port};

/// What is shown, and the metrics, or the beginning of those, that it is the sum of.
const COUNTERS: [(&str, &str); 7] = [
    ("gets", "geecache_gets_total{group=\"scores\"}"),
    ("main hits", "geecache_hits_total{group=\"scores\",cache=\"main\"}"),
    ("hot hits", "geecache_hits_total{group=\"scores\",cache=\"hot\"}"),
    ("from owner", "geecache_peer_loads_total{group=\"scores\",peer="),
    ("fallbacks", "geecache_fallbacks_total{group=\"scores\"}"),
    ("searches", "geecache_local_loads_total{group=\"scores\"}"),
    ("stale", "geecache_stale_total{group=\"scores\"}"),
];

type Counts = [u64; COUNTERS.len()];

pub(crate) fn run(nodes: &mut Nodes, database: &Path, asked: &Asked) -> Result<(), String> {
    let dying = owner("Tom");
    let unasked = (0..).map(|user| format!("user:{user:08}")).find(|key| owner(key) == dying);
    let unasked = unasked.expect("each node owns some of all keys");

    println!("\nEach question goes to the front, which is the node {}.", port(FRONT_NODE));
    println!("\nTom belongs to {}. Asked for three times:", port(dying));
    for _ in 0..3 {
        ask(nodes, asked, "Tom")?;
    }
    println!("\nkkk belongs to {}, and there is no such key:", port(owner("kkk")));
    ask(nodes, asked, "kkk")?;

    nodes.kill(dying);
    println!("\n{0} is killed. Tom, and {unasked}, which also belongs to {0}:", port(dying));
    for key in ["Tom", &unasked, &unasked] {
        ask(nodes, asked, key)?;
    }

    let alive = |key: &String| ![dying, FRONT_NODE].contains(&owner(key));
    let user = (0..).map(|user| format!("user:{user:08}")).find(alive);
    let user = user.expect("each node owns some of all keys");
    println!("\n{user} belongs to {}, which lives:", port(owner(&user)));
    ask(nodes, asked, &user)?;
    let origin = Broken::new(database)?;
    println!(
        "\nThe database breaks: its table is renamed. After {DEMO_TTL}, when the life of the value"
    );
    println!("has ended, the nodes answer with what they had:");
    wait(humantime::parse_duration(DEMO_TTL).map_err(|error| error.to_string())?, asked)?;
    for _ in 0..2 {
        ask(nodes, asked, &user)?;
    }
    origin.mend(&user)?;
    println!("\nIt is mended, with a new value. A second later a get finds it:");
    wait(Duration::from_secs(1), asked)?;
    ask(nodes, asked, &user)?;

    println!("\nThe counters at the end; a node that was killed has none:");
    print!("{:6}", "");
    COUNTERS.iter().for_each(|(title, _)| print!("{title:>12}"));
    for (url, counts) in count(nodes)? {
        print!("\n{:6}", port(url));
        counts.iter().for_each(|count| print!("{count:>12}"));
    }
    println!();
    Ok(())
}

/// A database whose table has another name, until this is dropped.
struct Broken(Connection);

impl Broken {
    fn new(database: &Path) -> Result<Self, String> {
        let open = || {
            let connection = Connection::open(database)?;
            connection.busy_timeout(Duration::from_secs(10))?;
            connection.execute("ALTER TABLE scores RENAME TO scores_elsewhere", [])?;
            Ok::<_, rusqlite::Error>(Self(connection))
        };
        open().map_err(|error| format!("{}: {error}", database.display()))
    }

    /// Gives a user one point more, and the table its name back.
    fn mend(self, user: &str) -> Result<(), String> {
        let one_more =
            "UPDATE scores_elsewhere SET score = CAST(score AS TEXT) + 1 WHERE name = ?1";
        self.0.execute(one_more, [user]).map(drop).map_err(|error| error.to_string())
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        let mended = self.0.execute("ALTER TABLE scores_elsewhere RENAME TO scores", []);
        if let Err(error) = mended {
            eprintln!("cluster: the table scores_elsewhere is not renamed back: {error}");
        }
    }
}

fn wait(time: Duration, asked: &Asked) -> Result<(), String> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if asked.to_end() {
            return Err("interrupted".into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Asks for a key, and prints the answer, where it came from, and which counters grew.
fn ask(nodes: &Nodes, asked: &Asked, key: &str) -> Result<(), String> {
    if asked.to_end() {
        return Err("interrupted".into());
    }
    let before = count(nodes)?;
    let start = Instant::now();
    let (status, answer) = crate::get(&format!("http://{FRONT}/api?key={key}"))?;
    let took = start.elapsed().as_secs_f64() * 1000.0;
    let growth: Vec<(&str, Counts)> = before
        .into_iter()
        .zip(count(nodes)?)
        .map(|((url, old), (_, new))| (url, std::array::from_fn(|i| new[i] - old[i])))
        .collect();

    println!("  {status} {answer:14} {took:6.1} ms  from {}", source(&growth));
    for (url, growth) in growth.iter().filter(|(_, growth)| growth.iter().any(|&n| n > 0)) {
        let grown = COUNTERS.iter().zip(growth).filter(|&(_, &n)| n > 0);
        let grown: Vec<_> = grown.map(|((title, _), n)| format!("{title} +{n}")).collect();
        println!("{:32}{}: {}", "", port(url), grown.join(", "));
    }
    Ok(())
}

/// Where one answer came from, by what grew meanwhile.
fn source(growth: &[(&str, Counts)]) -> String {
    let found = growth.iter().find_map(|&(url, [_, main, hot, _, fallbacks, searches, stale])| {
        let node = port(url);
        match () {
            () if stale > 0 => Some(format!("{node}, which kept it past its time")),
            () if fallbacks > 0 => {
                Some(format!("the database, searched by {node} in place of the owner"))
            }
            () if searches > 0 => Some(format!("the database, searched by its owner {node}")),
            () if main > 0 => Some(format!("the main cache of its owner {node}")),
            () if hot > 0 => Some(format!("the hot cache of {node}")),
            () => None,
        }
    });
    found.unwrap_or_else(|| "nobody who counted it".into())
}

/// The counters of each node that runs.
fn count(nodes: &Nodes) -> Result<Vec<(&'static str, Counts)>, String> {
    let counts = nodes.running().iter().map(|node| {
        let (_, metrics) = crate::get(&format!("{}/metrics", node.url))?;
        let value = |(_, name): (&str, &str)| {
            let lines = metrics.lines().filter(|line| line.starts_with(name));
            let values = lines.map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
            let sum: Option<u64> = values.sum();
            sum.ok_or_else(|| format!("{} does not say {name}", node.url))
        };
        let mut counts = Counts::default();
        for (count, counter) in counts.iter_mut().zip(COUNTERS) {
            *count = value(counter)?;
        }
        Ok((node.url, counts))
    });
    counts.collect()
}
