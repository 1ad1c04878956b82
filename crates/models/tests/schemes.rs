//! Every scheme at published widths: exact mode with the codes against exact mode with the matrices that they stand for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failing test may panic

mod common;

use common::{BLOCK, SCHEMES, step};
use marlin_backend::Backend;
use marlin_checkpoint::{
    Checkpoint, Config, DType, Folder, LatentProjection, LatentSizes, Modules, Tensor, TensorInfo, TensorSource,
    scheme_checkpoint,
};
use marlin_cpu::{CpuBackend, CpuOptions};
use marlin_models::{Architecture, LoadOptions, Model};
use std::collections::HashMap;
use std::sync::Arc;

/// A layer of Qwen3-1.7B.
const QWEN3: &str = r#"{"model_type": "qwen3", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 1,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 256, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096, "tie_word_embeddings": false, "rope_theta": 1e6}"#;

/// A dense layer and one of experts, fewer than published, of GLM-4.7-Flash.
const GLM: &str = r#"{"model_type": "glm4_moe_lite", "hidden_size": 2048, "intermediate_size": 10240,
    "moe_intermediate_size": 1536, "num_hidden_layers": 2, "mlp_layer_types": ["dense", "sparse"], "n_routed_experts": 4,
    "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "norm_topk_prob": true,
    "routed_scaling_factor": 1.8, "num_attention_heads": 20, "num_key_value_heads": 20, "q_lora_rank": 768,
    "kv_lora_rank": 512, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 256, "vocab_size": 256,
    "rms_norm_eps": 1e-5, "rope_interleave": true, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
    "max_position_embeddings": 4096, "attention_bias": false, "hidden_act": "silu", "tie_word_embeddings": false}"#;
const GLM_SIZES: LatentSizes = LatentSizes { heads: 20, nope: 192, value: 256, rank: 512 };

/// Tensors in memory.
struct Dense(Vec<TensorInfo>, HashMap<String, Tensor>);

impl TensorSource for Dense {
    fn tensors(&self) -> &[TensorInfo] {
        &self.0
    }

    fn tensor(&self, name: &str) -> marlin_checkpoint::Result<Tensor> {
        self.1
            .get(name)
            .cloned()
            .ok_or_else(|| marlin_checkpoint::Error::MissingTensor { name: name.into(), within: self.describe() })
    }

    fn contains(&self, name: &str) -> bool {
        self.1.contains_key(name)
    }

    fn describe(&self) -> String {
        "decoded".into()
    }
}

/// The values of one parameter of the plain model.
fn decoded(modules: &dyn Modules, info: &TensorInfo) -> Vec<f32> {
    let matrix = |name: &str, features| modules.linear(name, features).unwrap().build().unwrap().matrix().unwrap();
    let (Some(module), &[rows, cols]) = (info.name.strip_suffix(".weight"), info.shape.as_slice()) else {
        return modules.vector(&info.name, info.elements()).unwrap().build().unwrap().to_f32().unwrap();
    };
    if !module.ends_with("kv_b_proj") {
        return matrix(module, [rows, cols]);
    }
    let LatentSizes { heads, nope, value, rank } = GLM_SIZES;
    match modules.latent(module, GLM_SIZES).unwrap() {
        LatentProjection::Whole(found) => found.build().unwrap().matrix().unwrap(),
        LatentProjection::Split { k, v } => {
            let [k, v] = [k, v].map(|part| part.build().unwrap().matrix().unwrap());
            let key = |h: usize, n: usize| (0..rank).map(move |r| (h * rank + r) * nope + n);
            let mut whole = Vec::with_capacity(rows * cols);
            for h in 0..heads {
                for n in 0..nope {
                    whole.extend(key(h, n).map(|at| k[at]));
                }
                whole.extend_from_slice(&v[h * value * rank..(h + 1) * value * rank]);
            }
            whole
        }
    }
}

fn logits(checkpoint: &Checkpoint) -> Vec<f32> {
    let b = CpuBackend::new(CpuOptions { exact: true, ..CpuOptions::default() });
    let model = Model::load(&b, checkpoint, LoadOptions::default(), &mut |_| {}).unwrap();
    let kv = b.kv(model.kv_spec(BLOCK, 1)).unwrap();
    let batch = b.begin(&step(&[1, 2, 3, 5, 8], 0, 5), &kv, None).unwrap();
    b.read(&model.forward(&b, &batch, &kv, None).unwrap()).unwrap()
}

fn check(json: &str) {
    let config = Config::parse("published widths", json).unwrap();
    let required = Architecture::parse(&config).unwrap().inventory().required().to_vec();
    let folder = || Folder::Embedded { name: "made up", files: &[] };
    for (scheme, _) in SCHEMES {
        let (announced, store) = scheme_checkpoint(config.clone(), &required, scheme, 11).unwrap();
        let coded = Checkpoint::from_parts(scheme, announced, store, folder()).unwrap();
        let modules = coded.modules().unwrap();
        let dense: HashMap<String, Tensor> = required
            .iter()
            .map(|info| {
                let bytes = decoded(modules.as_ref(), info).iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
                let info = TensorInfo { dtype: DType::F32, ..info.clone() };
                (info.name.clone(), Tensor { info, data: bytes.into() })
            })
            .collect();
        let infos = dense.values().map(|t| t.info.clone()).collect();
        let dense = Checkpoint::from_parts(scheme, config.clone(), Arc::new(Dense(infos, dense)), folder()).unwrap();
        let (found, expected) = (logits(&coded), logits(&dense));
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        println!("{scheme}: off by {:.1e} of the largest logit", worst / largest);
        assert!(worst <= 1e-4 * largest, "{scheme}: off by {worst} of {largest}");
    }
}

#[test]
fn qwen3_1_7b() {
    check(QWEN3);
}

#[test]
fn glm_4_7_flash() {
    check(GLM);
}
