//! Kernels by themselves that no primitive launches in this form, against plain loops.

use crate::device::{backends, close};
use crate::numbers::Numbers;
use marlin_gpu::kernels::{Argmax, ArgmaxArgs, RmsNorm, RmsNormArgs};

#[test]
fn a_norm_with_a_residual_keeps_the_sum() {
    let mut numbers = Numbers(20);
    for (rows, width) in [(3, 70), (2, 500), (2, 1000), (1, 1037), (2, 4300)] {
        let (x, r, w) = (numbers.many(rows * width), numbers.many(rows * width), numbers.many(width));
        let sums: Vec<f32> = x.iter().zip(&r).map(|(x, r)| x + r).collect();
        let normed: Vec<f32> = sums
            .chunks_exact(width)
            .flat_map(|row| {
                let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / width as f64;
                let factor = 1.0 / (mean + 1e-5).sqrt();
                row.iter()
                    .zip(&w)
                    .map(move |(v, w)| (f64::from(*v) * factor * f64::from(*w)) as f32)
                    .collect::<Vec<_>>()
            })
            .collect();
        for b in backends() {
            let gpu = b.gpu();
            let [x, r, w] = [&x, &r, &w].map(|v| gpu.upload(v).unwrap());
            let [sum, y] = [(); 2].map(|()| gpu.uninitialised::<f32>(rows * width).unwrap());
            let args = RmsNormArgs { width: width as u32, eps: 1e-5 };
            let kernel = RmsNorm::of(width, true);
            kernel.launch(gpu, [rows as u32, 1, 1], &x, &r, &w, &sum, &y, &args).unwrap();
            close("the sum", &gpu.read(&sum).unwrap(), &sums, 1e-6);
            close("the norm", &gpu.read(&y).unwrap(), &normed, 2e-5);
        }
    }
}

#[test]
fn argmax_takes_the_first_of_the_greatest() {
    let mut numbers = Numbers(21);
    let (rows, cols, count) = (5, 700, 690);
    let mut x = numbers.many(rows * cols);
    (x[3 * cols + 40], x[3 * cols + 600], x[4 * cols + 689], x[4 * cols + 695]) = (2.0, 2.0, 3.0, 4.0);
    let first = |row: &[f32]| {
        let greatest = row[..count].iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter().position(|v| *v == greatest).unwrap() as u32
    };
    let expected: Vec<u32> = x.chunks_exact(cols).map(first).collect();
    assert_eq!(expected[3..], [40, 689]);
    for b in backends() {
        let gpu = b.gpu();
        let place = gpu.uninitialised::<u32>(rows).unwrap();
        let args = ArgmaxArgs { cols: cols as u32, count: count as u32 };
        Argmax { simds: 8 }.launch(gpu, [rows as u32, 1, 1], &gpu.upload(&x).unwrap(), &place, &args).unwrap();
        assert_eq!(gpu.read(&place).unwrap(), expected);
    }
}

/// What is written must not be read through another binding: compilers are told so.
#[test]
fn a_launch_whose_output_overlaps_an_input_is_refused() {
    for b in backends() {
        let gpu = b.gpu();
        let x = gpu.upload(&[1.0f32; 64]).unwrap();
        let places = x.part(60, 4).cast();
        let args = ArgmaxArgs { cols: 16, count: 16 };
        let error = Argmax { simds: 1 }.launch(gpu, [4, 1, 1], &x, &places, &args).unwrap_err().to_string();
        assert!(error.contains("buffer 1 is written, and is part of buffer 0, too"), "{error}");
    }
}
