/* `bench quant`: the fused producers, casts and lookups on one GPU: large, two sets of buffers in
 * turn, against a copy in the same race; and at the size of a decoding step, as a chain of
 * dependent kernels, ordered and overlapping. What came out is compared with the CPU's. */
#include <stdlib.h>
#include <string.h>

#include "bench/bench_impl.h"
#include "core/half.h"
#include "quant/quant.h"

enum { SETS = 2, CHECK_ROWS = 24 };

typedef enum bench_kind {
    BENCH_NORM,
    BENCH_ACT,
    BENCH_CAST,
    BENCH_FLAT,
    BENCH_DEQUANTIZE,
    BENCH_TURN,
    BENCH_TURN_CODES,
    BENCH_QKV,
    BENCH_EMBED,
    BENCH_TOP,
    BENCH_DELAYED
} bench_kind;

/* One line of the table. */
typedef struct bench_case {
    const char *name;
    bench_kind kind;
    fp8_sink_scaling scaling;
    int detail; /* norm: kind; act: activation; top: k */
    int extra;  /* norm: residual; act: gated; qkv: head norm; turn: codes too */
    int dense;  /* values instead of codes */
    int64_t large_rows, large_cols, small_rows, small_cols;
} bench_case;

static const bench_case cases[] = {
    {"rmsnorm, static", BENCH_NORM, FP8_SINK_STATIC, FP8_NORM_RMS, 0, 0, 16384, 4096, 64, 4096},
    {"rmsnorm, token", BENCH_NORM, FP8_SINK_TOKEN, FP8_NORM_RMS, 0, 0, 16384, 4096, 64, 4096},
    {"rmsnorm, groups", BENCH_NORM, FP8_SINK_GROUP, FP8_NORM_RMS, 0, 0, 16384, 4096, 64, 4096},
    {"add, rmsnorm, static", BENCH_NORM, FP8_SINK_STATIC, FP8_NORM_RMS, 1, 0, 16384, 4096, 64,
     4096},
    {"add, rmsnorm, token", BENCH_NORM, FP8_SINK_TOKEN, FP8_NORM_RMS, 1, 0, 16384, 4096, 64, 4096},
    {"add, rmsnorm, token, 8192", BENCH_NORM, FP8_SINK_TOKEN, FP8_NORM_RMS, 1, 0, 8192, 8192,
     64, 8192},
    {"layernorm, static", BENCH_NORM, FP8_SINK_STATIC, FP8_NORM_LAYER, 0, 0, 16384, 4096, 64, 4096},
    {"rmsnorm, values", BENCH_NORM, FP8_SINK_STATIC, FP8_NORM_RMS, 0, 1, 16384, 4096, 64, 4096},
    {"swiglu, static", BENCH_ACT, FP8_SINK_STATIC, FP8_ACT_SILU, 1, 0, 4096, 14336, 64, 14336},
    {"swiglu, token", BENCH_ACT, FP8_SINK_TOKEN, FP8_ACT_SILU, 1, 0, 4096, 14336, 64, 14336},
    {"swiglu, groups", BENCH_ACT, FP8_SINK_GROUP, FP8_ACT_SILU, 1, 0, 4096, 14336, 64, 14336},
    {"geglu tanh, static", BENCH_ACT, FP8_SINK_STATIC, FP8_ACT_GELU_TANH, 1, 0, 4096, 24576,
     64, 24576},
    {"geglu tanh, token", BENCH_ACT, FP8_SINK_TOKEN, FP8_ACT_GELU_TANH, 1, 0, 4096, 24576, 64,
     24576},
    {"geglu erf, static", BENCH_ACT, FP8_SINK_STATIC, FP8_ACT_GELU_ERF, 1, 0, 4096, 14336, 64,
     14336},
    {"gelu tanh, static", BENCH_ACT, FP8_SINK_STATIC, FP8_ACT_GELU_TANH, 0, 0, 8192, 16384, 64,
     16384},
    {"swiglu, values", BENCH_ACT, FP8_SINK_STATIC, FP8_ACT_SILU, 1, 1, 4096, 14336, 64, 14336},
    {"rope qkv", BENCH_QKV, FP8_SINK_STATIC, 0, 0, 0, 16384, 6144, 64, 6144},
    {"norm, rope qkv", BENCH_QKV, FP8_SINK_STATIC, 0, 1, 0, 16384, 6144, 64, 6144},
    {"quantize", BENCH_FLAT, FP8_SINK_STATIC, 0, 0, 0, 16384, 4096, 64, 4096},
    {"quantize, token", BENCH_CAST, FP8_SINK_TOKEN, 0, 0, 0, 16384, 4096, 64, 4096},
    {"quantize, groups", BENCH_CAST, FP8_SINK_GROUP, 0, 0, 0, 16384, 4096, 64, 4096},
    {"dequantize", BENCH_DEQUANTIZE, FP8_SINK_STATIC, 0, 0, 0, 16384, 4096, 64, 4096},
    {"quantize, turned", BENCH_TURN, FP8_SINK_STATIC, 0, 0, 0, 16384, 4096, 64, 4096},
    {"quantize, both ways", BENCH_TURN, FP8_SINK_STATIC, 0, 1, 0, 16384, 4096, 64, 4096},
    {"turn codes", BENCH_TURN_CODES, FP8_SINK_STATIC, 0, 0, 0, 16384, 8192, 64, 4096},
    {"embedding", BENCH_EMBED, FP8_SINK_STATIC, 0, 0, 0, 16384, 4096, 64, 4096},
    {"argmax", BENCH_TOP, FP8_SINK_STATIC, 1, 0, 0, 512, 128256, 64, 128256},
    {"top 50", BENCH_TOP, FP8_SINK_STATIC, 50, 0, 0, 512, 128256, 64, 128256},
    {"argmax, one row", BENCH_TOP, FP8_SINK_STATIC, 1, 0, 0, 512, 256000, 1, 256000},
    {"delayed scaling, 300 x 16", BENCH_DELAYED, FP8_SINK_STATIC, 16, 0, 0, 0, 0, 300, 1},
};
enum { NUM_CASES = sizeof cases / sizeof *cases };

