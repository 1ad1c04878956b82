//! Checkpoints that other engines wrote, read into the weight kinds: bit for bit what numpy computes from the formats'
//! definitions, and close to the model they were made from.
#![allow(clippy::unwrap_used)] // its helpers are tests too

use std::path::{Path, PathBuf};

use marlin_checkpoint::weight::{Codebook, ScaleTree, ScaleType, Scales, ValueMap, Zero};
use marlin_checkpoint::{
    Dense, Grouped, InputTransform, Linear, OutputTransform, Store, TensorSource, Trellis, Weight,
};

const NAME: &str = "model.layers.1.mlp.down_proj";
const SHAPE: [usize; 2] = [256, 768];

fn shared(part: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(part);
    if !path.exists() {
        eprintln!("SKIPPED: {} is not there", path.display());
        return None;
    }
    Some(path)
}

/// Squared error of `values` over the squared size of the original weight called `name`.
fn error(name: &str, values: &[f32]) -> Option<f64> {
    let original = Store::open(&shared("models/fable-qwen3")?).unwrap().tensor(&format!("{name}.weight")).unwrap();
    let original = Weight::Dense(Dense::new(original).unwrap()).dequantize().unwrap();
    assert_eq!(original.len(), values.len());
    let squares = |f: &dyn Fn(usize) -> f32| (0..values.len()).map(|i| f64::from(f(i)).powi(2)).sum::<f64>();
    Some(squares(&|i| values[i] - original[i]) / squares(&|i| original[i]))
}

/// Bits of elements (0, 0), (0, 1), (0, 767), (255, 5), and the sum of all bits.
fn check(weight: Grouped, bits: [u32; 4], sum: u64, most: f64) {
    let disk = weight.bytes();
    let values = Weight::Grouped(Box::new(weight)).dequantize().unwrap();
    let at = |r: usize, c: usize| values[r * SHAPE[1] + c].to_bits();
    assert_eq!([at(0, 0), at(0, 1), at(0, 767), at(255, 5)], bits);
    assert_eq!(values.iter().map(|v| u64::from(v.to_bits())).sum::<u64>(), sum);
    let error = error(NAME, &values).unwrap();
    assert!(error < most, "{error}");
    println!("{disk} bytes, squared error {error:.4}");
}

#[test]
fn mlx_affine() {
    for (folder, bits, expected, sum, most) in [
        ("q4g64", 4, [1007681536, 1033764864, 1024376832, 3170435072], 375938627178496, 0.009),
        ("q3g64", 3, [0, 1033764864, 1025572864, 3166306304], 310815050022912, 0.038),
    ] {
        let Some(folder) = shared(&format!("interop/mlx/fable-qwen3-{folder}")) else { return };
        let store = Store::open(&folder).unwrap();
        let part = |name: &str| store.tensor(&format!("{NAME}.{name}")).unwrap().data;
        let tree = |name: &str| {
            ScaleTree::flat(Scales::new(ScaleType::BF16, SHAPE[0], SHAPE[1], (1, 64), part(name)).unwrap())
        };
        let map = ValueMap::Integer(Zero::Constant(0));
        let weight = Grouped::new(SHAPE, bits, part("weight"), map, tree("scales"), Some(tree("biases"))).unwrap();
        assert!(weight.codes().is_mapped(), "a copy was made");
        check(weight, expected, sum, most);
    }
}

#[test]
fn mlx_mxfp4() {
    let Some(folder) = shared("interop/mlx/fable-qwen3-mxfp4") else { return };
    let store = Store::open(&folder).unwrap();
    let part = |name: &str| store.tensor(&format!("{NAME}.{name}")).unwrap().data;
    let scales = Scales::new(ScaleType::E8M0, SHAPE[0], SHAPE[1], (1, 32), part("scales")).unwrap();
    let weight = Grouped::new(SHAPE, 4, part("weight"), ValueMap::E2M1, ScaleTree::flat(scales), None).unwrap();
    check(weight, [1006632960, 1031798784, 1023410176, 3170893824], 366764584075264, 0.014);
}

#[test]
fn compressed_tensors_nvfp4() {
    let Some(folder) = shared("interop/autoround/ct-nvfp4/fable-qwen3") else { return };
    let store = Store::open(&folder).unwrap();
    let part = |name: &str| store.tensor(&format!("{NAME}.{name}")).unwrap();
    let inner = Scales::new(ScaleType::E4M3, SHAPE[0], SHAPE[1], (1, 16), part("weight_scale").data).unwrap();
    let global = part("weight_global_scale").to_f32().unwrap()[0];
    let scale = ScaleTree::divided(inner, Scales::whole(SHAPE[0], SHAPE[1], global).unwrap());
    let weight = Grouped::new(SHAPE, 4, part("weight_packed").data, ValueMap::E2M1, scale, None).unwrap();
    check(weight, [1001826987, 1032388608, 1020314380, 3169508206], 380091940147363, 0.008);
}

/// The whole of EXL3: stream, codebook, tile order, rotations and scales, against the model it was made from.
#[test]
fn exl3() {
    for (folder, codebook, most) in
        [("4.0bpw-3inst", Codebook::ThreeInst, 0.012), ("3.0bpw-mul1", Codebook::Mul1, 0.04)]
    {
        let Some(folder) = shared(&format!("interop/exl3/fable-qwen3-exl3-{folder}")) else { return };
        let store = Store::open(&folder).unwrap();
        for name in
            [NAME, "model.layers.0.self_attn.q_proj", "model.layers.5.mlp.gate_proj", "model.layers.3.self_attn.o_proj"]
        {
            let part = |part: &str| store.tensor(&format!("{name}.{part}")).unwrap();
            let scale = |name: &str| Some(part(name).to_f32().unwrap().into());
            let weight = Trellis::new(part("trellis"), codebook).unwrap();
            let bits = weight.bits();
            let linear = Linear::new(name, Weight::Trellis(weight), None)
                .with_transforms(
                    InputTransform::Hadamard { scale: scale("suh"), block: 128 },
                    OutputTransform::Hadamard { scale: scale("svh"), block: 128 },
                )
                .unwrap();
            let error = error(name, &linear.matrix().unwrap()).unwrap();
            println!("{name}: {bits} bits, squared error {error:.4}");
            assert!(error < most, "{name}: {error}");
        }
    }
}
