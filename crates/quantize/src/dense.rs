//! No quantiser at all: weights as bf16.

use half::bf16;
use marlin_checkpoint::DType;

use crate::{Compute, Error, Hessian, Matrix, Method, Quantised, Result, Written};

/// Stores weights as bf16, rounded to nearest: what checkpoints of other formats become plain by.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dense;

impl Method for Dense {
    fn name(&self) -> String {
        "bf16".to_owned()
    }

    fn quantise(&self, _: &dyn Compute, module: &str, weight: &Matrix, _: Option<&Hessian>) -> Result<Quantised> {
        let rounded: Vec<bf16> = weight.data().iter().map(|v| bf16::from_f32(*v)).collect();
        if let Some(at) = rounded.iter().position(|v| !v.is_finite()) {
            let why = format!("{} at {at} is out of the range of bf16", weight.data()[at]);
            return Err(Error::Module { module: module.to_owned(), why });
        }
        let decoded = rounded.iter().map(|v| v.to_f32()).collect();
        let tensor = Written {
            suffix: "weight".to_owned(),
            dtype: DType::BF16,
            shape: vec![weight.rows(), weight.cols()],
            data: rounded.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        Ok(Quantised { tensors: vec![tensor], decoded: Matrix::new(weight.rows(), weight.cols(), decoded)? })
    }
}
