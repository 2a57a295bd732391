/* The Linears of a decode step as chains, and each layer's launch against its steps. */
#include "bench/bench_chain.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "quant/quant.h"

enum { QKV, O, UP, DOWN };
static const float input_descale = 1.0f / 16, weight_descale = 2e-4f;

struct bench_chain {
    fp8_device *d;
    bench_chain_shape shape;
    fp8_linear *(*linears)[CHAIN_LINEARS]; /* [layers] */
    fp8_chain **chains;                    /* [layers] */
    void *descale, *norm, *stream, *codes, *y, *workspace;
    size_t bytes; /* of the workspace */
};

/* ---- making ---------------------------------------------------------------------------------- */

static fp8_status make_linears(bench_chain *b) {
    const bench_chain_shape *s = &b->shape;
    const uint8_t *at = s->weights;
    fp8_status st = FP8_OK;

    b->linears = calloc((size_t)s->layers, sizeof *b->linears);
    b->chains = calloc((size_t)s->layers, sizeof *b->chains);
    if (!b->linears || !b->chains) return FP8_FAIL(FP8_ENOMEM, "chains of %lld layers",
                                                   (long long)s->layers);
    for (int64_t i = 0; i < s->layers * CHAIN_LINEARS; i++) {
        const int kind = (int)(i % CHAIN_LINEARS);
        const fp8_linear_spec spec = {
            .name = "Linear", .in = s->k[kind], .out = s->n[kind],
            .weight = fp8_tensor_view((void *)(uintptr_t)at, FP8_DTYPE_E4M3, FP8_PLACE_CUDA,
                                      s->n[kind], s->k[kind]),
            .weight_descale = b->descale, .num_weight_descales = 1, .input = FP8_INPUT_STATIC,
            .input_descale = input_descale, .compute = FP8_DTYPE_BF16, .borrow_weight = 1};
        FP8_TRY(fp8_linear_create(&b->linears[i / CHAIN_LINEARS][kind], b->d, &spec));
        at += s->n[kind] * s->k[kind];
    }
done:
    return st;
}

/* o, gate and up, down of a layer, and the next one's q k v. */
static fp8_status make_chain(const bench_chain *b, int64_t layer, fp8_chain **out) {
    fp8_linear *const *own = b->linears[layer];
    const int last = layer == b->shape.layers - 1;
    const fp8_chain_step steps[CHAIN_LINEARS] = {
        {.linear = own[O], .adds = 1, .norm_weight = b->norm, .eps = 1e-6f},
        {.linear = own[UP], .activation = FP8_GEMM_SWIGLU},
        {.linear = own[DOWN], .adds = 1, .norm_weight = last ? NULL : b->norm, .eps = 1e-6f},
        {.linear = last ? NULL : b->linears[layer + 1][QKV]}};
    return fp8_chain_create(out, b->d, steps, last ? 3 : 4);
}

/* The same as one launch, or as its steps: FP8_CHAIN in the environment is "1" or "0" meanwhile. */
static fp8_status make_by(const bench_chain *b, int64_t layer, const char *how, fp8_chain **out) {
    const char *before = getenv("FP8_CHAIN");
    char *const kept = before ? strdup(before) : NULL;
    fp8_status st;

    (void)setenv("FP8_CHAIN", how, 1);
    st = make_chain(b, layer, out);
    if (kept) (void)setenv("FP8_CHAIN", kept, 1);
    else (void)unsetenv("FP8_CHAIN");
    free(kept);
    return st;
}

