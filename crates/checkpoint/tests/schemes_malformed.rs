//! What is wrong with a quantised module is told by tensor, expected and found.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failing test may panic

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use marlin_checkpoint::modules::HuggingFace;
use marlin_checkpoint::{
    Checkpoint, Config, DType, Error, Modules, Result, Tensor, TensorInfo, TensorSource, scheme_checkpoint,
};
use serde_json::{Value, json};

/// Tensors in memory.
#[derive(Default)]
struct Memory {
    infos: Vec<TensorInfo>,
    data: HashMap<String, Vec<u8>>,
}

impl TensorSource for Memory {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }
    fn tensor(&self, name: &str) -> Result<Tensor> {
        let info = self.infos.iter().find(|info| info.name == name).cloned();
        let missing = || Error::MissingTensor { name: name.to_owned(), within: self.describe() };
        let info = info.ok_or_else(missing)?;
        Ok(Tensor { data: self.data[name].clone().into(), info })
    }
    fn contains(&self, name: &str) -> bool {
        self.data.contains_key(name)
    }
    fn describe(&self) -> String {
        "memory".into()
    }
}

impl Memory {
    /// The module `m` of `features` as our own writer makes it.
    fn made(scheme: &str, features: [usize; 2]) -> (Self, Config) {
        let required = [TensorInfo { name: "m.weight".into(), dtype: DType::BF16, shape: features.to_vec() }];
        let config = Config::parse("config.json", "{}").unwrap();
        let (config, source) = scheme_checkpoint(config, &required, scheme, 1).unwrap();
        let mut memory = Self::default();
        for info in source.tensors() {
            let data = source.tensor(&info.name).unwrap().data.to_vec();
            memory.put(&info.name, info.dtype, &info.shape, data);
        }
        (memory, config)
    }

    fn put(&mut self, name: &str, dtype: DType, shape: &[usize], data: Vec<u8>) {
        self.remove(name);
        let info = TensorInfo { name: name.into(), dtype, shape: shape.to_vec() };
        assert_eq!(info.bytes(), data.len(), "{name}");
        self.infos.push(info);
        self.data.insert(name.into(), data);
    }

    /// A tensor of zeros.
    fn zeros(&mut self, name: &str, dtype: DType, shape: &[usize]) {
        self.put(name, dtype, shape, vec![0; shape.iter().product::<usize>() * dtype.size()]);
    }

    fn integers(&mut self, name: &str, values: &[i32]) {
        self.put(name, DType::I32, &[values.len()], values.iter().flat_map(|v| v.to_le_bytes()).collect());
    }

    fn remove(&mut self, name: &str) {
        self.infos.retain(|info| info.name != name);
        self.data.remove(name);
    }
}

/// What is said of the module `m` after a change.
fn said(scheme: &str, features: [usize; 2], change: impl Fn(&mut Memory, &mut Value)) -> String {
    let (mut memory, config) = Memory::made(scheme, features);
    let mut settings = Value::Object(config.entries().clone());
    change(&mut memory, &mut settings);
    let modules = HuggingFace::new(Arc::new(memory), Config::object("config.json", &settings.to_string()).unwrap());
    match modules.linear("m", features).and_then(|found| found.build()) {
        Ok(_) => "nothing".to_owned(),
        Err(e) => e.to_string(),
    }
}

type Change = fn(&mut Memory, &mut Value);

