use super::pack::{pack, places};
use super::*;
use marlin_checkpoint::modules::HuggingFace;
use marlin_checkpoint::weight::trellis::state;
use marlin_checkpoint::{Config, Modules, Tensor, TensorInfo, TensorSource};
use marlin_cpu::Cpu;
use std::sync::Arc;

const BOOKS: [Codebook; 3] = [Codebook::ThreeInst, Codebook::Mcg, Codebook::Mul1];

/// Independent standard Gaussians.
fn gaussian(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as f64 + 0.5) / (1u64 << 31) as f64
    };
    (0..n).map(|_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32).collect()
}

fn matrix(rows: usize, cols: usize, seed: u64) -> Matrix {
    Matrix::new(rows, cols, gaussian(rows * cols, seed)).unwrap()
}

/// Squared error over squared weights.
fn nmse(found: &Matrix, want: &Matrix) -> f64 {
    let square = |v: f32| f64::from(v) * f64::from(v);
    let error: f64 = found.data().iter().zip(want.data()).map(|(a, b)| square(a - b)).sum();
    error / want.data().iter().map(|v| square(*v)).sum::<f64>()
}

/// Inputs that hang together: each is nine tenths of the one before; some are strong.
fn correlated(size: usize, tokens: usize, seed: u64) -> Hessian {
    let noise = gaussian(size * tokens, seed);
    let mut hessian = Hessian::new(size);
    for noise in noise.chunks(size) {
        let mut x = vec![0.0; size];
        let mut last = 0.0;
        for (i, (x, n)) in x.iter_mut().zip(noise).enumerate() {
            last = 0.9 * last + 0.4 * n;
            *x = last * if i % 37 == 0 { 4.0 } else { 1.0 };
        }
        Cpu::new(1).accumulate(&mut hessian, &x, None).unwrap();
    }
    hessian
}

/// `tr(E H E^T)`.
fn damage(found: &Matrix, want: &Matrix, hessian: &Hessian) -> f64 {
    (0..want.rows())
        .map(|r| {
            let e: Vec<f64> = found.row(r).iter().zip(want.row(r)).map(|(a, b)| f64::from(a - b)).collect();
            let along = |i: usize| hessian.sums().row(i).iter().zip(&e).map(|(h, e)| f64::from(*h) * e).sum::<f64>();
            (0..e.len()).map(|i| e[i] * along(i)).sum::<f64>()
        })
        .sum()
}

/// Tensors in memory, for the readers of checkpoints.
struct Memory(Vec<TensorInfo>, Vec<Vec<u8>>);

impl Memory {
    fn of(module: &str, quantised: &Quantised) -> Self {
        let info =
            |t: &Written| TensorInfo { name: format!("{module}.{}", t.suffix), dtype: t.dtype, shape: t.shape.clone() };
        Self(quantised.tensors.iter().map(info).collect(), quantised.tensors.iter().map(|t| t.data.clone()).collect())
    }
}

impl TensorSource for Memory {
    fn tensors(&self) -> &[TensorInfo] {
        &self.0
    }

    fn tensor(&self, name: &str) -> marlin_checkpoint::Result<Tensor> {
        let at = self.0.iter().position(|t| t.name == name).expect(name);
        Ok(Tensor { info: self.0[at].clone(), data: self.1[at].clone().into() })
    }

    fn contains(&self, name: &str) -> bool {
        self.0.iter().any(|t| t.name == name)
    }

    fn describe(&self) -> String {
        "memory".into()
    }
}

/// A tile of the format's test vectors: bits, codebook, words.
fn vectors() -> Vec<(usize, Codebook, Vec<u8>)> {
    let text = include_str!("../../../checkpoint/src/weight/testdata/exl3-tiles.txt");
    let mut tiles: Vec<(usize, Codebook, Vec<u8>)> = Vec::new();
    for line in text.lines() {
        let parts: Vec<&str> = line.split_whitespace().collect();
        match parts.first() {
            Some(&"tile") => {
                let book = BOOKS[["3inst", "mcg", "mul1"].iter().position(|name| *name == parts[2]).unwrap()];
                tiles.push((parts[1].parse().unwrap(), book, Vec::new()));
            }
            Some(&"u16") => {
                let words = parts[1..].iter().flat_map(|w| u16::from_str_radix(w, 16).unwrap().to_le_bytes());
                tiles.last_mut().unwrap().2 = words.collect();
            }
            _ => {}
        }
    }
    tiles
}

