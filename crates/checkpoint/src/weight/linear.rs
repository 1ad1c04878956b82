//! A linear layer: a weight of any kind with what goes before and after it.

use super::{InputTransform, OutputTransform, Weight};
use crate::{Error, Result};

/// y = output(weight · input(x)) + bias.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Name of the module in the checkpoint, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// The matrix `[out_features, in_features]`, where a format pads it with the padding.
    pub weight: Weight,
    /// Added to the output, `[out_features]`.
    pub bias: Option<Vec<f32>>,
    input: InputTransform,
    output: OutputTransform,
    features: [usize; 2],
}

impl Linear {
    /// A plain layer: y = weight · x + bias.
    pub fn new(name: impl Into<String>, weight: Weight, bias: Option<Vec<f32>>) -> Self {
        let features = [weight.rows(), weight.cols()];
        let (input, output) = (InputTransform::None, OutputTransform::None);
        Self { name: name.into(), weight, bias, input, output, features }
    }

    /// The same layer with transforms around the matrix.
    pub fn with_transforms(mut self, input: InputTransform, output: OutputTransform) -> Result<Self> {
        input.check(&self.name, self.weight.cols())?;
        output.check(&self.name, self.weight.rows())?;
        (self.input, self.output) = (input, output);
        Ok(self)
    }

    /// The same layer with so many real `[out, in]` features, the rest of the matrix being padding: inputs are extended
    /// with zeros, outputs cut.
    pub fn with_features(mut self, [out, inputs]: [usize; 2]) -> Result<Self> {
        let [rows, cols] = [self.weight.rows(), self.weight.cols()];
        let bias = self.bias.as_ref().is_none_or(|b| b.len() == out || b.len() == rows);
        if out > rows || inputs > cols || !bias {
            return Err(Error::Shape { name: self.name, expected: vec![out, inputs], found: vec![rows, cols] });
        }
        self.features = [out, inputs];
        if let Some(bias) = &mut self.bias {
            bias.truncate(out);
        }
        Ok(self)
    }

    /// Output features.
    pub fn out_features(&self) -> usize {
        self.features[0]
    }

    /// Input features.
    pub fn in_features(&self) -> usize {
        self.features[1]
    }

    /// What happens to the input.
    pub fn input(&self) -> &InputTransform {
        &self.input
    }

    /// What happens to the output before the bias.
    pub fn output(&self) -> &OutputTransform {
        &self.output
    }

    /// Whether the layer is its matrix and nothing else (but perhaps a bias).
    pub fn is_plain(&self) -> bool {
        matches!((&self.input, &self.output), (InputTransform::None, OutputTransform::None))
            && self.features == [self.weight.rows(), self.weight.cols()]
    }

    /// The layer's output for `x`, plainly: the reference for whatever computes it fast. Sums are f64.
    pub fn apply(&self, x: &[f32]) -> Result<Vec<f32>> {
        if x.len() != self.in_features() {
            let (expected, found) = (vec![self.in_features()], vec![x.len()]);
            return Err(Error::Shape { name: format!("{} (input)", self.name), expected, found });
        }
        let mut x = x.to_vec();
        x.resize(self.weight.cols(), 0.0);
        self.input.apply(&mut x);
        let mut row = vec![0.0; self.weight.cols()];
        let mut y = Vec::with_capacity(self.weight.rows());
        for r in 0..self.weight.rows() {
            self.weight.dequantize_row(r, &mut row)?;
            y.push(row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() as f32);
        }
        self.output.apply(&mut y);
        y.truncate(self.out_features());
        if let Some(bias) = &self.bias {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
        Ok(y)
    }

    /// The `[out_features, in_features]` matrix that does the same without transforms, row-major.
    pub fn matrix(&self) -> Result<Vec<f32>> {
        let [rows, cols] = [self.weight.rows(), self.weight.cols()];
        let [out, inputs] = self.features;
        let mut whole = self.weight.dequantize()?;
        whole.chunks_exact_mut(cols.max(1)).for_each(|row| self.input.fold(row));
        if matches!(self.output, OutputTransform::None) {
            let lines = whole.chunks_exact(cols.max(1)).take(out);
            return Ok(lines.flat_map(|row| &row[..inputs]).copied().collect());
        }
        let mut matrix = vec![0.0; out * inputs];
        let mut column = vec![0.0; rows];
        for c in 0..inputs {
            column.iter_mut().enumerate().for_each(|(r, v)| *v = whole[r * cols + c]);
            self.output.apply(&mut column);
            column[..out].iter().enumerate().for_each(|(r, v)| matrix[r * inputs + c] = *v);
        }
        Ok(matrix)
    }
}
