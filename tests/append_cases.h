/* tests/append_cases.h - appending to a paged cache: random problems on the host, the table of
 * cases, a run of one on any device, and its verdict by the formula in double. Every byte that is
 * not to be written is looked at too. */
#ifndef FP8_TESTS_APPEND_CASES_H
#define FP8_TESTS_APPEND_CASES_H
#include "decode_cases.h"

enum { POSITIONS = 700, PATTERN = 0xa5, APPEND_MAX_SEQS = 70 };

typedef struct append_case {
    const char *name;
    int32_t heads, kv_heads, d_qk, d_v, page_size;
    fp8_dtype dtype, kv_dtype, q_dtype;
    int32_t rotary_dim;
    fp8_rope_form rope;
    int normed, plus, rounded, given_positions, per_head, gap; /* gap: elements between heads */
    int32_t num_seqs;
    struct {
        int32_t q, kv;
    } length[APPEND_MAX_SEQS];
} append_case;

enum {
    MEM_XQ, MEM_XK, MEM_XV, MEM_WQ, MEM_WK, MEM_COS, MEM_SIN, MEM_POSITIONS, MEM_TABLE, MEM_LENGTHS,
    MEM_STARTS, MEM_Q_DESCALE, MEM_K_DESCALE, MEM_V_DESCALE, MEM_INPUTS,
    MEM_K = MEM_INPUTS, MEM_V, MEM_Q, MEM_AMAX, MEM_COUNT
};

/* Host copies of all memory; `device` while it runs. */
typedef struct append_problem {
    const append_case *c;
    fp8_kv_pages pages;
    fp8_kv_batch batch;
    fp8_kv_append a;
    void *host[MEM_COUNT], *device[MEM_COUNT];
    size_t bytes[MEM_COUNT];
    int unobserved; /* nobody asks for amax */
} append_problem;

static inline void *append_memory(append_problem *p, int at, int64_t count, size_t size) {
    p->bytes[at] = (size_t)count * size;
    p->host[at] = decode_memory(p->bytes[at]);
    return p->host[at];
}

static inline void append_randoms(append_problem *p, int at, int64_t count, fp8_dtype t, float low,
                                  float high, uint64_t *seed) {
    void *x = append_memory(p, at, count, fp8_dtype_size(t));
    for (int64_t i = 0; i < count; i++)
        decode_set(x, t, i, low < high ? low + (high - low) * (float)check_uniform(seed)
                                       : check_normal(seed) * low);
}

/* Lengths, starts, and pages in random order. */
static inline void append_batch(append_problem *p, uint64_t *seed) {
    const append_case *c = p->c;
    const int32_t n = c->num_seqs;
    int32_t *starts = append_memory(p, MEM_STARTS, n + 1, sizeof *starts), *order, *table;
    int32_t *lengths = append_memory(p, MEM_LENGTHS, n, sizeof *lengths);
    int64_t used = 0, pages = SPARE_PAGES;

    for (int s = 0; s < n; s++) {
        lengths[s] = c->length[s].kv;
        starts[s + 1] = starts[s] + c->length[s].q;
        pages += decode_pages_of(lengths[s], c->page_size);
        if (c->length[s].q > p->batch.max_q) p->batch.max_q = c->length[s].q;
        if (lengths[s] > p->batch.max_kv) p->batch.max_kv = lengths[s];
    }
    p->batch.num_seqs = n;
    p->batch.total_q = starts[n] + 2; /* two rows in no sequence */
    p->batch.max_pages = decode_pages_of(p->batch.max_kv, c->page_size) + 1;
    p->pages.num_pages = pages;
    order = decode_order(pages, RANDOM_ORDER, seed);
    table = append_memory(p, MEM_TABLE, n * p->batch.max_pages, sizeof *table);
    for (int s = 0; s < n; s++)
        for (int64_t j = 0; j < p->batch.max_pages; j++)
            table[s * p->batch.max_pages + j] =
                j < decode_pages_of(lengths[s], c->page_size) ? order[used++] : -1;
    free(order);
}

static inline int64_t append_row_width(const append_problem *p, int which) {
    const append_case *c = p->c;
    return (which == MEM_XQ ? c->heads : c->kv_heads) *
           ((which == MEM_XV ? c->d_v : c->d_qk) + (int64_t)c->gap);
}

