//! Weights made on demand, of any size, without a file.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use half::f16;

use crate::{Bytes, DType, Error, Result, Tensor, TensorInfo, TensorSource};

/// Tensors computed when they are asked for; the same name and shape always give the same values.
pub struct Synthetic {
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    fill: Fill,
    /// What the tensors are filled with; [`Pattern::Weights`] beyond its end.
    patterns: Vec<Pattern>,
    /// The last stacked tensors that were made: each of their slices asks for all of them.
    stacks: Mutex<VecDeque<(String, Bytes)>>,
}

/// What a tensor of a quantised module is filled with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Pattern {
    /// Floats as a plain model has them.
    Weights,
    /// Any bits.
    Bits,
    /// Each byte `low` plus the bits of a random byte that `mask` has.
    Bytes {
        /// Least byte.
        low: u8,
        /// Which bits vary.
        mask: u8,
    },
    /// Floats within a tenth of this.
    Near(f32),
    /// Floats of this magnitude, either sign.
    Signs(f32),
    /// These bytes again and again.
    Cycle(Vec<u8>),
    /// I32 numbers: each `size` elements the next, from 0.
    Groups(usize),
}

#[derive(Clone, Copy)]
enum Fill {
    Formula,
    Random(u64),
}

impl Synthetic {
    /// Weights by a formula that other programs can follow. For element `i` (row-major) of the tensor `name`:
    ///
    /// ```text
    /// h = FNV-1a 64 of the name;  x = h + (i + 1) * 0x9E3779B97F4A7C15;  z = splitmix64's finish of x
    /// v = (z >> 40) / 2^23 - 1
    /// matrix: v * sqrt(3 / columns), but embed_tokens: v * 1.7320508
    /// e_score_correction_bias: 0.05 v;  *norm.weight: 1 + 0.1 v;  other vectors: 0.1 v
    /// ```
    ///
    /// in f64, rounded to f32 and then to the tensor's own type.
    pub fn formula(tensors: Vec<TensorInfo>) -> Self {
        Self::new(tensors, Fill::Formula)
    }

    /// Pseudo-random weights, made as fast as memory is written: uniform with variance 1 / columns, norms near 1.
    pub fn random(tensors: Vec<TensorInfo>, seed: u64) -> Self {
        Self::new(tensors, Fill::Random(seed))
    }

    /// Pseudo-random tensors of quantised modules.
    pub(crate) fn patterned(tensors: Vec<(TensorInfo, Pattern)>, seed: u64) -> Self {
        let (tensors, patterns) = tensors.into_iter().unzip();
        Self { patterns, ..Self::new(tensors, Fill::Random(seed)) }
    }

    fn new(tensors: Vec<TensorInfo>, fill: Fill) -> Self {
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Self { tensors, by_name, fill, patterns: Vec::new(), stacks: Mutex::default() }
    }
}

impl TensorSource for Synthetic {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let info = self.info(name)?;
        let stacked = info.name.contains(STACK);
        if let (true, Ok(stacks)) = (stacked, self.stacks.lock())
            && let Some((_, data)) = stacks.iter().find(|(made, _)| made == name)
        {
            return Ok(Tensor { data: data.clone(), info });
        }
        let pattern = self.by_name.get(name).and_then(|&i| self.patterns.get(i));
        let data: Bytes = match pattern {
            None | Some(Pattern::Weights) => self.weights(&info)?.into(),
            Some(pattern) => self.filled(&info, pattern).into(),
        };
        if let (true, Ok(mut stacks)) = (stacked, self.stacks.lock()) {
            stacks.push_back((name.to_owned(), data.clone()));
            if stacks.len() > MOST_STACKS {
                stacks.pop_front();
            }
        }
        Ok(Tensor { data, info })
    }

    fn info(&self, name: &str) -> Result<TensorInfo> {
        let missing = || Error::MissingTensor { name: name.to_owned(), within: self.describe() };
        self.by_name.get(name).map(|&i| self.tensors[i].clone()).ok_or_else(missing)
    }

    fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    fn describe(&self) -> String {
        match self.fill {
            Fill::Formula => "synthetic weights (formula)".to_owned(),
            Fill::Random(seed) => format!("synthetic weights (random, seed {seed})"),
        }
    }
}

impl Synthetic {
    /// Floats of any size.
    fn weights(&self, info: &TensorInfo) -> Result<Vec<u8>> {
        Ok(match info.dtype {
            DType::BF16 => self.generate::<2>(info, |v| to_bf16(v).to_le_bytes()),
            DType::F16 => self.generate::<2>(info, |v| f16::from_f32(v).to_le_bytes()),
            DType::F32 => self.generate::<4>(info, f32::to_le_bytes),
            found => {
                return Err(Error::DType { name: info.name.clone(), expected: "F32, F16 or BF16", found });
            }
        })
    }

