//! What a cluster does, shown: where each answer came from is read off the nodes' counters.

use std::time::Instant;

use crate::Asked;
use crate::nodes::{FRONT, FRONT_NODE, Nodes, owner, port};

/// What is shown, and the metrics, or the beginning of those, that it is the sum of.
const COUNTERS: [(&str, &str); 6] = [
    ("gets", "geecache_gets_total{group=\"scores\"}"),
    ("main hits", "geecache_hits_total{group=\"scores\",cache=\"main\"}"),
    ("hot hits", "geecache_hits_total{group=\"scores\",cache=\"hot\"}"),
    ("from owner", "geecache_peer_loads_total{group=\"scores\",peer="),
    ("fallbacks", "geecache_fallbacks_total{group=\"scores\"}"),
    ("searches", "geecache_local_loads_total{group=\"scores\"}"),
];

type Counts = [u64; COUNTERS.len()];

pub(crate) fn run(nodes: &mut Nodes, asked: &Asked) -> Result<(), String> {
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
    let found = growth.iter().find_map(|&(url, [_, main, hot, _, fallbacks, searches])| {
        let node = port(url);
        match () {
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
