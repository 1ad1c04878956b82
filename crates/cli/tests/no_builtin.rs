//! The build without a built-in model.

#![cfg(not(feature = "builtin-model"))]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;

#[test]
fn says_so_and_runs_others() {
    let error = marlin(&["run", "Once"]).error(1);
    assert!(error.starts_with("this build has no built-in model \"fable\""), "{error}");
    let found = marlin(&["run", "-m", &fable(), "Once", "-n", "2", "--json"]).json();
    assert_eq!(ids_of(&found["token_ids"]).len(), 2);
    assert_eq!(marlin(&["list", "--json"]).json()["built_in"], serde_json::Value::Null);
}