enum { HEADS = 32, KV_HEADS = 8, DIM = 128, POSITIONS = 4096 };

/* One set of buffers, each as large as any case wants; on the device, or on the host for the
 * check. */
typedef struct bench_set {
    char *in, *in2, *out, *weight;
    float *scale, *descale, *cos, *sin;
    int32_t *ids;
    fp8_delayed delayed;
} bench_set;

static const size_t in_bytes = (size_t)512 * 256000 * 4, out_bytes = (size_t)16384 * 8192 * 2;

/* ---- one call -------------------------------------------------------------------------------- */

static fp8_sink sink_of(const bench_case *c, const bench_set *s) {
    if (c->dense) return (fp8_sink){.dense = s->out};
    return (fp8_sink){.codes = (uint8_t *)s->out, .code = FP8_DTYPE_E4M3, .scaling = c->scaling,
                      .scale = s->scale, .descale = s->descale};
}

static fp8_status run_norm(fp8_device *d, const bench_case *c, const bench_set *s, int64_t rows,
                           int64_t cols, fp8_launch how) {
    const fp8_sink out = sink_of(c, s);
    fp8_norm n = {.kind = (fp8_norm_kind)c->detail, .eps = 1e-5f, .dtype = FP8_DTYPE_BF16,
                  .rows = rows, .cols = cols, .x = s->in, .weight = s->weight,
                  .bias = s->weight + 65536};
    if (c->extra) {
        n.residual = s->in2;
        n.h = s->in2; /* and x stays, so that values do not run away */
    }
    return fp8_produce_norm(d, &out, &n, how);
}

