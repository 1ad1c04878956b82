//! Any few tensors beside any settings as modules in the quantised formats: refused, or decoded within their bytes. Half of
//! the inputs begin with a module that is right and change some of it.
#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use marlin_checkpoint::modules::{Found, HuggingFace};
use marlin_checkpoint::{
    Config, DType, Error, LatentSizes, Modules, Result, Tensor, TensorInfo, TensorSource, Weight, scheme_checkpoint,
};
use serde_json::{Value, json};

const SIZES: [usize; 8] = [1, 8, 24, 32, 40, 64, 128, 256];
const BASES: [&str; 6] =
    ["m", "x.mlp.experts", "x.mlp.switch_mlp.gate_proj", "a.embed_q", "a.unembed_out", "x.mlp.experts.1.gate_proj"];
const SUFFIXES: [&str; 48] = [
    ".weight",
    ".scales",
    ".biases",
    ".global_scale",
    ".trellis",
    ".suh",
    ".svh",
    ".su",
    ".sv",
    ".mcg",
    ".mul1",
    ".scale",
    ".qweight",
    ".qzeros",
    ".g_idx",
    ".weight_packed",
    ".weight_scale",
    ".weight_shape",
    ".weight_zero_point",
    ".weight_g_idx",
    ".weight_global_scale",
    ".weight_scale_2",
    ".weight_scale_inv",
    ".pre_quant_scale",
    ".gate_up_proj_blocks",
    ".gate_up_proj_scales",
    ".gate_up_proj_bias",
    ".down_proj_blocks",
    ".down_proj_scales",
    ".gate_up_proj",
    ".gate_up_proj.scales",
    ".gate_up_proj.group_size",
    ".weight.scales",
    ".weight.group_size",
    ".weight.hadamard_block_size",
    ".packed_weight",
    ".scales_fp4",
    ".weight_scale",
    ".bias",
    ".indices",
    ".weight.absmax",
    ".scale_packed",
    ".qweight.scales",
    ".W_q",
    ".codes",
    ".codebooks",
    ".down_proj",
    ".weight",
];
const TYPES: [DType; 14] = [
    DType::U32,
    DType::I32,
    DType::U8,
    DType::I8,
    DType::F16,
    DType::BF16,
    DType::F32,
    DType::F8E4M3,
    DType::F8E5M2,
    DType::F8E8M0,
    DType::I16,
    DType::U16,
    DType::I64,
    DType::F64,
];
const SCHEMES: [&str; 16] = [
    "exl3-2-3inst",
    "exl3-3",
    "exl3-1-mcg",
    "fp4",
    "mxfp4",
    "nvfp4",
    "mlx-3",
    "mlx-4",
    "mlx-mxfp8",
    "mlx-nvfp4",
    "gptq-2",
    "gptq-3",
    "gptq-4",
    "awq",
    "int8",
    "fp8",
];

/// Tensors in memory.
#[derive(Default)]
struct Memory(Vec<TensorInfo>, BTreeMap<String, Tensor>);

impl TensorSource for Memory {
    fn tensors(&self) -> &[TensorInfo] {
        &self.0
    }
    fn tensor(&self, name: &str) -> Result<Tensor> {
        let missing = || Error::MissingTensor { name: name.to_owned(), within: self.describe() };
        self.1.get(name).cloned().ok_or_else(missing)
    }
    fn contains(&self, name: &str) -> bool {
        self.1.contains_key(name)
    }
    fn describe(&self) -> String {
        "input".into()
    }
}

/// Choices drawn from the input; zeros when it has run out.
struct Draw<'a>(&'a [u8]);

