//! One group, one closure: a miss, then a hit.
//!
//! Type `cargo run --example hello`. The origin is asked for `Tom` once, though we ask twice;
//! for `kkk` there is nothing to keep, so it would be asked each time:
//!
//! ```text
//! [SlowDB] search key Tom
//! Tom: 630
//! Tom: 630
//! [SlowDB] search key kkk
//! kkk not exist
//! 3 gets: 1 hit, 2 misses
//! ```

use std::collections::HashMap;
use std::convert::Infallible;

use geecache::Group;

fn main() -> Result<(), geecache::Error> {
    let db = HashMap::from([("Tom", "630"), ("Jack", "589"), ("Sam", "567")]);
    let scores = Group::builder("scores", move |key: &str| {
        println!("[SlowDB] search key {key}");
        Ok::<_, Infallible>(db.get(key).copied())
    })
    .build()?;

    for key in ["Tom", "Tom", "kkk"] {
        match scores.get(key)? {
            Some(score) => println!("{key}: {score}"),
            None => println!("{key} not exist"),
        }
    }

    let stats = scores.stats();
    println!("{} gets: {} hit, {} misses", stats.gets, stats.main.hits, stats.misses);
    Ok(())
}
