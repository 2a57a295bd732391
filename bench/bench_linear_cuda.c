/* `bench linear`: the Linears of one decode step, weights that no cache holds. */
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench_chain.h"
#include "bench/bench_impl.h"
#include "core/cuda_check.h"
#include "core/half.h"
#include "quant/quant.h"

enum { LINEARS = CHAIN_LINEARS, MAX_TOKENS = 128, SAMPLES = 256, NUM_PROVIDERS = 6 };
static const int64_t block_codes = INT64_C(1) << 25; /* of random codes, which weights repeat */
static const double most_error = 5e-3; /* BF16 rounding is 1.7e-3, cuBLASLt's sums add to it */
/* Of a chain against its steps: sums that are 2^-13 apart move a code now and then by a step, three
 * times one after the other (tests/chain_problem.h); measured: see docs/NOTES.md. */
static const double most_chain_error = 6e-2;

typedef struct chain {
    const char *name;
    int64_t layers, n[LINEARS], k[LINEARS]; /* q k v, o, gate and up, down */
} chain;

static const chain chains[] = {
    {"gemma-7b", 28, {12288, 3072, 49152, 3072}, {3072, 4096, 3072, 24576}},
    {"llama-8b", 32, {6144, 4096, 28672, 4096}, {4096, 4096, 4096, 14336}},
};
enum { NUM_CHAINS = sizeof chains / sizeof *chains };
static const char *const default_shapes[] = {
    "gemma-7b,1",  "gemma-7b,8",   "gemma-7b,16", "gemma-7b,32", "gemma-7b,64", "gemma-7b,128",
    "llama-8b,1",  "llama-8b,8",   "llama-8b,16", "llama-8b,32", "llama-8b,64", "llama-8b,128",
};
enum { NUM_DEFAULT = sizeof default_shapes / sizeof *default_shapes };

/* The quantizing ones are whole steps without attention: RMS norm and quantize before q k v and
 * before gate and up, quantize before o, the residual in the products of o and down, SwiGLU and
 * quantize before down: at the store of gate and up where fp8_gemm_gates says so, else apart. The
 * same with a launch a layer from o to the next q k v (quant/chain.h), quantize before o apart. */
static const char *const provider_names[NUM_PROVIDERS] = {
    "skinny", "by default, quantizing", "cuBLASLt", "cuBLASLt, quantizing", "chains, quantizing",
    "reading alone",
};
enum { SKINNY, QUANTIZING, CUBLASLT, LT_QUANTIZING, CHAINED, READING };

enum { COL_MS, COL_LOW, COL_HIGH, COL_RATE, COL_SHARE, COL_ERROR, COL_MHZ, NUM_COLS };
static const fp8_bench_column columns[NUM_COLS] = {
    {"ms", 4}, {"ms_0.2", 4}, {"ms_0.8", 4}, {"TB/s", 4}, {"of_reading", 3}, {"rel_L2", 3},
    {"SM_MHz", 4},
};

/* Everything on the device but `codes`: the host's copy of the block. */
typedef struct problem {
    fp8_device *d;
    const chain *c;
    int64_t tokens;
    size_t weight_bytes, workspace_bytes;
    uint8_t *codes;
    uint16_t *out; /* host, one Linear's result */
    void *block, *weights, *y[LINEARS], *workspace;
    void *stream, *norm_weight, *codes_in, *codes_down; /* stream: residual, BF16 */
    float *descales[2], *in_scale;
    bench_chain *chains; /* NULL: none, for the reason */
    char no_chains[256];
    int sms, quantizing; /* quantizing: asked for in the shape */
} problem;

typedef struct run {
    problem *p;
    int provider;
    double error;
} run;

static int64_t weight_offset(const chain *c, int64_t layer, int linear) {
    int64_t whole = 0, part = 0;
    for (int i = 0; i < LINEARS; i++) {
        whole += c->n[i] * c->k[i];
        if (i < linear) part += c->n[i] * c->k[i];
    }
    return layer * whole + part;
}

static int is_quantizing(int provider) {
    return provider == QUANTIZING || provider == LT_QUANTIZING;
}

/* What a step has behind its Linears. */
static void add_store(const problem *p, fp8_gemm *g, int linear) {
    g->a = linear == 3 ? p->codes_down : p->codes_in;
    if (linear == 1 || linear == 3) {
        g->d = p->stream;
        g->residual = p->stream;
        g->residual_dtype = FP8_DTYPE_BF16;
        g->ldr = g->n;
    }
    if (linear != 2) return;
    g->activation = FP8_GEMM_SWIGLU;
    if (!fp8_gemm_gates(p->d, g)) {
        g->activation = FP8_GEMM_IDENTITY;
        return;
    }
    g->d = p->codes_down;
    g->d_dtype = FP8_DTYPE_E4M3;
    g->d_scale = p->in_scale;
    g->ldd = g->n / 2;
}