impl Draw<'_> {
    fn byte(&mut self) -> usize {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(first)
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.byte() % choices.len()].clone()
    }

    /// A size that could have to do with these features.
    fn size(&mut self, [rows, cols]: [usize; 2]) -> usize {
        let of = if self.byte() % 2 == 0 { rows } else { cols };
        match self.byte() % 16 {
            0 => 1,
            1 => 2,
            2 => of / 2,
            3 => of / 4,
            4 => of / 8,
            5 => of / 16,
            6 => of / 32,
            7 => of / 128,
            8 => of * 3 / 32,
            9 => 2 * of,
            10 => 16,
            11 => self.byte(),
            12 => of.div_ceil(32),
            13 => 48,
            _ => of,
        }
    }

    fn tensor(&mut self, features: [usize; 2]) -> (DType, Vec<usize>, Vec<u8>) {
        let dtype = self.of(&TYPES);
        let shape: Vec<usize> = (0..self.byte() % 5).map(|_| self.size(features)).collect();
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let (kind, n) = (self.byte(), self.byte() % 24 + 1);
        let data = match kind % 4 {
            0 => vec![0; bytes.min(LARGEST)],
            1 => (0..bytes.min(LARGEST)).map(|i| (i * 37 + n) as u8).collect(),
            2 => (0..bytes.min(LARGEST))
                .map(|i| if i % dtype.size() == 0 { (i / dtype.size() / n) as u8 } else { 0 })
                .collect(),
            _ => {
                let cycle = &self.0[..n.min(self.0.len())];
                cycle.iter().chain(&[0]).cycle().take(bytes.min(LARGEST)).copied().collect()
            }
        };
        (dtype, shape, data)
    }

    fn settings(&mut self, config: &mut Value) {
        for _ in 0..self.byte() % 4 {
            let section = self.of(&["quantization_config", "quantization"]);
            let key = self.of(&[
                "bits",
                "group_size",
                "quant_method",
                "checkpoint_format",
                "version",
                "mode",
                "m",
                "dynamic",
                "weight_block_size",
                "config_groups",
                "packing_format",
            ]);
            let number = self.byte() as i64 - 1;
            config[section][key] = self.of(&[
                json!(number),
                json!(-1),
                json!(4),
                json!(128),
                json!("gptq"),
                json!("gptq_v2"),
                json!("awq"),
                json!("gemv"),
                json!("gemm"),
                json!("affine"),
                json!("mxfp4"),
                json!([number, 32]),
                json!({}),
                json!(null),
                json!({ "bits": number, "group_size": 64 }),
                json!({ "g": { "weights": { "group_size": number } } }),
            ]);
        }
    }
}

/// Bytes of the largest tensor that is made.
const LARGEST: usize = 1 << 18;

fuzz_target!(|input: &[u8]| {
    let mut draw = Draw(input);
    let features = [draw.of(&SIZES), draw.of(&SIZES)];
    let mut config = json!({});
    let mut memory = Memory::default();
    if draw.byte() % 2 == 0 {
        let required = [TensorInfo { name: "m.weight".into(), dtype: DType::BF16, shape: features.to_vec() }];
        let plain = Config::object("config", "{}").expect("an object");
        let (made, source) = scheme_checkpoint(plain, &required, draw.of(&SCHEMES), 3).expect("known");
        config = Value::Object(made.entries().clone());
        for info in source.tensors() {
            memory.1.insert(info.name.clone(), source.tensor(&info.name).expect("listed"));
        }
        if draw.byte() % 4 == 0 && !memory.1.is_empty() {
            let name = memory.1.keys().nth(draw.byte() % memory.1.len()).cloned().expect("one of them");
            memory.1.remove(&name);
        }
    }
    for _ in 0..draw.byte() % 10 {
        let base = if draw.byte() % 2 == 0 { "m" } else { draw.of(&BASES) };
        let name = format!("{base}{}", draw.of(&SUFFIXES));
        let (dtype, shape, data) = draw.tensor(features);
        // A container never gives a tensor of another length than its shape says.
        let info = TensorInfo { name: name.clone(), dtype, shape };
        if info.bytes() == data.len() {
            memory.1.insert(name, Tensor { info, data: data.into() });
        }
    }
    draw.settings(&mut config);
    memory.0 = memory.1.values().map(|t| t.info.clone()).collect();
    let config = Config::object("config", &config.to_string()).expect("an object");
    let modules = HuggingFace::new(Arc::new(memory), config);
    for module in ["m", "x.mlp.experts.1.gate_proj", "x.mlp.experts.0.down_proj", "x.mlp.experts.1.up_proj"] {
        if let Ok(found) = modules.linear(module, features) {
            check(&found, features);
        }
    }
    let sizes = LatentSizes { heads: 2, nope: features[1], value: 8, rank: features[0] };
    if let Ok(found) = modules.latent("a.kv_b_proj", sizes) {
        found.matrices().for_each(|found| check(found, [found.stored.features[0], found.stored.features[1]]));
    }
    let _ = modules.ignores("m.input_scale");
});

fn check(found: &Found, features: [usize; 2]) {
    let Ok(linear) = found.build() else { return };
    assert_eq!([linear.out_features(), linear.in_features()], features);
    let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
    assert!(linear.weight.bytes() <= 2 * LARGEST * 16);
    let mut row = vec![0.0; cols];
    for r in [0, rows / 2, rows - 1] {
        let _ = linear.weight.dequantize_row(r, &mut row);
    }
    if let Weight::Packed(packed) = &linear.weight {
        let from = rows / 2 - rows / 2 % packed.granule();
        packed.unpack(from..rows).expect("within");
    }
}
