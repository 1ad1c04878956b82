//! The factor between weights and codebook: the one with which a sample of tiles is coded with the least error.

use super::pack::places;
use super::{AREA, Exl3, TILE};
use crate::{Compute, Matrix, Result};

/// Tiles of a sample, at most.
const TILES: usize = 192;
/// Of these, those with the largest and those with the smallest weights.
const EXTREMES: usize = 8;
/// The first look goes over these factors, a quarter apart, with every third tile.
const FIRST: [f32; 5] = [0.4, 0.6, 0.8, 1.0, 1.2];
/// The distance of the factors of the second look.
const SECOND: f32 = 0.06;
/// The factors searched.
const RANGE: std::ops::RangeInclusive<f32> = 0.01..=4.0;

/// The best factor for `regular` `[out, in]` (both multiples of 16), whose standard deviation is about 1.24.
pub fn search(compute: &dyn Compute, method: &Exl3, regular: &Matrix) -> Result<f32> {
    let sample = sample(regular);
    let thirds: Vec<f32> = sample.chunks_exact(AREA).step_by(3).flatten().copied().collect();
    let error = |tiles: &[f32], factor: f32| error(compute, method, tiles, factor);

    let step = FIRST[1] - FIRST[0];
    let mut first: Vec<(f32, f64)> = Vec::new();
    for factor in FIRST {
        first.push((factor, error(&thirds, factor)?));
    }
    // The best is inside: where it is at an end, the grid goes on there.
    let best = loop {
        let best = (1..first.len()).fold(0, |best, i| if first[i].1 < first[best].1 { i } else { best });
        let next = match best {
            0 => first[0].0 / 2.0,
            _ if best == first.len() - 1 => first[best].0 + step,
            _ => break first[best].0,
        };
        if !RANGE.contains(&next) {
            break first[best].0;
        }
        let found = (next, error(&thirds, next)?);
        first.insert(if best == 0 { 0 } else { first.len() }, found);
    };
    let mut second = Vec::with_capacity(5);
    for i in -2i8..=2 {
        let factor = (best * (1.0 + SECOND * f32::from(i))).max(*RANGE.start());
        second.push((factor, error(&sample, factor)?));
    }
    let at = (1..second.len()).fold(0, |best, i| if second[i].1 < second[best].1 { i } else { best });
    // A parabola through the best and its neighbours, at most half a step away.
    let (factor, width) = (second[at].0, best * SECOND);
    let shift = match (at.checked_sub(1).map(|i| second[i].1), second[at].1, second.get(at + 1).map(|s| s.1)) {
        (Some(left), here, Some(right)) if left + right > 2.0 * here => {
            (0.5 * (left - right) / (left + right - 2.0 * here)).clamp(-0.5, 0.5) as f32
        }
        _ => 0.0,
    };
    Ok((factor + shift * width).max(*RANGE.start()))
}

/// The squared error of coding `tiles` times `factor`, in the tiles' own measure.
fn error(compute: &dyn Compute, method: &Exl3, tiles: &[f32], factor: f32) -> Result<f64> {
    let targets: Vec<f32> = tiles.iter().map(|w| w * factor).collect();
    let mut words = vec![0; targets.len()];
    compute.encode(method.codebook, method.bits, &targets, &mut words)?;
    let errors = targets.iter().zip(&words).map(|(t, w)| f64::from(method.values[usize::from(*w)] - t));
    Ok(errors.map(|e| e * e).sum::<f64>() / f64::from(factor * factor))
}

/// Tiles in the order of their streams: wrapped diagonals, which meet every row and column of tiles of a small matrix and
/// rows and columns at even distances of a large one, and those with the largest and smallest weights.
fn sample(regular: &Matrix) -> Vec<f32> {
    let [across, down] = [regular.rows() / TILE, regular.cols() / TILE];
    let (all, length) = (across * down, across.max(down));
    let wanted = (TILES - 2 * EXTREMES).min(all);
    let mut chosen: Vec<usize> = (0..wanted)
        .map(|i| {
            let (turn, along) = (i % 3, i / 3 * length / wanted.div_ceil(3));
            along % across * down + (along + turn) % down
        })
        .collect();
    let mut energy: Vec<(f64, usize)> = (0..all)
        .map(|tile| {
            let (a, d) = (tile / down, tile % down);
            let rows = (0..TILE).flat_map(|r| &regular.row(a * TILE + r)[d * TILE..(d + 1) * TILE]);
            (rows.map(|v| f64::from(*v) * f64::from(*v)).sum(), tile)
        })
        .collect();
    energy.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let extremes = EXTREMES.min(all);
    chosen.extend(energy[..extremes].iter().chain(&energy[all - extremes..]).map(|e| e.1));
    chosen.sort_unstable();
    chosen.dedup();
    let places = places();
    let tiles = chosen.into_iter().flat_map(|tile| {
        let (a, d) = (tile / down * TILE, tile % down * TILE);
        places.map(|(output, input)| regular.row(a + output)[d + input])
    });
    tiles.collect()
}