static fp8_gemm product_of(const problem *p, int64_t layer, int linear, int provider) {
    const chain *c = p->c;
    const int64_t n = c->n[linear], k = c->k[linear];
    fp8_gemm g = {.m = p->tokens, .n = n, .k = k, .lda = k, .ldb = k, .ldd = n, .a = p->block,
                  .b = (const uint8_t *)p->weights + weight_offset(c, layer, linear),
                  .d = p->y[linear], .a_dtype = FP8_DTYPE_E4M3, .b_dtype = FP8_DTYPE_E4M3,
                  .d_dtype = FP8_DTYPE_BF16, .alpha = 1.0f, .a_descale = p->descales[0],
                  .b_descale = p->descales[1], .a_descale_count = 1, .b_descale_count = 1,
                  .launch = FP8_LAUNCH_OVERLAP};

    g.backend = provider == SKINNY       ? FP8_GEMM_SKINNY
                : provider == QUANTIZING ? FP8_GEMM_AUTO
                                         : FP8_GEMM_CUBLASLT;
    if (is_quantizing(provider)) add_store(p, &g, linear);
    return g;
}

/* The codes that this Linear takes, where the one before has not made them. */
static fp8_status make_input(const problem *p, const fp8_gemm *before, int linear) {
    const chain *c = p->c;
    const int64_t k = c->k[linear];
    const fp8_sink sink = {.codes = linear == 3 ? p->codes_down : p->codes_in,
                           .code = FP8_DTYPE_E4M3, .scale = p->in_scale};
    const fp8_norm norm = {.kind = FP8_NORM_RMS, .eps = 1e-6f, .dtype = FP8_DTYPE_BF16,
                           .rows = p->tokens, .cols = k, .x = p->stream, .weight = p->norm_weight};
    const fp8_act act = {.act = FP8_ACT_SILU, .dtype = FP8_DTYPE_BF16, .rows = p->tokens,
                         .cols = k, .x = p->y[2], .up = (const uint16_t *)p->y[2] + k,
                         .x_stride = 2 * k, .up_stride = 2 * k};

    if (linear == 1)
        return fp8_produce_cast(p->d, &sink, p->y[0], FP8_DTYPE_BF16, p->tokens, k, c->n[0],
                                FP8_LAUNCH_OVERLAP);
    if (linear != 3) return fp8_produce_norm(p->d, &sink, &norm, FP8_LAUNCH_OVERLAP);
    if (before->d == p->codes_down) return FP8_OK;
    return fp8_produce_act(p->d, &sink, &act, FP8_LAUNCH_OVERLAP);
}

static fp8_status call_chain(void *ctx) {
    const run *r = ctx;
    const problem *p = r->p;
    fp8_gemm before = {0};
    fp8_status st = FP8_OK;

    if (r->provider == CHAINED) return bench_chain_step(p->chains, p->tokens);
    if (r->provider == READING)
        return bench_read(p->weights, p->weight_bytes, p->sms, fp8_device_stream(p->d));
    for (int64_t layer = 0; layer < p->c->layers; layer++)
        for (int i = 0; i < LINEARS; i++) {
            const fp8_gemm g = product_of(p, layer, i, r->provider);
            if (is_quantizing(r->provider)) FP8_TRY(make_input(p, &before, i));
            FP8_TRY(fp8_gemm_run(p->d, &g, p->workspace, p->workspace_bytes));
            before = g;
        }
done:
    return st;
}

/* ---- the data -------------------------------------------------------------------------------- */

static void free_problem(problem *p) {
    bench_chain_destroy(p->chains);
    free(p->codes);
    free(p->out);
    fp8_device_free(p->d, p->block);
    fp8_device_free(p->d, p->weights);
    fp8_device_free(p->d, p->workspace);
    for (int i = 0; i < LINEARS; i++) fp8_device_free(p->d, p->y[i]);
    for (int i = 0; i < 2; i++) fp8_device_free(p->d, p->descales[i]);
    fp8_device_free(p->d, p->stream);
    fp8_device_free(p->d, p->norm_weight);
    fp8_device_free(p->d, p->codes_in);
    fp8_device_free(p->d, p->codes_down);
    fp8_device_free(p->d, p->in_scale);
}

