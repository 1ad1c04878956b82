//! Files between us and the safetensors package for Python.
#![allow(clippy::unwrap_used)] // its helpers are tests too

use std::path::Path;

use marlin_checkpoint::{DType, Store, TensorSource};

/// `tests/data/containers/written_by_python.py` says what is in the file.
#[test]
fn a_file_written_by_python() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/containers/written_by_python.safetensors");
    let store = Store::open(&path).unwrap();
    let metadata = &store.files()[0].metadata;
    assert_eq!((metadata["format"].as_str(), metadata["answer"].as_str()), ("np", "42"));
    for (name, dtype, shape) in [
        ("f64", DType::F64, &[2, 3, 4][..]),
        ("f32", DType::F32, &[4, 6]),
        ("f16", DType::F16, &[24]),
        ("i64", DType::I64, &[24, 1]),
        ("i32", DType::I32, &[]),
        ("u8", DType::U8, &[7]),
        ("bool", DType::Bool, &[24]),
        ("empty", DType::F32, &[0, 5]),
        ("names may hold \"quotes\", ünïcode 🦀 and\nlines", DType::U16, &[2]),
    ] {
        let tensor = store.tensor(name).unwrap();
        assert_eq!((tensor.info.dtype, tensor.info.shape.as_slice()), (dtype, shape), "{name}");
        assert_eq!(tensor.data.len(), tensor.info.bytes(), "{name}");
    }
    assert_eq!(store.tensors().len(), 9);
    let values = |name: &str| store.tensor(name).unwrap().to_f32().unwrap();
    // numpy's own roundings of 5 / 7.
    assert_eq!((values("f16")[5], values("f32")[5], values("f64")[5]), (0.714_355_47, 0.714_285_73, 0.714_285_73));
    assert_eq!(*store.tensor("i32").unwrap().data, (-877_912_083_i32).to_le_bytes());
    assert_eq!(*store.tensor("u8").unwrap().data, [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(store.tensor("bool").unwrap().data[..4], [1, 0, 0, 1]);
    assert_eq!(store.tensor("i64").unwrap().data[..8], (-12_i64).to_le_bytes());
    let error = store.tensor("u8").unwrap().to_f32().unwrap_err().to_string();
    assert_eq!(error, "tensor \"u8\": expected F64, F32, F16 or BF16, found U8");
}
