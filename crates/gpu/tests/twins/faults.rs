//! Devices that fail: kernels that do not compile, that compute garbage for one tail, memory that cannot be had. Answers stay right,
//! or there is an error; and what happened is counted.

use crate::device::{OPTIONS, close};
use crate::numbers::Numbers;
use marlin_backend::blocks::{RouterRule, Scoring};
use marlin_backend::{Backend, Expert, KvLayout, KvSpec, Reference, SequenceStep, Step, Token};
use marlin_checkpoint::DType;
use marlin_checkpoint::weight::Codebook;
use marlin_gpu::device::{Compiled, Device, Handle, Info, Launch, Matmul};
use marlin_gpu::kernels::Element;
use marlin_gpu::source::{Access, Entry, Target};
use marlin_gpu::{Error, GpuBackend, GpuOptions, Result};
use marlin_gpu_sim::{Order, Simulated};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// What goes wrong with kernels whose names begin so.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// They do not compile.
    Compile(&'static [&'static str]),
    /// The last value they write is garbage.
    Garbage(&'static [&'static str]),
    /// What was compiled does not have them.
    Missing(&'static [&'static str]),
    /// After so many allocations there is no more memory.
    Memory(usize),
    /// There is no memory for allocations of more bytes than these.
    Large(usize),
}

/// Whether the entry point `name` is an instance of one of these kernels.
fn is_one_of(name: &str, kernels: &[&str]) -> bool {
    name.strip_prefix("mm_").is_some_and(|name| kernels.iter().any(|k| name.starts_with(k)))
}

struct Faulty {
    inner: Simulated,
    fault: Fault,
    names: Mutex<HashMap<u64, String>>,
    allocations: AtomicUsize,
}

impl Device for Faulty {
    fn info(&self) -> &Info {
        self.inner.info()
    }
    fn target(&self) -> Target {
        self.inner.target()
    }
    fn allocate(&self, bytes: usize) -> Result<Handle> {
        let before = self.allocations.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Fault::Memory(most) if before >= most => Err(Error::OutOfMemory { bytes, active: 0, cap: 0 }),
            Fault::Large(most) if bytes > most => Err(Error::OutOfMemory { bytes, active: 0, cap: 0 }),
            _ => self.inner.allocate(bytes),
        }
    }
    fn free(&self, handle: Handle) {
        self.inner.free(handle);
    }
    fn upload(&self, to: Handle, offset: usize, data: &[u8]) -> Result<()> {
        self.inner.upload(to, offset, data)
    }
    fn download(&self, from: Handle, offset: usize, out: &mut [u8]) -> Result<()> {
        self.inner.download(from, offset, out)
    }
    fn compile(&self, text: &str, entries: &[Entry]) -> Result<Compiled> {
        if let Fault::Compile(names) = self.fault
            && let Some(e) = entries.iter().find(|e| is_one_of(&e.name, names))
        {
            return Err(Error::Compile { kernel: e.name.clone(), log: "injected".into() });
        }
        if let Fault::Missing(names) = self.fault
            && let Some(e) = entries.iter().find(|e| is_one_of(&e.name, names))
        {
            return Err(Error::NotFound { kernel: e.name.clone() });
        }
        let made = self.inner.compile(text, entries)?;
        let names = made.functions.iter().zip(entries).map(|(f, e)| (f.0, e.name.clone()));
        self.names.lock().unwrap().extend(names);
        Ok(made)
    }
    fn launch(&self, launch: &Launch) -> Result<()> {
        self.inner.launch(launch)?;
        let name = self.names.lock().unwrap()[&launch.function.0].clone();
        match self.fault {
            Fault::Garbage(names) if is_one_of(&name, names) => {
                let y = launch.bindings.iter().rev().find(|b| b.access == Access::Write).unwrap();
                self.inner.upload(y.handle, y.offset + y.bytes - 4, &1e3f32.to_le_bytes())
            }
            _ => Ok(()),
        }
    }
    fn multiplies(&self) -> bool {
        matches!(self.fault, Fault::Large(_)) && self.inner.multiplies()
    }
    fn multiply(&self, product: &Matmul) -> Result<()> {
        self.inner.multiply(product)
    }
    fn submit(&self) -> Result<()> {
        self.inner.submit()
    }
    fn wait(&self) -> Result<()> {
        self.inner.wait()
    }
}

