//! Values that are structs: the getter encodes them once, each caller decodes them.
//!
//! A cache that several processes share holds bytes. So a value is encoded where it is loaded and
//! decoded where it is used; `postcard` is a compact format for that, and any other will do. Nodes
//! of two versions of a program may meet: a struct that changes gets a group of a new name.
//!
//! Type `cargo run --example typed`:
//!
//! ```text
//! [SlowDB] search key Tom
//! Tom has 630 points in 3 games
//! Tom has 630 points in 3 games
//! [SlowDB] search key kkk
//! kkk not exist
//! ```

use std::error::Error;

use geecache::Group;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Player {
    name: String,
    games: Vec<u32>,
}

/// The origin: a row as the database has it.
fn search_slow_db(name: &str) -> Option<Player> {
    println!("[SlowDB] search key {name}");
    (name == "Tom").then(|| Player { name: name.into(), games: vec![210, 300, 120] })
}

/// What the rest of the program calls: players in place of bytes.
fn player(players: &Group, name: &str) -> Result<Option<Player>, Box<dyn Error>> {
    let bytes = players.get(name)?;
    Ok(bytes.map(|bytes| postcard::from_bytes(&bytes)).transpose()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let players = Group::builder("players-1", |name: &str| {
        search_slow_db(name).map(|player| postcard::to_allocvec(&player)).transpose()
    })
    .build()?;

    for name in ["Tom", "Tom", "kkk"] {
        match player(&players, name)? {
            Some(Player { name, games }) => {
                let points: u32 = games.iter().sum();
                println!("{name} has {points} points in {} games", games.len());
            }
            None => println!("{name} not exist"),
        }
    }
    Ok(())
}
