//! How a checkpoint's weights are stored: schemes, bits for each weight, groups.

use marlin_checkpoint::Stored;
use serde::Serialize;
use std::collections::BTreeMap;

/// How the matrices of a checkpoint are stored. Vectors (norms, biases) are not counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Breakdown {
    /// Stored bits for each weight, factors included.
    pub bits_per_weight: f64,
    /// The same without the embedding and the output projection.
    pub bits_per_inner_weight: f64,
    /// Ways of storing, the one with the most weights first.
    pub schemes: Vec<SchemeCount>,
    /// Bits of a code (of an element, where a module is dense), ascending.
    pub histogram: Vec<BitsCount>,
    /// Weights that share a factor, with how many weights have it; ascending.
    pub groups: BTreeMap<usize, u64>,
}

/// Matrices stored in one way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SchemeCount {
    /// `dense`, `exl3`, `mlx`, ...
    pub scheme: &'static str,
    /// What the elements are.
    pub detail: String,
    /// Matrices; each expert is one.
    pub modules: usize,
    /// Their weights.
    pub weights: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Matrices whose codes have so many bits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BitsCount {
    /// Bits of a code.
    pub bits: u32,
    /// Matrices.
    pub modules: usize,
    /// Their weights.
    pub weights: u64,
    /// Share of all weights, from 0 to 1.
    pub share: f64,
    /// Their bytes, factors included.
    pub bytes: u64,
}

/// A module, or neighbouring experts that are stored alike.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModuleLine {
    /// Its name; `...experts.0..63.up_proj` for several.
    pub module: String,
    /// How many modules the line stands for.
    pub modules: usize,
    /// `dense`, `exl3`, `mlx`, ...
    pub scheme: &'static str,
    /// What the elements are.
    pub detail: String,
    /// Bits of a code with the number of modules that have it: one entry where all are alike.
    pub bits: BTreeMap<u32, usize>,
    /// Weights that share a factor.
    pub group: Option<usize>,
    /// Stored bits for each weight.
    pub bits_per_weight: f64,
    /// `[out, in]` features of one module.
    pub shape: Vec<usize>,
    /// Bytes of all modules of the line.
    pub bytes: u64,
}

fn per_weight(bytes: u64, weights: u64) -> f64 {
    8.0 * bytes as f64 / weights.max(1) as f64
}

