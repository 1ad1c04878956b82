//! Vectors published with each format, or made by an independent implementation of it.

use super::grouped::pack;
use super::*;
use crate::{Bytes, DType, Tensor, TensorInfo};

fn bytes(hex: &str) -> Vec<u8> {
    hex.split_whitespace().map(|b| u8::from_str_radix(b, 16).unwrap()).collect()
}

fn f16s(values: &[f32]) -> Bytes {
    values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect::<Vec<_>>().into()
}

fn f32s(values: &[f32]) -> Bytes {
    values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>().into()
}

fn row(weight: Grouped) -> Vec<f32> {
    Weight::Grouped(Box::new(weight)).dequantize().unwrap()
}

fn flat(kind: ScaleType, cols: usize, group: usize, data: impl Into<Bytes>) -> ScaleTree {
    ScaleTree::flat(Scales::new(kind, 1, cols, (1, group), data.into()).unwrap())
}

/// Bytes of MLX's packing, which is the canonical one.
#[test]
fn packing_is_mlx_packing() {
    for (bits, codes, expected) in [
        (3, vec![0, 1, 2, 3, 4, 5, 6, 7], "88 c6 fa 00"),
        (5, vec![1, 2, 4, 8, 16, 31, 21, 10], "41 10 04 7f 55 00 00 00"),
        (6, vec![1, 2, 4, 63], "81 40 fc 00"),
        (4, vec![0, 1, 2, 3, 4, 5, 6, 7], "10 32 54 76"),
    ] {
        let packed = pack(&codes, codes.len(), bits);
        assert_eq!(packed, bytes(expected), "{bits} bits");
        let scale = flat(ScaleType::F32, codes.len(), codes.len(), f32s(&[1.0]));
        let weight =
            Grouped::new([1, codes.len()], bits, packed.into(), ValueMap::Integer(Zero::Constant(0)), scale, None)
                .unwrap();
        assert_eq!(row(weight), codes.iter().map(|c| f32::from(*c)).collect::<Vec<_>>());
    }
}

/// GPTQ's 3-bit words for the values i % 8: one dense stream over three words.
#[test]
fn three_bits_cross_words() {
    let codes: Vec<u8> = (0..32).map(|i| i % 8).collect();
    let words = [0x88fa_c688_u32, 0xc688_fac6, 0xfac6_88fa];
    assert_eq!(pack(&codes, 32, 3), words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>());
}

/// Marlin FP4's example: the word 0x97654321.
#[test]
fn fp4() {
    let codes = 0x9765_4321_u32.to_le_bytes().to_vec();
    let weight = |scale: f32| {
        Grouped::new([1, 8], 4, codes.clone().into(), ValueMap::E2M1, flat(ScaleType::F16, 8, 8, f16s(&[scale])), None)
            .unwrap()
    };
    assert_eq!(row(weight(1.0)), [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.5]);
    assert_eq!(row(weight(0.25)), [0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5, -0.125]);
}

/// ModelOpt's example (byte 0x72, scale 0x38, tensor scale 0.5), and compressed-tensors' divisor.
#[test]
fn nvfp4() {
    let codes = [[0x72; 8], [0x19; 8]].concat();
    let inner = Scales::new(ScaleType::E4M3, 1, 32, (1, 16), vec![0x38, 0x45].into()).unwrap();
    let outer = |value| Scales::whole(1, 32, value).unwrap();
    let make = |scale| row(Grouped::new([1, 32], 4, codes.clone().into(), ValueMap::E2M1, scale, None).unwrap());
    let values = make(ScaleTree::nested(inner.clone(), outer(0.5)));
    assert_eq!(values[..4], [0.5, 3.0, 0.5, 3.0]);
    assert_eq!(values[16..18], [-0.5 * 3.25 * 0.5, 0.5 * 3.25 * 0.5]);
    assert_eq!(make(ScaleTree::divided(inner.clone(), outer(2.0))), values);
    // 3.25 / 3 and 3.25 * (1 / 3) differ in f32; the format says divide.
    let thirds = make(ScaleTree::divided(inner, outer(3.0)));
    assert_eq!(thirds[17], 0.5 * (3.25 / 3.0));
}

/// gpt-oss's example: scale 0x80, byte 0x91.
#[test]
fn mxfp4() {
    let scale = flat(ScaleType::E8M0, 32, 32, vec![0x80]);
    let weight = Grouped::new([1, 32], 4, vec![0x91; 16].into(), ValueMap::E2M1, scale, None).unwrap();
    assert_eq!(row(weight)[..4], [1.0, -1.0, 1.0, -1.0]);
}

