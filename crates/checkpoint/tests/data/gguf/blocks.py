"""Random blocks of every type, and their values as the `gguf` package computes them.

    pip install gguf numpy && python blocks.py            writes blocks.gguf beside this file
    python blocks.py FILE.gguf ...                        prints a checksum of every tensor's values, as JSON
"""

import json
import os
import sys
import zlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

ROWS, COLS = 5, 512
# Where the 16-bit factors of a block are; random bits would be NaN now and then.
FACTORS = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ4_NL: [0], T.IQ4_XS: [0], T.MXFP4: [],
}


def blocks(rng, kind):
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (ROWS * COLS // elements, size), dtype=np.uint8)
    for at in FACTORS[kind]:
        factors = rng.normal(0, 0.02, len(data)).astype(np.float16)
        # A subnormal, a large one, zeros of both signs.
        factors[:4] = np.array([6e-8, -60000.0, 0.0, -0.0], np.float16)
        data[:, at:at + 2] = factors.view(np.uint8).reshape(-1, 2)
    if kind == T.MXFP4:
        # Every exponent that gives finite values comes up, 0 and 1 (subnormal values) among them.
        data[:, 0] = rng.integers(100, 140, len(data))
        data[:4, 0] = [0, 1, 2, 252]
    return data.reshape(ROWS, -1)


def write(path):
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, "blocks")
    writer.add_string("text", "Zwölf Boxkämpfer")
    writer.add_array("texts", ["a", "", "ä"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("floats", [0.5, -1.5])
    writer.add_array("nested", [[1, 2], [3]])
    writer.add_uint64("large", 1 << 60)
    writer.add_int8("small", -5)
    writer.add_bool("yes", True)
    writer.add_float64("pi", 3.141592653589793)
    for kind in FACTORS:
        data = blocks(rng, kind)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
        writer.add_tensor(kind.name + ".values", gguf.dequantize(data, kind).astype(np.float32))
    values = rng.normal(0, 1, (2, 3, 8)).astype(np.float32)
    writer.add_tensor("F16", values.astype(np.float16))
    writer.add_tensor("BF16", gguf.quantize(values, T.BF16), raw_dtype=T.BF16)
    writer.add_tensor("F32", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def checksums(path):
    out = {}
    for tensor in gguf.GGUFReader(path).tensors:
        # Adding zero makes -0 into 0.
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32) + np.float32(0)
        out[tensor.name] = zlib.crc32(values.tobytes())
    return out


if len(sys.argv) > 1:
    all_files = {os.path.basename(path): checksums(path) for path in sorted(sys.argv[1:])}
    print("{" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in all_files.items()) + "}")
else:
    write(os.path.join(os.path.dirname(os.path.abspath(__file__)), "blocks.gguf"))
