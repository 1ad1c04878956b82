//! `run`: answers, and what it says when it cannot.

#![cfg(feature = "builtin-model")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use std::io::Read;
use std::process::Stdio;

fn tale() -> String {
    reference()["prompt_text"]["tale"].as_str().unwrap().to_owned()
}

#[test]
fn greedy_text_and_ids_are_those_of_transformers() {
    let reference = reference();
    for mode in [&["--exact"][..], &[]] {
        for name in ["tale", "chat"] {
            let prompt = reference["prompt_text"][name].as_str().unwrap();
            let model = fable();
            let args = [&["run", "-m", &model, prompt, "--greedy", "-n", "64", "--json"], mode].concat();
            let found = marlin(&args).json();
            assert_eq!(found["token_ids"], reference["greedy"][name]["ids"], "{name} {mode:?}");
            assert_eq!(found["text"], reference["greedy"][name]["text"], "{name} {mode:?}");
        }
    }
}

#[test]
fn text_streams_to_standard_output_and_numbers_to_standard_error() {
    let found = marlin(&["run", "-m", &fable(), &tale(), "-n", "64"]);
    assert!(found.stderr.contains("prompt 23 tokens at "), "{}", found.stderr);
    for part in ["generated 64 tokens at ", "first token after ", "peak memory ", "loaded in "] {
        assert!(found.stderr.contains(part), "{part}: {}", found.stderr);
    }
    assert_eq!(found.ok().trim_end_matches('\n'), reference()["greedy"]["tale"]["text"].as_str().unwrap());
}

#[test]
fn json_has_everything() {
    let found = marlin(&["run", "-m", &fable(), "--json", "-n", "3", "--logprobs", "2", "The king"]).json();
    assert_eq!(found["model"], "fable-glm4-moe-lite");
    assert_eq!(found["finish_reason"], "length");
    assert_eq!(ids_of(&found["token_ids"]).len(), 3);
    let logprobs = found["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), 3);
    for (logprob, id) in logprobs.iter().zip(found["token_ids"].as_array().unwrap()) {
        assert_eq!(&logprob["token_id"], id);
        assert_eq!(
            logprob["top"][0],
            serde_json::json!({
                "token_id": id, "text": logprob["text"], "logprob": logprob["logprob"]
            })
        );
        assert!(logprob["top"][1]["logprob"].as_f64() < logprob["logprob"].as_f64());
    }
    let count = |key: &str| found[key].as_u64().unwrap();
    assert_eq!((count("steps"), count("steps_ahead"), count("discarded_tokens")), (3, 0, 0));
    assert_eq!(found["forced_waits"], serde_json::json!({}));
    let metrics = &found["metrics"];
    assert_eq!((metrics["prompt_tokens"].as_u64(), metrics["generated_tokens"].as_u64()), (Some(2), Some(3)));
    for key in [
        "prompt_tokens_per_second",
        "generated_tokens_per_second",
        "time_to_first_token_seconds",
        "start_to_first_token_seconds",
        "load_seconds",
    ] {
        assert!(metrics[key].as_f64().unwrap() > 0.0, "{key}");
    }
}

#[test]
fn prompts_come_as_ids_text_or_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let file = ids_file(folder.path(), &reference_ids("tale"));
    let greedy = &reference()["greedy"]["tale"]["ids"];
    let expected = &greedy.as_array().unwrap()[..8];
    let text = tale();
    for (args, input) in
        [(vec!["--prompt-ids", file.as_str()], String::new()), (vec!["-"], format!("{text}\n")), (vec![], text.clone())]
    {
        let model = fable();
        let all = [&["run", "-m", &model, "--json", "-n", "8", "--exact"], args.as_slice()].concat();
        assert_eq!(marlin_with(&all, &input).json()["token_ids"].as_array().unwrap(), expected, "{args:?}");
    }
}

#[test]
fn chat_uses_the_template() {
    let reference = reference();
    let found = marlin(&[
        "run",
        "-m",
        &fable(),
        "Tell me a story. A fox met a crow by the river.",
        "--system",
        "You tell short tales.",
        "-n",
        "16",
        "--json",
        "--exact",
    ])
    .json();
    // The reference's prompt is what the template gives for these messages.
    let prompt = reference["prompt_text"]["chat"].as_str().unwrap();
    if prompt.ends_with("<|assistant|>") {
        assert_eq!(ids_of(&found["token_ids"]), ids_of(&reference["greedy"]["chat"]["ids"])[..16]);
    }
    assert!(found["metrics"]["prompt_tokens"].as_u64().unwrap() > 20);
}

