/* A sweep over the options of attention: cells drawn from a fixed seed until every value of every
 * option has come up, each against fp8_attention_reference, unfused for all of them, flash and
 * fused wherever they say that they serve. What no call may touch must keep its bytes; what it may
 * not read is NaN. Oracles first, on all processors; then the GPU.
 *
 * Bound of an element, with A = sum P |v| from a second oracle on |V|:
 *   u(O) |o| + (u(P) + 2 e) A,   e = 3 u(sums) scale d   what the sums of a score may be off
 * u: unit roundoff of a type; codes of P may flip to a neighbour, 2 u; FP8 sums keep 13 bits; 3:
 * |q k| at the largest descales. */
#include <time.h>

#include "attention_cell.h"

enum { NUM_MIXED = 320, NUM_PLAIN = 128, NUM_CELLS = NUM_MIXED + NUM_PLAIN, MAX_FAILURES = 10000 };

typedef struct job {
    cell c;
    double *o, *lse, *spread, amax[2]; /* spread: A */
} job;

static const fp8_attention_backend backends[] = {FP8_BACKEND_UNFUSED, FP8_BACKEND_FLASH,
                                                 FP8_BACKEND_FUSED};
enum { NUM_BACKENDS = sizeof backends / sizeof *backends };

/* ---- drawing --------------------------------------------------------------------------------- */

enum {
    OPT_LAYOUT,
    OPT_PAD,
    OPT_HEADS,
    OPT_D,
    OPT_MASK,
    OPT_MASK_SHAPE,
    OPT_WINDOW,
    OPT_BIAS,
    OPT_BIAS_SHAPE,
    OPT_BIAS_DTYPE,
    OPT_SOFTCAP,
    OPT_SINK,
    OPT_TYPES,
    OPT_O_DTYPE,
    OPT_GRANULARITY,
    OPT_QUANTIZE_P,
    OPT_PRECISION,
    OPT_SCALE,
    OPT_APART,
    OPT_WANT,
    NUM_OPTIONS
};
enum { MAX_VALUES = 24 };
static int drawn[NUM_OPTIONS][MAX_VALUES];
static int num_values[NUM_OPTIONS];

static int draw(int option, int n, uint64_t *seed) {
    const int x = (int)(check_random(seed) % (uint64_t)n);
    num_values[option] = n;
    drawn[option][x]++;
    return x;
}
#define DRAW(option, list) (list)[draw(option, (int)(sizeof(list) / sizeof *(list)), seed)]

typedef struct types {
    fp8_dtype q, kv;
    fp8_attention_quantize quantize;
} types;

#define BF16 FP8_DTYPE_BF16
#define F16 FP8_DTYPE_F16
#define F32 FP8_DTYPE_F32
#define E4M3 FP8_DTYPE_E4M3

static const types all_types[] = {
    {BF16, BF16, FP8_QUANTIZE_NOT},      {F16, F16, FP8_QUANTIZE_NOT},
    {F32, F32, FP8_QUANTIZE_NOT},        {E4M3, E4M3, FP8_QUANTIZE_NOT},
    {BF16, E4M3, FP8_QUANTIZE_NOT},      {E4M3, BF16, FP8_QUANTIZE_NOT},
    {F16, E4M3, FP8_QUANTIZE_NOT},       {E4M3, F16, FP8_QUANTIZE_NOT},
    {F32, E4M3, FP8_QUANTIZE_NOT},       {E4M3, F32, FP8_QUANTIZE_NOT},
    {BF16, BF16, FP8_QUANTIZE_GIVEN},    {F16, F16, FP8_QUANTIZE_GIVEN},
    {F32, F32, FP8_QUANTIZE_GIVEN},      {BF16, BF16, FP8_QUANTIZE_CURRENT},
    {F16, F16, FP8_QUANTIZE_CURRENT},    {F32, F32, FP8_QUANTIZE_CURRENT},
    {BF16, E4M3, FP8_QUANTIZE_CURRENT},  {E4M3, F16, FP8_QUANTIZE_GIVEN},
};
static const types fp8_types[] = { /* those that flash and fused may know */
    {E4M3, E4M3, FP8_QUANTIZE_NOT},      {BF16, BF16, FP8_QUANTIZE_NOT},
    {F16, F16, FP8_QUANTIZE_NOT},        {BF16, BF16, FP8_QUANTIZE_GIVEN},
    {BF16, BF16, FP8_QUANTIZE_CURRENT},  {F16, F16, FP8_QUANTIZE_CURRENT},
};
static const fp8_dtype out_types[] = {BF16, F16, F32, E4M3}, bias_types[] = {F32, BF16, F16};
static const int heads[][2] = {{1, 1}, {3, 3}, {4, 2}, {6, 2}, {5, 1}, {2, 2}};
static const int few_heads[][2] = {{1, 1}, {2, 2}, {2, 1}, {4, 2}}; /* of plain cells */
static const int sizes[][2] = {{1, 1},   {7, 5},    {20, 20},   {33, 7},   {64, 64}, {128, 128},
                               {192, 128}, {256, 256}, {64, 128}, {128, 64}, {80, 80}, {96, 96}};