/* Room for all, and weights of norms that are 1. */
static fp8_status make_rooms(bench_chain *b) {
    const bench_chain_shape *s = &b->shape;
    const size_t hidden = (size_t)s->k[QKV], tokens = (size_t)s->max_tokens;
    uint16_t *ones = malloc(hidden * sizeof *ones);
    fp8_status st = FP8_OK;

    if (!ones) return FP8_FAIL(FP8_ENOMEM, "a norm of %zu", hidden);
    for (size_t i = 0; i < hidden; i++) ones[i] = fp8_f32_to_bf16(1.0f);
    FP8_TRY(fp8_device_alloc(b->d, &b->norm, 2 * hidden));
    FP8_TRY(fp8_device_upload(b->d, b->norm, ones, 2 * hidden));
    FP8_TRY(fp8_device_alloc(b->d, &b->stream, 2 * tokens * hidden));
    FP8_TRY(fp8_device_fill(b->d, b->stream, 0x3e, 2 * tokens * hidden)); /* 0.186 */
    FP8_TRY(fp8_device_alloc(b->d, &b->y, 2 * tokens * (size_t)s->n[QKV]));
    FP8_TRY(fp8_device_alloc(b->d, &b->codes, tokens * (size_t)(s->k[O] > s->k[QKV] ? s->k[O]
                                                                                    : s->k[QKV])));
    FP8_TRY(fp8_device_alloc(b->d, &b->descale, sizeof weight_descale));
    FP8_TRY(fp8_device_upload(b->d, b->descale, &weight_descale, sizeof weight_descale));
done:
    free(ones);
    return st;
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

fp8_status bench_chain_create(bench_chain **out, fp8_device *d, const bench_chain_shape *shape) {
    bench_chain *b = calloc(1, sizeof *b);
    fp8_chain *steps = NULL;
    const char *why = NULL;
    fp8_status st = FP8_OK;

    *out = NULL;
    if (!b) return FP8_FAIL(FP8_ENOMEM, "chains");
    b->d = d;
    b->shape = *shape;
    FP8_TRY(make_rooms(b));
    FP8_TRY(make_linears(b));
    b->bytes = fp8_linear_workspace_size(b->linears[0][QKV], shape->max_tokens);
    FP8_TRY(make_by(b, 0, "0", &steps));
    b->bytes = larger(b->bytes, fp8_chain_workspace_size(steps, shape->max_tokens));
    for (int64_t i = 0; i < shape->layers; i++) {
        FP8_TRY(make_by(b, i, "1", &b->chains[i]));
        b->bytes = larger(b->bytes, fp8_chain_workspace_size(b->chains[i], shape->max_tokens));
        if (!fp8_chain_is_one_launch(b->chains[i], shape->max_tokens, &why))
            FP8_TRY(FP8_FAIL(FP8_EUNSUPPORTED, "%s", why));
    }
    FP8_TRY(fp8_device_alloc(d, &b->workspace, b->bytes));
    *out = b;
    b = NULL;
done:
    fp8_chain_destroy(steps);
    bench_chain_destroy(b);
    return st;
}

void bench_chain_destroy(bench_chain *b) {
    if (!b) return;
    for (int64_t i = 0; b->chains && i < b->shape.layers; i++) fp8_chain_destroy(b->chains[i]);
    for (int64_t i = 0; b->linears && i < b->shape.layers * CHAIN_LINEARS; i++)
        fp8_linear_destroy(b->linears[i / CHAIN_LINEARS][i % CHAIN_LINEARS]);
    fp8_device_free(b->d, b->descale);
    fp8_device_free(b->d, b->norm);
    fp8_device_free(b->d, b->stream);
    fp8_device_free(b->d, b->codes);
    fp8_device_free(b->d, b->y);
    fp8_device_free(b->d, b->workspace);
    free(b->linears);
    free(b->chains);
    free(b);
}

/* ---- running --------------------------------------------------------------------------------- */

static fp8_status run_chain(const bench_chain *b, const fp8_chain *c, int64_t tokens,
                            const void *codes) {
    const bench_chain_shape *s = &b->shape;
    const fp8_tensor x = fp8_tensor_view((void *)(uintptr_t)codes, FP8_DTYPE_E4M3, FP8_PLACE_CUDA,
                                         tokens, s->k[O]);
    const fp8_tensor h = fp8_tensor_view(b->stream, FP8_DTYPE_BF16, FP8_PLACE_CUDA, tokens,
                                         s->n[O]);
    const fp8_tensor y = fp8_tensor_view(b->y, FP8_DTYPE_BF16, FP8_PLACE_CUDA, tokens, s->n[QKV]);
    const fp8_chain_call call = {&x, &h, &y, b->workspace, b->bytes};
    return fp8_chain_run(c, &call);
}

/* q k v of layer 0, before which there is no chain. */
static fp8_status run_first(const bench_chain *b, int64_t tokens) {
    const bench_chain_shape *s = &b->shape;
    const fp8_tensor x = fp8_tensor_view(b->codes, FP8_DTYPE_E4M3, FP8_PLACE_CUDA, tokens,
                                         s->k[QKV]);
    const fp8_tensor y = fp8_tensor_view(b->y, FP8_DTYPE_BF16, FP8_PLACE_CUDA, tokens, s->n[QKV]);
    const fp8_norm norm = {.kind = FP8_NORM_RMS, .eps = 1e-6f, .dtype = FP8_DTYPE_BF16,
                           .rows = tokens, .cols = s->k[QKV], .x = b->stream, .weight = b->norm};
    const float *descale;
    fp8_status st = FP8_OK;
    fp8_sink sink;

    FP8_TRY(fp8_linear_sink(b->linears[0][QKV], &sink, &descale, b->codes, NULL));
    FP8_TRY(fp8_produce_norm(b->d, &sink, &norm, FP8_LAUNCH_OVERLAP));
    FP8_TRY(fp8_linear_forward(b->linears[0][QKV], &y, &x, descale, FP8_ACCUMULATE_EXACT,
                               b->workspace, b->bytes));
done:
    return st;
}

fp8_status bench_chain_step(const bench_chain *b, int64_t tokens) {
    const bench_chain_shape *s = &b->shape;
    fp8_status st = FP8_OK;

    FP8_TRY(run_first(b, tokens));
    for (int64_t i = 0; i < s->layers; i++) {
        const float *descale;
        fp8_sink sink;
        FP8_TRY(fp8_linear_sink(b->linears[i][O], &sink, &descale, b->codes, NULL));
        FP8_TRY(fp8_produce_cast(b->d, &sink, b->y, FP8_DTYPE_BF16, tokens, s->k[O], s->n[QKV],
                                 FP8_LAUNCH_OVERLAP));
        FP8_TRY(run_chain(b, b->chains[i], tokens, b->codes));
    }
done:
    return st;
}

/* ---- the check ------------------------------------------------------------------------------- */

/* One chain from a stream of 0.186: what it leaves in the stream and in y, one after the other. */
static fp8_status look(const bench_chain *b, const fp8_chain *c, int64_t tokens, uint16_t *out) {
    const size_t h_bytes = (size_t)(2 * tokens * b->shape.n[O]);
    const size_t y_bytes = (size_t)(2 * tokens * b->shape.n[QKV]);
    fp8_status st;

    FP8_TRY(fp8_device_fill(b->d, b->stream, 0x3e, h_bytes));
    FP8_TRY(fp8_device_fill(b->d, b->y, 0, y_bytes));
    FP8_TRY(run_chain(b, c, tokens, b->shape.x));
    FP8_TRY(fp8_device_download(b->d, out, b->stream, h_bytes));
    FP8_TRY(fp8_device_download(b->d, out + h_bytes / 2, b->y, y_bytes));
    FP8_TRY(fp8_device_fill(b->d, b->stream, 0x3e, h_bytes));
done:
    return st;
}

static double relative(const uint16_t *got, const uint16_t *want, int64_t n) {
    double error = 0, reference = 0;
    for (int64_t i = 0; i < n; i++) {
        const double a = (double)fp8_bf16_to_f32(got[i]), w = (double)fp8_bf16_to_f32(want[i]);
        error += (a - w) * (a - w);
        reference += w * w;
    }
    return reference > 0 ? sqrt(error / reference) : sqrt(error);
}

fp8_status bench_chain_check(bench_chain *b, int64_t tokens, double *error) {
    const int64_t layers[3] = {0, b->shape.layers / 2, b->shape.layers - 1};
    const int64_t h = tokens * b->shape.n[O], y = tokens * b->shape.n[QKV];
    uint16_t *out[2] = {malloc((size_t)(h + y) * 2), malloc((size_t)(h + y) * 2)};
    fp8_chain *steps = NULL;
    fp8_status st = FP8_OK;

    *error = 0;
    if (!out[0] || !out[1]) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "%lld tokens", (long long)tokens));
    for (int i = 0; i < 3; i++) {
        FP8_TRY(make_by(b, layers[i], "0", &steps));
        FP8_TRY(look(b, b->chains[layers[i]], tokens, out[0]));
        FP8_TRY(look(b, steps, tokens, out[1]));
        fp8_chain_destroy(steps);
        steps = NULL;
        *error = fmax(*error, relative(out[0], out[1], h));
        *error = fmax(*error, relative(out[0] + h, out[1] + h, y));
    }
done:
    fp8_chain_destroy(steps);
    free(out[0]);
    free(out[1]);
    return st;
}
