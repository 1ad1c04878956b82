//! `pull`, `list`, `rm`, `synthesise`, `completions`: what lies on the disk.

#![cfg(feature = "builtin-model")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use std::path::Path;

fn in_cache(args: &[&str], cache: &Path) -> Outcome {
    let mut command = command(args);
    command.env("HF_HUB_CACHE", cache);
    finish(command, "")
}

#[test]
fn models_of_the_cache_are_listed_run_and_removed() {
    let cache = tempfile::tempdir().unwrap();
    let model = cache.path().join("models--org--tales");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = model.join("snapshots").join(commit);
    for folder in [&snapshot, &model.join("blobs"), &model.join("refs")] {
        std::fs::create_dir_all(folder).unwrap();
    }
    std::fs::write(model.join("refs/main"), commit).unwrap();
    for file in ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"] {
        let blob = model.join("blobs").join(file.len().to_string());
        std::fs::copy(format!("{}/{file}", fable()), &blob).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(&blob, snapshot.join(file)).unwrap();
    }
    let found = in_cache(&["list", "--json"], cache.path()).json();
    assert_eq!((&found["built_in"], &found["models"][0]["id"]), (&"fable".into(), &"org/tales".into()));
    assert!(found["models"][0]["bytes"].as_u64().unwrap() > 25_000_000);
    let text = in_cache(&["list"], cache.path()).ok();
    assert!(text.contains("fable (built in)\n") && text.contains("org/tales\n"), "{text}");
    let found = in_cache(&["run", "-m", "org/tales", "Once", "-n", "2", "--json"], cache.path()).json();
    assert_eq!((found["model"].as_str(), ids_of(&found["token_ids"]).len()), (Some("org/tales"), 2));
    assert!(in_cache(&["inspect", &format!("org/tales@{commit}")], cache.path()).ok().contains("12,690,176"));
    let removed = in_cache(&["rm", "org/tales"], cache.path());
    assert!(removed.stderr.starts_with("removed org/tales, 25."), "{}", removed.stderr);
    assert!(!model.exists());
    let error = in_cache(&["rm", "org/tales"], cache.path()).error(1);
    let folder = cache.path().display();
    assert_eq!(error, format!("org/tales is not in the cache ({folder}); `metal-marlin list` shows what is"));
}

#[test]
fn what_cannot_be_pulled_is_told() {
    let error = marlin(&["pull", "org/model"]).error(1);
    assert_eq!(error, "org/model cannot be fetched: HF_HUB_OFFLINE is set; unset it and try again");
    assert!(marlin(&["pull", "no model id"]).error(1).contains("is no model id; expected org/name"));
}

#[test]
fn nothing_is_overwritten_by_made_up_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let error = marlin(&["synthesise", "qwen3-8b", "-o", path]).error(1);
    assert!(
        error.ends_with("config.json: is there already and will not be overwritten; name another folder"),
        "{error}"
    );
    let error = marlin(&["synthesise", "gpt-5", "-o", path]).error(1);
    assert!(error.contains("known: llama-3.2-1b"), "{error}");
}

#[test]
fn shells_complete_every_command() {
    let script = marlin(&["completions", "bash"]).ok();
    for name in [
        "run",
        "chat",
        "inspect",
        "dequantise",
        "compare",
        "kernels",
        "eval",
        "logits",
        "bench",
        "pull",
        "list",
        "rm",
        "doctor",
        "synthesise",
    ] {
        assert!(script.contains(&format!("metal__marlin__subcmd__{name}")) || script.contains(name), "{name}");
    }
    assert!(script.contains("--repetition-penalty"));
}

/// A hub that answers everything with one status.
fn hub(status: &'static str) -> String {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    format!("http://{address}")
}

#[test]
fn a_hub_that_refuses_is_quoted() {
    let cache = tempfile::tempdir().unwrap();
    for (status, said) in [
        (
            "401 Unauthorized",
            "org/model: the hub answers 401 (not authorised): the model does not exist, or is private or gated",
        ),
        ("403 Forbidden", "org/model: the hub answers 403 (forbidden): the model is gated; accept its terms at "),
        ("404 Not Found", "the hub answers 404 (not found); check the spelling"),
    ] {
        let mut command = command(&["pull", "org/model"]);
        command.env("HF_HUB_CACHE", cache.path()).env("HF_ENDPOINT", hub(status)).env_remove("HF_HUB_OFFLINE");
        command.env("HF_HOME", cache.path());
        let error = finish(command, "").error(1);
        assert!(error.contains(said), "{error}");
    }
}
