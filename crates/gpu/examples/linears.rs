//! Speed of products with random weights on an NVIDIA GPU, by graph replay over more weights than its caches hold:
//!
//!     cargo run --release -p marlin-gpu --example linears [megabytes of weights]
#![allow(clippy::unwrap_used)] // a measurement may panic

#[cfg(target_os = "macos")]
fn main() {
    eprintln!("this example measures NVIDIA GPUs");
}

#[cfg(not(target_os = "macos"))]
fn main() {
    cuda::main();
}

#[cfg(not(target_os = "macos"))]
mod cuda {
    use marlin_checkpoint::weight::Codebook;
    use marlin_gpu::device::cuda::Cuda;
    use marlin_gpu::kernels::*;
    use marlin_gpu::{Device, Gpu, Result, Slice};
    use std::sync::Arc;
    use std::time::Instant;

    struct Bench {
        cuda: Arc<Cuda>,
        gpu: Gpu,
        none: Slice<f32>,
        words: Slice<u32>,
        factors: Slice<u8>,
        bytes: usize,
    }

    impl Bench {
        /// Microseconds of one of `count` launches, the best of several replays.
        fn time(&self, count: usize, launch: impl Fn(usize) -> Result<()>) -> Result<f64> {
            launch(0)?;
            self.cuda.wait()?;
            let Some((graph, done)) = self.gpu.record(|| (0..count).try_for_each(&launch))? else {
                return Ok(f64::NAN);
            };
            done?;
            let mut best = f64::INFINITY;
            for _ in 0..5 {
                let began = Instant::now();
                self.gpu.replay(&graph)?;
                self.cuda.wait()?;
                best = best.min(began.elapsed().as_secs_f64());
            }
            Ok(best * 1e6 / count as f64)
        }

        fn report(&self, what: &str, us: f64, bytes: usize, operations: f64) {
            println!(
                "{what:<44} {us:8.2} us  {:7.0} GB/s  {:7.2} TFLOP/s",
                bytes as f64 / us / 1e3,
                operations / us / 1e6
            );
        }

        fn trellis(&self, k: usize, n: usize, bits: u32, book: Codebook) -> Result<()> {
            let bytes = k * n * bits as usize / 8;
            let copies = (self.bytes / bytes).max(1);
            let x: Slice<f32> = self.gpu.upload(&vec![0.25f32; 4 * k])?;
            let y: Slice<f32> = self.gpu.uninitialised(4 * n)?;
            let index: Slice<u32> = self.none.cast();
            for m in [1, 4] {
                for (tiles, simds) in [(1, 8), (1, 16), (2, 4), (2, 8), (2, 16), (4, 4), (4, 8)] {
                    if m == 4 && (tiles > 1 || simds != 8) {
                        continue;
                    }
                    let kernel = TrellisGemv { bits, book: Book(book), m, tiles, simds, experts: false };
                    let a = TrellisArgs { rows: n as u32, cols: k as u32, batch: m, share: 1, stack_words: 0 };
                    let groups = [(n as u32).div_ceil(16 * tiles), 1, 1];
                    let us = self.time(copies.clamp(8, 64), |i| {
                        let w = self.words.part(i % copies * bytes / 4, bytes / 4);
                        kernel.launch(&self.gpu, groups, &w, &x, &index, &index, &y, &a)
                    })?;
                    let what = format!("exl3 {bits} bits {book:?} {k} x {n} m {m} tiles {tiles} simds {simds}");
                    self.report(&what, us, bytes, 2.0 * m as f64 * k as f64 * n as f64);
                }
            }
            Ok(())
        }

