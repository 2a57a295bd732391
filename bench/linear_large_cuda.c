/* `bench linear-large`: FP8 products of many tokens through cuBLASLt, with the algorithm that was
 * timed and with cuBLASLt's first guess. Peers that are no C library: bench/linear_peers.py. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench_impl.h"
#include "core/half.h"
#include "quant/quant.h"

enum { SAMPLED_ROWS = 12, SAMPLED_COLS = 48, MAX_COPIES = 32 };
static const int64_t L2_BYTES = INT64_C(130) << 20; /* what a round of weights must exceed */
static const float grow = 64; /* codes are those of normal numbers times this */

typedef enum { BY_TENSOR, BY_ROW, BY_BLOCK, NUM_MODES } scale_mode;
static const char *const mode_names[NUM_MODES] = {"tensor", "row", "blocks"};

typedef struct large_shape {
    char name[72];
    int64_t m, n, k;
    scale_mode mode;
    fp8_accumulate accumulate;
} large_shape;

static const char *const default_shapes[] = {
    "8192,8192,8192",  "8192,12288,4096", "8192,16384,4096", "8192,4096,16384",
    "4096,4096,4096",  "2048,12288,3072", "2048,3072,4096",  "2048,49152,3072",
    "2048,3072,24576", "2048,6144,4096",  "2048,28672,4096", "2048,4096,14336",
    "256,12288,3072",  "256,3072,4096",   "256,49152,3072",  "256,3072,24576",
    "256,6144,4096",   "256,28672,4096",  "256,4096,14336",
};
enum { NUM_DEFAULTS = sizeof default_shapes / sizeof *default_shapes };

enum { COL_MS, COL_LOW, COL_HIGH, COL_TFLOPS, COL_RATIO, COL_ERROR, COL_MHZ, NUM_COLS };
static const fp8_bench_column columns[NUM_COLS] = {{"ms", 4},       {"ms_0.2", 4}, {"ms_0.8", 4},
                                                   {"TFLOP/s", 4},  {"of_first", 4},
                                                   {"rel_L2", 3},   {"SM_MHz", 4}};

/* ---- shapes ---------------------------------------------------------------------------------- */

static int take_word(const char **at, const char *word) {
    const size_t n = strlen(word);
    if (strncmp(*at, word, n) != 0 || ((*at)[n] != 0 && (*at)[n] != ',')) return 0;
    *at += n;
    return 1;
}

/* "M,N,K[,tensor|row|blocks][,fast]" */
static fp8_status parse_shape(large_shape *out, const char *text) {
    int64_t *const sizes[] = {&out->m, &out->n, &out->k};
    const char *at = text;

    memset(out, 0, sizeof *out);
    for (int i = 0; i < 3; i++) {
        char *end;
        const long long v = strtoll(at, &end, 10);
        if (end == at || v < 1 || v > 1 << 20 || (i < 2 && *end != ',')) goto bad;
        *sizes[i] = v;
        at = i < 2 ? end + 1 : end;
    }
    for (int mode = 0; *at == ',' && mode < NUM_MODES; mode++) {
        const char *word = at + 1;
        if (!take_word(&word, mode_names[mode])) continue;
        out->mode = (scale_mode)mode;
        at = word;
    }
    if (*at == ',') {
        at++;
        if (!take_word(&at, "fast")) goto bad;
        out->accumulate = FP8_ACCUMULATE_FAST;
    }
    if (*at) goto bad;
    snprintf(out->name, sizeof out->name, "%lldx%lldx%lld %s %s", (long long)out->m,
             (long long)out->n, (long long)out->k, mode_names[out->mode],
             out->accumulate == FP8_ACCUMULATE_FAST ? "fast" : "exact");
    return FP8_OK;
bad:
    return FP8_FAIL(FP8_EINVAL, "bench linear-large: shape '%s', expected "
                    "M,N,K[,tensor|row|blocks][,fast]", text);
}

/* ---- operands -------------------------------------------------------------------------------- */

typedef struct problem {
    fp8_device *d;
    const large_shape *shape;
    fp8_gemm g;
    uint8_t *host_a, *host_b;  /* codes */
    float *host_sa, *host_sb;  /* descales */
    void *a, *b[MAX_COPIES], *out, *sa, *sb, *workspace;
    int64_t sa_count, sb_count;
    size_t workspace_bytes;
    int copies, next, tuned;
    double error;
} problem;