fn device(fault: Fault) -> Option<Arc<Faulty>> {
    if let Some(why) = Simulated::absent() {
        eprintln!("SKIPPED: {why}");
        return None;
    }
    let inner = Simulated::new(Order::Forward);
    Some(Arc::new(Faulty { inner, fault, names: Mutex::default(), allocations: AtomicUsize::new(0) }))
}

/// A product on a device with this fault is right all the same, and `code` is what its slower path is counted as.
fn steps_down(fault: Fault, code: &str) {
    steps_down_of(fault, code, [33, 70]);
}

fn steps_down_of(fault: Fault, code: &str, [rows, cols]: [usize; 2]) {
    let Some(device) = device(fault) else { return };
    let b = GpuBackend::new(device, OPTIONS).unwrap();
    let mut numbers = Numbers(11);
    for linear in
        [numbers.dense("dense", rows, cols, DType::BF16), numbers.trellis(rows.max(32) / 16 * 16, 48, 3, Codebook::Mcg)]
    {
        let x = numbers.many(3 * linear.in_features());
        let run = |w| Reference.linears(&[w], &Reference.write(3, linear.in_features(), x.clone())?);
        let expected = Reference.read(&run(&linear).unwrap()[0]).unwrap();
        let w = b.linear(linear.clone()).unwrap();
        let loaded = b.fallbacks().snapshot().total;
        assert!(loaded > 0, "the fault was not found");
        let y = b.linears(&[&w], &b.write(3, linear.in_features(), x.clone()).unwrap()).unwrap();
        close("a faulty device", &b.read(&y[0]).unwrap(), &expected, 2e-5);
        let found = b.fallbacks().snapshot();
        assert_eq!(found.total, loaded + 1, "the slower path was not counted");
        assert_eq!((found.last.unwrap().reason.code(), found.by_reason.len()), (code, 1));
        // What warm-cache tells of it, by the same code; and counting begins anew.
        let product = b.warmth().products.into_iter().find(|p| p.module == linear.name).unwrap();
        assert_eq!(product.reason.map(|r| r.code()), Some(code));
        assert!(product.by != "fast" || code == "out_of_memory", "{product:?}");
        b.fallbacks().reset();
        assert_eq!(b.fallbacks().snapshot(), Default::default());
    }
}

/// The kernels for tensor cores are wrong in their last value; those that every GPU has are not.
#[test]
fn tensor_cores_that_compute_garbage_are_replaced() {
    for fault in [Fault::Garbage(&["trellis_stream"]), Fault::Compile(&["trellis_stream"])] {
        let Some(device) = device(fault) else { return };
        let b = GpuBackend::new(device, OPTIONS).unwrap();
        let mut numbers = Numbers(13);
        let linear = numbers.trellis(128, 256, 3, Codebook::Mul1);
        let x = numbers.many(2 * 256);
        let run = |w| Reference.linears(&[w], &Reference.write(2, 256, x.clone())?);
        let expected = Reference.read(&run(&linear).unwrap()[0]).unwrap();
        let w = b.linear(linear.clone()).unwrap();
        assert_eq!(b.fallbacks().snapshot().total, 1, "the fault was not found");
        let y = b.linears(&[&w], &b.write(2, 256, x.clone()).unwrap()).unwrap();
        close("by the kernels that every GPU has", &b.read(&y[0]).unwrap(), &expected, 2e-5);
        assert_eq!(b.fallbacks().snapshot().total, 2, "the slower path was not counted");
    }
}

