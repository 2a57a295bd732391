/* cli/cmd_explain.c - which attention backend would serve a shape, and why each other would not. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention/attention.h"
#include "cli/cli.h"

typedef struct options {
    cli_common common;
    const char *shape, *layout, *mask, *mask_shape, *window, *bias, *bias_shape, *softcap, *sink;
    const char *dtype, *kv_dtype, *quantize, *granularity, *out, *backend;
    int padding, hadamard, exact_p, fast, lse, amax;
} options;
static const options defaults = {
    .common = CLI_COMMON_DEFAULTS, .layout = "bshd_bshd_bshd", .mask = "none",
    .mask_shape = "11ss", .bias = "none", .bias_shape = "11ss", .sink = "none", .dtype = "e4m3",
    .quantize = "none", .granularity = "tensor", .out = "bf16", .backend = "auto",
};

#define TEXT(name, field, value, help)                                                             \
    {name, 0, CLI_TEXT, offsetof(options, field), value, 1, 0, help}
#define CHOICE(name, field, value, help)                                                           \
    {name, 0, CLI_CHOICE, offsetof(options, field), value, 0, 0, help}
#define FLAG(name, field, help) {name, 0, CLI_FLAG, offsetof(options, field), NULL, 0, 0, help}

#define MASKS "none|causal|causal-bottom-right|arbitrary"
#define BIASES "none|pre|post|alibi"
#define BIAS_SHAPES "11ss|1hss|b1ss|bhss"
#define SINKS "none|off-by-one|learnable"
#define DTYPES "e4m3|bf16|f16|f32"
#define QUANTIZES "none|given|current"
#define GRANULARITIES "tensor|head|batch-head"
#define BACKENDS "auto|flash|fused|unfused|cpu"

static const cli_option table[] = {
    TEXT("--shape", shape, "B,H,HKV,D[,DV],SQ[,SKV]",
         "sequences, heads, KV heads, head size, queries, keys; six numbers end in SKV, seven have "
         "a head size of values too"),
    TEXT("--layout", layout, "NAME",
         "bshd_bshd_bshd, bs3hd, sbhd_sb2hd, thd_thd_thd, bhsd_bhsd_bhsd ..."),
    FLAG("--padding", padding, "lengths come with a layout that is not packed"),
    CHOICE("--mask", mask, MASKS, "causal is top-left"),
    CHOICE("--mask-shape", mask_shape, BIAS_SHAPES, "of an arbitrary mask"),
    TEXT("--window", window, "LEFT,RIGHT", "keys beside the diagonal; -1: no bound"),
    CHOICE("--bias", bias, BIASES, "pre: before the scale, post: after it"),
    CHOICE("--bias-shape", bias_shape, BIAS_SHAPES, "its leading dimensions"),
    TEXT("--softcap", softcap, "X", "S = X tanh(S / X)"),
    CHOICE("--sink", sink, SINKS, "what the sum of exponentials gains"),
    CHOICE("--dtype", dtype, DTYPES, "of Q, and of K and V"),
    CHOICE("--kv-dtype", kv_dtype, DTYPES, "of K and V, where it is another one"),
    CHOICE("--quantize", quantize, QUANTIZES, "Q, K, V to E4M3 inside, by given or own descales"),
    FLAG("--hadamard", hadamard, "Q and K rotated before they are quantized"),
    CHOICE("--granularity", granularity, GRANULARITIES, "of the descales"),
    CHOICE("--out", out, DTYPES, "of O"),
    FLAG("--exact-p", exact_p, "P is not rounded to E4M3, as FP8 kernels do"),
    FLAG("--fast", fast, "sums of P V as the tensor cores keep them, not promoted to F32"),
    FLAG("--lse", lse, "the log of the sum of exponentials too"),
    FLAG("--amax", amax, "the amax of P and O too"),
    CHOICE("--backend", backend, BACKENDS, "force one"),
};

/* ---- from words to options ------------------------------------------------------------------- */

/* Index of `word` in "a|b|c", which the parser has checked. */
static int choice(const char *words, const char *word) {
    int index = 0;
    for (const char *p = words; p; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL, index++)
        if (strncmp(p, word, strlen(word)) == 0 && strcspn(p, "|") == strlen(word)) return index;
    return 0;
}

static fp8_dtype dtype_of(const char *word) {
    static const fp8_dtype types[] = {FP8_DTYPE_E4M3, FP8_DTYPE_BF16, FP8_DTYPE_F16, FP8_DTYPE_F32};
    return types[choice(DTYPES, word)];
}

/* Reads up to `cap` integers parted by commas; their number, -1 when the text is none. */
static int read_integers(const char *text, int64_t *out, int cap) {
    for (int n = 0; n < cap;) {
        char *end = NULL;
        errno = 0;
        out[n++] = strtoll(text, &end, 10);
        if (end == text || errno || (*end && *end != ',')) return -1;
        if (!*end) return n;
        text = end + 1;
    }
    return -1;
}

