"""tests/fuzz/corpus.py OUT - writes the seeds of each fuzz target into OUT/TARGET/N: small inputs,
accepted and not, and what once was trouble."""
import gzip
import json
import os
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
SAMPLE = os.path.join(HERE, "../../examples/sample-model")


def text(document):
    return json.dumps(document, ensure_ascii=False).encode()


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors():
    """A header, then the number of bytes after it in two bytes."""
    headers = [
        ({}, 0),
        ({"a": tensor("F32", [2, 3], 0, 24)}, 24),
        ({"a": tensor("F8_E4M3", [4], 0, 4), "b": tensor("BF16", [], 4, 6)}, 6),
        ({"__metadata__": {"format": "pt", "\u00e9": "\n"}, "w": tensor("U8", [0, 5], 0, 0)}, 0),
        ({"b": tensor("I64", [1], 8, 16), "a": tensor("F64", [1], 0, 8)}, 16),
    ]
    return [text(h) + struct.pack("<H", n) for h, n in headers]


def documents():
    return [b"{}", b"[]", b" [1, -2.5e3, true, false, null, \"\\u00e9\\ud83d\\ude00\\n\"] ",
            b'{"a": {"b": [{"c": []}]}, "d": 9223372036854775807}', b"[" * 16 + b"]" * 16,
            b'"x"', b"1e308", b'{"a": 1, "a": 2}', b"[1e999]", b'["\\ud800"]']


def configurations():
    with open(os.path.join(SAMPLE, "config.json"), "rb") as f:
        sample = json.load(f)
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 8192}
    weights = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True,
               "dynamic": False}
    tensors = {"quant_method": "compressed-tensors", "format": "float-quantized",
               "quantization_status": "compressed", "ignore": ["lm_head", "re:.*gate$"],
               "kv_cache_scheme": weights,
               "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights,
                                             "input_activations": weights}}}
    blocks = {"quant_method": "fp8", "activation_scheme": "dynamic",
              "weight_block_size": [128, 128]}
    modelopt = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8",
                "exclude_modules": ["lm_head"]}
    gpt2 = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128,
            "vocab_size": 100, "architectures": ["GPT2LMHeadModel"]}
    gemma = {**sample, "model_type": "gemma", "hidden_activation": "gelu_pytorch_tanh",
             "architectures": ["GemmaForCausalLM"]}
    return [text(d) for d in (
        sample, gpt2, gemma, {**sample, "rope_scaling": llama3},
        {**sample, "model_type": "mistral", "sliding_window": 32},
        {**sample, "quantization_config": tensors}, {**sample, "quantization_config": blocks},
        {**sample, "quantization_config": modelopt}, {"quantization": modelopt},
        {"quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}})]


def tokenizers():
    """A tokenizer.json, a byte 0xff and a text."""
    pieces = ["<unk>", "<s>", "a", "b", "ab", "\u2581", "\u2581a", "<0x41>", "\u0120", "\u0120a"]
    model = {"type": "BPE", "vocab": {p: i for i, p in enumerate(pieces)}, "merges": ["a b"],
             "unk_token": "<unk>", "byte_fallback": True, "ignore_merges": False}
    added = [{"id": 0, "content": "<unk>", "special": True},
             {"id": 1, "content": "<s>", "special": True, "lstrip": True}]
    split = {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}| ?\\p{L}+|\\s+"},
             "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    spelled = [
        {"model": model},
        {"model": model, "added_tokens": added, "normalizer": replace,
         "decoder": {"type": "Sequence", "decoders": [
             {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
             {"type": "ByteFallback"}, {"type": "Fuse"}]}},
        {"model": {**model, "byte_fallback": False}, "decoder": level,
         "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}},
        {"model": {**model, "merges": [["a", "b"]]}, "normalizer": {"type": "NFC"},
         "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True},
         "decoder": level,
         "post_processor": {"type": "TemplateProcessing", "pair": [],
                            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                       {"Sequence": {"id": "A", "type_id": 0}}],
                            "special_tokens": {"<s>": {"id": "<s>", "ids": [1],
                                                       "tokens": ["<s>"]}}}},
    ]
    words = "a b ab  a1234 \u00e9<s>ba\r\n".encode()
    return [text(d) for d in spelled] + [text(d) + b"\xff" + words for d in spelled]


def records():
    """The header of a record, a byte 0xff and its data."""
    def one(steps, total, points, recipe=b"{}"):
        entries, data = {}, b""

        def add(name, dtype, shape, more):
            nonlocal data
            entries[name] = tensor(dtype, shape, len(data), len(data) + len(more))
            data += more
        add("tokens", "I64", [steps], struct.pack(f"<{steps}q", *range(steps)))
        for p in points:
            rows = struct.pack(f"<{steps}f", *range(1, steps + 1))
            add(f"{p}.amax_history", "F32", [steps], rows)
            add(f"{p}.amax_history_without_first", "F32", [steps], rows)
            add(f"{p}.nonfinite", "U32", [steps], bytes(4 * steps))
        add("recipe", "U8", [len(recipe)], recipe)
        meta = {"format": "fp8calib.record", "version": "1", "source_bytes": "10",
                "source_mtime": "-5", "source_crc32": "7", "steps_done": str(steps),
                "steps_total": str(total), "points": "\n".join(points)}
        return text({"__metadata__": meta, **entries}) + b"\xff" + data
    return [one(2, 3, ["model.layers.0.mlp.up_proj.input", "k"]), one(0, 4, ["x"]), one(1, 1, []),
            one(3, 3, ["a"], b'{"batch": 8}'), one(0, 1 << 40, ["x"])]


def texts():
    """Arrays of numpy, and gzip."""
    def npy(header, data, version=1):
        header = header.encode() + b"\n"
        size = struct.pack("<H" if version == 1 else "<I", len(header))
        return b"\x93NUMPY" + bytes([version, 0]) + size + header + data
    shape = "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }"
    return [npy(shape % ("<i4", "2, 3"), bytes(24)), npy(shape % ("|u1", "5,"), b"abcde"),
            npy(shape % ("<u8", "0,"), b""), npy(shape % ("<i2", "1, 1"), b"ab", 2),
            gzip.compress(b"The kernel allocates memory. " * 20, mtime=0),
            gzip.compress(b"", mtime=0), gzip.compress(b"a", mtime=0) * 2]


TARGETS = {"safetensors": safetensors, "json": documents, "config": configurations,
           "tokenizer": tokenizers, "record": records, "textdata": texts}


def write(out):
    for name, seeds in TARGETS.items():
        os.makedirs(os.path.join(out, name), exist_ok=True)
        for i, seed in enumerate(seeds()):
            with open(os.path.join(out, name, str(i)), "wb") as f:
                f.write(seed)


if __name__ == "__main__":
    write(sys.argv[1])
