//! The server asked by hand, line by line of the protocol's table.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use geecache::{
    BoxError, Clock, Group, HttpPool, HttpServer, Loaded, MAX_KEY_BYTES, PoolOptions, ServerOptions,
};

use crate::support::*;

fn scores() -> Origin {
    Origin::new(|key: &str| match key {
        "bad" => Err(BoxError::from("disk full")),
        "absent" => Ok(None),
        "brief" => Ok(Some(Loaded::from("630").ttl(Duration::from_millis(1500)))),
        key => Ok(Some(value_of(key).into())),
    })
}

fn node() -> Node {
    let clock = Clock::by_hand();
    let [node] =
        Cluster::over(&scores()).settings(move |_, group| group.clock(clock.clone())).start();
    node
}

fn ask_for(path: &str) -> Answer {
    ask(&node().url, &format!("GET {path}"), &[])
}

#[test]
fn a_value_is_200_with_its_length_and_type() {
    let answer = ask_for("/_geecache/scores/Tom");
    assert_eq!((answer.status, answer.text()), (200, "the value of Tom"));
    assert_eq!(answer.header("Content-Length"), Some("16"));
    assert_eq!(answer.header("Content-Type"), Some("application/octet-stream"));
    assert_eq!(answer.header("Geecache-Ttl-Ms"), None, "it does not expire");
}

#[test]
fn a_value_that_expires_says_when() {
    let answer = ask_for("/_geecache/scores/brief");
    assert_eq!((answer.status, answer.header("Geecache-Ttl-Ms")), (200, Some("1500")));
}

#[test]
fn an_absent_key_is_404_with_the_marker() {
    let answer = ask_for("/_geecache/scores/absent");
    assert_eq!((answer.status, answer.header("Geecache-Result")), (404, Some("absent")));
    assert_eq!(answer.text(), "");
}

#[test]
fn an_unknown_group_is_404_without_the_marker() {
    let answer = ask_for("/_geecache/heights/Tom");
    assert_eq!((answer.status, answer.header("Geecache-Result")), (404, None));
    assert_eq!(answer.text(), "no such group: heights\n");
}

#[test]
fn the_text_of_a_getters_error_is_sent_as_502() {
    let answer = ask_for("/_geecache/scores/bad");
    assert_eq!((answer.status, answer.text()), (502, "loading \"bad\": disk full\n"));
}

#[test]
fn a_path_that_names_no_key_is_400() {
    let node = node();
    let long = "k".repeat(MAX_KEY_BYTES + 1);
    for path in ["", "scores", "scores/", "/Tom", &long] {
        let path = if path == long { format!("scores/{path}") } else { path.into() };
        let answer = ask(&node.url, &format!("GET /_geecache/{path}"), &[]);
        assert_eq!(answer.status, 400, "{path}");
        assert!(answer.text().ends_with('\n') && answer.text().len() > 1, "it says what is wrong");
    }
    for path in ["scores/%FF", "scores/%E9%94", "%C3/Tom"] {
        let answer = ask(&node.url, &format!("GET /_geecache/{path}"), &[]);
        assert_eq!((answer.status, answer.text()), (400, "the path is not UTF-8\n"), "{path}");
    }
    assert_eq!(node.stats().gets, 0);
}

#[test]
fn another_method_is_405_and_told_which_is_allowed() {
    for method in ["PUT", "PATCH"] {
        let answer = ask(&node().url, &format!("{method} /_geecache/scores/Tom"), &[]);
        assert_eq!(answer.status, 405);
        assert!(answer.header("Allow").unwrap().contains("GET"));
    }
}

#[test]
fn without_the_token_it_is_401() {
    let origin = scores();
    let [node, peer] = Cluster::over(&origin).token("secret").start();
    let ask_with = |headers: &[&str]| ask(&node.url, "GET /_geecache/scores/Tom", headers).status;
    assert_eq!(ask_with(&[]), 401);
    assert_eq!(ask_with(&["Authorization: Bearer Secret"]), 401);
    assert_eq!(ask_with(&["Authorization: Bearer secret "]), 200, "blanks around it do not count");
    assert_eq!(ask_with(&["Authorization: Basic secret"]), 401);
    for scheme in ["bearer", "BEARER", "bEaReR"] {
        assert_eq!(ask_with(&[&format!("authorization: {scheme} secret")]), 200);
    }
    assert_eq!(ask(&node.url, "GET /_geecache/heights/Tom", &[]).status, 401, "nor what is here");
    assert_eq!(ask(&node.url, "GET /healthz", &[]).status, 200);

    let key = node.key_of(&peer.url);
    assert_eq!(node.get(&key), Some(value_of(&key)));
    assert_eq!(node.stats().peer_loads, 1, "peers send it");
}

