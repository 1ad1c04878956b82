//! What calibration has seen of one layer.

use std::collections::BTreeMap;

use crate::roles::Input;
use crate::{Hessian, Matrix, Result};

/// Second moments of one input.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Weighted sums, and the tokens they are over.
    pub hessian: Hessian,
    /// Sum of the weights: the tokens where nothing is weighted, else the sum of squared routing weights.
    pub mass: f64,
}

impl Moments {
    /// Nothing seen yet.
    pub(crate) fn new(size: usize) -> Self {
        Self { hessian: Hessian::new(size), mass: 0.0 }
    }

    fn add(&mut self, other: &Self) {
        let (sums, tokens) = self.hessian.parts_mut();
        sums.data_mut().iter_mut().zip(other.hessian.sums().data()).for_each(|(a, b)| *a += b);
        *tokens += other.hessian.tokens();
        self.mass += other.mass;
    }
}

/// How often a router chose each expert.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routed {
    /// Tokens that went to each expert.
    pub tokens: Vec<u64>,
    /// Sum of their squared routing weights.
    pub mass: Vec<f64>,
}

/// What calibration has seen of one layer's linears (or of the output projection).
#[derive(Clone, Debug, Default)]
pub struct LayerStats {
    /// Moments by the module that owns the input: linears with the same input share it, see [`LayerStats::hessian`].
    pub moments: BTreeMap<String, Moments>,
    /// Choices by router module.
    pub routed: BTreeMap<String, Routed>,
    /// How far inputs have come from the original's, by module: see [`drift`](super::drift). Not kept on disk.
    pub(crate) drifts: BTreeMap<String, Matrix>,
    /// Tokens that were run.
    pub tokens: u64,
    /// Inputs that were left out because a value was not finite.
    pub left_out: u64,
}

impl LayerStats {
    /// Sums the inputs of each mixture's experts up, as what stands in for those that saw little.
    pub(crate) fn pool(&mut self) {
        let mut pooled: BTreeMap<String, Moments> = BTreeMap::new();
        for (key, moments) in &self.moments {
            if let Input::Expert { experts, part, .. } = Input::of(key) {
                let size = moments.hessian.size();
                pooled.entry(format!("{experts}.{part}")).or_insert_with(|| Moments::new(size)).add(moments);
            }
        }
        self.moments.extend(pooled);
    }

    /// What linears with the same inputs, and so the same [`LayerStats::hessian`], have in common.
    pub(crate) fn key(module: &str) -> String {
        Input::of(module).key()
    }

    /// The Hessian of a linear's inputs, summed over tokens; `None` if its inputs were not seen.
    ///
    /// A routed expert's tokens are weighted by their squared routing weights. As many tokens as it has inputs are added to
    /// its own, with the average of all experts of the mixture: so an expert that is hardly ever chosen has a Hessian, too,
    /// and one that is chosen often keeps its own. (Without own moments for gate and up, those of the router's inputs are
    /// scaled to the expert's weights.)
    pub fn hessian(&self, module: &str) -> Result<Option<Hessian>> {
        let input = Input::of(module);
        let Input::Expert { experts, index, part } = &input else {
            return Ok(self.moments.get(&input.key()).map(|m| m.hessian.clone()));
        };
        let router = experts.strip_suffix("experts").map(|mlp| format!("{mlp}gate")).unwrap_or_default();
        let pooled = self.moments.get(&format!("{experts}.{part}"));
        let Some(shared) = pooled.or_else(|| self.moments.get(&router).filter(|_| *part == "gate_proj")) else {
            return Ok(None);
        };
        let own = self.moments.get(&input.key());
        let routed = self.routed.get(&router);
        let (tokens, mass) = match (own, routed) {
            (Some(own), _) => (own.hessian.tokens(), own.mass),
            (None, Some(routed)) => {
                let tokens = routed.tokens.get(*index).copied().unwrap_or(0);
                (tokens as f64, routed.mass.get(*index).copied().unwrap_or(0.0))
            }
            (None, None) => (0.0, 0.0),
        };
        // The mean weight of a token that goes to an expert.
        let weight = match (pooled, routed) {
            (Some(pooled), _) => pooled.mass / pooled.hessian.tokens().max(1.0),
            (None, Some(routed)) => {
                let chosen: u64 = routed.tokens.iter().sum();
                routed.mass.iter().sum::<f64>() / (chosen as f64).max(1.0)
            }
            (None, None) => 1.0,
        };
        if shared.mass <= 0.0 {
            return Ok(None);
        }
        let size = shared.hessian.size();
        let borrowed = size as f64;
        let stands_in = borrowed * weight + if own.is_none() { mass } else { 0.0 };
        let factor = (stands_in / shared.mass) as f32;
        let mut sums: Vec<f32> = shared.hessian.sums().data().iter().map(|v| v * factor).collect();
        if let Some(own) = own {
            sums.iter_mut().zip(own.hessian.sums().data()).for_each(|(a, b)| *a += b);
        }
        Ok(Some(Hessian::from_sums(Matrix::new(size, size, sums)?, tokens + borrowed)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(value: f32, tokens: f64, mass: f64) -> Moments {
        let sums = Matrix::new(1, 1, vec![value]).unwrap();
        Moments { hessian: Hessian::from_sums(sums, tokens).unwrap(), mass }
    }

    /// Expert 0 saw 3 tokens of weight 1/4 with x = 2, expert 1 one of weight 1 with x = 1; expert 2 none. Together 4 tokens,
    /// mass 1.75, sum 3 x 4 / 4 + 1 = 4; one token more is borrowed: weight 1.75 / 4, moment 4 / 1.75 each: 1.
    #[test]
    fn experts_borrow_from_all() {
        let mut stats = LayerStats::default();
        stats.moments.insert("l.mlp.experts.0.down_proj".into(), moments(3.0, 3.0, 0.75));
        stats.moments.insert("l.mlp.experts.1.down_proj".into(), moments(1.0, 1.0, 1.0));
        stats.pool();
        let hessian = |e: usize| stats.hessian(&format!("l.mlp.experts.{e}.down_proj")).unwrap().unwrap();
        let found: Vec<(f32, f64)> = (0..3).map(|e| (hessian(e).sums().data()[0], hessian(e).tokens())).collect();
        assert_eq!(found, [(4.0, 4.0), (2.0, 2.0), (1.0, 1.0)]);
        assert!(stats.hessian("l.mlp.experts.0.up_proj").unwrap().is_none());
        assert!(stats.hessian("l.self_attn.q_proj").unwrap().is_none());
    }

    /// The router saw 8 tokens of moment 2 each; expert 0 was chosen 6 times with mass 3, expert 1 twice with mass 1:
    /// a weight of 1/2 a token. Expert 0: (3 + 1/2) x 2, expert 1: (1 + 1/2) x 2.
    #[test]
    fn inputs_of_the_router_stand_in() {
        let mut stats = LayerStats::default();
        stats.moments.insert("l.mlp.gate".into(), moments(16.0, 8.0, 8.0));
        stats.routed.insert("l.mlp.gate".into(), Routed { tokens: vec![6, 2], mass: vec![3.0, 1.0] });
        let hessian = |e: usize| stats.hessian(&format!("l.mlp.experts.{e}.up_proj")).unwrap().unwrap();
        assert_eq!((hessian(0).sums().data()[0], hessian(0).tokens()), (7.0, 7.0));
        assert_eq!((hessian(1).sums().data()[0], hessian(1).tokens()), (3.0, 3.0));
    }
}
