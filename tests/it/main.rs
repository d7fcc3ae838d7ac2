//! Whole nodes over real sockets, in one process where that will do.
//!
//! | module | what is shown |
//! |---|---|
//! | `gets` | what a get gives, whichever node is asked; lists of peers that differ or change |
//! | `owners` | owners that fail, each in its own way, and what it costs; their return |
//! | `handover` | what a new owner gets from the one before, after the list has changed |
//! | `changes` | keys are removed while lists of nodes change |
//! | `keys` | every key and group name travels exactly |
//! | `values` | sizes, budgets, times to live |
//! | `limits` | the largest of everything, and one above |
//! | `fresh` | absent keys that are remembered, lives that differ |
//! | `nested` | getters that ask for other keys |
//! | `removal` | a key, or all, leaves every node |
//! | `batches` | many keys at once, and owners that know no batches |
//! | `combining` | gets that share a request |
//! | `protocol` | the server asked by hand |
//! | `load` | bursts of connections, a full queue, a shutdown |
//! | `metrics` | the counters as Prometheus reads them |
//! | `overload` | three times as many questions as the workers can take |
//! | `clients` | clients that fall silent, drip, do not read, send ahead or use up descriptors |
//! | `fuzz` | clients that send anything |
//! | `mixed` | nodes of Go's GeeCache in the same cluster |
//! | `processes` | a node that is killed, and an environment that names a proxy |
//! | `tls` | peers behind `https://`, with the feature `tls` |
//! | `far` | owners behind that relay: forgotten connections, slow keys, strangers |
//! | `hops` | owners behind proxies and caches, which change questions and answers |
//! | `network` | the relay that stands for a network between nodes |
//! | `origin` | values renewed ahead, and values past their time while the origin is down |
//! | `examples` | the programs of `examples` that are one file |
//! | `node` | the program of `examples/node` |
//! | `page` | its page, in a browser |
//! | `discovery` | nodes that find each other by a name |
//! | `proxy` | the same program behind HAProxy, with the feature `tls` |
//! | `docs` | what the docs say of all these |
//! | `dependencies` | the licences, sources and versions of all packages |
//!
//! `support` has the nodes, the stand-ins, the relay between nodes and the ways to wait; `child` a node in a process of its
//! own; `browser` a browser.

mod batches;
mod browser;
mod changes;
mod child;
mod clients;
mod combining;
mod dependencies;
mod discovery;
mod docs;
mod examples;
mod far;
mod fresh;
mod fuzz;
mod gets;
mod handover;
mod hops;
mod keys;
mod limits;
mod load;
mod metrics;
mod mixed;
mod nested;
mod network;
mod node;
mod origin;
mod overload;
mod owners;
mod page;
mod processes;
mod protocol;
#[cfg(feature = "tls")]
mod proxy;
mod removal;
mod support;
#[cfg(feature = "tls")]
mod tls;
mod values;
