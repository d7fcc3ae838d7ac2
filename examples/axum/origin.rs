//! The origin, as an async program has it: a table behind HTTP that takes its time, its async client,
//! and the getter over that.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Request, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use geecache::{BoxError, Getter, Loaded};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

/// How long the table takes for each query.
const DELAY: Duration = Duration::from_millis(20);
/// How long it may take: below the 3 s that a peer waits for an answer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(2);
const MAX_BYTES: usize = 16 << 20;

/// Loads by an async client.
///
/// It is called on the blocking threads of the runtime, and on geecache's own, when a peer asks or a
/// value is renewed. Neither runs async code, so both may block on some. A thread of the runtime must
/// not: see `user` in `front.rs`.
pub(crate) struct OriginGetter {
    pub(crate) origin: Origin,
    pub(crate) runtime: Handle,
}

impl OriginGetter {
    /// With a deadline: nothing else ends a load, and all callers of the key wait for it.
    fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, BoxError> {
        let in_time = self.runtime.block_on(async { timeout(DEADLINE, work).await });
        in_time.map_err(|_| format!("the origin took longer than {DEADLINE:?}").into())
    }
}

impl Getter for OriginGetter {
    fn get(&self, id: &str) -> Result<Option<Loaded>, BoxError> {
        self.wait(self.origin.read(id))?
    }

    fn get_many(&self, ids: &[&str]) -> Result<Vec<Result<Option<Loaded>, BoxError>>, BoxError> {
        Ok(self.wait(self.origin.read_many(ids))??.into_iter().map(Ok).collect())
    }
}

#[derive(Clone)]
pub(crate) struct Origin {
    client: Client<HttpConnector, Body>,
    url: String,
}

impl Origin {
    pub(crate) fn at(address: SocketAddr) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { client, url: format!("http://{address}") }
    }

    pub(crate) async fn read(&self, id: &str) -> Result<Option<Loaded>, BoxError> {
        match self.ask("GET", &row_path(id), Body::empty()).await? {
            (StatusCode::OK, row) => Ok(Some(Vec::from(row).into())),
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, _) => Err(format!("the origin says {status}").into()),
        }
    }

    /// Several, by one query.
    pub(crate) async fn read_many(&self, ids: &[&str]) -> Result<Vec<Option<Loaded>>, BoxError> {
        match self.ask("POST", "/rows", serde_json::to_vec(ids)?.into()).await? {
            (StatusCode::OK, rows) => {
                let rows: HashMap<&str, String> = serde_json::from_slice(&rows)?;
                Ok(ids.iter().map(|id| rows.get(id).map(|row| row.as_str().into())).collect())
            }
            (status, _) => Err(format!("the origin says {status}").into()),
        }
    }

    pub(crate) async fn write(&self, id: &str, row: Bytes) -> Result<(), BoxError> {
        match timeout(DEADLINE, self.ask("PUT", &row_path(id), row.into())).await?? {
            (StatusCode::NO_CONTENT, _) => Ok(()),
            (status, _) => Err(format!("the origin says {status}").into()),
        }
    }

    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        body: Body,
    ) -> Result<(StatusCode, Bytes), BoxError> {
        let url = format!("{}{path}", self.url);
        let request = Request::builder().method(method).uri(url);
        let request = request.header(CONTENT_TYPE, "application/json").body(body)?;
        let answer = self.client.request(request).await?;
        Ok((answer.status(), to_bytes(Body::new(answer.into_body()), MAX_BYTES).await?))
    }
}

fn row_path(id: &str) -> String {
    format!("/rows/{}", utf8_percent_encode(id, NON_ALPHANUMERIC))
}

type Rows = State<Arc<Mutex<HashMap<String, String>>>>;

/// The database itself.
pub(crate) fn table(rows: HashMap<String, String>) -> Router {
    async fn read(State(rows): Rows, Path(id): Path<String>) -> Result<String, StatusCode> {
        sleep(DELAY).await;
        rows.lock().unwrap().get(&id).cloned().ok_or(StatusCode::NOT_FOUND)
    }
    async fn read_many(
        State(rows): Rows,
        Json(ids): Json<Vec<String>>,
    ) -> Json<HashMap<String, String>> {
        sleep(DELAY).await;
        let rows = rows.lock().unwrap();
        let row = |id: String| rows.get(&id).cloned().map(|row| (id, row));
        Json(ids.into_iter().filter_map(row).collect())
    }
    async fn write(State(rows): Rows, Path(id): Path<String>, row: String) -> StatusCode {
        sleep(DELAY).await;
        rows.lock().unwrap().insert(id, row);
        StatusCode::NO_CONTENT
    }
    Router::new()
        .route("/rows/{id}", get(read).put(write))
        .route("/rows", post(read_many))
        .with_state(Arc::new(Mutex::new(rows)))
}
