//! The origin: a table of names and scores in a SQLite file.
//!
//! Searches run in parallel, each on a connection of its own; what is idle waits in a pool,
//! which thus never grows beyond the number of threads that ask.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use geecache::{BoxError, Getter, Loaded};
use log::debug;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Result, TransactionBehavior};

/// How long to wait for another process that writes, or creates the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// However a score was put in, as a blob, a text or a number: its bytes.
const SEARCH: &str = "SELECT CAST(score AS BLOB) FROM scores WHERE name = ?1";

pub(crate) struct Database {
    path: PathBuf,
    delay: Duration,
    // Guards the connections that are not in use; held to take one or to put it back.
    idle: Mutex<Vec<Connection>>,
}

impl Database {
    /// Opens the file, and fills it first if it is new. Each search takes `delay` longer.
    pub(crate) fn open(path: &Path, delay: Duration) -> Result<Self> {
        let create = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let mut connection = connect(path, create)?;
        seed_if_empty(&mut connection)?;
        connection.prepare(SEARCH)?;
        Ok(Self { path: path.into(), delay, idle: Mutex::new(Vec::new()) })
    }

    /// Searches on a connection that nobody else uses meanwhile.
    fn search<T>(&self, search: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        thread::sleep(self.delay);
        let idle = self.idle().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?,
        };
        let found = search(&connection)?;
        self.idle().push(connection);
        Ok(found)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Getter for Database {
    fn get(&self, name: &str) -> Result<Option<Loaded>, BoxError> {
        debug!("[SlowDB] search key {}", name.escape_debug());
        Ok(self.search(|connection| score_of(connection, name))?)
    }

    /// One by one: a question to SQLite crosses no network, so one for all would save little. And
    /// it would not find what one for each finds: whether `tom` is `Tom`, or `"7"` is 7, depends on
    /// the type and the collation of the column.
    fn get_many(&self, names: &[&str]) -> Result<Vec<Result<Option<Loaded>, BoxError>>, BoxError> {
        debug!("[SlowDB] search {} keys", names.len());
        Ok(self.search(|connection| {
            let score = |name: &&str| Ok(score_of(connection, name)?);
            Ok(names.iter().map(score).collect())
        })?)
    }
}

fn score_of(connection: &Connection, name: &str) -> Result<Option<Loaded>> {
    let mut search = connection.prepare_cached(SEARCH)?;
    let score = search.query_row([name], |row| row.get::<_, Vec<u8>>(0)).optional()?;
    Ok(score.map(Loaded::from))
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// Fills an empty database, in one transaction: of the processes that start on the same new
/// file one does it, and no other ever sees a part of it.
fn seed_if_empty(connection: &mut Connection) -> Result<()> {
    // Without a lock first, so that a database which may only be read will do.
    if !is_empty(connection)? {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if is_empty(&transaction)? {
        transaction
            .execute("CREATE TABLE scores (name TEXT PRIMARY KEY, score BLOB NOT NULL)", [])?;
        let mut insert = transaction.prepare("INSERT INTO scores VALUES (?1, ?2)")?;
        for (name, score) in [("Tom", "630"), ("Jack", "589"), ("Sam", "567")] {
            insert.execute((name, score.as_bytes()))?;
        }
        for user in 0..10_000 {
            insert.execute((format!("user:{user:08}"), user.to_string().as_bytes()))?;
        }
    }
    transaction.commit()
}

fn is_empty(connection: &Connection) -> Result<bool> {
    connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))
}