/* A block of quantized normals on both sides, and weights that repeat it. */
static fp8_status make_codes(problem *p) {
    uint16_t *host = NULL;
    void *values = NULL, *scale = NULL;
    float amax, multiplier;
    fp8_status st;

    FP8_TRY(bench_upload_normal(p->d, &host, &values, block_codes, 5, 1, &amax));
    multiplier = FP8_E4M3_MAX / amax;
    FP8_TRY(fp8_device_alloc(p->d, &scale, sizeof multiplier));
    FP8_TRY(fp8_device_upload(p->d, scale, &multiplier, sizeof multiplier));
    FP8_TRY(fp8_device_alloc(p->d, &p->block, (size_t)block_codes));
    FP8_TRY(fp8_quantize(p->d, p->block, FP8_DTYPE_E4M3, values, FP8_DTYPE_BF16, block_codes,
                         scale));
    FP8_TRY(fp8_device_download(p->d, p->codes, p->block, (size_t)block_codes));
    for (size_t at = 0; at < p->weight_bytes; at += (size_t)block_codes) {
        const size_t left = p->weight_bytes - at;
        FP8_TRY(fp8_device_copy(p->d, (uint8_t *)p->weights + at, p->block,
                                left < (size_t)block_codes ? left : (size_t)block_codes));
    }
done:
    free(host);
    fp8_device_free(p->d, values);
    fp8_device_free(p->d, scale);
    return st;
}

/* What a quantizing step needs beside: small numbers in the stream, all the same. */
static fp8_status make_streams(problem *p) {
    const size_t stream = (size_t)(MAX_TOKENS * p->c->k[0]) * 2, weight = (size_t)p->c->k[0] * 2;
    const float scale = 16.0f;
    int64_t most_k = 0;
    fp8_status st = FP8_OK;

    for (int i = 0; i < LINEARS; i++) most_k = p->c->k[i] > most_k ? p->c->k[i] : most_k;
    FP8_TRY(fp8_device_alloc(p->d, &p->stream, stream));
    FP8_TRY(fp8_device_fill(p->d, p->stream, 0x3e, stream)); /* 0.186 */
    FP8_TRY(fp8_device_alloc(p->d, &p->norm_weight, weight));
    FP8_TRY(fp8_device_fill(p->d, p->norm_weight, 0x3e, weight));
    FP8_TRY(fp8_device_alloc(p->d, &p->codes_in, (size_t)(MAX_TOKENS * most_k)));
    FP8_TRY(fp8_device_alloc(p->d, &p->codes_down, (size_t)(MAX_TOKENS * most_k)));
    FP8_TRY(fp8_device_alloc(p->d, (void **)&p->in_scale, sizeof scale));
    FP8_TRY(fp8_device_upload(p->d, p->in_scale, &scale, sizeof scale));
done:
    return st;
}

static fp8_status make_chains(problem *p) {
    bench_chain_shape shape = {.layers = p->c->layers, .max_tokens = MAX_TOKENS,
                               .weights = p->weights, .x = p->block};
    fp8_status st;

    memcpy(shape.n, p->c->n, sizeof shape.n);
    memcpy(shape.k, p->c->k, sizeof shape.k);
    st = bench_chain_create(&p->chains, p->d, &shape);
    if (st != FP8_EUNSUPPORTED) return st;
    snprintf(p->no_chains, sizeof p->no_chains, "%s", fp8_last_message());
    return FP8_OK;
}