#[test]
fn a_wrong_token_costs_the_peer_its_answers_and_nobody_a_get() {
    let origin = Origin::of_all();
    let [owner] = Cluster::over(&origin).token("secret").start();
    let [asker] = Cluster::over(&origin).token("guess").peer(&owner.url).start();
    let key = asker.key_of(&owner.url);
    assert_eq!(asker.get(&key), Some(value_of(&key)));
    assert_eq!((asker.stats().fallbacks, owner.stats().gets), (1, 0));
}

#[test]
fn a_node_of_another_cluster_with_another_token_gives_no_value_and_loses_none() {
    let (ours, theirs) =
        (Origin::of_all(), Origin::new(|_: &str| Ok::<_, BoxError>(Some("theirs"))));
    // The same group at an address that one of our nodes had before.
    let [other] = Cluster::over(&theirs).token("theirs").start();
    let [node] = Cluster::over(&ours).token("ours").peer(&other.url).start();
    let keys: Vec<_> = node.keys_of(&other.url).take(20).collect();
    other.get_many(&keys);
    for key in &keys[..10] {
        assert_eq!(node.get(key), Some(value_of(key)));
    }
    let values: Vec<_> = keys.iter().map(|key| Some(value_of(key))).collect();
    assert_eq!(node.get_many(&keys), values);
    assert!(node.group().remove(&keys[0]).is_err() && node.group().clear().is_err());
    assert_eq!((node.stats().peer_loads, other.stats().main.entries), (0, keys.len()));
}

type Running = (HttpServer, Arc<Group>, Arc<HttpPool>);

/// First all nodes take both tokens, then all show the new one, then they take no other. A node
/// that is changed is started anew, and after each change every node asks every other one.
#[test]
fn a_token_is_changed_node_by_node_without_a_fallback() {
    let origin = Origin::of_all();
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let urls = listeners.each_ref().map(|listener| url_of(listener.local_addr().unwrap()));
    let start = |i: usize, listener: TcpListener, shown: &str, taken: &[&str]| {
        let token = Some(shown.into());
        let options = PoolOptions { token, timeout: LONG, ..Default::default() };
        let pool = HttpPool::with_options(&urls[i], options).unwrap();
        pool.set_peers(&urls).unwrap();
        let group = Group::builder("scores", origin.clone()).peers(pool.clone()).build().unwrap();
        let tokens = taken.iter().map(|&token| token.into()).collect();
        let options = ServerOptions { tokens, ..ServerOptions::default() };
        (HttpServer::start(listener, [group.clone()], options).unwrap(), group, pool)
    };
    let mut i = 0;
    let mut nodes = listeners.map(|listener| {
        i += 1;
        Some(start(i - 1, listener, "old", &["old"]))
    });
    let mut keys = (0..).map(|i| format!("key {i}"));
    let mut fallbacks = |nodes: &[Option<Running>]| {
        for node in nodes.iter().flatten() {
            for url in &urls {
                let key = keys.find(|key| node.2.owner(key) == *url).unwrap();
                assert_eq!(node.1.get(&key).unwrap().unwrap(), *value_of(&key));
            }
        }
        nodes.iter().flatten().map(|node| node.1.stats().fallbacks).sum::<u64>()
    };
    assert_eq!(fallbacks(&nodes), 0);
    for (shown, taken) in
        [("old", &["old", "new"][..]), ("new", &["old", "new"]), ("new", &["new"])]
    {
        for i in 0..3 {
            let (server, ..) = nodes[i].take().unwrap();
            assert!(server.shutdown(LONG));
            let listener = TcpListener::bind(address_of(&urls[i])).unwrap();
            nodes[i] = Some(start(i, listener, shown, taken));
            // A connection that outlives its node is a fallback of another kind.
            let before = fallbacks(&nodes);
            assert_eq!(fallbacks(&nodes), before, "{shown} {taken:?}, node {i}");
        }
    }
    drop(nodes[0].take());
    let listener = TcpListener::bind(address_of(&urls[0])).unwrap();
    nodes[0] = Some(start(0, listener, "old", &["new"]));
    let before = fallbacks(&nodes);
    assert_ne!(fallbacks(&nodes), before, "the old token is not taken any more");
}

#[test]
fn a_page_of_another_site_is_refused() {
    let node = node();
    assert_eq!(node.get("Tom"), Some(value_of("Tom")));
    let origin = &["Origin: http://elsewhere.example"];
    for request in [
        "DELETE /_geecache/scores",
        "DELETE /_geecache/scores/Tom",
        "POST /_geecache/scores",
        "OPTIONS /_geecache/scores",
        "GET /_geecache/scores/Tom",
        "GET /metrics",
        "GET /nowhere",
    ] {
        assert_eq!(ask(&node.url, request, origin).status, 403, "{request}");
    }
    assert_eq!(node.stats().main.entries, 1, "nothing was removed");
}

