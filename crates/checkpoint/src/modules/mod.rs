//! A model's modules, by the names that transformers gives them, whatever a file calls and packs them.
//!
//! [`Modules::linear`] finds a module's tensors, looks at their names, types and shapes (and at nothing of their data but
//! a few scalars), and says how they are stored; [`Found::build`] then makes the [`Linear`].

mod gguf;
mod hugging_face;
mod part;
pub mod schemes;
#[cfg(test)]
mod tests;

pub use gguf::Gguf;
pub(crate) use gguf::{GgufFolder, config as gguf_config};
pub use hugging_face::HuggingFace;
pub use part::Part;

use crate::{DType, Linear, Result, Tensor};

/// How a module is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The format's name on the command line and in reports: `dense`, `exl3`, `mlx`, `gptq`, ...
    pub scheme: &'static str,
    /// What the elements are, for people: `bf16`, `mul1`, `e2m1 x e4m3`, `q4_k`, ...
    pub detail: String,
    /// Bits of a code; of an element if the module is dense.
    pub bits: u32,
    /// Weights along a row that share a factor.
    pub group: Option<usize>,
    /// `[out, in]` features, or the length of a vector.
    pub features: Vec<usize>,
    /// Stored bytes, factors and everything else included.
    pub bytes: u64,
    /// The tensors that the module is made of, by their names in the file. A stacked tensor is named by each of the
    /// modules in it.
    pub tensors: Vec<String>,
}

impl Stored {
    /// Floats of type `dtype` in the tensor `tensor`.
    pub(crate) fn dense(dtype: DType, features: &[usize], tensor: String) -> Self {
        Self {
            scheme: "dense",
            detail: dtype.name().to_lowercase(),
            bits: 8 * dtype.size() as u32,
            group: None,
            features: features.to_vec(),
            bytes: (features.iter().product::<usize>() * dtype.size()) as u64,
            tensors: vec![tensor],
        }
    }

    /// Weights.
    pub fn elements(&self) -> u64 {
        self.features.iter().map(|n| *n as u64).product()
    }

    /// Stored bits for each weight.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes as f64 / self.elements().max(1) as f64
    }
}

/// Makes what has been found.
pub type Build<T> = Box<dyn Fn() -> Result<T> + Send + Sync>;

/// A module that has been found, and how to make it.
pub struct Found<T = Linear> {
    /// How it is stored.
    pub stored: Stored,
    build: Build<T>,
}

impl<T> Found<T> {
    /// What `stored` describes and `build` makes.
    pub fn new(stored: Stored, build: impl Fn() -> Result<T> + Send + Sync + 'static) -> Self {
        Self { stored, build: Box::new(build) }
    }

    /// Makes it: views of the file's bytes where those can be used as they are.
    pub fn build(&self) -> Result<T> {
        (self.build)()
    }
}

/// The projection of latent attention from the latent to keys and values, in either of the forms that files have.
#[derive(Clone, Copy, Debug)]
pub enum LatentProjection<T> {
    /// `kv_b_proj` `[heads * (nope + value), rank]`: for each head, rows of the key, then of the value.
    Whole(T),
    /// In two: `k` `[heads * rank, nope]`, which takes a head's query into the latent space, and `v`
    /// `[heads * value, rank]`.
    Split {
        /// For each head, the key's part transposed.
        k: T,
        /// For each head, the value's part.
        v: T,
    },
}

impl<T, E> LatentProjection<std::result::Result<T, E>> {
    /// The form without the results, or the first error.
    pub fn transpose(self) -> std::result::Result<LatentProjection<T>, E> {
        Ok(match self {
            Self::Whole(w) => LatentProjection::Whole(w?),
            Self::Split { k, v } => LatentProjection::Split { k: k?, v: v? },
        })
    }
}

impl<T> LatentProjection<T> {
    /// The same form with references.
    pub fn as_ref(&self) -> LatentProjection<&T> {
        match self {
            Self::Whole(w) => LatentProjection::Whole(w),
            Self::Split { k, v } => LatentProjection::Split { k, v },
        }
    }

    /// The same form of something made from each matrix.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> LatentProjection<U> {
        match self {
            Self::Whole(w) => LatentProjection::Whole(f(w)),
            Self::Split { k, v } => LatentProjection::Split { k: f(k), v: f(v) },
        }
    }

    /// Its one or two matrices.
    pub fn matrices(&self) -> impl Iterator<Item = &T> {
        let (first, second) = match self {
            Self::Whole(w) => (w, None),
            Self::Split { k, v } => (k, Some(v)),
        };
        std::iter::once(first).chain(second)
    }
}

/// Sizes of a latent projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentSizes {
    /// Heads.
    pub heads: usize,
    /// Values of a key that are not rotated.
    pub nope: usize,
    /// Values of a value.
    pub value: usize,
    /// Values of the latent.
    pub rank: usize,
}

/// A checkpoint's modules.
pub trait Modules: Send + Sync {
    /// The linear (or embedding) `module`, such as `model.layers.0.mlp.experts.3.up_proj`, of `[out, in]` features, without
    /// its bias. [`Error::MissingTensor`](crate::Error::MissingTensor) if no part of it is there; any other error says what is wrong with it.
    fn linear(&self, module: &str, features: [usize; 2]) -> Result<Found>;

    /// The latent projection `module` (`...self_attn.kv_b_proj`).
    fn latent(&self, module: &str, sizes: LatentSizes) -> Result<LatentProjection<Found>>;

    /// The vector `name` (whole, such as `model.norm.weight`) of `len` values.
    fn vector(&self, name: &str, len: usize) -> Result<Found<Tensor>>;

    /// Tensors that belong to modules that the model does not use, or to none, and may be passed over: they are not
    /// complained about when nothing has claimed them.
    fn ignores(&self, tensor: &str) -> bool;
}
