//! Speed of whole linears (with the rotations around a trellis) with random weights on an NVIDIA GPU, by graph replay over more weights
//! than its caches hold, the median of seven:
//!
//!     cargo run --release -p marlin-gpu --example linears [rows of x, ...]
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
    use marlin_backend::Backend;
    use marlin_checkpoint::weight::{Codebook, Grouped, ScaleTree, ScaleType, Scales, ValueMap, Zero};
    use marlin_checkpoint::{
        Bytes, DType, Dense, InputTransform, Linear, OutputTransform, Tensor, TensorInfo, Trellis, Weight,
    };
    use marlin_gpu::device::cuda::Cuda;
    use marlin_gpu::kernels::Element;
    use marlin_gpu::{Device, GpuBackend, GpuOptions};
    use std::sync::Arc;
    use std::time::Instant;

    /// Random bytes, from a linear congruence.
    fn random(len: usize, seed: u32) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state ^ (state >> 15)).to_le_bytes()
        };
        (0..len.div_ceil(4)).flat_map(|_| next()).take(len).collect()
    }

    fn tensor(dtype: DType, shape: Vec<usize>, data: Bytes) -> Tensor {
        Tensor { info: TensorInfo { name: "w".into(), dtype, shape }, data }
    }

    fn trellis(cols: usize, rows: usize, bits: usize, book: Codebook) -> Linear {
        let data = random(rows * cols * bits / 8, 1).into();
        let weight = Trellis::new(tensor(DType::I16, vec![cols / 16, rows / 16, 16 * bits], data), book).unwrap();
        let scale = |n: usize| Some(vec![0.7f32; n].into());
        Linear::new("w", Weight::Trellis(weight), None)
            .with_transforms(
                InputTransform::Hadamard { scale: scale(cols), block: 128 },
                OutputTransform::Hadamard { scale: scale(rows), block: 128 },
            )
            .unwrap()
    }

    fn grouped(cols: usize, rows: usize, bits: usize, map: ValueMap, group: usize, minimum: bool) -> Linear {
        let codes: Bytes = random(rows * cols * bits / 8, 1).into();
        let scales = || {
            let halves: Bytes = [0u8, 0x2c].repeat(rows * cols / group).into();
            ScaleTree::flat(Scales::new(ScaleType::F16, rows, cols, (1, group), halves).unwrap())
        };
        let minimum = minimum.then(scales);
        let weight = Grouped::new([rows, cols], bits as u32, codes, map, scales(), minimum).unwrap();
        Linear::new("w", Weight::Grouped(Box::new(weight)), None)
    }

    fn dense(cols: usize, rows: usize) -> Linear {
        // Halves of both signs below 2.
        let mut data = random(rows * cols * 2, 1);
        data.chunks_exact_mut(2).for_each(|h| h[1] &= 0xbf);
        Linear::new("w", Weight::Dense(Dense::new(tensor(DType::F16, vec![rows, cols], data.into())).unwrap()), None)
    }

    struct Bench {
        cuda: Arc<Cuda>,
        backend: GpuBackend,
        batches: Vec<usize>,
    }

    impl Bench {
        fn run(&self, what: &str, cols: usize, rows: usize, bits: f64, linear: &Linear) {
            let bytes = rows as f64 * cols as f64 * bits / 8.0;
            let copies = (200e6 / bytes).ceil().clamp(8.0, 24.0) as usize;
            let weights: Vec<_> = (0..copies).map(|_| self.backend.linear(linear.clone()).unwrap()).collect();
            for &m in &self.batches {
                let b = &self.backend;
                let x = b.write(m, cols, (0..m * cols).map(|i| (i as f32 * 0.37).sin()).collect()).unwrap();
                // So many that asking for the graph and waiting for its end do not count.
                let launches = (192 / m.min(16)).max(copies);
                let all = || {
                    weights.iter().cycle().take(launches).for_each(|w| {
                        b.linears(&[w], &x).unwrap();
                    });
                };
                all();
                self.cuda.wait().unwrap();
                let Some((graph, ())) = b.gpu().record(all).unwrap() else { return };
                let mut times: Vec<f64> = (0..7)
                    .map(|_| {
                        let began = Instant::now();
                        b.gpu().replay(&graph).unwrap();
                        self.cuda.wait().unwrap();
                        began.elapsed().as_secs_f64() / launches as f64
                    })
                    .collect();
                times.sort_by(f64::total_cmp);
                let time = times[times.len() / 2];
                println!(
                    "{what:<22} {cols:5} x {rows:5}  m {m:4} {:9.2} us {:6.0} GB/s {:7.1} TFLOP/s",
                    time * 1e6,
                    bytes / time / 1e9,
                    2.0 * (m * cols * rows) as f64 / time / 1e12
                );
            }
            let slower = self.backend.fallbacks().snapshot();
            if slower.total > 0 {
                println!("    slower paths: {:?}", slower.by_reason);
                self.backend.fallbacks().reset();
            }
        }
    }

    pub fn main() {
        let batches: Vec<usize> = std::env::args().skip(1).map(|a| a.parse().unwrap()).collect();
        let batches = if batches.is_empty() { vec![1, 4, 16, 2048] } else { batches };
        let cuda = match Cuda::open(0) {
            Ok(cuda) => Arc::new(cuda),
            Err(why) => return eprintln!("{why}"),
        };
        let info = cuda.info();
        println!("{} {} driver {}", info.name, info.architecture, info.driver);
        let options = GpuOptions { kv: Element::F16, memory: usize::MAX, threads: 0, record: false, exact: false };
        let backend = GpuBackend::new(cuda.clone(), options).unwrap();
        println!("reading and writing: {:.0} GB/s", backend.bytes_per_second(1 << 30).unwrap() / 1e9);
        let bench = Bench { cuda, backend, batches };
        for (cols, rows) in [(4096, 4096), (4096, 12288), (12288, 4096), (8192, 28672)] {
            for bits in [2, 3, 4] {
                let linear = trellis(cols, rows, bits, Codebook::Mul1);
                bench.run(&format!("exl3 {bits} bits mul1"), cols, rows, bits as f64, &linear);
            }
            let integers = || ValueMap::Integer(Zero::Constant(8));
            let kinds = [
                ("fp4 groups of 64", 4, ValueMap::E2M1, 64, false),
                ("int4 groups of 128", 4, integers(), 128, false),
                ("int4 of 32, minimum", 4, ValueMap::Integer(Zero::Constant(0)), 32, true),
                ("int8 groups of 128", 8, ValueMap::Integer(Zero::Constant(128)), 128, false),
            ];
            for (what, bits, map, group, minimum) in kinds {
                let stored = bits as f64 + 16.0 / group as f64 * if minimum { 2.0 } else { 1.0 };
                bench.run(what, cols, rows, stored, &grouped(cols, rows, bits, map, group, minimum));
            }
        }
        bench.run("exl3 3 bits 3inst", 4096, 12288, 3.0, &trellis(4096, 12288, 3, Codebook::ThreeInst));
        bench.run("f16", 4096, 12288, 16.0, &dense(4096, 12288));
    }
}