static void free_problem(problem *p) {
    free(p->host_a);
    free(p->host_b);
    free(p->host_sa);
    free(p->host_sb);
    fp8_device_free(p->d, p->a);
    for (int i = 0; i < MAX_COPIES; i++) fp8_device_free(p->d, p->b[i]);
    fp8_device_free(p->d, p->out);
    fp8_device_free(p->d, p->sa);
    fp8_device_free(p->d, p->sb);
    fp8_device_free(p->d, p->workspace);
}

/* Codes of n normal numbers, on the device and the host. */
static fp8_status make_codes(fp8_device *d, void **device, uint8_t **host, int64_t n,
                             uint64_t seed) {
    uint16_t *normal = NULL;
    void *dense = NULL, *scale = NULL;
    float amax;
    fp8_status st;

    *host = malloc((size_t)n);
    if (!*host) return FP8_FAIL(FP8_ENOMEM, "bench: %lld codes", (long long)n);
    FP8_TRY(bench_upload_normal(d, &normal, &dense, n, seed, 1, &amax));
    FP8_TRY(fp8_device_alloc(d, device, (size_t)n));
    FP8_TRY(fp8_device_alloc(d, &scale, sizeof grow));
    FP8_TRY(fp8_device_upload(d, scale, &grow, sizeof grow));
    FP8_TRY(fp8_quantize(d, *device, FP8_DTYPE_E4M3, dense, FP8_DTYPE_BF16, n, scale));
    FP8_TRY(fp8_device_download(d, *host, *device, (size_t)n));
done:
    free(normal);
    fp8_device_free(d, dense);
    fp8_device_free(d, scale);
    return st;
}

/* n descales between 0.5 and 1.5 of 1 / grow. */
static fp8_status make_descales(fp8_device *d, void **device, float **host, int64_t n,
                                uint64_t state) {
    fp8_status st;
    *host = malloc((size_t)n * sizeof **host);
    if (!*host) return FP8_FAIL(FP8_ENOMEM, "bench: %lld descales", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        (*host)[i] = (0.5f + (float)(state >> 40) * 0x1p-24f) / grow;
    }
    FP8_TRY(fp8_device_alloc(d, device, (size_t)n * sizeof **host));
    FP8_TRY(fp8_device_upload(d, *device, *host, (size_t)n * sizeof **host));
done:
    return st;
}

static void describe(problem *p) {
    const large_shape *s = p->shape;
    const int64_t groups = (s->k + FP8_GEMM_BLOCK - 1) / FP8_GEMM_BLOCK;
    const int64_t ld = (groups + 3) / 4 * 4;

    p->g = (fp8_gemm){.m = s->m, .n = s->n, .k = s->k, .lda = s->k, .ldb = s->k, .ldd = s->n,
                      .a_dtype = FP8_DTYPE_E4M3, .b_dtype = FP8_DTYPE_E4M3,
                      .d_dtype = FP8_DTYPE_BF16, .alpha = 1, .a_descale_count = 1,
                      .b_descale_count = 1, .accumulate = s->accumulate};
    p->sa_count = s->mode == BY_TENSOR ? 1 : s->mode == BY_ROW ? s->m : groups * s->m;
    p->sb_count = s->mode == BY_TENSOR ? 1 : s->mode == BY_ROW ? s->n
                  : (s->n + FP8_GEMM_BLOCK - 1) / FP8_GEMM_BLOCK * ld;
    if (s->mode == BY_ROW) p->g.a_descale_count = s->m, p->g.b_descale_count = s->n;
    if (s->mode != BY_BLOCK) return;
    p->g.scaling = FP8_GEMM_BLOCKS;
    p->g.a_descale_ld = s->m;
    p->g.b_descale_ld = ld;
}

static fp8_status make_problem(problem *p) {
    const large_shape *s = p->shape;
    const int64_t b_bytes = s->n * s->k, wanted = (L2_BYTES + b_bytes - 1) / b_bytes;
    fp8_status st;

    p->copies = (int)(wanted < MAX_COPIES ? wanted : MAX_COPIES);
    describe(p);
    FP8_TRY(make_codes(p->d, &p->a, &p->host_a, s->m * s->k, 21));
    FP8_TRY(make_codes(p->d, &p->b[0], &p->host_b, b_bytes, 22));
    for (int i = 1; i < p->copies; i++) {
        FP8_TRY(fp8_device_alloc(p->d, &p->b[i], (size_t)b_bytes));
        FP8_TRY(fp8_device_copy(p->d, p->b[i], p->b[0], (size_t)b_bytes));
    }
    FP8_TRY(make_descales(p->d, &p->sa, &p->host_sa, p->sa_count, 23));
    FP8_TRY(make_descales(p->d, &p->sb, &p->host_sb, p->sb_count, 24));
    FP8_TRY(fp8_device_alloc(p->d, &p->out, (size_t)(s->m * s->n) * 2));
    p->g.a = p->a, p->g.b = p->b[0], p->g.d = p->out;
    p->g.a_descale = p->sa, p->g.b_descale = p->sb;
    p->workspace_bytes = fp8_gemm_workspace_size(p->d, &p->g);
    FP8_TRY(fp8_device_alloc(p->d, &p->workspace, p->workspace_bytes));
done:
    return st;
}

