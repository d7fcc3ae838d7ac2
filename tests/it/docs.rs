//! What the docs say of the tests is true.

use std::fs;
use std::path::Path;

/// The text of the module of that name: here, or a binary of its own.
fn source_of(module: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = [format!("it/{module}.rs"), format!("{module}.rs")];
    let found = files.iter().find_map(|file| fs::read_to_string(root.join(file)).ok());
    found.unwrap_or_else(|| panic!("no module {module}"))
}

#[test]
fn each_row_of_the_table_of_failures_names_tests_that_are_there() {
    let docs = include_str!("../../src/lib.rs");
    let table = docs.split_once("# What fails, and what then happens").unwrap().1;
    let rows = table.lines().skip_while(|line| !line.starts_with("//! |---"));
    let rows: Vec<_> = rows.skip(1).take_while(|line| line.starts_with("//! |")).collect();
    assert!(rows.len() > 10, "the table was found");
    for row in rows {
        let tests = row.trim_end_matches([' ', '|']).rsplit('|').next().unwrap();
        for test in tests.split(',') {
            let (module, name) = test.trim().trim_matches('`').split_once("::").expect(row);
            let is_there = source_of(module).contains(&format!("#[test]\nfn {name}()"));
            assert!(is_there, "{module}::{name}");
        }
    }
}