static fp8_status make_problem(problem *p) {
    const float descale[2] = {0.02f, 1e-4f};
    int64_t most_n = 0;
    fp8_status st = FP8_OK;

    p->weight_bytes = (size_t)weight_offset(p->c, p->c->layers, 0);
    for (int i = 0; i < LINEARS; i++) most_n = p->c->n[i] > most_n ? p->c->n[i] : most_n;
    p->codes = malloc((size_t)block_codes);
    p->out = malloc((size_t)(MAX_TOKENS * most_n) * sizeof *p->out);
    if (!p->codes || !p->out) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "bench linear: %s", p->c->name));
    FP8_TRY_CUDA(cudaDeviceGetAttribute(&p->sms, cudaDevAttrMultiProcessorCount,
                                        fp8_device_index(p->d)));
    FP8_TRY(fp8_device_alloc(p->d, &p->weights, p->weight_bytes));
    FP8_TRY(make_codes(p));
    FP8_TRY(make_streams(p));
    for (int i = 0; i < 2; i++) {
        FP8_TRY(fp8_device_alloc(p->d, (void **)&p->descales[i], sizeof(float)));
        FP8_TRY(fp8_device_upload(p->d, p->descales[i], &descale[i], sizeof(float)));
    }
    for (int i = 0; i < LINEARS; i++) {
        const size_t bytes = (size_t)(MAX_TOKENS * p->c->n[i]) * sizeof *p->out;
        p->tokens = MAX_TOKENS;
        const fp8_gemm g = product_of(p, 0, i, LT_QUANTIZING);
        const size_t workspace = fp8_gemm_workspace_size(p->d, &g);
        FP8_TRY(fp8_device_alloc(p->d, &p->y[i], bytes));
        FP8_TRY(fp8_device_fill(p->d, p->y[i], 0, bytes));
        if (workspace > p->workspace_bytes) p->workspace_bytes = workspace;
    }
    FP8_TRY(fp8_device_alloc(p->d, &p->workspace, p->workspace_bytes));
    FP8_TRY(make_chains(p));
done:
    return st;
}

/* ---- the check ------------------------------------------------------------------------------- */

/* y[t, n] of the last layer in F64. */
static double expected(const problem *p, int linear, int64_t t, int64_t n) {
    const int64_t k = p->c->k[linear];
    const int64_t row = weight_offset(p->c, p->c->layers - 1, linear) + n * k;
    double sum = 0;
    for (int64_t i = 0; i < k; i++)
        sum += (double)fp8_to_f32(FP8_DTYPE_E4M3, p->codes[t * k + i]) *
               (double)fp8_to_f32(FP8_DTYPE_E4M3, p->codes[(row + i) % block_codes]);
    return sum * 0.02f * 1e-4f;
}

static fp8_status check_run(run *r) {
    problem *p = r->p;
    double error = 0, reference = 0;
    fp8_status st = FP8_OK;

    for (int i = 0; i < LINEARS; i++)
        FP8_TRY(fp8_device_fill(p->d, p->y[i], 0xff, (size_t)(p->tokens * p->c->n[i]) * 2));
    FP8_TRY(call_chain(r));
    for (int i = 0; i < LINEARS; i++) {
        const int64_t n = p->c->n[i], count = p->tokens * n;
        FP8_TRY(fp8_device_download(p->d, p->out, p->y[i], (size_t)count * sizeof *p->out));
        for (int64_t s = 0; s < SAMPLES; s++) {
            const int64_t at = (s * 1000003 + 17 * s * s) % count;
            const double want = expected(p, i, at / n, at % n);
            const double e = (double)fp8_bf16_to_f32(p->out[at]) - want;
            error += e * e;
            reference += want * want;
        }
    }
    r->error = sqrt(error / reference);
    if (!(r->error <= most_error))
        st = FP8_FAIL(FP8_EDATA, "bench linear: %s at %lld tokens: %s is wrong: relative L2 %.3g, "
                                 "expected at most %.2g",
                      p->c->name, (long long)p->tokens, provider_names[r->provider], r->error,
                      most_error);
done:
    return st;
}

static fp8_status check_chains(run *r) {
    fp8_status st = FP8_OK;

    FP8_TRY(bench_chain_check(r->p->chains, r->p->tokens, &r->error));
    if (!(r->error <= most_chain_error))
        st = FP8_FAIL(FP8_EDATA, "bench linear: %s at %lld tokens: a layer in one launch is wrong: "
                                 "relative L2 %.3g against its steps, expected at most %.2g",
                      r->p->c->name, (long long)r->p->tokens, r->error, most_chain_error);
done:
    return st;
}

/* A provider that runs is right first. FP8_EUNSUPPORTED: it does not run here. */
static fp8_status check(run *r) {
    if (r->provider == SKINNY || r->provider == CUBLASLT) return check_run(r);
    if (r->provider != CHAINED) return FP8_OK;
    if (!r->p->chains) return FP8_FAIL(FP8_EUNSUPPORTED, "chains: %s", r->p->no_chains);
    return check_chains(r);
}

/* ---- the table ------------------------------------------------------------------------------- */

