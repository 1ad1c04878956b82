//! The factor between weights and codebook: the one with which a sample of tiles is coded with the least error.

use super::pack::places;
use super::{AREA, Exl3, TILE};
use crate::{Compute, Error, Matrix, Result};

/// Tiles of a sample, at most.
const TILES: usize = 160;
/// Of these, those with the largest and those with the smallest weights.
const EXTREMES: usize = 8;
/// The first look, with every third tile: where it begins and how far apart its factors are.
const FIRST: (f32, f32) = (0.8, 0.2);
/// How far apart the factors of the second look are.
const SECOND: f32 = 0.06;
/// The factors searched.
const RANGE: std::ops::RangeInclusive<f32> = 0.01..=4.0;

/// The best factor for `regular` `[out, in]` (both multiples of 16), whose standard deviation is about 1.24.
pub fn search(compute: &dyn Compute, method: &Exl3, regular: &Matrix) -> Result<f32> {
    let sample = sample(regular);
    let thirds: Vec<f32> = sample.chunks_exact(AREA).step_by(3).flatten().copied().collect();
    let [_, (first, _), _] = descend(FIRST.0, FIRST.1, &|factor| error(compute, method, &thirds, factor))?;
    let [left, here, right] = descend(first, SECOND, &|factor| error(compute, method, &sample, factor))?;
    // A parabola through the best and its neighbours, at most half a step away.
    let bend = left.1 + right.1 - 2.0 * here.1;
    let shift = if bend > 0.0 { (0.5 * (left.1 - right.1) / bend).clamp(-0.5, 0.5) as f32 } else { 0.0 };
    Ok((here.0 + shift * SECOND).max(*RANGE.start()))
}

/// Goes downhill from `from` in steps of `step` and returns the lowest point with its neighbours: factors and errors.
fn descend(from: f32, step: f32, error: &dyn Fn(f32) -> Result<f64>) -> Result<[(f32, f64); 3]> {
    let at = |factor: f32| {
        let factor = factor.clamp(*RANGE.start(), *RANGE.end());
        Ok::<_, Error>((factor, error(factor)?))
    };
    let mut points = [at(from - step)?, at(from)?, at(from + step)?];
    loop {
        let [left, here, right] = points;
        // A step that leads nowhere is the end of the range.
        if left.1 < here.1 && left.0 < here.0 {
            points = [at(left.0 - step)?, left, here];
        } else if right.1 < here.1 && right.0 > here.0 {
            points = [here, right, at(right.0 + step)?];
        } else {
            return Ok(points);
        }
    }
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
