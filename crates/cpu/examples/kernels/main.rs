//! Measures the kernels on this machine: `cargo run --release --example kernels -- [section ...]`, where a section is
//! `gemv`, `gemm`, `attention`, `pool`, `grouped`, `exl3` or nothing for all (and alone: `exl3-core`, one core without memory; `encode`, the search for codes;
//! `exl3-model`, the layers of a model). Every rate is printed with its share of what was measured
//! as the machine's own.

mod encode;

use marlin_checkpoint::weight::{Codebook, ScaleTree, ScaleType, Scales, ValueMap, Zero};
use marlin_checkpoint::{DType as StoredType, Grouped, Tensor, TensorInfo, Trellis};
use marlin_cpu::attention::{KvShape, LatentShape, Sequence, Span, Stored, attention, latent_attention};
use marlin_cpu::grouped::GroupedMat;
use marlin_cpu::linear::{ActsBuf, Job, Needs, Out, Tiles, W, linears};
use marlin_cpu::ops::hadamard::Rotation;
use marlin_cpu::trellis::{Precision, TrellisActsBuf, TrellisJob, TrellisMat, trellis_linears};
use marlin_cpu::{Cpu, DType, Level, Mat, Mode, Result, bandwidth};
use memmap2::MmapMut;
use std::time::Instant;