static fp8_status run_qkv(fp8_device *d, const bench_case *c, const bench_set *s, int64_t rows,
                          fp8_launch how) {
    const int64_t width = (HEADS + 2 * KV_HEADS) * DIM;
    uint8_t *codes = (uint8_t *)s->out;
    fp8_heads part = {.heads = HEADS, .x = s->in, .x_token_stride = width, .x_head_stride = DIM,
                      .scale = s->scale, .codes = codes,
                      .norm_weight = c->extra ? s->weight : NULL};
    fp8_qkv q = {.q = part, .dtype = FP8_DTYPE_BF16, .code = FP8_DTYPE_E4M3, .tokens = rows,
                 .dim = DIM, .rotary_dim = DIM, .cos = s->cos, .sin = s->sin,
                 .positions = s->ids, .eps = 1e-6f};
    part.heads = KV_HEADS;
    part.x = s->in + HEADS * DIM * 2;
    part.codes = codes + rows * HEADS * DIM;
    q.k = part;
    part.x = s->in + (HEADS + KV_HEADS) * DIM * 2;
    part.codes = codes + rows * (HEADS + KV_HEADS) * DIM;
    part.norm_weight = NULL;
    q.v = part;
    return fp8_produce_qkv(d, &q, how);
}

static fp8_status run_case(fp8_device *d, const bench_case *c, const bench_set *s, int64_t rows,
                           int64_t cols, fp8_launch how) {
    const fp8_sink out = sink_of(c, s);
    const fp8_act act = {.act = (fp8_activation)c->detail, .dtype = FP8_DTYPE_BF16, .rows = rows,
                         .cols = cols, .x = s->in, .up = c->extra ? s->in + 2 * cols : NULL,
                         .x_stride = c->extra ? 2 * cols : 0, .up_stride = 2 * cols};
    const fp8_embedding embedding = {.dtype = FP8_DTYPE_BF16, .tokens = rows, .cols = cols,
                                     .table = s->in, .ids = s->ids, .multiplier = 1.0f};
    const fp8_recipe recipe = FP8_RECIPE_DEFAULT;

    switch (c->kind) {
    case BENCH_NORM: return run_norm(d, c, s, rows, cols, how);
    case BENCH_ACT: return fp8_produce_act(d, &out, &act, how);
    case BENCH_CAST:
        return fp8_produce_cast(d, &out, s->in, FP8_DTYPE_BF16, rows, cols, 0, how);
    case BENCH_FLAT:
        return fp8_quantize(d, (uint8_t *)s->out, FP8_DTYPE_E4M3, s->in, FP8_DTYPE_BF16,
                            rows * cols, s->scale);
    case BENCH_DEQUANTIZE:
        return fp8_dequantize(d, s->out, FP8_DTYPE_BF16, (uint8_t *)s->in, FP8_DTYPE_E4M3,
                              rows * cols, s->scale);
    case BENCH_TURN:
        return fp8_quantize_transposed(d, (uint8_t *)s->out,
                                       c->extra ? (uint8_t *)s->out + rows * cols : NULL,
                                       FP8_DTYPE_E4M3, s->in, FP8_DTYPE_BF16, rows, cols,
                                       s->scale);
    case BENCH_TURN_CODES:
        return fp8_transpose_codes(d, (uint8_t *)s->out, (uint8_t *)s->in, rows, cols);
    case BENCH_QKV: return run_qkv(d, c, s, rows, how);
    case BENCH_EMBED: return fp8_embed(d, s->out, &embedding, how);
    case BENCH_TOP:
        return fp8_top_k(d, (int32_t *)(void *)s->out, NULL, s->in, FP8_DTYPE_F32, rows, cols, 0,
                         c->detail, how);
    case BENCH_DELAYED: return fp8_delayed_update(d, &s->delayed, &recipe, FP8_DTYPE_E4M3, how);
    }
    return FP8_OK;
}

