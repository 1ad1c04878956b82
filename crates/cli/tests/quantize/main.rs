//! Quantising: what is made, planned, refused, resumed and proved.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failing test may panic

mod calibrated;
#[path = "../common/mod.rs"]
mod common;
mod formats;
mod plans;
mod proof;
mod refused;
mod resume;

use common::fable;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

/// The folder of the model that is quantised.
fn original() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(fable)
}

/// A text of some hundred tokens.
fn text(folder: &Path) -> String {
    let path = folder.join("text.txt");
    let names = ["Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana"];
    let things = ["a red kite", "an old map", "the last apple", "a tiny boat", "seven stones"];
    let text: String = (0..60)
        .map(|i| {
            let (a, b) = (names[i % 8], names[(3 * i + 1) % 8]);
            format!("One day {a} found {} by the river. {b} said, \"May I see it?\" and {a} smiled.\n", things[i % 5])
        })
        .collect();
    std::fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).to_string_lossy().into_owned()
}

/// Arguments of a run that writes `output`.
fn quantise<'a>(text: &'a str, output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let small = ["--samples", "3", "--length", "64", "--shard-size", "2", "--threads", "2"];
    let mut args = vec!["quantize", original(), "--text", text, "-o", output];
    args.extend(small.iter().chain(more));
    args
}

fn same(a: &Path, b: &Path) {
    let (a, b) = (files(a), files(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let differ: Vec<_> = a.iter().filter(|(name, bytes)| **bytes != b[*name]).map(|(name, _)| name).collect();
    assert!(differ.is_empty(), "{differ:?}");
}