/// GPTQ: scale * (code - zero) with a zero for each group.
#[test]
fn integer_zero_points() {
    let codes = pack(&[0, 1, 2, 3, 4, 5, 6, 7, 15, 14, 13, 12, 8, 8, 8, 8], 16, 4);
    let zeros = Scales::new(ScaleType::U4, 1, 16, (1, 8), vec![0x38].into()).unwrap(); // 8, then 3
    let scale = flat(ScaleType::F16, 16, 8, f16s(&[0.5, 2.0]));
    let weight = Grouped::new([1, 16], 4, codes.into(), ValueMap::Integer(Zero::Groups(zeros)), scale, None).unwrap();
    assert_eq!(
        row(weight),
        [-4.0, -3.5, -3.0, -2.5, -2.0, -1.5, -1.0, -0.5, 24.0, 22.0, 20.0, 18.0, 10.0, 10.0, 10.0, 10.0]
    );
}

/// MLX's example: linspace(-1, 2, 32) in 4 bits has scale -0.2, minimum 2.0 and codes 15, 15, 14, ..., 0.
#[test]
fn affine_minimum() {
    let codes: Vec<u8> = (0..32).map(|i| ((-1.0 + 3.0 * f64::from(i) / 31.0 - 2.0) / -0.2).round() as u8).collect();
    assert_eq!((codes[0], codes[2], codes[31]), (15, 14, 0));
    let weight = Grouped::new(
        [1, 32],
        4,
        pack(&codes, 32, 4).into(),
        ValueMap::Integer(Zero::Constant(0)),
        flat(ScaleType::F32, 32, 32, f32s(&[-0.2])),
        Some(flat(ScaleType::F32, 32, 32, f32s(&[2.0]))),
    );
    let values = row(weight.unwrap());
    for (i, value) in values.iter().enumerate() {
        assert!((f64::from(*value) - (-1.0 + 3.0 * i as f64 / 31.0)).abs() <= 0.101, "{i}: {value}");
    }
    assert_eq!((values[0], values[31]), (-0.2_f32 * 15.0 + 2.0, 2.0));
}

/// fp8 with one factor for each 128 x 128 tile, edges partial (here 2 x 4 tiles of a 3 x 6 matrix).
#[test]
fn fp8_tiles() {
    let scales = Scales::new(ScaleType::F32, 3, 6, (2, 4), f32s(&[1.0, 10.0, 100.0, 1000.0])).unwrap();
    let codes = [[0x38; 8], [0x40; 8], [0xb8; 8]].concat();
    let weight = Grouped::new([3, 6], 8, codes.into(), ValueMap::E4M3, ScaleTree::flat(scales), None).unwrap();
    assert_eq!(
        row(weight),
        [
            1.0, 1.0, 1.0, 1.0, 10.0, 10.0, 2.0, 2.0, 2.0, 2.0, 20.0, 20.0, -100.0, -100.0, -100.0, -100.0, -1000.0,
            -1000.0
        ]
    );
}

