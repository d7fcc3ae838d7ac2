//! What the packages depend on: licences, sources and versions, as `cargo metadata` tells them.
//!
//! `make deny` runs these tests. They ask for the manifests of all platforms' packages, of which
//! cargo fetches those that no build has needed, so `make test` leaves them out.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::process::Command;

use serde_json::Value;

/// They ask for no more than that their texts go along with the program.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages of which there are several versions, and who asks for an older one.
const DUPLICATES: &[(&str, &str)] = &[
    ("embedded-io", "postcard, for two features that nobody here asks for"),
    ("getrandom", "ring, shuttle"),
    ("rand", "shuttle"),
    ("rand_core", "shuttle"),
    ("syn", "shuttle's rand, for a derive"),
    ("synstructure", "rcgen's asn1-rs, for a derive"),
    ("windows-sys", "ring, shuttle"),
];

/// All packages, those of this workspace too.
fn packages() -> Vec<Value> {
    let mut cargo = Command::new(env::var("CARGO").unwrap_or("cargo".into()));
    cargo.args(["metadata", "--locked", "--all-features", "--format-version", "1"]);
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let Value::Array(packages) = metadata["packages"].take() else { panic!("no packages") };
    assert!(packages.len() > 20, "the packages were found");
    packages
}

fn text<'p>(package: &'p Value, field: &str) -> Option<&'p str> {
    package[field].as_str()
}

/// Whether an SPDX expression leaves a choice of allowed licences. One without parentheses is read
/// as if `OR` bound stronger, which refuses too much rather than too little.
fn is_allowed(expression: &str) -> bool {
    let expression = expression.replace(['(', ')'], "").replace('/', " OR ");
    let has_choice = |part: &str| part.split(" OR ").any(|licence| LICENCES.contains(&licence));
    expression.split(" AND ").all(has_choice)
}

#[test]
fn an_expression_of_licences_is_allowed_if_each_part_leaves_a_choice() {
    for allowed in ["MIT", "MIT/Apache-2.0", "GPL-3.0 OR MIT", "(MIT OR GPL-3.0) AND ISC"] {
        assert!(is_allowed(allowed), "{allowed}");
    }
    for refused in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND MPL-2.0"] {
        assert!(!is_allowed(refused), "{refused}");
    }
}

#[test]
#[ignore = "may fetch packages: `make deny`"]
fn every_licence_is_one_of_those_that_are_allowed() {
    let packages = packages();
    let is_refused = |package: &&Value| !text(package, "license").is_some_and(is_allowed);
    let refused = packages.iter().filter(is_refused);
    let refused: Vec<_> = refused.map(|package| (&package["name"], &package["license"])).collect();
    assert!(refused.is_empty(), "{refused:?}");
}

#[test]
#[ignore = "may fetch packages: `make deny`"]
fn every_package_comes_from_the_registry_or_this_repository() {
    let packages = packages();
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        packages.iter().partition(|package| text(package, "source").is_none());
    let here: BTreeSet<_> = here.iter().filter_map(|package| text(package, "name")).collect();
    assert_eq!(
        here,
        BTreeSet::from(["axum-service", "bench", "cluster", "geecache", "node", "soak", "tests"])
    );
    let sources: BTreeSet<_> =
        elsewhere.iter().filter_map(|package| text(package, "source")).collect();
    assert!(
        sources.len() == 1 && sources.iter().all(|s| s.starts_with("registry+")),
        "{sources:?}"
    );
}

#[test]
#[ignore = "may fetch packages: `make deny`"]
fn no_package_is_there_in_two_versions_but_those_that_are_known() {
    let packages = packages();
    let mut versions = BTreeMap::<_, usize>::new();
    for name in packages.iter().filter_map(|package| text(package, "name")) {
        *versions.entry(name).or_default() += 1;
    }
    let several: Vec<_> = versions.iter().filter(|&(_, &n)| n > 1).map(|(name, _)| *name).collect();
    let known: Vec<_> = DUPLICATES.iter().map(|&(name, _)| name).collect();
    assert_eq!(several, known, "`cargo tree -d --target all` tells who asks for them");
}
