//! The page: its files, and what they ask for.
//!
//! It is HTML, CSS and JavaScript as they stand here, without a build step, and asks nobody but
//! the front that it came from. All that it shows is read off public calls of the library: the
//! ring, the trace of a get, the counters.

use std::collections::HashMap;
use std::io::{self, Cursor, Read};
use std::sync::Arc;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use geecache::{ByteView, Error, Group, HttpPool, PeerError};
use serde_json::{Value, json};
use ureq::Agent;

use crate::watch::{Watch, agent, in_words};

/// What the page may do: nothing that comes from elsewhere, and nothing written into it.
pub(crate) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     connect-src 'self'; img-src data:; base-uri 'none'; form-action 'self'; \
     frame-ancestors 'none'";

/// How much of a value the page gets to see.
const SHOWN_BYTES: usize = 4096;

pub(crate) struct Page {
    scores: Arc<Group>,
    pool: Arc<HttpPool>,
    watch: Arc<Watch>,
    /// Where each node has its front, as far as that is known.
    fronts: HashMap<String, String>,
    agent: Agent,
}

impl Page {
    /// `timeout` is how long a get may take that another front is asked for.
    pub(crate) fn new(
        scores: Arc<Group>,
        pool: Arc<HttpPool>,
        fronts: HashMap<String, String>,
        timeout: Duration,
    ) -> Self {
        let watch = Watch::new(scores.clone(), pool.clone());
        Self { scores, pool, watch, fronts, agent: agent(timeout) }
    }

    /// The file at a path, and its type.
    pub(crate) fn file(path: &str) -> Option<(&'static str, &'static str)> {
        match path {
            "/" => Some(("text/html; charset=utf-8", include_str!("page.html"))),
            "/page.css" => Some(("text/css; charset=utf-8", include_str!("page.css"))),
            "/page.js" => Some(("text/javascript; charset=utf-8", include_str!("page.js"))),
            _ => None,
        }
    }

    /// Whether this is the page of the node at `url`.
    pub(crate) fn is_of(&self, url: &str) -> bool {
        url == self.pool.self_url()
    }

    /// The nodes, their shares of the ring, and the places of their points.
    pub(crate) fn ring(&self) -> Value {
        let ring = self.pool.ring();
        let node = |(url, share): (&str, f64)| {
            let own = ring.points().filter(|(_, node)| *node == url);
            let points: Vec<u32> = own.map(|(place, _)| place).collect();
            json!({ "url": url, "share": share, "points": points, "front": self.fronts.get(url) })
        };
        let nodes: Vec<_> = ring.shares().into_iter().map(node).collect();
        json!({ "self": self.pool.self_url(), "group": self.scores.name(), "nodes": nodes })
    }

    /// Who answers, and what each counts: JSON that waits a moment for the nodes when it is read.
    pub(crate) fn status(&self) -> impl Read + Send + use<> {
        let watch = self.watch.clone();
        let status = move || format!("{}\n", json!({ "nodes": *watch.reports() }));
        Late { text: Err(Some(status)) }
    }

    /// Gets `key`, and tells how.
    pub(crate) fn trace(&self, key: &str) -> Result<Value, Error> {
        let (answer, trace) = self.scores.get_traced(key);
        if let Err(error @ Error::KeyLength(_)) = answer {
            return Err(error);
        }
        let (ring, text) = (self.pool.ring(), trace.to_string());
        let asked = trace.asked.as_ref().map(|asked| {
            let was_attempted = asked.error.as_ref().is_none_or(PeerError::was_attempted);
            json!({
                "peer": asked.peer,
                "took_ms": was_attempted.then(|| ms(asked.took)),
                "error": asked.error.as_ref().map(ToString::to_string),
            })
        });
        Ok(json!({
            "key": key,
            "node": self.pool.self_url(),
            "place": ring.position(key),
            "owner": self.pool.owner(key),
            "answer": shown(answer),
            "trace": {
                "hit": trace.hit.map(|tier| tier.to_string()),
                "asked": asked,
                "handed_over": trace.handed_over.map(|asked| {
                    json!({ "peer": asked.peer, "took_ms": ms(asked.took) })
                }),
                "loaded_ms": trace.loaded.map(ms),
                "waited_ms": trace.waited.map(ms),
                "renews": trace.renews,
                "stale": trace.stale,
                "text": text,
            },
        }))
    }

    /// The same, asked of the front of another node; its JSON, or why there is none.
    pub(crate) fn trace_at(&self, node: &str, key: &str) -> Result<String, String> {
        let front = self.fronts.get(node).ok_or(format!("the front of {node} is not known"))?;
        let failed = |error: ureq::Error| format!("{front} does not answer: {}", in_words(&error));
        let request = self.agent.get(format!("{front}/api/trace")).query("key", key);
        let mut answer = request.call().map_err(failed)?;
        let text = answer.body_mut().read_to_string().map_err(failed)?;
        match answer.status().as_u16() {
            200 => Ok(text),
            status => Err(format!("{front} answers {status}: {text}")),
        }
    }
}

/// A text that is made when it is read.
struct Late<M> {
    text: Result<Cursor<String>, Option<M>>,
}

impl<M: FnOnce() -> String> Read for Late<M> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Err(make) = &mut self.text {
            self.text = Ok(Cursor::new(make.take().map_or_else(String::new, |make| make())));
        }
        self.text.as_mut().map_or(Ok(0), |text| text.read(buffer))
    }
}

/// What came of a get: the beginning of the value and its length, `null`, or an error.
fn shown(answer: Result<Option<ByteView>, Error>) -> Value {
    match answer {
        Ok(Some(value)) => {
            let most = value.len().min(SHOWN_BYTES);
            let beginning = match value.as_str() {
                Ok(text) => text[..text.floor_char_boundary(most)].into(),
                Err(_) => json!({ "base64": BASE64_STANDARD.encode(&value[..most]) }),
            };
            json!({ "value": beginning, "bytes": value.len() })
        }
        Ok(None) => json!({ "value": null }),
        Err(error) => json!({ "error": error.to_string() }),
    }
}

fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}
