//! The server asked by hand, line by line of the protocol's table.

use std::time::Duration;

use geecache::{BoxError, Clock, Loaded, MAX_KEY_BYTES};

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
    for path in ["", "scores", "scores/", "/Tom", "scores/%", "scores/%4", "scores/%zz", &long] {
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
    assert_eq!(ask_with(&["authorization: Bearer secret"]), 200);
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
