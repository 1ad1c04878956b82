//! `chat` through a pipe: a line is a turn.

#![cfg(feature = "builtin-model")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use serde_json::Value;

#[test]
fn turns_commands_and_saving() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("conversation.json");
    let path = file.to_str().unwrap();
    let input = format!(
        "Tell me of a fox and of a crow, and of the river where they met.\nAnd then?\n/stats\n/save {path}\n/save {path}\n\
         /reset\n\"\"\"two\nlines\"\"\"\n/save {path}\n/nonsense\n/think sideways\n/system Speak in rhymes.\nagain\\\nand again\n/quit\nnot read\n"
    );
    let found = marlin_with(&["chat", "-n", "24", "--system", "You tell short tales.", "--exact"], &input);
    for said in [
        "saved to ",
        "the conversation is forgotten",
        "error: there is no command /nonsense; /help lists them",
        "error: /think: expected on or off",
        "instructions taken",
        "2 turns; ",
    ] {
        assert!(found.stderr.contains(said), "{said}: {}", found.stderr);
    }
    // What the first turn left in KV memory is found by the second.
    assert!(found.stderr.contains(" cached) at "), "{}", found.stderr);
    assert_eq!(found.stderr.matches("generated 24 tokens").count(), 4, "{}", found.stderr);
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let roles: Vec<&str> = saved["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
    assert_eq!(saved["messages"][1]["content"], "two\nlines");
    let answer = saved["messages"][2]["content"].as_str().unwrap();
    assert!(!answer.is_empty() && found.stdout.contains(answer), "{answer}");
    assert_eq!(found.code, Some(0));
}

#[test]
fn nothing_of_the_users_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("letter.json");
    std::fs::write(&file, "mine").unwrap();
    let found = marlin_with(&["chat"], &format!("/save {}\n/save\n", file.display()));
    assert!(found.stderr.contains("is there already and will not be overwritten"), "{}", found.stderr);
    assert!(found.stderr.contains("error: /save: expected a file name"), "{}", found.stderr);
    assert_eq!((found.ok().as_str(), std::fs::read_to_string(&file).unwrap().as_str()), ("", "mine"));
}

#[test]
fn a_text_too_long_is_told_and_forgotten() {
    let found = marlin_with(&["chat", "-n", "4", "--context", "64"], &format!("{}\nhello\n", "word ".repeat(100)));
    assert!(found.stderr.contains("but the context is 64 tokens"), "{}", found.stderr);
    assert_eq!(found.stderr.matches("generated 4 tokens").count(), 1, "{}", found.stderr);
    assert_eq!(found.code, Some(0));
}

#[test]
fn a_model_without_a_template_cannot_chat() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(format!("{}/{file}", fable()), folder.path().join(file)).unwrap();
    }
    let model = folder.path().to_str().unwrap();
    let error = marlin_with(&["chat", "-m", model], "hello\n").error(1);
    assert!(error.contains("has no chat template"), "{error}");
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let error = marlin(&["run", "-m", model, "hello"]).error(1);
    assert!(error.contains("there is no tokenizer.json beside the weights"), "{error}");
    let ids = ids_file(folder.path(), &reference_ids("tale"));
    let found = marlin(&["run", "-m", model, "--prompt-ids", &ids, "-n", "4", "--json", "--exact"]).json();
    assert_eq!(ids_of(&found["token_ids"]), ids_of(&reference()["greedy"]["tale"]["ids"])[..4]);
    assert_eq!(found["text"], "");
}

#[test]
fn broken_texts_matter_only_where_they_are_wanted() {
    let folder = tempfile::tempdir().unwrap();
    for file in
        ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
    {
        std::fs::copy(format!("{}/{file}", fable()), folder.path().join(file)).unwrap();
    }
    std::fs::write(folder.path().join("chat_template.jinja"), "{% if %}").unwrap();
    let model = folder.path().to_str().unwrap();
    let found = marlin(&["run", "-m", model, "Once", "-n", "2", "--json"]).json();
    assert_eq!(ids_of(&found["token_ids"]).len(), 2);
    for args in [&["run", "--chat", "Once"][..], &["chat"]] {
        let error = marlin_with(&[args, &["-m", model]].concat(), "hello\n").error(1);
        assert!(error.contains("chat_template.jinja"), "{error}");
    }
    std::fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
    let error = marlin(&["run", "-m", model, "Once"]).error(1);
    assert!(error.contains("tokenizer.json"), "{error}");
    let ids = ids_file(folder.path(), &reference_ids("tale"));
    let found = marlin(&["run", "-m", model, "--prompt-ids", &ids, "-n", "2", "--json"]);
    assert!(found.stderr.starts_with("note: the tokenizer is not used, so there is no text: "), "{}", found.stderr);
    assert_eq!(ids_of(&found.json()["token_ids"]).len(), 2);
    let out = folder.path().join("logits.npy");
    marlin(&["logits", model, "--ids", &ids, "--last", "-o", out.to_str().unwrap()]).ok();
    marlin(&["eval", "ppl", model, "--ids", &ids, "--context", "16"]).ok();
}