    /// The bytes of a tensor by its pattern.
    fn filled(&self, info: &TensorInfo, pattern: &Pattern) -> Vec<u8> {
        let seed = if let Fill::Random(seed) = self.fill { mix(seed) } else { 0 };
        let start = fnv(&info.name) ^ seed;
        let mut data = vec![0; info.bytes()];
        let floats = |data: &mut [u8], value: &(dyn Fn(u64) -> f32 + Sync)| {
            let size = info.dtype.size();
            in_parallel(data, size, |first, bytes| {
                for (i, out) in bytes.chunks_exact_mut(size).enumerate() {
                    let z = mix(start.wrapping_add(((first + i) as u64).wrapping_mul(GOLDEN)));
                    let v = value(z);
                    match info.dtype {
                        DType::F32 => out.copy_from_slice(&v.to_le_bytes()),
                        DType::F16 => out.copy_from_slice(&f16::from_f32(v).to_le_bytes()),
                        _ => out.copy_from_slice(&to_bf16(v).to_le_bytes()),
                    }
                }
            });
        };
        match pattern {
            Pattern::Weights => {}
            Pattern::Bits => random(&mut data, start, |z| z),
            Pattern::Bytes { low, mask } => {
                let [low, mask] = [low, mask].map(|b| u64::from_le_bytes([*b; 8]));
                // No byte overflows into the next: low and mask leave room for each other.
                random(&mut data, start, |z| (z & mask).wrapping_add(low));
            }
            Pattern::Near(value) => {
                floats(&mut data, &|z| value * (0.9 + 0.2 * ((z >> 40) as i32 as f32 / (1 << 24) as f32)));
            }
            Pattern::Signs(value) => floats(&mut data, &|z| if z >> 63 == 0 { *value } else { -value }),
            Pattern::Cycle(bytes) => {
                data.iter_mut().zip(bytes.iter().cycle()).for_each(|(to, from)| *to = *from);
            }
            Pattern::Groups(size) => {
                for (i, out) in data.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    *out = ((i / size.max(&1)) as i32).to_le_bytes();
                }
            }
        }
        data
    }

    fn generate<const N: usize>(&self, info: &TensorInfo, store: impl Fn(f32) -> [u8; N] + Sync) -> Vec<u8> {
        let mut data = vec![0; info.elements() * N];
        let (factor, offset) = range(info);
        let hash = fnv(&info.name);
        match self.fill {
            Fill::Formula => in_parallel(&mut data, N, |first, bytes| {
                for (i, out) in bytes.as_chunks_mut::<N>().0.iter_mut().enumerate() {
                    let z = mix(hash.wrapping_add(((first + i) as u64 + 1).wrapping_mul(GOLDEN)));
                    // 24 bits; as i32 the conversion is one instruction.
                    let v = f64::from((z >> 40) as i32) / f64::from(1 << 23) - 1.0;
                    *out = store((v * factor + offset) as f32);
                }
            }),
            Fill::Random(seed) => {
                let start = hash ^ mix(seed);
                let (factor, offset) = ((factor / 32768.0) as f32, offset as f32);
                // One draw makes four values, as first is a multiple of four.
                in_parallel(&mut data, N, |first, bytes| {
                    let (fours, rest) = bytes.as_chunks_mut::<N>().0.as_chunks_mut::<4>();
                    let mut z = start.wrapping_add((first as u64 / 4).wrapping_mul(GOLDEN));
                    let mut four = || {
                        z = z.wrapping_add(GOLDEN);
                        let bits = mix(z);
                        [0, 16, 32, 48].map(|s| store(f32::from((bits >> s) as i16) * factor + offset))
                    };
                    fours.iter_mut().for_each(|out| *out = four());
                    rest.iter_mut().zip(four()).for_each(|(out, v)| *out = v);
                });
            }
        }
        data
    }
}

/// Part of the names of tensors that hold all experts of a layer.
const STACK: &str = ".switch_mlp.";
/// Codes, scales and minimums of three matrices.
const MOST_STACKS: usize = 9;

/// Fills `data` with draws that `map` has changed, eight bytes at a time.
fn random(data: &mut [u8], start: u64, map: impl Fn(u64) -> u64 + Sync) {
    in_parallel(data, 8, |first, bytes| {
        let draw = |i: usize| map(mix(start.wrapping_add(((first + i) as u64 + 1).wrapping_mul(GOLDEN)))).to_le_bytes();
        let (words, rest) = bytes.as_chunks_mut::<8>();
        words.iter_mut().enumerate().for_each(|(i, word)| *word = draw(i));
        let last = draw(words.len());
        rest.iter_mut().zip(last).for_each(|(to, from)| *to = from);
    });
}

