//! Paths and headers between nodes. Both ends use this.
//!
//! A key is any UTF-8 text, a path is not. Each of `{group}` and `{key}` is percent-encoded by
//! itself, every byte but letters, digits, `-`, `_` and `~`, so `/`, `+`, `?` and `#` in a key cannot
//! be mistaken for the path's own. The server splits the raw path first and then decodes each part
//! once. A path that is decoded before it is split, or decoded twice, gives the wrong key.

use percent_encoding::{
    AsciiSet, NON_ALPHANUMERIC, PercentEncode, percent_decode_str, utf8_percent_encode,
};
use std::borrow::Cow;

/// The path under which peers are asked.
pub(crate) const BASE_PATH: &str = "/_geecache/";

/// Marks a `404` as "no such key": the origin was asked and has none.
pub(crate) const RESULT: &str = "Geecache-Result";
pub(crate) const ABSENT: &str = "absent";

/// Marks the errors that only a node can tell, not a proxy in front of it or a stranger at its address.
pub(crate) const ERROR: &str = "Geecache-Error";
/// On a `404`: the node does not have this group. One that knows no batches may answer `404` too.
pub(crate) const NO_GROUP: &str = "no-group";
/// On a `502`: the node's own load failed. A proxy says `502` when the node is not there.
pub(crate) const LOAD_FAILED: &str = "load-failed";

/// On an answer about one key: `miss` if the node did not have it in its caches.
pub(crate) const CACHE: &str = "Geecache-Cache";
pub(crate) const MISS: &str = "miss";

/// On a `200`: the milliseconds that the value still lives.
pub(crate) const TTL_MS: &str = "Geecache-Ttl-Ms";

/// The type of a value; Go's GeeCache sends it, too.
pub(crate) const VALUE_TYPE: &str = "application/octet-stream";

/// The type of the body of a batch and of its answer.
pub(crate) const BATCH_TYPE: &str = "application/x-geecache-batch";

/// On a question for a key that a proxy may have changed: the result of [`check_of`]. It may have decoded
/// the path, merged slashes in it or taken dots in it for directories.
pub(crate) const KEY_CHECK: &str = "Geecache-Key-Check";

/// A checksum of a key that a proxy might turn into another one by decoding its path. None for one like
/// `a.b`, which stays what it is.
pub(crate) fn check_of(key: &str) -> Option<String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let has_escapes = key.bytes().any(|byte| !is_plain(byte)) || key.bytes().all(|b| b == b'.');
    has_escapes.then(|| format!("{:08x}", crc32fast::hash(key.as_bytes())))
}

/// Dots, too: a proxy takes a part of them alone for "here" or "above".
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'~');

/// The path of a key, or of a whole group, to which batches are sent; from the base path on.
pub(crate) fn path(group: &str, key: Option<&str>) -> String {
    match key {
        Some(key) => format!("{BASE_PATH}{}/{}", escaped(group), escaped(key)),
        None => format!("{BASE_PATH}{}", escaped(group)),
    }
}

fn escaped(part: &str) -> PercentEncode<'_> {
    utf8_percent_encode(part, RESERVED)
}

/// The group and the key of a raw path behind the base path, or the reason why it has none. A path
/// without a slash names a whole group.
///
/// A bare `+` is a space, since Go's GeeCache clients encode as for a query.
pub(crate) fn parse(path: &str) -> Result<(String, Option<String>), &'static str> {
    let (group, key) = match path.split_once('/') {
        Some((group, key)) => (decode(group)?, Some(decode(key)?)),
        None => (decode(path)?, None),
    };
    if group.is_empty() || key.as_ref().is_some_and(String::is_empty) {
        return Err("group and key must not be empty");
    }
    Ok((group, key))
}

fn decode(part: &str) -> Result<String, &'static str> {
    let spaced = part.replace('+', " ");
    let text = percent_decode_str(&spaced).decode_utf8().map(Cow::into_owned);
    text.map_err(|_| "the path is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    const AWKWARD: &[&str] = &[
        "Tom",
        "a b",
        "a+b",
        "a/b/c",
        "/",
        "//",
        "//x",
        ".",
        "..",
        "...",
        "./..",
        "100%",
        "%2F",
        "?q=1&r=2",
        "#frag",
        "\0",
        "\r\n",
        "\x7f",
        "键",
        "😀",
        "~tilde",
        "é",
        ":@!$&'()*,;=[]",
    ];

    #[test]
    fn every_key_and_group_comes_back_and_only_unreserved_bytes_travel() {
        let long = "ключ/ ".repeat(372);
        for group in AWKWARD {
            for key in AWKWARD.iter().copied().chain([&*long]) {
                let path = path(group, Some(key));
                let rest = path.strip_prefix(BASE_PATH).unwrap();
                assert_eq!(parse(rest), Ok((group.to_string(), Some(key.to_string()))));
                assert!(rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%/".contains(&b)));
                assert_eq!(rest.matches('/').count(), 1);
                assert!(rest.split('/').all(|part| part.bytes().any(|b| b != b'.')));
            }
        }
    }

    #[test]
    fn the_escapes_of_go_clients_are_understood() {
        assert_eq!(parse("scores/a+b%2Bc"), Ok(("scores".into(), Some("a b+c".into()))));
        assert_eq!(parse("my+group/%E9%94%AE"), Ok(("my group".into(), Some("键".into()))));
    }

    #[test]
    fn a_slash_after_the_first_belongs_to_the_key() {
        assert_eq!(parse("scores//a/b"), Ok(("scores".into(), Some("/a/b".into()))));
    }

    #[test]
    fn a_path_without_a_slash_is_a_groups() {
        for group in AWKWARD {
            let path = path(group, None);
            let rest = path.strip_prefix(BASE_PATH).unwrap();
            assert_eq!(parse(rest), Ok((group.to_string(), None)));
        }
    }

    #[test]
    fn bad_paths_say_what_is_wrong() {
        for path in ["", "scores/", "/Tom", "scores/%FF", "%C3/x"] {
            assert!(parse(path).is_err(), "{path}");
        }
    }
}
