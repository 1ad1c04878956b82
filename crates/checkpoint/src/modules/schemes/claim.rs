//! What every scheme does with a module's tensors: claims them one by one, looks at their types and shapes, and reads a
//! few settings from the configuration.

use serde_json::{Map, Value};

use super::super::{Found, Part, Stored};
use crate::weight::{ScaleType, Scales};
use crate::{Config, DType, Error, Linear, Result, Tensor, TensorInfo, Weight};

/// The tensors of a module that a scheme has looked at so far.
pub(super) struct Claim<'a> {
    pub part: &'a Part,
    scheme: &'static str,
    features: [usize; 2],
    tensors: Vec<String>,
    bytes: u64,
}

impl<'a> Claim<'a> {
    pub fn new(part: &'a Part, scheme: &'static str, features: [usize; 2]) -> Result<Self> {
        if features.contains(&0) {
            return Err(Error::invalid(part.base(), format!("expected some features, found {features:?}")));
        }
        Ok(Self { part, scheme, features, tensors: Vec::new(), bytes: 0 })
    }

    /// The tensor with this suffix, of one of these types; its absence is told as an incomplete module.
    pub fn info(&mut self, suffix: &str, types: &[DType]) -> Result<TensorInfo> {
        if !self.part.has(suffix) {
            let beside = self.tensors.first().map_or_else(|| self.part.base().to_owned(), Clone::clone);
            return Err(self
                .part
                .wrong(suffix, format!("expected beside {beside:?} ({}), found nothing", self.scheme)));
        }
        let info = self.part.info(suffix)?;
        if !types.contains(&info.dtype) {
            let names: Vec<&str> = types.iter().map(|t| t.name()).collect();
            return Err(self.part.wrong(suffix, format!("expected {}, found {}", names.join(" or "), info.dtype)));
        }
        self.tensors.push(self.part.name(suffix));
        self.bytes = self.bytes.saturating_add(info.bytes() as u64);
        Ok(info)
    }

    /// The same for a tensor that must have this shape.
    pub fn need(&mut self, suffix: &str, types: &[DType], shape: &[usize]) -> Result<TensorInfo> {
        let info = self.info(suffix, types)?;
        if info.shape != shape {
            return Err(Error::Shape { name: info.name, expected: shape.to_vec(), found: info.shape });
        }
        Ok(info)
    }

    /// Claims a tensor that has been looked at otherwise.
    pub fn add(&mut self, suffix: &str) {
        self.tensors.push(self.part.name(suffix));
    }

    /// The module is only half of what has been claimed.
    pub fn halve(&mut self) {
        self.bytes /= 2;
    }

    /// One number: shape `[]` or `[1]`.
    pub fn scalar(&mut self, suffix: &str, types: &[DType]) -> Result<TensorInfo> {
        let info = self.info(suffix, types)?;
        if !matches!(info.shape.as_slice(), [] | [1]) {
            return Err(Error::Shape { name: info.name, expected: vec![1], found: info.shape });
        }
        Ok(info)
    }

    /// The dimensions of a matrix.
    pub fn matrix(&mut self, suffix: &str, types: &[DType]) -> Result<[usize; 2]> {
        let info = self.info(suffix, types)?;
        <[usize; 2]>::try_from(info.shape.as_slice())
            .map_err(|_| self.part.wrong(suffix, format!("expected a matrix, found shape {:?}", info.shape)))
    }

    /// What has been found, made by `build`.
    pub fn found(
        self,
        detail: impl Into<String>,
        bits: u32,
        group: Option<usize>,
        build: impl Fn(&Part) -> Result<Linear> + Send + Sync + 'static,
    ) -> Found {
        let stored = Stored {
            scheme: self.scheme,
            detail: detail.into(),
            bits,
            group,
            features: self.features.to_vec(),
            bytes: self.bytes,
            tensors: self.tensors,
        };
        let part = self.part.clone();
        Found::new(stored, move || build(&part))
    }

    /// The same for a matrix with nothing around it.
    pub fn plain(
        self,
        detail: impl Into<String>,
        bits: u32,
        group: Option<usize>,
        build: impl Fn(&Part) -> Result<Weight> + Send + Sync + 'static,
    ) -> Found {
        self.found(detail, bits, group, move |part| Ok(Linear::new(part.base(), build(part)?, None)))
    }
}

