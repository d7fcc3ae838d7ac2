//! What the docs say of the tests and of the files is true, and where they say it twice they agree.

use std::fs;
use std::path::{Path, PathBuf};

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

/// The docs of the crate, without the marks of a comment.
fn docs_of_the_crate() -> String {
    let docs = include_str!("../../src/lib.rs").lines().take_while(|line| line.starts_with("//!"));
    let plain = docs.map(|line| line.strip_prefix("//! ").unwrap_or_default());
    plain.collect::<Vec<_>>().join("\n")
}

const README: &str = include_str!("../../README.md");

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What stands from `first` on, up to `last`.
fn part<'t>(text: &'t str, first: &str, last: &str) -> &'t str {
    let from = &text[text.find(first).unwrap_or_else(|| panic!("{first}"))..];
    &from[..from.find(last).unwrap_or_else(|| panic!("{last}"))]
}

#[test]
fn the_reading_order_names_each_file_once() {
    let docs = docs_of_the_crate();
    let order = part(&docs, "Two readings.", "\n\nArrows go down");
    let quoted = order.split('`').skip(1).step_by(2);
    let is_of_src = |name: &&str| name.ends_with(".rs") && !name.starts_with("examples/");
    let mut named: Vec<_> = quoted.filter(is_of_src).map(String::from).collect();
    named.sort();
    let mut files = Vec::new();
    let src = repository().join("src");
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path.strip_prefix(&src).unwrap().to_str().unwrap().to_string());
            }
        }
    }
    files.retain(|file| file.ends_with(".rs"));
    files.retain(|file| !file.ends_with("tests.rs") && !file.ends_with("properties.rs"));
    files.sort();
    assert_eq!(named, files);
}

#[test]
fn the_picture_of_a_get_is_the_same_wherever_it_stands() {
    let docs = docs_of_the_crate();
    let lines = |text: &str| -> Vec<String> {
        let picture = part(text, "get(key) ── main cache?", "keep ─▶ value");
        picture.lines().map(|line| line.trim_start_matches(['/', '!', ' ']).into()).collect()
    };
    assert_eq!(lines(README), lines(&docs));
    assert_eq!(lines(include_str!("../../src/group/mod.rs")), lines(&docs));
}

/// The pages of the guide, each with its file's name and its text.
fn pages() -> Vec<(String, String)> {
    let files = fs::read_dir(repository().join("src/guide")).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_string();
    paths.map(|path| (name(&path), fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn each_page_of_the_guide_says_for_whom_it_is_and_is_shown() {
    let modules = include_str!("../../src/lib.rs");
    let pages = pages();
    assert!(pages.len() > 5, "the pages were found");
    for (file, page) in pages {
        let mut lines = page.lines();
        let title = lines.next().unwrap().strip_prefix("# ").expect(&file);
        assert!(lines.nth(1).unwrap().starts_with("*For those who"), "{file}");
        assert!(README.contains(&format!("[{title}](src/guide/{file})")), "{file} in README");
        assert!(modules.contains(&format!("include_str!(\"guide/{file}\")")), "{file} in lib.rs");
    }
}

#[test]
fn readme_is_for_ten_minutes() {
    let (lines, words) = (README.lines().count(), README.split_whitespace().count());
    assert!(lines <= 250 && words <= 2_500, "{lines} lines, {words} words");
}

/// In backticks or as the aim of a link.
fn paths_in(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2);
    let linked = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let is_path = |path: &&str| {
        let is_plain = !path.contains([' ', '<', '\n']) && !path.contains("://");
        is_plain && ["src/", "examples/", "tests/"].iter().any(|folder| path.starts_with(folder))
    };
    quoted.chain(linked).filter(is_path)
}

#[test]
fn the_files_and_targets_that_readme_and_the_guide_name_are_there() {
    let makefile = include_str!("../../Makefile");
    let mut named = 0;
    for (file, text) in pages().into_iter().chain([("README.md".into(), README.into())]) {
        for path in paths_in(&text) {
            named += 1;
            assert!(repository().join(path).exists(), "{path} in {file}");
        }
        for target in text.split("`make ").skip(1) {
            let target =
                target.split(|c: char| !c.is_ascii_lowercase() && c != '-').next().unwrap();
            assert!(makefile.contains(&format!("\n{target}: ")), "make {target} in {file}");
        }
    }
    assert!(named > 20, "the names were found");
}
