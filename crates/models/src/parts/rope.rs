//! Frequencies of the rotary embedding.

use marlin_checkpoint::{RopeConfig, RopeScaling};

/// Radians per position of each of `dim / 2` pairs, rounded where transformers rounds.
pub(crate) fn inverse_frequencies(rope: &RopeConfig, dim: usize) -> Vec<f32> {
    (0..dim / 2)
        .map(|i| scaled(1.0 / rope.theta.powf(f64::from((2 * i) as f32 / dim as f32)) as f32, i, &rope.scaling))
        .collect()
}

/// Frequency `i` as `scaling` changes it.
fn scaled(frequency: f32, i: usize, scaling: &RopeScaling) -> f32 {
    let (factor, low_freq_factor, high_freq_factor, original_max_position_embeddings) = match scaling {
        RopeScaling::None => return frequency,
        RopeScaling::Divisors(divisors) => return frequency / divisors.get(i).copied().unwrap_or(1.0),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            (*factor, *low_freq_factor, *high_freq_factor, *original_max_position_embeddings)
        }
    };
    let f = f64::from(frequency);
    let wavelength = 2.0 * std::f64::consts::PI / f;
    if wavelength > original_max_position_embeddings / low_freq_factor {
        (f / factor) as f32
    } else if wavelength < original_max_position_embeddings / high_freq_factor {
        frequency
    } else {
        let s =
            (original_max_position_embeddings / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
        ((1.0 - s) * f / factor + s * f) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published values for Llama 3.1's heads of 128.
    #[test]
    fn llama3_scaling() {
        let rope = RopeConfig {
            theta: 500_000.0,
            partial_rotary_factor: 1.0,
            scaling: RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 8192.0,
            },
        };
        let found = inverse_frequencies(&rope, 128);
        let expected = [
            (28, 0.003_211_446),
            (29, 0.002_166_570_8),
            (30, 0.001_371_893_6),
            (34, 0.000_178_507_8),
            (35, 9.556_212e-5),
            (63, 3.068_926e-7),
        ];
        for (i, value) in expected {
            assert!((found[i] / value - 1.0f32).abs() < 3e-7, "{i}: {} {value}", found[i]);
        }
        // As divisors of the plain frequencies: 1 for the high ones, 8 for the low ones.
        let plain = RopeConfig { scaling: RopeScaling::None, ..rope.clone() };
        let plain = inverse_frequencies(&plain, 128);
        let divisors: Vec<f32> = plain.iter().zip(&found).map(|(a, b)| a / b).collect();
        assert_eq!((divisors[28], divisors[63]), (1.0, 8.0));
        let rope = RopeConfig { scaling: RopeScaling::Divisors(divisors.into()), ..rope };
        for (a, b) in inverse_frequencies(&rope, 128).iter().zip(&found) {
            assert!((a / b - 1.0).abs() < 2e-7, "{a} {b}");
        }
    }
}