/// The best time of several runs, in seconds.
fn best(runs: usize, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    f()?;
    let mut best = f64::INFINITY;
    for _ in 0..runs {
        let start = Instant::now();
        f()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn bf16_bytes(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| (0x3c08u16 | (i * 37 % 256) as u16 | ((i as u16 & 8) << 12)).to_le_bytes()).collect()
}

/// The same in memory as the backend's KV pool is: large pages where the system has them.
fn kv_bytes(n: usize) -> std::io::Result<MmapMut> {
    let mut memory = MmapMut::map_anon(2 * n)?;
    #[cfg(target_os = "linux")]
    memory.advise(memmap2::Advice::HugePage).ok();
    memory.copy_from_slice(&bf16_bytes(n));
    Ok(memory)
}

fn gemv(cpu: &Cpu, bandwidth: f64) -> Result<()> {
    for dtype in [DType::Bf16, DType::F16, DType::F32] {
        for (n, k) in [(3072, 1024), (1024, 3072), (2048, 1024), (1024, 2048), (151_936, 1024)] {
            if n > 100_000 && dtype != DType::Bf16 {
                continue;
            }
            // Several copies, so that nothing comes from the caches.
            let copies = (400_000_000 / (n * k * 2)).clamp(1, 64);
            let size = n * k * dtype.size();
            let data = bf16_bytes(copies * size / 2);
            for (mode, m) in [(Mode::Fast, 1), (Mode::Fast, 4), (Mode::Fast, 8), (Mode::Fast, 16), (Mode::Exact, 1)] {
                let x = vec![0.5f32; m * k];
                let mut out = vec![0.0f32; m * n];
                let mut buf = ActsBuf::default();
                let t = best(4, || {
                    for c in 0..copies {
                        let w = Mat::new(&data[c * size..], dtype, n, k)?;
                        let acts = buf.prepare(cpu, mode, Needs { bf16: true, ..Needs::default() }, &x, m, k, k)?;
                        linears(cpu, &[Job::new(acts, w, Out::new(&mut out, n))])?;
                    }
                    Ok(())
                })?;
                let rate = (copies * size) as f64 / t;
                println!(
                    "gemv {dtype:?} {mode:?} m={m:<2} {n}x{k}: {:.1} GB/s, {:.0}% of bandwidth",
                    rate / 1e9,
                    100.0 * rate / bandwidth
                );
            }
        }
    }
    Ok(())
}

fn gemm(cpu: &Cpu, peak: (f64, f64)) -> Result<()> {
    for (mode, dtype) in
        [(Mode::Fast, DType::Bf16), (Mode::Fast, DType::F16), (Mode::Exact, DType::Bf16), (Mode::Exact, DType::F32)]
    {
        for (n, k) in [(3072, 1024), (1024, 3072), (2048, 1024), (4096, 4096)] {
            for m in [32, 128, 512] {
                let data = bf16_bytes(n * k * dtype.size() / 2);
                let w = Mat::new(&data, dtype, n, k)?;
                let x = vec![0.5f32; m * k];
                let mut out = vec![0.0f32; m * n];
                let mut buf = ActsBuf::default();
                let t = best(8, || {
                    let acts = buf.prepare(cpu, mode, Needs { bf16: true, ..Needs::default() }, &x, m, k, k)?;
                    linears(cpu, &[Job::new(acts, w, Out::new(&mut out, n))])
                })?;
                let rate = 2.0 * (m * n * k) as f64 / t;
                let top = if cpu.rounds(mode, dtype) { peak.1 } else { peak.0 };
                println!(
                    "gemm {dtype:?} {mode:?} m={m:<3} {n}x{k}: {:.0} GFLOP/s, {:.0}% of peak",
                    rate / 1e9,
                    100.0 * rate / top
                );
            }
        }
    }
    Ok(())
}

/// Attention of Qwen3-0.6B and 1.7B (16 heads, 8 of keys and values, 128 each) and GLM-4.7-Flash's (20 heads, latents of 512 + 64).
fn attention_of_models(cpu: &Cpu, bandwidth: f64, peak: (f64, f64)) -> Result<()> {
    const LAYERS: usize = 28;
    const LATENT_LAYERS: usize = 47;
    for (mode, stored) in [Mode::Fast, Mode::Exact]
        .into_iter()
        .flat_map(|mode| [DType::Bf16.into(), Stored::Int8, Stored::Fp8].map(|stored| (mode, stored)))
    {
        let shape = KvShape { kv_heads: 8, k_dim: 128, v_dim: 128, block: 32, stored };
        for (rows, context) in [(1, 1000), (1, 4000), (4, 1000), (512, 512), (512, 2048)] {
            let blocks = context / 32 + 1;
            let layers = if rows == 1 { LAYERS } else { 1 };
            // The factors of bytes are of these halves too: about 0.01 each.
            let Ok(k) = kv_bytes(layers * blocks * shape.k_block_bytes() / 2) else { continue };
            let Ok(v) = kv_bytes(layers * blocks * shape.v_block_bytes() / 2) else { continue };
            let q = vec![0.01f32; rows * 16 * 128];
            let mut out = vec![0.0f32; rows * 16 * 128];
            let t = best(6, || {
                for layer in 0..layers {
                    let table: Vec<u32> = (0..blocks).map(|b| (layer * blocks + b) as u32).collect();
                    let seq = [Sequence { span: Span { row: 0, rows, start: context - rows }, table: &table }];
                    attention(cpu, mode, shape, &k, &v, &q, 2048, 16, &seq, 0.088, &mut out, 2048)?;
                }
                Ok(())
            })?;
            let bytes = (layers * context * (shape.k_block_bytes() + shape.v_block_bytes()) / 32) as f64;
            let pairs = (context * rows - rows * (rows - 1) / 2) as f64;
            let flops = layers as f64 * pairs * 16.0 * 128.0 * 4.0;
            let top = if mode == Mode::Fast && !stored.scaled() { peak.1 } else { peak.0 };
            println!(
                "attention {mode:?} {stored:?} {rows} rows, context {context}: {:.0} us a layer, {:.1} GB/s ({:.0}%), {:.0} GFLOP/s ({:.0}%)",
                t / layers as f64 * 1e6,
                bytes / t / 1e9,
                100.0 * bytes / t / bandwidth,
                flops / t / 1e9,
                100.0 * flops / t / top
            );
        }
    }
    for mode in [Mode::Fast, Mode::Exact] {
        let shape = LatentShape { rank: 512, rope: 64, block: 32, stored: DType::Bf16.into() };
        for (rows, context) in [(1, 100), (1, 1000), (1, 4000), (16, 1000)] {
            let (layers, blocks) = (if rows == 1 { LATENT_LAYERS } else { 1 }, context / 32 + 1);
            let Ok(pool) = kv_bytes(layers * blocks * shape.block_bytes() / 2) else { continue };
            let (lat, pe) = (vec![0.01f32; rows * 20 * 512], vec![0.01f32; rows * 20 * 64]);
            let mut out = vec![0.0f32; rows * 20 * 512];
            let t = best(6, || {
                for layer in 0..layers {
                    let table: Vec<u32> = (0..blocks).map(|b| (layer * blocks + b) as u32).collect();
                    let seq = [Sequence { span: Span { row: 0, rows, start: context - rows }, table: &table }];
                    latent_attention(cpu, mode, shape, &pool, &lat, &pe, 64, 20, &seq, 0.06, &mut out)?;
                }
                Ok(())
            })? / layers as f64;
            let bytes = (context * shape.block_bytes() / 32) as f64;
            let flops = (rows * context * 20 * (576 + 512) * 2) as f64;
            println!(
                "latent attention {mode:?} {rows} rows, context {context}: {:.0} us a layer, {:.1} GB/s ({:.0}%), {:.0} GFLOP/s",
                t * 1e6,
                bytes / t / 1e9,
                100.0 * bytes / t / bandwidth,
                flops / t / 1e9
            );
        }
    }
    Ok(())
}

/// Matrices of the common formats' layouts.
fn grouped_matrix(cpu: &Cpu, name: &str, n: usize, k: usize) -> Result<GroupedMat> {
    let scales = |kind: ScaleType, group: usize, byte: u8| {
        let bytes = n * k.div_ceil(group) * kind.bits() / 8;
        Scales::new(kind, n, k, (1, group), vec![byte; bytes].into())
    };
    let integer = |zero| ValueMap::Integer(Zero::Constant(zero));
    let make = || {
        let f16 = |group| Ok::<_, marlin_checkpoint::Error>(ScaleTree::flat(scales(ScaleType::F16, group, 0x24)?));
        let (bits, map, scale, minimum) = match name {
            "q4_0" => (4, integer(8), f16(32)?, None),
            "fp4" => (4, ValueMap::E2M1, f16(128)?, None),
            "mxfp4" => (4, ValueMap::E2M1, ScaleTree::flat(scales(ScaleType::E8M0, 32, 120)?), None),
            "mlx4" => (4, integer(0), f16(64)?, Some(f16(64)?)),
            "q8_0" => (8, integer(128), f16(32)?, None),
            _ => {
                let (inner, outer) = (scales(ScaleType::I8, 16, 20)?, scales(ScaleType::F16, 256, 0x14)?);
                (6, integer(32), ScaleTree::nested(inner, outer), None)
            }
        };
        let codes: Vec<u8> = (0..n * k * bits as usize / 8).map(|i| (i * 37 % 251) as u8).collect();
        Grouped::new([n, k], bits, codes.into(), map, scale, minimum)
    };
    let bad = |_| marlin_cpu::Error { op: "grouped", what: "a matrix", expected: 1, found: 0 };
    let mat = GroupedMat::from_grouped(cpu, name, &make().map_err(bad)?).ok().flatten();
    mat.ok_or(marlin_cpu::Error { op: "grouped", what: "a matrix", expected: 1, found: 0 })
}

fn grouped(cpu: &Cpu, bandwidth: f64) -> Result<()> {
    let (n, k) = (6144, 2048);
    for name in ["q4_0", "fp4", "mxfp4", "mlx4", "q8_0", "q6_k"] {
        let one = grouped_matrix(cpu, name, n, k)?;
        let copies = (400_000_000 / one.layout().bytes()).max(1);
        let all = (0..copies).map(|_| grouped_matrix(cpu, name, n, k)).collect::<Result<Vec<_>>>()?;
        for m in [1, 4, 32, 512] {
            let x: Vec<f32> = (0..m * k).map(|i| (i % 17) as f32 - 8.0).collect();
            let mut out = vec![0.0f32; m * n];
            let mut buf = ActsBuf::default();
            let used = if m > 8 { 1 } else { copies };
            let needs = W::from(Tiles::all(&one)).needs();
            let t = best(4, || {
                for w in &all[..used] {
                    let acts = buf.prepare(cpu, Mode::Fast, needs, &x, m, k, k)?;
                    linears(cpu, &[Job::new(acts, Tiles::all(w), Out::new(&mut out, n))])?;
                }
                Ok(())
            })?;
            let rate = (used * one.layout().bytes()) as f64 / t;
            println!(
                "grouped {name} m={m:<3} {n}x{k}: {:.1} GB/s ({:.0}%), {:.0} G weights/s, {:.0} GMAC/s",
                rate / 1e9,
                100.0 * rate / bandwidth,
                (used * n * k) as f64 / t / 1e9,
                (used * m * n * k) as f64 / t / 1e9
            );
        }
    }
    Ok(())
}

fn pool(cpu: &Cpu) -> Result<()> {
    let t = best(20, || {
        for _ in 0..1000 {
            cpu.pool().run(cpu.pool().threads(), &|_| {});
        }
        Ok(())
    })?;
    println!("pool: {:.0} ns for an empty region of {} threads", t * 1e6, cpu.pool().threads());
    Ok(())
}

/// The weight in the kernels' order.
fn laid(cpu: &Cpu, w: &Trellis) -> Result<TrellisMat> {
    TrellisMat::new(cpu, w).map_err(|_| marlin_cpu::Error { op: "trellis", what: "memory", expected: 1, found: 0 })
}

/// A matrix of random codes; `None` where the shape is refused, which it is not.
fn trellis(rows: usize, cols: usize, bits: usize, codebook: Codebook) -> Option<Trellis> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let words = (0..rows * cols * bits / 64).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    });
    let shape = vec![cols / 16, rows / 16, 16 * bits];
    let info = TensorInfo { name: "random".into(), dtype: StoredType::I16, shape };
    Trellis::new(Tensor { info, data: words.collect::<Vec<u8>>().into() }, codebook).ok()
}