static const int even_sizes[] = {64, 128, 256};
static const int64_t windows[][2] = {{-1, -1}, {-1, -1}, {0, 0}, {7, -1},
                                     {-1, 3},  {20, 5},  {40, 0}};
static const float softcaps[] = {0.0f, 0.0f, 15.0f, 2.0f}, scales[] = {0.0f, 0.0f, 0.3f};
static const int64_t pads[] = {-1, -1, -1, 3, 16};
static const int32_t lengths[] = {0, 1, 2, 7, 17, 40, 63, 64, 65};
static const int32_t tile_lengths[] = {1, 63, 64, 65, 127, 128, 129, 150, 257};
static const int wants[] = {0, 1, 1};

/* Formats of memory that a layout shares must agree. */
static void fit_layout(fp8_attention_options *o) {
    const char *name = fp8_attention_layout_name(o->layout);
    if (strchr(name, '3')) {
        o->num_kv_heads = o->num_heads;
        if (o->kv_dtype == E4M3) o->kv_dtype = o->q_dtype;
        o->q_dtype = o->kv_dtype;
        if (o->q_dtype == E4M3) o->quantize = FP8_QUANTIZE_NOT;
    }
    if (strpbrk(name, "23")) o->d_v = o->d_qk;
}

/* Any options at all. */
static fp8_attention_options draw_mixed(int i, uint64_t *seed) {
    fp8_attention_options o = FP8_ATTENTION_OPTIONS;
    const int *h = DRAW(OPT_HEADS, heads), *d = DRAW(OPT_D, sizes);
    const int64_t *w = DRAW(OPT_WINDOW, windows);
    const types t = DRAW(OPT_TYPES, all_types);

    o.layout = (fp8_attention_layout)(i % FP8_NUM_LAYOUTS);
    o.num_heads = h[0];
    o.num_kv_heads = h[1];
    o.d_qk = d[0];
    o.d_v = d[1];
    o.mask = (fp8_attention_mask)draw(OPT_MASK, FP8_MASK_ARBITRARY + 1, seed);
    o.mask_shape = (fp8_attention_bias_shape)draw(OPT_MASK_SHAPE, FP8_BIAS_BHSS + 1, seed);
    o.window_left = w[0];
    o.window_right = w[1];
    o.bias = (fp8_attention_bias)draw(OPT_BIAS, FP8_BIAS_ALIBI + 1, seed);
    o.bias_shape = (fp8_attention_bias_shape)draw(OPT_BIAS_SHAPE, FP8_BIAS_BHSS + 1, seed);
    o.bias_dtype = DRAW(OPT_BIAS_DTYPE, bias_types);
    o.softcap = DRAW(OPT_SOFTCAP, softcaps);
    o.sink = (fp8_attention_sink)draw(OPT_SINK, FP8_SINK_LEARNABLE + 1, seed);
    o.scale = DRAW(OPT_SCALE, scales);
    o.q_dtype = t.q;
    o.kv_dtype = t.kv;
    o.quantize = t.quantize;
    o.o_dtype = DRAW(OPT_O_DTYPE, out_types);
    o.granularity = (fp8_attention_granularity)draw(OPT_GRANULARITY, FP8_DESCALE_BATCH_HEAD + 1,
                                                    seed);
    o.quantize_p = draw(OPT_QUANTIZE_P, 2, seed);
    o.precision = (fp8_attention_precision)draw(OPT_PRECISION, FP8_ATTENTION_FAST + 1, seed);
    o.want_lse = DRAW(OPT_WANT, wants);
    o.want_amax = DRAW(OPT_WANT, wants);
    fit_layout(&o);
    return o;
}

