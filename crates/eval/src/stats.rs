//! Summaries of repeated measurements.

use serde::Serialize;

/// A few numbers that stand for many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// How many there were.
    pub count: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// Standard deviation of the sample (n - 1).
    pub std: f64,
    /// Twice the standard deviation.
    pub two_sigma: f64,
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Summary of `values`; all zeros if there are none.
    pub fn of(values: &[f64]) -> Self {
        let count = values.len();
        if count == 0 {
            return Self::default();
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let mean = sorted.iter().sum::<f64>() / count as f64;
        let squares: f64 = sorted.iter().map(|v| (v - mean).powi(2)).sum();
        let std = (squares / (count.max(2) - 1) as f64).sqrt();
        Self {
            count,
            mean,
            std,
            two_sigma: 2.0 * std,
            p50: quantile(&sorted, 0.50),
            p95: quantile(&sorted, 0.95),
            p99: quantile(&sorted, 0.99),
            min: sorted[0],
            max: sorted[count - 1],
        }
    }
}

/// Quantile `q` of ascending values, linear between neighbours (NumPy's default); 0 if there are none.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = q.clamp(0.0, 1.0) * last as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (at - below as f64) * (sorted[above] - sorted[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// numpy.quantile([1, 2, 4, 8], [0.5, 0.95, 0.99]) and std(ddof=1)
    #[test]
    fn agrees_with_numpy() {
        let s = Summary::of(&[8.0, 1.0, 4.0, 2.0]);
        assert_eq!((s.count, s.mean, s.p50, s.min, s.max), (4, 3.75, 3.0, 1.0, 8.0));
        assert!((s.p95 - 7.4).abs() < 1e-12 && (s.p99 - 7.88).abs() < 1e-12);
        assert!((s.std - 3.095_695_936_834_452).abs() < 1e-12);
        assert_eq!(Summary::of(&[]), Summary::default());
        let one = Summary::of(&[5.0]);
        assert_eq!((one.mean, one.std, one.p99), (5.0, 0.0, 5.0));
    }
}
