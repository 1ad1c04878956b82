//! Ids and texts compared with the Python `tokenizers` package (data/text/tokens.py wrote the expectations), and
//! streaming decoding compared with decoding at once.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use marlin_checkpoint::text::{Tokenizer, TokenizerConfig};
use serde_json::{Value, json};

fn fable() -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/fable-glm4-moe-lite/tokenizer.json");
    let config = r#"{"eos_token": "<|endoftext|>", "pad_token": {"content": "<|endoftext|>"}}"#;
    let config = TokenizerConfig::parse("tokenizer_config.json", config).unwrap();
    Tokenizer::from_bytes("tokenizer.json", &std::fs::read(path).unwrap(), Some(&config)).unwrap()
}

fn cases() -> Value {
    serde_json::from_str(include_str!("data/text/tokens.json")).unwrap()
}

/// The tokenizers of `cases`, with their names and cases.
fn tokenizers(cases: &Value) -> Vec<(&str, Tokenizer, &Value)> {
    let open = |json: &Value| match json {
        Value::Null => fable(),
        json => Tokenizer::from_bytes("tokenizer.json", json.to_string().as_bytes(), None).unwrap(),
    };
    cases.as_object().unwrap().iter().map(|(name, case)| (name.as_str(), open(&case["json"]), case)).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// The pieces of a stream, put together.
fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut decoder = tokenizer.stream_decoder(skip_special);
    let mut text: String = ids.iter().filter_map(|&id| decoder.push(id)).collect();
    text.extend(decoder.finish());
    assert_eq!(decoder.finish(), None);
    text
}

#[test]
fn ids_and_texts_agree_with_python() {
    let cases = cases();
    for (name, tokenizer, case) in tokenizers(&cases) {
        for row in case["encode"].as_array().unwrap() {
            let found = tokenizer.encode(row[0].as_str().unwrap(), row[1].as_bool().unwrap()).unwrap();
            assert_eq!(found, ids(&row[2]), "{name}: {row}");
        }
        for row in case["decode"].as_array().unwrap() {
            let (ids, skip, text) = (ids(&row[0]), row[1].as_bool().unwrap(), row[2].as_str().unwrap());
            assert_eq!(tokenizer.decode(&ids, skip).unwrap(), text, "{name}: {row}");
            assert_eq!(streamed(&tokenizer, &ids, skip), text, "{name}, streamed: {row}");
        }
    }
}

/// Numbers that look random, the same every time (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

#[test]
fn pieces_of_random_ids_add_up() {
    let cases = cases();
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for (name, tokenizer, _) in tokenizers(&cases) {
        let n = tokenizer.vocab_size();
        for round in 0..if name == "fable" { 3000 } else { 1000 } {
            // Small alphabets make unfinished characters and runs likely.
            let most = if round % 2 == 0 { n + 3 } else { 260.min(n) };
            let ids: Vec<u32> = (0..numbers.below(60)).map(|_| numbers.below(most) as u32).collect();
            let skip = round % 3 == 0;
            let whole = tokenizer.decode(&ids, skip).unwrap();
            assert_eq!(streamed(&tokenizer, &ids, skip), whole, "{name}: {ids:?}");
        }
    }
}

#[test]
fn characters_are_never_split() {
    let tokenizer = fable();
    let text = "na\u{ef}ve \u{4f60}\u{597d} \u{1f98a}!";
    let ids = tokenizer.encode(text, false).unwrap();
    assert!(ids.len() > text.chars().count() / 2);
    let mut decoder = tokenizer.stream_decoder(false);
    let pieces: Vec<Option<String>> = ids.iter().map(|&id| decoder.push(id)).collect();
    assert!(pieces.iter().any(Option::is_none), "some token is only part of a character");
    assert!(pieces.iter().flatten().all(|p| !p.is_empty() && !p.contains('\u{fffd}')));
    assert_eq!(pieces.into_iter().flatten().collect::<String>(), text);
    assert_eq!(decoder.finish(), None);

    // An unfinished fox is held back until the end, and then is one replacement character.
    let fox = tokenizer.encode("\u{1f98a}", false).unwrap();
    assert!(fox.len() > 1);
    assert!(fox[..fox.len() - 1].iter().all(|&id| decoder.push(id).is_none()));
    assert_eq!(decoder.finish().as_deref(), Some("\u{fffd}"));
    // ... or as soon as what follows shows that it will not be finished.
    assert_eq!(decoder.push(fox[0]), None);
    let a = tokenizer.encode("a", false).unwrap()[0];
    assert_eq!(decoder.push(a).as_deref(), Some("\u{fffd}a"));
}