/// Types that factors may have.
pub(super) const FLOATS: [DType; 3] = [DType::F16, DType::BF16, DType::F32];

/// The element type of factors stored as `dtype`; `None` if it is none of [`FLOATS`] or a small float.
pub(super) fn scale_type(dtype: DType) -> Option<ScaleType> {
    Some(match dtype {
        DType::F32 => ScaleType::F32,
        DType::F16 => ScaleType::F16,
        DType::BF16 => ScaleType::BF16,
        DType::F8E4M3 => ScaleType::E4M3,
        DType::F8E8M0 => ScaleType::E8M0,
        _ => return None,
    })
}

/// `tensor` as factors of a `[rows, cols]` matrix.
pub(super) fn scales(tensor: Tensor, [rows, cols]: [usize; 2], block: (usize, usize)) -> Result<Scales> {
    let kind = scale_type(tensor.info.dtype);
    let kind = kind.ok_or_else(|| wrong(&tensor.info, format!("expected floats, found {}", tensor.info.dtype)))?;
    Scales::new(kind, rows, cols, block, tensor.data).map_err(|e| wrong(&tensor.info, e.to_string()))
}

/// One float of a tensor of one element.
pub(super) fn number(tensor: &Tensor) -> Result<f32> {
    match tensor.to_f32()?.as_slice() {
        [value] if value.is_finite() => Ok(*value),
        found => Err(wrong(&tensor.info, format!("expected one finite number, found {found:?}"))),
    }
}

/// Weights along a row that share a factor, if there are `groups` of them in `cols`, of size `expected` where that is
/// known.
pub(super) fn group(part: &Part, suffix: &str, cols: usize, groups: usize, expected: Option<usize>) -> Result<usize> {
    match expected {
        Some(size) if size > 0 && cols.div_ceil(size) == groups => Ok(size),
        Some(size) => {
            let wanted = cols.div_ceil(size.max(1));
            let why = format!("expected {wanted} groups (of {size} in {cols} inputs), found {groups}");
            Err(part.wrong(suffix, why))
        }
        None if groups > 0 && cols.is_multiple_of(groups) => Ok(cols / groups),
        None => Err(part.wrong(suffix, format!("{groups} groups do not divide {cols} inputs"))),
    }
}

/// An error about a tensor.
pub(super) fn wrong(info: &TensorInfo, why: impl std::fmt::Display) -> Error {
    Error::invalid(format!("tensor {:?}", info.name), why)
}

/// The integers of an I32 (or U32) tensor.
pub(super) fn integers(tensor: &Tensor) -> impl Iterator<Item = i32> {
    tensor.data.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b))
}

/// The configuration's section about quantisation.
#[derive(Clone, Copy)]
pub(super) struct Settings<'a> {
    config: &'a Config,
    key: &'static str,
    section: Option<&'a Map<String, Value>>,
}

impl<'a> Settings<'a> {
    /// The first of `keys` that is there.
    pub fn of(config: &'a Config, keys: [&'static str; 2]) -> Result<Self> {
        let key = if config.get(keys[0]).is_some() { keys[0] } else { keys[1] };
        let section = match config.get(key) {
            None => None,
            Some(value) => Some(value.as_object().ok_or_else(|| config.wrong(key, "an object"))?),
        };
        Ok(Self { config, key, section })
    }

    /// `quantization_config`, as transformers writes it.
    pub fn new(config: &'a Config) -> Result<Self> {
        Self::of(config, ["quantization_config", "quantization"])
    }

    /// The value of `key`, unless absent or null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.section?.get(key).filter(|v| !v.is_null())
    }

    /// A string, if there.
    pub fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key)?.as_str()
    }

    /// A positive integer, if there; -1, which stands for "all", counts as absent.
    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key).filter(|v| v.as_i64() != Some(-1)) else { return Ok(None) };
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        size.map(Some).ok_or_else(|| self.wrong(key, "an integer above 0", value))
    }

    /// The error for a value that makes no sense.
    pub fn wrong(&self, key: &str, expected: impl Into<String>, found: &Value) -> Error {
        let mut found = found.to_string();
        if let Some((cut, _)) = found.char_indices().nth(60) {
            found.truncate(cut);
        }
        let key = format!("{}.{key}", self.key);
        Error::Config { file: self.config.file().to_owned(), key, expected: expected.into(), found }
    }
}