static fp8_status add_row(fp8_bench_table *t, const char *subject, const run *r,
                          const bench_contender *c, double reading_ms, double mhz) {
    fp8_bench_row *row;
    fp8_status st;
    FP8_TRY(fp8_bench_add_row(t, &row, subject, provider_names[r->provider]));
    row->value[COL_MS] = c->ms;
    row->value[COL_LOW] = c->ms_low;
    row->value[COL_HIGH] = c->ms_high;
    row->value[COL_RATE] = (double)r->p->weight_bytes / c->ms * 1e-9;
    row->value[COL_SHARE] = reading_ms / c->ms;
    if (r->provider == SKINNY || r->provider == CUBLASLT || r->provider == CHAINED)
        row->value[COL_ERROR] = r->error;
    if (mhz > 0) row->value[COL_MHZ] = mhz;
done:
    return st;
}

static fp8_status bench_tokens(fp8_bench_table *t, problem *p, const char *subject,
                               const fp8_bench_options *options) {
    run runs[NUM_PROVIDERS];
    bench_contender contenders[NUM_PROVIDERS];
    char why[256] = "";
    int32_t count = 0;
    double mhz = 0;
    fp8_bench_row *row;
    fp8_status st = FP8_OK;

    if (options->note) options->note(subject);
    for (int i = 0; i < NUM_PROVIDERS; i++) {
        if (is_quantizing(i) && (why[0] || !p->quantizing)) continue;
        runs[count] = (run){.p = p, .provider = i};
        st = check(&runs[count]);
        if (st == FP8_EUNSUPPORTED) {
            snprintf(why, sizeof why, "%s", fp8_last_message());
            continue;
        }
        FP8_TRY(st);
        contenders[count] = (bench_contender){.call = call_chain, .ctx = &runs[count]};
        count++;
    }
    FP8_TRY(bench_race(p->d, contenders, count, options, &mhz));
    for (int32_t i = 0; i < count; i++)
        FP8_TRY(add_row(t, subject, &runs[i], &contenders[i], contenders[count - 1].ms, mhz));
    if (!why[0]) goto done;
    FP8_TRY(fp8_bench_add_row(t, &row, subject, "refused"));
    snprintf(row->note, sizeof row->note, "%s", why);
done:
    return st;
}

/* "gemma-7b,64", or "gemma-7b,64,quantizing". */
static fp8_status parse(const chain **c, int64_t *tokens, int *quantizing, const char *text) {
    const size_t len = strcspn(text, ",");
    char *end = NULL;
    *c = NULL;
    *tokens = text[len] ? strtol(text + len + 1, &end, 10) : 0;
    for (int i = 0; i < NUM_CHAINS; i++)
        if (strlen(chains[i].name) == len && strncmp(chains[i].name, text, len) == 0)
            *c = &chains[i];
    *quantizing = end && strcmp(end, ",quantizing") == 0;
    if (*c && end && (!*end || *quantizing) && *tokens >= 1 && *tokens <= MAX_TOKENS) return FP8_OK;
    return FP8_FAIL(FP8_EINVAL, "--shape '%s': expected gemma-7b or llama-8b, a comma, 1 to %d "
                                "tokens, and ',quantizing' or no more", text, MAX_TOKENS);
}

fp8_status fp8_bench_linear(fp8_bench_table *out, fp8_device *d, const fp8_bench_options *options) {
    const int given = options->num_shapes > 0;
    const char *const *shapes = given ? options->shapes : default_shapes;
    const int32_t count = given ? options->num_shapes : NUM_DEFAULT;
    problem p = {.d = d};
    fp8_status st = FP8_OK;

    for (int32_t i = 0; i < count; i++) FP8_TRY(parse(&p.c, &p.tokens, &p.quantizing,
                                                       shapes[i]));
    if (fp8_device_place(d) != FP8_PLACE_CUDA)
        FP8_TRY(FP8_FAIL(FP8_EUNSUPPORTED, "bench linear: the device is the CPU"));
    out->columns = columns;
    out->num_columns = NUM_COLS;
    out->drawn = COL_RATE;
    snprintf(out->title, sizeof out->title,
             "The Linears of one decode step, E4M3, %s: all weights once; median of %lld graph "
             "replays in turns; errors against F64 sums of the same codes",
             fp8_device_name(d), (long long)options->rounds);
    p.c = NULL;
    for (int32_t i = 0; i < count; i++) {
        const chain *c;
        int64_t tokens;
        int quantizing;
        FP8_TRY(parse(&c, &tokens, &quantizing, shapes[i]));
        if (c != p.c) {
            free_problem(&p);
            p = (problem){.d = d, .c = c};
            FP8_TRY(make_problem(&p));
        }
        p.tokens = tokens;
        p.quantizing = quantizing;
        FP8_TRY(bench_tokens(out, &p, shapes[i], options));
    }
done:
    free_problem(&p);
    return st;
}