#[test]
fn a_long_stream_takes_linear_time() {
    let tokenizer = fable();
    let mut decoder = tokenizer.stream_decoder(true);
    let mut numbers = Numbers(42);
    let started = std::time::Instant::now();
    let mut bytes = 0;
    for _ in 0..1_000_000 {
        bytes += decoder.push(numbers.below(4096) as u32).map_or(0, |piece| piece.len());
    }
    assert!(bytes > 1_000_000);
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

#[test]
fn reference_texts() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/fable-glm4-moe-lite/reference.json");
    let reference: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let tokenizer = fable();
    for (name, greedy) in reference["greedy"].as_object().unwrap() {
        assert_eq!(streamed(&tokenizer, &ids(&greedy["ids"]), true), greedy["text"].as_str().unwrap(), "{name}");
    }
}

#[test]
fn special_tokens() {
    let tokenizer = fable();
    assert_eq!(tokenizer.vocab_size(), 4096);
    assert_eq!(tokenizer.token_to_id("<|user|>"), Some(4091));
    assert_eq!(tokenizer.id_to_token(4091).as_deref(), Some("<|user|>"));
    assert_eq!((tokenizer.id_to_token(4096), tokenizer.token_to_id("no such token")), (None, None));
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (None, Some(4087), Some(4087)));
    assert!(tokenizer.is_special(4094) && !tokenizer.is_special(65));
    assert_eq!(tokenizer.special_tokens().len(), 9);
    assert_eq!(tokenizer.encode_chat("[gMASK]<sop><|user|>").unwrap(), [4088, 4089, 4091]);
    assert_eq!(tokenizer.encode("<|user|>", true).unwrap(), [4091]);
}

#[test]
fn a_broken_tokenizer_names_the_file() {
    let whole = cases()["llama2"]["json"].clone();
    let with = |key: &str, value: Value| {
        let mut json = whole.clone();
        json[key] = value;
        json.to_string()
    };
    let half = &whole.to_string()[..400];
    for (json, expected) in [
        ("", "not valid JSON"),
        (half, "not valid JSON"),
        ("[]", "no \"model\""),
        ("{\"model\": {\"type\": \"Nope\"}}", "expected a Hugging Face fast tokenizer"),
        (&with("model", json!({"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]})), "expected a Hugging Face"),
        (&with("decoder", json!({"type": "CTC"})), "decoder: \"CTC\" is not supported"),
        (&with("decoder", json!({"type": "Strip", "content": "ab"})), "not one character"),
        (
            &with(
                "pre_tokenizer",
                json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}),
            ),
            "expected a Hugging Face",
        ),
    ] {
        let error = Tokenizer::from_bytes("m/tokenizer.json", json.as_bytes(), None).unwrap_err().to_string();
        assert!(error.starts_with("m/tokenizer.json: ") && error.contains(expected), "{error}");
    }
    assert!(Tokenizer::from_bytes("m/tokenizer.json", &[0xff, 0xfe], None).is_err());
}

#[test]
fn endless_blanks_are_refused() {
    let tokenizer = fable();
    assert!(tokenizer.encode(&(" ".repeat(400_000) + "x"), false).is_ok());
    let error = tokenizer.encode(&("x".to_owned() + &"\n ".repeat(300_000)), false).unwrap_err().to_string();
    assert!(error.contains("at most 500000 whitespace characters"), "{error}");
}
