//! `/metrics`: what an operator sees, and that it adds up.

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use geecache::BoxError;
use serde_json::{Value, json};
use yaml_rust2::{Yaml, YamlLoader};

use crate::node::Folder;
use crate::support::*;

const NAMES: [&str; 23] = [
    "geecache_gets_total",
    "geecache_hits_total",
    "geecache_misses_total",
    "geecache_peer_loads_total",
    "geecache_peer_errors_total",
    "geecache_fallbacks_total",
    "geecache_local_loads_total",
    "geecache_local_load_errors_total",
    "geecache_shared_total",
    "geecache_peer_requests_total",
    "geecache_evictions_total",
    "geecache_expirations_total",
    "geecache_rejected_total",
    "geecache_queued_requests",
    "geecache_shed_total",
    "geecache_removals_incomplete_total",
    "geecache_bytes",
    "geecache_max_bytes",
    "geecache_entries",
    "geecache_peer_up",
    "geecache_origin_load_seconds_sum",
    "geecache_origin_load_seconds_count",
    "geecache_peer_load_seconds_count",
];

/// Two nodes and a peer that is not there: after hits of each kind, loads, a failing getter,
/// absent keys, fallbacks, a batch.
fn nodes_that_have_seen_much() -> ([Node; 2], String) {
    let dead = dead_url();
    let origin = Origin::new(|key: &str| match key {
        "bad" => Err(BoxError::from("disk full")),
        "absent" => Ok(None),
        key => Ok(Some(value_of(key))),
    });
    let [asker, owner] = Cluster::over(&origin).peer(&dead).start();
    let of = |url: &str, n| asker.keys_of(url).take(n).collect::<Vec<_>>();
    for keys in [of(&asker.url, 3), of(&owner.url, 3), of(&dead, 3)] {
        for key in [&keys[0], &keys[0], &keys[0], &keys[1]] {
            asker.get(key);
        }
        asker.get_many(&keys);
    }
    owner.get(&of(&dead, 1)[0]);
    asker.get("absent");
    assert!(asker.group().get("bad").is_err());
    ([asker, owner], dead)
}

fn metrics_of(node: &Node) -> String {
    let answer = ask(&node.url, "GET /metrics", &[]);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("Content-Type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    answer.text().to_string()
}

/// The sums over all labels, by name.
fn sums(metrics: &str) -> HashMap<&str, f64> {
    let mut sums = HashMap::new();
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        let name = name.split('{').next().unwrap();
        *sums.entry(name).or_default() += value.parse::<f64>().unwrap();
    }
    sums
}

#[test]
fn each_metric_is_there_and_they_add_up() {
    let (nodes, _) = nodes_that_have_seen_much();
    check_identities(&nodes);
    for node in &nodes {
        let metrics = metrics_of(node);
        let sums = sums(&metrics);
        let of = |name: &str| sums[&*format!("geecache_{name}")];
        for name in NAMES {
            assert!(sums.contains_key(name), "{name} in {metrics}");
        }
        assert_eq!(of("gets_total"), of("hits_total") + of("misses_total"));
        let outcomes = ["peer_loads", "local_loads", "local_load_errors", "shared"];
        let outcomes: f64 = outcomes.map(|name| of(&format!("{name}_total"))).iter().sum();
        assert_eq!(of("misses_total"), outcomes);
        assert_eq!(of("fallbacks_total"), of("peer_errors_total"));
        assert!(of("origin_load_seconds_sum") > 0.0);
    }
    let [asker, owner] = nodes.each_ref().map(|node| node.stats());
    assert!(asker.peer_errors > 0 && asker.local_load_errors + owner.local_load_errors > 0);
    // The key whose load fails may be the owner's.
    let failed = asker.peers[&nodes[1].url].errors.values().sum::<u64>();
    assert_eq!(asker.peer_loads + failed, owner.peer_requests);
}

#[test]
fn the_table_of_the_docs_has_each_metric_with_its_type_and_its_help() {
    let (nodes, _) = nodes_that_have_seen_much();
    let rows = include_str!("../../src/metrics.rs").lines();
    let rows = rows.filter_map(|line| line.strip_prefix("/// | `"));
    let mut documented: Vec<_> = rows
        .map(|row| match row.split(" | ").collect::<Vec<_>>()[..] {
            [name, kind, _, help] => {
                [name, kind, help].map(|cell| cell.trim_matches(['`', ' ', '|']))
            }
            _ => panic!("four columns expected: {row}"),
        })
        .map(|cells| cells.join(" "))
        .collect();
    let metrics = metrics_of(&nodes[0]);
    let of = |what: &str| -> HashMap<String, String> {
        let lines = metrics.lines().filter_map(|line| line.strip_prefix(what)?.split_once(' '));
        lines.map(|(name, text)| (name.to_string(), text.to_string())).collect()
    };
    let help = of("# HELP ");
    let described = of("# TYPE ").into_iter().map(|(name, kind)| {
        let help = &help[&name];
        format!("{name} {kind} {help}")
    });
    let mut described: Vec<_> = described.collect();
    documented.sort();
    described.sort();
    assert_eq!(documented, described);
}

#[test]
fn a_program_can_show_the_same_on_its_own_page_and_after_the_shutdown_too() {
    let ([mut asker, _owner], _) = nodes_that_have_seen_much();
    let page = metrics_of(&asker);
    let server = asker.take_server();
    assert_eq!(server.metrics(), page);
    assert!(server.shutdown(LONG) && server.shutdown(LONG));
    assert_eq!(server.metrics(), page);
}