static inline void append_inputs(append_problem *p, uint64_t *seed) {
    const append_case *c = p->c;
    const int64_t rows = p->batch.total_q, half = c->rotary_dim / 2;
    const int64_t groups = c->per_head ? c->kv_heads : 1;

    for (int i = MEM_XQ; i <= MEM_XV; i++)
        append_randoms(p, i, rows * append_row_width(p, i), c->dtype, 2.0f, 0.0f, seed);
    append_randoms(p, MEM_WQ, c->d_qk, c->dtype, 0.5f, 1.5f, seed);
    append_randoms(p, MEM_WK, c->d_qk, c->dtype, 0.5f, 1.5f, seed);
    append_randoms(p, MEM_COS, POSITIONS * half, F32, -1.0f, 1.0f, seed);
    append_randoms(p, MEM_SIN, POSITIONS * half, F32, -1.0f, 1.0f, seed);
    append_randoms(p, MEM_Q_DESCALE, groups, F32, 0.01f, 0.02f, seed);
    append_randoms(p, MEM_K_DESCALE, groups, F32, 0.01f, 0.02f, seed);
    append_randoms(p, MEM_V_DESCALE, groups, F32, 0.01f, 0.02f, seed);
    append_memory(p, MEM_POSITIONS, rows, sizeof(int32_t));
    for (int64_t i = 0; i < rows; i++) /* some outside the tables */
        ((int32_t *)p->host[MEM_POSITIONS])[i] = (int32_t)(check_random(seed) % 800) - 50;
    if (rows > 1) { /* what no formula likes, in the first row */
        const float odd[] = {NAN, -NAN, INFINITY, -INFINITY, -0.0f, 1e-30f, 3e4f, 448.0f};
        for (int k = MEM_XQ; k <= MEM_XV; k++)
            for (int i = 0; i < 8 && i < c->d_v; i++)
                decode_set(p->host[k], c->dtype, i, odd[i]);
    }
}

static inline void append_problem_init(append_problem *p, const append_case *c, uint64_t seed) {
    fp8_kv_layout layout;

    memset(p, 0, sizeof *p);
    p->c = c;
    p->pages = (fp8_kv_pages){.dtype = c->kv_dtype, .num_kv_heads = c->kv_heads, .d_qk = c->d_qk,
                              .d_v = c->d_v, .page_size = c->page_size,
                              .granularity = c->per_head ? FP8_DESCALE_HEAD : FP8_DESCALE_TENSOR};
    append_batch(p, &seed);
    append_inputs(p, &seed);
    p->pages.k_page = (int64_t)c->kv_heads * c->page_size * c->d_qk + c->gap * 16;
    CHECK_STATUS(fp8_kv_pages_layout(&layout, &p->pages), FP8_OK);
    p->pages.v_page = layout.v_page;
    append_memory(p, MEM_K, (int64_t)layout.k_bytes, 1);
    append_memory(p, MEM_V, (int64_t)layout.v_bytes, 1);
    append_memory(p, MEM_Q, p->batch.total_q * c->heads * c->d_qk, fp8_dtype_size(c->q_dtype));
    for (int i = MEM_K; i <= MEM_Q; i++) memset(p->host[i], PATTERN, p->bytes[i]);
    append_memory(p, MEM_AMAX, 3, sizeof(fp8_amax_slot));
}

static inline void append_problem_free(append_problem *p) {
    for (int i = 0; i < MEM_COUNT; i++) free(p->host[i]);
}

/* pages, batch and a with pointers into `mem`. */
static inline void append_point(append_problem *p, void *const mem[MEM_COUNT]) {
    const append_case *c = p->c;
    fp8_amax_slot *amax = mem[MEM_AMAX];
    fp8_amax_slot *const slot[] = {amax, amax + 1, amax + 2}, *const none[] = {NULL, NULL, NULL};
    fp8_amax_slot *const *to = p->unobserved ? none : slot;

    p->pages.k = mem[MEM_K];
    p->pages.v = mem[MEM_V];
    p->pages.k_descale = mem[MEM_K_DESCALE];
    p->pages.v_descale = mem[MEM_V_DESCALE];
    p->batch.page_table = mem[MEM_TABLE];
    p->batch.kv_lengths = mem[MEM_LENGTHS];
    p->batch.q_starts = mem[MEM_STARTS];
    p->a = (fp8_kv_append){
        .q = {mem[MEM_XQ], append_row_width(p, MEM_XQ), c->d_qk + c->gap,
              c->normed ? mem[MEM_WQ] : NULL, to[0]},
        .k = {mem[MEM_XK], append_row_width(p, MEM_XK), c->d_qk + c->gap,
              c->normed ? mem[MEM_WK] : NULL, to[1]},
        .v = {mem[MEM_XV], append_row_width(p, MEM_XV), c->d_v + c->gap, NULL, to[2]},
        .num_heads = c->heads, .dtype = c->dtype,
        .norm = c->plus ? FP8_NORM_RMS_PLUS : FP8_NORM_RMS, .eps = 1e-6f, .rounded = c->rounded,
        .rotary_dim = c->rotary_dim, .rope = c->rope, .cos = mem[MEM_COS], .sin = mem[MEM_SIN],
        .num_positions = POSITIONS,
        .positions = c->given_positions ? mem[MEM_POSITIONS] : NULL,
        .q_out = mem[MEM_Q], .q_dtype = c->q_dtype, .q_descale = mem[MEM_Q_DESCALE]};
}

