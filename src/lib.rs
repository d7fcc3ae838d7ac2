//! A read-through cache in front of a slow source of data, spread over several processes.
//!
//! A program asks a [`Group`] for a key. If the value is not in memory, the process that *owns*
//! the key is asked over HTTP; consistent hashing tells which one that is. The owner loads the
//! value from the *origin* (a database, a service, a computation) by the closure that the
//! program gave, and when the owner cannot answer, the asking process does that itself. There
//! is no further server to run, no async runtime, and no `unsafe`: threads, `Mutex` and
//! blocking calls. The design is that of Go's GeeCache and groupcache.
//!
//! ```
//! use geecache::Group;
//!
//! let scores = Group::builder("scores", |key: &str| {
//!     println!("[SlowDB] search key {key}");
//!     Ok::<_, std::io::Error>((key == "Tom").then_some("630"))
//! })
//! .build()?;
//!
//! assert_eq!(scores.get("Tom")?.unwrap(), "630"); // searches
//! assert_eq!(scores.get("Tom")?.unwrap(), "630"); // does not
//! # Ok::<(), geecache::Error>(())
//! ```
//!
//! # One get
//!
//! ```text
//!  get(key) ── main cache? ── hot cache? ── hit ───────────────────────────▶ value
//!                  │ miss
//!                  ▼
//!       who owns the key? (looked up in the ring)
//!         │ a remote node                             │ this node, or no peers
//!         ▼                                           │
//!    ask the owner over HTTP ── answered? ─ yes ─▶ value, or "no such key"
//!         │ no (refused, timed out, overloaded, …)    │
//!         └───────────── fall back ──────────────────▶│
//!                                                     ▼
//!                                   load from the origin ─▶ keep ─▶ value
//! ```
//!
//! - "No such key" is an answer, `Ok(None)`, not a failure.
//! - Of many callers that miss the same key one loads; the others wait for it. One load for the
//!   whole cluster, as long as the owner answers.
//! - A peer's question never causes another one that can wait, so there are no loops.
//! - The *main* cache holds the keys that this process owns, the *hot* cache copies of others'
//!   keys, and values that were loaded in place of an owner. Copies live for
//!   [30 seconds](GroupBuilder::hot_ttl) at the most.
//! - When the list of nodes has changed, the leader of a miss first asks the node that owned the key
//!   before, from its caches ([`handover`](PoolOptions::handover)).
//!
//! # A cluster
//!
//! Each process knows the URLs of all, its own among them, and serves its groups to the others:
//!
//! ```no_run
//! use geecache::{Group, HttpPool, HttpServer, ServerOptions};
//! use std::{net::TcpListener, time::Duration};
//!
//! let pool = HttpPool::new("http://10.0.0.1:8001")?;
//! pool.set_peers(["http://10.0.0.1:8001", "http://10.0.0.2:8001", "http://10.0.0.3:8001"])?;
//!
//! let scores = Group::builder("scores", |key: &str| std::fs::read(key).map(Some))
//!     .max_bytes(64 << 20)
//!     .ttl(Duration::from_secs(300))
//!     .peers(pool.clone())
//!     .build()?;
//!
//! let listener = TcpListener::bind("10.0.0.1:8001")?;
//! let server = HttpServer::start(listener, [scores.clone()], ServerOptions::default())?;
//! let value = scores.get("Tom")?;
//! server.shutdown(Duration::from_secs(5));
//! # Ok::<(), geecache::Error>(())
//! ```
//!
//! # The guide
//!
//! [`guide`] has short pages, one for each question: in an async program, when the origin is slow or down,
//! when nodes come and go, who may ask, in tests, the protocol between nodes, and the measurements.
//!
//! The peer port belongs on a private network: everybody who reaches it can read and remove every key, and
//! nothing bounds the connections or the header of a request in memory. [`guide::access`] says more.
//!
//! # Reading order
//!
//! Begin with `examples/in_one_file.rs`: the whole design as Go's GeeCache has it, on the bare packages,
//! with a table of its flaws and the file that cures each. `make doc` builds these pages together with
//! the private modules, as a book.
//!
//! Two readings. The first is the story, leaves first:
//!
//! | file | what |
//! |---|---|
//! | `getter.rs` | `Getter`: the origin; `Loaded`: a value and its time to live |
//! | `byte_view.rs` | `ByteView`: immutable bytes, cheap to clone |
//! | `ring.rs` | `Ring`: which node owns which key |
//! | `flight.rs` | `Flight`: of all threads that want the same work one does it, the others wait |
//! | `cache/mod.rs`, `cache/record.rs`, `cache/shard.rs` | `Cache`: entries within a budget of bytes; an entry in one allocation; one shard under one mutex |
//! | `peer.rs` | `PeerPicker`, `PeerGetter`: the seam between the story and the network; `examples/by_hand.rs` fills it without one |
//! | `group/builder.rs`, `group/mod.rs` | `Group`: its settings; one get, top to bottom |
//! | `http/mod.rs`, `http/wire.rs`, `http/pool.rs` | asking and answering; paths and headers; `HttpPool`: the ring, and a getter for each other node |
//! | `http/client/mod.rs`, `http/client/exchange.rs`, `http/client/cooldown.rs` | `HttpGetter`: a deadline; one request, one answer; a dead peer costs once |
//! | `http/server/mod.rs`, `http/server/routes.rs`, `http/server/service.rs` | `HttpServer`: the way of a request; which question gets which answer; the steps of that way |
//!
//! The second is what makes it fast and hard to kill:
//!
//! | file | what |
//! |---|---|
//! | `lib.rs`, `error.rs`, `clock.rs`, `elastic.rs`, `stats.rs`, `metrics.rs` | this story; errors; the time, moved by hand in tests; threads for long jobs; counters; the same for Prometheus |
//! | `cache/key.rs`, `cache/slab.rs`, `cache/table.rs` | a key and its hash; slots and the lists over them; slots by key |
//! | `cache/order.rs`, `cache/ghosts.rs` | which entry goes first |
//! | `group/batch.rs`, `group/remove.rs`, `group/trace.rs` | many keys at once; removals; how a get was answered |
//! | `warnings.rs` | a log that one can read |
//! | `group/refresh.rs`, `group/handover.rs`, `http/discovery.rs` | a slow or failing origin; a list of nodes that changes; nodes found by a name |
//! | `http/options.rs`, `http/frame.rs` | options, their limits and checks; a batch as bytes |
//! | `http/client/combine.rs` | gets that share a request |
//! | `http/client/addresses.rs`, `http/client/transport.rs` | where a name leads; ureq, and the connections to a peer |
//! | `http/server/queue.rs`, `http/server/clients.rs` | who is let in; one request of a client at a time |
//! | `http/server/request.rs`, `http/server/reply.rs`, `http/server/listener.rs` | tiny_http's request and answer; its accepting side, with its flaws cured |
//!
//! Arrows go down only: `http` uses `group`, `ring`, `peer`, `metrics` and `elastic`; `group` uses `cache`,
//! `flight`, `peer`, `getter`, `stats`, `elastic` and `warnings`; all may use `error`, `clock` and `byte_view`. `client` and `server` know nothing
//! of each other; their common part is in `wire`, `frame` and `options`. `group` knows nothing of HTTP, and
//! `ring` and `flight` know nothing of caching.
//!
//! # Locks
//!
//! A comment on each `Mutex` names what it guards. Single flags are atomics, counters are behind a lock. No two
//! locks are held at once, but where a comment gives their order, and no getter, no I/O, no log line and no
//! drop of a value happens under one.
//!
//! # What fails, and what then happens
//!
//! The tests are in `tests/it`, that of the restarts in `tests/restarts.rs`. What threads can do to each
//! other is in `tests/races`, where a model checker chooses which thread goes on: flight, cache, group,
//! removals across nodes, combining, the workers' queue, clients that send ahead, and the elastic threads.
//!
//! | failure | then | shown by |
//! |---|---|---|
//! | an owner refuses connections, or its host is gone without a word | one caller pays one connect timeout for each cool-down, the others fall back at once; after it one caller tries | `owners::an_owner_that_is_gone_leaves_the_get_to_the_origin`, `owners::an_owner_whose_host_says_nothing_leaves_the_get_to_the_origin`, `owners::after_the_cool_down_one_caller_tries_and_finds_the_owner_back` |
//! | an owner accepts and stays mute, or drips bytes | the deadline of the whole question ends it, fall back | `owners::silence_falls_back_to_the_origin`, `owners::a_head_that_drips_falls_back_to_the_origin`, `owners::a_body_that_drips_falls_back_to_the_origin`, `owners::a_mute_owner_costs_one_deadline_and_not_one_each` |
//! | an owner is killed in the middle of an answer | fall back; it is asked again when it is back | `processes::an_owner_that_is_killed_in_mid_request_leaves_the_get_to_the_origin_and_returns` |
//! | the network forgets connections | a question that fails on an old connection before a byte of the answer is sent once more on a new one; after silence one deadline is paid, and the other old connections are closed | `far::connections_that_are_reset_cost_no_get_anything`, `far::connections_that_fall_silent_cost_one_deadline_and_one_cool_down`, `far::no_question_is_sent_twice_on_new_connections`, `far::a_removal_reaches_the_owner_at_once_after_resets_and_at_the_second_attempt_after_silence` |
//! | an owner is slow for some keys | those fall back; it is asked for all others, and a batch gets what the owner has | `far::slow_keys_do_not_make_their_owner_seem_dead`, `far::a_slow_key_in_a_batch_leaves_the_others_their_answers` |
//! | an owner's address leads to a stranger | fall back, nothing of it is kept | `far::an_answer_that_no_node_writes_is_a_strangers` |
//! | a proxy or a cache between nodes packs or keeps answers | those are a stranger's: fall back; no cache has an old value after a removal | `hops::an_answer_that_a_hop_has_packed_is_no_value`, `hops::after_a_removal_no_cache_on_the_way_has_the_old_value`, `hops::every_answer_says_that_no_cache_may_keep_it` |
//! | a proxy decodes the path of a key, so that another one arrives | `400`, fall back; the removal is an error | `hops::a_key_that_a_hop_has_changed_is_not_taken_for_another_one` |
//! | a proxy refuses batches, or answers what it takes for a cache's question | each key is asked for by itself, for a minute | `hops::where_a_hop_refuses_batches_each_key_is_asked_for_by_itself`, `hops::a_hop_that_knows_only_if_cached_answers_nothing_in_the_owners_place` |
//! | an owner's address leads to a node of another cluster | where its token is another one, it answers nothing and loses nothing | `protocol::a_node_of_another_cluster_with_another_token_gives_no_value_and_loses_none` |
//! | an owner answers something that is no answer | fall back | `owners::what_is_not_http_falls_back_to_the_origin`, `owners::status_500_falls_back_to_the_origin`, `batches::an_owner_whose_answer_is_malformed_falls_back` |
//! | lists of nodes disagree, or a node lists itself under another name | every get is answered; a list without the node itself is refused | `gets::two_nodes_that_each_take_the_other_for_the_owner_both_answer`, `gets::a_node_that_lists_itself_under_another_name_asks_itself_and_is_answered` |
//! | a node comes or goes | its keys' new owner asks the one before for them, and the origin is not asked | `handover::a_node_that_joins_takes_over_what_it_owns_now_and_the_origin_is_not_asked`, `handover::a_node_that_has_left_hands_over_for_as_long_as_it_answers` |
//! | an earlier owner is mute or gone | 100 ms at the most, then it is left alone for a while | `handover::a_mute_or_dead_earlier_owner_costs_a_moment_and_then_nothing_for_a_while` |
//! | the list changes while a key or all is removed | all nodes that are in the remover's list from a minute before to a minute after are told; of the others the error names none | `changes::a_list_that_changes_while_a_removal_runs_leaves_nothing_old`, `changes::a_node_that_a_look_up_misses_while_all_is_removed_is_told`, `changes::a_node_that_has_left_with_a_copy_is_told_also_where_it_failed_before`, `changes::a_node_that_loads_before_the_remover_knows_it_is_told_when_it_does`, `changes::whatever_happens_to_lists_while_keys_are_removed_nothing_old_is_left` |
//! | a node is in the list for a moment and dies | its keys live on at their owners | `changes::keys_that_come_home_live_on` |
//! | the name by which nodes find each other leads to a part of them | the list keeps those that are missing for some look-ups | `discovery::three_nodes_find_a_fourth_and_lose_it_again_and_no_get_fails` |
//! | the name by which nodes find each other leads nowhere, or the resolver hangs | the list stays as it is, nobody waits | `discovery::three_nodes_find_a_fourth_and_lose_it_again_and_no_get_fails` |
//! | the list changes under load, and nodes are killed, frozen and restarted | no get fails, no answer is wrong | `gets::no_get_fails_while_the_list_of_peers_changes`, `restarts::no_get_fails_and_no_value_is_wrong_whatever_happens_to_the_nodes` |
//! | a getter panics | that get is an error, and so are those that waited for it; the worker lives, the key is usable | `gets::a_getter_that_panics_is_an_error_to_all_who_wait_and_the_key_is_usable_after` |
//! | a getter fails | an error with its text, shared by the gets that waited, cached for nobody | `gets::an_error_of_the_getter_is_tried_once_more_here_and_then_told` |
//! | the owner's getter fails | the asking process tries as well; without [`retry_failed_loads`](GroupBuilder::retry_failed_loads) it returns the owner's error | `gets::an_error_at_the_owner_alone_is_nobodys_error`, `origin::a_get_whose_owner_fails_to_load_ends_with_its_error_if_told_so`, `origin::a_502_that_no_node_marks_is_a_proxys_and_falls_back` |
//! | the origin is slow | with [`refresh_ahead`](GroupBuilder::refresh_ahead), values that are asked for are loaded anew before they expire | `origin::a_hundred_gets_through_three_nodes_renew_a_value_once` |
//! | the origin is down | with [`stale_if_error`](GroupBuilder::stale_if_error), values past their time answer, and each key is tried once a second; else an error | `origin::while_the_origin_is_down_all_nodes_answer_and_none_keeps_a_copy`, `origin::where_neither_the_owner_nor_the_origin_answers_an_old_copy_does`, `origin::a_stale_value_ends_after_its_grace_and_with_a_removal_on_all_nodes`, `node::while_the_database_is_broken_nodes_answer_what_they_had_and_then_recover_by_themselves` |
//! | more requests than workers and queue can take | `503` on the new ones but hits and removals, at once or, where a peer's question is taken by no worker, after 50 ms; those a worker has taken are finished; peers fall back, and load a key once in each node | `load::a_full_queue_answers_503_at_once_and_what_was_accepted_is_finished`, `overload::those_let_in_wait_no_longer_than_an_answer_takes_and_the_others_are_told_soon`, `load::a_peers_question_waits_for_a_worker_for_a_moment_only`, `overload::while_an_owner_is_overloaded_each_asking_node_loads_a_key_once` |
//! | all workers wait for the origin | requests that need no origin are answered: hits, removals, `/healthz`, `/metrics` | `clients::hits_and_removals_are_answered_while_all_workers_wait_for_the_origin`, `far::hits_need_no_worker_of_the_owner_whatever_their_size`, `load::probes_are_answered_while_all_workers_wait_and_requests_are_refused`, `load::what_is_answered_immediately_waits_for_no_worker`, `node::the_page_and_the_status_are_there_while_all_workers_wait` |
//! | a value larger than the cache, or than the limit between nodes | returned, not kept, counted; nothing else is flushed | `values::a_value_above_the_budget_is_returned_and_flushes_nothing`, `values::a_value_of_just_the_transfer_limit_travels_and_one_byte_more_is_loaded_here` |
//! | a removal cannot reach a node | it is named; its copy lives for `hot_ttl` at the most, also if it owned the key before; if it owns the key now, its value lives until its `ttl` ends or it is evicted | `removal::nodes_that_cannot_be_reached_are_named_after_all_others_were`, `removal::a_node_that_was_not_reached_has_its_copy_until_the_hot_ttl_ends`, `removal::a_former_owner_that_was_not_reached_has_the_value_until_the_hot_ttl_ends` |
//! | the listener runs out of file descriptors | it answers again within 3 s of there being some, and logs both; one that cannot reach itself serves on | `clients::a_lack_of_descriptors_ends_with_the_connections_that_caused_it` |
//! | no thread can be started | the start is an error; a listener that runs answers again within 3 s of there being threads, and requests and answers wait for one | `child::a_server_that_has_no_threads_to_start_says_so`, `clients::a_lack_of_threads_ends_with_what_caused_it`, `clients::what_waits_for_a_thread_goes_on_when_there_are_threads` |
//! | clients that fall silent, drip, do not read or send anything | each costs its own connection alone; one that takes not even a short answer, the intake or a worker for some 4 ms; after an answer that was not finished nothing more is sent there for `idle_timeout` | `clients::a_thousand_half_open_requests_slow_nobody_down_and_leave_nothing_behind`, `clients::a_body_that_does_not_arrive_holds_its_own_connection_alone`, `clients::answers_that_nobody_reads_hold_no_worker`, `clients::hits_that_nobody_reads_hold_up_nobody`, `clients::answers_that_nobody_reads_are_refused_before_they_take_the_memory`, `clients::a_hundred_clients_that_do_not_read_hold_up_the_hits_of_others_for_a_moment`, `clients::a_client_that_reads_a_little_now_and_then_is_given_up_and_nothing_more_is_sent_there`, `clients::after_an_answer_that_was_not_finished_nothing_more_is_sent_there`, `clients::any_number_of_requests_sent_ahead_is_answered`, `fuzz::whatever_is_sent_is_answered_rightly_or_cut_off_and_harms_nobody_else` |
//! | a client connects again from the port of a connection that it has reset | its questions wait until the dead one's is answered | `clients::a_new_connection_from_the_port_of_a_dead_one_waits_for_the_old_request_and_holds_up_nobody`, `clients::a_new_connection_from_the_port_of_one_that_did_not_read_is_answered` |
//! | a page of another site, in a browser on the network, asks a node | `403` | `protocol::a_page_of_another_site_is_refused` |
//! | the token is changed, one node after the other | no get falls back | `protocol::a_token_is_changed_node_by_node_without_a_fallback` |
//! | a shutdown | no new connections, requests under way are finished, the workers end; `503` on the connections that are open, also afterwards, so that a new server on the port is found | `load::a_shutdown_finishes_what_is_in_flight_and_refuses_what_comes`, `load::a_shutdown_waits_no_longer_than_its_grace`, `load::after_a_shutdown_open_connections_are_refused_and_a_new_server_is_found` |
//!
//! # From the Go source to here
//!
//! | GeeCache, groupcache | here | what is different |
//! |---|---|---|
//! | `Group`, `NewGroup`, `GetGroup` | [`Group`], [`Group::builder`] | no global table: the server is handed its groups, so ten nodes fit in one test |
//! | `Getter`, `GetterFunc` | [`Getter`], a closure | "no such key" is `Ok(None)`, not an error |
//! | `ByteView` | [`ByteView`] | shares the entry's one allocation |
//! | `load`, `getLocally`, `getFromPeer`, `populateCache` | `Group::load`, `load_locally`, `load_from_peer`, `fill` | a peer's answer is kept for a while, and its failure logged |
//! | `singleflight.Group`, `Do` | `Flight`, `join` | two of them, so that nodes never wait for each other; a panic releases all |
//! | `lru.Cache` | [`Eviction`] | S3-FIFO, in shards; LRU as an option; entries can expire |
//! | `mainCache`, `hotCache` | the same, see [`Tier`] | each copy is kept for a while, and not one in ten by a coin |
//! | `consistenthash.Map`, `Get`, `replicas` | [`Ring`], [`owner`](Ring::owner), [`points_per_peer`](PoolOptions::points_per_peer) | immutable; a tie does not depend on the order of the list |
//! | `PeerPicker`, `PeerGetter`, `RegisterPeers` | [`PeerPicker`], [`PeerGetter`], [`GroupBuilder::peers`] | a peer can also be asked for many keys and told of a removal |
//! | `HTTPPool`, `Set` | [`HttpPool`], [`set_peers`](HttpPool::set_peers) | deadlines, cool-downs, connections that are kept; a list without oneself is refused |
//! | `httpGetter` | `HttpGetter` | concurrent gets share requests |
//! | `ServeHTTP` | [`HttpServer`], [`Group::answer_peer`] | a bounded pool of workers, a shutdown that finishes what it has begun |
//! | `Stats`, `LoadsDeduped`, `ServerRequests` | [`Stats`], `shared`, `peer_requests` | the sums add up; histograms; Prometheus text |