/// Cycles a second of one core: a chain of six dependent shifts and exclusive ors, a cycle each.
fn clock() -> f64 {
    const TURNS: u64 = 20_000;
    let mut best = f64::INFINITY;
    for _ in 0..2000 {
        let start = Instant::now();
        let mut x = std::hint::black_box(0x9e37_79b9_7f4a_7c15u64);
        for _ in 0..TURNS {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
        }
        std::hint::black_box(x);
        best = best.min(start.elapsed().as_secs_f64());
    }
    6.0 * TURNS as f64 / best
}

/// The kernels themselves: one core, everything in its caches, the best of many short runs.
fn exl3_core(level: Level) -> Result<()> {
    let cpu = &Cpu::with_level(1, level);
    let hz = clock();
    println!(
        "exl3 core: {level}, {:.2} GHz by a chain of shifts; cycles for 32 weights of a matrix in the cache",
        hz / 1e9
    );
    let (n, k) = (128, 2048);
    for codebook in [Codebook::Mul1, Codebook::Mcg, Codebook::ThreeInst] {
        for bits in 1..=8 {
            let Some(w) = trellis(n, k, bits, codebook) else { continue };
            let mat = laid(cpu, &w)?;
            let runs = if level < Level::Avx512 { 30 } else { 400 };
            let mut line = format!("exl3 core {codebook:?} {bits} bits:");
            let mut add = |what: &str, t: f64| line += &format!(" {what} {:.2},", hz * t * 32.0 / (n * k) as f64);
            let mut buf = TrellisActsBuf::default();
            for (precision, m) in
                [(Precision::Int16, 1), (Precision::Int16, 2), (Precision::Int16, 4), (Precision::Exact, 1)]
            {
                let x: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
                let mut out = vec![0.0f32; m * n];
                let acts = buf.prepare(cpu, precision, None, &x, m, k, k, k)?;
                let job = [TrellisJob::new(acts, &mat, Out::new(&mut out, n))];
                let t = best(runs, || trellis_linears(cpu, &job))?;
                add(&format!("{precision:?} m={m}"), t);
            }
            let (mut a, mut b) = (vec![0u8; 512 * 16], vec![0u8; 512 * 16]);
            let t = best(runs, || {
                for (pair, k0) in (0..n / 32).flat_map(|pair| (0..k).step_by(512).map(move |k0| (pair, k0))) {
                    mat.decode_panel_u8(cpu, pair, k0..k0 + 512, [&mut a, &mut b])?;
                }
                Ok(())
            })?;
            add("panels of bytes", t);
            println!("{line}");
            if bits == 3 && codebook == Codebook::Mul1 {
                for m in [5, 12, 48, 192] {
                    let x: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
                    let mut out = vec![0.0f32; m * n];
                    let acts = buf.prepare(cpu, Precision::Int8, None, &x, m, k, k, k)?;
                    let job = [TrellisJob::new(acts, &mat, Out::new(&mut out, n))];
                    let t = best(runs / 10, || trellis_linears(cpu, &job))?;
                    println!(
                        "exl3 core {:?} m={m}: {:.1} multiply-adds a cycle",
                        acts.precision(),
                        (m * n * k) as f64 / t / hz
                    );
                }
                let x: Vec<f32> = (0..k).map(|i| (i as f32 * 0.37).sin()).collect();
                let t = best(runs, || {
                    let rotation = Some(Rotation { block: 128, scale: Some(&x) });
                    buf.prepare(cpu, Precision::Int16, rotation, &x, 1, k, k, k).map(|_| ())
                })?;
                let t8 = best(runs, || buf.prepare(cpu, Precision::Int16, None, &x, 1, k, k, k).map(|_| ()))?;
                println!(
                    "exl3 core: {:.2} cycles to rotate an activation by 128, {:.2} to round it to 16 bits",
                    (t - t8) * hz / k as f64,
                    t8 * hz / k as f64
                );
                let t = best(runs, || {
                    std::hint::black_box(laid(cpu, &w)?);
                    Ok(())
                })?;
                println!("exl3 core: laid out at {:.2} bytes a cycle", mat.bytes() as f64 / t / hz);
            }
        }
    }
    Ok(())
}

