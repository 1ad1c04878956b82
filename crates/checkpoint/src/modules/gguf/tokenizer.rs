//! The `tokenizer.json` that a GGUF file's vocabulary amounts to.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::pre_tokenizer::PreTokenizer;
use super::vocabulary::{TokenKind, Vocabulary};
use crate::{Error, Result};

/// The text of a `tokenizer.json` for these tokens.
pub(super) fn tokenizer(vocabulary: &Vocabulary) -> Result<String> {
    let refuse = |why: String| Error::invalid(format!("{} (tokenizer)", vocabulary.metadata.file()), why);
    let mut parts = match vocabulary.model {
        "gpt2" => byte_level(vocabulary).map_err(refuse)?,
        "llama" => sentence_piece(vocabulary)?,
        other => {
            return Err(refuse(format!(
                "tokenizers of the kind {other:?} are not supported (\"gpt2\" and \"llama\" are); use token ids"
            )));
        }
    };
    let bos = affix(vocabulary, "add_bos_token", "bos", parts.add_bos)?;
    let eos = affix(vocabulary, "add_eos_token", "eos", false)?;
    parts.json.insert("version".to_owned(), "1.0".into());
    parts.json.insert("added_tokens".to_owned(), added(vocabulary));
    parts.json.insert("post_processor".to_owned(), template(bos, eos));
    Ok(Value::Object(parts.json).to_string())
}

/// What a kind of tokenizer decides.
struct Parts {
    /// `normalizer`, `pre_tokenizer`, `decoder`, `model`.
    json: Map<String, Value>,
    /// Whether texts begin with a token for that, unless the file says.
    add_bos: bool,
}

/// Ids by text; of two equal texts the first counts.
fn ids<'a>(vocabulary: &Vocabulary<'a>) -> HashMap<&'a str, usize> {
    let mut ids = HashMap::with_capacity(vocabulary.len());
    for (id, (text, _)) in vocabulary.tokens().enumerate() {
        ids.entry(text).or_insert(id);
    }
    ids
}

fn vocab(ids: &HashMap<&str, usize>) -> Value {
    ids.iter().map(|(text, id)| ((*text).to_owned(), Value::from(*id))).collect::<Map<_, _>>().into()
}

fn object(value: Value) -> Map<String, Value> {
    if let Value::Object(map) = value { map } else { Map::new() }
}

/// Byte-level BPE: pairs are merged in the order of a list.
fn byte_level(vocabulary: &Vocabulary) -> std::result::Result<Parts, String> {
    let say = |e: Error| e.to_string();
    let rule = PreTokenizer::find(vocabulary.metadata.text("tokenizer.ggml.pre").map_err(say)?)?;
    let merges = vocabulary.metadata.array("tokenizer.ggml.merges").map_err(say)?;
    let merges = merges.and_then(|array| array.texts());
    let merges = merges.ok_or("key \"tokenizer.ggml.merges\": expected an array of strings, found none")?;
    let mut pairs = Vec::new();
    for merge in merges {
        // The first part may itself begin with a space.
        let second = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let at = second.ok_or_else(|| format!("merge {merge:?} is not two texts with a space between"))?;
        pairs.push(json!([merge[..at], merge[at + 1..]]));
    }
    let json = object(json!({
        "normalizer": rule.normalizer,
        "pre_tokenizer": rule.pre_tokenizer,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": rule.ignore_merges, "vocab": vocab(&ids(vocabulary)), "merges": pairs
        }
    }));
    Ok(Parts { json, add_bos: rule.add_bos })
}

/// SentencePiece's BPE: of all neighbours those are merged first whose union has the greatest score. As a list of merges:
/// every way to cut every token in two tokens, in the order of scores.
fn sentence_piece(vocabulary: &Vocabulary) -> Result<Parts> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let metadata = vocabulary.metadata;
    let expected = || metadata.wrong(SCORES, format!("{} numbers, one for each token", vocabulary.len()));
    let scores = metadata.array(SCORES)?.and_then(|array| array.numbers()).filter(|all| all.len() == vocabulary.len());
    let scores = scores.ok_or_else(expected)?;
    let ids = ids(vocabulary);
    let mut cuts: Vec<(f64, usize, usize, &str, &str)> = Vec::new();
    for ((text, kind), score) in vocabulary.tokens().zip(&scores) {
        if !matches!(kind, TokenKind::Normal) {
            continue;
        }
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                cuts.push((*score, l, r, left, right));
            }
        }
    }
    cuts.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let merges: Vec<Value> = cuts.iter().map(|cut| json!([cut.3, cut.4])).collect();
    let space = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers = vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" })];
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if space {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": "\u{2581}" }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let bytes = vocabulary.tokens().any(|(_, kind)| kind == TokenKind::Byte);
    let json = object(json!({
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": null,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": vocabulary.named("unknown")?,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": bytes,
            "ignore_merges": false, "vocab": vocab(&ids), "merges": merges
        }
    }));
    Ok(Parts { json, add_bos: true })
}

/// The token that texts begin or end with: its text and id.
fn affix<'a>(vocabulary: &Vocabulary<'a>, key: &str, name: &str, default: bool) -> Result<Option<(&'a str, usize)>> {
    let wanted = vocabulary.metadata.bool(&format!("tokenizer.ggml.{key}"))?.unwrap_or(default);
    let token = vocabulary.named(name)?.zip(vocabulary.id(name)?);
    Ok(token.filter(|_| wanted))
}

/// Tokens that are found before the model looks. Control tokens are special.
fn added(vocabulary: &Vocabulary) -> Value {
    let added = vocabulary.tokens().enumerate().filter_map(|(id, (content, kind))| {
        let special = matches!(kind, TokenKind::Control | TokenKind::Unknown);
        (special || kind == TokenKind::UserDefined).then(|| {
            json!({
                "id": id, "content": content, "special": special, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false
            })
        })
    });
    added.collect()
}

/// `post_processor` that puts these tokens around a text.
fn template(bos: Option<(&str, usize)>, eos: Option<(&str, usize)>) -> Value {
    let token = |(text, _): &(&str, usize)| json!({ "SpecialToken": { "id": text, "type_id": 0 } });
    let sequence = |id: &str, kind: usize| json!({ "Sequence": { "id": id, "type_id": kind } });
    let around =
        |inner: Vec<Value>| -> Vec<Value> { bos.iter().map(token).chain(inner).chain(eos.iter().map(token)).collect() };
    let special: Map<String, Value> = bos
        .iter()
        .chain(&eos)
        .map(|(text, id)| ((*text).to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] })))
        .collect();
    json!({
        "type": "TemplateProcessing",
        "single": around(vec![sequence("A", 0)]),
        "pair": around(vec![sequence("A", 0), sequence("B", 1)]),
        "special_tokens": special
    })
}
