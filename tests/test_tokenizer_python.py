"""formats/tokenizer* against the Python package `tokenizers`: random Unicode text must give the
same ids and the same text back, for every kind of fixture, and WikiText-2 for sample-1m.

Arguments: seconds to fuzz (default 5), seed (default 1). Exit 77 where the package, the fixtures or
the shared library are missing, or the library is sanitized: Python could not load it."""
import copy
import ctypes
import json
import os
import random
import sys
import tempfile
import time
import unicodedata

DATA = os.environ.get("FP8_TEST_DATA", "../shared")
LIBRARY = os.path.join(os.environ.get("FP8_BINARY_DIR", "build"), "libfp8rt.so")
KINDS = ["gpt2", "gpt2-string-merges", "llama3", "qwen2", "llama2-bytefallback", "metaspace",
         "gemma"]


SPACES = r"|\s+(?!\S)|\s+"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
CASED = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+SHORT|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*SHORT|"
         r"DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+" + SPACES)
GPT2_TAIL = r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+" + SPACES
REGEXES = {  # the others that tokenizer_scan.c knows
    "gpt2-split": "'s|'t|'re|'ve|'m|'ll|'d" + GPT2_TAIL,
    "gpt2-tiktoken": "'(?:[sdmt]|ll|ve|re)" + GPT2_TAIL,
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
              r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+" + SPACES,
    "cl100k-tiktoken": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}|"
                       r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]" + SPACES,
    "nemo": CASED.replace("SHORT", "").replace("DIGITS", r"\p{N}"),
    "o200k": CASED.replace("SHORT", SHORT + "?").replace("DIGITS", r"\p{N}{1,3}"),
}


def add_tokens(j, tokens):
    """Adds {content: flags that are true} to a tokenizer.json, where it has no such token yet."""
    vocab, size = j["model"]["vocab"], len(j["model"]["vocab"])
    for content, flags in tokens.items():
        token = dict(id=vocab.get(content, size), content=content, single_word=False, lstrip=False,
                     rstrip=False, normalized=False, special=False)
        token.update((flag, True) for flag in flags.split())
        j["added_tokens"].append(token)
        size += content not in vocab