/// GGUF's super-blocks: Q4_K is d * sc * q - dmin * mn, its dmin kept negated; Q6_K and IQ4_XS have signed inner scales.
#[test]
fn super_blocks() {
    let codes: Vec<u8> = (0..256).map(|i| (i % 16) as u8).collect();
    let sc: Vec<u8> = vec![1, 2, 3, 4, 5, 33, 63, 40];
    let mn: Vec<u8> = vec![10, 20, 30, 40, 50, 60, 11, 63];
    let tree = |kind, group, inner: &[u8], outer: f32| {
        ScaleTree::nested(
            Scales::new(kind, 1, 256, (1, group), inner.to_vec().into()).unwrap(),
            Scales::new(ScaleType::F16, 1, 256, (1, 256), f16s(&[outer])).unwrap(),
        )
    };
    let q4_k = Grouped::new(
        [1, 256],
        4,
        pack(&codes, 256, 4).into(),
        ValueMap::Integer(Zero::Constant(0)),
        tree(ScaleType::U8, 32, &sc, 0.25),
        Some(tree(ScaleType::U8, 32, &mn, -0.5)),
    )
    .unwrap();
    assert_eq!(q4_k.bytes(), 148); // 144 on disk
    for (i, value) in row(q4_k).iter().enumerate() {
        let j = i / 32;
        assert_eq!(*value, 0.25 * f32::from(sc[j]) * f32::from(codes[i]) - 0.5 * f32::from(mn[j]), "{i}");
    }
    let table = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113].map(|v: i16| f32::from(v));
    let ls: Vec<u8> = [-32_i8, 31, 0, 5, -1, 7, 8, 9].iter().map(|v| *v as u8).collect();
    let scale = tree(ScaleType::I8, 32, &ls, 2.0);
    let map = ValueMap::Table(Box::new(table));
    let iq4 = row(Grouped::new([1, 256], 4, pack(&codes, 256, 4).into(), map, scale, None).unwrap());
    assert_eq!((iq4[0], iq4[47], iq4[64]), (-127.0 * -64.0, 113.0 * 62.0, 0.0));
    // Q2_K: 4-bit scales and minimums of 16 weights; as many bytes as on disk.
    let quarter: Vec<u8> = codes.iter().map(|c| c % 4).collect();
    let nibbles = |f: fn(u8) -> u8| (0..8).map(|i| f(2 * i) | f(2 * i + 1) << 4).collect::<Vec<u8>>();
    let q2_k = Grouped::new(
        [1, 256],
        2,
        pack(&quarter, 256, 2).into(),
        ValueMap::Integer(Zero::Constant(0)),
        tree(ScaleType::U4, 16, &nibbles(|i| i), 0.5),
        Some(tree(ScaleType::U4, 16, &nibbles(|i| 15 - i), -0.25)),
    )
    .unwrap();
    assert_eq!(q2_k.bytes(), 84);
    for (i, value) in row(q2_k).iter().enumerate() {
        let j = (i / 16) as f32;
        assert_eq!(*value, 0.5 * j * f32::from(quarter[i]) - 0.25 * (15.0 - j), "{i}");
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let scale = || flat(ScaleType::F16, 8, 8, f16s(&[1.0]));
    let error = |bits, codes: Vec<u8>, map, scale| {
        Grouped::new([1, 8], bits, codes.into(), map, scale, None).unwrap_err().to_string()
    };
    let zero = |z| ValueMap::Integer(Zero::Constant(z));
    assert_eq!(error(9, vec![0; 12], zero(0), scale()), "grouped weight: expected codes of 2..=8 bits, found 9");
    assert_eq!(error(3, vec![0; 4], ValueMap::E2M1, scale()), "grouped weight: expected codes of 4..=4 bits, found 3");
    assert_eq!(
        error(4, vec![0; 5], zero(8), scale()),
        "grouped weight: expected 4 bytes of codes ([1, 8], 4 bits), found 5"
    );
    assert_eq!(error(4, vec![0; 4], zero(16), scale()), "grouped weight: zero point 16 is no code of 4 bits");
    let other = flat(ScaleType::F16, 64, 8, f16s(&[1.0; 8]));
    assert!(error(4, vec![0; 4], zero(8), other).contains("made for another shape than [1, 8]"));
    let zeros = Scales::new(ScaleType::F32, 1, 8, (1, 8), f32s(&[0.0])).unwrap();
    assert!(
        error(4, vec![0; 4], ValueMap::Integer(Zero::Groups(zeros)), scale()).contains("must be U8 or U4, found F32")
    );
    let short = Scales::new(ScaleType::F16, 4, 64, (1, 32), vec![0; 15].into()).unwrap_err().to_string();
    assert_eq!(short, "scales: expected 16 bytes (F16, one for each 1 x 32 of [4, 64]), found 15");
}

/// A tile of the test data: bits, codebook, sums, words, first values.
struct Tile {
    bits: usize,
    codebook: Codebook,
    sum: f64,
    row0: f64,
    words: Vec<u8>,
    first: Vec<u16>,
}

fn tiles() -> Vec<Tile> {
    let text = include_str!("testdata/exl3-tiles.txt");
    let words = |line: &str| line.split_whitespace().map(|w| u16::from_str_radix(w, 16).unwrap()).collect::<Vec<_>>();
    let mut tiles: Vec<Tile> = Vec::new();
    for line in text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        let (kind, rest) = line.split_once(' ').unwrap();
        match kind {
            "tile" => {
                let parts: Vec<&str> = rest.split(' ').collect();
                let codebook = match parts[1] {
                    "3inst" => Codebook::ThreeInst,
                    "mcg" => Codebook::Mcg,
                    _ => Codebook::Mul1,
                };
                let number = |i: usize| parts[i].parse::<f64>().unwrap();
                let (bits, sum, row0) = (parts[0].parse().unwrap(), number(2), number(3));
                tiles.push(Tile { bits, codebook, sum, row0, words: vec![], first: vec![] });
            }
            "u16" => tiles.last_mut().unwrap().words = words(rest).iter().flat_map(|w| w.to_le_bytes()).collect(),
            _ => tiles.last_mut().unwrap().first = words(rest),
        }
    }
    tiles
}

