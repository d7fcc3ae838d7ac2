//! The nodes of the cluster as this one sees them: who answers, and what each counts.
//!
//! Any number of pages may be open, and each asks once a second. The first to ask starts a round
//! through the nodes, on a thread of its own. All nodes are asked at the same time and with a short
//! deadline; where one is silent all the same, who asks gets what the round before gave.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use geecache::{Group, HttpPool, prometheus};
use serde_json::{Map, Value, json};
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

/// The time from one round to the next: a little less than a page waits between two questions.
const ROUND: Duration = Duration::from_millis(900);
/// Who takes longer does not answer.
const DEADLINE: Duration = Duration::from_millis(700);

/// What a report tells of the metrics: its name in the report, the metric, and a label.
const COUNTERS: [(&str, &str, &str); 13] = [
    ("gets", "geecache_gets_total", ""),
    ("peer_requests", "geecache_peer_requests_total", ""),
    ("main_hits", "geecache_hits_total", "cache=\"main\""),
    ("hot_hits", "geecache_hits_total", "cache=\"hot\""),
    ("peer_loads", "geecache_peer_loads_total", ""),
    ("handed_over", "geecache_handed_over_total", ""),
    ("fallbacks", "geecache_fallbacks_total", ""),
    ("local_loads", "geecache_local_loads_total", ""),
    ("local_load_errors", "geecache_local_load_errors_total", ""),
    ("shared", "geecache_shared_total", ""),
    ("entries", "geecache_entries", ""),
    ("bytes", "geecache_bytes", ""),
    ("max_bytes", "geecache_max_bytes", ""),
];

/// How long a question waits for a round, which a node that is silent can make long.
const PATIENCE: Duration = Duration::from_millis(50);

pub(crate) struct Watch {
    scores: Arc<Group>,
    pool: Arc<HttpPool>,
    agent: Agent,
    start: Instant,
    // Guards what the last round gave; not held while nodes are asked.
    last: Mutex<Last>,
    ended: Condvar,
}

#[derive(Default)]
struct Last {
    begun: Option<Instant>,
    is_under_way: bool,
    reports: Arc<[Value]>,
}

impl Watch {
    pub(crate) fn new(scores: Arc<Group>, pool: Arc<HttpPool>) -> Arc<Self> {
        let (agent, start) = (agent(DEADLINE), Instant::now());
        let (last, ended) = Default::default();
        Arc::new(Self { scores, pool, agent, start, last, ended })
    }

    /// A report of each node, in the order of the ring: of a round that begins now, of the last
    /// one if that takes long, or of none during the very first round.
    pub(crate) fn reports(self: &Arc<Self>) -> Arc<[Value]> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !last.is_under_way && last.begun.is_none_or(|begun| begun.elapsed() > ROUND) {
            let watch = self.clone();
            let thread = thread::Builder::new().name("watch".into());
            last.is_under_way = thread.spawn(move || watch.make_round()).is_ok();
            last.begun = Some(Instant::now());
        }
        let last = self.ended.wait_timeout_while(last, PATIENCE, |last| last.is_under_way);
        last.unwrap_or_else(PoisonError::into_inner).0.reports.clone()
    }

    fn make_round(&self) {
        let reports = self.round();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        (last.is_under_way, last.reports) = (false, reports);
        drop(last);
        self.ended.notify_all();
    }

    fn round(&self) -> Arc<[Value]> {
        let (ring, peers) = (self.pool.ring(), self.pool.peers());
        let is_cooling = |url: &str| peers.iter().any(|(peer, up)| peer == url && !up);
        thread::scope(|scope| {
            let ask = |url| thread::Builder::new().spawn_scoped(scope, move || self.report(url));
            let asked: Vec<_> = ring.nodes().map(|url| (url, ask(url).ok())).collect();
            let report = |(url, asked): (&str, Option<ScopedJoinHandle<'_, Value>>)| {
                let report = asked.and_then(|asked| asked.join().ok());
                let mut report = report.unwrap_or_else(|| json!({ "why": "could not be asked" }));
                report["url"] = url.into();
                report["cooling_down"] = is_cooling(url).into();
                report
            };
            asked.into_iter().map(report).collect()
        })
    }

    /// What the node at `url` says now: whether it answers, when, and its counters; or why not.
    fn report(&self, url: &str) -> Value {
        let answering = |metrics: &str| {
            let at_ms = self.start.elapsed().as_millis() as u64;
            json!({ "up": true, "at_ms": at_ms, "counters": self.counters(metrics) })
        };
        if url == self.pool.self_url() {
            return answering(&prometheus([(self.scores.name(), self.scores.stats())]));
        }
        if !url.starts_with("http://") {
            // We have no certificates of our own to check it by; the pool knows how its gets went.
            let up = self.pool.peers().contains(&(url.to_string(), true));
            return json!({ "up": up, "why": "its counters are behind TLS" });
        }
        let answer = self.agent.get(format!("{url}/metrics")).call();
        let read =
            |mut answer: Response<Body>| Ok((answer.status(), answer.body_mut().read_to_string()?));
        match answer.and_then(read) {
            Ok((StatusCode::OK, metrics)) => answering(&metrics),
            Ok((status, _)) => json!({ "up": true, "why": format!("answered {status}") }),
            Err(error) => json!({ "up": false, "why": in_words(&error) }),
        }
    }

    fn counters(&self, metrics: &str) -> Value {
        let group = format!("group=\"{}\"", self.scores.name());
        let counter = |(name, metric, label): (&str, &str, &str)| {
            let values = metrics.lines().filter_map(|line| {
                let (labels, value) = line.strip_prefix(metric)?.rsplit_once(' ')?;
                let is_meant = labels.starts_with('{') && labels.contains(&group);
                (is_meant && labels.contains(label)).then(|| value.parse::<u64>().ok())?
            });
            (name.to_string(), values.sum::<u64>().into())
        };
        Value::Object(Map::from_iter(COUNTERS.map(counter)))
    }
}

/// What asks other nodes of this cluster, and nobody else.
pub(crate) fn agent(timeout: Duration) -> Agent {
    let config = Agent::config_builder().http_status_as_error(false).proxy(None).max_redirects(0);
    config.timeout_global(Some(timeout)).build().into()
}

/// Why a node did not answer, for people.
pub(crate) fn in_words(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "it refuses connections".into(),
            kind => kind.to_string(),
        },
        ureq::Error::ConnectionFailed => "no connection".into(),
        ureq::Error::Timeout(_) => "it is silent".into(),
        error => error.to_string(),
    }
}