def variants(kinds):
    """(name, tokenizer.json as a dict) of what the fixtures do not have."""
    for name, regex in REGEXES.items():
        j = copy.deepcopy(kinds["llama3"])
        j["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": regex}
        if name == "o200k":
            j["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed", invert=True)
        yield name, j
    for individual in (True, False):
        j = copy.deepcopy(kinds["gpt2"])
        digits = {"type": "Digits", "individual_digits": individual}
        byte_level = {**j["pre_tokenizer"], "add_prefix_space": True}
        j["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, byte_level]}
        yield f"digits-{individual}", j
    for scheme in ("first", "always", "never"):
        for split in (True, False):
            j = copy.deepcopy(kinds["metaspace"])
            j["pre_tokenizer"].update(prepend_scheme=scheme, split=split)
            j["decoder"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme,
                            "split": split}
            yield f"metaspace-{scheme}-{split}", j
    for behavior in ("Isolated", "MergedWithNext", "Removed"):
        j = copy.deepcopy(kinds["gemma"])
        j["pre_tokenizer"].update(behavior=behavior, pattern={"String": "\u2581"})
        j["model"]["fuse_unk"] = False
        yield f"split-{behavior}", j
    for base in ("qwen2", "llama2-bytefallback", "gemma"):
        j = copy.deepcopy(kinds[base])
        add_tokens(j, {"word": "single_word", "<|pad|><": "lstrip", "e\u0301": "rstrip",
                       "a B": "normalized", "12": "normalized single_word lstrip",
                       "\u2581\u2581": "", "\n\n": "normalized", "  ": "",
                       "<": "lstrip rstrip"})
        yield f"added-{base}", j
    j = copy.deepcopy(kinds["llama2-bytefallback"])  # unknown characters, fused or not
    for token in [f"<0x{byte:02X}>" for byte in range(0x80, 0xc8)]:
        j["model"]["vocab"][token + "-"] = j["model"]["vocab"].pop(token)
    yield "unknown-fused", j
    j = copy.deepcopy(j)
    j["model"]["fuse_unk"] = False
    j["decoder"] = None
    yield "unknown", j
    j = copy.deepcopy(j)
    j["model"]["unk_token"] = None
    yield "dropped", j


class Ids(ctypes.Structure):
    _fields_ = [("data", ctypes.POINTER(ctypes.c_int32)), ("count", ctypes.c_int64),
                ("cap", ctypes.c_int64)]


class Tokenizer:
    """libfp8rt's tokenizer."""

    def __init__(self, lib, path):
        self.lib, self.handle = lib, ctypes.c_void_p()
        self.check(lib.fp8_tokenizer_open(ctypes.byref(self.handle), path.encode()))

    def check(self, status):
        if status:
            raise RuntimeError(self.lib.fp8_last_error().decode(errors="replace"))

    def encode(self, text):
        ids, raw = Ids(), text.encode()
        self.check(self.lib.fp8_tokenizer_encode(self.handle, ctypes.byref(ids), raw,
                                                 ctypes.c_size_t(len(raw)), 1))
        found = ids.data[:ids.count] if ids.count else []
        self.lib.fp8_ids_free(ctypes.byref(ids))
        return found

    def decode(self, ids, skip_special):
        out, size = ctypes.c_void_p(), ctypes.c_size_t()
        data = (ctypes.c_int32 * len(ids))(*ids)
        self.check(self.lib.fp8_tokenizer_decode(self.handle, ctypes.byref(out),
                                                 ctypes.byref(size), data,
                                                 ctypes.c_int64(len(ids)), int(skip_special)))
        text = ctypes.string_at(out, size.value).decode()
        self.lib.free(out)
        return text


# Where the rules of pre-tokenizers, normalizers and decoders part ways.
SPICES = ["'s", "'S", "'\u017f", "'T", "'re", "'Re", "'vE", "'m", "'LL", "'ll", "'lL", "'d", "'x",
          "'", "''", " '", "\r", "\n", "\r\n", "\n\n", " \n ", " ", "  ", "   ", "\t", "\x0b",
          "\x0c", "\x1c", "\x85", "\xa0", "\u1680", "\u180e", "\u2000", "\u2007", "\u200b",
          "\u200d", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\ufeff", "\u2060", "\0",
          "1", "12", "123", "1234", "\u0663", "\u2167", "\xbd", "\u3007", "\U0001d7d8", "\u24b6",
          "a", "B", "word", " word", "\u0301", "\u0316", "\u0345", "\u093c", "e\u0301", "\u212b",
          "\u1e9b\u0323", "\u1100\u1161\u11a8", "\uac00\u11a8", "\ufb01", "\u01c5", "\u0130",
          "\xdf", "\u2581", "\u2581\u2581", "<s>", "</s>", "<unk>", "<|begin_of_text|>",
          "<|end_of_text|>", "<|pad|>", "<|pad", "<", "<0x41>", "\U0001f468\u200d\U0001f469",
          "\U0001f3f3\ufe0f", "\U0001f1e9", "\u0e01\u0e33", "\u05d0\u05b0", "\u0915\u094d", "_",
          "-", "...", "!", "$", "+", "\xb2", "\U0002f800", "\ud7a3", "\ue000", "\uffff",
          "\U0010ffff", "\u0378", "\u0149"]
RANGES = [(0x20, 0x7f), (0xa0, 0x180), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700),
          (0x900, 0xa00), (0x1100, 0x1200), (0x1e00, 0x2000), (0x2000, 0x2070), (0x2460, 0x2500),
          (0x3040, 0x3100), (0x4e00, 0x4f00), (0xac00, 0xad00), (0xfb00, 0xfb50), (0xff00, 0xfff0),
          (0x1f600, 0x1f650), (0, 0xd800), (0xe000, 0x110000)]


def find_disputed(normalizers):
    """Characters on which the package's own tables disagree: its NFC has those of Unicode 9 and
    orders no younger mark, its Digits those of 17, its regexes and we those of 16."""
    nfc = normalizers.NFC()
    disputed = {*range(0x10efd, 0x10f00), *range(0x11db0, 0x11df0), *range(0x11f41, 0x11f43),
                0x1e08f, *range(0x1e4ec, 0x1e4f0)}
    for code in range(0x300, 0x110000):
        char = chr(code)
        if unicodedata.combining(char) and nfc.normalize_str("\u0345" + char)[0] == "\u0345":
            disputed.add(code)
    return disputed - {0x345}


