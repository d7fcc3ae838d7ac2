//! Whole nodes over real sockets, in one process where that will do.
//!
//! | module | what is shown |
//! |---|---|
//! | `gets` | what a get gives, whichever node is asked; lists of peers that differ or change |
//! | `owners` | owners that fail, each in its own way, and what it costs; their return |
//! | `keys` | every key and group name travels exactly |
//! | `values` | sizes, budgets, times to live |
//! | `protocol` | the server asked by hand |
//! | `load` | bursts of connections, a full queue, a shutdown |
//! | `mixed` | nodes of Go's GeeCache in the same cluster |
//! | `processes` | a node that is killed, and an environment that names a proxy |
//!
//! `support` has the nodes, the stand-ins and the ways to wait.

mod gets;
mod keys;
mod load;
mod mixed;
mod owners;
mod processes;
mod protocol;
mod support;
mod values;