static inline fp8_status append_upload(append_problem *p, fp8_device *d) {
    fp8_status st = FP8_OK;
    for (int i = 0; i < MEM_COUNT; i++) {
        FP8_TRY(fp8_device_alloc(d, &p->device[i], p->bytes[i]));
        FP8_TRY(fp8_device_upload(d, p->device[i], p->host[i], p->bytes[i]));
    }
    append_point(p, p->device);
done:
    return st;
}

/* Runs on `d`; outputs replace the host's. */
static inline fp8_status append_problem_run(append_problem *p, fp8_device *d, fp8_launch how) {
    fp8_status st;

    FP8_TRY(append_upload(p, d));
    FP8_TRY(fp8_kv_append_run(d, &p->pages, &p->batch, &p->a, how));
    for (int i = MEM_INPUTS; i < MEM_COUNT; i++)
        FP8_TRY(fp8_device_download(d, p->host[i], p->device[i], p->bytes[i]));
done:
    for (int i = 0; i < MEM_COUNT; i++) fp8_device_free(d, p->device[i]);
    append_point(p, p->host);
    return st;
}

/* ---- the formula in double ------------------------------------------------------------------- */

/* v[d] of a head of Q, K or V. */
static inline void append_formula(const append_problem *p, int which, int64_t row, int64_t head,
                                  int64_t position, double *v) {
    const append_case *c = p->c;
    const int64_t d = which == MEM_XV ? c->d_v : c->d_qk, half = c->rotary_dim / 2;
    const float *cos = p->host[MEM_COS], *sin = p->host[MEM_SIN];
    double sum = 0;

    for (int64_t i = 0; i < d; i++) {
        v[i] = (double)decode_get(p->host[which], c->dtype,
                                  row * append_row_width(p, which) + head * (d + c->gap) + i);
        sum += v[i] * v[i];
    }
    if (which == MEM_XV) return;
    for (int64_t i = 0; i < d && c->normed; i++) {
        const void *weights = p->host[which == MEM_XQ ? MEM_WQ : MEM_WK];
        const double w = (double)decode_get(weights, c->dtype, i);
        v[i] = v[i] / sqrt(sum / (double)d + (double)1e-6f) * (c->plus ? 1 + w : w);
    }
    for (int64_t i = 0; i < half; i++) {
        const int64_t at = c->rope == FP8_ROPE_HALVES ? i : 2 * i;
        const int64_t with = c->rope == FP8_ROPE_HALVES ? i + half : 2 * i + 1;
        const double x = v[at], y = v[with];
        const double co = (double)cos[position * half + i], si = (double)sin[position * half + i];
        v[at] = x * co - y * si;
        v[with] = y * co + x * si;
    }
}

/* Whether element `at` of x is v * scale in its type: a code by the rounding of a value within
 * `slack` of it; a real within that and one rounding. */
static inline int append_near(const void *x, fp8_dtype t, int64_t at, double v, double scale,
                              double slack) {
    const double room = isinf(v) ? 0.0 : slack * (1.0 + fabs(v));
    const double got = (double)decode_get(x, t, at);
    const double step = t == BF16 ? 0x1p-8 : t == F16 ? 0x1p-11 : 0x1p-24;
    if (t == E4M3) {
        const uint8_t code = ((const uint8_t *)x)[at];
        if (isnan(v)) return code == 0x7f;
        return got >= (double)fp8_to_f32(E4M3, fp8_from_f32(E4M3, (float)((v - room) * scale))) &&
               got <= (double)fp8_to_f32(E4M3, fp8_from_f32(E4M3, (float)((v + room) * scale)));
    }
    if (isnan(v) || isinf(v)) return isnan(v) ? isnan(got) : got == v;
    return fabs(got - v) <= room + step * fabs(v) || (t == F16 && fabs(v) > 65000);
}