static fp8_status read_shape(fp8_attention_options *a, const char *text) {
    int64_t x[7];
    const int n = text ? read_integers(text, x, 7) : 0;

    if (n < 5)
        return FP8_FAIL(FP8_EINVAL, "--shape '%s': expected B,H,HKV,D[,DV],SQ[,SKV]",
                        text ? text : "");
    for (int i = 0; i < n; i++)
        if (x[i] < 0 || x[i] > INT32_MAX)
            return FP8_FAIL(FP8_EINVAL, "--shape '%s': %lld, expected 0 to %d", text,
                            (long long)x[i], INT32_MAX);
    a->num_seqs = x[0];
    a->num_heads = (int32_t)x[1];
    a->num_kv_heads = (int32_t)x[2];
    a->d_qk = (int32_t)x[3];
    a->d_v = (int32_t)(n == 7 ? x[4] : x[3]);
    a->max_q = n == 7 ? x[5] : x[4];
    a->max_kv = n == 5 ? x[4] : x[n - 1];
    return FP8_OK;
}

static fp8_status read_numbers(fp8_attention_options *a, const options *o) {
    int64_t window[2];
    char *end = NULL;
    if (o->window) {
        if (read_integers(o->window, window, 2) != 2 || window[0] < -1 || window[1] < -1)
            return FP8_FAIL(FP8_EINVAL, "--window '%s': expected LEFT,RIGHT of -1 or more",
                            o->window);
        a->window_left = window[0];
        a->window_right = window[1];
    }
    if (o->softcap) {
        a->softcap = strtof(o->softcap, &end);
        if (end == o->softcap || *end || !(a->softcap >= 0))
            return FP8_FAIL(FP8_EINVAL, "--softcap '%s': expected 0 or a positive number",
                            o->softcap);
    }
    return FP8_OK;
}

static fp8_status read_options(fp8_attention_options *a, const options *o) {
    const fp8_attention_options start = FP8_ATTENTION_OPTIONS;
    fp8_status st;

    *a = start;
    FP8_TRY(read_shape(a, o->shape));
    FP8_TRY(read_numbers(a, o));
    FP8_TRY(fp8_attention_layout_parse(&a->layout, o->layout));
    a->padding = o->padding;
    a->mask = (fp8_attention_mask)choice(MASKS, o->mask);
    a->mask_shape = (fp8_attention_bias_shape)choice(BIAS_SHAPES, o->mask_shape);
    a->bias = (fp8_attention_bias)choice(BIASES, o->bias);
    a->bias_shape = (fp8_attention_bias_shape)choice(BIAS_SHAPES, o->bias_shape);
    a->sink = (fp8_attention_sink)choice(SINKS, o->sink);
    a->q_dtype = dtype_of(o->dtype);
    a->kv_dtype = dtype_of(o->kv_dtype ? o->kv_dtype : o->dtype);
    a->o_dtype = dtype_of(o->out);
    a->quantize = (fp8_attention_quantize)choice(QUANTIZES, o->quantize);
    a->hadamard = o->hadamard;
    a->granularity = (fp8_attention_granularity)choice(GRANULARITIES, o->granularity);
    a->quantize_p = !o->exact_p && (a->kv_dtype == FP8_DTYPE_E4M3 || a->quantize);
    a->precision = o->fast ? FP8_ATTENTION_FAST : FP8_ATTENTION_EXACT;
    a->want_lse = o->lse;
    a->want_amax = o->amax;
    a->backend = (fp8_attention_backend)choice(BACKENDS, o->backend);
done:
    return st;
}

/* ---- the device, here or described ----------------------------------------------------------- */

/* "sm_90" or "sm_90,cudnn=9.19": 0 when the text is no such thing. */
static int describe_device(fp8_attention_target *t, const char *name) {
    const char *text = name;
    int capability = 0, major = 9, minor = 19, used = 0;
    if (sscanf(text, "sm_%d%n", &capability, &used) != 1 || capability < 10) return 0;
    text += used;
    if (*text) {
        if (sscanf(text, ",cudnn=%d.%d%n", &major, &minor, &used) != 2 || text[used]) return 0;
    }
    if (major < 1 || major > 99 || minor < 0 || minor > 99) return 0;
    *t = (fp8_attention_target){FP8_PLACE_CUDA, capability,
                                (size_t)major * 10000 + (size_t)minor * 100, name};
    return 1;
}

/* ---- output ---------------------------------------------------------------------------------- */

typedef struct explanation {
    fp8_attention_backend chosen;
    fp8_attention_verdict verdicts[FP8_ATTENTION_BACKENDS];
    fp8_attention_target target;
    int described;
    char configuration[2048]; /* lines of "what: value" */
} explanation;

static const char *chosen_name(const explanation *e) {
    return e->chosen == FP8_BACKEND_AUTO ? "none" : fp8_attention_backend_name(e->chosen);
}