/// The tile that the test vectors encode, `[input][output]`: sums of four numbers of a linear congruence.
fn source() -> Vec<f32> {
    let mut x = 12345u32;
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(x >> 16)
    };
    (0..AREA).map(|_| ((next() + next() + next() + next()) / 65536.0 - 2.0) * 1.732_050_8).map(|w| w as f32).collect()
}

#[test]
fn test_vectors_are_met() {
    let source = source();
    assert_eq!(source[0], -1.359_666_2);
    let targets: Vec<f32> =
        places().iter().map(|(output, input)| f16::from_f32(source[input * TILE + output]).to_f32()).collect();
    let (cpu, mut same) = (Cpu::new(1), 0);
    let vectors = vectors();
    assert_eq!(vectors.len(), 12);
    for (bits, book, want) in vectors {
        let cost = |words: &[u8]| -> f64 {
            let error = |t: usize| f64::from(book.value(state(words, bits, t)).to_f32() - targets[t]);
            (0..AREA).map(|t| error(t).powi(2)).sum()
        };
        let mut codes = vec![0; AREA];
        cpu.encode(book, bits, &targets, &mut codes).unwrap();
        let mut words = vec![0; TILE * bits];
        pack(&codes, bits, &mut words);
        let words: Vec<u8> = words.into_iter().flat_map(u16::to_le_bytes).collect();
        assert!((0..AREA).all(|t| state(&words, bits, t) == codes[t]), "{bits} bits, {book:?}");
        let (ours, theirs) = (cost(&words), cost(&want));
        assert!(ours <= theirs * (1.0 + 1e-6), "{bits} bits, {book:?}: {ours} instead of {theirs}");
        same += usize::from(words == want);
        println!("{bits} bits, {book:?}: cost {ours:.9}, the vector's {theirs:.9}, same words: {}", words == want);
    }
    // Equal costs are all that leaves a choice.
    assert!(same >= 11, "{same} of 12");
}

/// Expectations for independent Gaussians (6 bits: known to one digit); 3 % of room. The lower bound is the
/// rate-distortion limit.
#[test]
fn gaussians_lose_what_they_must() {
    let cpu = Cpu::new(0);
    let weight = matrix(128, 128, 2);
    for (bits, most) in [(2, 0.069), (3, 0.0176), (4, 0.0046), (5, 0.0012), (6, 0.00031)] {
        for book in BOOKS {
            let quantised = Exl3::new(bits, book).unwrap().quantise(&cpu, "m", &weight, None).unwrap();
            let found = nmse(&quantised.decoded, &weight);
            println!("{bits} bits, {book:?}: {found:.6}");
            assert!(found < 1.03 * most, "{bits} bits, {book:?}: {found}");
            assert!(found > 0.25f64.powi(bits as i32), "{bits} bits, {book:?}: {found}");
        }
    }
}