/* One head of one tensor: right where it must be. Marks its bytes as seen. */
static inline int append_check_head(const append_problem *p, int which, int64_t row, int64_t head,
                                    int64_t position, int64_t at, int64_t step, uint8_t *seen) {
    const append_case *c = p->c;
    const int out = which == MEM_XQ ? MEM_Q : which == MEM_XK ? MEM_K : MEM_V;
    const int64_t d = which == MEM_XV ? c->d_v : c->d_qk, group = c->heads / c->kv_heads;
    const fp8_dtype t = which == MEM_XQ ? c->q_dtype : c->kv_dtype;
    const float *descales = p->host[MEM_Q_DESCALE + which - MEM_XQ];
    const float descale = descales[c->per_head ? which == MEM_XQ ? head / group : head : 0];
    const double slack = c->rounded ? 0x1p-5 : 4e-6; /* 2 roundings to BF16, 4 of them in a sum */
    const double scale = t == E4M3 ? (double)(1.0f / descale) : 1.0;
    double v[FP8_HEAD_DIM_MAX];
    int wrong = 0;

    append_formula(p, which, row, head, position, v);
    for (int64_t i = 0; i < d; i++) {
        memset(seen + (at + i * step) * (int64_t)fp8_dtype_size(t), 1, fp8_dtype_size(t));
        if (append_near(p->host[out], t, at + i * step, v[i], scale, slack)) continue;
        if (wrong++ < 3)
            fprintf(stderr, "[%s] %c row %lld head %lld [%lld]: got %g, want %g\n", check_case,
                    "QKV"[which - MEM_XQ], (long long)row, (long long)head, (long long)i,
                    (double)decode_get(p->host[out], t, at + i * step) / scale, v[i]);
    }
    return wrong;
}

static inline int append_check_row(const append_problem *p, int64_t s, int64_t i, uint8_t **seen) {
    const append_case *c = p->c;
    const int32_t *starts = p->host[MEM_STARTS], *lengths = p->host[MEM_LENGTHS];
    const int32_t *positions = p->host[MEM_POSITIONS], *table = p->host[MEM_TABLE];
    const int64_t row = starts[s] + i, key = lengths[s] - (starts[s + 1] - starts[s]) + i;
    int64_t position = c->given_positions ? positions[row] : key, page, slot;
    int wrong = 0;

    if (position < 0) position = 0;
    if (position >= POSITIONS) position = POSITIONS - 1;
    for (int64_t h = 0; h < c->heads; h++)
        wrong += append_check_head(p, MEM_XQ, row, h, position, (row * c->heads + h) * c->d_qk, 1,
                                   seen[MEM_Q]);
    if (key < 0) return wrong;
    page = table[s * p->batch.max_pages + key / c->page_size];
    slot = key % c->page_size;
    for (int64_t h = 0; h < c->kv_heads; h++) {
        wrong += append_check_head(p, MEM_XK, row, h, position,
                                   page * p->pages.k_page + (h * c->page_size + slot) * c->d_qk, 1,
                                   seen[MEM_K]);
        wrong += append_check_head(p, MEM_XV, row, h, position,
                                   page * p->pages.v_page + h * c->d_v * c->page_size + slot,
                                   c->page_size, seen[MEM_V]);
    }
    return wrong;
}

/* The amax of V is that of what went in; those of Q and K are there. */
static inline void append_check_amax(const append_problem *p) {
    const append_case *c = p->c;
    const int32_t *starts = p->host[MEM_STARTS];
    const fp8_amax_slot *amax = p->host[MEM_AMAX];
    uint32_t others = 0;
    float most = 0.0f;

    for (int64_t r = 0; r < starts[c->num_seqs]; r++)
        for (int64_t h = 0; h < c->kv_heads; h++)
            for (int64_t i = 0; i < c->d_v; i++) {
                const float v = decode_get(p->host[MEM_XV], c->dtype,
                                           r * append_row_width(p, MEM_XV) + h * (c->d_v + c->gap) +
                                               i);
                if (!isfinite(v)) others++;
                else if (fabsf(v) > most) most = fabsf(v);
            }
    CHECK(amax[2].amax == most);
    CHECK(amax[2].nonfinite == others);
    CHECK((amax[0].amax > 0.0f) == (starts[c->num_seqs] > 0));
    CHECK((amax[1].amax > 0.0f) == (starts[c->num_seqs] > 0));
}