fn trellis(shape: [usize; 3], words: Vec<u8>, codebook: Codebook) -> Trellis {
    let info = TensorInfo { name: "x.trellis".into(), dtype: DType::I16, shape: shape.to_vec() };
    Trellis::new(Tensor { info, data: words.into() }, codebook).unwrap()
}

#[test]
fn exl3_tiles() {
    let tiles = tiles();
    assert_eq!(tiles.len(), 12);
    for tile in tiles {
        let label = format!("{} bits, {:?}", tile.bits, tile.codebook);
        let first: Vec<u16> =
            (0..16).map(|t| tile.codebook.value(trellis::state(&tile.words, tile.bits, t)).to_bits()).collect();
        assert_eq!(first, tile.first, "{label}");
        // Rows of the weight are outputs: transpose to sum over the first input.
        let values = Weight::Trellis(trellis([1, 1, 16 * tile.bits], tile.words, tile.codebook)).dequantize().unwrap();
        let sum: f64 = values.iter().map(|v| f64::from(*v)).sum();
        let row0: f64 = values.iter().step_by(16).map(|v| f64::from(*v)).sum();
        assert!((sum - tile.sum).abs() < 1e-8, "{label}: {sum} instead of {}", tile.sum);
        assert!((row0 - tile.row0).abs() < 1e-8, "{label}: {row0} instead of {}", tile.row0);
    }
}

#[test]
fn exl3_states_order_and_codebooks() {
    let tile = tiles().into_iter().find(|t| t.bits == 4 && t.codebook == Codebook::ThreeInst).unwrap();
    let states: Vec<u16> = (0..4).map(|t| trellis::state(&tile.words, 4, t)).collect();
    assert_eq!(states, [0xcc22, 0xc22c, 0x22c6, 0x2c69]);

    let places = [
        (0, 0),
        (1, 0),
        (8, 0),
        (9, 0),
        (0, 8),
        (1, 8),
        (8, 8),
        (9, 8),
        (2, 0),
        (3, 0),
        (10, 0),
        (11, 0),
        (2, 8),
        (3, 8),
        (10, 8),
        (11, 8),
    ];
    for (t, (input, output)) in places.into_iter().enumerate() {
        assert_eq!(trellis::position(input, output), t);
    }

    // f16 bits at states 0, 1, 2, 0x1234, 0xffff; mean, standard deviation, extremes and count of the whole book.
    for (book, bits, mean, std, least, most, distinct) in [
        (Codebook::ThreeInst, [0x3a25, 0xbb5b, 0x3b74, 0xc066, 0xb110], 0.000210, 1.243711, -3.957, 3.973, 10598),
        (Codebook::Mcg, [0x3f60, 0x304e, 0xba13, 0x3e0f, 0x3acd], -0.000037, 1.244112, -3.949, 3.949, 10746),
        (Codebook::Mul1, [0xc2e8, 0x3921, 0xb72d, 0xb89e, 0xb936], -0.001931, 1.000310, -3.453, 3.348, 913),
    ] {
        assert_eq!([0, 1, 2, 0x1234, 0xffff].map(|s| book.value(s).to_bits()), bits, "{book:?}");
        let all: Vec<f64> = (0..=u16::MAX).map(|s| book.value(s).to_f64()).collect();
        let m = all.iter().sum::<f64>() / 65536.0;
        let s = (all.iter().map(|v| (v - m) * (v - m)).sum::<f64>() / 65536.0).sqrt();
        assert!((m - mean).abs() < 1e-6 && (s - std).abs() < 1e-6, "{book:?}: {m} {s}");
        let extreme = |f: fn(f64, f64) -> f64| all.iter().copied().reduce(f).unwrap();
        assert!((extreme(f64::min) - least).abs() < 5e-4 && (extreme(f64::max) - most).abs() < 5e-4, "{book:?}");
        let set: std::collections::HashSet<u16> = (0..=u16::MAX).map(|s| book.value(s).to_bits()).collect();
        assert_eq!(set.len(), distinct, "{book:?}");
    }
}

#[test]
fn trellis_tensors_that_are_refused() {
    let make = |dtype, shape: Vec<usize>, bytes| {
        let info = TensorInfo { name: "x.trellis".into(), dtype, shape };
        Trellis::new(Tensor { info, data: vec![0; bytes].into() }, Codebook::Mcg).unwrap_err().to_string()
    };
    assert_eq!(make(DType::F16, vec![1, 1, 16], 32), "tensor \"x.trellis\": expected I16 or U16, found F16");
    assert!(
        make(DType::I16, vec![1, 16], 32).contains("expected [inputs / 16, outputs / 16, 16 x bits], found [1, 16]")
    );
    assert!(make(DType::I16, vec![1, 1, 24], 48).contains("a multiple of 16, found 24"));
    assert!(make(DType::I16, vec![1, 1, 144], 288).contains("found 144"));
    assert!(make(DType::I16, vec![1, 2, 16], 32).contains("expected 64 bytes, found 32"));
}