static void print_text(const explanation *e) {
    const fp8_attention_target *t = &e->target;
    printf("backend: %s\ndevice: %s", chosen_name(e), t->name);
    if (t->place == FP8_PLACE_CUDA)
        printf(", compute capability %d, cuDNN %zu.%zu.%zu", t->capability,
               t->cudnn_version / 10000, t->cudnn_version / 100 % 100, t->cudnn_version % 100);
    printf("\nlibraries: %s\n%s\n\n", fp8_attention_libraries(), e->configuration);
    for (int i = 0; i < FP8_ATTENTION_BACKENDS; i++)
        printf("%-8s %s\n", fp8_attention_backend_name(e->verdicts[i].backend),
               e->verdicts[i].reason);
}

/* The configuration as an object: "what": "value". */
static void add_configuration(cJSON *doc, char *lines) {
    cJSON *object = cJSON_AddObjectToObject(doc, "configuration");
    for (char *line = lines; line && *line;) {
        char *end = strchr(line, '\n'), *value = strstr(line, ": ");
        if (end) *end = 0;
        if (value) {
            *value = 0;
            cJSON_AddStringToObject(object, line, value + 2);
        }
        line = end ? end + 1 : NULL;
    }
}

static fp8_status print_json(explanation *e) {
    cJSON *doc = cJSON_CreateObject(), *device, *list, *row;
    fp8_status st;

    if (e->chosen == FP8_BACKEND_AUTO) cJSON_AddNullToObject(doc, "backend");
    else cJSON_AddStringToObject(doc, "backend", chosen_name(e));
    device = cJSON_AddObjectToObject(doc, "device");
    cJSON_AddStringToObject(device, "name", e->target.name);
    cJSON_AddBoolToObject(device, "described", e->described);
    cJSON_AddNumberToObject(device, "compute_capability", e->target.capability);
    cJSON_AddNumberToObject(device, "cudnn_version", (double)e->target.cudnn_version);
    cJSON_AddStringToObject(doc, "libraries", fp8_attention_libraries());
    add_configuration(doc, e->configuration);
    list = cJSON_AddArrayToObject(doc, "backends");
    for (int i = 0; i < FP8_ATTENTION_BACKENDS; i++) {
        row = cJSON_CreateObject();
        cJSON_AddItemToArray(list, row);
        cJSON_AddStringToObject(row, "name", fp8_attention_backend_name(e->verdicts[i].backend));
        cJSON_AddBoolToObject(row, "serves", e->verdicts[i].serves);
        FP8_TRY(cli_json_add_text(row, "reason", e->verdicts[i].reason,
                                  strlen(e->verdicts[i].reason)));
    }
    st = cli_json_print(doc);
done:
    cJSON_Delete(doc);
    return st;
}

static fp8_status run(const void *opts, const cli_list *operands) {
    const options *o = opts;
    fp8_attention_options a;
    fp8_device *d = NULL;
    explanation e = {0};
    fp8_status st = FP8_OK;

    if (strcmp(operands->items[0], "attention") != 0)
        return FP8_FAIL(FP8_EINVAL, "explain: '%s', expected attention", operands->items[0]);
    FP8_TRY(read_options(&a, o));
    e.described = describe_device(&e.target, o->common.device);
    if (!e.described) {
        FP8_TRY(cli_device_open(&d, &o->common));
        e.target = fp8_attention_target_of(d);
    }
    FP8_TRY(fp8_attention_describe(e.configuration, sizeof e.configuration, &a));
    FP8_TRY(fp8_attention_explain(&e.chosen, e.verdicts, d, &e.target, &a));
    if (o->common.json) st = print_json(&e);
    else print_text(&e);
done:
    fp8_device_destroy(d);
    return st;
}

const cli_command cli_cmd_explain = {
    .name = "explain",
    .purpose = "say which attention backend serves a shape, and why",
    .usage = "attention --shape B,H,HKV,D,S [options]",
    .about =
        "Asks every attention backend (flash, fused, unfused, cpu) about the options and\n"
        "prints the one that a plan would take, the whole configuration, and of each\n"
        "backend what it says: that it serves, or why it does not. --device may name a\n"
        "GPU that is not here: sm_90, or sm_90,cudnn=9.19; then only what is known of\n"
        "it counts. FP8_FLASH_ATTN, FP8_FUSED_ATTN, FP8_UNFUSED_ATTN = 0|1 and\n"
        "FP8_ATTENTION_BACKEND count as they do for a plan.",
    .examples = "  fp8calib explain attention --shape 1,24,24,128,4224\n"
                "  fp8calib explain attention --shape 2,32,4,128,8192 --mask causal \\\n"
                "      --window 4095,0 --device sm_90,cudnn=9.19\n"
                "  fp8calib explain attention --shape 4,16,16,64,512 --dtype bf16 --bias alibi\n",
    .options = table,
    .num_options = sizeof table / sizeof *table,
    .min_operands = 1,
    .max_operands = 1,
    .operand = "attention",
    .defaults = &defaults,
    .options_bytes = sizeof defaults,
    .run = run,
};
