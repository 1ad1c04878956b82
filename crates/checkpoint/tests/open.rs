//! Opens real checkpoints; the expected numbers were read from the files with numpy, as it prints them.
#![allow(clippy::excessive_precision)]

use std::path::{Path, PathBuf};

use marlin_checkpoint::{Checkpoint, DType, RopeScaling};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Folder of test data shared between checkouts, or `None` (said loudly) where it is absent.
fn shared(part: &str) -> Option<PathBuf> {
    let path = repository().join("../shared").join(part);
    if !path.exists() {
        eprintln!("SKIPPED: {} is not there", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn the_built_in_model() {
    let folder = repository().join("models/fable-glm4-moe-lite");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    assert_eq!(checkpoint.name, "fable-glm4-moe-lite");
    assert_eq!(checkpoint.config.model_type().unwrap(), "glm4_moe_lite");
    assert_eq!(checkpoint.config.usize("q_lora_rank").unwrap(), 128);
    assert_eq!(checkpoint.config.rope(1e6).unwrap().theta, 10000.0);
    assert_eq!((checkpoint.generation.eos.as_slice(), checkpoint.generation.pad), ([4087].as_slice(), Some(4087)));
    let tensors = checkpoint.store.tensors();
    assert_eq!(tensors.len(), 325);
    assert_eq!(tensors.iter().map(|t| t.elements()).sum::<usize>(), 12_690_256);

    let up = checkpoint.modules().unwrap().linear("model.layers.1.mlp.experts.3.up_proj", [128, 256]).unwrap();
    assert_eq!((up.stored.detail.as_str(), up.stored.bits, up.stored.bytes), ("bf16", 16, 65536));
    let values = up.build().unwrap().matrix().unwrap();
    assert_eq!(values[..4], [-0.0128173828125, 0.076171875, -0.0263671875, 0.017578125]);
    assert_eq!(values.iter().map(|&x| f64::from(x)).sum::<f64>(), -4.843268182594329);
    let bias = checkpoint.store.tensor("model.layers.1.mlp.gate.e_score_correction_bias").unwrap();
    assert_eq!(bias.info.dtype, DType::F32);
    assert_eq!(bias.to_f32().unwrap()[..2], [-0.00592041015625, 0.053466796875]);

    let same = Checkpoint::open(folder.join("model.safetensors")).unwrap();
    assert_eq!(same.store.tensors(), tensors);
}

#[test]
fn an_embedded_model_is_the_same() {
    static FILES: [(&str, &[u8]); 3] = [
        ("config.json", include_bytes!("../../../models/fable-glm4-moe-lite/config.json")),
        ("generation_config.json", include_bytes!("../../../models/fable-glm4-moe-lite/generation_config.json")),
        ("model.safetensors", include_bytes!("../../../models/fable-glm4-moe-lite/model.safetensors")),
    ];
    let built_in = Checkpoint::embedded("fable", &FILES).unwrap();
    let disk = Checkpoint::open(repository().join("models/fable-glm4-moe-lite")).unwrap();
    assert_eq!(built_in.generation, disk.generation);
    assert_eq!(built_in.store.tensors(), disk.store.tensors());
    let name = "model.layers.5.self_attn.o_proj.weight";
    assert_eq!(*built_in.store.tensor(name).unwrap().data, *disk.store.tensor(name).unwrap().data);
    assert!(built_in.folder.text("tokenizer.json").unwrap().is_none());
    let error = built_in.folder.require_text("tokenizer.json").unwrap_err().to_string();
    assert!(error.starts_with("built-in fable/tokenizer.json: the file is missing"), "{error}");
    let error = Checkpoint::embedded("half", &FILES[..2]).err().unwrap().to_string();
    assert_eq!(error, "built-in half/model.safetensors: the file is missing");
}

#[test]
fn every_tiny_model_opens() {
    let Some(models) = shared("models") else { return };
    for entry in std::fs::read_dir(models).unwrap() {
        let folder = entry.unwrap().path();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        assert_eq!(checkpoint.config.dtype().unwrap(), Some(DType::BF16));
        assert_eq!(checkpoint.generation.eos, [4087]);
        let rope = checkpoint.config.rope(1e4).unwrap();
        match checkpoint.config.model_type().unwrap() {
            "llama" => assert!(matches!(
                rope.scaling,
                RopeScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_max_position_embeddings: 512.0
                }
            )),
            _ => assert_eq!(rope.scaling, RopeScaling::None),
        }
        assert_eq!(checkpoint.config.quantization_method(), None);
    }
    for (folder, method) in [("exl3/fable-qwen3-exl3-4.0bpw-3inst", "exl3"), ("mlx/fable-qwen3-q4g64", "affine")] {
        let checkpoint = Checkpoint::open(shared("interop").unwrap().join(folder)).unwrap();
        assert_eq!(checkpoint.config.quantization_method(), Some(method));
    }
}

#[test]
fn what_is_not_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let error = |path: &Path| {
        Checkpoint::open(path).err().unwrap().to_string().replace(&folder.path().display().to_string(), "DIR")
    };
    assert_eq!(
        error(folder.path()),
        "DIR/config.json: the file is missing; is this a checkpoint's folder? (metal-marlin pull downloads one)"
    );
    assert!(error(&folder.path().join("nothing")).starts_with("DIR/nothing: No such file or directory"));
    std::fs::write(folder.path().join("config.json"), [0xff, 0xfe, 0x00]).unwrap();
    assert_eq!(
        error(folder.path()),
        "DIR/config.json: not UTF-8 text (byte 0 is wrong); the file is damaged: download it again"
    );
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    assert!(error(folder.path()).starts_with("DIR: no model.safetensors and no model.safetensors.index.json"));
}