/// The published check of the rotation: x_i = (i + 1) / 128.
#[test]
fn hadamard_of_a_ramp() {
    let mut x: Vec<f32> = (0..128).map(|i| (i as f32 + 1.0) / 128.0).collect();
    let before = x.clone();
    hadamard(&mut x, 128);
    for (i, expected) in
        [(0, 5.701_048_4), (1, -0.04419417), (2, -0.08838835), (3, 0.0), (4, -0.1767767), (64, -2.828_427)]
    {
        assert!((x[i] - expected).abs() < 1e-6, "{i}: {} instead of {expected}", x[i]);
    }
    hadamard(&mut x, 128);
    assert!(x.iter().zip(&before).all(|(a, b)| (a - b).abs() < 1e-6));
}

fn noise(n: usize, mut state: u32) -> Vec<f32> {
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
    .take(n)
    .collect()
}

/// The layer as it is applied, and the plain matrix it stands for, give the same; transforms, padding and bias included.
#[test]
fn a_linear_and_its_matrix_agree() {
    let words: Vec<u8> = noise(16 * 8 * 32 * 3, 1).iter().map(|v| (v * 127.0) as i8 as u8).collect();
    let weight = Weight::Trellis(trellis([16, 8, 48], words, Codebook::Mul1));
    let scale = |n, seed| Some(noise(n, seed).into());
    let exl3 = Linear::new("exl3", weight, Some(noise(128, 4)))
        .with_transforms(
            InputTransform::Hadamard { scale: scale(256, 2), block: 128 },
            OutputTransform::Hadamard { scale: scale(128, 3), block: 128 },
        )
        .unwrap()
        .with_features([100, 200])
        .unwrap();
    let dense = Dense::new(Tensor {
        info: TensorInfo { name: "d".into(), dtype: DType::F32, shape: vec![3, 8] },
        data: f32s(&noise(24, 5)),
    });
    let order: Vec<u32> = vec![3, 1, 0, 2, 7, 5, 6, 4];
    let permuted = Linear::new("permuted", Weight::Dense(dense.unwrap()), None)
        .with_transforms(InputTransform::Permutation(order.into()), OutputTransform::None)
        .unwrap();
    for linear in [exl3, permuted] {
        assert!(!linear.is_plain());
        let x = noise(linear.in_features(), 6);
        let y = linear.apply(&x).unwrap();
        assert_eq!(y.len(), linear.out_features());
        let matrix = linear.matrix().unwrap();
        let bias = linear.bias.clone().unwrap_or(vec![0.0; y.len()]);
        for (r, row) in matrix.chunks_exact(x.len()).enumerate() {
            let expected = row.iter().zip(&x).map(|(w, x)| w * x).sum::<f32>() + bias[r];
            assert!((y[r] - expected).abs() < 1e-3, "{}: {} instead of {expected}", linear.name, y[r]);
        }
        assert!(linear.apply(&x[1..]).unwrap_err().to_string().contains("(input)"));
    }
}

#[test]
fn transforms_that_do_not_fit_are_refused() {
    let dense = |shape: [usize; 2]| {
        let info = TensorInfo { name: "d".into(), dtype: DType::F32, shape: shape.to_vec() };
        Linear::new(
            "d",
            Weight::Dense(Dense::new(Tensor { info, data: vec![0; 4 * shape[0] * shape[1]].into() }).unwrap()),
            None,
        )
    };
    let input = |t| dense([2, 12]).with_transforms(t, OutputTransform::None).unwrap_err().to_string();
    assert!(
        input(InputTransform::Hadamard { scale: None, block: 8 }).contains("input rotation of 8 does not divide 12")
    );
    assert!(input(InputTransform::Hadamard { scale: None, block: 12 }).contains("must be a power of two"));
    assert!(
        input(InputTransform::Hadamard { scale: Some(vec![1.0; 3].into()), block: 4 })
            .contains("expected 12 input scales, found 3")
    );
    assert!(input(InputTransform::Permutation(vec![0; 12].into())).contains("expected an order of 12 inputs"));
    assert!(dense([2, 12]).with_features([3, 12]).is_err());
}
