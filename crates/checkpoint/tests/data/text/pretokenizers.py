"""Expected splits of difficult Unicode by the pre-tokenisers of Llama 3, Qwen 2/3 and GLM-4.

Run with `python3 pretokenizers.py` (needs the `tokenizers` package; 0.23.3 was used). Writes pretokenizers.json:
{"version", "corpus": [text, ...], "tokenizers": {name: {"json": tokenizer.json, "normalized": {index: text}, "words":
[[length, ...], ...]}}} where "words" has, for each text, the lengths in characters of the pre-tokenised words, in order.
A corpus entry [piece, n] stands for the piece n times; a words entry [length, n] for n words of that length.
"normalized" has the texts that the normaliser changes.
"""

import json
import os
import random

import tokenizers
from tokenizers import Tokenizer

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# GLM-4's expression is Llama 3's.
GLM4 = LLAMA3
# The form with possessive quantifiers that OpenAI's own encoder uses for the same split.
GPT4 = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"


def byte_table():
    keep = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in keep]
    return {**{b: chr(b) for b in keep}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


def tokenizer_json(pattern, normalizer=None):
    table = byte_table()
    vocab = {table[b]: b for b in range(256)}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": pattern is None}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": {"type": normalizer} if normalizer else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]} if pattern else level,
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocab, "merges": []},
    }


FIXED = [
    "", " ", "  ", "\n", "\r", "\r\n", "\t", "a", " a", "a ", "Once upon a time",
    "I'm you're he's we've I'll they'd don't", "I'M YOU'RE HE'S WE'VE I'LL THEY'D DON'T", "i'M yOu'Re 'sS 'Tt 'LLama",
    "'ſ 'ſa x'ſ", "I\u2019m you\u2019re \u2018quoted\u2019 \u201ccurly\u201d \u201asingle\u201e", "'s't're've'm'll'd", "''s ' s '  s",
    "caf\u00e9 cafe\u0301 e\u0301\u0302\u0303\u0304 \u0301start", "A\u030a \u212b \u00c5 \u1e9b\u0323 \ufb01 \u2126", "\u0130stanbul i\u0307 \u0131 \u01c5 \u1e9e \u00df",
    "\U0001F468\u200d\U0001F469\u200d\U0001F467\u200d\U0001F466 family", "\U0001F3F3\ufe0f\u200d\U0001F308 \U0001F1E9\U0001F1EA \U0001F44D\U0001F3FD 1\ufe0f\u20e3",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u3000\u6f22\u5b57\u3068\u304b\u306a\u30ab\u30ca", "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab", "\U00020000\U0002a6d6 \u3007 \u3021 \uff11\uff12\uff13\uff14",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u0661\u0662\u0663\u0664\u0665 \u0640\u064b\u0651", "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \u05e2\u05d5\u05dc\u05dd \u05f3", "\u200f\u202bRTL\u202c \u200eLTR",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01 \u0e51\u0e52\u0e53\u0e54", "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e \u0967\u0968\u0969\u096a \u0915\u094d\u0937", "\u0bb5\u0ba3\u0b95\u0bcd\u0b95\u0bae\u0bcd \u0be7\u0be8 \u1041\u1042 \u17e1\u17e2",
    "1 12 123 1234 12345 123456 1234567 12,345.67", "\u00bd \u2153 \u00b2\u00b3 \u2167 \u2460\u2461 \u0f33 \u1369 \U0001D7CE\U0001D7CF\U0001D7D0\U0001D7D1", "x\u00b2y\u2083z \u216bth", "\u0bf0\u0bf1 \u3192 \U00010107 \U0001F100",
    "a\u00a0b \u00a0c\u00a0 \u00a0\u00a0d", "a\u2003b\u2009\u200a c\u202fd\u205fe\u3000f", "a\u0085b\u2028c\u2029d\u000be\u000cf", "a\u200bb\ufeffc\u2060d\u180ee", "a\x1cb\x1dc\x1ed\x1fe",
    "line\r\nline\r\n\r\nline\rline\n\rline", "\n\n\n\n", "a\n\n\nb \n \n c\t\n\td", "   \n   x", "x   \n", "  \r\n  ", " \n\n  \n", "   lead  mid   trail   ",
    "\t\tindented\n\t\tcode()\n", "if (a&&b) {\r\n\treturn c[d]?e:f;\r\n}", "http://ex.org/a_b-c?d=e&f#g", "a@b.c #tag $100.00 50% ^_^ ~!@#$%^&*()_+", "...!!!???\n\n---\r\n***", " .\n ,\r\n ;a ,1",
    "<|endoftext|> [gMASK]<sop><|user|>\n", "<think>\n</think>\n\n", "\x00", "a\x00b\x00\x00 \x00", "\x7f\x80\x9f\xa0\xad", "\ud7ff\ue000\uf8ff", "\ufffd \ufffe \uffff \ufdd0", "\U0001FFFE\U0010FFFF\U0010FFFD\U000F0000",
    "\u0378\u0379\U000E0001\U000E0061", "\u20ac\u20bf \u20c0 \U0001F600\U0001FAE8 \u1c89\u1c8a \ua7da\ua7dc", "\U00010D40\U00010D41 \U00011DE0 \U0001E5F1 \U0001CCF0", "\U0001E030 \U00011F50\U00011F51 \U00031350",
    "don\u02bct \u02bc\u02bds \u2032s `s \u00b4t", "\u0027\u0073 \u0027\u017f \u0027\u212a \uff07s", "snake_case camelCase PascalCase kebab-case x1y2z3 3rd 4th", "\u00aa\u00ba \u02b0 \u1d2c \u2071 \ua69c", "\u093e\u093f \u20dd \u0488 a\u20ddb 1\u20dd2", "\u2060\u2061\u00ad\u034f",
    "\ufe0f\ufe0e \u200d\u200c", "\u1100\u1161\u11a8\uac00\uac01", "\u0344 \u0340\u0341 \u0374 \u037e \u0387", "\u2f00 \uf900 \ufa0e \U0002f800", "q\u0307\u0323 q\u0323\u0307", "\u0915\u093c \u0958 \ufb2a", "\u09c7\u09be \u0b47\u0b56", "\U0001D15E\U0001D1BC",
]
RUNS = [[" ", 3000], ["\n", 3000], ["a", 3000], ["7", 3001], ["\u6f22", 1500], ["!", 3000], ["\r\n", 1500], [" \n", 1500], ["\u00a0", 2000], ["\U0001F600", 800], ["a ", 1500], ["'s", 1500], ["\u0301", 1500], ["\t", 2500]]


