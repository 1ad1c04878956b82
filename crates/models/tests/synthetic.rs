//! Made-up checkpoints in every scheme: whole, finite, and of the magnitude that weights have.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failing test may panic

mod common;

use common::{BLOCK, SCHEMES, root, step};
use marlin_backend::Backend;
use marlin_checkpoint::{Checkpoint, Config, Folder, Result, Tensor, TensorInfo, TensorSource, scheme_checkpoint};
use marlin_cpu::{CpuBackend, CpuOptions};
use marlin_models::{Architecture, LoadOptions, Model};
use std::sync::Arc;

/// A tied model of grouped-query attention, and the one in the repository: latent attention and experts.
fn configs() -> [Config; 2] {
    let tied = r#"{"model_type": "qwen3", "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 512, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096, "tie_word_embeddings": true, "rope_theta": 1e6}"#;
    [Config::parse("tied", tied).unwrap(), Checkpoint::open(root().join("models/fable-glm4-moe-lite")).unwrap().config]
}

#[test]
fn made_up_checkpoints_are_whole_and_run() {
    for config in configs() {
        let required = Architecture::parse(&config).unwrap().inventory().required().to_vec();
        for (scheme, name) in SCHEMES {
            let (config, store) = scheme_checkpoint(config.clone(), &required, scheme, 7).unwrap();
            let folder = Folder::Embedded { name: "synthetic", files: &[] };
            let checkpoint = Checkpoint::from_parts(scheme, config, store, folder).unwrap();
            let architecture = Architecture::parse(&checkpoint.config).unwrap();
            let modules = checkpoint.modules().unwrap();
            let report = architecture.inventory().check(modules.as_ref(), checkpoint.store.as_ref()).unwrap();
            let quantised = report.modules.iter().filter(|(_, stored)| stored.scheme == name).count();
            assert!(quantised >= 14, "{scheme}: {quantised} of {}", report.modules.len());
            for (module, stored) in &report.modules {
                if let (true, &[rows, cols]) = (stored.scheme == name, stored.features.as_slice())
                    && !module.ends_with("kv_b_proj")
                    && (!module.contains(".experts.") || module.contains(".1.mlp.experts.2."))
                {
                    let w = modules.linear(module, [rows, cols]).unwrap().build().unwrap().matrix().unwrap();
                    let square: f64 = w.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>() / w.len() as f64;
                    let of_wanted = (square * cols as f64).sqrt();
                    assert!((0.6..1.5).contains(&of_wanted), "{scheme}: {module}: {of_wanted}");
                }
            }
            let b = CpuBackend::new(CpuOptions::default());
            let model = Model::load(&b, &checkpoint, LoadOptions::default(), &mut |_| {}).unwrap();
            let kv = b.kv(model.kv_spec(BLOCK, 1)).unwrap();
            let batch = b.begin(&step(&[1, 2, 3, 5, 8], 0, 5), &kv, None).unwrap();
            let logits = b.read(&model.forward(&b, &batch, &kv, None).unwrap()).unwrap();
            assert!(logits.iter().all(|l| l.is_finite()), "{scheme}");
            assert!(logits.iter().any(|l| l.abs() > 0.01), "{scheme}");
        }
    }
}

#[test]
fn an_unknown_scheme_names_the_known() {
    let [config, _] = configs();
    for scheme in ["exl3", "exl3-9", "exl3-3-2inst", "mlx-7", "gptq-5", "int4", ""] {
        let error = scheme_checkpoint(config.clone(), &[], scheme, 0).err().unwrap().to_string();
        assert!(error.starts_with(&format!("scheme {scheme:?}: expected one of exl3-1")), "{error}");
    }
}

/// A checkpoint without one of its tensors.
struct Without(Arc<dyn TensorSource>, Vec<TensorInfo>);

impl TensorSource for Without {
    fn tensors(&self) -> &[TensorInfo] {
        &self.1
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        self.0.tensor(name)
    }

    fn contains(&self, name: &str) -> bool {
        self.1.iter().any(|t| t.name == name)
    }

    fn describe(&self) -> String {
        self.0.describe()
    }
}

/// EXL3 quantises the output projection of a tied model apart from its embedding: it counts as a module of the model, and
/// is not passed over when it is damaged.
#[test]
fn a_tied_output_projection_that_is_quantised_apart() {
    let [tied, _] = configs();
    let architecture = Architecture::parse(&tied).unwrap();
    let inventory = architecture.inventory();
    let check = |scheme: &str, missing: &str| {
        let (config, store) = scheme_checkpoint(tied.clone(), inventory.required(), scheme, 7).unwrap();
        let kept = store.tensors().iter().filter(|t| t.name != missing).cloned().collect();
        let store: Arc<dyn TensorSource> = Arc::new(Without(store, kept));
        let folder = Folder::Embedded { name: "synthetic", files: &[] };
        let modules = Checkpoint::from_parts(scheme, config, store.clone(), folder).unwrap().modules().unwrap();
        let report = inventory.check(modules.as_ref(), store.as_ref()).map_err(|e| e.to_string())?;
        Ok::<_, String>(report.modules.into_iter().find(|(name, _)| name == "lm_head").map(|(_, stored)| stored.bits))
    };
    assert_eq!(check("exl3-3", ""), Ok(Some(6)));
    assert_eq!(check("gptq-4", ""), Ok(None));
    let refused = check("exl3-3", "lm_head.suh").unwrap_err();
    assert!(refused.contains("lm_head"), "{refused}");
}
