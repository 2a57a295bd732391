/* cli/cmd_bench.c - the benchmarks of bench/ by name. */
#include <stdio.h>
#include <string.h>

#include "bench/bench.h"
#include "cli/cli.h"

typedef struct options {
    cli_common common;
    cli_list shapes;
    int64_t rounds, hidden, ffn_hidden, heads, seq, batch, context;
    int64_t requests, prompt_least, prompt_most, new_tokens;
    const char *csv, *svg, *dtype;
    int force;
} options;
static const options defaults = {.common = CLI_COMMON_DEFAULTS, .rounds = 40, .hidden = 4096,
                                 .ffn_hidden = 16384, .heads = 32, .seq = 256, .batch = 32,
                                 .dtype = "all", .requests = 64, .prompt_least = 32,
                                 .prompt_most = 128, .new_tokens = 896};

static const cli_option table[] = {
    {"--shape", 0, CLI_LIST, offsetof(options, shapes), "SHAPE", 1, 0,
     "what to measure, in the benchmark's own form; default: its published list"},
    {"--rounds", 0, CLI_INT, offsetof(options, rounds), "N", 5, 100000,
     "how often each provider is timed"},
    {"--dtype", 0, CLI_TEXT, offsetof(options, dtype), "bf16|fp8|all", 1, 0,
     "block: of the Linears that are measured"},
    {"--hidden", 0, CLI_INT, offsetof(options, hidden), "N", 16, 1 << 20, "block: width"},
    {"--ffn-hidden", 0, CLI_INT, offsetof(options, ffn_hidden), "N", 16, 1 << 20,
     "block: width of the MLP"},
    {"--heads", 0, CLI_INT, offsetof(options, heads), "N", 1, 1 << 16, "block: heads"},
    {"--seq", 0, CLI_INT, offsetof(options, seq), "N", 1, 1 << 24, "block: tokens of a sequence"},
    {"--batch", 0, CLI_INT, offsetof(options, batch), "N", 1, 1 << 20, "block: sequences"},
    {"--context", 0, CLI_INT, offsetof(options, context), "N", 0, 1 << 20,
     "block: tokens before them, in pages"},
    {"--requests", 0, CLI_INT, offsetof(options, requests), "N", 1, 1 << 16,
     "generate: prompts at once"},
    {"--prompt-least", 0, CLI_INT, offsetof(options, prompt_least), "N", 1, 1 << 24,
     "generate: tokens of the shortest prompt"},
    {"--prompt-most", 0, CLI_INT, offsetof(options, prompt_most), "N", 1, 1 << 24,
     "generate: and of the longest"},
    {"--new-tokens", 0, CLI_INT, offsetof(options, new_tokens), "N", 1, 1 << 24,
     "generate: ids made for each"},
    {"--csv", 0, CLI_TEXT, offsetof(options, csv), "FILE", 1, 0, "write the table as CSV too"},
    {"--svg", 0, CLI_TEXT, offsetof(options, svg), "FILE", 1, 0, "and as a chart"},
    {"--force", 0, CLI_FLAG, offsetof(options, force), NULL, 0, 0, "replace these files"},
};

static const struct {
    const char *name;
    fp8_status (*run)(fp8_bench_table *, fp8_device *, const fp8_bench_options *);
} benches[] = {
    {"attention", fp8_bench_attention},
    {"flux", fp8_bench_flux},
    {"decode", fp8_bench_decode},
    {"linear", fp8_bench_linear},
    {"linear-large", fp8_bench_linear_large},
    {"quant", fp8_bench_quant},
    {"block", fp8_bench_block},
    {"append", fp8_bench_append},
    {"generate", fp8_bench_generate},
};
enum { NUM_BENCHES = sizeof benches / sizeof *benches };

static fp8_status find_bench(int *out, const char *name) {
    const char *names[NUM_BENCHES], *near;
    for (int i = 0; i < NUM_BENCHES; i++) {
        names[i] = benches[i].name;
        if (strcmp(names[i], name) != 0) continue;
        *out = i;
        return FP8_OK;
    }
    near = cli_nearest(name, names, NUM_BENCHES);
    if (near)
        return FP8_FAIL(FP8_EINVAL, "bench: unknown benchmark '%s'; did you mean '%s'?", name,
                        near);
    return FP8_FAIL(FP8_EINVAL, "bench: unknown benchmark '%s'; 'fp8calib help bench' lists them",
                    name);
}

static fp8_status find_dtype(fp8_bench_dtype *out, const char *name) {
    static const char *const names[] = {"all", "bf16", "fp8"}; /* as fp8_bench_dtype */
    for (int i = 0; i < 3; i++) {
        if (strcmp(names[i], name) != 0) continue;
        *out = (fp8_bench_dtype)i;
        return FP8_OK;
    }
    return FP8_FAIL(FP8_EINVAL, "bench: --dtype '%s', expected bf16, fp8 or all", name);
}

static void note(const char *line) { cli_note("%s", line); }

static fp8_status write_files(const fp8_bench_table *t, const options *o) {
    fp8_status st = FP8_OK;
    if (o->csv) FP8_TRY(fp8_bench_write_csv(t, o->csv));
    if (o->svg) FP8_TRY(fp8_bench_write_svg(t, o->svg));
done:
    return st;
}