def random_texts():
    rng = random.Random(20240607)
    common = list("abzAZ019 '\n\r\t.,!-_") + ["'s", "'LL", "  ", "\r\n", "\u00a0", "\u3000", "\u0301", "\u200d", "\u0663", "\u4e2d", "\u0e01", "\u0915", "\U0001F600", "\u2028", "\u00b2", "\u2019", "\u0085", "\x00"]
    for _ in range(120):
        yield "".join(rng.choice(common) for _ in range(rng.randint(1, 40)))
    for _ in range(120):  # any character that Unicode 15.1 knows to Python, and some that it does not
        chars = []
        while len(chars) < rng.randint(4, 30):
            c = rng.choice([rng.randrange(0x3000), rng.randrange(0x10000), rng.randrange(0x110000), rng.choice([32, 10, 39, 49])])
            if not 0xD800 <= c <= 0xDFFF:
                chars.append(chr(c))
        yield "".join(chars)


def main():
    corpus = FIXED + RUNS + list(random_texts())
    texts = [c if isinstance(c, str) else c[0] * c[1] for c in corpus]
    out = {"version": tokenizers.__version__, "corpus": corpus, "tokenizers": {}}
    kinds = {"llama3": (LLAMA3, None), "qwen": (QWEN, "NFC"), "glm4": (GLM4, None), "gpt4": (GPT4, None), "gpt2": (None, None)}
    for name, (pattern, normalizer) in kinds.items():
        spec = tokenizer_json(pattern, normalizer)
        tok = Tokenizer.from_str(json.dumps(spec))
        words, changed = [], {}
        for i, text in enumerate(texts):
            normal = tok.normalizer.normalize_str(text) if tok.normalizer else text
            splits = tok.pre_tokenizer.pre_tokenize_str(normal)
            ends, at = [], 0
            for _, (start, end) in splits:
                assert start == at and end > start, (name, text, splits)
                ends.append(end)
                at = end
            assert at == len(normal)
            # ends of the words, as lengths: short and exact
            lengths = [b - a for a, b in zip([0] + ends, ends)]
            words.append(run_lengths(lengths))
            ids = tok.encode(text).ids
            assert bytes(ids).decode() == normal  # ids are bytes here
            if normal != text:
                changed[str(i)] = normal
        out["tokenizers"][name] = {"json": spec, "normalized": changed, "words": words}
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pretokenizers.json")
    with open(path, "w") as f:
        json.dump(out, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")


def run_lengths(lengths):
    """[3, 1, 1, 1] -> [3, [1, 3]]"""
    out = []
    for n in lengths:
        if out and isinstance(out[-1], list) and out[-1][0] == n:
            out[-1][1] += 1
        elif out and out[-1] == n:
            out[-1] = [n, 2]
        else:
            out.append(n)
    return out


main()