/// Bits of the nearest bf16, ties to even; for finite values only.
fn to_bf16(v: f32) -> u16 {
    let bits = v.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Factor and offset of values in [-1, 1).
fn range(info: &TensorInfo) -> (f64, f64) {
    match info.shape.as_slice() {
        [_] | [] if info.name.ends_with("e_score_correction_bias") => (0.05, 0.0),
        [_] | [] if info.name.ends_with("norm.weight") => (0.1, 1.0),
        [_] | [] => (0.1, 0.0),
        _ if info.name.contains("embed_tokens") => (1.7320508, 0.0),
        shape => ((3.0 / shape.last().map_or(1.0, |&n| n as f64)).sqrt(), 0.0),
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// FNV-1a, 64 bits.
pub(crate) fn fnv(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

/// The finish of splitmix64.
fn mix(x: u64) -> u64 {
    let z = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fills `data` on all cores: `work` gets the number of a part's first element, a multiple of 4, and the part.
fn in_parallel(data: &mut [u8], element: usize, work: impl Fn(usize, &mut [u8]) + Sync) {
    const LEAST: usize = 1 << 15; // elements worth a thread
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let part = (data.len() / element).div_ceil(threads).max(LEAST).next_multiple_of(4);
    std::thread::scope(|scope| {
        let mut parts = data.chunks_mut(part * element);
        let own = parts.next();
        for (i, bytes) in parts.enumerate() {
            let work = &work;
            scope.spawn(move || work((i + 1) * part, bytes));
        }
        own.into_iter().for_each(|bytes| work(0, bytes));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, dtype: DType, shape: &[usize]) -> TensorInfo {
        TensorInfo { name: name.into(), dtype, shape: shape.to_vec() }
    }

    /// Bits of elements 0, 1, n/2 and n-1 and the sum of all, computed with numpy from the formula.
    #[test]
    fn formula_agrees_with_numpy() {
        for (name, shape, expected, sum) in [
            (
                "model.layers.0.self_attn.q_proj.weight",
                &[4096, 4096][..],
                [0xbb8f, 0xbcc0, 0x3cdc, 0xbc3a],
                533_223_207_746,
            ),
            ("model.embed_tokens.weight", &[1000, 64], [0xbee4, 0xbf20, 0xbfdb, 0x3f12], 2_084_718_544),
            ("model.layers.1.input_layernorm.weight", &[2048], [0x3f8a, 0x3f74, 0x3f89, 0x3f83], 33_285_094),
            ("model.layers.0.self_attn.q_proj.bias", &[2048], [0x3d15, 0x3c7b, 0x3c90, 0x3d6d], 65_281_860),
            ("lm_head.weight", &[70000, 32], [0x3e9b, 0x3e98, 0x3e03, 0x3e88], 72_194_500_409_u64),
        ] {
            let source = Synthetic::formula(vec![info(name, DType::BF16, shape)]);
            let tensor = source.tensor(name).unwrap();
            let bits: Vec<u16> = tensor.data.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
            let n = bits.len();
            assert_eq!([bits[0], bits[1], bits[n / 2], bits[n - 1]], expected, "{name}");
            assert_eq!(bits.iter().map(|b| u64::from(*b)).sum::<u64>(), sum, "{name}");
        }
        let name = "model.layers.1.mlp.gate.e_score_correction_bias";
        let tensor = Synthetic::formula(vec![info(name, DType::F32, &[64])]).tensor(name).unwrap();
        let values = tensor.to_f32().unwrap();
        let bits = [0, 1, 32, 63].map(|i: usize| values[i].to_bits());
        assert_eq!(bits, [0xbd0f_5c73, 0x3d32_0d53, 0xbc06_0f26, 0x3d14_51e3]);
        assert_eq!(values.iter().map(|v| f64::from(*v)).sum::<f64>(), 0.21966743987286463);
    }

    #[test]
    fn random_weights_have_their_variance() {
        let infos = vec![info("a.weight", DType::BF16, &[512, 768]), info("b.norm.weight", DType::BF16, &[4097])];
        let values = |seed, name| Synthetic::random(infos.clone(), seed).tensor(name).unwrap().to_f32().unwrap();
        let a = values(1, "a.weight");
        let mean = |f: fn(f64) -> f64, of: &[f32]| of.iter().map(|v| f(f64::from(*v))).sum::<f64>() / of.len() as f64;
        assert!(mean(|v| v, &a).abs() < 1e-3);
        assert!((mean(|v| v * v, &a) * 768.0 - 1.0).abs() < 0.01);
        assert!((mean(|v| v, &values(1, "b.norm.weight")) - 1.0).abs() < 0.01);
        assert_eq!(a, values(1, "a.weight"));
        assert_ne!(a, values(2, "a.weight"));
        // Neighbouring rows and halves of the thread split are unrelated.
        let correlation: f64 =
            a.iter().zip(&a[768..]).map(|(x, y)| f64::from(x * y)).sum::<f64>() * 768.0 / a.len() as f64;
        assert!(correlation.abs() < 0.01, "{correlation}");
    }

    #[test]
    fn what_cannot_be_made_is_refused() {
        let source = Synthetic::random(vec![info("i", DType::I32, &[2])], 0);
        assert_eq!(source.tensor("i").unwrap_err().to_string(), "tensor \"i\": expected F32, F16 or BF16, found I32");
        assert!(source.tensor("j").unwrap_err().to_string().contains("is not in synthetic weights (random, seed 0)"));
    }
}