// The reading order links to private modules, which `make doc` shows.
#![allow(rustdoc::private_intra_doc_links)]
// docs.rs shows which items need a feature.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod byte_view;
mod cache;
mod clock;
mod elastic;
mod error;
mod flight;
mod getter;
mod group;
mod http;
mod metrics;
mod peer;
mod ring;
mod stats;
mod warnings;

pub use byte_view::ByteView;
pub use cache::{CacheStats, Eviction};
pub use clock::Clock;
pub use error::{Error, MAX_KEY_BYTES, PeerError};
pub use getter::{BoxError, Getter, Loaded};
pub use group::{Asked, Group, GroupBuilder, MAX_GROUP_BYTES, Tier, Trace};
pub use http::{Following, HttpPool, HttpServer, PoolOptions, ServerOptions};
pub use metrics::prometheus;
pub use peer::{PeerGetter, PeerPicker};
pub use ring::{Ring, RingHash};
pub use stats::{Histogram, PeerStats, Stats};
pub use tiny_http;

/// Pages for those who use it or run it. The module has no items.
#[cfg(any(doc, doctest))]
pub mod guide {
    #[doc = include_str!("guide/async_program.md")]
    pub mod async_program {}

    #[doc = include_str!("guide/origin.md")]
    pub mod origin {}

    #[doc = include_str!("guide/nodes.md")]
    pub mod nodes {}

    #[doc = include_str!("guide/access.md")]
    pub mod access {}

    #[doc = include_str!("guide/testing.md")]
    pub mod testing {}

    #[doc = include_str!("guide/protocol.md")]
    pub mod protocol {}

    #[doc = include_str!("guide/measured.md")]
    pub mod measured {}
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