/* What the fast backends are made for: no bias, softcap, sink or arbitrary mask. */
static fp8_attention_options draw_plain(int i, uint64_t *seed) {
    fp8_attention_options o = FP8_ATTENTION_OPTIONS;
    const int *h = few_heads[check_random(seed) % 4];
    const types t = DRAW(OPT_TYPES, fp8_types);

    o.layout = (fp8_attention_layout)(i % FP8_NUM_LAYOUTS);
    o.num_heads = h[0];
    o.num_kv_heads = h[1];
    o.d_qk = o.d_v = even_sizes[check_random(seed) % 3];
    o.mask = (fp8_attention_mask)draw(OPT_MASK, FP8_MASK_CAUSAL_BOTTOM_RIGHT + 1, seed);
    if (check_random(seed) % 3 == 0) o.window_left = 30 + (int64_t)(check_random(seed) % 100);
    if (check_random(seed) % 5 == 0) o.window_right = (int64_t)(check_random(seed) % 50);
    o.q_dtype = t.q;
    o.kv_dtype = t.kv;
    o.quantize = t.quantize;
    o.quantize_p = t.quantize != FP8_QUANTIZE_NOT || t.q == E4M3;
    o.o_dtype = t.q == E4M3 ? out_types[check_random(seed) % 4] : t.q;
    o.granularity = (fp8_attention_granularity)draw(OPT_GRANULARITY, FP8_DESCALE_BATCH_HEAD + 1,
                                                    seed);
    o.want_lse = DRAW(OPT_WANT, wants);
    o.want_amax = check_random(seed) % 4 == 0;
    fit_layout(&o);
    return o;
}

static void make_cell(cell *c, int i, uint64_t *seed) {
    const int plain = i >= NUM_MIXED;
    const fp8_attention_options o = plain ? draw_plain(i, seed) : draw_mixed(i, seed);
    const int num_seqs = 1 + (int)(check_random(seed) % (plain ? 3 : 4));
    const int apart = draw(OPT_APART, 2, seed);
    const int64_t pad = DRAW(OPT_PAD, pads);
    const int named = strpbrk(fp8_attention_layout_name(o.layout), "23") != NULL ||
                      (o.layout != FP8_LAYOUT_THD_THD_THD && o.layout != FP8_LAYOUT_BSHD_BSHD_BSHD);
    cell_lengths l[CELL_MAX_SEQS];

    drawn[OPT_LAYOUT][o.layout]++;
    num_values[OPT_LAYOUT] = FP8_NUM_LAYOUTS;
    for (int s = 0; s < num_seqs; s++) {
        const int32_t *from = plain ? tile_lengths : lengths; /* 9 each */
        l[s] = (cell_lengths){from[check_random(seed) % 9], from[check_random(seed) % 9]};
        if (check_random(seed) % 2) l[s].kv = l[s].q;
    }
    cell_init(c, &o, l, num_seqs, apart, named ? -1 : pad, check_random(seed));
}

/* ---- the oracles ----------------------------------------------------------------------------- */

static int64_t out_rows(const cell *c) {
    return c->packed ? c->total_q : c->o.num_seqs * c->o.max_q;
}

static void *doubles(int64_t n) {
    double *x = malloc((size_t)(n > 0 ? n : 1) * sizeof *x);
    if (!x) abort();
    for (int64_t i = 0; i < n; i++) x[i] = NAN;
    return x;
}

/* V becomes |V|. */
static void take_magnitudes(cell *c) {
    const fp8_attention_options *o = &c->o;
    void *v = c->host[c->v_mem];
    for (int64_t s = 0; s < o->num_seqs; s++)
        for (int64_t i = 0; i < c->length[s].kv; i++)
            for (int64_t h = 0; h < o->num_kv_heads; h++)
                for (int64_t e = 0; e < o->d_v; e++) {
                    const int64_t at = c->at.v_offset + e +
                                       cell_at(o->v, s, c->kv_begin[s] + i, h);
                    element_set(v, o->kv_dtype, at, fabsf(element_get(v, o->kv_dtype, at)));
                }
}