/// EXL3: re-laying, decoding into panels, products with few rows and with many, and a whole model of Qwen3-1.7B's sizes.
fn exl3(cpu: &Cpu, bandwidth: f64) -> Result<()> {
    let threads = cpu.pool().threads() as f64;
    let hz = clock();
    let report = |what: &str, weights: f64, bits: usize, t: f64| {
        let bytes = weights * bits as f64 / 8.0 / t;
        println!(
            "exl3 {what}: {:.1} G weights/s, {:.1} GB/s ({:.0}% of bandwidth), {:.2} cycles for 32 weights",
            weights / t / 1e9,
            bytes / 1e9,
            100.0 * bytes / bandwidth,
            hz * threads * t / weights * 32.0
        );
    };
    let (n, k) = (6144, 2048);
    for codebook in [Codebook::Mul1, Codebook::Mcg, Codebook::ThreeInst] {
        for bits in [2, 3, 4, 5, 6, 8] {
            if bits != 3 && codebook == Codebook::Mcg {
                continue;
            }
            let Some(w) = trellis(n, k, bits, codebook) else { continue };
            let start = Instant::now();
            let mats = (0..12).map(|_| laid(cpu, &w)).collect::<Result<Vec<_>>>()?;
            let laid = (12 * n * k * bits) as f64 / 8.0 / start.elapsed().as_secs_f64();
            let weights = (mats.len() * n * k) as f64;
            let mut buf = TrellisActsBuf::default();
            for (precision, m) in
                [(Precision::Int16, 1), (Precision::Int16, 2), (Precision::Int16, 4), (Precision::Exact, 1)]
            {
                if m > 1 && (bits != 3 || codebook != Codebook::Mul1) {
                    continue;
                }
                let x: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
                let mut out = vec![0.0f32; m * n];
                let t = best(if precision == Precision::Exact { 2 } else { 12 }, || {
                    let acts = buf.prepare(cpu, precision, None, &x, m, k, k, k)?;
                    mats.iter()
                        .try_for_each(|w| trellis_linears(cpu, &[TrellisJob::new(acts, w, Out::new(&mut out, n))]))
                })?;
                report(&format!("{codebook:?} {bits} bits {precision:?} m={m}"), weights, bits, t);
            }
            let t = best(12, || {
                cpu.pool().run(mats.len() * n / 32, &|i| {
                    let (mut a, mut b) = ([0u8; 8192], [0u8; 8192]);
                    for k0 in (0..k).step_by(512) {
                        // The panels have the room that the shapes ask for.
                        let _ = mats[i / (n / 32)].decode_panel_u8(cpu, i % (n / 32), k0..k0 + 512, [&mut a, &mut b]);
                        std::hint::black_box((&a, &b));
                    }
                });
                Ok(())
            })?;
            report(&format!("{codebook:?} {bits} bits panels of bytes"), weights, bits, t);
            if bits == 3 {
                println!("exl3 {bits} bits laid out at {:.1} GB/s", laid / 1e9);
                for m in [5, 12, 32, 128, 512] {
                    let x: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
                    let mut out = vec![0.0f32; m * n];
                    let precision = Precision::of(cpu, Mode::Fast, m);
                    let t = best(5, || {
                        let acts = buf.prepare(cpu, precision, None, &x, m, k, k, k)?;
                        trellis_linears(cpu, &[TrellisJob::new(acts, &mats[0], Out::new(&mut out, n))])
                    })?;
                    let rate = (m * n * k) as f64 / t;
                    println!("exl3 {codebook:?} {bits} bits {precision:?} m={m}: {:.0} G multiply-adds/s", rate / 1e9);
                }
            }
        }
    }
    exl3_model(cpu)
}