#[test]
fn answers_end_at_stop_strings_and_ids() {
    let text = reference()["greedy"]["tale"]["text"].as_str().unwrap().to_owned();
    let found =
        marlin(&["run", "-m", &fable(), &tale(), "--exact", "--json", "--stop", "little b", "--stop", "xyz"]).json();
    assert_eq!(found["text"].as_str(), text.split("little b").next());
    assert_eq!((found["finish_reason"].as_str(), found["stopped_by"].as_str()), (Some("stop"), Some("little b")));
    let found = marlin(&["run", "-m", &fable(), &tale(), "--exact", "--json", "--stop-id", "1000"]).json();
    assert_eq!(ids_of(&found["token_ids"]), [258, 549, 1000]);
    assert_eq!(found["text"], " a very");
    // The built-in model's own end.
    let forced = ["run", "King", "--json", "--logit-bias", "4087=1000", "-n", "3"];
    let found = marlin(&forced).json();
    assert_eq!((found["token_ids"].to_string(), &found["stopped_by"]), ("[4087]".into(), &"<|endoftext|>".into()));
    let found = marlin(&[&forced[..], &["--ignore-eos"]].concat()).json();
    assert_eq!((ids_of(&found["token_ids"]).len(), &found["finish_reason"]), (3, &"length".into()));
}

#[test]
fn the_same_seed_gives_the_same_answer() {
    let run = |extra: &[&str]| marlin(&[&["run", "The old king", "--json", "-n", "24"], extra].concat()).json();
    let first = run(&["--temperature", "0.9", "--top-p", "0.95", "--seed", "7"]);
    assert_eq!(first["seed"], 7);
    assert_eq!(first["token_ids"], run(&["--temperature", "0.9", "--top-p", "0.95", "--seed", "7"])["token_ids"]);
    assert_ne!(first["token_ids"], run(&["--temperature", "0.9", "--top-p", "0.95", "--seed", "8"])["token_ids"]);
    // A chosen top-k means that something is to be drawn.
    assert_ne!(run(&["--greedy"])["token_ids"], run(&["--top-k", "50", "--seed", "1"])["token_ids"]);
    assert_eq!(run(&["--greedy"])["token_ids"], run(&["--top-k", "1"])["token_ids"]);
    let penalised = run(&["--repetition-penalty", "1.5", "--presence-penalty", "0.5", "--frequency-penalty", "-0.1"]);
    assert_ne!(penalised["token_ids"], run(&[])["token_ids"]);
}

#[test]
fn verbose_tells_the_settings() {
    let found = marlin(&["run", "Once", "-n", "1", "--verbose", "--temperature", "0.5", "--context", "1K"]);
    assert!(
        found.stderr.contains("sampling: temperature 0.5, top-k 0, top-p 1, min-p 0, at most 1 tokens"),
        "{}",
        found.stderr
    );
    assert!(found.stderr.contains("context 1024 tokens"), "{}", found.stderr);
}

#[test]
fn a_closed_pipe_is_no_error() {
    let mut child = command(&["run", "Once upon a time", "-n", "2000", "--ignore-eos"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 10]).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), ""));
}

#[test]
fn bad_models_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().to_str().unwrap();
    for (model, said) in [
        (
            "nothing",
            "model \"nothing\": there is no such file or folder, and it is no name of the hub (org/name); \"fable\" is the built-in model",
        ),
        ("org/model", "org/model is not in the cache (/nonexistent); fetch it first: metal-marlin pull org/model"),
        (
            "org/model@v1",
            "org/model@v1 is not in the cache (/nonexistent); fetch it first: metal-marlin pull org/model@v1",
        ),
    ] {
        assert_eq!(marlin(&["run", "-m", model, "x"]).error(1), said);
    }
    let error = marlin(&["run", "-m", empty, "x"]).error(1);
    assert!(
        error.ends_with(
            "config.json: the file is missing; is this a checkpoint's folder? (metal-marlin pull downloads one)"
        ),
        "{error}"
    );
    // A checkpoint that is cut off.
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(format!("{}/{file}", fable()), folder.path().join(file)).unwrap();
    }
    let weights = std::fs::read(format!("{}/model.safetensors", fable())).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), &weights[..weights.len() - 100]).unwrap();
    let error = marlin(&["run", "-m", empty, "x"]).error(1);
    assert!(error.contains("model.safetensors"), "{error}");
}