        fn grouped(&self, what: &str, k: usize, n: usize, weight: WeightType, bits: usize, group: usize) -> Result<()> {
            let bytes = k * n * bits / 8;
            let scales = (k * n).checked_div(group).unwrap_or(0) * 2;
            let copies = (self.bytes / bytes).max(1);
            let x: Slice<f32> = self.gpu.upload(&vec![0.25f32; 256 * k])?;
            let y: Slice<f32> = self.gpu.uninitialised(256 * n)?;
            let index: Slice<u32> = self.none.cast();
            let mut w =
                WeightArgs { rows: n as u32, cols: k as u32, words: (k * bits / 32) as u32, ..WeightArgs::default() };
            w.scale.stride = (k.checked_div(group).unwrap_or(0) * 2) as u32;
            w.scale.col_shift = group.max(1).trailing_zeros();
            for m in [1u32, 4] {
                for (r, simds) in [(1, 4), (2, 4), (4, 2), (4, 4), (4, 8), (8, 4)] {
                    if m == 4 && (r != 2 || simds != 4) {
                        continue;
                    }
                    let kernel = Gemv { weight, m, r, simds, bias: false, experts: false };
                    let a = GemvArgs { w, batch: m, share: 1, stack_words: 0, stack_factors: 0 };
                    let groups = [(n as u32).div_ceil(r * simds), 1, 1];
                    let us = self.time(copies.clamp(8, 64), |i| {
                        let words = self.words.part(i % copies * bytes / 4, bytes / 4);
                        kernel.launch(&self.gpu, groups, &words, &self.factors, &self.none, &x, &index, &index, &y, &a)
                    })?;
                    let operations = 2.0 * f64::from(m) * k as f64 * n as f64;
                    self.report(&format!("{what} {k} x {n} m {m} r {r} simds {simds}"), us, bytes + scales, operations);
                }
            }
            let a = GemvArgs { w, batch: 256, share: 1, stack_words: 0, stack_factors: 0 };
            let us = self.time(8, |i| {
                let words = self.words.part(i % copies * bytes / 4, bytes / 4);
                let groups = [(n as u32).div_ceil(64), 4, 1];
                Gemm { weight, bias: false }.launch(&self.gpu, groups, &words, &self.factors, &self.none, &x, &y, &a)
            })?;
            self.report(&format!("{what} {k} x {n} gemm of 256 rows"), us, bytes + scales, 512.0 * k as f64 * n as f64);
            Ok(())
        }
    }

    pub fn main() {
        let megabytes: usize = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(1024);
        let cuda = match Cuda::open(0) {
            Ok(cuda) => Arc::new(cuda),
            Err(why) => return eprintln!("{why}"),
        };
        let info = cuda.info();
        println!("{} {} driver {}", info.name, info.architecture, info.driver);
        let gpu = Gpu::new(cuda.clone(), usize::MAX);
        let bytes = megabytes << 20;
        // Random bits, from a linear congruence.
        let mut state = 1u32;
        let random: Vec<u32> = (0..bytes / 4)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state ^ (state >> 15)
            })
            .collect();
        let words = gpu.upload(&random).unwrap();
        // Scales of one in half precision.
        let factors = gpu.upload(&[0u8, 0x3c].repeat(64 << 20)).unwrap();
        let none = gpu.upload(&[0.0f32; 4]).unwrap();
        let bench = Bench { cuda, gpu, none, words, factors, bytes };
        let copy: Slice<f32> = bench.gpu.uninitialised(bytes / 4).unwrap();
        let x: Slice<f32> = bench.words.cast();
        let count = CountArgs { count: (bytes / 4) as u32 };
        let us = bench.time(4, |_| {
            let groups = [count.count.div_ceil(256), 1, 1];
            Add {}.launch(&bench.gpu, groups, &x, &x, &copy, &count)
        });
        bench.report("reading and writing", us.unwrap(), 2 * bytes, 0.0);
        for (k, n) in [(4096, 4096), (4096, 12288), (8192, 28672)] {
            for bits in [2, 3, 4] {
                bench.trellis(k, n, bits, Codebook::Mul1).unwrap();
            }
        }
        bench.trellis(4096, 12288, 3, Codebook::ThreeInst).unwrap();
        let grouped = |bits, map, vector| WeightType::Grouped {
            bits,
            map,
            vector,
            scale: Factor::F16,
            outer: Factor::None,
            divide: false,
            zero: Factor::None,
            minimum: Factor::None,
            minimum_outer: Factor::None,
        };
        for (k, n) in [(4096, 4096), (8192, 28672)] {
            bench.grouped("fp4 groups of 64", k, n, grouped(4, CodeMap::E2m1, 4), 4, 64).unwrap();
            bench.grouped("int4 groups of 64", k, n, grouped(4, CodeMap::Integers, 4), 4, 64).unwrap();
            bench.grouped("int3 groups of 64", k, n, grouped(3, CodeMap::Integers, 1), 3, 64).unwrap();
            bench.grouped("f16", k, n, WeightType::Dense { element: Element::F16, vector: true }, 16, 0).unwrap();
        }
    }
}