static fp8_status run_oracles(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    fp8_status st = FP8_OK;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        job *j = (job *)ctx + i;
        const fp8_attention_options *o = &j->c.o;
        const int64_t rows = out_rows(&j->c), n = rows * o->num_heads * o->d_v;
        const size_t bytes = j->c.bytes[j->c.v_mem];
        const fp8_attention_io io = cell_io(&j->c, j->c.host);
        void *kept = malloc(bytes);

        j->o = doubles(n);
        j->spread = doubles(n);
        j->lse = doubles(rows * o->num_heads);
        FP8_TRY(fp8_attention_reference(j->o, j->lse, j->amax, o, &io));
        memcpy(kept, j->c.host[j->c.v_mem], bytes);
        take_magnitudes(&j->c);
        FP8_TRY(fp8_attention_reference(j->spread, NULL, NULL, o, &io));
        memcpy(j->c.host[j->c.v_mem], kept, bytes);
        free(kept);
    }
done:
    return st;
}

/* ---- verdicts -------------------------------------------------------------------------------- */

typedef struct bounds {
    double o, p, score, floor; /* u(O); u(P); e; what the smallest codes add */
    double lse, amax;
} bounds;

/* What multiplied O, and the most that E4M3 holds of it. */
static double o_scale(const cell *c) {
    const float *scale = c->host[MEM_O_SCALE];
    return scale ? (double)*scale : 1;
}
static double saturate(const cell *c, double x) {
    const double most = c->host[MEM_O_SCALE] ? 448 / o_scale(c) : INFINITY;
    return x > most ? most : x < -most ? -most : x;
}

static bounds bounds_of(const cell *c) {
    const fp8_attention_options *o = &c->o;
    const int codes = (o->q_dtype == E4M3 || o->quantize) && (o->kv_dtype == E4M3 || o->quantize);
    const int f32 = o->q_dtype == F32 && o->kv_dtype == F32 && !o->quantize;
    const double scale = o->scale != 0 ? (double)o->scale : 1 / sqrt(o->d_qk);
    bounds b = {.o = unit_roundoff(o->o_dtype), .p = f32 ? 0x1p-22 : 0x1p-8};
    b.score = 3 * scale * o->d_qk * (codes ? 0x1p-13 : 0x1p-22) + 0x1p-19;
    b.floor = o->o_dtype == E4M3 ? 0x1p-10 / o_scale(c) : o->o_dtype == F16 ? 0x1p-25 : 1e-12;
    b.lse = b.score;
    b.amax = b.o + 2 * b.score;
    if (o->quantize_p) {
        b.p = 0x1p-3;
        b.floor += (double)o->max_kv * 4 * 0x1p-17;
    }
    if (o->quantize_p && o->backend != FP8_BACKEND_UNFUSED) b.lse += 0x1p-4; /* sum of codes */
    if (o->quantize_p) b.amax += b.p;
    return b;
}

static int mismatches;

static void mismatch(const char *what, int64_t s, int64_t i, int64_t h, int64_t e, double got,
                     double want, double bound) {
    check_failures++;
    if (++mismatches <= 3)
        fprintf(stderr, "[%s] %s[%lld, %lld, %lld, %lld] = %.9g, want %.9g +- %.3g\n", check_case,
                what, (long long)s, (long long)i, (long long)h, (long long)e, got, want, bound);
}

/* One row of O. Marks what it looked at; returns the worst error over its bound. */
static double check_row(const job *j, const bounds *b, int64_t s, int64_t i, int64_t h,
                        uint8_t *marks) {
    const cell *c = &j->c;
    const fp8_attention_options *o = &c->o;
    const int64_t token = c->q_begin[s] + i;
    const int64_t row = c->packed ? token : s * o->max_q + i;
    double worst = 0;

    for (int64_t e = 0; e < o->d_v; e++) {
        const int64_t at = cell_at(o->o, s, token, h) + e, from = (row * o->num_heads + h) * o->d_v;
        const double got = (double)element_get(c->host[MEM_O], o->o_dtype, at) / o_scale(c);
        const double want = saturate(c, j->o[from + e]), spread = j->spread[from + e];
        const double bound = spread == 0 ? 0
                             : b->o * fabs(want) + (b->p + 2 * b->score) * spread + b->floor;
        const double off = fabs(got - want);
        marks[at] = 1;
        if (!(off <= bound)) mismatch("O", s, i, h, e, got, want, bound);
        else if (bound > 0 && off / bound > worst) worst = off / bound;
    }
    return worst;
}

