//! Values that a group of weights may take: a few codes, a factor, perhaps an offset.

/// What the codes of a group are decoded with, exactly as a file stores it (rounded to the file's types).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Factors {
    /// Factor of every value.
    pub scale: f32,
    /// The code of zero (integers), what is added (MLX), or nothing (small floats): the grid knows.
    pub offset: f32,
}

/// A way to choose factors for a group and to round to them.
pub(crate) trait Grid: Sync {
    /// The plainest factors for a group of weights: those of the largest magnitude, or of the least and the largest value. As
    /// a file can store them.
    fn plain(&self, weights: &[f32]) -> Factors;

    /// Other factors that are worth trying.
    fn others(&self, weights: &[f32], each: &mut dyn FnMut(Factors));

    /// The value that is nearest to `weight`, a tie going to either.
    fn round(&self, factors: Factors, weight: f32) -> f32;

    /// The code of a value that [`Grid::round`] gave.
    fn code(&self, factors: Factors, value: f32) -> u8 {
        (nearest(value / factors.scale) + factors.offset) as u8
    }

    /// What a reader of the file computes for `code`, bit for bit; by default, and so is the code, `offset` is a zero point.
    fn value(&self, factors: Factors, code: u8) -> f32 {
        factors.scale * (f32::from(code) - factors.offset)
    }
}

/// How the factors of a group are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Factor {
    /// From the largest magnitude (or least and largest value) alone.
    Largest,
    /// The best of several, by the squared error of the group, each input's weighted by what it costs: the Hessian's diagonal,
    /// or in GPTQ the part of it that the inputs to come cannot make up for.
    #[default]
    Search,
}

/// Factors of a group. `importance` of each input, where known, weighs its squared error.
pub(crate) fn fit<G: Grid>(grid: &G, how: Factor, weights: &[f32], importance: Option<&[f32]>) -> Factors {
    let mut best = grid.plain(weights);
    if how == Factor::Search {
        let mut least = error(grid, best, weights, importance);
        grid.others(weights, &mut |factors| {
            let error = error(grid, factors, weights, importance);
            if error < least {
                (best, least) = (factors, error);
            }
        });
    }
    best
}

/// The weighted squared error of a group, in eight interleaved sums.
fn error<G: Grid>(grid: &G, factors: Factors, weights: &[f32], importance: Option<&[f32]>) -> f32 {
    const LANES: usize = 8;
    let mut sums = [0.0f32; LANES];
    let square = |w: f32| {
        let e = w - grid.round(factors, w);
        e * e
    };
    match importance {
        None => {
            let (whole, rest) = weights.as_chunks::<LANES>();
            for w in whole {
                sums.iter_mut().zip(w).for_each(|(sum, w)| *sum += square(*w));
            }
            sums.iter_mut().zip(rest).for_each(|(sum, w)| *sum += square(*w));
        }
        Some(importance) => {
            let ((whole, rest), (h, h_rest)) = (weights.as_chunks::<LANES>(), importance.as_chunks::<LANES>());
            for (w, h) in whole.iter().zip(h) {
                sums.iter_mut().zip(w).zip(h).for_each(|((sum, w), h)| *sum += h * square(*w));
            }
            sums.iter_mut().zip(rest).zip(h_rest).for_each(|((sum, w), h)| *sum += h * square(*w));
        }
    }
    sums.iter().sum()
}

/// To the nearest integer, ties to even, of magnitudes below 2^22: what every processor does in two additions.
#[inline(always)]
pub(crate) fn nearest(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC) - MAGIC
}

/// The largest magnitude.
pub(crate) fn largest(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0, |m, w| m.max(w.abs()))
}

/// The least and the largest value.
pub(crate) fn extremes(weights: &[f32]) -> (f32, f32) {
    weights.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), w| (lo.min(*w), hi.max(*w)))
}

/// `x` as a file's type gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// F16
    F16,
    /// BF16
    BF16,
}

impl Rounding {
    /// `x`, rounded to nearest even.
    pub(crate) fn apply(self, x: f32) -> f32 {
        match self {
            Self::F16 => half::f16::from_f32(x).to_f32(),
            Self::BF16 => half::bf16::from_f32(x).to_f32(),
        }
    }

    /// The bytes of a value that [`Rounding::apply`] gave.
    pub(crate) fn bytes(self, x: f32) -> [u8; 2] {
        match self {
            Self::F16 => half::f16::from_f32(x).to_le_bytes(),
            Self::BF16 => half::bf16::from_f32(x).to_le_bytes(),
        }
    }
}
