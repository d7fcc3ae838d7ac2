//! The same service as it is without geecache: moka in each replica, or a Redis that all share. The
//! cache first, then the database, then into the cache: cache-aside.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::ErrorKind;
use std::iter::zip;
use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use futures_util::future::join_all;
use geecache::BoxError;
use moka::future::Cache;
use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, Client};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::GRACE;
use crate::front::Failure;
use crate::origin::{DEADLINE, Origin};

#[derive(Clone)]
pub(crate) enum Store {
    Moka(Cache<String, Bytes>),
    /// With how long values live there, and what its keys begin with.
    Redis(MultiplexedConnection, Duration, &'static str),
}

impl Store {
    pub(crate) fn moka(ttl: Duration) -> Self {
        let cache =
            Cache::builder().weigher(|id: &String, user: &Bytes| (id.len() + user.len()) as u32);
        Self::Moka(cache.max_capacity(64 << 20).time_to_live(ttl).build())
    }

    async fn get(&self, ids: &[String]) -> Result<Vec<Option<Bytes>>, BoxError> {
        Ok(match self {
            Self::Moka(cache) => join_all(ids.iter().map(|id| cache.get(id))).await,
            Self::Redis(redis, _, prefix) => {
                let ids: Vec<_> = ids.iter().map(|id| format!("{prefix}{id}")).collect();
                let users: Vec<Option<Vec<u8>>> = redis.clone().mget(ids).await?;
                users.into_iter().map(|user| user.map(Bytes::from)).collect()
            }
        })
    }

    async fn set(&self, users: &[(String, Bytes)]) -> Result<(), BoxError> {
        match self {
            Self::Moka(cache) => {
                for (id, user) in users {
                    cache.insert(id.clone(), user.clone()).await;
                }
            }
            Self::Redis(redis, ttl, prefix) => {
                let mut commands = redis::pipe();
                for (id, user) in users {
                    let id = format!("{prefix}{id}");
                    commands.pset_ex(id, &user[..], ttl.as_millis() as u64).ignore();
                }
                commands.exec_async(&mut redis.clone()).await?;
            }
        }
        Ok(())
    }

    /// From this replica, or from the Redis of all. No replica tells another.
    async fn remove(&self, id: &str) -> Result<(), BoxError> {
        match self {
            Self::Moka(cache) => cache.invalidate(id).await,
            Self::Redis(redis, _, prefix) => redis.clone().del(format!("{prefix}{id}")).await?,
        }
        Ok(())
    }
}

#[derive(Clone)]
pub(crate) struct Aside {
    pub(crate) store: Store,
    /// Where the last value of each key is kept for longer, for when the database fails.
    pub(crate) last: Option<Store>,
    pub(crate) origin: Origin,
}

impl Aside {
    pub(crate) fn router(self) -> Router {
        Router::new()
            .route("/users/{id}", get(user).put(update))
            .route("/users", get(users))
            .with_state(self)
    }

    async fn read(&self, ids: Vec<String>) -> Result<BTreeMap<String, Bytes>, BoxError> {
        let cached = self.store.get(&ids).await?;
        let (mut found, mut missing) = (BTreeMap::new(), Vec::new());
        for (id, user) in zip(ids, cached) {
            match user {
                Some(user) => drop(found.insert(id, user)),
                None => missing.push(id),
            }
        }
        if !missing.is_empty() {
            let loaded = self.load(missing).await?;
            self.store.set(&loaded).await?;
            found.extend(loaded);
        }
        Ok(found)
    }

    /// From the database, or the last values if that fails and there are all.
    async fn load(&self, ids: Vec<String>) -> Result<Vec<(String, Bytes)>, BoxError> {
        let loaded = self.query(ids.clone()).await;
        let Some(last) = &self.last else { return loaded };
        match loaded {
            Ok(users) => last.set(&users).await.map(|()| users),
            Err(error) => {
                let users = last.get(&ids).await?.into_iter();
                zip(ids, users)
                    .map(|(id, user)| Some((id, user?)))
                    .collect::<Option<_>>()
                    .ok_or(error)
            }
        }
    }

    /// Those of them that there are.
    async fn query(&self, ids: Vec<String>) -> Result<Vec<(String, Bytes)>, BoxError> {
        let names: Vec<_> = ids.iter().map(String::as_str).collect();
        let rows = timeout(DEADLINE, self.origin.read_many(&names)).await??;
        Ok(zip(ids, rows).filter_map(|(id, row)| Some((id, row?.value.into()))).collect())
    }
}

async fn user(State(aside): State<Aside>, Path(id): Path<String>) -> Result<Bytes, Failure> {
    // Callers of a key in the same replica share its load. For a batch moka has nothing like that.
    if let Store::Moka(cache) = &aside.store {
        let load = async { one(aside.load(vec![id.clone()]).await?) };
        return cache.try_get_with_by_ref(&id, load).await.map_err(failure);
    }
    aside.read(vec![id]).await.and_then(one).map_err(failure)
}

fn one(users: impl IntoIterator<Item = (String, Bytes)>) -> Result<Bytes, BoxError> {
    users.into_iter().next().map(|(_, user)| user).ok_or_else(|| "no such user".into())
}

fn failure(error: impl Display) -> Failure {
    Failure(StatusCode::BAD_GATEWAY, error.to_string())
}

async fn users(
    State(aside): State<Aside>,
    Query(ids): Query<Vec<(String, String)>>,
) -> Result<Json<BTreeMap<String, String>>, Failure> {
    let read = aside.read(ids.into_iter().map(|(_, id)| id).collect()).await;
    let text = |(id, user): (_, Bytes)| (id, String::from_utf8_lossy(&user).into_owned());
    Ok(Json(read.map_err(failure)?.into_iter().map(text).collect()))
}

async fn update(
    State(aside): State<Aside>,
    Path(id): Path<String>,
    user: Bytes,
) -> Result<StatusCode, Failure> {
    aside.origin.write(&id, user).await.map_err(failure)?;
    for store in [Some(&aside.store), aside.last.as_ref()].into_iter().flatten() {
        store.remove(&id).await.map_err(failure)?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// A Redis server of our own that keeps nothing on disk. It ends when this is dropped.
pub(crate) struct Redis {
    _child: Child,
    client: Client,
}

impl Redis {
    /// `None` if there is no `redis-server` on this machine.
    pub(crate) async fn start() -> Result<Option<Self>, BoxError> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no"]).stdin(Stdio::null());
        let child = match command.stdout(Stdio::null()).kill_on_drop(true).spawn() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            child => child?,
        };
        let redis = Self { _child: child, client: Client::open(("127.0.0.1", port))? };
        let listening = async {
            while redis.client.get_multiplexed_async_connection().await.is_err() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(GRACE, listening).await?;
        Ok(Some(redis))
    }

    /// Over a connection of its own.
    pub(crate) async fn store(
        &self,
        ttl: Duration,
        prefix: &'static str,
    ) -> Result<Store, BoxError> {
        Ok(Store::Redis(self.client.get_multiplexed_async_connection().await?, ttl, prefix))
    }
}