#[test]
fn removals_and_the_errors_of_peers_are_counted_by_what_they_were() {
    let (nodes, dead) = nodes_that_have_seen_much();
    assert!(nodes[0].group().remove("Tom").is_err(), "one peer is not there");
    let metrics = metrics_of(&nodes[0]);
    let sums = sums(&metrics);
    assert_eq!(sums["geecache_removals_incomplete_total"], 1.0);
    let kinds = &nodes[0].stats().peers[&dead].errors;
    assert!(kinds["connection"] > 0 && kinds["cooling_down"] > 0, "{kinds:?}");
    let labels = format!("group=\"scores\",peer=\"{dead}\",kind=\"connection\"");
    let line = format!("geecache_peer_errors_total{{{labels}}} {}\n", kinds["connection"]);
    assert!(metrics.contains(&line), "{metrics}");
}

#[test]
fn a_peer_that_cools_down_is_not_up() {
    let (nodes, dead) = nodes_that_have_seen_much();
    let metrics = metrics_of(&nodes[0]);
    let up = |peer: &str| {
        let line = format!("geecache_peer_up{{group=\"scores\",peer=\"{peer}\"}} ");
        metrics.lines().find_map(|l| l.strip_prefix(&line)).map(str::to_string)
    };
    assert_eq!(up(&dead).as_deref(), Some("0"), "{metrics}");
    assert_eq!(up(&nodes[1].url).as_deref(), Some("1"));
    let stats = nodes[0].stats();
    assert_eq!(stats.peers[&dead].up, Some(false));
    assert_eq!(stats.peers[&nodes[1].url].loads, stats.peer_loads);
    let owner = &stats.peers[&nodes[1].url];
    // The key whose load fails may be the owner's, and that of a batch is one question.
    let answers = owner.loads + owner.errors.values().sum::<u64>();
    assert!(owner.times.sum > Duration::ZERO && owner.times.count() <= answers);
}

const ALERTS: &str = include_str!("../../examples/monitoring/alerts.yml");
const TESTS_OF_ALERTS: &str = include_str!("../../examples/monitoring/alerts.test.yml");
const DASHBOARD: &str = include_str!("../../examples/monitoring/dashboard.json");

/// The metrics that a text names.
fn names_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("geecache_")).collect()
}

fn queries_of(panels: &[Value]) -> impl Iterator<Item = &str> {
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    targets.map(|target| target["expr"].as_str().unwrap())
}

#[test]
fn the_alerts_the_dashboard_and_the_guide_name_only_metrics_that_are_there() {
    let (nodes, _) = nodes_that_have_seen_much();
    let metrics = metrics_of(&nodes[0]);
    // Those of events that have not come about have their head alone.
    let there = names_in(&metrics);
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries = queries_of(panels);
    let guide = include_str!("../../src/guide/origin.md");
    let queries: Vec<_> = queries.chain([ALERTS, TESTS_OF_ALERTS, guide]).collect();
    assert!(queries.len() > 20, "the panels were found");
    for query in queries {
        let named = names_in(query);
        assert!(!named.is_empty() && named.is_subset(&there), "{query}");
    }
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");
}

fn yaml(text: &str) -> Yaml {
    YamlLoader::load_from_str(text).unwrap().remove(0)
}

fn list<'y>(yaml: &'y Yaml, name: &str) -> &'y [Yaml] {
    yaml[name].as_vec().unwrap_or_else(|| panic!("{name} in {yaml:?}"))
}

#[test]
fn each_alert_has_a_test_in_which_it_fires() {
    let (alerts, tests) = (yaml(ALERTS), yaml(TESTS_OF_ALERTS));
    let rules = list(&alerts, "groups").iter().flat_map(|group| list(group, "rules"));
    let mut alerts: Vec<_> = rules.map(|rule| rule["alert"].as_str().unwrap()).collect();
    let cases = list(&tests, "tests").iter().flat_map(|test| list(test, "alert_rule_test"));
    let fires = cases.filter(|case| !list(case, "exp_alerts").is_empty());
    let mut fires: Vec<_> = fires.map(|case| case["alertname"].as_str().unwrap()).collect();
    alerts.sort();
    fires.sort();
    assert_eq!(alerts, fires);
}

/// What promtool says of files in `examples/monitoring` and of `input`.
fn promtool(arguments: &[&str], input: &str) -> (Output, String) {
    let mut promtool = Command::new("promtool");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/monitoring");
    promtool.args(arguments).current_dir(folder).stdin(Stdio::piped());
    promtool.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().expect("promtool is installed");
    promtool.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
    let said = said.concat();
    (output, said)
}

#[test]
#[ignore = "needs promtool; `make test-metrics` installs it"]
fn promtool_finds_nothing_to_complain_of() {
    let (nodes, _) = nodes_that_have_seen_much();
    let (output, said) = promtool(&["check", "metrics"], &metrics_of(&nodes[0]));
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
#[ignore = "needs promtool; `make test-metrics` installs it"]
fn promtool_finds_that_each_alert_fires_when_it_should_and_only_then() {
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]] {
        let (output, said) = promtool(&arguments, "");
        assert!(output.status.success(), "{said}");
    }
}

#[test]
#[ignore = "needs promtool; `make test-metrics` installs it"]
fn promtool_understands_each_query_of_the_dashboard() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let queries = queries_of(dashboard["panels"].as_array().unwrap());
    let rules = queries.enumerate().map(|(i, query)| {
        json!({ "record": format!("query:{i}"), "expr": query.replace("$__rate_interval", "5m") })
    });
    let rules = json!({ "groups": [{ "name": "queries", "rules": Vec::from_iter(rules) }] });
    let folder = Folder::new("dashboard");
    let file = folder.file("queries.yml", &rules.to_string(), 0o600);
    let (output, said) = promtool(&["check", "rules", &file], "");
    assert!(output.status.success(), "{said}");
}