#[test]
fn each_malformed_module_has_its_error() {
    use DType::{BF16, F16, F32, I16, I32, U8, U32};
    let table: &[(&str, Change, &str)] = &[
        // EXL3
        ("exl3-3", |_, _| {}, "nothing"),
        (
            "exl3-3",
            |m, _| m.put("m.mul1", I32, &[], 0x1234_5678_i32.to_le_bytes().into()),
            "tensor \"m.mul1\": expected the multiplier 0x83dcd12d, found 0x12345678",
        ),
        (
            "exl3-3",
            |m, _| m.put("m.mcg", I32, &[], 0xcbac_1fed_u32.to_le_bytes().into()),
            "tensor \"m.mul1\": expected one codebook, found a tensor \"mcg\" too",
        ),
        ("exl3-3", |m, _| m.zeros("m.mul1", I32, &[2]), "tensor \"m.mul1\": expected shape [1], found [2]"),
        (
            "exl3-3",
            |m, _| m.zeros("m.trellis", I16, &[8, 8, 40]),
            "tensor \"m.trellis\": expected [8, 8, 16 x bits of 1 to 8], found [8, 8, 40]",
        ),
        (
            "exl3-3",
            |m, _| m.zeros("m.trellis", I16, &[16, 8, 48]),
            "tensor \"m.trellis\": expected [8, 8, 16 x bits of 1 to 8], found [16, 8, 48]",
        ),
        (
            "exl3-3",
            |m, _| m.zeros("m.trellis", I32, &[8, 8, 48]),
            "tensor \"m.trellis\": expected I16 or U16, found I32",
        ),
        ("exl3-3", |m, _| m.remove("m.svh"), "tensor \"m.svh\": expected beside \"m.trellis\" (exl3), found nothing"),
        ("exl3-3", |m, _| m.zeros("m.suh", F16, &[96]), "tensor \"m.suh\": expected shape [128], found [96]"),
        (
            "exl3-3",
            |m, _| m.zeros("m.scale", F16, &[1]),
            "tensor \"m.scale\": an early form of EXL3 with a scale beside the signs, which no reader supports",
        ),
        (
            "fp4",
            |m, _| {
                m.zeros("m.indices", U8, &[8, 8, 96]);
                m.zeros("m.scales", F32, &[1, 128]);
            },
            "tensor \"m.indices\": this project's old Trellis format, a uniform grid without EXL3's codebooks or rotations; it is not EXL3 and no longer read: convert the original checkpoint again",
        ),
        // MLX
        ("mlx-4", |_, _| {}, "nothing"),
        (
            "mlx-4",
            |m, _| m.zeros("m.weight", U32, &[128, 17]),
            "tensor \"m.weight\": expected [128, 128 x bits / 32] for 2, 3, 4, 5, 6 or 8 bits, found [.., 17]",
        ),
        (
            "mlx-4",
            |m, _| m.zeros("m.weight", U32, &[128, 12]),
            "config.json: key \"quantization.bits\": expected 3, by the shapes of the tensors of m, found 4",
        ),
        (
            "mlx-4",
            |m, _| m.zeros("m.weight", U32, &[64, 16]),
            "tensor \"m.weight\": expected shape [128, 16], found [64, 16]",
        ),
        (
            "mlx-4",
            |m, _| m.remove("m.biases"),
            "tensor \"m.biases\": expected beside \"m.weight\" (mlx), found nothing",
        ),
        (
            "mlx-4",
            |m, _| m.remove("m.scales"),
            "tensor \"m.weight\": expected factors \"m.weight.scales\" beside it, found none",
        ),
        (
            "mlx-4",
            |m, _| m.zeros("m.scales", BF16, &[128, 3]),
            "tensor \"m.scales\": 3 groups do not divide 128 inputs",
        ),
        (
            "mlx-4",
            |m, _| m.zeros("m.scales", BF16, &[127, 2]),
            "tensor \"m.scales\": expected shape [128, 2], found [127, 2]",
        ),
        ("mlx-4", |m, _| m.zeros("m.scales", BF16, &[]), "tensor \"m.scales\": 0 groups do not divide 128 inputs"),
        (
            "mlx-4",
            |m, _| m.zeros("m.scales", BF16, &[128, 8]),
            "tensor \"m.scales\": expected groups of 32, 64 or 128, found 4 bits in groups of 16",
        ),
        (
            "mlx-4",
            |m, _| m.zeros("m.biases", U8, &[128, 2]),
            "tensor \"m.biases\": expected F16 or BF16 or F32, found U8",
        ),
        (
            "mlx-4",
            |_, c| c["quantization"]["m"] = json!({ "bits": 4, "group_size": 32 }),
            "config.json: key \"quantization.group_size\": expected 64, by the shapes of the tensors of m, found 32",
        ),
        (
            "mlx-mxfp4",
            |_, c| c["quantization"]["mode"] = json!("affine"),
            "config.json: key \"quantization.mode\": expected \"mxfp4\", by the tensors of m, found \"affine\"",
        ),
        (
            "mlx-4",
            |_, c| c["quantization"] = json!(4),
            "config.json: key \"quantization\": expected an object, found 4",
        ),
        // GPTQ
        ("gptq-4", |_, _| {}, "nothing"),
        (
            "gptq-4",
            |m, _| m.zeros("m.qweight", I32, &[20, 128]),
            "tensor \"m.qweight\": expected 128 x bits / 32 words for 2, 3, 4 or 8 bits, found 20",
        ),
        (
            "gptq-4",
            |m, _| m.zeros("m.qweight", I32, &[16, 64]),
            "tensor \"m.qweight\": expected [128 x bits / 32, 128], found [16, 64]",
        ),
        (
            "gptq-4",
            |m, _| m.remove("m.scales"),
            "tensor \"m.scales\": expected beside \"m.qweight\" (gptq), found nothing",
        ),
        (
            "gptq-4",
            |m, _| m.zeros("m.scales", F16, &[1, 64]),
            "tensor \"m.scales\": expected shape [1, 128], found [1, 64]",
        ),
        (
            "gptq-4",
            |m, _| m.zeros("m.scales", F16, &[128]),
            "tensor \"m.scales\": expected a matrix, found shape [128]",
        ),
        (
            "gptq-4",
            |m, _| m.zeros("m.qzeros", I32, &[1, 15]),
            "tensor \"m.qzeros\": expected shape [1, 16], found [1, 15]",
        ),
        ("gptq-4", |m, _| m.zeros("m.qzeros", F16, &[1, 16]), "tensor \"m.qzeros\": expected I32, found F16"),
        (
            "gptq-4",
            |_, c| c["quantization_config"]["group_size"] = json!(32),
            "tensor \"m.scales\": expected 4 groups (of 32 in 128 inputs), found 1",
        ),
        (
            "gptq-4",
            |_, c| c["quantization_config"]["group_size"] = json!(0),
            "config.json: key \"quantization_config.group_size\": expected an integer above 0, found 0",
        ),
        (
            "gptq-4",
            |_, c| c["quantization_config"]["bits"] = json!(8),
            "config.json: key \"quantization_config.bits\": expected 4, by the shape of \"m.qweight\", found 8",
        ),
        (
            "gptq-4",
            |_, c| c["quantization_config"]["checkpoint_format"] = json!("marlin"),
            "config.json: key \"quantization_config.checkpoint_format\": expected \"gptq\" or \"gptq_v2\", found \"marlin\"",
        ),
        (
            "gptq-4",
            |m, _| m.integers("m.g_idx", &[1; 128]),
            "tensor \"m.g_idx\": expected groups below 1, found 1 for input 0",
        ),
        (
            "gptq-4",
            |m, _| m.integers("m.g_idx", &[-1; 128]),
            "tensor \"m.g_idx\": expected groups below 1, found -1 for input 0",
        ),
        ("gptq-4", |m, _| m.integers("m.g_idx", &[0; 64]), "tensor \"m.g_idx\": expected shape [128], found [64]"),
        (
            "gptq-4",
            |m, c| {
                c["quantization_config"]["group_size"] = json!(64);
                m.zeros("m.scales", F16, &[2, 128]);
                m.zeros("m.qzeros", I32, &[2, 16]);
                m.integers("m.g_idx", &[vec![0; 65], vec![1; 63]].concat());
            },
            "tensor \"m.g_idx\": expected 64 inputs in each group, found 63 in group 1",
        ),
        // AWQ
        ("awq", |_, _| {}, "nothing"),
        ("awq", |m, _| m.zeros("m.qzeros", I32, &[1, 8]), "tensor \"m.qzeros\": expected shape [1, 16], found [1, 8]"),
        (
            "awq",
            |_, c| c["quantization_config"]["version"] = json!("gemv_fast"),
            "config.json: key \"quantization_config.version\": expected \"gemm\" or \"gemv\" (other versions interleave in ways of their own), found \"gemv_fast\"",
        ),
        (
            "awq",
            |_, c| c["quantization_config"]["bits"] = json!(8),
            "config.json: key \"quantization_config.bits\": expected 4 for AWQ, found 8",
        ),
        // compressed-tensors, ModelOpt
        ("nvfp4", |_, _| {}, "nothing"),
        (
            "nvfp4",
            |m, _| m.zeros("m.weight_global_scale", F32, &[1]),
            "tensor \"m.weight_global_scale\": expected a divisor, found 0",
        ),
        (
            "nvfp4",
            |m, _| m.put("m.weight_global_scale", F32, &[1], f32::NAN.to_le_bytes().into()),
            "tensor \"m.weight_global_scale\": expected one finite number, found [NaN]",
        ),
        (
            "nvfp4",
            |m, _| m.zeros("m.weight_packed", U8, &[128, 63]),
            "tensor \"m.weight_packed\": expected shape [128, 64], found [128, 63]",
        ),
        (
            "nvfp4",
            |m, _| m.zeros("m.weight_scale", U8, &[128, 8]),
            "tensor \"m.weight_scale\": expected F8_E4M3, found U8",
        ),
        (
            "mxfp4",
            |m, _| m.remove("m.weight_scale"),
            "tensor \"m.weight_scale\": expected beside \"m.weight_packed\" (mxfp4), found nothing",
        ),
        ("int8", |_, _| {}, "nothing"),
        (
            "int8",
            |m, _| m.zeros("m.weight_scale", F32, &[128, 3]),
            "tensor \"m.weight_scale\": 3 groups do not divide 128 inputs",
        ),
        (
            "int8",
            |m, _| m.zeros("m.weight_scale", F32, &[64, 1]),
            "tensor \"m.weight_scale\": expected [128, groups], [128, 1] or [1], found [64, 1]",
        ),
        (
            "int8",
            |m, _| {
                m.remove("m.weight");
                m.zeros("m.weight_packed", I32, &[128, 13]);
            },
            "tensor \"m.weight_packed\": expected [128, 128 x bits / 32] for 2 to 8 bits, found [.., 13] (early versions, which left bits of each word unused, are not read)",
        ),
        (
            "int8",
            |m, _| {
                m.remove("m.weight");
                m.zeros("m.weight_packed", I32, &[128, 16]);
                m.zeros("m.weight_shape", DType::I64, &[2]);
            },
            "tensor \"m.weight_shape\": expected [128, 128], found [0, 0]",
        ),
        (
            "int8",
            |m, _| {
                m.remove("m.weight");
                m.zeros("m.weight_packed", I32, &[128, 16]);
                m.put("m.weight_zero_point", DType::I8, &[128, 1], vec![100; 128]);
            },
            "tensor \"m.weight_zero_point\": expected zero points of 4 bits, found one outside (row 0)",
        ),
        (
            "nvfp4",
            |m, _| {
                m.zeros("m.weight", U8, &[128, 64]);
                m.remove("m.weight_packed");
            },
            "tensor \"m.weight_scale_2\": expected beside \"m.weight\" (nvfp4), found nothing",
        ),
        // FP8
        ("fp8", |_, _| {}, "nothing"),
        (
            "fp8",
            |m, _| m.zeros("m.weight_scale_inv", F32, &[2, 1]),
            "tensor \"m.weight_scale_inv\": expected factors of blocks of 128 x 128 of [128, 128], found [2, 1]",
        ),
        (
            "fp8",
            |m, _| m.remove("m.weight_scale_inv"),
            "tensor \"m.weight_scale\": expected beside \"m.weight\" (fp8), found nothing",
        ),
        ("fp8", |_, c| c["quantization_config"]["weight_block_size"] = json!([0, 128]), "nothing"),
        (
            "fp8",
            |m, c| {
                c["quantization_config"]["weight_block_size"] = json!([0, 128]);
                m.zeros("m.weight_scale_inv", F32, &[2, 2]);
            },
            "config.json: key \"quantization_config.weight_block_size\": expected two sizes above 0, found [0,128]",
        ),
        // FP4
        ("fp4", |_, _| {}, "nothing"),
        (
            "fp4",
            |m, _| m.zeros("m.weight", U32, &[128, 15]),
            "tensor \"m.weight\": expected [128, 16] words for [128, 128] weights, found [128, 15]",
        ),
        (
            "fp4",
            |m, _| m.zeros("m.weight.scales", F16, &[128, 3]),
            "tensor \"m.weight.scales\": expected [128, groups] or [groups, 128] for 128 inputs, found [128, 3]",
        ),
        (
            "fp4",
            |m, _| m.integers("m.weight.group_size", &[0]),
            "tensor \"m.weight.group_size\": expected one I32 above 0, found something else",
        ),
        (
            "fp4",
            |m, _| m.integers("m.weight.hadamard_block_size", &[96]),
            "tensor \"m.weight.hadamard_block_size\": expected a power of two that divides 128 inputs, found 96",
        ),
        (
            "fp4",
            |m, _| {
                m.remove("m.weight.group_size");
                m.zeros("m.weight.scales", F16, &[1, 128]);
            },
            "tensor \"m.weight\": shape [128, 16] with scales [1, 128] fits several of the ways in which [128, 128] weights were packed; convert the original checkpoint again",
        ),
        // None of them
        (
            "fp8",
            |m, _| m.zeros("m.weight", I32, &[128, 128]),
            "tensor \"m.weight\": expected BF16, F16, F32 or F64, found I32",
        ),
        (
            "fp8",
            |m, _| {
                m.remove("m.weight");
                m.zeros("m.W_q", U8, &[64, 128]);
            },
            "tensor \"m.W_q\": HQQ, which is not supported",
        ),
    ];
    for (scheme, change, expected) in table {
        assert_eq!(said(scheme, [128, 128], change), *expected, "{scheme}");
    }
}

