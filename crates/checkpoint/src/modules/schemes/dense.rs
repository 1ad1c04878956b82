//! Floats as they are: `{module}.weight` of F64, F32, F16 or BF16.

use super::super::{Found, Part, Stored};
use crate::{Config, Dense, Error, Linear, Result, Weight};

pub(super) fn find(part: &Part, features: [usize; 2], _: &Config) -> Result<Option<Found>> {
    if !part.has(".weight") {
        return Ok(None);
    }
    let info = part.info(".weight")?;
    if info.shape != features {
        return Err(Error::Shape { name: info.name, expected: features.to_vec(), found: info.shape });
    }
    if !info.dtype.is_float() {
        return Err(Error::DType { name: info.name, expected: "BF16, F16, F32 or F64", found: info.dtype });
    }
    let stored = Stored::dense(info.dtype, &features, part.name(".weight"));
    let part = part.clone();
    Ok(Some(Found::new(stored, move || {
        Ok(Linear::new(part.base(), Weight::Dense(Dense::new(part.tensor(".weight")?)?), None))
    })))
}
