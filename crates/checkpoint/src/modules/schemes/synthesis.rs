//! Checkpoints of any size in any scheme, made up: right names, types, shapes and settings, random codes, and scales that
//! give weights a standard deviation of about 1 / sqrt(inputs).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::super::hugging_face::expert;
use crate::synthetic::Pattern;
use crate::{Config, DType, Error, Result, Synthetic, TensorInfo, TensorSource};

/// What a scheme's name on the command line says.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Plan {
    Exl3 { bits: f64, codebook: &'static str },
    Mlx { bits: usize, group: usize, mode: &'static str },
    Gptq { bits: usize },
    Awq,
    Fp4,
    Mxfp4,
    Nvfp4,
    Int8,
    Fp8,
}

/// Standard deviation of E2M1 codes that are equally likely.
const E2M1: f64 = 2.926;

impl Plan {
    const KNOWN: &'static str = "exl3-1 to exl3-8 (with -3inst, -mcg or -mul1), fp4, mxfp4, nvfp4, mlx-2 to mlx-6, mlx-8, mlx-mxfp4, mlx-nvfp4, mlx-mxfp8, gptq-2, gptq-3, gptq-4, gptq-8, awq, int8, fp8";

    fn parse(scheme: &str) -> Option<Self> {
        let (family, rest) = scheme.split_once('-').unwrap_or((scheme, ""));
        Some(match (family, rest) {
            ("fp4", "") => Self::Fp4,
            ("mxfp4", "") => Self::Mxfp4,
            ("nvfp4", "") => Self::Nvfp4,
            ("int8", "") => Self::Int8,
            ("fp8", "") => Self::Fp8,
            ("awq", "" | "4") => Self::Awq,
            ("gptq", "2" | "3" | "4" | "8") => Self::Gptq { bits: rest.parse().ok()? },
            ("mlx", "mxfp4") => Self::Mlx { bits: 4, group: 32, mode: "mxfp4" },
            ("mlx", "nvfp4") => Self::Mlx { bits: 4, group: 16, mode: "nvfp4" },
            ("mlx", "mxfp8") => Self::Mlx { bits: 8, group: 32, mode: "mxfp8" },
            ("mlx", "2" | "3" | "4" | "5" | "6" | "8") => {
                Self::Mlx { bits: rest.parse().ok()?, group: 64, mode: "affine" }
            }
            ("exl3", rest) => {
                let (bits, codebook) = rest.split_once('-').unwrap_or((rest, "mul1"));
                let codebook = ["3inst", "mcg", "mul1"].into_iter().find(|known| *known == codebook)?;
                let bits: f64 = bits.parse().ok()?;
                (1.0..=8.0).contains(&bits).then_some(Self::Exl3 { bits, codebook })?
            }
            _ => return None,
        })
    }

    /// `quantization_config` (or MLX's `quantization`).
    fn settings(self) -> (&'static str, Value) {
        let compressed = |format: &str, weights: Value| {
            let group = json!({ "targets": ["Linear"], "weights": weights });
            json!({
                "quant_method": "compressed-tensors", "format": format, "config_groups": { "group_0": group },
                "ignore": ["lm_head"], "quantization_status": "compressed"
            })
        };
        let value = match self {
            Self::Exl3 { bits, codebook } => {
                json!({ "quant_method": "exl3", "version": "1.4.1", "bits": bits, "head_bits": 6, "codebook": codebook })
            }
            Self::Mlx { bits, group, mode } => {
                return ("quantization", json!({ "group_size": group, "bits": bits, "mode": mode }));
            }
            Self::Gptq { bits } => json!({
                "quant_method": "gptq", "bits": bits, "group_size": 128, "desc_act": false, "sym": true,
                "checkpoint_format": "gptq"
            }),
            Self::Awq => json!({
                "quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true, "version": "gemm"
            }),
            Self::Fp4 => json!({ "quant_method": "mmfp4", "bits": 4, "group_size": 128 }),
            Self::Mxfp4 => {
                compressed("mxfp4-pack-quantized", json!({ "num_bits": 4, "type": "float", "group_size": 32 }))
            }
            Self::Nvfp4 => {
                compressed("nvfp4-pack-quantized", json!({ "num_bits": 4, "type": "float", "group_size": 16 }))
            }
            Self::Int8 => compressed("int-quantized", json!({ "num_bits": 8, "type": "int", "strategy": "channel" })),
            Self::Fp8 => {
                json!({ "quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic" })
            }
        };
        ("quantization_config", value)
    }

    /// Whether the scheme's quantisers touch this module.
    fn quantises(self, module: &str, [rows, cols]: [usize; 2]) -> bool {
        let router = module.ends_with(".mlp.gate") || module.ends_with("shared_expert_gate");
        let embedding = module.ends_with("embed_tokens");
        let head = module == "lm_head";
        !router
            && match self {
                Self::Exl3 { .. } => !embedding && !module.ends_with("kv_b_proj"),
                Self::Fp4 => !embedding && !module.ends_with("kv_b_proj") && cols.is_multiple_of(32),
                Self::Mlx { group, .. } => cols.is_multiple_of(group),
                Self::Gptq { .. } => !embedding && !head && cols.is_multiple_of(128) && rows.is_multiple_of(32),
                Self::Awq => !embedding && !head && cols.is_multiple_of(128) && rows.is_multiple_of(8),
                Self::Mxfp4 => !embedding && !head && cols.is_multiple_of(32),
                Self::Nvfp4 => !embedding && !head && cols.is_multiple_of(16),
                Self::Int8 | Self::Fp8 => !embedding && !head && cols.is_multiple_of(4),
            }
    }

    /// The tensors of `module` in the scheme: a suffix, a type, a shape and what fills it.
    fn tensors(self, module: &str, [rows, cols]: [usize; 2]) -> Vec<(&'static str, DType, Vec<usize>, Pattern)> {
        use DType::{F8E4M3, F16, F32, I8, I16, I32, U8, U32};
        use Pattern::{Bits, Bytes, Cycle, Groups, Near, Signs};
        let std = 1.0 / (cols as f64).sqrt();
        // The byte of E8M0 whose value is nearest to the wanted one from below; one in two is twice as large.
        let e8m0 = |of_code: f64| Bytes { low: (127.0 + (std / of_code / 1.6).log2()).round() as u8, mask: 1 };
        // E4M3 from 1 to 1.875.
        let e4m3 = || Bytes { low: 0x38, mask: 7 };
        let integers = |bits: usize| (((1u64 << (2 * bits)) - 1) as f64 / 12.0).sqrt();
        match self {
            Self::Exl3 { bits, codebook } => {
                let up = (crate::synthetic::fnv(module) % 1000) as f64 / 1000.0 < bits.fract();
                let bits = if module == "lm_head" { 6 } else { bits as usize + usize::from(up) };
                let [rows, cols] = [rows, cols].map(|n| n.next_multiple_of(128));
                let of_code = if codebook == "mul1" { 1.0 } else { 1.244 };
                let mut tensors = vec![
                    (".trellis", I16, vec![cols / 16, rows / 16, 16 * bits], Bits),
                    (".suh", F16, vec![cols], Signs(1.0)),
                    (".svh", F16, vec![rows], Signs((std / of_code) as f32)),
                ];
                match codebook {
                    "mcg" => tensors.push((".mcg", I32, vec![], Cycle(0xcbac_1fed_u32.to_le_bytes().into()))),
                    "mul1" => tensors.push((".mul1", I32, vec![], Cycle(0x83dc_d12d_u32.to_le_bytes().into()))),
                    _ => {}
                }
                tensors
            }
            Self::Mlx { bits, group, mode } => {
                let codes = (".weight", U32, vec![rows, cols * bits / 32], Bits);
                let factors = vec![rows, cols / group];
                match mode {
                    "mxfp4" => vec![codes, (".scales", U8, factors, e8m0(E2M1))],
                    "mxfp8" => vec![(".weight", U32, vec![rows, cols / 4], FP8), (".scales", U8, factors, e8m0(1.1))],
                    "nvfp4" => {
                        // These scales have no second factor, so they carry the magnitude: steps of 2^-9 below 2^-6.
                        let scale = std / E2M1;
                        let exponent = ((scale / 1.46).log2() + 7.0).round() as u8;
                        let bytes = match exponent {
                            0 => Bytes { low: (scale * 512.0).round().max(1.0) as u8, mask: 0 },
                            _ => Bytes { low: exponent << 3, mask: 7 },
                        };
                        vec![codes, (".scales", U8, factors, bytes)]
                    }
                    _ => {
                        let scale = std / integers(bits);
                        let middle = -scale * ((1u64 << bits) - 1) as f64 / 2.0;
                        vec![
                            codes,
                            (".scales", DType::BF16, factors.clone(), Near(scale as f32)),
                            (".biases", DType::BF16, factors, Near(middle as f32)),
                        ]
                    }
                }
            }
            Self::Gptq { bits } => {
                let groups = cols / 128;
                // Files of the first version store the zero point less one.
                let stored = (1u8 << (bits - 1)) - 1;
                vec![
                    (".qweight", I32, vec![cols * bits / 32, rows], Bits),
                    (
                        ".qzeros",
                        I32,
                        vec![groups, rows * bits / 32],
                        Cycle(crate::weight::grouped::pack(&[stored; 32], 32, bits as u32)),
                    ),
                    (".scales", F16, vec![groups, rows], Near((std / integers(bits)) as f32)),
                    (".g_idx", I32, vec![cols], Groups(128)),
                ]
            }
            Self::Awq => vec![
                (".qweight", I32, vec![cols, rows / 8], Bits),
                (".qzeros", I32, vec![cols / 128, rows / 8], Cycle(vec![0x88])),
                (".scales", F16, vec![cols / 128, rows], Near((std / integers(4)) as f32)),
            ],
            Self::Fp4 => {
                let group = [128, 64, 32].into_iter().find(|g| cols.is_multiple_of(*g)).unwrap_or(8);
                vec![
                    (".weight", U32, vec![rows, cols / 8], Bits),
                    (".weight.scales", F16, vec![rows, cols / group], Near((std / E2M1) as f32)),
                    (".weight.group_size", I32, vec![1], Cycle((group as i32).to_le_bytes().into())),
                ]
            }
            Self::Mxfp4 => vec![
                (".weight_packed", U8, vec![rows, cols / 2], Bits),
                (".weight_scale", U8, vec![rows, cols / 32], e8m0(E2M1)),
            ],
            Self::Nvfp4 => {
                let divisor = (E2M1 * 1.46 / std) as f32;
                vec![
                    (".weight_packed", U8, vec![rows, cols / 2], Bits),
                    (".weight_scale", F8E4M3, vec![rows, cols / 16], e4m3()),
                    (".weight_global_scale", F32, vec![1], Cycle(divisor.to_le_bytes().into())),
                ]
            }
            Self::Int8 => vec![
                (".weight", I8, vec![rows, cols], Bits),
                (".weight_scale", DType::BF16, vec![rows, 1], Near((std / integers(8)) as f32)),
            ],
            Self::Fp8 => vec![
                (".weight", F8E4M3, vec![rows, cols], FP8),
                (".weight_scale_inv", F32, vec![rows.div_ceil(128), cols.div_ceil(128)], Near((std / 1.1) as f32)),
            ],
        }
    }
}

/// E4M3 from 0.5 to 1.875, either sign.
const FP8: Pattern = Pattern::Bytes { low: 0x30, mask: 0x8f };

/// A made-up checkpoint of the model that `config` describes and `required` lists (parameters by the names of transformers,
/// experts one by one) in a quantisation scheme: `exl3-3`, `exl3-4-3inst`, `fp4`, `mlx-4`, `gptq-4`, `awq`, `nvfp4`, ... The
/// configuration that comes back announces the scheme. The same `seed` gives the same weights.
pub fn scheme_checkpoint(
    config: Config,
    required: &[TensorInfo],
    scheme: &str,
    seed: u64,
) -> Result<(Config, Arc<dyn TensorSource>)> {
    let plan = Plan::parse(scheme)
        .ok_or_else(|| Error::invalid(format!("scheme {scheme:?}"), format!("expected one of {}", Plan::KNOWN)))?;
    let mut tensors = Vec::new();
    let mut stacks = Stacks::default();
    // EXL3 quantises the output projection of tied models apart.
    let tied = match (plan, config.bool_or("tie_word_embeddings", false)?) {
        (Plan::Exl3 { .. }, true) => required.iter().find(|info| info.name.ends_with("embed_tokens.weight")),
        _ => None,
    };
    let head = tied.map(|info| TensorInfo { name: "lm_head.weight".into(), ..info.clone() });
    for info in required.iter().chain(&head) {
        let matrix = <[usize; 2]>::try_from(info.shape.as_slice()).ok();
        let module = info.name.strip_suffix(".weight");
        let (Some(module), Some(features)) = (module, matrix) else {
            tensors.push((info.clone(), Pattern::Weights));
            continue;
        };
        let mlx = matches!(plan, Plan::Mlx { .. });
        if mlx && let Some(attention) = module.strip_suffix("kv_b_proj") {
            for (name, stack) in split(&config, attention)? {
                let [_, rows, cols] = stack;
                push(&mut tensors, plan, &name, [rows, cols], Some(stack[0]), info.dtype);
            }
        } else if mlx && let Some((experts, e, part)) = expert(module) {
            let mlp = experts.strip_suffix("experts").unwrap_or(experts);
            stacks.add(format!("{mlp}switch_mlp.{part}"), e, features, info.dtype);
        } else {
            push(&mut tensors, plan, module, features, None, info.dtype);
        }
    }
    for (name, (count, features, dtype)) in stacks.0 {
        push(&mut tensors, plan, &name, features, Some(count), dtype);
    }
    let mut seen = HashSet::new();
    if let Some((twice, _)) = tensors.iter().find(|(info, _)| !seen.insert(info.name.clone())) {
        return Err(Error::invalid(&twice.name, "would be made twice"));
    }
    let (key, settings) = plan.settings();
    Ok((config.with(key, settings), Arc::new(Synthetic::patterned(tensors, seed))))
}

/// Stacks of experts by name: their number, features and type.
#[derive(Default)]
struct Stacks(BTreeMap<String, (usize, [usize; 2], DType)>);

impl Stacks {
    fn add(&mut self, name: String, expert: usize, features: [usize; 2], dtype: DType) {
        let entry = self.0.entry(name).or_insert((0, features, dtype));
        entry.0 = entry.0.max(expert + 1);
    }
}

/// The two halves of a latent projection, by name: `[heads, rows, cols]`.
fn split(config: &Config, attention: &str) -> Result<[(String, [usize; 3]); 2]> {
    let heads = config.usize("num_attention_heads")?;
    let (rank, nope, value) =
        (config.usize("kv_lora_rank")?, config.usize("qk_nope_head_dim")?, config.usize("v_head_dim")?);
    Ok([
        (format!("{attention}embed_q"), [heads, rank, nope]),
        (format!("{attention}unembed_out"), [heads, value, rank]),
    ])
}

/// The tensors of a module, or of a stack of `count` such modules.
fn push(
    tensors: &mut Vec<(TensorInfo, Pattern)>,
    plan: Plan,
    module: &str,
    features: [usize; 2],
    count: Option<usize>,
    dtype: DType,
) {
    let parts = match plan.quantises(module, features) {
        true => plan.tensors(module, features),
        false => vec![(".weight", dtype, features.to_vec(), Pattern::Weights)],
    };
    for (suffix, dtype, shape, pattern) in parts {
        let shape: Vec<usize> = count.into_iter().chain(shape).collect();
        tensors.push((TensorInfo { name: format!("{module}{suffix}"), dtype, shape }, pattern));
    }
}
