"""Writes schemes.safetensors and cases.json: small modules in every quantised format, and the values that they stand for.

Written from the formats' published definitions with numpy alone, one code at a time, except the modules of MLX, which MLX
itself quantises and decodes (pip install numpy "mlx[cpu]"). Run it in this folder.
"""

import json
import struct

import mlx.core as mx
import numpy as np

rng = np.random.default_rng(20261121)
mx.set_default_device(mx.cpu)
TENSORS, CASES = {}, []
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def e4m3(byte):
    sign, exponent, mantissa = byte >> 7, byte >> 3 & 15, byte & 7
    assert byte & 127 != 127
    value = mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -value if sign else value


E4M3 = np.array([e4m3(b) if b & 127 != 127 else np.nan for b in range(256)], np.float32)


def e5m2(byte):
    return np.array([byte << 8], np.uint16).view(np.float16).astype(np.float32)[0]


def put(name, array, dtype=None):
    array = np.ascontiguousarray(array)
    known = {"float32": "F32", "float16": "F16", "int32": "I32", "uint32": "U32", "int64": "I64", "uint8": "U8", "int8": "I8"}
    assert name not in TENSORS
    TENSORS[name] = (dtype or known[array.dtype.name], array.shape, array.tobytes())


def case(module, scheme, expected, config=None, features=None):
    CASES.append({"module": module, "scheme": scheme, "config": config or {}, "features": features or list(expected.shape)})
    put("expected." + module, expected.astype(np.float32))


def bits_to_words(codes, bits, axis):
    """A bit stream along `axis`, least significant bit first, in 32-bit words."""
    codes = np.moveaxis(np.asarray(codes), axis, -1)
    stream = (codes[..., None].astype(np.int64) >> np.arange(bits)) & 1
    stream = stream.reshape(*codes.shape[:-1], -1)
    pad = -stream.shape[-1] % 32
    stream = np.concatenate([stream, np.zeros((*stream.shape[:-1], pad), np.int64)], -1)
    words = (stream.reshape(*stream.shape[:-1], -1, 32) << np.arange(32)).sum(-1).astype(np.uint32)
    return np.ascontiguousarray(np.moveaxis(words, -1, axis))


def halves(shape):
    return (rng.uniform(0.5, 1.5, shape) * 0.01).astype(np.float16)