#[test]
fn healthz_and_metrics_are_for_reading() {
    let node = node();
    for path in ["/healthz", "/metrics"] {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"] {
            let answer = ask(&node.url, &format!("{method} {path}"), &[]);
            assert_eq!((answer.status, answer.header("Allow")), (405, Some("GET, HEAD")));
        }
        let mut client = Client::connect(&node.url);
        client.send(&format!("HEAD {path}"), &[]);
        assert_eq!(client.head().status, 200);
        client.send("GET /healthz", &[]);
        assert_eq!(client.answer().text(), "ok\n", "no body came in between");
    }
}

#[test]
fn a_removal_is_answered_without_a_body() {
    let node = node();
    let mut client = Client::connect(&node.url);
    for path in ["scores/Tom", "scores"] {
        client.send(&format!("DELETE /_geecache/{path}"), &[]);
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("Transfer-Encoding")), (204, None), "{path}");
    }
    client.send("GET /_geecache/scores/Tom", &[]);
    assert_eq!(client.answer().text(), "the value of Tom");
}

/// What Java's HttpClient sends first, and `curl --http2`.
#[test]
fn an_offer_to_speak_http_2_is_ignored_with_a_body_and_without() {
    let node = node();
    let offer =
        ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"];
    let keys: Vec<_> = (0..1000).map(|i| format!("key {i}")).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    for n in [1, 1000] {
        let answer = post(&node.url, "/_geecache/scores", &offer, &batch_of(&keys[..n]));
        if n == 1 {
            assert_eq!(answer.header("Connection"), Some("close"), "tiny_http takes no more");
        }
        let frames: Vec<_> = keys[..n].iter().map(|key| value_frame(value_of(key))).collect();
        assert_eq!((answer.status, answer.body), (200, frames.concat()), "{n} keys");
    }
    let answer = ask(&node.url, "GET /_geecache/scores/Tom", &offer);
    assert_eq!((answer.status, answer.text()), (200, "the value of Tom"));

    let mut chunked = Client::connect(&node.url);
    chunked.send("POST /_geecache/scores", &[&offer[..], &["Transfer-Encoding: chunked"]].concat());
    let answer = chunked.answer();
    assert_eq!((answer.status, answer.text()), (400, "it is not clear where the body ends\n"));
}

#[test]
fn healthz_is_ok_and_other_paths_are_404() {
    let node = node();
    let answer = ask(&node.url, "GET /healthz", &[]);
    assert_eq!((answer.status, answer.text()), (200, "ok\n"));
    for path in ["/", "/_geecache", "/scores/Tom", "//_geecache/scores/Tom", "/healthz/"] {
        let answer = ask(&node.url, &format!("GET {path}"), &[]);
        assert_eq!((answer.status, answer.header("Geecache-Result")), (404, None), "{path}");
    }
}

#[test]
fn no_answer_may_be_kept_by_a_cache_on_the_way() {
    let node = node();
    for request in [
        "GET /_geecache/scores/Tom",
        "GET /_geecache/scores/absent",
        "GET /_geecache/scores/bad",
        "GET /_geecache/scores/%",
        "GET /_geecache/heights/Tom",
        "POST /_geecache/scores",
        "DELETE /_geecache/scores/Tom",
        "GET /healthz",
        "GET /metrics",
        "GET /nowhere",
    ] {
        let answer = ask(&node.url, request, &[]);
        assert_eq!(answer.header("Cache-Control"), Some("no-store"), "{request}");
    }
    let answer = post(&node.url, "/_geecache/scores", &[], &batch_of(&["Tom"]));
    assert_eq!((answer.status, answer.header("Cache-Control")), (200, Some("no-store")));
}

#[test]
fn one_connection_takes_many_questions() {
    let node = node();
    let mut client = Client::connect(&node.url);
    for key in ["Tom", "absent", "bad", "Jack"] {
        client.send(&format!("GET /_geecache/scores/{key}"), &[]);
        assert_eq!(
            client.answer().status,
            match key {
                "absent" => 404,
                "bad" => 502,
                _ => 200,
            }
        );
    }
}

#[test]
fn a_body_that_no_memory_can_hold_costs_its_client_the_answer_and_nobody_else() {
    let [node] = Cluster::over(&Origin::of_all()).start();
    let mut liar = Client::connect(&node.url);
    liar.send("GET /_geecache/scores/Tom", &["Content-Length: 4611686018427387904"]);
    assert_eq!(ask(&node.url, "GET /healthz", &[]).status, 200);
    assert_eq!(ask(&node.url, "GET /_geecache/scores/Tom", &[]).text(), value_of("Tom"));
}
