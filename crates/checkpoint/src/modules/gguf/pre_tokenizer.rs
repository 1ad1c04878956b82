//! How a text is cut into pieces before pairs are merged: `tokenizer.ggml.pre` names the rule, the rules are those of the
//! tokenizers that the names stand for.

use serde_json::{Value, json};

/// Llama 3, with `D` for the digits that may stand together.
const LETTERS_AND_DIGITS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|D| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A rule.
pub(super) struct PreTokenizer {
    /// `normalizer` of a `tokenizer.json`.
    pub normalizer: Value,
    /// `pre_tokenizer` of a `tokenizer.json`.
    pub pre_tokenizer: Value,
    /// Whether a piece that is a token is that token, however its pairs would be merged.
    pub ignore_merges: bool,
    /// Whether a text begins with the token for that, unless the file says.
    pub add_bos: bool,
}

/// The names that are known.
const KNOWN: &str = "llama-bpe, llama3, qwen2, deepseek-r1-qwen, glm4, chatglm-bpe, gpt-2, smollm, default";

impl PreTokenizer {
    /// The rule called `name`, or why it cannot be followed.
    pub fn find(name: Option<&str>) -> Result<Self, String> {
        let Some(name) = name else {
            let why = "the file does not say how texts are cut into pieces (it was made before that was written down); convert the model again with a newer program";
            return Err(why.to_owned());
        };
        Ok(match name {
            "llama-bpe" | "llama3" | "llama-v3" => {
                Self { ignore_merges: true, add_bos: true, ..Self::split(r"\p{N}{1,3}") }
            }
            // Published with this normaliser, which changes only texts that are not composed already.
            "qwen2" | "deepseek-r1-qwen" => Self { normalizer: json!({ "type": "NFC" }), ..Self::split(r"\p{N}") },
            "glm4" | "chatglm-bpe" => Self::split(r"\p{N}{1,3}"),
            "gpt-2" => Self::sequence(vec![]),
            "smollm" => Self::sequence(vec![json!({ "type": "Digits", "individual_digits": true })]),
            "default" => Self::sequence(vec![
                pattern(r"[\p{P}\$\+<=>\^~\|`]+"),
                pattern(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
                pattern(r"\p{N}+"),
                pattern(r"[0-9][0-9][0-9]"),
                bytes(false),
            ]),
            other => {
                return Err(format!(
                    "the rule {other:?} for cutting texts into pieces is not known, and any other would give wrong tokens (known: {KNOWN}); use the model's safetensors version, or token ids"
                ));
            }
        })
    }

    /// Llama 3's pattern, then bytes.
    fn split(digits: &str) -> Self {
        Self::sequence(vec![pattern(&LETTERS_AND_DIGITS.replace('D', digits)), bytes(false)])
    }

    /// `steps`, then GPT-2's pattern if they do not end with bytes.
    fn sequence(mut steps: Vec<Value>) -> Self {
        if steps.last().is_none_or(|last| last["type"] != "ByteLevel") {
            steps.push(bytes(true));
        }
        let pre_tokenizer = json!({ "type": "Sequence", "pretokenizers": steps });
        Self { normalizer: Value::Null, pre_tokenizer, ignore_merges: false, add_bos: false }
    }
}

fn pattern(regex: &str) -> Value {
    json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false })
}

/// Bytes as printable characters, with or without GPT-2's pattern before.
fn bytes(pattern: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": pattern })
}