/* Bytes that must be read and written. */
static double bytes_of(const bench_case *c, double rows, double cols) {
    const double n = rows * cols;
    switch (c->kind) {
    case BENCH_NORM: return n * ((c->extra ? 6 : 2) + (c->dense ? 2 : 1));
    case BENCH_ACT: return n * ((c->extra ? 4 : 2) + (c->dense ? 2 : 1));
    case BENCH_TURN: return n * (c->extra ? 4 : 3);
    case BENCH_TURN_CODES: return n * 2;
    case BENCH_EMBED: return n * 4;
    case BENCH_TOP: return n * 4;
    case BENCH_CAST:
    case BENCH_FLAT:
    case BENCH_DEQUANTIZE:
    case BENCH_QKV: return n * 3;
    case BENCH_DELAYED: return rows * 16 * 4;
    }
    return 0;
}

/* ---- timing ---------------------------------------------------------------------------------- */

/* What a contender of the race calls. c NULL: a copy of `rows` bytes. */
typedef struct bench_call {
    fp8_device *d;
    const bench_case *c;
    const bench_set *sets;
    int64_t rows, cols, count;
    fp8_launch how;
} bench_call;

static fp8_status call_once(void *ctx) {
    bench_call *b = ctx;
    const bench_set *s = &b->sets[b->count++ % SETS];

    if (!b->c) return fp8_device_copy(b->d, s->out, s->in, (size_t)b->rows);
    return run_case(b->d, b->c, s, b->rows, b->cols, b->how);
}

/* ---- check ----------------------------------------------------------------------------------- */

/* Codes that differ from the CPU's, by more than one step when *apart. */
static int64_t compare_codes(const uint8_t *a, const uint8_t *b, int64_t n, int *apart) {
    int64_t other = 0;
    for (int64_t i = 0; i < n; i++) {
        const int step = (a[i] & 0x7f) - (b[i] & 0x7f);
        other += a[i] != b[i];
        *apart |= step > 1 || step < -1;
    }
    return other;
}

/* The first rows by the GPU and by the CPU. FP8_EDATA when they differ by more than roundings. */
static fp8_status check_case(fp8_device *d, fp8_device *cpu, const bench_case *c,
                             const bench_set *gpu_set, const bench_set *host) {
    const int64_t rows = CHECK_ROWS, cols = c->small_cols;
    const int bits = c->kind == BENCH_TURN_CODES || c->kind == BENCH_EMBED ||
                     c->kind == BENCH_TOP || c->kind == BENCH_DEQUANTIZE || c->kind == BENCH_FLAT;
    const int wide = c->dense || c->kind == BENCH_EMBED || c->kind == BENCH_DEQUANTIZE;
    const int64_t width = c->kind == BENCH_TOP ? 4 * c->detail : wide ? 2 * cols : cols;
    const size_t bytes = (size_t)(rows * width);
    uint8_t *got = malloc(bytes);
    int64_t other = 0;
    int apart = 0;
    fp8_status st = FP8_OK;

    if (!got) return FP8_FAIL(FP8_ENOMEM, "bench quant: %zu bytes", bytes);
    if (c->kind == BENCH_DELAYED || (c->kind == BENCH_NORM && c->extra)) goto done;
    FP8_TRY(run_case(d, c, gpu_set, rows, cols, FP8_LAUNCH_ORDERED));
    FP8_TRY(run_case(cpu, c, host, rows, cols, FP8_LAUNCH_ORDERED));
    FP8_TRY(fp8_device_download(d, got, gpu_set->out, bytes));
    other = compare_codes(got, (uint8_t *)host->out, (int64_t)bytes, &apart);
    if (other > (bits ? 0 : (int64_t)bytes / 500) || (apart && !c->dense))
        st = FP8_FAIL(FP8_EDATA, "bench quant: %s: %lld of %zu bytes are not the CPU's", c->name,
                      (long long)other, bytes);
done:
    free(got);
    return st;
}

/* ---- buffers --------------------------------------------------------------------------------- */