/// Every linear layer of Qwen3-1.7B (28 layers and the head) at 3 bits, the head at 6, rotations included: the sum of the
/// best times of its parts, so short that another process's turn does not fall into all of their runs.
fn exl3_model(cpu: &Cpu) -> Result<()> {
    const SHAPES: [(usize, usize, usize, f64); 5] = [
        (2048, 2048, 3, 56.0),
        (1024, 2048, 3, 56.0),
        (6144, 2048, 3, 56.0),
        (2048, 6144, 3, 28.0),
        (151_936, 2048, 6, 1.0),
    ];
    let scale = vec![0.75f32; 8192];
    let rotation = |n: usize| Some(Rotation { block: 128, scale: Some(&scale[..n]) });
    for m in [1, 4, 512] {
        let precision = Precision::of(cpu, Mode::Fast, m);
        let (mut total, mut inputs, mut work) = (0.0, 0.0, 0.0);
        for (n, k, bits, count) in SHAPES {
            if m > 4 && bits == 6 {
                continue; // a prefill asks for the logits of one row
            }
            // A part of the outputs, in several copies.
            let part = if m > 4 { 512 } else { n.min(4096) };
            let Some(w) = trellis(part, k, bits, Codebook::Mul1) else { continue };
            let mats = (0..8).map(|_| laid(cpu, &w)).collect::<Result<Vec<_>>>()?;
            let x: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
            let mut out = vec![0.0f32; m * part];
            let mut buf = TrellisActsBuf::default();
            let t = best(100, || buf.prepare(cpu, precision, rotation(k), &x, m, k, k, k).map(|_| ()))?;
            inputs += t * count;
            let acts = buf.prepare(cpu, precision, rotation(k), &x, m, k, k, k)?;
            let mut fastest = f64::INFINITY;
            for w in mats.iter().cycle().take(if m > 4 { 200 } else { 800 }) {
                let job = [TrellisJob::new(acts, w, Out::new(&mut out, part)).rotation(rotation(part))];
                let start = Instant::now();
                trellis_linears(cpu, &job)?;
                fastest = fastest.min(start.elapsed().as_secs_f64());
            }
            total += fastest * count * n as f64 / part as f64;
            work += (n * k * m) as f64 * count;
        }
        println!(
            "exl3 Qwen3-1.7B m={m}: {:.2} ms of products ({:.1} G multiply-adds/s) and {:.2} ms of inputs, {:.1} tokens/s",
            total * 1e3,
            work / total / 1e9,
            inputs * 1e3,
            m as f64 / (total + inputs)
        );
    }
    Ok(())
}

