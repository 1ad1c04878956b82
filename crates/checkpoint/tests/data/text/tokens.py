"""Expected ids and texts of small tokenizers, from the Python package.

Run with `python3 tokens.py` (needs `tokenizers`; 0.23.3 was used). Writes tokens.json: {name: {"json": tokenizer.json or
null for the built-in model's, "encode": [[text, add_special_tokens, ids], ...], "decode": [[ids, skip_special, text], ...]}}.
"""

import json
import os
import random

from tokenizers import Tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
FABLE = os.path.join(HERE, "../../../../../models/fable-glm4-moe-lite/tokenizer.json")
TEXTS = [
    "", "Once upon a time there was a king", "The fox & the crow.\n\n\"Caw!\"  said he.", "na\u00efve caf\u00e9 \u4f60\u597d \U0001F98A\U0001F468\u200d\U0001F469",
    "[gMASK]<sop><|system|>\nBe brief.<|user|>\nHi<|assistant|><think>", "<|endoftext|>x <|endoftext|> y", "<|user", "\x00\ufffd\n\r\n",
]


def sentencepiece(decoder):
    """A tiny Llama-2-like vocabulary: pieces with U+2581 for a space, and the 256 byte tokens."""
    words = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + ["\u2581", "a", "b", "c", "\u2581a", "\u2581b", "ab", "\u2581ab", "\u2581\u2581", "<0x", "\u00e9"]
    merges = [["\u2581", "a"], ["\u2581", "b"], ["a", "b"], ["\u2581a", "b"], ["\u2581", "\u2581"]]
    token = lambda i: {"id": i, "content": words[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": [token(i) for i in range(3)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                           "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": decoder,
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": {w: i for i, w in enumerate(words)}, "merges": merges},
    }


STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
REPLACE = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
DECODERS = {
    "llama2": {"type": "Sequence", "decoders": [REPLACE, {"type": "ByteFallback"}, {"type": "Fuse"}, STRIP]},
    "gemma": {"type": "Sequence", "decoders": [REPLACE, {"type": "ByteFallback"}, {"type": "Fuse"}]},
    "strip each": {"type": "Sequence", "decoders": [REPLACE, {"type": "ByteFallback"}, {"type": "Strip", "content": " ", "start": 2, "stop": 0}]},
    "strip many": {"type": "Sequence", "decoders": [REPLACE, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 3, "stop": 0}]},
    "metaspace": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": False},
    "metaspace never": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": False},
    "no decoder": None,
}


def main():
    rng = random.Random(7)
    out = {}
    with open(FABLE, encoding="utf-8") as f:
        specs = {"fable": json.load(f)}
    specs.update({name: sentencepiece(decoder) for name, decoder in DECODERS.items()})
    for name, spec in specs.items():
        tok = Tokenizer.from_str(json.dumps(spec))
        tok.no_truncation()
        tok.no_padding()
        n = tok.get_vocab_size()
        texts = TEXTS if name == "fable" else ["", "ab a b", " ab", "caf\u00e9 \u4f60", "<s>a</s>b"]
        encode = [[t, add, tok.encode(t, add_special_tokens=add).ids] for t in texts for add in (False, True)]
        decode = []
        for i in range(24):
            if name != "fable":  # mostly byte tokens, so that runs of them happen
                ids = [rng.choice([rng.randrange(n), 3 + rng.choice([0x20, 0xE4, 0xBD, 0xA0, 0xF0, 0x9F]), 259, 263, 4, 1]) for _ in range(rng.randrange(1, 16))]
                if i % 4 == 0:
                    ids = [3 + b for b in "\u4f60\U0001F98A\u00e9".encode()] + ids
            elif i % 2:
                ids = [rng.choice([rng.randrange(256), rng.randrange(n), n - 1 - rng.randrange(9)]) for _ in range(rng.randrange(1, 24))]
            else:
                ids = tok.encode(rng.choice(TEXTS)).ids + [rng.randrange(n)]
            ids += [n + 5] if i % 5 == 0 else []
            decode += [[ids, skip, tok.decode(ids, skip_special_tokens=skip)] for skip in (False, True)]
        out[name] = {"json": None if name == "fable" else spec, "encode": encode, "decode": decode}
    with open(os.path.join(HERE, "tokens.json"), "w") as f:
        json.dump(out, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")


main()
