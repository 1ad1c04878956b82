//! Products with every kind of weight, for few rows and many, at sizes that are no multiples of anything.

use crate::device::{backends, close, twins};
use crate::numbers::Numbers;
use marlin_backend::{Backend, Error, LinearHandle, Reference};
use marlin_checkpoint::weight::{Codebook, ScaleTree, ScaleType, ValueMap, Zero};
use marlin_checkpoint::{DType, Dense, InputTransform, Linear, OutputTransform, Tensor, TensorInfo, Weight};

/// Products of so many rows each. Sums of a few rows are f32 throughout; operands of many are rounded to TF32 on some devices.
/// Kernels for tensor cores take inputs of grouped codes as fixed-point numbers of 16 bits, and do not round the values of the codebook
/// MUL1 to halves as the format does, which is 2e-4 of a sum.
fn products(what: &str, numbers: &mut Numbers, linear: &Linear, batches: &[usize]) {
    let (few, many): (Vec<usize>, Vec<usize>) = batches.iter().partition(|m| **m <= 16);
    let few_limit = match &linear.weight {
        Weight::Trellis(w) if w.codebook() == Codebook::Mul1 && w.rows() % 128 == 0 && w.cols() % 128 == 0 => 6e-4,
        Weight::Grouped(_) => 4e-5,
        _ => 2e-5,
    };
    for (batches, limit) in [(few, few_limit), (many, 2e-3)] {
        let inputs: Vec<Vec<f32>> = batches.iter().map(|m| numbers.many(m * linear.in_features())).collect();
        twins!(&format!("{what}, {batches:?} rows"), limit, |b| {
            let w = b.linear(linear.clone())?;
            let mut all = Vec::new();
            for (m, x) in batches.iter().zip(&inputs) {
                all.extend(b.read(&b.linears(&[&w], &b.write(*m, w.cols(), x.clone())?)?[0])?);
            }
            Ok(all)
        });
    }
}

#[test]
fn dense() {
    let mut numbers = Numbers(1);
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        for (rows, cols) in [(1, 1), (33, 64), (70, 100), (67, 1300)] {
            let mut linear = numbers.dense("dense", rows, cols, dtype);
            linear.bias = (rows % 2 == 1).then(|| numbers.many(rows));
            products(&format!("{dtype} [{rows}, {cols}]"), &mut numbers, &linear, &[1, 2, 3, 16, 17]);
        }
    }
}

#[test]
fn integers_of_every_width() {
    let mut numbers = Numbers(2);
    for bits in 2..=8 {
        for (rows, cols) in [(37, 96), (18, 1120)] {
            let shape = [rows, cols];
            let scale = ScaleTree::flat(numbers.scales(ScaleType::F16, shape, (1, 32)));
            let minimum = Some(ScaleTree::flat(numbers.scales(ScaleType::F16, shape, (1, 32))));
            let map = ValueMap::Integer(Zero::Constant(0));
            let linear = numbers.grouped(shape, bits, map, scale, minimum);
            products(&format!("{bits} bits {shape:?}"), &mut numbers, &linear, &[1, 4, 19]);
        }
    }
}

#[test]
fn every_type_of_scale() {
    let mut numbers = Numbers(3);
    use ScaleType::{BF16, E4M3, E8M0, F16, F32, I8, U4, U8};
    for (kind, outer, block) in [
        (F32, None, (1, 64)),
        (F32, None, (16, 128)),
        (BF16, None, (1, 16)),
        (E4M3, Some((F32, (40, 200))), (1, 16)),
        (E8M0, None, (1, 32)),
        (I8, Some((F16, (1, 128))), (1, 32)),
        (U8, Some((F16, (1, 256))), (1, 16)),
        (F16, None, (1, 200)),
    ] {
        let shape = [40, 200];
        let inner = numbers.scales(kind, shape, block);
        let tree = match outer {
            None => ScaleTree::flat(inner),
            Some((kind, block)) => ScaleTree::nested(inner, numbers.scales(kind, shape, block)),
        };
        let linear = numbers.grouped(shape, 4, ValueMap::E2M1, tree, None);
        products(&format!("{kind:?} of {block:?}"), &mut numbers, &linear, &[1, 18]);
    }
    // Zero points of groups, in bytes and in halves of bytes; a factor that divides.
    for kind in [U8, U4] {
        let shape = [20, 160];
        let zeros = numbers.scales(kind, shape, (1, 32));
        let scale = ScaleTree::flat(numbers.scales(F16, shape, (1, 32)));
        let linear = numbers.grouped(shape, 4, ValueMap::Integer(Zero::Groups(zeros)), scale, None);
        products(&format!("{kind:?} zero points"), &mut numbers, &linear, &[1, 18]);
    }
    let shape = [20, 160];
    let divided = ScaleTree::divided(numbers.scales(E4M3, shape, (1, 16)), numbers.scales(F32, shape, shape.into()));
    let linear = numbers.grouped(shape, 4, ValueMap::E2M1, divided, None);
    products("a factor that divides", &mut numbers, &linear, &[1, 18]);
}

#[test]
fn floats_of_8_bits_and_tables() {
    let mut numbers = Numbers(4);
    let shape = [35, 288];
    for map in [ValueMap::E4M3, ValueMap::E5M2] {
        let scale = ScaleTree::flat(numbers.scales(ScaleType::F32, shape, (128, 128)));
        let linear = numbers.grouped(shape, 8, map.clone(), scale, None);
        products(&format!("{map:?}"), &mut numbers, &linear, &[1, 18]);
    }
    let table: [f32; 16] = std::array::from_fn(|i| (i as f32 - 7.3) * (i as f32));
    let scale = ScaleTree::nested(
        numbers.scales(ScaleType::I8, shape, (1, 32)),
        numbers.scales(ScaleType::F16, shape, (1, 256)),
    );
    let linear = numbers.grouped(shape, 4, ValueMap::Table(Box::new(table)), scale, None);
    products("a table", &mut numbers, &linear, &[1, 18]);
}

