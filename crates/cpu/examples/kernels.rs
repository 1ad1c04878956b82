//! Measures the kernels on this machine: `cargo run --release --example kernels -- [section ...]`, where a section is
//! `gemv`, `gemm`, `attention`, `pool` or nothing for all. Every rate is printed with its share of what was measured
//! as the machine's own.

use marlin_cpu::linear::{ActsBuf, Job, Out, linears};
use marlin_cpu::{Cpu, DType, Mat, Mode, bandwidth};
use std::time::Instant;

/// The best time of several runs, in seconds.
fn best(runs: usize, mut f: impl FnMut()) -> f64 {
    f();
    (0..runs)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

fn bf16_bytes(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| (0x3c00u16 | (i * 37 % 256) as u16 | ((i as u16 & 8) << 12)).to_le_bytes()).collect()
}

fn gemv(cpu: &Cpu, bandwidth: f64) {
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
                        let w = Mat::new(&data[c * size..], dtype, n, k).expect("shape");
                        let acts = buf.prepare(cpu, mode, &x, m, k, k).expect("shape");
                        linears(cpu, &[Job::new(acts, w, Out::new(&mut out, n))]).expect("shape");
                    }
                });
                let rate = (copies * size) as f64 / t;
                println!(
                    "gemv {dtype:?} {mode:?} m={m:<2} {n}x{k}: {:.1} GB/s, {:.0}% of bandwidth",
                    rate / 1e9,
                    100.0 * rate / bandwidth
                );
            }
        }
    }
}

fn gemm(cpu: &Cpu, peak: (f64, f64)) {
    for (mode, dtype) in [(Mode::Fast, DType::Bf16), (Mode::Fast, DType::F16), (Mode::Exact, DType::Bf16), (Mode::Exact, DType::F32)] {
        for (n, k) in [(3072, 1024), (1024, 3072), (2048, 1024), (4096, 4096)] {
            for m in [32, 128, 512] {
                let data = bf16_bytes(n * k * dtype.size() / 2);
                let w = Mat::new(&data, dtype, n, k).expect("shape");
                let x = vec![0.5f32; m * k];
                let mut out = vec![0.0f32; m * n];
                let mut buf = ActsBuf::default();
                let t = best(8, || {
                    let acts = buf.prepare(cpu, mode, &x, m, k, k).expect("shape");
                    linears(cpu, &[Job::new(acts, w, Out::new(&mut out, n))]).expect("shape");
                });
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
}

fn pool(cpu: &Cpu) {
    let t = best(20, || {
        for _ in 0..1000 {
            cpu.pool().run(cpu.pool().threads(), &|_| {});
        }
    });
    println!("pool: {:.0} ns for an empty region of {} threads", t * 1e6, cpu.pool().threads());
}

fn main() {
    let sections: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |name: &str| sections.is_empty() || sections.iter().any(|s| s == name);
    let cpu = Cpu::new(0);
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
    if wanted("pool") {
        pool(&cpu);
    }
    if wanted("gemv") {
        gemv(&cpu, bandwidth);
    }
    if wanted("gemm") {
        gemm(&cpu, peak);
    }
}