impl Breakdown {
    /// Of modules by name.
    pub fn of(modules: &[(String, Stored)]) -> Self {
        let mut schemes: BTreeMap<(&'static str, &str), SchemeCount> = BTreeMap::new();
        let mut bits: BTreeMap<u32, BitsCount> = BTreeMap::new();
        let mut groups = BTreeMap::new();
        let (mut all, mut inner) = ((0, 0), (0, 0));
        for (name, stored) in modules.iter().filter(|(_, stored)| stored.features.len() == 2) {
            let (weights, bytes) = (stored.elements(), stored.bytes);
            all = (all.0 + bytes, all.1 + weights);
            if !name.ends_with("embed_tokens") && !name.ends_with("lm_head") {
                inner = (inner.0 + bytes, inner.1 + weights);
            }
            let scheme = schemes.entry((stored.scheme, &stored.detail)).or_insert_with(|| SchemeCount {
                scheme: stored.scheme,
                detail: stored.detail.clone(),
                modules: 0,
                weights: 0,
                bytes: 0,
            });
            scheme.modules += 1;
            scheme.weights += weights;
            scheme.bytes += bytes;
            let empty = BitsCount { bits: stored.bits, modules: 0, weights: 0, share: 0.0, bytes: 0 };
            let count = bits.entry(stored.bits).or_insert(empty);
            count.modules += 1;
            count.weights += weights;
            count.bytes += bytes;
            if let Some(group) = stored.group {
                *groups.entry(group).or_insert(0) += weights;
            }
        }
        let mut schemes: Vec<SchemeCount> = schemes.into_values().collect();
        schemes.sort_by_key(|s| std::cmp::Reverse(s.weights));
        let mut histogram: Vec<BitsCount> = bits.into_values().collect();
        histogram.iter_mut().for_each(|b| b.share = b.weights as f64 / all.1.max(1) as f64);
        Self {
            bits_per_weight: per_weight(all.0, all.1),
            bits_per_inner_weight: per_weight(inner.0, inner.1),
            schemes,
            histogram,
            groups,
        }
    }
}

/// `{before}.experts.{number}.{part}`
fn expert(name: &str) -> Option<(&str, usize, &str)> {
    let (before, rest) = name.split_once(".experts.")?;
    let (number, part) = rest.split_once('.')?;
    Some((before, number.parse().ok()?, part))
}

impl ModuleLine {
    /// A line for each module; the experts of a layer that differ in nothing but their bits (and so their bytes) are one.
    pub fn all(modules: &[(String, Stored)]) -> Vec<Self> {
        /// The line, its weights, and the first and last expert on it.
        type Open = (ModuleLine, u64, Option<(usize, usize)>);
        let mut lines: Vec<Open> = Vec::new();
        let mut open: BTreeMap<(String, String), usize> = BTreeMap::new();
        for (name, stored) in modules {
            let line = ModuleLine {
                module: name.clone(),
                modules: 1,
                scheme: stored.scheme,
                detail: stored.detail.clone(),
                bits: BTreeMap::from([(stored.bits, 1)]),
                group: stored.group,
                bits_per_weight: stored.bits_per_weight(),
                shape: stored.features.clone(),
                bytes: stored.bytes,
            };
            let Some((before, number, part)) = expert(name) else {
                lines.push((line, stored.elements(), None));
                continue;
            };
            let key = (before.to_owned(), part.to_owned());
            let last = open.get(&key).and_then(|&i| lines.get_mut(i)).filter(|(other, _, range)| {
                let neighbours = range.is_some_and(|(_, last)| last + 1 == number);
                let same = (other.scheme, &other.detail, other.group) == (line.scheme, &line.detail, line.group);
                neighbours && same && other.shape == line.shape
            });
            let Some((other, weights, Some((first, last)))) = last else {
                open.insert(key, lines.len());
                lines.push((line, stored.elements(), Some((number, number))));
                continue;
            };
            *last = number;
            *weights += stored.elements();
            other.module = format!("{before}.experts.{first}..{number}.{part}");
            other.modules += 1;
            *other.bits.entry(stored.bits).or_insert(0) += 1;
            other.bytes += stored.bytes;
            other.bits_per_weight = per_weight(other.bytes, *weights);
        }
        lines.into_iter().map(|(line, _, _)| line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(bits: u32, features: &[usize], bytes: u64) -> Stored {
        let (scheme, group) = if bits == 16 { ("dense", None) } else { ("exl3", Some(16)) };
        let detail = if bits == 16 { "bf16" } else { "mul1" };
        let features = features.to_vec();
        Stored { scheme, detail: detail.into(), bits, group, features, bytes, tensors: Vec::new() }
    }

    #[test]
    fn bits_are_averaged_over_matrices() {
        let modules = [
            ("model.embed_tokens".to_owned(), stored(16, &[100, 10], 2000)),
            ("model.layers.0.mlp.experts.0.up_proj".to_owned(), stored(2, &[20, 10], 60)),
            ("model.layers.0.mlp.experts.1.up_proj".to_owned(), stored(4, &[20, 10], 110)),
            ("model.layers.0.mlp.experts.2.up_proj".to_owned(), stored(4, &[20, 10], 110)),
            ("model.norm".to_owned(), stored(16, &[10], 20)),
        ];
        let found = Breakdown::of(&modules);
        // 2280 bytes for 1600 weights; without the embedding 280 for 600.
        assert!((found.bits_per_weight - 11.4).abs() < 1e-12);
        assert!((found.bits_per_inner_weight - 2240.0 / 600.0).abs() < 1e-12);
        let histogram: Vec<_> = found.histogram.iter().map(|b| (b.bits, b.modules, b.weights, b.bytes)).collect();
        assert_eq!(histogram, [(2, 1, 200, 60), (4, 2, 400, 220), (16, 1, 1000, 2000)]);
        assert_eq!(found.histogram[1].share, 0.25);
        assert_eq!((found.schemes[0].scheme, found.schemes[1].modules), ("dense", 3));
        assert_eq!(found.groups, BTreeMap::from([(16, 600)]));

        let lines = ModuleLine::all(&modules);
        let names: Vec<_> = lines.iter().map(|l| l.module.as_str()).collect();
        assert_eq!(names, ["model.embed_tokens", "model.layers.0.mlp.experts.0..2.up_proj", "model.norm"]);
        assert_eq!((lines[1].modules, lines[1].bytes), (3, 280));
        assert_eq!(lines[1].bits, BTreeMap::from([(2, 1), (4, 2)]));
    }

    #[test]
    fn experts_that_differ_have_lines_of_their_own() {
        let name = |e: usize| format!("model.layers.0.mlp.experts.{e}.up_proj");
        let modules = [(name(0), stored(4, &[20, 10], 110)), (name(1), stored(16, &[20, 10], 400))];
        assert_eq!(ModuleLine::all(&modules).len(), 2);
    }
}
