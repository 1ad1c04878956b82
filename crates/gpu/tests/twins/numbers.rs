//! Numbers and weights to test with.

use half::{bf16, f16};
use marlin_checkpoint::weight::{Codebook, Grouped, ScaleTree, ScaleType, Scales, ValueMap};
use marlin_checkpoint::{DType, Dense, Linear, Tensor, TensorInfo, Trellis, Weight};

/// Numbers in [-1, 1) from a linear congruence.
pub struct Numbers(pub u32);

impl Numbers {
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn many(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.next() * 128.0) as i8 as u8).collect()
    }

    pub fn dense(&mut self, name: &str, rows: usize, cols: usize, dtype: DType) -> Linear {
        let scale = (3.0 / cols as f32).sqrt();
        let values = self.many(rows * cols).into_iter().map(|v| v * scale);
        let data: Vec<u8> = match dtype {
            DType::BF16 => values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
            DType::F16 => values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
            _ => values.flat_map(f32::to_le_bytes).collect(),
        };
        let info = TensorInfo { name: name.into(), dtype, shape: vec![rows, cols] };
        Linear::new(name, Weight::Dense(Dense::new(Tensor { info, data: data.into() }).unwrap()), None)
    }

    /// Factors of a `[rows, cols]` matrix, one for each `block`, all of them finite and about as large as one another.
    pub fn scales(&mut self, kind: ScaleType, [rows, cols]: [usize; 2], block: (usize, usize)) -> Scales {
        let across = cols.div_ceil(block.1);
        let lines = rows.div_ceil(block.0);
        let mut line = || -> Vec<u8> {
            match kind {
                ScaleType::F32 => (0..across).flat_map(|_| (self.next() * 0.2).to_le_bytes()).collect(),
                ScaleType::F16 => (0..across).flat_map(|_| f16::from_f32(self.next() * 0.2).to_le_bytes()).collect(),
                ScaleType::BF16 => (0..across).flat_map(|_| bf16::from_f32(self.next() * 0.2).to_le_bytes()).collect(),
                ScaleType::E4M3 => (0..across).map(|_| (40.0 + self.next() * 12.0) as u8).collect(),
                ScaleType::E8M0 => (0..across).map(|_| (124.0 + self.next() * 2.5) as u8).collect(),
                ScaleType::I8 | ScaleType::U8 => (0..across).map(|_| (8.0 + self.next() * 7.0) as u8).collect(),
                ScaleType::U4 => (0..across.div_ceil(2)).map(|_| (self.next() * 128.0) as i8 as u8).collect(),
            }
        };
        let data: Vec<u8> = (0..lines).flat_map(|_| line()).collect();
        Scales::new(kind, rows, cols, block, data.into()).unwrap()
    }

    pub fn grouped(
        &mut self,
        [rows, cols]: [usize; 2],
        bits: u32,
        map: ValueMap,
        scale: ScaleTree,
        minimum: Option<ScaleTree>,
    ) -> Linear {
        let stride = (cols * bits as usize).div_ceil(32) * 4;
        let mut codes = self.bytes(rows * stride);
        if matches!(map, ValueMap::E4M3 | ValueMap::E5M2) {
            codes.iter_mut().for_each(|c| *c &= 0xb7); // no NaN, no infinity, nothing huge
        }
        let weight = Grouped::new([rows, cols], bits, codes.into(), map, scale, minimum).unwrap();
        Linear::new("grouped", Weight::Grouped(Box::new(weight)), None)
    }

    /// 4-bit codes in groups of 16 with f32 scales.
    pub fn four_bits(&mut self, rows: usize, cols: usize, map: ValueMap) -> Linear {
        let scales = self.scales(ScaleType::F32, [rows, cols], (1, 16));
        self.grouped([rows, cols], 4, map, ScaleTree::flat(scales), None)
    }

    pub fn trellis(&mut self, rows: usize, cols: usize, bits: usize, codebook: Codebook) -> Linear {
        let data = self.bytes(rows * cols / 256 * 32 * bits);
        let info = TensorInfo { name: "t".into(), dtype: DType::I16, shape: vec![cols / 16, rows / 16, 16 * bits] };
        let weight = Trellis::new(Tensor { info, data: data.into() }, codebook).unwrap();
        Linear::new("trellis", Weight::Trellis(weight), None)
    }
}
