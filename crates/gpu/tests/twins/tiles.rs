//! Attention of many rows: tiles on tensor cores, beside sequences of few rows in the same step.

use crate::device::{OPTIONS, backends_with, close};
use crate::numbers::Numbers;
use marlin_backend::{Backend, KvLayout, KvSpec, LatentForm, Reference, SequenceStep, Step, Token};
use marlin_checkpoint::{DType, LatentProjection};
use marlin_cpu::{CpuBackend, CpuOptions, KvType};
use marlin_gpu::kernels::Element;
use marlin_gpu::{GpuBackend, GpuOptions};

/// Halves have 11 bits; queries, keys, probabilities and values are rounded to them.
const LIMIT: f32 = 1e-3;

/// Sequences of a step: tokens before it and in it. Tiles are 64 vectors, positions 32 or 64 at a time: one more and one less of everything.
const SEQUENCES: [(usize, usize); 5] = [(37, 40), (20, 3), (0, 65), (63, 17), (5, 1)];

fn steps(sequences: &[(usize, usize)], before: bool) -> Step {
    let mut next = 0..;
    let sequence = |(cached, len): &(usize, usize)| {
        let blocks = next.by_ref().take((cached + len).div_ceil(16)).collect();
        let (cached, len) = if before { (0, *cached) } else { (*cached, *len) };
        SequenceStep { cached, len, blocks }
    };
    let sequences: Vec<_> = sequences.iter().map(sequence).filter(|s| s.len > 0).collect();
    let rows = sequences.iter().map(|s| s.len).sum();
    Step { tokens: vec![Token::Id(0); rows], sequences, outputs: Vec::new() }
}

fn attended<B: Backend>(b: &B, layout: KvLayout, share: usize) -> marlin_backend::Result<Vec<f32>> {
    let mut n = Numbers(70);
    let kv = b.kv(KvSpec { layers: 1, layout, block_size: 16, blocks: 20 })?;
    let mut last = None;
    for before in [true, false] {
        let step = steps(&SEQUENCES, before);
        let rows = step.tokens.len();
        let batch = b.begin(&step, &kv, None)?;
        let mut write = |cols| b.write(rows, cols, n.many(rows * cols));
        match layout {
            KvLayout::Heads { heads, key, value } => {
                b.append(&kv, 0, &write(heads * key)?, &write(heads * value)?, &batch)?;
                last = Some((write(share * heads * key)?, batch));
            }
            KvLayout::Latent { rank, rope } => {
                b.append_latent(&kv, 0, &write(rank)?, &write(rope)?, &batch)?;
                last = Some((write(share * (24 + rope))?, batch));
            }
        }
    }
    let (q, batch) = last.unwrap();
    match layout {
        KvLayout::Heads { heads, .. } => b.read(&b.attention(&q, &kv, 0, share * heads, 0.3, &batch)?),
        KvLayout::Latent { rank, .. } => {
            let kv_b = b.linear(n.dense("kv_b", share * (24 + 20), rank, DType::BF16))?;
            let kv_b = LatentProjection::Whole(&kv_b);
            b.read(&b.latent_attention(&q, kv_b, &kv, 0, share, 0.4, LatentForm::Auto, &batch)?)
        }
    }
}

/// Launches of tiles while `work` runs on `b`.
fn tiles<T>(b: &GpuBackend, work: impl FnOnce() -> T) -> (T, usize) {
    b.gpu().start_timing();
    let y = work();
    let times = b.gpu().stop_timing().unwrap();
    (y, times.iter().filter(|t| t.kernel.starts_with("mm_attention_tiles")).map(|t| t.launches).sum())
}

const fn heads(heads: usize, key: usize, value: usize) -> KvLayout {
    KvLayout::Heads { heads, key, value }
}

#[test]
fn tiles_of_every_size_of_head() {
    for (layout, share) in [
        (heads(2, 64, 64), 4),
        (heads(1, 20, 12), 5),
        (heads(2, 80, 80), 1),
        (heads(1, 128, 128), 2),
        (heads(1, 25, 33), 3),
        (heads(1, 192, 128), 1),
        (heads(1, 256, 200), 2),
        (KvLayout::Latent { rank: 136, rope: 12 }, 4),
        (KvLayout::Latent { rank: 40, rope: 16 }, 2),
    ] {
        let expected = attended(&Reference, layout, share).unwrap();
        let mut first = None;
        for b in backends_with(OPTIONS) {
            let (found, launches) = tiles(&b, || attended(&b, layout, share).unwrap());
            close(&format!("{layout:?}"), &found, &expected, LIMIT);
            assert_eq!(launches, 1, "{layout:?}");
            assert_eq!(b.fallbacks().snapshot(), Default::default());
            assert_eq!(first.get_or_insert_with(|| found.clone()), &found, "depends on the order of threads");
        }
        for b in backends_with(GpuOptions { exact: true, ..OPTIONS }).into_iter().take(1) {
            let (found, launches) = tiles(&b, || attended(&b, layout, share).unwrap());
            close(&format!("{layout:?}, exact"), &found, &expected, 2e-5);
            assert_eq!(launches, 0);
        }
    }
}

#[test]
fn tiles_over_kv_memory_of_every_type() {
    for (kv, theirs) in [
        (Element::F16, KvType::F16),
        (Element::Bf16, KvType::Bf16),
        (Element::Int8, KvType::Int8),
        (Element::Fp8, KvType::Fp8),
    ] {
        let cpu = CpuBackend::new(CpuOptions { threads: 1, exact: true, kv: theirs });
        for b in backends_with(GpuOptions { kv, ..OPTIONS }).into_iter().take(1) {
            for layout in [heads(2, 64, 72), heads(1, 20, 12), KvLayout::Latent { rank: 136, rope: 12 }] {
                let expected = attended(&cpu, layout, 4).unwrap();
                let (found, launches) = tiles(&b, || attended(&b, layout, 4).unwrap());
                close(&format!("{kv:?} {layout:?}"), &found, &expected, LIMIT);
                assert_eq!(launches, 1);
            }
        }
    }
}

/// Heads that no tile takes are computed by the kernel for all sizes.
#[test]
fn heads_too_great_for_tiles() {
    for (layout, share) in [(heads(1, 320, 16), 1), (heads(1, 16, 16), 65)] {
        let expected = attended(&Reference, layout, share).unwrap();
        for b in backends_with(OPTIONS).into_iter().take(1) {
            let (found, launches) = tiles(&b, || attended(&b, layout, share).unwrap());
            close(&format!("{layout:?}"), &found, &expected, 2e-5);
            assert_eq!(launches, 0);
        }
    }
}