static fp8_status make_set(fp8_device *d, bench_set *s) {
    char *small = NULL;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_device_alloc(d, (void **)&s->in, in_bytes));
    FP8_TRY(fp8_device_alloc(d, (void **)&s->in2, out_bytes));
    FP8_TRY(fp8_device_alloc(d, (void **)&s->out, out_bytes));
    FP8_TRY(fp8_device_alloc(d, (void **)&small, 8 << 20));
    s->weight = small;
    s->scale = (float *)(void *)(small + (1 << 18));
    s->ids = (int32_t *)(void *)(small + (1 << 18) + 4096);
    s->descale = (float *)(void *)(small + (1 << 19));
    s->cos = (float *)(void *)(small + (5 << 20));
    s->sin = s->cos + POSITIONS * DIM / 2;
    s->delayed = (fp8_delayed){300, 16, (fp8_amax_slot *)(void *)(small + (7 << 20)),
                               (float *)(void *)(small + (7 << 20) + 16384),
                               (int64_t *)(void *)(small + (7 << 20) + 65536),
                               (float *)(void *)(small + (7 << 20) + 81920),
                               (float *)(void *)(small + (7 << 20) + 98304)};
done:
    return st;
}

/* The host's set filled: normal BF16 numbers, ids, tables. */
static void fill_set(const bench_set *s) {
    uint16_t *x = (uint16_t *)(void *)s->in, *w = (uint16_t *)(void *)s->weight;
    uint64_t state = 88172645463325252u;

    for (size_t i = 0; i < (1u << 22); i++) { /* sums of four: near enough to normal */
        float v = 0;
        for (int k = 0; k < 4; k++) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            v += (float)(state >> 40) * 0x1p-24f - 0.5f;
        }
        x[i] = fp8_f32_to_bf16(v * 1.7f);
    }
    for (size_t done = 1u << 23; done < in_bytes; done *= 2)
        memcpy(s->in + done, s->in, done < in_bytes - done ? done : in_bytes - done);
    memcpy(s->in2, s->in, out_bytes);
    memcpy(w, x, 131072 + 4096);
    *s->scale = 100.0f;
    for (int i = 0; i < 16384; i++) s->ids[i] = (int32_t)((uint32_t)i * 2654435761u % POSITIONS);
    for (int i = 0; i < POSITIONS * DIM / 2; i++) {
        s->cos[i] = 0.8f;
        s->sin[i] = 0.6f;
    }
    memset(s->delayed.slots, 0, 1 << 20);
}

static fp8_status send_set(fp8_device *d, const bench_set *to, const bench_set *host) {
    fp8_status st = FP8_OK;
    FP8_TRY(fp8_device_upload(d, to->in, host->in, in_bytes));
    FP8_TRY(fp8_device_upload(d, to->in2, host->in2, out_bytes));
    FP8_TRY(fp8_device_upload(d, to->weight, host->weight, 8 << 20));
done:
    return st;
}

static void free_set(fp8_device *d, bench_set *s) {
    fp8_device_free(d, s->in);
    fp8_device_free(d, s->in2);
    fp8_device_free(d, s->out);
    fp8_device_free(d, s->weight);
}

/* ---- the table ------------------------------------------------------------------------------- */

enum { COL_MB, COL_US, COL_RATE, COL_SHARE, COL_ROWS, COL_SMALL, COL_OVERLAP, COL_MHZ, NUM_COLS };
static const fp8_bench_column columns[NUM_COLS] = {
    {"MB", 4},     {"us", 4},         {"GB/s", 4},       {"% of copy", 3},
    {"tokens", 4}, {"small us", 3},   {"overlapped", 3}, {"MHz", 4},
};

