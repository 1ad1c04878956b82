//! The table.

use super::{Kind, Thresholds};
use crate::trellis::Features;
use crate::{Level, Mode};
use marlin_backend::fallback::Reason;

/// Numbers of rows of activations that a kernel serves.
#[derive(Clone, Copy, Debug)]
pub enum Batch {
    /// Any.
    Any,
    /// One.
    Single,
    /// Up to a threshold.
    UpTo(fn(&Thresholds) -> usize, &'static str),
    /// Beyond a threshold.
    Beyond(fn(&Thresholds) -> usize, &'static str),
    /// Beyond the first, up to the second.
    Between(fn(&Thresholds) -> usize, fn(&Thresholds) -> usize, &'static str),
}

impl Batch {
    /// Whether `rows` rows are among them.
    pub fn has(&self, thresholds: &Thresholds, rows: usize) -> bool {
        match self {
            Batch::Any => true,
            Batch::Single => rows == 1,
            Batch::UpTo(most, _) => rows <= most(thresholds),
            Batch::Beyond(below, _) => rows > below(thresholds),
            Batch::Between(below, most, _) => rows > below(thresholds) && rows <= most(thresholds),
        }
    }

    /// `any`, `1 to 2`, `9 and more`.
    pub fn describe(&self, thresholds: &Thresholds) -> String {
        match self {
            Batch::Any => "any".to_owned(),
            Batch::Single => "1".to_owned(),
            Batch::UpTo(most, _) if most(thresholds) == 0 => "none".to_owned(),
            Batch::UpTo(most, _) => format!("1 to {}", most(thresholds)),
            Batch::Beyond(below, _) => format!("{} and more", below(thresholds) + 1),
            Batch::Between(below, most, _) if below(thresholds) >= most(thresholds) => "none".to_owned(),
            Batch::Between(below, most, _) => format!("{} to {}", below(thresholds) + 1, most(thresholds)),
        }
    }

    /// The names of the thresholds that decide.
    pub fn decided_by(&self) -> Option<&'static str> {
        match self {
            Batch::Any | Batch::Single => None,
            Batch::UpTo(_, name) | Batch::Beyond(_, name) | Batch::Between(_, _, name) => Some(name),
        }
    }
}

/// What a kernel asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: it runs at every level.
    Nothing,
    /// Dot products of pairs of bf16.
    Bf16,
    /// Dot products of bytes that take unsigned codes above 127.
    UnsignedBytes,
    /// Registers enough to decode trellises while multiplying, and funnel shifts.
    FusedTrellis,
    /// Fast dot products of bytes, for trellises.
    TrellisBytes,
    /// Tiles of bf16.
    Tiles,
}

impl Needs {
    fn met(self, level: Level) -> bool {
        match self {
            Needs::Nothing => true,
            Needs::Bf16 => level.has_bf16(),
            Needs::UnsignedBytes => level.has_unsigned_bytes(),
            Needs::FusedTrellis => Features::of(level).fused,
            Needs::TrellisBytes => Features::of(level).bytes,
            Needs::Tiles => level == Level::Amx,
        }
    }

    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Needs::Nothing => "any level",
            Needs::Bf16 => "bf16 dot products (AVX-512 BF16, NEON BF16)",
            Needs::UnsignedBytes => "unsigned byte dot products (AVX-512 VNNI)",
            Needs::FusedTrellis | Needs::TrellisBytes => "AVX-512 with VBMI2 and VNNI",
            Needs::Tiles => "matrix tiles (AMX)",
        }
    }
}

/// A kernel, and when it is taken: the first entry of [`TABLE`] that fits is.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name.
    pub kernel: &'static str,
    /// What it serves, for people.
    pub weights: &'static str,
    serves: fn(&Kind) -> bool,
    /// Whether it is for the fast mode only.
    pub fast: bool,
    /// Which batches.
    pub batch: Batch,
    /// On which machines.
    pub needs: Needs,
    /// What it does.
    pub does: &'static str,
}

impl Entry {
    /// Whether this machine has it.
    pub fn available(&self, level: Level) -> bool {
        self.needs.met(level)
    }
}

fn gemv(t: &Thresholds) -> usize {
    t.dense_gemv_rows
}

fn widen(t: &Thresholds) -> usize {
    t.dense_widen_rows
}