#[test]
fn trellises() {
    let mut numbers = Numbers(5);
    let books = [Codebook::ThreeInst, Codebook::Mcg, Codebook::Mul1];
    for bits in 1..=8 {
        let linear = numbers.trellis(80, 144, bits, books[bits % 3]);
        products(&format!("{bits} bits, {:?}", books[bits % 3]), &mut numbers, &linear, &[1, 17]);
    }
    for book in books {
        let linear = numbers.trellis(16, 2112, 3, book);
        products(&format!("3 bits, {book:?}"), &mut numbers, &linear, &[1, 2, 4, 5, 30]);
    }
}

/// Matrices of whole blocks of 128, which kernels for tensor cores take: more blocks than groups, fewer, and more inputs than a group
/// keeps.
#[test]
fn trellises_by_tensor_cores() {
    let mut numbers = Numbers(8);
    let books = [Codebook::ThreeInst, Codebook::Mcg, Codebook::Mul1];
    for bits in 1..=8 {
        let linear = numbers.trellis(128, 256, bits, Codebook::Mul1);
        products(&format!("{bits} bits of mul1"), &mut numbers, &linear, &[1]);
    }
    for (book, [rows, cols]) in books.into_iter().zip([[128, 256], [256, 256], [384, 256]]) {
        let linear = numbers.trellis(rows, cols, 3, book);
        products(&format!("{book:?} [{rows}, {cols}]"), &mut numbers, &linear, &[1, 3, 7, 16]);
    }
    let linear = numbers.trellis(128, 128 * 60, 2, Codebook::Mul1);
    products("many inputs", &mut numbers, &linear, &[1]);
}

#[test]
fn what_stands_around_a_matrix() {
    let mut numbers = Numbers(6);
    for (block_in, block_out) in [(1, 1), (2, 16), (32, 8), (64, 128), (128, 128), (512, 256)] {
        let (cols, rows) = (512, 256);
        let scale = |n: &mut Numbers, len| Some(n.many(len).into());
        let input = InputTransform::Hadamard { scale: scale(&mut numbers, cols), block: block_in };
        let output = OutputTransform::Hadamard { scale: scale(&mut numbers, rows), block: block_out };
        let mut linear = numbers.trellis(rows, cols, 2, Codebook::Mul1).with_transforms(input, output).unwrap();
        linear.bias = Some(numbers.many(rows - 3));
        let linear = linear.with_features([rows - 3, cols - 5]).unwrap();
        products(&format!("rotations of {block_in} and {block_out}"), &mut numbers, &linear, &[1, 3]);
    }
    let mut order: Vec<u32> = (0..96).rev().collect();
    order.swap(3, 40);
    let linear = numbers.four_bits(24, 96, ValueMap::Integer(Zero::Constant(8)));
    let linear = linear.with_transforms(InputTransform::Permutation(order.into()), OutputTransform::None).unwrap();
    products("another order", &mut numbers, &linear, &[1, 18]);
    let linear = numbers.four_bits(24, 96, ValueMap::E2M1).with_features([21, 90]).unwrap();
    products("padding", &mut numbers, &linear, &[1, 18]);
}

/// Groups of eight have no kernel: the CPU computes them, and that is counted.
#[test]
fn what_has_no_kernel_is_computed_on_the_cpu_and_counted() {
    let mut numbers = Numbers(7);
    let scale = ScaleTree::flat(numbers.scales(ScaleType::F32, [12, 64], (1, 8)));
    let linear = numbers.grouped([12, 64], 4, ValueMap::E2M1, scale, None);
    let x = numbers.many(3 * 64);
    let expected = Reference
        .read(&Reference.linears(&[&linear], &Reference.write(3, 64, x.clone()).unwrap()).unwrap()[0])
        .unwrap();
    for b in backends() {
        let w = b.linear(linear.clone()).unwrap();
        let y = b.linears(&[&w], &b.write(3, 64, x.clone()).unwrap()).unwrap();
        close("on the CPU", &b.read(&y[0]).unwrap(), &expected, 2e-5);
        let found = b.fallbacks().snapshot();
        assert_eq!((found.total, found.by_reason["unsupported_group"]), (1, 1));
        assert_eq!(found.last.unwrap().batch, 3);
    }
}

#[test]
fn weights_that_are_not_finite_are_refused_by_name_and_place() {
    for (dtype, bytes) in [
        (DType::BF16, half::bf16::NAN.to_le_bytes().to_vec()),
        (DType::F16, half::f16::INFINITY.to_le_bytes().to_vec()),
        (DType::F32, f32::NEG_INFINITY.to_le_bytes().to_vec()),
    ] {
        let mut data = vec![0u8; 60 * 10 * dtype.size()];
        data[373 * dtype.size()..374 * dtype.size()].copy_from_slice(&bytes);
        let info = TensorInfo { name: "w".into(), dtype, shape: vec![60, 10] };
        let weight = Weight::Dense(Dense::new(Tensor { info, data: data.into() }).unwrap());
        for b in backends() {
            match b.linear(Linear::new("layers.3.up_proj", weight.clone(), None)) {
                Err(Error::NotFinite { name, index, .. }) => {
                    assert_eq!((name.as_str(), index), ("layers.3.up_proj", 373))
                }
                _ => panic!("accepted"),
            }
        }
    }
}
