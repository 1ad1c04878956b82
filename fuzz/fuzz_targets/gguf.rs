//! Any bytes as a GGUF file: refused, or every tensor lies within the file, no two share a byte, and configuration,
//! tokenizer and modules are made or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use marlin_checkpoint::Checkpoint;
use marlin_checkpoint::container::gguf::GgufFile;
use marlin_checkpoint::text::Tokenizer;
use marlin_checkpoint::{LatentSizes, TensorSource};

fuzz_target!(|input: &[u8]| {
    let Ok(file) = GgufFile::from_bytes("input", input.to_vec().into()) else { return };
    let mut total = 0;
    for info in file.store.tensors() {
        let tensor = file.store.tensor(&info.name).expect("listed");
        assert_eq!(tensor.data.len(), info.bytes());
        total += info.bytes();
        for i in [0, 1, usize::MAX] {
            let _ = tensor.index(i);
        }
    }
    assert!(total <= input.len(), "tensors share bytes");
    let Ok(checkpoint) = Checkpoint::from_gguf("input", file) else { return };
    for name in ["config.json", "tokenizer_config.json", "chat_template.jinja"] {
        let _ = checkpoint.folder.text(name);
    }
    if let Ok(Some(json)) = checkpoint.folder.text("tokenizer.json")
        && let Ok(tokenizer) = Tokenizer::from_bytes("tokenizer.json", json.as_bytes(), None)
    {
        let _ = tokenizer.encode("Hello, world 123", true).map(|ids| tokenizer.decode(&ids, false));
    }
    let Ok(modules) = checkpoint.modules() else { return };
    let hidden = checkpoint.config.usize("hidden_size").unwrap_or(1);
    for info in checkpoint.store.tensors() {
        let _ = modules.ignores(&info.name);
    }
    for name in ["model.embed_tokens", "lm_head", "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.experts.1.up_proj"] {
        for rows in [1, 2, 4, 8, 64] {
            let Ok(found) = modules.linear(name, [rows, hidden]) else { continue };
            if let Ok(linear) = found.build() {
                let values = linear.matrix().map_or(0, |values| values.len());
                assert!(values == 0 || values == rows * hidden);
            }
        }
    }
    let sizes = LatentSizes { heads: 2, nope: 32, value: 32, rank: 32 };
    let _ = modules.latent("model.layers.0.self_attn.kv_b_proj", sizes);
    let _ = modules.vector("model.layers.0.self_attn.q_proj.bias", 8).map(|found| found.build());
});
