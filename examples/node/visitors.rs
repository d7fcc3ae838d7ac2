//! Which requests the front refuses: those that a browser was tricked into.
//!
//! A front on localhost asks for no password, since only users of the machine reach it. But so do
//! the pages of all sites that they have open, in two ways, and each leaves a trace:
//!
//! - The name of a site is made to lead to 127.0.0.1 once its page is loaded (DNS rebinding). The
//!   browser then takes the front for that site, and its `Host` is that name: `421`.
//! - A page sends a request to the front by its right name. It may not read the answer, but a
//!   removal would have been done by then. Its `Origin` is another one than the front's own: `403`.
//!
//! Programs send the `Host` that they were told to ask, and no `Origin`.

use std::net::IpAddr;

use geecache::tiny_http::{Request, ResponseBox};
use ureq::http::uri::Authority;

use crate::front::text;

/// The hosts by which the front may be asked, other than loopback.
pub(crate) struct Visitors(Vec<String>);

impl Visitors {
    /// Allows these hosts, at any port: the front may be behind a proxy or a tunnel.
    pub(crate) fn of(hosts: impl IntoIterator<Item = String>) -> Self {
        Self(hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect())
    }

    /// The answer to a request that comes from a page of another site.
    pub(crate) fn refusal(&self, request: &Request) -> Option<ResponseBox> {
        let values = |name: &'static str| {
            let headers = request.headers().iter().filter(move |header| header.field.equiv(name));
            headers.map(|header| header.value.as_str())
        };
        if let Some(host) = values("Host").find(|host| !self.knows(host)) {
            let host = host_of(host).unwrap_or_default();
            let why =
                format!("this front is not {host:?}; `--host NAME` lets it be asked by a name");
            return Some(text(421, &why));
        }
        let is_own = |origin: &str| {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            values("Host").any(|host| authority == Some(host))
        };
        let is_foreign = values("Origin").any(|origin| !is_own(origin));
        is_foreign.then(|| text(403, "the front answers no pages but its own"))
    }

    fn knows(&self, host: &str) -> bool {
        let Some(host) = host_of(host) else { return false };
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|a| a.is_loopback()) || self.0.contains(&host)
    }
}

/// The host of `host:port`, in small letters.
pub(crate) fn host_of(authority: &str) -> Option<String> {
    let authority: Authority = authority.parse().ok()?;
    Some(authority.host().to_ascii_lowercase())
}