# GPTQ: codes [in, out], zero points [groups, out].
def gptq(module, bits, version, group, inputs=64, outputs=32, act=False, config=None):
    groups = -(-inputs // group)
    index = np.arange(inputs) // group
    if act:
        index = index[rng.permutation(inputs)]
    q = rng.integers(0, 1 << bits, (inputs, outputs))
    zero = rng.integers(0, 1 << bits, (groups, outputs))
    scale = halves((groups, outputs))
    stored = (zero - 1) & ((1 << bits) - 1) if version == 1 else zero
    put(module + ".qweight", bits_to_words(q, bits, 0).view(np.int32))
    put(module + ".qzeros", bits_to_words(stored, bits, 1).view(np.int32))
    put(module + ".scales", scale)
    put(module + ".g_idx", index.astype(np.int32))
    put(module + ".bias", np.zeros(outputs, np.float16))
    value = scale[index].astype(np.float32) * (q - zero[index]).astype(np.float32)
    settings = {"quant_method": "gptq", "bits": bits, "group_size": -1 if group >= inputs else group, "desc_act": act}
    if version == 2:
        settings["checkpoint_format"] = "gptq_v2"
    case(module, "gptq", value.T, {"quantization_config": {**settings, **(config or {})}})


for bits in (2, 3, 4, 8):
    for version in (1, 2):
        gptq(f"gptq.b{bits}.v{version}", bits, version, 32)
        gptq(f"gptq.b{bits}.v{version}.act", bits, version, 16, act=True)
gptq("gptq.channel", 4, 1, 64)
gptq("gptq.uneven", 4, 1, 32, inputs=80, act=True)
gptq("gptq.dynamic", 8, 1, 16, config={"bits": 4, "group_size": 128, "dynamic": {"+:.*": {"bits": 8, "group_size": 16}}})


# AWQ.
def awq(module, version, inputs=64, outputs=32, group=32):
    groups = inputs // group
    q, zero, scale = rng.integers(0, 16, (inputs, outputs)), rng.integers(0, 16, (groups, outputs)), halves((groups, outputs))
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": version}
    if version == "gemm":
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        shuffled = lambda a: a.reshape(len(a), -1, 8)[:, :, order].reshape(a.shape)
        put(module + ".qweight", bits_to_words(shuffled(q), 4, 1).view(np.int32))
        put(module + ".qzeros", bits_to_words(shuffled(zero), 4, 1).view(np.int32))
        put(module + ".scales", scale)
    else:
        wide = 4  # padded words, as AutoAWQ does for groups of 32
        pad = lambda a: np.concatenate([a.T, np.zeros((outputs, 8 * wide - groups), a.dtype)], 1)
        put(module + ".qweight", bits_to_words(q.T, 4, 1).view(np.int32))
        put(module + ".qzeros", bits_to_words(pad(zero), 4, 1).view(np.int32))
        put(module + ".scales", pad(scale))
    index = np.arange(inputs) // group
    value = scale[index].astype(np.float32) * (q - zero[index]).astype(np.float32)
    case(module, "awq", value.T, {"quantization_config": config})


awq("awq.gemm", "gemm")
awq("awq.gemv", "gemv")


# compressed-tensors integers: stored codes are offset by half their range, zero points too.
def packed(module, bits, group, symmetric=True, act=False, plain=False, inputs=64, outputs=24):
    groups = inputs // group
    index = np.arange(inputs) // group
    if act:
        index = index[rng.permutation(inputs)]
    q = rng.integers(0, 1 << bits, (outputs, inputs)) - (1 << bits - 1)
    zero = np.zeros((outputs, groups), np.int64) if symmetric else rng.integers(0, 1 << bits, (outputs, groups)) - (1 << bits - 1)
    scale = halves((outputs, groups)).astype(np.float32)
    put(module + ".weight_packed", bits_to_words(q + (1 << bits - 1), bits, 1).view(np.int32))
    put(module + ".weight_scale", scale)
    put(module + ".weight_shape", np.array([outputs, inputs], np.int64))
    if not symmetric:
        stored = zero.astype(np.int8) if plain else bits_to_words(zero + (1 << bits - 1), bits, 0).view(np.int32)
        put(module + ".weight_zero_point", stored)
    if act:
        put(module + ".weight_g_idx", index.astype(np.int32))
    value = scale[:, index] * (q - zero[:, index]).astype(np.float32)
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group" if groups > 1 else "channel"}
    weights["group_size"] = group if groups > 1 else None
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {"weights": weights}}}
    case(module, "compressed-tensors", value, {"quantization_config": config})


for bits in range(2, 9):
    packed(f"ct.int{bits}", bits, 32)
    packed(f"ct.int{bits}.asymmetric", bits, 16, symmetric=False)
packed("ct.channel", 4, 64)
packed("ct.channel.asymmetric", 8, 64, symmetric=False)
packed("ct.act", 4, 16, symmetric=False, act=True)
packed("ct.plain_zeros", 4, 16, symmetric=False, plain=True)

q, scale = rng.integers(-128, 128, (24, 32)).astype(np.int8), halves((24, 1)).astype(np.float32)
put("ct.int8_plain.weight", q)
put("ct.int8_plain.weight_scale", scale)
case("ct.int8_plain", "compressed-tensors", scale * q)
zero = rng.integers(-128, 128, (24, 1)).astype(np.int8)
put("ct.int8_plain_asymmetric.weight", q)
put("ct.int8_plain_asymmetric.weight_scale", scale)
put("ct.int8_plain_asymmetric.weight_zero_point", zero)
case("ct.int8_plain_asymmetric", "compressed-tensors", scale * (q.astype(np.float32) - zero))


# NVFP4 and MXFP4: two codes to a byte, the even one low.
def nibbles(codes):
    return (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)