fn fine(t: &Thresholds) -> usize {
    t.trellis_fine_rows
}

fn below_tiles(t: &Thresholds) -> usize {
    t.tile_rows - 1
}

fn is_dense(kind: &Kind) -> bool {
    matches!(kind, Kind::Dense(_))
}

fn is_bf16(kind: &Kind) -> bool {
    matches!(kind, Kind::Dense(crate::DType::Bf16))
}

fn is_trellis(kind: &Kind) -> bool {
    matches!(kind, Kind::Trellis { .. })
}

/// Every kernel of a product with weights, in the order in which they are tried.
pub const TABLE: [Entry; 17] = [
    Entry {
        kernel: "dense_gemv_bf16",
        weights: "bf16",
        serves: is_bf16,
        fast: true,
        batch: Batch::UpTo(gemv, "dense_gemv_rows"),
        needs: Needs::Bf16,
        does: "each row of weights once and in order, pairs of bf16",
    },
    Entry {
        kernel: "dense_gemm_tiles_bf16",
        weights: "bf16",
        serves: is_bf16,
        fast: true,
        batch: Batch::Beyond(below_tiles, "tile_rows"),
        needs: Needs::Tiles,
        does: "matrix tiles, weights put in order for them a panel at a time",
    },
    Entry {
        kernel: "dense_gemm_bf16",
        weights: "bf16",
        serves: is_bf16,
        fast: true,
        batch: Batch::Beyond(gemv, "dense_gemv_rows"),
        needs: Needs::Bf16,
        does: "tiles of pairs of bf16",
    },
    Entry {
        kernel: "dense_gemv_f32",
        weights: "bf16, f16, f32",
        serves: is_dense,
        fast: false,
        batch: Batch::UpTo(gemv, "dense_gemv_rows"),
        needs: Needs::Nothing,
        does: "each row of weights once and in order, widened to f32 on the way",
    },
    Entry {
        kernel: "dense_gemm_tiles_f32",
        weights: "bf16, f16, f32",
        serves: is_dense,
        fast: false,
        batch: Batch::Between(gemv, widen, "dense_gemv_rows, dense_widen_rows"),
        needs: Needs::Nothing,
        does: "tiles in f32, weights widened for each tile",
    },
    Entry {
        kernel: "dense_gemm_panels_f32",
        weights: "bf16, f16, f32",
        serves: is_dense,
        fast: false,
        batch: Batch::Beyond(|t| t.dense_gemv_rows.max(t.dense_widen_rows), "dense_widen_rows"),
        needs: Needs::Nothing,
        does: "tiles in f32, weights widened once for a panel",
    },
    Entry {
        kernel: "grouped_gemv_bytes",
        weights: "integers of 2 to 7 bits; tables of integers up to 127 (FP4)",
        serves: |kind| matches!(kind, Kind::Integers { highest: ..=127, .. }),
        fast: true,
        batch: Batch::Single,
        needs: Needs::Nothing,
        does: "integer dot products straight from the codes, activations in bytes by blocks of 32",
    },
    Entry {
        kernel: "grouped_gemv_bytes",
        weights: "integers of 8 bits; tables of integers above 127",
        serves: |kind| matches!(kind, Kind::Integers { highest: 128.., .. }),
        fast: true,
        batch: Batch::Single,
        needs: Needs::UnsignedBytes,
        does: "the same",
    },
    Entry {
        kernel: "grouped_gemm_tiles_bf16",
        weights: "integers of 2 to 8 bits; tables of integers (FP4)",
        serves: |kind| matches!(kind, Kind::Integers { .. }),
        fast: true,
        batch: Batch::Beyond(below_tiles, "tile_rows"),
        needs: Needs::Tiles,
        does: "codes decoded to panels of bf16 for matrix tiles, activations in bf16",
    },
    Entry {
        kernel: "grouped_gemm_bytes",
        weights: "integers of 2 to 8 bits; tables of integers (FP4)",
        serves: |kind| matches!(kind, Kind::Integers { .. }),
        fast: true,
        batch: Batch::Any,
        needs: Needs::Nothing,
        does: "codes unpacked to panels, integer dot products, activations in bytes by blocks of 32",
    },
    Entry {
        kernel: "grouped_f32",
        weights: "8-bit floats, tables of fractions; all groups with --exact",
        serves: |kind| matches!(kind, Kind::Integers { .. } | Kind::Floats { .. }),
        fast: false,
        batch: Batch::Any,
        needs: Needs::Nothing,
        does: "codes decoded to f32, column after column",
    },
    Entry {
        kernel: "trellis_gemv_i16",
        weights: "EXL3",
        serves: is_trellis,
        fast: true,
        batch: Batch::UpTo(fine, "trellis_fine_rows"),
        needs: Needs::FusedTrellis,
        does: "16-bit activations, weights decoded in registers",
    },
    Entry {
        kernel: "trellis_gemm_tiles_bf16",
        weights: "EXL3",
        serves: is_trellis,
        fast: true,
        batch: Batch::Beyond(below_tiles, "tile_rows"),
        needs: Needs::Tiles,
        does: "panels decoded once to bf16 for matrix tiles, activations in bf16",
    },
    Entry {
        kernel: "trellis_gemm_i8",
        weights: "EXL3",
        serves: is_trellis,
        fast: true,
        batch: Batch::Beyond(fine, "trellis_fine_rows"),
        needs: Needs::TrellisBytes,
        does: "panels decoded once to bytes, 8-bit activations",
    },
    Entry {
        kernel: "trellis_gemm_i16",
        weights: "EXL3",
        serves: is_trellis,
        fast: true,
        batch: Batch::Any,
        needs: Needs::Nothing,
        does: "panels decoded once, 16-bit activations",
    },
    Entry {
        kernel: "trellis_exact_f32",
        weights: "EXL3 with --exact",
        serves: is_trellis,
        fast: false,
        batch: Batch::Any,
        needs: Needs::Nothing,
        does: "values as the format defines them, f32 sums",
    },
    Entry {
        kernel: "decoded_f32",
        weights: "everything else",
        serves: |kind| matches!(kind, Kind::Decoded(_)),
        fast: false,
        batch: Batch::Any,
        needs: Needs::Nothing,
        does: "the format's own decoder, 256 rows at a time, then f32",
    },
];

