//! What needs a look inside: how text is cut into words, compared with the Python package's cuts.

use serde_json::Value;

use super::Tokenizer;

const EXPECTED: &str = include_str!("../../tests/data/text/pretokenizers.json");

fn lengths(value: &Value) -> Vec<usize> {
    let one = |v: &Value| v.as_u64().unwrap() as usize;
    let run = |v: &Value| match v.as_array() {
        Some(pair) => vec![one(&pair[0]); one(&pair[1])],
        None => vec![one(v)],
    };
    value.as_array().unwrap().iter().flat_map(run).collect()
}

fn text(entry: &Value) -> String {
    match entry.as_array() {
        Some(pair) => pair[0].as_str().unwrap().repeat(pair[1].as_u64().unwrap() as usize),
        None => entry.as_str().unwrap().to_owned(),
    }
}

#[test]
fn words_agree_with_the_python_package() {
    let expected: Value = serde_json::from_str(EXPECTED).unwrap();
    let corpus: Vec<String> = expected["corpus"].as_array().unwrap().iter().map(text).collect();
    assert!(corpus.len() > 300);
    let mut wrong = Vec::new();
    for (name, case) in expected["tokenizers"].as_object().unwrap() {
        let tokenizer = Tokenizer::from_bytes("tokenizer.json", case["json"].to_string().as_bytes(), None).unwrap();
        for (i, text) in corpus.iter().enumerate() {
            let normal = case["normalized"][i.to_string()].as_str().unwrap_or(text);
            let encoding = tokenizer.inner.hf.encode(text.as_str(), false).unwrap();
            // Ids are bytes in these tokenizers.
            let bytes: Vec<u8> = encoding.get_ids().iter().map(|&id| id as u8).collect();
            if bytes != normal.as_bytes() {
                wrong.push(format!("{name}: {text:?}: normalised to {:?}", String::from_utf8_lossy(&bytes)));
                continue;
            }
            let mut words: Vec<Vec<u8>> = Vec::new();
            for (byte, word) in bytes.iter().zip(encoding.get_word_ids()) {
                let word = word.unwrap() as usize;
                words.resize(words.len().max(word + 1), Vec::new());
                words[word].push(*byte);
            }
            let found: Vec<usize> = words.iter().map(|w| String::from_utf8_lossy(w).chars().count()).collect();
            if found != lengths(&case["words"][i]) {
                wrong.push(format!("{name}: {text:?}: words {found:?}, Python has {}", case["words"][i]));
            }
            assert_eq!(tokenizer.encode(text, false).unwrap(), encoding.get_ids());
            assert_eq!(tokenizer.decode(encoding.get_ids(), false).unwrap(), normal);
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