fn main() -> Result<()> {
    let sections: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |name: &str| sections.is_empty() || sections.iter().any(|s| s == name);
    let cpu = Cpu::new(0);
    if sections == ["exl3-core"] {
        return exl3_core(cpu.level());
    }
    if sections == ["encode"] {
        return encode::search(cpu.level());
    }
    if sections == ["exl3-model"] {
        return exl3_model(&cpu);
    }
    let bandwidth = bandwidth::read_bytes_per_second(&cpu, 2 << 30);
    let peak = bandwidth::peak_flops(&cpu);
    println!(
        "{} threads, {}: reads {:.1} GB/s; peak {:.0} GFLOP/s in f32, {:.0} in bf16",
        cpu.pool().threads(),
        cpu.level(),
        bandwidth / 1e9,
        peak.0 / 1e9,
        peak.1 / 1e9
    );
    if wanted("exl3") {
        exl3(&cpu, bandwidth)?;
    }
    if wanted("pool") {
        pool(&cpu)?;
    }
    if wanted("gemv") {
        gemv(&cpu, bandwidth)?;
    }
    if wanted("grouped") {
        grouped(&cpu, bandwidth)?;
    }
    if wanted("gemm") {
        gemm(&cpu, peak)?;
    }
    if wanted("attention") {
        attention_of_models(&cpu, bandwidth, peak)?;
    }
    Ok(())
}