/// Groups and words that do not divide, in sizes of which nothing divides anything.
#[test]
fn sizes_that_do_not_divide() {
    let (mut m, _) = Memory::made("fp8", [128, 128]);
    m = {
        m.zeros("m.weight", DType::F8E4M3, &[128, 126]);
        m.zeros("m.weight_scale_inv", DType::F32, &[1, 1]);
        m
    };
    let modules = HuggingFace::new(Arc::new(m), Config::parse("config.json", "{}").unwrap());
    let error = modules.linear("m", [128, 126]).err().unwrap().to_string();
    assert_eq!(error, "tensor \"m.weight\": groups of 4 do not divide 126 inputs");
    let error = modules.linear("m", [0, 4]).err().unwrap().to_string();
    assert_eq!(error, "m: expected some features, found [0, 4]");
    let error = modules.linear("n", [128, 128]).err().unwrap();
    assert!(matches!(error, Error::MissingTensor { ref name, .. } if name == "n.weight"), "{error}");
}

/// The signs of the older form are those of the newer one.
#[test]
fn exl3_signs_alone() {
    let (mut m, config) = Memory::made("exl3-2-mcg", [128, 256]);
    let plain = HuggingFace::new(Arc::new(Memory { infos: m.infos.clone(), data: m.data.clone() }), config.clone());
    let words = |values: &[f32]| -> Vec<u8> {
        let bit = |chunk: &[f32]| chunk.iter().enumerate().fold(0u16, |w, (i, v)| w | u16::from(*v < 0.0) << i);
        values.chunks(16).flat_map(|chunk| bit(chunk).to_le_bytes()).collect()
    };
    let suh = m.tensor("m.suh").unwrap().to_f32().unwrap();
    m.remove("m.suh");
    m.put("m.su", DType::I16, &[16], words(&suh));
    let old = HuggingFace::new(Arc::new(m), config);
    let matrix = |modules: &HuggingFace| modules.linear("m", [128, 256]).unwrap().build().unwrap().matrix().unwrap();
    assert_eq!(matrix(&old), matrix(&plain));
}

/// A shard that ends early is refused when it is opened, whatever it holds.
#[test]
fn a_cut_file() {
    let folder = tempfile::tempdir().unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/schemes/schemes.safetensors");
    let whole = std::fs::read(data).unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"quantization_config": {"quant_method": "gptq"}}"#).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), &whole[..whole.len() - 100]).unwrap();
    let error = Checkpoint::open(folder.path()).err().unwrap().to_string();
    assert!(error.contains("model.safetensors"), "{error}");
}

/// Older quantisers wrote their settings beside config.json.
#[test]
fn settings_in_a_file_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/schemes/schemes.safetensors");
    std::fs::copy(data, folder.path().join("model.safetensors")).unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let value = |settings: &str| {
        std::fs::write(folder.path().join("quantize_config.json"), settings).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let modules = checkpoint.modules().unwrap();
        modules.linear("gptq.b4.v2", [32, 64]).unwrap().build().unwrap().matrix().unwrap()
    };
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let expected = checkpoint.store.tensor("expected.gptq.b4.v2").unwrap().to_f32().unwrap();
    assert_eq!(value(r#"{"bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}"#), expected);
    assert_ne!(value(r#"{"bits": 4, "group_size": 32}"#), expected);
}