static inline void append_check(const append_problem *p) {
    const int32_t *starts = p->host[MEM_STARTS];
    uint8_t *seen[MEM_COUNT] = {NULL};
    int64_t strays = 0;
    int wrong = 0;

    for (int k = MEM_K; k <= MEM_Q; k++) seen[k] = decode_memory(p->bytes[k]);
    for (int64_t s = 0; s < p->c->num_seqs; s++)
        for (int64_t i = 0; i < starts[s + 1] - starts[s] && wrong < 10; i++)
            wrong += append_check_row(p, s, i, seen);
    for (int k = MEM_K; k <= MEM_Q && wrong == 0; k++)
        for (size_t i = 0; i < p->bytes[k]; i++)
            strays += !seen[k][i] && ((uint8_t *)p->host[k])[i] != PATTERN;
    CHECK(wrong == 0);
    CHECK(strays == 0);
    if (!p->unobserved) append_check_amax(p);
    for (int k = MEM_K; k <= MEM_Q; k++) free(seen[k]);
}

/* ---- cases ----------------------------------------------------------------------------------- */

#define HALVES FP8_ROPE_HALVES
#define PAIRS FP8_ROPE_INTERLEAVED
#define DECODING                                                                                   \
    7, {                                                                                           \
        {1, 1}, {1, 64}, {1, 65}, {1, 0}, {0, 30}, {1, 200}, {1, 129}                              \
    }
#define PREFILL                                                                                    \
    5, {                                                                                           \
        {200, 200}, {3, 3}, {64, 164}, {129, 500}, {1, 70}                                         \
    }

/* name, heads, d, page, types, rotary; normed, 1 + w, rounded, positions, a head, gap; lengths */
static const append_case append_cases[] = {
    {"nothing", 2, 1, 64, 64, 64, BF16, E4M3, E4M3, 64, HALVES, 0, 0, 0, 0, 0, 0, 2,
     {{0, 0}, {0, 9}}},
    {"decode", 8, 2, 128, 128, 64, BF16, E4M3, E4M3, 128, HALVES, 0, 0, 0, 0, 0, 0, DECODING},
    {"decode, 32 heads over 8", 32, 8, 128, 128, 64, BF16, E4M3, BF16, 128, HALVES, 0, 0, 0, 1, 0,
     0, DECODING},
    {"decode, d 256, normed", 4, 4, 256, 256, 128, BF16, E4M3, E4M3, 256, HALVES, 1, 1, 0, 1, 1, 0,
     DECODING},
    {"speculative", 8, 2, 128, 128, 64, BF16, E4M3, E4M3, 128, HALVES, 1, 0, 0, 0, 1, 0, 4,
     {{4, 66}, {8, 8}, {5, 3}, {2, 300}}},
    {"prefill", 8, 2, 128, 128, 64, BF16, E4M3, E4M3, 128, HALVES, 0, 0, 0, 0, 0, 0, PREFILL},
    {"prefill, page 128", 4, 4, 64, 64, 128, BF16, E4M3, E4M3, 64, HALVES, 0, 0, 0, 0, 1, 0,
     PREFILL},
    {"prefill, normed", 4, 2, 128, 128, 64, BF16, E4M3, BF16, 128, HALVES, 1, 0, 0, 1, 0, 0,
     PREFILL},
    {"prefill, 1 + w, rounded", 4, 2, 256, 256, 64, BF16, E4M3, E4M3, 256, HALVES, 1, 1, 1, 0, 0, 0,
     PREFILL},
    {"prefill, rounded", 4, 2, 128, 128, 64, BF16, BF16, BF16, 128, HALVES, 1, 0, 1, 0, 0, 0,
     PREFILL},
    {"prefill, gaps", 6, 3, 64, 64, 64, BF16, E4M3, E4M3, 64, HALVES, 1, 0, 0, 0, 1, 8, PREFILL},
    {"pairs", 4, 2, 128, 128, 64, BF16, E4M3, E4M3, 128, PAIRS, 1, 0, 0, 0, 0, 0, PREFILL},
    {"pairs, partial", 4, 2, 128, 128, 64, F16, E4M3, F16, 64, PAIRS, 0, 0, 0, 1, 0, 0, DECODING},
    {"partial", 4, 2, 128, 128, 64, BF16, E4M3, E4M3, 32, HALVES, 0, 0, 0, 0, 0, 0, PREFILL},
    {"nothing turns", 4, 2, 128, 128, 64, BF16, E4M3, E4M3, 0, HALVES, 0, 0, 0, 0, 0, 0, PREFILL},
    {"pages of BF16", 8, 2, 128, 128, 64, BF16, BF16, BF16, 128, HALVES, 0, 0, 0, 0, 0, 0, PREFILL},
    {"pages of F16, decode", 8, 2, 64, 64, 128, F16, F16, F16, 64, HALVES, 1, 0, 0, 0, 0, 0,
     DECODING},
    {"d 192 to 128", 4, 2, 192, 128, 64, BF16, E4M3, E4M3, 64, HALVES, 0, 0, 0, 0, 0, 0, PREFILL},
    {"d 80", 4, 2, 80, 80, 64, BF16, E4M3, E4M3, 80, HALVES, 1, 0, 0, 0, 0, 0, PREFILL},
    {"odd sizes", 3, 1, 20, 12, 64, BF16, E4M3, E4M3, 6, HALVES, 1, 0, 0, 0, 0, 3, PREFILL},
    {"odd sizes, pairs", 3, 3, 22, 13, 128, F16, F16, F16, 6, PAIRS, 0, 0, 0, 1, 0, 1, DECODING},
    {"d 576 to 512", 2, 1, 576, 512, 64, BF16, E4M3, E4M3, 64, PAIRS, 0, 0, 0, 0, 0, 0, PREFILL},
    /* tables of whole vectors: 64 pages, and 132, more than a warp reads at once */
    {"decode, each a token", 8, 2, 128, 128, 64, BF16, E4M3, E4M3, 128, HALVES, 1, 0, 0, 0, 1, 0, 5,
     {{1, 1}, {1, 2048}, {1, 2049}, {1, 64}, {1, 4032}}},
    {"decode, long tables", 4, 1, 64, 64, 64, BF16, E4M3, E4M3, 64, HALVES, 0, 0, 0, 1, 0, 0, 4,
     {{1, 8192}, {1, 8384}, {1, 70}, {1, 6208}}},
};
enum { NUM_APPEND_CASES = sizeof append_cases / sizeof *append_cases };

