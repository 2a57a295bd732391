"""Hugging Face generate on what `fp8calib bench generate` times: random weights of a known model's
sizes in BF16, a static batch of prompts padded on the left, greedy, a forced number of new tokens.

    python3 bench/generate_peers.py [--preset gemma-7b|llama-8b|tiny] [--requests 64]
        [--prompt-least 32] [--prompt-most 128] [--new-tokens 896] [--warm-up 4] [--device cuda]

Needs torch and transformers, and a CUDA GPU unless another device is named. The weights are made on
the device; a short run before the timed one loads kernels. Prints when it was ready, how far it is
every 128 tokens, so that a run that is cut says something too, and at the end what it ran on, the
wall time of one generate() call, and ms a token with the prompts' share in it. Lengths are drawn as
bench generate draws them."""
import argparse
import sys
import time

BEGAN = time.perf_counter()
sys.path.insert(0, __file__.rsplit("/", 1)[0])
from random_fp8 import DEVIATION, PRESETS, config_of  # noqa: E402

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


def note(text):
    print(f"{time.perf_counter() - BEGAN:.1f} s: {text}", flush=True)


def make_model(args):
    """Matrices of normal numbers, vectors as their modules make them. The modules' own draws, one
    matrix at a time and some of them twice, are left out."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = config_of(PRESETS[args.preset])
    del config["quantization_config"]
    config = AutoConfig.for_model(config.pop("model_type"), **config)
    torch.manual_seed(1)
    with torch.device(args.device), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16,
                                                 attn_implementation=args.attention).eval()
    model.tie_weights()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, DEVIATION)
    return model, config


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--preset", choices=PRESETS, default="gemma-7b")
    p.add_argument("--requests", type=int, default=64)
    p.add_argument("--prompt-least", type=int, default=32)
    p.add_argument("--prompt-most", type=int, default=128)
    p.add_argument("--new-tokens", type=int, default=896)
    p.add_argument("--warm-up", type=int, default=4)
    p.add_argument("--attention", default="sdpa")
    p.add_argument("--device", default="cuda")
    args = p.parse_args()

    import torch
    import transformers

    cuda = args.device == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    note("imported")
    model, config = make_model(args)
    wait()
    note("weights made")
    ids = prompts_of(args, config.vocab_size)
    longest = max(map(len, ids))
    padded = torch.tensor([[0] * (longest - len(x)) + x for x in ids], device=args.device)
    mask = torch.tensor([[0] * (longest - len(x)) + [1] * len(x) for x in ids],
                        device=args.device)

    def generate(count):
        class Progress(transformers.StoppingCriteria):
            def __call__(self, input_ids, scores, **kwargs):
                made = input_ids.shape[1] - longest
                if made % 128 == 0 or made == 1:
                    note(f"{made} of {count} tokens, {time.perf_counter() - begin:.2f} s")
                return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=args.device)

        wait()
        begin = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(padded, attention_mask=mask, do_sample=False, pad_token_id=0,
                                 min_new_tokens=count, max_new_tokens=count,
                                 stopping_criteria=[Progress()])
        wait()
        assert out.shape[1] == longest + count
        return time.perf_counter() - begin

    note(f"warm-up: {generate(args.warm_up):.2f} s")
    seconds = generate(args.new_tokens)
    name = torch.cuda.get_device_name() if cuda else args.device
    peak = f", peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if cuda else ""
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}, "
          f"{args.preset} sizes, BF16, {args.attention}, batch {args.requests} padded to {longest}, "
          f"{args.new_tokens} new: {seconds:.2f} s, "
          f"{args.requests * args.new_tokens / seconds:.0f} tokens/s, "
          f"{1e3 * seconds / args.new_tokens:.2f} ms a token{peak}")


if __name__ == "__main__":
    main()