#[test]
fn a_reader_of_the_format_finds_the_decoded_weights() {
    let cpu = Cpu::new(2);
    for (bits, book, [out, inputs]) in [
        (3, Codebook::Mul1, [128, 256]),
        (8, Codebook::ThreeInst, [100, 130]),
        (1, Codebook::Mcg, [1, 128]),
        (5, Codebook::Mul1, [16, 7]),
    ] {
        let mut weight = matrix(out, inputs, bits as u64);
        if bits == 3 {
            // Channels of nothing, weak ones and strong ones.
            weight.row_mut(5).fill(0.0);
            (0..out).for_each(|r| weight.row_mut(r)[17] = 0.0);
            weight.row_mut(9).iter_mut().for_each(|v| *v *= 1e-3);
            (0..out).for_each(|r| weight.row_mut(r)[40] *= 50.0);
        }
        let hessian = correlated(inputs, 2 * inputs, 3);
        let method = Exl3::new(bits, book).unwrap();
        let quantised = method.quantise(&cpu, "m", &weight, Some(&hessian)).unwrap();
        let [rows, cols] = [out, inputs].map(|n| n.next_multiple_of(128));
        let shapes: Vec<(&str, DType, &[usize])> =
            quantised.tensors.iter().map(|t| (t.suffix.as_str(), t.dtype, t.shape.as_slice())).collect();
        let trellis = [cols / 16, rows / 16, 16 * bits];
        let (suh, svh) = ([cols], [rows]);
        let mut want =
            vec![("trellis", DType::I16, &trellis[..]), ("suh", DType::F16, &suh), ("svh", DType::F16, &svh)];
        match book {
            Codebook::ThreeInst => {}
            Codebook::Mcg => want.push(("mcg", DType::I32, &[])),
            Codebook::Mul1 => want.push(("mul1", DType::I32, &[])),
        }
        assert_eq!(shapes, want);
        assert!(quantised.tensors.iter().all(|t| t.data.len() == t.dtype.bytes(t.shape.iter().product())));

        let config = Config::parse("config.json", "{}").unwrap();
        let modules = HuggingFace::new(Arc::new(Memory::of("m", &quantised)), config);
        let found = modules.linear("m", [out, inputs]).unwrap();
        assert_eq!((found.stored.scheme, found.stored.bits), ("exl3", bits as u32));
        let read = Matrix::new(out, inputs, found.build().unwrap().matrix().unwrap()).unwrap();
        assert!(nmse(&read, &quantised.decoded) <= 1e-12, "{bits} bits: {}", nmse(&read, &quantised.decoded));
        if bits == 3 {
            assert!(read.row(5).iter().all(|v| *v == 0.0));
            let of = |m: &Matrix| Matrix::new(1, inputs, m.row(9).to_vec()).unwrap();
            assert!(nmse(&of(&read), &of(&weight)) < 0.2, "{}", nmse(&of(&read), &of(&weight)));
        }
    }
}

#[test]
fn the_hessian_pays() {
    let cpu = Cpu::new(2);
    let (weight, hessian) = (matrix(64, 256, 11), correlated(256, 700, 5));
    let method = Exl3::new(3, Codebook::Mul1).unwrap();
    let plain = method.quantise(&cpu, "m", &weight, None).unwrap().decoded;
    let led = method.quantise(&cpu, "m", &weight, Some(&hessian)).unwrap().decoded;
    let [plain, led] = [plain, led].map(|found| damage(&found, &weight, &hessian));
    println!("damage without a Hessian {plain:.3}, with it {led:.3}");
    assert!(led < 0.6 * plain, "{led} against {plain}");

    let unseen = method.quantise(&cpu, "m", &weight, Some(&Hessian::new(256))).unwrap().decoded;
    assert_eq!(damage(&unseen, &weight, &hessian), plain);
}

/// LDLQ as it is written down: `T_i = W_i + sum_(k > i) L_ki^T (W_k - Q_k)` in blocks of sixteen inputs, from the last.
#[test]
fn feedback_is_the_recursion() {
    let cpu = Cpu::new(2);
    let (rows, cols) = (32, 256);
    let method = Exl3::new(4, Codebook::Mul1).unwrap();
    let weight = matrix(rows, cols, 21);
    let mut lower = Matrix::zeros(cols, cols);
    for (i, v) in gaussian(cols * cols, 22).into_iter().enumerate() {
        let (r, c) = (i / cols, i % cols);
        lower.row_mut(r)[c] = if c / TILE < r / TILE { 0.05 * v } else { f32::from(u8::from(r == c)) };
    }
    let (trellis, coded) = ldlq::encode(&cpu, &method, weight.clone(), Some(&lower.transposed())).unwrap();
    // Every target follows from what has been coded, so each block can be looked at on its own.
    for from in (0..cols).step_by(TILE) {
        for tile in 0..rows / TILE {
            let mut targets = [0.0; AREA];
            for (target, (output, input)) in targets.iter_mut().zip(places()) {
                let (row, col) = (tile * TILE + output, from + input);
                let fed: f64 = (from + TILE..cols)
                    .map(|k| f64::from(lower.row(k)[col]) * f64::from(weight.row(row)[k] - coded.row(row)[k]))
                    .sum();
                *target = (f64::from(weight.row(row)[col]) + fed) as f32;
            }
            let mut words = [0; AREA];
            cpu.encode(method.codebook, method.bits, &targets, &mut words).unwrap();
            let cost =
                |at: &dyn Fn(usize) -> f32| -> f64 { (0..AREA).map(|t| f64::from(at(t) - targets[t]).powi(2)).sum() };
            let best = cost(&|t| method.values[usize::from(words[t])]);
            let places = places();
            let found = cost(&|t| coded.row(tile * TILE + places[t].0)[from + places[t].1]);
            assert!((found - best).abs() <= 1e-4 * best, "inputs from {from}, tile {tile}: {found} instead of {best}");
            let stored = &trellis[(from / TILE * (rows / TILE) + tile) * TILE * method.bits..][..TILE * method.bits];
            let bytes: Vec<u8> = stored.iter().flat_map(|w| w.to_le_bytes()).collect();
            let value = |t: usize| method.values[usize::from(state(&bytes, method.bits, t))];
            assert!((0..AREA).all(|t| value(t) == coded.row(tile * TILE + places[t].0)[from + places[t].1]));
        }
    }
}

