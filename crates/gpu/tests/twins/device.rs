//! The devices that tests run on, and what is compared.

use marlin_backend::Reference;
use marlin_gpu::kernels::Element;
use marlin_gpu::{Device, GpuBackend, GpuOptions};
use marlin_gpu_sim::{Order, Simulated};
use std::sync::Arc;

pub const OPTIONS: GpuOptions =
    GpuOptions { kv: Element::F32, memory: 1 << 30, threads: 1, record: true, exact: false };

/// Backends to test; none, loudly, where there is no device.
pub fn backends() -> Vec<GpuBackend> {
    backends_with(OPTIONS)
}

/// The same with other options.
pub fn backends_with(options: GpuOptions) -> Vec<GpuBackend> {
    let open = |device: Arc<dyn Device>| GpuBackend::new(device, options).unwrap();
    #[cfg(not(target_os = "macos"))]
    if std::env::var("MARLIN_TEST_DEVICE").is_ok_and(|d| d == "cuda") {
        return vec![open(Arc::new(marlin_gpu::device::cuda::Cuda::open(0).unwrap()))];
    }
    if let Some(why) = Simulated::absent() {
        eprintln!("SKIPPED: {why}");
        return Vec::new();
    }
    Order::ALL.map(|order| open(Arc::new(Simulated::new(order)))).into_iter().collect()
}

/// Values off by more than `limit` of the largest are an error; NaN always is.
pub fn close(what: &str, found: &[f32], expected: &[f32], limit: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        // Written so that NaN fails.
        assert!((a - b).abs() <= limit * scale, "{what}: value {i}: {a}, twin {b}");
    }
}

/// Runs the same operations on every device and on the reference, and compares what is read. What the simulated GPU computes
/// must not depend on the order of its threads, and nothing may take a slower path.
pub fn both<F, G>(options: GpuOptions, what: &str, limit: f32, on_gpu: F, on_reference: G)
where
    F: Fn(&GpuBackend) -> marlin_backend::Result<Vec<f32>>,
    G: Fn(&Reference) -> marlin_backend::Result<Vec<f32>>,
{
    let expected = on_reference(&Reference).unwrap();
    if expected.is_empty() {
        return;
    }
    let mut first: Option<Vec<u32>> = None;
    for b in backends_with(options) {
        let found = on_gpu(&b).unwrap_or_else(|e| panic!("{what}: {e}"));
        close(what, &found, &expected, limit);
        let bits: Vec<u32> = found.iter().map(|v| v.to_bits()).collect();
        assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits, "{what} depends on the order of threads");
        assert_eq!(b.fallbacks().snapshot(), Default::default(), "{what}");
    }
}

macro_rules! twins {
    ($what:expr, $limit:expr, |$b:ident| $body:expr) => {
        twins!(crate::device::OPTIONS, $what, $limit, |$b| $body)
    };
    ($options:expr, $what:expr, $limit:expr, |$b:ident| $body:expr) => {
        crate::device::both($options, $what, $limit, |$b| $body, |$b| $body)
    };
}
pub(crate) use twins;