/// Attention on tensor cores that is wrong in its last value, or does not compile, is found out the first time, and replaced.
#[test]
fn attention_on_tensor_cores_that_fails_is_replaced() {
    const TILES: &[&str] = &["attention_tiles"];
    for (fault, code) in
        [(Fault::Garbage(TILES), "self_check_failed"), (Fault::Compile(TILES), "kernel_compile_failed")]
    {
        let Some(device) = device(fault) else { return };
        let b = GpuBackend::new(device, OPTIONS).unwrap();
        let values = Numbers(14).many(20 * 16);
        let spec =
            KvSpec { layers: 1, layout: KvLayout::Heads { heads: 1, key: 16, value: 16 }, block_size: 16, blocks: 2 };
        let sequences = vec![SequenceStep { cached: 0, len: 20, blocks: vec![1, 0] }];
        let step = Step { tokens: vec![Token::Id(0); 20], sequences, outputs: Vec::new() };
        macro_rules! run {
            ($b:expr) => {{
                let b = $b;
                let kv = b.kv(spec).unwrap();
                let batch = b.begin(&step, &kv, None).unwrap();
                let x = b.write(20, 16, values.clone()).unwrap();
                b.append(&kv, 0, &x, &x, &batch).unwrap();
                b.read(&b.attention(&x, &kv, 0, 1, 0.3, &batch).unwrap()).unwrap()
            }};
        }
        let expected = run!(&Reference);
        for _ in 0..2 {
            close("by the kernel that rounds nothing", &run!(&b), &expected, 2e-5);
            let found = b.fallbacks().snapshot();
            assert_eq!((found.total, found.by_reason.get(code)), (1, Some(&1)));
        }
    }
}

/// The same of those for experts.
#[test]
fn tensor_cores_that_compute_garbage_for_experts_are_replaced() {
    let mut numbers = Numbers(14);
    let mut one = || numbers.trellis(256, 256, 2, Codebook::Mul1);
    let all: Vec<Expert> = (0..2).map(|_| Expert { gate: one(), up: one(), down: one() }).collect();
    let gate = numbers.dense("gate", 2, 256, DType::F32);
    let x = numbers.many(20 * 256);
    let rule =
        RouterRule { scoring: Scoring::Softmax, top_k: 1, normalise: true, scale: 1.0, groups: 1, top_groups: 1 };
    macro_rules! run {
        ($b:expr, $rows:expr) => {{
            let b = $b;
            let x = b.write($rows, 256, x[..$rows * 256].to_vec()).unwrap();
            let routing = b.route(&x, &b.linear(gate.clone()).unwrap(), None, &rule).unwrap();
            b.read(&b.apply_experts(&x, &b.experts(all.clone()).unwrap(), &routing).unwrap()).unwrap()
        }};
    }
    for names in [&["trellis_experts"], &["expert_trellis_mma"]] {
        for fault in [Fault::Garbage(names), Fault::Compile(names)] {
            let Some(device) = device(fault) else { return };
            let b = GpuBackend::new(device, OPTIONS).unwrap();
            for rows in [2, 20] {
                let expected = run!(&Reference, rows);
                close("by the kernels that every GPU has", &run!(&b, rows), &expected, 2e-5);
            }
            // Found once, counted by both projections of both steps.
            assert_eq!(b.fallbacks().snapshot().total, 1 + 2 * 2, "the slower path was not counted");
        }
    }
}

#[test]
fn a_kernel_that_does_not_compile_is_replaced() {
    steps_down(Fault::Compile(&["gemv", "trellis_gemv"]), "kernel_compile_failed");
}

#[test]
fn a_kernel_that_computes_garbage_is_replaced_by_the_plain_one() {
    steps_down(Fault::Garbage(&["gemv", "trellis_gemv", "gemm", "trellis_gemm"]), "self_check_failed");
}

#[test]
fn where_every_kernel_computes_garbage_the_cpu_computes() {
    steps_down(Fault::Garbage(&["gemv", "trellis_gemv", "simple"]), "self_check_failed");
}

/// Only the kernel for many rows is wrong, and only in its last value.
#[test]
fn garbage_in_one_tail_is_found() {
    steps_down(Fault::Garbage(&["gemm", "trellis_gemm"]), "self_check_failed");
}