#[test]
fn threads_do_not_matter() {
    let (weight, hessian) = (matrix(48, 200, 31), correlated(200, 300, 32));
    let method = Exl3::new(6, Codebook::Mcg).unwrap();
    let [one, three] = [1, 3].map(|n| method.quantise(&Cpu::new(n), "m", &weight, Some(&hessian)).unwrap());
    assert_eq!(one.tensors, three.tensors);
    assert_eq!(one.decoded, three.decoded);
}

/// The scales of weak weights are not lost in `f16`.
#[test]
fn weak_weights() {
    let (cpu, method) = (Cpu::new(2), Exl3::new(6, Codebook::Mul1).unwrap());
    let [strong, weak] = [1.0, 1e-6].map(|scale| {
        let weight = Matrix::new(16, 128, gaussian(16 * 128, 5).iter().map(|v| scale * v).collect()).unwrap();
        nmse(&method.quantise(&cpu, "m", &weight, None).unwrap().decoded, &weight)
    });
    assert!(weak < 1.03 * strong, "{weak} against {strong}");
}

#[test]
fn what_cannot_be_quantised() {
    let cpu = Cpu::new(1);
    let method = Exl3::new(6, Codebook::Mul1).unwrap();
    let error = |weight: &Matrix, hessian: Option<&Hessian>| {
        method.quantise(&cpu, "layers.3.up_proj", weight, hessian).unwrap_err().to_string()
    };
    let good = matrix(16, 20, 1);
    let mut weight = good.clone();
    weight.row_mut(3)[7] = f32::NAN;
    assert_eq!(error(&weight, None), "layers.3.up_proj: the weight at [3, 7] is NaN; repair the checkpoint");
    let mut hessian = correlated(20, 30, 1);
    assert!(
        error(&good, Some(&Hessian::new(19))).contains("layers.3.up_proj: expected a Hessian of 20 inputs, found 19")
    );
    hessian.parts_mut().0.row_mut(4)[5] = f32::INFINITY;
    assert!(error(&good, Some(&hessian)).starts_with("layers.3.up_proj: the Hessian at [4, 5] is inf"));
    let mut indefinite = Hessian::new(20);
    let (sums, tokens) = indefinite.parts_mut();
    (0..20).for_each(|i| sums.row_mut(i)[i] = if i == 8 { -90.0 } else { 5.0 });
    *tokens = 1.0;
    assert!(error(&good, Some(&indefinite)).starts_with("layers.3.up_proj: the Hessian has no Cholesky factor"));
    assert!(error(&Matrix::zeros(0, 5), None).contains("layers.3.up_proj"));
    let huge = Matrix::new(1, 2, vec![1e30, -1e30]).unwrap();
    assert!(error(&huge, None).contains("too large for EXL3's f16"), "{}", error(&huge, None));

    for bits in [0, 9] {
        assert!(Exl3::new(bits, Codebook::Mul1).is_err());
    }
    assert!(method.clone().rotation(128).is_ok());
    assert!(method.rotation(0).unwrap_err().to_string().contains("every reader"));

    // Nothing at all is fine.
    let zeros = Exl3::new(2, Codebook::Mul1).unwrap().quantise(&cpu, "m", &Matrix::zeros(3, 5), None).unwrap();
    assert!(zeros.decoded.data().iter().all(|v| *v == 0.0));
}
