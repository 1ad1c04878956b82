//! The `tokenizer.json` that a GGUF file's vocabulary amounts to.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::pre_tokenizer::PreTokenizer;
use super::vocabulary::{TokenKind, Vocabulary};
use crate::{Error, Result};

/// Longest token (bytes) that is cut in two in every way: no trained vocabulary has longer ones.
const LONGEST: usize = 1024;

/// A `tokenizer.json`. Written from the file's own texts: as a tree of JSON values a large vocabulary would take hundreds
/// of megabytes.
#[derive(Serialize)]
struct Json<'a> {
    version: &'static str,
    added_tokens: Value,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Model<'a>,
}

/// The model of a [`Json`]: what is not named here has its default.
#[derive(Serialize)]
struct Model<'a> {
    r#type: &'static str,
    unk_token: Option<&'a str>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: BTreeMap<&'a str, usize>,
    merges: Vec<(&'a str, &'a str)>,
}

/// What a kind of tokenizer decides.
struct Parts<'a> {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Model<'a>,
    /// Whether texts begin with a token for that, unless the file says.
    add_bos: bool,
}

/// The text of a `tokenizer.json` for these tokens.
pub(super) fn tokenizer(vocabulary: &Vocabulary) -> Result<String> {
    let refuse = |why: String| Error::invalid(format!("{} (tokenizer)", vocabulary.metadata.file()), why);
    let parts = match vocabulary.model {
        "gpt2" => byte_level(vocabulary, refuse)?,
        "llama" => sentence_piece(vocabulary)?,
        other => {
            return Err(refuse(format!(
                "tokenizers of the kind {other:?} are not supported (\"gpt2\" and \"llama\" are); use token ids"
            )));
        }
    };
    let bos = affix(vocabulary, "add_bos_token", "bos", parts.add_bos)?;
    let eos = affix(vocabulary, "add_eos_token", "eos", false)?;
    let json = Json {
        version: "1.0",
        added_tokens: added(vocabulary),
        normalizer: parts.normalizer,
        pre_tokenizer: parts.pre_tokenizer,
        post_processor: template(bos, eos),
        decoder: parts.decoder,
        model: parts.model,
    };
    serde_json::to_string(&json).map_err(|e| refuse(e.to_string()))
}

/// Ids by text; of two equal texts the first counts.
fn ids<'a>(vocabulary: &Vocabulary<'a>) -> BTreeMap<&'a str, usize> {
    let mut ids = BTreeMap::new();
    for (id, (text, _)) in vocabulary.tokens().enumerate() {
        ids.entry(text).or_insert(id);
    }
    ids
}

/// Byte-level BPE: pairs are merged in the order of a list.
fn byte_level<'a>(vocabulary: &Vocabulary<'a>, refuse: impl Fn(String) -> Error) -> Result<Parts<'a>> {
    const MERGES: &str = "tokenizer.ggml.merges";
    let rule = PreTokenizer::find(vocabulary.metadata.text("tokenizer.ggml.pre")?).map_err(&refuse)?;
    let all = vocabulary.metadata.array(MERGES)?.and_then(|array| array.texts());
    let all = all.ok_or_else(|| vocabulary.metadata.wrong(MERGES, "an array of strings"))?;
    let mut merges = Vec::new();
    for merge in all {
        // The first part may itself begin with a space.
        let second = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let at = second.ok_or_else(|| refuse(format!("merge {merge:?} is not two texts with a space between")))?;
        merges.push((&merge[..at], &merge[at + 1..]));
    }
    let model = Model {
        r#type: "BPE",
        unk_token: None,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: rule.ignore_merges,
        vocab: ids(vocabulary),
        merges,
    };
    Ok(Parts {
        normalizer: rule.normalizer,
        pre_tokenizer: rule.pre_tokenizer,
        decoder: json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
        model,
        add_bos: rule.add_bos,
    })
}

/// SentencePiece's BPE: of all neighbours those are merged first whose union has the greatest score. As a list of merges:
/// every way to cut every token in two tokens, in the order of scores.
fn sentence_piece<'a>(vocabulary: &Vocabulary<'a>) -> Result<Parts<'a>> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let metadata = vocabulary.metadata;
    let expected = || metadata.wrong(SCORES, format!("{} numbers, one for each token", vocabulary.len()));
    let scores = metadata.array(SCORES)?.and_then(|array| array.numbers()).filter(|all| all.len() == vocabulary.len());
    let scores = scores.ok_or_else(expected)?;
    let vocab = ids(vocabulary);
    let mut cuts: Vec<(f64, usize, usize, &str, &str)> = Vec::new();
    for ((text, kind), score) in vocabulary.tokens().zip(&scores) {
        if kind != TokenKind::Normal {
            continue;
        }
        if text.len() > LONGEST {
            let why = format!("a token of {} bytes; expected at most {LONGEST}", text.len());
            return Err(Error::invalid(format!("{} (tokenizer)", metadata.file()), why));
        }
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(&l), Some(&r)) = (vocab.get(left), vocab.get(right)) {
                cuts.push((*score, l, r, left, right));
            }
        }
    }
    cuts.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
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
    let model = Model {
        r#type: "BPE",
        unk_token: vocabulary.named("unknown")?,
        fuse_unk: true,
        byte_fallback: vocabulary.tokens().any(|(_, kind)| kind == TokenKind::Byte),
        ignore_merges: false,
        vocab,
        merges: cuts.iter().map(|cut| (cut.3, cut.4)).collect(),
    };
    Ok(Parts {
        normalizer: json!({ "type": "Sequence", "normalizers": normalizers }),
        pre_tokenizer: Value::Null,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        model,
        add_bos: true,
    })
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