/* Many rows, some of them in no sequence of theirs. The last two are not for blocks that stay. */
#define MANY                                                                                       \
    9, {                                                                                           \
        {1500, 1500}, {64, 64}, {0, 5}, {1, 1}, {901, 1000}, {3, 900}, {655, 700}, {977, 977},     \
            {31, 31}                                                                               \
    }

static const append_case append_many[] = {
    {"many, plain", 8, 2, 128, 128, 64, BF16, E4M3, E4M3, 128, HALVES, 0, 0, 0, 0, 0, 0, MANY},
    {"many, normed", 32, 8, 128, 128, 64, BF16, E4M3, E4M3, 128, HALVES, 1, 0, 0, 0, 1, 0, MANY},
    {"many, page 128", 6, 3, 128, 64, 128, BF16, E4M3, BF16, 64, HALVES, 1, 0, 0, 1, 0, 0, MANY},
    {"many, F16", 5, 5, 128, 32, 64, F16, E4M3, E4M3, 32, HALVES, 1, 0, 0, 0, 1, 0, MANY},
    {"many, pages of BF16", 16, 4, 128, 128, 64, BF16, BF16, BF16, 128, HALVES, 0, 0, 1, 0, 0, 0,
     MANY},
    {"many, pages of F16", 6, 2, 256, 256, 128, F16, F16, F16, 256, HALVES, 1, 0, 0, 0, 0, 0, MANY},
    {"many, d 256", 6, 2, 256, 256, 64, BF16, E4M3, E4M3, 256, HALVES, 0, 0, 0, 0, 1, 0, MANY},
    {"many, nothing turns", 4, 2, 256, 16, 64, BF16, E4M3, E4M3, 0, HALVES, 1, 0, 0, 0, 0, 0, MANY},
    {"many, much of V", 4, 4, 256, 256, 64, BF16, E4M3, E4M3, 256, HALVES, 0, 0, 0, 0, 0, 0, MANY},
    {"many, d 64, 1 + w", 6, 3, 64, 64, 128, BF16, E4M3, E4M3, 64, HALVES, 1, 1, 0, 0, 0, 0, MANY},
};
enum { NUM_APPEND_MANY = sizeof append_many / sizeof *append_many };
#endif