/* ---- providers ------------------------------------------------------------------------------- */

static fp8_status call_first(void *ctx) {
    problem *p = ctx;
    p->g.b = p->b[p->next];
    p->next = (p->next + 1) % p->copies;
    return fp8_gemm_run(p->d, &p->g, p->workspace, p->workspace_bytes);
}

/* The race makes its graphs one contender after the other: what `first` runs is settled by then. */
static fp8_status call_tuned(void *ctx) {
    problem *p = ctx;
    fp8_status st;
    if (!p->tuned) FP8_TRY(fp8_gemm_tune(p->d, &p->g, p->workspace, p->workspace_bytes, NULL));
    p->tuned = 1;
    FP8_TRY(call_first(p));
done:
    return st;
}

static double descale_at(const problem *p, int64_t i, int64_t j, int64_t k) {
    const int64_t group = k / FP8_GEMM_BLOCK;
    if (p->shape->mode == BY_TENSOR) return (double)p->host_sa[0] * (double)p->host_sb[0];
    if (p->shape->mode == BY_ROW) return (double)p->host_sa[i] * (double)p->host_sb[j];
    return (double)p->host_sa[group * p->g.a_descale_ld + i] *
           (double)p->host_sb[j / FP8_GEMM_BLOCK * p->g.b_descale_ld + group];
}

static double expected(const problem *p, const double *values, int64_t i, int64_t j) {
    const int64_t depth = p->shape->k;
    double sum = 0;
    for (int64_t k = 0; k < depth; k++)
        sum += values[p->host_a[i * depth + k]] * values[p->host_b[j * depth + k]] *
               descale_at(p, i, j, k);
    return sum;
}

/* Relative L2 of sampled elements; more than 1e-2 (fast: its truncation) or 4e-3 is wrong. */
static fp8_status check_output(problem *p, const char *who) {
    const large_shape *s = p->shape;
    const double most = s->accumulate == FP8_ACCUMULATE_FAST ? 1e-2 : 4e-3;
    uint16_t *row = malloc((size_t)s->n * sizeof *row);
    double values[256], error = 0, reference = 0;
    fp8_status st = FP8_OK;

    if (!row) return FP8_FAIL(FP8_ENOMEM, "bench: %lld elements", (long long)s->n);
    for (int c = 0; c < 256; c++) values[c] = (double)fp8_to_f32(FP8_DTYPE_E4M3, (uint8_t)c);
    for (int64_t r = 0; r < SAMPLED_ROWS; r++) {
        const int64_t i = (s->m - 1) - r * 7919 % s->m;
        FP8_TRY(fp8_device_download(p->d, row, (uint16_t *)p->out + i * s->n,
                                    (size_t)s->n * sizeof *row));
        for (int64_t c = 0; c < SAMPLED_COLS; c++) {
            const int64_t j = (s->n - 1) - (c * 6007 + r) % s->n;
            const double want = expected(p, values, i, j), got = (double)fp8_bf16_to_f32(row[j]);
            error += (got - want) * (got - want);
            reference += want * want;
        }
    }
    p->error = sqrt(error / reference);
    if (!(p->error <= most))
        st = FP8_FAIL(FP8_EDATA, "%s, %s: relative error %.3g, expected at most %.3g", s->name,
                      who, p->error, most);
done:
    free(row);
    return st;
}

/* Each contender's own output, into a cleared D. */
static fp8_status check_contender(problem *p, bench_contender *c, const char *who) {
    fp8_status st;
    FP8_TRY(fp8_device_fill(p->d, p->out, 0, (size_t)(p->shape->m * p->shape->n) * 2));
    FP8_TRY(c->call(c->ctx));
    FP8_TRY(check_output(p, who));
done:
    return st;
}

/* ---- the table ------------------------------------------------------------------------------- */

static double flops_of(const large_shape *s) {
    return 2.0 * (double)s->m * (double)s->n * (double)s->k;
}