codes = rng.integers(0, 16, (24, 64))
blocks = rng.integers(0x20, 0x58, (24, 4)).astype(np.uint8)
divisor = np.float32(37.3)
put("ct.nvfp4.weight_packed", nibbles(codes))
put("ct.nvfp4.weight_scale", blocks, "F8_E4M3")
put("ct.nvfp4.weight_global_scale", np.array([divisor]))
put("ct.nvfp4.input_global_scale", np.array([1.0], np.float32))
case("ct.nvfp4", "nvfp4", E2M1[codes] * np.repeat(E4M3[blocks] / divisor, 16, 1))
put("modelopt.nvfp4.weight", nibbles(codes))
put("modelopt.nvfp4.weight_scale", blocks, "F8_E4M3")
put("modelopt.nvfp4.weight_scale_2", np.float32(0.0173))
put("modelopt.nvfp4.input_scale", np.float32(1.0))
case("modelopt.nvfp4", "nvfp4", E2M1[codes] * np.repeat(E4M3[blocks] * np.float32(0.0173), 16, 1))
powers = rng.integers(115, 130, (24, 2)).astype(np.uint8)
put("ct.mxfp4.weight_packed", nibbles(codes))
put("ct.mxfp4.weight_scale", powers)
case("ct.mxfp4", "mxfp4", E2M1[codes] * np.repeat(np.exp2(powers - 127.0).astype(np.float32), 32, 1))

# gpt-oss: experts in one tensor, gate and up rows alternating.
codes, powers = rng.integers(0, 16, (2, 32, 2, 32)), rng.integers(115, 130, (2, 32, 2)).astype(np.uint8)
value = (E2M1[codes] * np.exp2(powers - 127.0).astype(np.float32)[..., None]).reshape(2, 32, 64)
put("layer.mlp.experts.gate_up_proj_blocks", nibbles(codes))
put("layer.mlp.experts.gate_up_proj_scales", powers)
put("layer.mlp.experts.gate_up_proj_bias", np.zeros((2, 32), np.float32))
put("layer.mlp.experts.down_proj_blocks", nibbles(codes))
put("layer.mlp.experts.down_proj_scales", powers)
for e in range(2):
    case(f"layer.mlp.experts.{e}.gate_proj", "mxfp4", value[e, 0::2])
    case(f"layer.mlp.experts.{e}.up_proj", "mxfp4", value[e, 1::2])
    case(f"layer.mlp.experts.{e}.down_proj", "mxfp4", value[e])


# FP8.
def eights(shape):
    found = rng.integers(0, 256, shape)
    return np.where(found & 127 == 127, 0x3C, found).astype(np.uint8)


def fp8(module, suffix, scale, expand, dtype=None, config=None, shape=(40, 72), kind="F8_E4M3"):
    codes = eights(shape)
    values = E4M3[codes] if kind == "F8_E4M3" else np.vectorize(e5m2)(codes & 0xBB)
    put(module + ".weight", codes if kind == "F8_E4M3" else (codes & 0xBB), kind)
    put(module + suffix, scale, dtype)
    case(module, "fp8", values * expand, {"quantization_config": config} if config else None)


tiles = rng.uniform(0.5, 2, (3, 3)).astype(np.float32)
spread = lambda t: np.repeat(np.repeat(t, 16, 0), 32, 1)[:40, :72]
fine = {"quant_method": "fp8", "weight_block_size": [16, 32], "activation_scheme": "dynamic"}
fp8("fp8.blocks", ".weight_scale_inv", tiles, spread(tiles), config=fine)
powers = rng.integers(120, 130, (3, 3)).astype(np.uint8)
fp8("fp8.powers", ".weight_scale_inv", powers, spread(np.exp2(powers - 127.0).astype(np.float32)), "F8_E8M0", fine)
one = np.full((1, 1), 0.125, np.float32)
fp8("fp8.default_blocks", ".weight_scale_inv", one, one)
fp8("fp8.tensor", ".weight_scale", np.float32(0.3), np.float32(0.3))
rows = rng.uniform(0.5, 2, (40, 1)).astype(np.float32)
fp8("fp8.channel", ".weight_scale", rows, rows)
fp8("fp8.e5m2", ".weight_scale", rows, rows, kind="F8_E5M2")


