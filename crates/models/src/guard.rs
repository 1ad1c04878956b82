//! Where a pass first computes what is not a number.

use marlin_backend::{Backend, Error, LinearHandle, Observer, Result};

/// Looks at the output of every linear, and stops at the first value that is not finite. Every linear is awaited, and blocks
/// are computed by their default bodies: slow, for finding out what is wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct NanGuard;

impl<B: Backend> Observer<B> for NanGuard {
    fn linear(&self, b: &B, linear: &B::Linear, input: &B::Tensor, output: &B::Tensor) -> Result<()> {
        b.submit()?;
        let bad = |values: &[f32]| values.iter().position(|v| !v.is_finite());
        let found = b.read(output)?;
        let Some(at) = bad(&found) else { return Ok(()) };
        let (row, column) = (at / linear.rows().max(1), at % linear.rows().max(1));
        let cause = match bad(&b.read(input)?) {
            None => "its input is finite: the product is at fault".to_owned(),
            Some(at) => format!(
                "so is its input at row {}, column {}: what comes before it is at fault",
                at / linear.cols().max(1),
                at % linear.cols().max(1)
            ),
        };
        let name = linear.name();
        Err(Error::Device(format!("{name}: the output at row {row}, column {column} is {}; {cause}", found[at])))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use marlin_backend::Reference;
    use marlin_checkpoint::{DType, Dense, Linear, Tensor, TensorInfo, Weight};

    #[test]
    fn the_layer_and_the_side_are_named() {
        let b = Reference;
        let info = TensorInfo { name: "w".into(), dtype: DType::F32, shape: vec![2, 2] };
        let data: Vec<u8> = [1e30f32, 1e30, 0.0, 1.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let weight = Weight::Dense(Dense::new(Tensor { info, data: data.into() }).unwrap());
        let linear = b.linear(Linear::new("model.layers.3.mlp.down_proj", weight, None)).unwrap();
        let look = |x: [f32; 4]| {
            let x = b.write(2, 2, x.to_vec()).unwrap();
            let y = b.linears(&[&linear], &x).unwrap().remove(0);
            NanGuard.linear(&b, &linear, &x, &y).map_err(|e| e.to_string())
        };
        look([1.0, 2.0, 3.0, 4.0]).unwrap();
        let error = look([1.0, 2.0, 3e30, 4.0]).unwrap_err();
        assert!(error.contains("layers.3.mlp.down_proj: the output at row 1, column 0 is inf"), "{error}");
        assert!(error.contains("its input is finite"), "{error}");
        let error = look([1.0, f32::NAN, 3.0, 4.0]).unwrap_err();
        assert!(error.contains("row 0, column 0 is NaN; so is its input at row 0, column 1"), "{error}");
    }
}
