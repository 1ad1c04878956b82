"""Writes written_by_python.safetensors with the safetensors package (0.8.0), for tests/containers.rs."""
import numpy as np
from safetensors.numpy import save_file

a = np.arange(24)
save_file(
    {
        "f64": (a / 7).astype(np.float64).reshape(2, 3, 4),
        "f32": (a / 7).astype(np.float32).reshape(4, 6),
        "f16": (a / 7).astype(np.float16),
        "i64": (a - 12).astype(np.int64).reshape(24, 1),
        "i32": np.array(-877912083, np.int32),
        "u8": a.astype(np.uint8)[:7],
        "bool": a % 3 == 0,
        "empty": np.zeros((0, 5), np.float32),
        "names may hold \"quotes\", ünïcode 🦀 and\nlines": np.array([1, 2], np.uint16),
    },
    "written_by_python.safetensors",
    metadata={"format": "np", "answer": "42"},
)