static void check_lse(const job *j, const bounds *b, int64_t s, int64_t i, int64_t h,
                      uint8_t *marks) {
    const cell *c = &j->c;
    const fp8_attention_options *o = &c->o;
    const int64_t at = c->packed ? h * c->total_q + c->q_begin[s] + i
                                 : (s * o->num_heads + h) * o->max_q + i;
    const double want = j->lse[at], got = (double)((float *)c->host[MEM_LSE])[at];
    const double bound = b->lse + 0x1p-20 * (1 + fabs(want));
    marks[at] = 1;
    if (got == want) return;
    if (!(fabs(got - want) <= bound)) mismatch("LSE", s, i, h, 0, got, want, bound);
}

/* Nothing outside the rows was written. */
static void check_untouched(const void *memory, const uint8_t *marks, int64_t n, size_t size,
                            const char *what) {
    const uint8_t *p = memory;
    for (int64_t i = 0; i < n; i++)
        for (size_t k = 0; !marks[i] && k < size; k++)
            if (p[(size_t)i * size + k] != 0xff) {
                mismatch(what, i, 0, 0, 0, p[(size_t)i * size + k], 255, 0);
                break;
            }
}

static void check_amax(const job *j, const bounds *b) {
    const float *got = j->c.host[MEM_AMAX];
    const double o_bound = b->amax * j->amax[1] + (b->p + 2 * b->score) * 8 + b->floor;
    if (!(fabs((double)got[0] - j->amax[0]) <= (2 * b->lse + 0x1p-18) * j->amax[0]))
        mismatch("amax S", 0, 0, 0, 0, (double)got[0], j->amax[0], 2 * b->lse);
    if (!(fabs((double)got[1] - j->amax[1]) <= o_bound))
        mismatch("amax O", 0, 0, 0, 0, (double)got[1], j->amax[1], o_bound);
}

static double check_cell(const job *j) {
    const cell *c = &j->c;
    const fp8_attention_options *o = &c->o;
    const size_t size = fp8_dtype_size(o->o_dtype);
    const int64_t n = (int64_t)(c->bytes[MEM_O] / size), rows = out_rows(c) * o->num_heads;
    const bounds b = bounds_of(c);
    uint8_t *marks = calloc((size_t)n + 1, 1), *lse_marks = calloc((size_t)rows + 1, 1);
    double worst = 0;

    mismatches = 0;
    for (int64_t s = 0; s < o->num_seqs; s++)
        for (int64_t i = 0; i < (c->packed ? c->length[s].q : o->max_q); i++)
            for (int64_t h = 0; h < o->num_heads; h++) {
                worst = fmax(worst, check_row(j, &b, s, i, h, marks));
                if (o->want_lse) check_lse(j, &b, s, i, h, lse_marks);
            }
    check_untouched(c->host[MEM_O], marks, n, size, "O around");
    if (o->want_lse)
        check_untouched(c->host[MEM_LSE], lse_marks, rows, sizeof(float), "LSE around");
    if (o->want_amax) check_amax(j, &b);
    free(marks);
    free(lse_marks);
    return worst;
}

/* Runs once more: the same bytes. */
static void check_again(cell *c, fp8_device *gpu, fp8_attention_plan *plan) {
    void *kept[NUM_MEM] = {NULL};
    for (int i = MEM_O; i <= MEM_AMAX; i++) {
        if (!c->host[i]) continue;
        kept[i] = malloc(c->bytes[i]);
        memcpy(kept[i], c->host[i], c->bytes[i]);
    }
    cell_poison(c);
    CHECK_STATUS(cell_run(c, gpu, plan), FP8_OK);
    for (int i = MEM_O; i <= MEM_AMAX; i++) {
        if (c->host[i]) CHECK(memcmp(kept[i], c->host[i], c->bytes[i]) == 0);
        free(kept[i]);
    }
}

/* ---- the sweep ------------------------------------------------------------------------------- */