#[test]
fn bad_requests_are_refused() {
    let long = "word ".repeat(5000);
    let folder = tempfile::tempdir().unwrap();
    let odd = folder.path().join("odd.i32");
    std::fs::write(&odd, [1, 2, 3]).unwrap();
    let negative = ids_file(folder.path(), &[5, -1]);
    for (args, said) in [
        (
            vec![long.as_str()],
            "prompt tokens and 1 to generate are 5003, but the context is 4096 tokens; shorten the prompt",
        ),
        (vec!["x", "-n", "5000"], "1 prompt tokens and 5000 to generate are 5001, but the context is 4096 tokens"),
        (vec!["x", "--context", "9K"], "context: expected 1 to 4096 tokens, found 9216"),
        (vec!["x", "--top-p", "1.5"], "top_p: expected a number from 0 to 1, found 1.5"),
        (vec!["x", "--temperature", "-1"], "temperature: expected a number from 0 to 100, found -1"),
        (vec!["x", "--logit-bias", "9999=1"], "logit_bias: expected tokens below 4096, found 9999"),
        (vec![""], "the prompt is empty; a model needs at least one token to continue from"),
        (vec!["x", "--stop-id", "9999"], "stop_tokens: expected tokens below 4096, found 9999"),
        (vec!["--prompt-ids", odd.to_str().unwrap()], "expected 32-bit little-endian token ids, found 3 bytes"),
        (vec!["--prompt-ids", &negative], "id 1 is -1; expected token ids from 0"),
        (vec!["--prompt-ids", "no-such-file"], "no-such-file: No such file"),
    ] {
        let error = marlin(&[&["run"], args.as_slice()].concat()).error(1);
        assert!(error.contains(said), "{error}");
    }
    let unknown = ids_file(folder.path(), &[5, 70_000]);
    let error = marlin(&["run", "--prompt-ids", &unknown]).error(1);
    assert_eq!(error, "prompt token 1 is 70000, but the model's vocabulary has 4096 tokens");
    for (args, said) in [
        (vec!["x", "--device", "tpu"], "expected auto, cpu, cuda or metal"),
        (vec!["x", "--context", "-3"], "unexpected argument '-3' found"),
        (vec!["x", "--kv-tokens", "many"], "expected a number of tokens such as 4096 or 32K, found \"many\""),
        (vec!["x", "--threads", "100000"], "expected a number of threads from 0 to 1024, found \"100000\""),
        (vec!["x", "--kv-type", "int4"], "[possible values: auto, f32, bf16, f16, int8, fp8]"),
        (vec!["x", "--greedy", "--top-k", "3"], "cannot be used with '--top-k <K>'"),
        (vec!["x", "--no-such-option"], "unexpected argument '--no-such-option' found"),
    ] {
        let found = marlin(&[&["run"], args.as_slice()].concat());
        assert!(found.stderr.contains(said), "{}", found.stderr);
        found.error(2);
    }
}

#[test]
fn options_may_come_from_the_environment() {
    let mut command = command(&["run", "Once", "--json"]);
    command.env("MARLIN_MAX_TOKENS", "2").env("MARLIN_EXACT", "1").env("MARLIN_THREADS", "1");
    assert_eq!(ids_of(&finish(command, "").json()["token_ids"]).len(), 2);
    let mut command = common::command(&["run", "Once"]);
    command.env("MARLIN_DEVICE", "tpu");
    assert!(finish(command, "").error(2).contains("expected auto, cpu, cuda or metal"));
}

/// A GPU that this system cannot have is an error where it is asked for by name, in one line; `auto` computes all the same.
#[test]
fn a_gpu_that_is_not_there_is_told_in_one_line() {
    let (device, why) =
        if cfg!(target_os = "macos") { ("cuda", "macOS has no CUDA") } else { ("metal", "only macOS has Metal") };
    let error = marlin(&["run", "Once", "--device", device]).error(1);
    assert_eq!(error, format!("the GPU cannot be used: {why}"));
}

/// The model's tensors with the last norm stored in F64.
fn with_f64() -> Vec<u8> {
    use marlin_checkpoint::TensorSource;
    let file = format!("{}/model.safetensors", fable());
    let store = marlin_checkpoint::Store::open(file.as_ref()).unwrap();
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for info in store.tensors() {
        let tensor = store.tensor(&info.name).unwrap();
        let start = data.len();
        let mut dtype = info.dtype.name();
        if info.name == "model.norm.weight" {
            dtype = "F64";
            data.extend(tensor.to_f32().unwrap().iter().flat_map(|v| f64::from(*v).to_le_bytes()));
        } else {
            data.extend_from_slice(&tensor.data);
        }
        let entry = serde_json::json!({"dtype": dtype, "shape": info.shape, "data_offsets": [start, data.len()]});
        header.insert(info.name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

#[test]
fn what_is_not_computed_as_stored_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().to_str().unwrap();
    std::fs::copy(format!("{}/tokenizer.json", fable()), folder.path().join("tokenizer.json")).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), with_f64()).unwrap();
    let config = std::fs::read_to_string(format!("{}/config.json", fable())).unwrap();
    for tied in [false, true] {
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        config["tie_word_embeddings"] = tied.into();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let found = marlin(&["run", "-m", model, "Once", "-n", "2"]);
        assert_eq!(found.code, Some(0), "{}", found.stderr);
        let converted = "note: 1 tensor is stored in F64 and computed with in F32\n";
        assert_eq!(found.stderr.matches(converted).count(), 1, "{}", found.stderr);
        assert_eq!(found.stderr.matches("note: lm_head.weight is ignored").count(), usize::from(tied));
    }
}