#[test]
fn a_device_whose_primitives_are_wrong_is_refused_by_name() {
    for name in [&["rms_norm"], &["attention"], &["route"], &["rope"]] {
        let Some(device) = device(Fault::Garbage(name)) else { return };
        let error = GpuBackend::open(device, OPTIONS).err().unwrap().to_string();
        assert!(error.contains(&format!("{} does not compute", name[0])), "{error}");
    }
}

#[test]
fn a_good_device_is_opened() {
    // Whatever KV memory holds.
    for kv in [Element::F32, Element::F16, Element::Bf16, Element::Int8, Element::Fp8] {
        let Some(device) = device(Fault::Memory(usize::MAX)) else { return };
        let b = GpuBackend::open(device, GpuOptions { kv, ..OPTIONS }).unwrap();
        assert_eq!(b.fallbacks().snapshot(), Default::default());
    }
}

#[test]
fn memory_that_cannot_be_had_is_an_error() {
    let Some(device) = device(Fault::Memory(3)) else { return };
    let b = GpuBackend::new(device, OPTIONS).unwrap();
    let linear = Numbers(12).dense("layers.0.up_proj", 33, 70, DType::BF16);
    let error = b.linear(linear).err().unwrap().to_string();
    assert!(error.contains("memory") && error.contains("--device cpu computes without one"), "{error}");
}

#[test]
fn a_kernel_that_is_not_in_its_module_is_replaced() {
    steps_down(Fault::Missing(&["gemv", "trellis_gemv"]), "kernel_not_found");
}

/// The library of matrix products wants 32 MiB to work in; the kernels that every GPU has need no such thing.
#[test]
fn what_there_is_no_memory_for_is_computed_with_less() {
    steps_down_of(Fault::Large(1 << 20), "out_of_memory", [32, 64]);
}

#[test]
fn a_transform_without_a_kernel_is_computed_by_the_cpu() {
    use marlin_checkpoint::{InputTransform, OutputTransform};
    let Some(device) = device(Fault::Memory(usize::MAX)) else { return };
    let b = GpuBackend::new(device, OPTIONS).unwrap();
    let mut numbers = Numbers(14);
    let input = InputTransform::Hadamard { scale: None, block: 2048 };
    let linear = numbers.dense("wide", 3, 2048, DType::F32).with_transforms(input, OutputTransform::None).unwrap();
    let x = numbers.many(2 * 2048);
    let run = |w| Reference.linears(&[w], &Reference.write(2, 2048, x.clone())?);
    let expected = Reference.read(&run(&linear).unwrap()[0]).unwrap();
    let w = b.linear(linear.clone()).unwrap();
    let y = b.linears(&[&w], &b.write(2, 2048, x.clone()).unwrap()).unwrap();
    close("by the CPU", &b.read(&y[0]).unwrap(), &expected, 2e-5);
    let found = b.fallbacks().snapshot();
    assert_eq!((found.total, found.last.unwrap().reason.code()), (1, "unsupported_transform"));
}

/// Attention goes wrong only where the model's own heads are: opening the device cannot find that, getting ready for the model does.
#[test]
fn a_kernel_that_is_wrong_at_a_models_sizes_only_is_found() {
    use marlin_backend::shapes::{GroupedShape, Shapes};
    let shape = GroupedShape { heads: 2, kv_heads: 1, head_dim: 64, q_norm: true, k_norm: false };
    let shapes = Shapes { hidden: 72, grouped: vec![shape], ..Shapes::default() };
    // The instance for heads of 64 with f32 KV memory; the one for heads of 40 is right.
    for (fault, wrong) in
        [(Fault::Garbage(&["place_heads_f32_2_y"]), true), (Fault::Garbage(&["place_heads_f32_3"]), false)]
    {
        let Some(device) = device(fault) else { return };
        let b = GpuBackend::new(device, OPTIONS).unwrap();
        let said = b.trust(&shapes).err().map(|e| e.to_string());
        assert_eq!(said.is_some(), wrong, "{said:?}");
        assert!(said.is_none_or(|e| e.contains("the model's attention does not compute")));
    }
}
