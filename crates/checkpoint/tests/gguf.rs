//! GGUF files as checkpoints: configuration, small files, and tokenizers against those of the models they were made from.
#![allow(clippy::unwrap_used, clippy::panic)] // its helpers are tests too

use std::path::{Path, PathBuf};

use marlin_checkpoint::text::{Tokenizer, TokenizerConfig};
use marlin_checkpoint::{Checkpoint, Folder};

fn shared(part: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(part);
    if !path.exists() {
        eprintln!("SKIPPED: {} is not there", path.display());
        return None;
    }
    Some(path)
}

fn tokenizer(folder: &Folder) -> Tokenizer {
    let config = folder.require_text("tokenizer_config.json").unwrap();
    let config = TokenizerConfig::parse("tokenizer_config.json", &config).unwrap();
    let json = folder.require_text("tokenizer.json").unwrap();
    Tokenizer::from_bytes(&folder.describe("tokenizer.json"), json.as_bytes(), Some(&config)).unwrap()
}

#[test]
fn tokenizers_are_those_of_the_models() {
    let (Some(files), Some(models), Some(text)) = (shared("interop/gguf"), shared("models"), shared("text")) else {
        return;
    };
    let text = std::fs::read_to_string(text.join("fable-heldout.txt")).unwrap();
    let text = text.get(..200_000).unwrap_or(&text);
    let chat = "[gMASK]<sop><|system|>\nBe kind.<|user|>\n1234 Ärger,\t\u{1f98a}  naïve\r\n\r\n<|assistant|><think></think>don't";
    for (file, model) in [
        ("fable-llama-Q4_0.gguf", "fable-llama"),
        ("fable-qwen3-Q3_K_M.gguf", "fable-qwen3"),
        ("fable-qwen2-moe-Q8_0.gguf", "fable-qwen2-moe"),
        ("fable-glm4-moe-lite-Q4_K_M.gguf", "fable-glm4-moe-lite"),
    ] {
        let (found, original) =
            (Checkpoint::open(files.join(file)).unwrap(), Checkpoint::open(models.join(model)).unwrap());
        let (a, b) = (tokenizer(&found.folder), tokenizer(&original.folder));
        for text in [text, chat] {
            for special in [false, true] {
                let ids = b.encode(text, special).unwrap();
                assert_eq!(a.encode(text, special).unwrap(), ids, "{file}");
                assert_eq!(a.decode(&ids, special).unwrap(), b.decode(&ids, special).unwrap(), "{file}");
            }
        }
        assert_eq!(a.special_tokens(), b.special_tokens());
        assert_eq!((a.vocab_size(), a.eos(), a.pad()), (b.vocab_size(), b.eos(), b.pad()));
        let template = |c: &Checkpoint| c.folder.text("chat_template.jinja").unwrap();
        assert_eq!(template(&found), template(&original), "{file}");
        // The name of the next speaker ends an answer too.
        assert_eq!(found.generation.eos, [4087, 4091, 4093], "{file}");
        assert_eq!(found.name, file.strip_suffix(".gguf").unwrap());
        let config = found.folder.require_text("config.json").unwrap();
        assert!(config.contains("\"model_type\""), "{config}");
        assert!(found.folder.contains("tokenizer.json") && !found.folder.contains("generation_config.json"));
    }
}