# MLX, by MLX.
def mlx(module, bits, group, mode="affine", dtype=mx.float32, shape=(8, 128)):
    w = mx.array((rng.standard_normal(shape) * 0.05).astype(np.float32)).astype(dtype)
    parts = mx.quantize(w, group_size=group, bits=bits, mode=mode)
    put(module + ".weight", np.array(parts[0]))
    put(module + ".scales", np.array(parts[1]))
    wide = [p if p.dtype == mx.uint8 else p.astype(mx.float32) for p in parts[1:]]
    if mode == "affine":
        put(module + ".biases", np.array(parts[2]))
        value = mx.dequantize(parts[0], *wide, group_size=group, bits=bits)
    else:
        value = mx.dequantize(parts[0], *wide, group_size=group, bits=bits, mode=mode).astype(mx.float32)
    default = {"group_size": 64, "bits": 4, "mode": "affine"}
    entry = {"group_size": group, "bits": bits, "mode": mode}
    return np.array(value), {"quantization": {**default, module: entry}}


for bits in (2, 3, 4, 5, 6, 8):
    value, config = mlx(f"mlx.b{bits}", bits, {2: 32, 3: 128}.get(bits, 64), dtype=mx.float16 if bits % 2 else mx.float32)
    case(f"mlx.b{bits}", "mlx", value, config)
for mode, bits, group in (("mxfp4", 4, 32), ("nvfp4", 4, 16), ("mxfp8", 8, 32)):
    value, config = mlx("mlx." + mode, bits, group, mode)
    case("mlx." + mode, "mlx", value, config)
value, config = mlx("stack.mlp.switch_mlp.up_proj", 4, 32, shape=(3, 8, 64))
for e in range(3):
    case(f"stack.mlp.experts.{e}.up_proj", "mlx", value[e], config)


# FP4 of this project.
def hadamard(n):
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(n)


def words(codes, axis):
    return bits_to_words(codes, 4, axis)


def fp4(module, layout, outputs=24, inputs=64, group=32, block=None, marked=True):
    codes, scale = rng.integers(0, 16, (outputs, inputs)), halves((outputs, inputs // group))
    name = module + ".weight"
    put(name, {"rows": words(codes, 1), "down": words(codes.T, 0), "across": words(codes.T, 1)}[layout.split("-")[0]])
    put(name + ".scales", scale if layout == "rows" else scale.T)
    if marked:
        put(name + ".group_size", np.array([group], np.int32))
    value = E2M1[codes] * np.repeat(scale.astype(np.float32), group, 1)
    if block:
        put(name + ".hadamard_block_size", np.array([block], np.int32))
        value = value @ np.kron(np.eye(inputs // block), hadamard(block))
    case(module, "fp4", value)


fp4("fp4.rows", "rows")
fp4("fp4.turned", "rows-turned")
fp4("fp4.rotated", "rows", block=32)
fp4("fp4.unmarked", "rows", marked=False)
fp4("fp4.down", "down", marked=False)
fp4("fp4.across", "across", marked=False)
codes, scale = rng.integers(0, 16, (2, 32, 64)), halves((2, 32, 2))
put("bank.mlp.experts.gate_up_proj", words(codes, 2))
put("bank.mlp.experts.gate_up_proj.scales", scale)
put("bank.mlp.experts.gate_up_proj.group_size", np.array([32], np.int32))
value = E2M1[codes] * np.repeat(scale.astype(np.float32), 32, 2)
for e in range(2):
    case(f"bank.mlp.experts.{e}.gate_proj", "fp4", value[e, :16])
    case(f"bank.mlp.experts.{e}.up_proj", "fp4", value[e, 16:])

header, data = {}, b""
for name, (dtype, shape, raw) in TENSORS.items():
    header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
    data += raw
text = json.dumps(header, separators=(",", ":")).encode()
text += b" " * (-len(text) % 8)
with open("schemes.safetensors", "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text + data)
with open("cases.json", "w") as file:
    file.write("[\n" + ",\n".join(json.dumps(c) for c in CASES) + "\n]\n")
print(len(CASES), "cases,", len(data), "bytes")
