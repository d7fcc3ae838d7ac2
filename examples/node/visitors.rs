//! Which requests the front refuses: those that a web page has made a browser send.
//!
//! A front on localhost asks for no password, since only programs on the same machine reach it. But
//! a browser is such a program, and any page that is open in it can use it in two ways:
//!
//! - DNS rebinding: once its page is loaded, the site changes its name's address to 127.0.0.1. The
//!   browser then takes the front for that site, and lets the page read and remove. The `Host` of
//!   these requests is the site's name: `421`.
//! - The page asks `http://localhost:9999`. The browser does not let it read the answer, but the
//!   request has been carried out by then. Its `Origin` is the site's: `403`.
//!
//! Other programs send the host of the URL that they were given, and no `Origin`.

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

    /// The answer to a request that may come from a page of another site; `None` for all others.
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