def random_text(rng, disputed):
    parts = []
    for _ in range(rng.choice([0, 1, 2, 4, 8, 16, 32])):
        kind = rng.random()
        if kind < 0.6:
            parts.append(rng.choice(SPICES))
        elif kind < 0.8:
            low, high = rng.choice(RANGES)
            codes = [rng.randrange(low, high) for _ in range(rng.randint(1, 6))]
            parts += [chr(code) for code in codes if code not in disputed]
        else:
            parts.append(rng.choice(SPICES) * rng.randint(2, 9))
    return "".join(parts)


def compare(ours, theirs, name, text):
    """Prints what differs; True when nothing does."""
    want = theirs.encode(text).ids
    got = ours.encode(text)
    if got != want:
        print(f"{name}: {text!r}: ids {got[:40]}, want {want[:40]}")
        return False
    for skip in (True, False):
        back, wanted = ours.decode(want, skip), theirs.decode(want, skip_special_tokens=skip)
        if back != wanted:
            print(f"{name}: {want[:40]}: decoded {back!r}, want {wanted!r}")
            return False
    return True


def compare_random_ids(ours, theirs, name, rng):
    """Ids no text gives: broken UTF-8, lone byte tokens."""
    ids = [rng.randrange(theirs.get_vocab_size()) for _ in range(rng.randint(0, 12))]
    if rng.random() < 0.5:
        ids = [rng.randrange(min(300, theirs.get_vocab_size())) for _ in ids]
    back, wanted = ours.decode(ids, False), theirs.decode(ids, skip_special_tokens=False)
    if back != wanted:
        print(f"{name}: {ids}: decoded {back!r}, want {wanted!r}")
    return back == wanted


def open_all(lib, tokenizers):
    """[(name, our tokenizer, theirs)] of all fixtures and variants."""
    kinds = {}
    for kind in KINDS:
        with open(f"{DATA}/fixtures/tokenizers/{kind}/tokenizer.json", encoding="utf-8") as file:
            kinds[kind] = json.load(file)
    opened = []
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tokenizer.json")
        for name, content in [*kinds.items(), *variants(kinds)]:
            with open(path, "w", encoding="utf-8") as file:
                json.dump(content, file)
            opened.append((name, Tokenizer(lib, path), tokenizers.Tokenizer.from_file(path)))
    return opened


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    try:
        import tokenizers
    except ImportError:
        print("skipped: no Python package tokenizers")
        return 77
    if os.environ.get("FP8_SANITIZED") == "1":
        print("skipped: a sanitized library")
        return 77
    if not os.path.exists(LIBRARY) or not os.path.exists(f"{DATA}/fixtures/tokenizers"):
        print(f"skipped: no {LIBRARY} or no fixtures in {DATA}")
        return 77
    lib = ctypes.CDLL(LIBRARY)
    lib.fp8_last_error.restype = ctypes.c_char_p
    opened = open_all(lib, tokenizers)
    disputed = find_disputed(tokenizers.normalizers)

    failed = count = 0
    model = f"{DATA}/models/sample-1m/tokenizer.json"
    with open(f"{DATA}/text/wikitext2_test.txt", encoding="utf-8", newline="") as file:
        text = file.read()
    failed += not compare(Tokenizer(lib, model), tokenizers.Tokenizer.from_file(model),
                          "sample-1m: WikiText-2", text)
    for name, ours, theirs in opened:
        failed += not compare(ours, theirs, name + ": WikiText-2", text[:100000])
    end = time.monotonic() + seconds
    while time.monotonic() < end and failed < 10:
        text = random_text(rng, disputed)
        for name, ours, theirs in opened:
            failed += not compare(ours, theirs, name, text)
            failed += not compare_random_ids(ours, theirs, name, rng)
        count += 1
    print(f"{count} texts x {len(opened)} tokenizers, {failed} failures")
    return 1 if failed else 0


sys.exit(main())