/* {"title": ..., "rows": [{"subject", "provider", a number a column, "note"}]}; null = none. */
static fp8_status print_json(const fp8_bench_table *t) {
    cJSON *doc = cJSON_CreateObject(), *rows;
    fp8_status st;
    FP8_TRY(cli_json_add_text(doc, "title", t->title, strlen(t->title)));
    rows = cJSON_AddArrayToObject(doc, "rows");
    for (int64_t i = 0; i < t->num_rows; i++) {
        const fp8_bench_row *r = &t->rows[i];
        cJSON *row = cJSON_CreateObject();
        cJSON_AddItemToArray(rows, row);
        FP8_TRY(cli_json_add_text(row, "subject", r->subject, strlen(r->subject)));
        FP8_TRY(cli_json_add_text(row, "provider", r->provider, strlen(r->provider)));
        for (int c = 0; c < t->num_columns; c++) /* cJSON prints NaN as null */
            cJSON_AddNumberToObject(row, t->columns[c].name, r->value[c]);
        FP8_TRY(cli_json_add_text(row, "note", r->note, strlen(r->note)));
    }
    FP8_TRY(cli_json_print(doc));
done:
    cJSON_Delete(doc);
    return st;
}

static fp8_status run(const void *opts, const cli_list *operands) {
    const options *o = opts;
    fp8_bench_options bench = {.shapes = o->shapes.items, .num_shapes = o->shapes.count,
                               .rounds = o->rounds, .note = note,
                               .interrupted = cli_interrupted,
                               .block = {o->hidden, o->ffn_hidden, o->heads, o->seq, o->batch,
                                         o->context, FP8_BENCH_ALL},
                               .generate = {NULL, o->requests, o->prompt_least, o->prompt_most,
                                            o->new_tokens}};
    fp8_bench_table t = {0};
    fp8_device *device = NULL;
    fp8_status st, wrote;
    int which = 0;

    FP8_TRY(find_bench(&which, operands->items[0]));
    if ((operands->count == 2) != (benches[which].run == fp8_bench_generate))
        return FP8_FAIL(FP8_EINVAL, "bench %s: %s", benches[which].name,
                        operands->count == 2 ? "takes no model" : "needs a model");
    if (operands->count == 2) bench.generate.model = operands->items[1];
    FP8_TRY(find_dtype(&bench.block.dtype, o->dtype));
    if (o->csv) FP8_TRY(cli_check_output_file(o->csv, o->force));
    if (o->svg) FP8_TRY(cli_check_output_file(o->svg, o->force));
    FP8_TRY(cli_device_open(&device, &o->common));
    st = benches[which].run(&t, device, &bench);
    if (t.num_rows > 0) { /* what was measured before a failure is printed, too */
        wrote = o->common.json ? print_json(&t) : fp8_bench_write_text(&t, stdout);
        if (wrote == FP8_OK) wrote = write_files(&t, o);
        if (st == FP8_OK) st = wrote;
    }
done:
    fp8_bench_table_free(&t);
    fp8_device_destroy(device);
    return st;
}

const cli_command cli_cmd_bench = {
    .name = "bench",
    .purpose = "time what this library does against its peers",
    .usage = "BENCHMARK [--shape SHAPE]... [options]\n  fp8calib bench generate MODEL [options]",
    .about =
        "Runs each provider on the same random data, in turns, checks what it computed\n"
        "in the same program, and prints medians of CUDA graph replays with the limit\n"
        "that the device's measured rates set. A wrong result fails the command; a\n"
        "provider that cannot serve a shape says why.\n"
        "\n"
        "  attention  FP8 prefill: flash, cuDNN FP8 and BF16, unfused. SHAPE is\n"
        "             b,h,h_kv,d,s,none|causal|causal_br[,bias], d may be d_qk/d_v and\n"
        "             s s_q/s_kv\n"
        "  flux       attention of the Flux image model, BF16 in and out, so that\n"
        "             quantizing is inside the time; SHAPE is the length\n"
        "  decode     one new token a sequence over FP8 and BF16 pages beside reading alone;\n"
        "             SHAPE is b,h,h_kv,d,kv[,page]\n"
        "  linear     all Linears of one decode step: TB/s of weights beside cuBLASLt and\n"
        "             reading alone; SHAPE is gemma-7b,TOKENS or llama-8b,TOKENS\n"
        "  linear-large\n"
        "             FP8 products of many tokens: cuBLASLt's timed algorithm and its first\n"
        "             guess. SHAPE is M,N,K[,tensor|row|blocks][,fast]\n"
        "  quant      norms, activations, RoPE and casts to FP8, lookups: GB/s against\n"
        "             a copy, and us at 64 tokens; SHAPE is part of a line's name\n"
        "  block      a decoder block's forward (LayerNorm, GELU, biases, causal): plain\n"
        "             BF16, fused BF16, FP8, FP8 attention, fast sums; by --hidden,\n"
        "             --ffn-hidden, --heads, --seq, --batch; with --context a step of\n"
        "             decoding over pages, beside reading what it must read\n"
        "  append     norm, RoPE, cast and write into a paged cache: GB/s against a copy\n"
        "  generate   serving MODEL: --requests prompts of --prompt-least to\n"
        "             --prompt-most tokens, --new-tokens forced ids each\n",
    .examples = "  fp8calib bench attention --csv attention.csv --svg attention.svg\n"
                "  fp8calib bench attention --shape 1,32,8,128,8192,causal\n",
    .options = table,
    .num_options = sizeof table / sizeof *table,
    .min_operands = 1,
    .max_operands = 2,
    .operand = "a benchmark",
    .defaults = &defaults,
    .options_bytes = sizeof defaults,
    .run = run,
};
