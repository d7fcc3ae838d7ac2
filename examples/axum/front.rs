//! What clients ask: one user, several, an update, and how the node does.

use std::collections::BTreeMap;
use std::iter::zip;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use geecache::{ByteView, Error, Group, HttpServer};
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::origin::Origin;

pub(crate) struct Front {
    users: Arc<Group>,
    origin: Origin,
    pub(crate) peers: HttpServer,
    is_ready: AtomicBool,
    updates: AtomicU64,
}

impl Front {
    pub(crate) fn new(users: Arc<Group>, origin: Origin, peers: HttpServer) -> Self {
        Self { users, origin, peers, is_ready: AtomicBool::new(true), updates: AtomicU64::new(0) }
    }

    pub(crate) fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/users/{id}", get(user).put(update))
            .route("/users", get(users))
            .route("/metrics", get(metrics))
            .route("/readyz", get(readyz))
            .with_state(self)
    }

    pub(crate) fn set_ready(&self, is_ready: bool) {
        self.is_ready.store(is_ready, Ordering::Relaxed);
    }

    /// Works with the group on a thread that may wait: for a peer, for the origin, for another caller.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Group) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let users = self.users.clone();
        Ok(spawn_blocking(move || work(&users)).await?)
    }
}

type Asked = State<Arc<Front>>;

/// A hit is answered on the spot, a miss by a thread that may wait. To call `users.get` here passes
/// each test that hits. A miss of a key of another node then holds up a thread of the runtime, and
/// with it all that runs there; one of this node's own keys is an error, since the getter blocks:
/// "Cannot start a runtime from within a runtime". And `spawn_blocking` for hits too would cost each of
/// them 20 µs, and make them wait behind the misses while the origin is slow.
async fn user(State(front): Asked, Path(id): Path<String>) -> Result<Bytes, Failure> {
    let user = match front.users.get_cached(&id)? {
        Some(user) => user,
        None => front.blocking(move |users| users.get(&id)).await??,
    };
    // Shares the cache's bytes.
    user.map(Bytes::from_owner).ok_or(Failure(StatusCode::NOT_FOUND, "no such user".into()))
}

/// `?id=7&id=8`: the hits on the spot, all others together, by one question to each owner.
async fn users(
    State(front): Asked,
    Query(ids): Query<Vec<(String, String)>>,
) -> Result<Json<BTreeMap<String, Option<String>>>, Failure> {
    let text = |user: Option<ByteView>| user.map(|user| user.to_string());
    let (mut found, mut missing) = (BTreeMap::new(), Vec::new());
    for (_, id) in ids {
        match front.users.get_cached(&id)? {
            Some(user) => drop(found.insert(id, text(user))),
            None => missing.push(id),
        }
    }
    if !missing.is_empty() {
        let load = move |users: &Group| {
            let loaded = users.get_many(&missing.iter().map(String::as_str).collect::<Vec<_>>());
            (missing, loaded)
        };
        let (missing, loaded) = front.blocking(load).await?;
        for (id, user) in zip(missing, loaded) {
            found.insert(id, text(user?));
        }
    }
    Ok(Json(found))
}

/// The origin first, the caches after it: else a get between the two would bring the old value back.
/// In a task of its own, since axum drops a handler whose client hangs up, here between the two.
async fn update(
    State(front): Asked,
    Path(id): Path<String>,
    user: Bytes,
) -> Result<StatusCode, Failure> {
    tokio::spawn(async move {
        let written = front.origin.write(&id, user).await;
        written.map_err(|error| Failure(StatusCode::BAD_GATEWAY, error.to_string()))?;
        front.updates.fetch_add(1, Ordering::Relaxed);
        match front.blocking(move |users| users.remove(&id)).await? {
            Ok(()) => Ok(StatusCode::NO_CONTENT),
            // It is written, but a node that was not reached may serve the old value for a while.
            Err(error @ Error::RemoveIncomplete { .. }) => {
                warn!("{error}");
                Ok(StatusCode::ACCEPTED)
            }
            Err(error) => Err(error.into()),
        }
    })
    .await?
}

/// The library's and our own, one after the other.
async fn metrics(State(front): Asked) -> impl IntoResponse {
    let updates = front.updates.load(Ordering::Relaxed);
    let own = format!("# TYPE service_updates_total counter\nservice_updates_total {updates}\n");
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], front.peers.metrics() + &own)
}

async fn readyz(State(front): Asked) -> StatusCode {
    match front.is_ready.load(Ordering::Relaxed) {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Why a client gets no answer.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) StatusCode, pub(crate) String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let status = match (&error as &dyn std::error::Error).downcast_ref() {
            Some(Error::KeyLength(_)) => StatusCode::BAD_REQUEST,
            _ => StatusCode::BAD_GATEWAY,
        };
        Self(status, error.to_string())
    }
}
