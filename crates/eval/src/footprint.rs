//! What a checkpoint weighs, from names, types and shapes alone.

use marlin_checkpoint::{Config, TensorSource};
use marlin_models::Report;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};

/// Parameters and bytes of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Footprint {
    /// Parameters of the model, without the layers that only speculation uses.
    pub parameters: u64,
    /// Of these, parameters that take part in one token: all but the experts that are not chosen.
    pub active_parameters: u64,
    /// Parameters of the multi-token-prediction layers.
    pub mtp_parameters: u64,
    /// Stored bytes, those layers included.
    pub bytes: u64,
    /// Bytes of weights that are read to generate one token: active ones, and of an embedding that is not also the
    /// output projection one row.
    pub bytes_per_token: u64,
    /// Tensors and their bytes by element type.
    pub dtypes: BTreeMap<String, TypeCount>,
}

/// Tensors of one element type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TypeCount {
    /// Tensors.
    pub tensors: usize,
    /// Their elements.
    pub elements: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Stored beside the parameters, but set by a rule during training and not counted among them.
const BUFFER: &str = "e_score_correction_bias";

/// Chosen and existing experts of a mixture, if the configuration describes one.
pub fn experts(config: &Config) -> Option<(usize, usize)> {
    let number = |key: &str| config.maybe_usize(key).ok().flatten();
    let all = number("num_experts").or_else(|| number("n_routed_experts")).filter(|n| *n > 0)?;
    Some((number("num_experts_per_tok")?.min(all), all))
}

impl Footprint {
    /// Of a checkpoint's tensors, and of the modules (by name) that they make up.
    pub fn of(config: &Config, source: &dyn TensorSource, report: &Report) -> Self {
        let mtp: HashSet<&str> = report.mtp.iter().map(String::as_str).collect();
        let experts = experts(config);
        let mut sum = Self::default();
        for tensor in source.tensors() {
            let (elements, bytes) = (tensor.elements() as u64, tensor.bytes() as u64);
            let entry = sum.dtypes.entry(tensor.dtype.name().to_owned()).or_default();
            entry.tensors += 1;
            entry.elements += elements;
            entry.bytes += bytes;
            sum.bytes += bytes;
            if mtp.contains(tensor.name.as_str()) {
                sum.mtp_parameters += elements;
            }
        }
        let own_head = report.modules.iter().any(|(name, _)| name == "lm_head");
        for (name, stored) in &report.modules {
            let part = |whole: u64| match experts {
                Some((chosen, all)) if name.contains(".experts.") => {
                    (u128::from(whole) * chosen as u128 / all as u128) as u64
                }
                _ => whole,
            };
            if !name.ends_with(BUFFER) {
                sum.parameters += stored.elements();
                sum.active_parameters += part(stored.elements());
            }
            sum.bytes_per_token += match name.ends_with("embed_tokens") && own_head {
                true => stored.bytes / stored.features.first().copied().unwrap_or(1).max(1) as u64,
                false => part(stored.bytes),
            };
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use marlin_checkpoint::{DType, Stored, Synthetic, TensorInfo};

    #[test]
    fn counts_experts_by_the_share_that_is_chosen() {
        let info =
            |name: &str, shape: &[usize]| TensorInfo { name: name.into(), dtype: DType::BF16, shape: shape.into() };
        let source = Synthetic::formula(vec![
            info("model.embed_tokens.weight", &[10, 4]),
            info("model.layers.0.mlp.experts.gate_up_proj", &[4, 6, 4]),
            info("model.layers.1.eh_proj.weight", &[4, 8]),
            info("model.norm.weight", &[4]),
        ]);
        let stored = |features: &[usize]| Stored {
            scheme: "dense",
            detail: "bf16".into(),
            bits: 16,
            group: None,
            features: features.to_vec(),
            bytes: 2 * features.iter().product::<usize>() as u64,
            tensors: Vec::new(),
        };
        let mut modules = vec![("model.embed_tokens".into(), stored(&[10, 4])), ("model.norm".into(), stored(&[4]))];
        for e in 0..4 {
            let expert = |part: &str| (format!("model.layers.0.mlp.experts.{e}.{part}_proj"), stored(&[3, 4]));
            modules.extend([expert("gate"), expert("up")]);
        }
        let report = Report { modules, mtp: vec!["model.layers.1.eh_proj.weight".into()], converted: Vec::new() };
        let config = Config::parse("c", r#"{"num_experts": 4, "num_experts_per_tok": 1}"#).unwrap();
        let found = Footprint::of(&config, &source, &report);
        assert_eq!((found.parameters, found.active_parameters), (40 + 96 + 4, 40 + 24 + 4));
        assert_eq!((found.mtp_parameters, found.bytes), (32, 2 * 172));
        assert_eq!(found.bytes_per_token, 2 * (40 + 24 + 4));
        assert_eq!(found.dtypes["BF16"], TypeCount { tensors: 4, elements: 172, bytes: 344 });
    }
}