static fp8_status bench_one(fp8_bench_table *t, fp8_device *d, const bench_case *c,
                            const bench_set *sets, const fp8_bench_options *options) {
    const double bytes = bytes_of(c, (double)c->large_rows, (double)c->large_cols);
    bench_call calls[] = {
        {d, c, sets, c->small_rows, c->small_cols, 0, FP8_LAUNCH_ORDERED},
        {d, c, sets, c->small_rows, c->small_cols, 0, FP8_LAUNCH_OVERLAP},
        {d, c, sets, c->large_rows, c->large_cols, 0, FP8_LAUNCH_ORDERED},
        {d, NULL, sets, (int64_t)out_bytes, 1, 0, FP8_LAUNCH_ORDERED},
    };
    enum { NUM_CALLS = sizeof calls / sizeof *calls };
    bench_contender all[NUM_CALLS] = {{0}};
    double mhz = 0, copy;
    fp8_bench_row *row;
    char subject[72];
    fp8_status st = FP8_OK;

    for (int i = 0; i < NUM_CALLS; i++)
        all[i] = (bench_contender){.call = call_once, .ctx = &calls[i]};
    FP8_TRY(bench_race(d, all, bytes > 0 ? NUM_CALLS : 2, options, &mhz));
    snprintf(subject, sizeof subject, "%s, %lld", c->name, (long long)c->small_cols);
    FP8_TRY(fp8_bench_add_row(t, &row, subject, "fp8rt"));
    row->value[COL_ROWS] = (double)c->small_rows;
    row->value[COL_SMALL] = all[0].ms * 1e3;
    row->value[COL_OVERLAP] = all[1].ms * 1e3;
    if (mhz > 0) row->value[COL_MHZ] = mhz;
    if (bytes == 0) goto done;
    copy = 2 * (double)out_bytes / all[3].ms;
    row->value[COL_MB] = bytes * 1e-6;
    row->value[COL_US] = all[2].ms * 1e3;
    row->value[COL_RATE] = bytes / all[2].ms * 1e-6;
    row->value[COL_SHARE] = 100 * bytes / all[2].ms / copy;
    snprintf(row->note, sizeof row->note, "large: %lld x %lld; copy %.0f GB/s",
             (long long)c->large_rows, (long long)c->large_cols, copy * 1e-6);
done:
    return st;
}

static int wanted(const bench_case *c, const fp8_bench_options *options) {
    for (int32_t i = 0; i < options->num_shapes; i++)
        if (strstr(c->name, options->shapes[i])) return 1;
    return options->num_shapes == 0;
}

fp8_status fp8_bench_quant(fp8_bench_table *out, fp8_device *d, const fp8_bench_options *options) {
    bench_set sets[SETS] = {{0}}, host = {0};
    fp8_device *cpu = NULL;
    int count = 0;
    fp8_status st = FP8_OK;

    for (int i = 0; i < NUM_CASES; i++) count += wanted(&cases[i], options);
    if (count == 0)
        return FP8_FAIL(FP8_EINVAL, "bench quant: --shape '%s' is part of no line's name",
                        options->shapes[0]);
    if (fp8_device_place(d) != FP8_PLACE_CUDA)
        return FP8_FAIL(FP8_EUNSUPPORTED, "bench quant: the device is the CPU");
    FP8_TRY(fp8_device_create(&cpu, "cpu", 0));
    FP8_TRY(make_set(cpu, &host));
    fill_set(&host);
    for (int i = 0; i < SETS; i++) {
        FP8_TRY(make_set(d, &sets[i]));
        FP8_TRY(send_set(d, &sets[i], &host));
    }
    out->columns = columns;
    out->num_columns = NUM_COLS;
    out->drawn = COL_SHARE;
    snprintf(out->title, sizeof out->title,
             "Producers, casts and lookups, %s: bytes read and written against a copy's in the "
             "same race, and the time at a decoding step's size, in a chain, ordered and "
             "overlapping; median of %lld graph replays",
             fp8_device_name(d), (long long)options->rounds);
    for (int i = 0; i < NUM_CASES; i++) {
        if (!wanted(&cases[i], options)) continue;
        if (options->note) options->note(cases[i].name);
        FP8_TRY(check_case(d, cpu, &cases[i], &sets[0], &host));
        FP8_TRY(bench_one(out, d, &cases[i], sets, options));
    }
done:
    for (int i = 0; i < SETS; i++) free_set(d, &sets[i]);
    free_set(cpu, &host);
    fp8_device_destroy(cpu);
    return st;
}