/// The kernel that serves such a weight at so many rows, and why.
pub fn choose(
    level: Level,
    thresholds: &Thresholds,
    mode: Mode,
    kind: &Kind,
    rows: usize,
) -> Option<(&'static Entry, String)> {
    let mut passed = None;
    for entry in TABLE.iter().filter(|e| (e.serves)(kind) && e.batch.has(thresholds, rows)) {
        if entry.fast && mode == Mode::Exact {
            passed = Some("--exact computes in f32".to_owned());
        } else if !entry.available(level) {
            let first = || format!("{} needs {}, which {} lacks", entry.kernel, entry.needs.describe(), level.name());
            passed = passed.or_else(|| Some(first()));
        } else {
            return Some((entry, why(entry, kind, thresholds, rows, passed)));
        }
    }
    None
}

fn why(entry: &Entry, kind: &Kind, thresholds: &Thresholds, rows: usize, passed: Option<String>) -> String {
    let mut parts: Vec<String> = passed.into_iter().collect();
    match kind {
        Kind::Decoded(Reason::UnsupportedGroup) => parts.push("no kernel serves groups of this size".to_owned()),
        Kind::Decoded(_) => parts.push("no kernel serves what stands around the matrix".to_owned()),
        Kind::Floats { .. } => parts.push("the codes are no small integers".to_owned()),
        _ => {}
    }
    if let Some(name) = entry.batch.decided_by() {
        let range = entry.batch.describe(thresholds);
        parts.push(format!("{rows} is within {range} ({name})"));
    }
    if parts.is_empty() { "it serves every batch".to_owned() } else { parts.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    const T: Thresholds = Thresholds::of(Level::Scalar);

    fn kernel(level: Level, mode: Mode, kind: Kind, rows: usize) -> &'static str {
        choose(level, &T, mode, &kind, rows).unwrap().0.kernel
    }

    #[test]
    fn dense_weights_by_batch_and_level() {
        let bf16 = Kind::Dense(DType::Bf16);
        assert_eq!(kernel(Level::Avx512Bf16, Mode::Fast, bf16, 2), "dense_gemv_bf16");
        assert_eq!(kernel(Level::Avx512Bf16, Mode::Fast, bf16, 3), "dense_gemm_bf16");
        assert_eq!(kernel(Level::Avx2, Mode::Fast, bf16, 1), "dense_gemv_f32");
        assert_eq!(kernel(Level::Amx, Mode::Fast, bf16, 11), "dense_gemm_bf16");
        assert_eq!(kernel(Level::Amx, Mode::Fast, bf16, 12), "dense_gemm_tiles_bf16");
        assert_eq!(kernel(Level::Avx512Bf16, Mode::Exact, bf16, 8), "dense_gemm_tiles_f32");
        assert_eq!(kernel(Level::Avx2, Mode::Fast, Kind::Dense(DType::F16), 9), "dense_gemm_panels_f32");
        let (_, why) = choose(Level::Avx2, &T, Mode::Fast, &bf16, 1).unwrap();
        assert!(why.starts_with("dense_gemv_bf16 needs bf16 dot products") && why.contains("avx2 lacks"), "{why}");
        assert!(why.ends_with("1 is within 1 to 2 (dense_gemv_rows)"), "{why}");
    }

    #[test]
    fn quantised_weights_by_kind() {
        let (four, eight) = (Kind::Integers { bits: 4, group: 128, highest: 15 }, Kind::Floats { bits: 8, group: 128 });
        assert_eq!(kernel(Level::Scalar, Mode::Fast, four, 500), "grouped_gemm_bytes");
        assert_eq!(kernel(Level::Avx2, Mode::Fast, four, 1), "grouped_gemv_bytes");
        let wide = Kind::Integers { bits: 8, group: 32, highest: 255 };
        assert_eq!(kernel(Level::Avx2, Mode::Fast, wide, 1), "grouped_gemm_bytes");
        assert_eq!(kernel(Level::Avx512Bf16, Mode::Fast, wide, 1), "grouped_gemv_bytes");
        assert_eq!(kernel(Level::Amx, Mode::Fast, wide, 500), "grouped_gemm_tiles_bf16");
        assert_eq!(kernel(Level::Amx, Mode::Fast, Kind::Trellis { bits: 3 }, 500), "trellis_gemm_tiles_bf16");
        assert_eq!(kernel(Level::Scalar, Mode::Exact, four, 1), "grouped_f32");
        assert_eq!(kernel(Level::Scalar, Mode::Fast, eight, 1), "grouped_f32");
        assert_eq!(kernel(Level::Scalar, Mode::Fast, Kind::Trellis { bits: 3 }, 1), "trellis_gemm_i16");
        assert_eq!(kernel(Level::Scalar, Mode::Exact, Kind::Trellis { bits: 3 }, 1), "trellis_exact_f32");
        let none = Kind::Decoded(Reason::UnsupportedGroup);
        let (entry, why) = choose(Level::Scalar, &T, Mode::Fast, &none, 1).unwrap();
        assert_eq!((entry.kernel, why.as_str()), ("decoded_f32", "no kernel serves groups of this size"));
    }

    /// Whatever the thresholds, every weight has a kernel at every batch.
    #[test]
    fn nothing_falls_through() {
        let kinds = [
            Kind::Dense(DType::F32),
            Kind::Dense(DType::Bf16),
            Kind::Integers { bits: 5, group: 32, highest: 31 },
            Kind::Floats { bits: 4, group: 16 },
            Kind::Trellis { bits: 8 },
            Kind::Decoded(Reason::UnsupportedTransform),
        ];
        for (gemv, widen, fine) in [(0, 0, 0), (2, 1, 4), (2, 8, 4), (1, 64, 1)] {
            let t = Thresholds { dense_gemv_rows: gemv, dense_widen_rows: widen, trellis_fine_rows: fine, ..T };
            for (kind, level) in kinds.iter().flat_map(|k| Level::ALL.map(|l| (k, l))) {
                for rows in [1, 2, 3, 8, 9, 65, 4096] {
                    assert!(choose(level, &t, Mode::Fast, kind, rows).is_some(), "{kind:?} {level:?} {rows} {t:?}");
                    assert!(choose(level, &t, Mode::Exact, kind, rows).is_some(), "{kind:?} {level:?} {rows} {t:?}");
                }
            }
        }
    }
}