static fp8_status add_result(fp8_bench_table *t, const large_shape *s, const char *who,
                             const bench_contender *c, double first_ms, double error, double mhz) {
    fp8_bench_row *row;
    fp8_status st;

    FP8_TRY(fp8_bench_add_row(t, &row, s->name, who));
    row->value[COL_MS] = c->ms;
    row->value[COL_LOW] = c->ms_low;
    row->value[COL_HIGH] = c->ms_high;
    row->value[COL_TFLOPS] = flops_of(s) / c->ms * 1e-9;
    row->value[COL_RATIO] = c->ms / first_ms;
    row->value[COL_ERROR] = error;
    if (mhz > 0) row->value[COL_MHZ] = mhz;
done:
    return st;
}

static fp8_status add_limit(fp8_bench_table *t, const large_shape *s, double fp8_flops,
                            double first_ms) {
    fp8_bench_row *row;
    fp8_status st;

    if (fp8_flops == 0) return FP8_OK;
    FP8_TRY(fp8_bench_add_row(t, &row, s->name, "limit"));
    row->value[COL_MS] = flops_of(s) / fp8_flops * 1e3;
    row->value[COL_TFLOPS] = fp8_flops * 1e-12;
    row->value[COL_RATIO] = row->value[COL_MS] / first_ms;
    snprintf(row->note, sizeof row->note, "8192^3 with fast accumulation, measured in this run");
done:
    return st;
}

static fp8_status bench_one(fp8_bench_table *t, fp8_device *d, const large_shape *s,
                            double fp8_flops, const fp8_bench_options *options) {
    problem p = {.d = d, .shape = s};
    bench_contender field[2] = {{.call = call_first, .ctx = &p}, {.call = call_tuned, .ctx = &p}};
    double errors[2], mhz = 0;
    fp8_status st;

    if (options->note) options->note(s->name);
    fp8_gemm_cache_clear();
    FP8_TRY(make_problem(&p));
    FP8_TRY(check_contender(&p, &field[0], "cuBLASLt's first"));
    errors[0] = p.error;
    FP8_TRY(bench_race(d, field, 2, options, &mhz));
    FP8_TRY(check_contender(&p, &field[1], "tuned"));
    errors[1] = p.error;
    FP8_TRY(add_result(t, s, "fp8_gemm, tuned", &field[1], field[0].ms, errors[1], mhz));
    FP8_TRY(add_result(t, s, "cuBLASLt's first", &field[0], field[0].ms, errors[0], mhz));
    FP8_TRY(add_limit(t, s, fp8_flops, field[0].ms));
done:
    free_problem(&p);
    return st;
}

static fp8_status bench_default(fp8_bench_table *t, fp8_device *d, double fp8_flops,
                                const fp8_bench_options *options) {
    static const char *const kinds[] = {"tensor", "tensor,fast", "row", "row,fast"};
    large_shape s;
    char text[96];
    fp8_status st;

    for (int i = 0; i < NUM_DEFAULTS; i++)
        for (int kind = 0; kind < 4; kind++) {
            snprintf(text, sizeof text, "%s,%s", default_shapes[i], kinds[kind]);
            FP8_TRY(parse_shape(&s, text));
            FP8_TRY(bench_one(t, d, &s, fp8_flops, options));
        }
    FP8_TRY(parse_shape(&s, "4096,7168,16384,blocks"));
    FP8_TRY(bench_one(t, d, &s, fp8_flops, options));
done:
    return st;
}

fp8_status fp8_bench_linear_large(fp8_bench_table *out, fp8_device *d,
                                  const fp8_bench_options *options) {
    bench_rates rates = {0};
    large_shape s;
    fp8_status st;

    if (fp8_device_capability(d) < 89)
        return FP8_FAIL(FP8_EUNSUPPORTED, "bench linear-large: %s has no FP8 products",
                        fp8_device_name(d));
    out->columns = columns;
    out->num_columns = NUM_COLS;
    out->drawn = COL_TFLOPS;
    for (int32_t i = 0; i < options->num_shapes; i++)
        FP8_TRY(parse_shape(&s, options->shapes[i]));
    FP8_TRY(bench_measure_rates(&rates, d, options));
    snprintf(out->title, sizeof out->title, "FP8 products on %s: E4M3 of normal numbers, BF16 out, "
             "weights in turns past the L2 cache, CUDA graphs, medians of %lld rounds",
             fp8_device_name(d), (long long)options->rounds);
    if (options->num_shapes == 0) st = bench_default(out, d, rates.fp8_flops, options);
    for (int32_t i = 0; i < options->num_shapes; i++) {
        FP8_TRY(parse_shape(&s, options->shapes[i]));
        FP8_TRY(bench_one(out, d, &s, rates.fp8_flops, options));
    }
done:
    return st;
}