static const char *describe(const cell *c, int i) {
    static char text[512];
    const fp8_attention_options *o = &c->o;
    snprintf(text, sizeof text,
             "%d %s: %s%s, heads %d/%d, d %d/%d, %lld x (%lld, %lld)%s, mask %d/%d, window %lld "
             "%lld, bias %d/%d/%s, softcap %g, sink %d, scale %g, %s %s -> %s, quantize %d, "
             "granularity %d, P %d, precision %d",
             i, fp8_attention_backend_name(o->backend), fp8_attention_layout_name(o->layout),
             o->has_strides ? " strided" : "", o->num_heads, o->num_kv_heads, o->d_qk, o->d_v,
             (long long)o->num_seqs, (long long)o->max_q, (long long)o->max_kv,
             c->host[MEM_Q_LENGTHS] ? " lengths" : "", (int)o->mask, (int)o->mask_shape,
             (long long)o->window_left, (long long)o->window_right, (int)o->bias,
             (int)o->bias_shape, fp8_dtype_name(o->bias_dtype), (double)o->softcap, (int)o->sink,
             (double)o->scale, fp8_dtype_name(o->q_dtype), fp8_dtype_name(o->kv_dtype),
             fp8_dtype_name(o->o_dtype), (int)o->quantize, (int)o->granularity, o->quantize_p,
             (int)o->precision);
    return text;
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct tally {
    int served, asked;
    double worst, seconds;
} tally;

static void try_backend(job *j, int i, fp8_attention_backend backend, fp8_device *gpu, tally *t) {
    const double begin = seconds();
    fp8_attention_plan *plan = NULL;
    fp8_status st;

    j->c.o.backend = backend;
    check_case = describe(&j->c, i);
    t->asked++;
    st = fp8_attention_plan_create(&plan, gpu, &j->c.o);
    if (!plan) {
        CHECK_STATUS(st, backend == FP8_BACKEND_UNFUSED ? FP8_OK : FP8_EUNSUPPORTED);
        return;
    }
    t->served++;
    cell_poison(&j->c);
    st = cell_run(&j->c, gpu, plan);
    CHECK_STATUS(st, FP8_OK);
    if (st == FP8_OK) {
        t->worst = fmax(t->worst, check_cell(j));
        check_again(&j->c, gpu, plan);
    }
    fp8_attention_plan_destroy(plan);
    t->seconds += seconds() - begin;
}

/* cuDNN compiles a kernel for most cells: fewer of them. */
static int asks(fp8_attention_backend backend, int i) {
    return backend != FP8_BACKEND_FUSED || i % 8 == 0;
}

static void check_coverage(void) {
    check_case = "coverage";
    for (int k = 0; k < NUM_OPTIONS; k++)
        for (int v = 0; v < num_values[k]; v++)
            if (!drawn[k][v]) {
                fprintf(stderr, "option %d: value %d was never drawn\n", k, v);
                check_failures++;
            }
}

int main(void) {
    fp8_device *gpu = check_gpu(), *cpu = NULL;
    job *jobs = calloc(NUM_CELLS, sizeof *jobs);
    uint64_t seed = 20261121;
    tally tallies[NUM_BACKENDS] = {{0}};

    if (!gpu || !jobs) {
        free(jobs);
        return TEST_SKIP;
    }
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 0), FP8_OK);
    for (int i = 0; i < NUM_CELLS; i++) make_cell(&jobs[i].c, i, &seed);
    check_coverage();
    CHECK_STATUS(fp8_parallel_for(fp8_device_pool(cpu), NUM_CELLS, 1, run_oracles, jobs), FP8_OK);
    for (int i = 0; i < NUM_CELLS && check_failures < MAX_FAILURES; i++)
        for (int b = 0; b < NUM_BACKENDS; b++)
            if (asks(backends[b], i)) try_backend(&jobs[i], i, backends[b], gpu, &tallies[b]);
    for (int b = 0; b < NUM_BACKENDS; b++)
        fprintf(stderr, "%-8s served %d of %d cells in %.1f s, worst error %.2f of its bound\n",
                fp8_attention_backend_name(backends[b]), tallies[b].served, tallies[b].asked,
                tallies[b].seconds, tallies[b].worst);
    for (int i = 0; i < NUM_CELLS; i++) {
        cell_free(&jobs[i].c);
        free(jobs[i].o);
        free(jobs[i].lse);
        free(jobs[i].spread);
    }
    free(jobs);
    fp8_device_destroy(cpu);
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
