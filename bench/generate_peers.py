"""Hugging Face generate on what `fp8calib bench generate` times: random weights of a known model's
sizes in BF16, a static batch of prompts padded on the left, greedy, a forced number of new tokens.

    python3 bench/generate_peers.py [--preset gemma-7b|llama-8b] [--requests 64] [--prompt-least 32]
        [--prompt-most 128] [--new-tokens 896] [--warm-up 4]

Needs a CUDA GPU, torch and transformers. The weights are made on the GPU; a short run before the
timed one loads kernels. Prints what it ran on, the wall time of one generate() call, and ms a
token with the prompts' share in it. Lengths are drawn as bench generate draws them."""
import argparse
import sys
import time

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from random_fp8 import PRESETS, config_of  # noqa: E402

MASK = (1 << 64) - 1


def draw(state):
    """xorshift64, as bench/bench_generate.c has it."""
    state ^= state << 13 & MASK
    state ^= state >> 7
    state ^= state << 17 & MASK
    return state


def prompts_of(args, vocab):
    state, all_ids = 88172645463325252, []
    for _ in range(args.requests):
        state = draw(state)
        length = args.prompt_least + state % (args.prompt_most - args.prompt_least + 1)
        ids = []
        for _ in range(args.prompt_most):
            state = draw(state)
            ids.append(state % vocab)
        all_ids.append(ids[:length])
    return all_ids


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--preset", choices=PRESETS, default="gemma-7b")
    p.add_argument("--requests", type=int, default=64)
    p.add_argument("--prompt-least", type=int, default=32)
    p.add_argument("--prompt-most", type=int, default=128)
    p.add_argument("--new-tokens", type=int, default=896)
    p.add_argument("--warm-up", type=int, default=4)
    p.add_argument("--attention", default="sdpa")
    args = p.parse_args()

    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    config = config_of(PRESETS[args.preset])
    del config["quantization_config"]
    config = AutoConfig.for_model(config.pop("model_type"), **config)
    torch.manual_seed(1)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16,
                                                 attn_implementation=args.attention).eval()
    ids = prompts_of(args, config.vocab_size)
    longest = max(map(len, ids))
    padded = torch.tensor([[0] * (longest - len(x)) + x for x in ids], device="cuda")
    mask = torch.tensor([[0] * (longest - len(x)) + [1] * len(x) for x in ids], device="cuda")

    def generate(count):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(padded, attention_mask=mask, do_sample=False, pad_token_id=0,
                                 min_new_tokens=count, max_new_tokens=count)
        torch.cuda.synchronize()
        assert out.shape[1] == longest + count
        return time.perf_counter() - begin

    generate(args.warm_up)
    seconds = generate(args.new_tokens)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, transformers "
          f"{transformers.__version__}, {args.preset} sizes, BF16, {args.attention}, batch "
          f"{args.requests} padded to {longest}, {args.new_tokens} new: {seconds:.2f} s, "
          f"{args.requests * args.new_tokens / seconds:.0f} tokens/s, "
          f"{1e3 * seconds / args.new_tokens:.2f} ms a token, peak "
          f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
