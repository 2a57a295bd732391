/* tests/decode_problem.h - attention over pages: problems on the host, whose pages hold NaN
 * wherever no key is, a run of one on any device and backend, and the verdict by the oracle. */
#ifndef FP8_TESTS_DECODE_PROBLEM_H
#define FP8_TESTS_DECODE_PROBLEM_H
#include <string.h>

#include "attention/attention.h"
#include "check.h"
#include "core/half.h"
#include "quant/quant.h"

enum { DECODE_MAX_SEQS = 12, SPARE_PAGES = 3 };

/* In which pages the sequences lie. SHARED: their first full pages are those of sequence 0. */
typedef enum page_order { IN_ORDER, RANDOM_ORDER, SHARED_ORDER } page_order;

typedef struct decode_case {
    const char *name;
    fp8_decode_options o; /* all but num_seqs, max_q, max_kv, total_q */
    page_order order;
    int32_t num_seqs;
    struct {
        int32_t q, kv;
    } length[DECODE_MAX_SEQS];
} decode_case;

typedef struct decode_problem {
    fp8_decode_options o; /* complete */
    fp8_kv_pages pages;   /* k, v, descales on the host, owned */
    fp8_kv_batch batch;   /* host, owned */
    float *k, *v;         /* keys of all sequences as they are: [sum kv, heads, d], no descale */
    int32_t *kv_starts;   /* [num_seqs + 1], of these */
    void *q;
    float *q_descale, *k_descale, *v_descale, *o_scale, *sink, *slopes;
    size_t q_bytes, o_bytes, k_bytes, v_bytes, descale_bytes, lse_bytes;
} decode_problem;

/* What a run gave: O as floats, o_scale taken out; codes as they came. */
typedef struct decode_result {
    uint8_t *bytes;
    float *o, *lse;
    int64_t count, lse_count;
} decode_result;

/* ---- elements -------------------------------------------------------------------------------- */

static inline void *decode_memory(size_t bytes) { /* exact size: ASan sees strays */
    void *p = calloc(bytes ? bytes : 1, 1);
    if (!p) abort();
    return p;
}

static inline float decode_get(const void *x, fp8_dtype t, int64_t i) {
    switch (t) {
    case FP8_DTYPE_F32: return ((const float *)x)[i];
    case FP8_DTYPE_BF16: return fp8_bf16_to_f32(((const uint16_t *)x)[i]);
    case FP8_DTYPE_F16: return fp8_f16_to_f32(((const uint16_t *)x)[i]);
    default: return fp8_to_f32(FP8_DTYPE_E4M3, ((const uint8_t *)x)[i]);
    }
}

/* Returns what is there now. */
static inline float decode_set(void *x, fp8_dtype t, int64_t i, float f) {
    switch (t) {
    case FP8_DTYPE_F32: ((float *)x)[i] = f; break;
    case FP8_DTYPE_BF16: ((uint16_t *)x)[i] = fp8_f32_to_bf16(f); break;
    case FP8_DTYPE_F16: ((uint16_t *)x)[i] = fp8_f32_to_f16(f); break;
    default: ((uint8_t *)x)[i] = fp8_from_f32(FP8_DTYPE_E4M3, f);
    }
    return decode_get(x, t, i);
}

/* ---- a problem ------------------------------------------------------------------------------- */

static inline int64_t decode_pages_of(int64_t keys, int32_t page_size) {
    return (keys + page_size - 1) / page_size;
}

/* Numbers 0 .. n - 1 in an order. */
static inline int32_t *decode_order(int64_t n, page_order order, uint64_t *seed) {
    int32_t *x = decode_memory((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = (int32_t)i;
    for (int64_t i = n - 1; i > 0 && order != IN_ORDER; i--) {
        const int64_t k = (int64_t)(check_random(seed) % (uint64_t)(i + 1));
        const int32_t swapped = x[i];
        x[i] = x[k];
        x[k] = swapped;
    }
    return x;
}

/* The page table; entries beyond a sequence's keys point nowhere. */
static inline void decode_table(decode_problem *p, page_order order, uint64_t *seed) {
    int32_t *table = decode_memory((size_t)(p->o.num_seqs * p->batch.max_pages) * sizeof *table);
    int32_t *free_pages = decode_order(p->pages.num_pages, order, seed);
    int64_t used = 0;

    for (int64_t s = 0; s < p->o.num_seqs; s++) {
        const int64_t keys = p->kv_starts[s + 1] - p->kv_starts[s];
        const int64_t own = order == SHARED_ORDER && s > 0
                                ? (keys < p->kv_starts[1] ? keys : p->kv_starts[1]) /
                                      p->o.page_size
                                : 0;
        for (int64_t j = 0; j < p->batch.max_pages; j++) {
            int32_t *at = table + s * p->batch.max_pages + j;
            if (j >= decode_pages_of(keys, p->o.page_size)) *at = j % 2 ? -1 : INT32_MAX;
            else *at = j < own ? table[j] : free_pages[used++];
        }
    }
    free(free_pages);
    p->batch.page_table = table;
}

/* Key `row` of sequence s, the j-th of it: random where its page is its own, else what is there. */
static inline void decode_write_key(decode_problem *p, int64_t s, int64_t j, int shared,
                                    uint64_t *seed) {
    const fp8_decode_options *o = &p->o;
    const int64_t page = p->batch.page_table[s * p->batch.max_pages + j / o->page_size];
    const int64_t slot = j % o->page_size, row = p->kv_starts[s] + j;
    const float unit = o->kv_dtype == FP8_DTYPE_E4M3 ? 16.0f : 1.0f;

    for (int64_t h = 0; h < o->num_kv_heads; h++) {
        for (int64_t i = 0; i < o->d_qk; i++) {
            const int64_t at = page * p->pages.k_page + (h * o->page_size + slot) * o->d_qk + i;
            const float f = shared ? decode_get(p->pages.k, o->kv_dtype, at)
                                   : check_normal(seed) * unit;
            p->k[(row * o->num_kv_heads + h) * o->d_qk + i] =
                decode_set(p->pages.k, o->kv_dtype, at, f);
        }
        for (int64_t i = 0; i < o->d_v; i++) {
            const int64_t at = page * p->pages.v_page + (h * o->d_v + i) * o->page_size + slot;
            const float f = shared ? decode_get(p->pages.v, o->kv_dtype, at)
                                   : check_normal(seed) * unit;
            p->v[(row * o->num_kv_heads + h) * o->d_v + i] =
                decode_set(p->pages.v, o->kv_dtype, at, f);
        }
    }
}

static inline float *decode_floats(int64_t n, float low, float high, uint64_t *seed) {
    float *x = decode_memory((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = low + (high - low) * (float)check_uniform(seed);
    return x;
}

static inline void decode_scales(decode_problem *p, uint64_t *seed) {
    const fp8_decode_options *o = &p->o;
    const int64_t n = o->granularity == FP8_DESCALE_HEAD ? o->num_kv_heads : 1;
    const float unit = 1.0f / 16.0f;

    p->descale_bytes = (size_t)n * sizeof(float);
    p->q_descale = decode_floats(n, unit * 0.7f, unit * 1.3f, seed);
    p->k_descale = decode_floats(n, unit * 0.7f, unit * 1.3f, seed);
    p->v_descale = decode_floats(n, unit * 0.7f, unit * 1.3f, seed);
    p->o_scale = decode_floats(1, 90.0f, 90.0f, seed);
    p->sink = decode_floats(o->num_heads, -3.0f, 4.0f, seed);
    p->slopes = decode_floats(o->num_heads, 0.0f, 0.5f, seed);
    p->pages.k_descale = p->k_descale;
    p->pages.v_descale = p->v_descale;
}

/* Pages of NaN, and then the keys. `gap`: elements between pages. */
static inline void decode_pages(decode_problem *p, page_order order, int64_t gap, uint64_t *seed) {
    const fp8_decode_options *o = &p->o;
    const int64_t n = o->num_seqs, row = (int64_t)o->num_kv_heads * o->page_size;
    fp8_kv_layout layout;

    p->pages = (fp8_kv_pages){.dtype = o->kv_dtype, .num_kv_heads = o->num_kv_heads,
                              .d_qk = o->d_qk, .d_v = o->d_v, .page_size = o->page_size,
                              .num_pages = SPARE_PAGES, .granularity = o->granularity};
    for (int64_t s = 0; s < n; s++)
        p->pages.num_pages +=
            decode_pages_of(p->kv_starts[s + 1] - p->kv_starts[s], o->page_size);
    p->pages.k_page = row * o->d_qk + gap;
    p->pages.v_page = row * o->d_v + gap;
    CHECK_STATUS(fp8_kv_pages_layout(&layout, &p->pages), FP8_OK);
    p->k_bytes = layout.k_bytes;
    p->v_bytes = layout.v_bytes;
    p->pages.k = decode_memory(p->k_bytes);
    p->pages.v = decode_memory(p->v_bytes);
    memset(p->pages.k, 0xff, p->k_bytes); /* NaN in every type */
    memset(p->pages.v, 0xff, p->v_bytes);
    p->k = decode_memory((size_t)(p->kv_starts[n] * o->num_kv_heads * o->d_qk) * sizeof(float));
    p->v = decode_memory((size_t)(p->kv_starts[n] * o->num_kv_heads * o->d_v) * sizeof(float));
    decode_table(p, order, seed);
    for (int64_t s = 0; s < n; s++)
        for (int64_t j = 0; j < p->kv_starts[s + 1] - p->kv_starts[s]; j++)
            decode_write_key(p, s, j,
                             order == SHARED_ORDER && s > 0 &&
                                 p->batch.page_table[s * p->batch.max_pages + j / o->page_size] ==
                                     p->batch.page_table[j / o->page_size],
                             seed);
}

static inline void decode_problem_init(decode_problem *p, const decode_case *c, uint64_t seed) {
    const int64_t gap = check_random(&seed) % 2 ? 64 : 0;
    int32_t *starts, *lengths;

    memset(p, 0, sizeof *p);
    p->o = c->o;
    p->o.num_seqs = c->num_seqs;
    starts = decode_memory((size_t)(c->num_seqs + 1) * sizeof *starts);
    lengths = decode_memory((size_t)c->num_seqs * sizeof *lengths);
    p->kv_starts = decode_memory((size_t)(c->num_seqs + 1) * sizeof *p->kv_starts);
    for (int s = 0; s < c->num_seqs; s++) {
        lengths[s] = c->length[s].kv;
        starts[s + 1] = starts[s] + c->length[s].q;
        p->kv_starts[s + 1] = p->kv_starts[s] + lengths[s];
        if (c->length[s].q > p->o.max_q) p->o.max_q = c->length[s].q;
        if (lengths[s] > p->o.max_kv) p->o.max_kv = lengths[s];
    }
    p->o.total_q = starts[c->num_seqs] + 2; /* two rows in no sequence */
    if (p->o.q_token == 0) p->o.q_token = (int64_t)p->o.num_heads * p->o.d_qk;
    if (p->o.o_token == 0) p->o.o_token = (int64_t)p->o.num_heads * p->o.d_v;
    p->batch = (fp8_kv_batch){.num_seqs = c->num_seqs, .kv_lengths = lengths, .q_starts = starts,
                              .max_q = p->o.max_q, .max_kv = p->o.max_kv,
                              .total_q = p->o.total_q,
                              .max_pages = decode_pages_of(p->o.max_kv, p->o.page_size) + 1};
    decode_pages(p, c->order, gap, &seed);
    decode_scales(p, &seed);
    p->q_bytes = (size_t)(p->o.total_q * p->o.q_token) * fp8_dtype_size(p->o.q_dtype);
    p->o_bytes = (size_t)(p->o.total_q * p->o.o_token) * fp8_dtype_size(p->o.o_dtype);
    p->lse_bytes = (size_t)(p->o.total_q * p->o.num_heads) * sizeof(float);
    p->q = decode_memory(p->q_bytes);
    for (int64_t i = 0; i < p->o.total_q * p->o.q_token; i++)
        decode_set(p->q, p->o.q_dtype, i,
                   check_normal(&seed) * (p->o.q_dtype == FP8_DTYPE_E4M3 ? 16.0f : 1.0f));
}

/* Sequence s of a problem, alone, in the same pages: until the next call. */
static inline decode_problem decode_problem_alone(const decode_problem *p, int64_t s) {
    static int32_t starts[2], length;
    decode_problem one = *p;
    starts[1] = p->batch.q_starts[s + 1] - p->batch.q_starts[s];
    length = p->batch.kv_lengths[s];
    one.o.num_seqs = one.batch.num_seqs = 1;
    one.o.total_q = one.batch.total_q = starts[1];
    one.batch.page_table += s * p->batch.max_pages;
    one.batch.kv_lengths = &length;
    one.batch.q_starts = starts;
    one.q = (uint8_t *)p->q + (size_t)(p->batch.q_starts[s] * p->o.q_token) *
                                  fp8_dtype_size(p->o.q_dtype);
    one.q_bytes = (size_t)(starts[1] * p->o.q_token) * fp8_dtype_size(p->o.q_dtype);
    one.o_bytes = (size_t)(starts[1] * p->o.o_token) * fp8_dtype_size(p->o.o_dtype);
    one.lse_bytes = (size_t)(starts[1] * p->o.num_heads) * sizeof(float);
    return one;
}

static inline void decode_problem_free(decode_problem *p) {
    void *all[] = {p->pages.k, p->pages.v, p->k, p->v, p->kv_starts, p->q, p->q_descale,
                   p->k_descale, p->v_descale, p->o_scale, p->sink, p->slopes,
                   (void *)(uintptr_t)p->batch.page_table, (void *)(uintptr_t)p->batch.kv_lengths,
                   (void *)(uintptr_t)p->batch.q_starts};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static inline fp8_decode_io decode_host_io(const decode_problem *p) {
    return (fp8_decode_io){.pages = p->pages, .batch = p->batch, .q = p->q,
                           .q_descale = p->q_descale, .o_scale = p->o_scale, .sink = p->sink,
                           .alibi_slopes = p->slopes};
}

/* ---- a run ----------------------------------------------------------------------------------- */

enum { DEVICE_BUFFERS = 13 };

typedef struct decode_device {
    void *memory[DEVICE_BUFFERS];
    fp8_decode_io io;
} decode_device;

static inline void *decode_upload(decode_device *g, int at, fp8_device *d, const void *x,
                                  size_t bytes) {
    CHECK_STATUS(fp8_device_alloc(d, &g->memory[at], bytes), FP8_OK);
    if (x) CHECK_STATUS(fp8_device_upload(d, g->memory[at], x, bytes), FP8_OK);
    else CHECK_STATUS(fp8_device_fill(d, g->memory[at], 0xff, bytes), FP8_OK); /* NaN */
    return g->memory[at];
}

static inline void decode_device_init(decode_device *g, fp8_device *d, const decode_problem *p) {
    const fp8_kv_batch *b = &p->batch;
    const size_t heads = (size_t)p->o.num_heads * sizeof(float), n = (size_t)b->num_seqs;
    memset(g, 0, sizeof *g);
    g->io = (fp8_decode_io){.pages = p->pages, .batch = p->batch};
    g->io.pages.k = decode_upload(g, 0, d, p->pages.k, p->k_bytes);
    g->io.pages.v = decode_upload(g, 1, d, p->pages.v, p->v_bytes);
    g->io.pages.k_descale = decode_upload(g, 2, d, p->k_descale, p->descale_bytes);
    g->io.pages.v_descale = decode_upload(g, 3, d, p->v_descale, p->descale_bytes);
    g->io.batch.page_table = decode_upload(g, 4, d, b->page_table,
                                           n * (size_t)b->max_pages * sizeof(int32_t));
    g->io.batch.kv_lengths = decode_upload(g, 5, d, b->kv_lengths, n * sizeof(int32_t));
    g->io.batch.q_starts = decode_upload(g, 6, d, b->q_starts, (n + 1) * sizeof(int32_t));
    g->io.q = decode_upload(g, 7, d, p->q, p->q_bytes);
    g->io.q_descale = decode_upload(g, 8, d, p->q_descale, p->descale_bytes);
    g->io.o_scale = decode_upload(g, 9, d, p->o_scale, sizeof(float));
    g->io.sink = decode_upload(g, 10, d, p->sink, heads);
    g->io.alibi_slopes = decode_upload(g, 11, d, p->slopes, heads);
    g->io.o = decode_upload(g, 12, d, NULL, p->o_bytes + p->lse_bytes + 256);
    g->io.lse = (float *)(void *)((uint8_t *)g->io.o + (p->o_bytes + 255) / 256 * 256);
}

static inline void decode_device_free(decode_device *g, fp8_device *d) {
    for (int i = 0; i < DEVICE_BUFFERS; i++) fp8_device_free(d, g->memory[i]);
}

static inline void decode_result_free(decode_result *r) {
    free(r->bytes);
    free(r->o);
    free(r->lse);
}

/* O and LSE back from the device; what no run wrote is NaN. */
static inline void decode_fetch(decode_result *r, fp8_device *d, const decode_device *g,
                                const decode_problem *p) {
    const float descale = p->o.o_dtype == FP8_DTYPE_E4M3 ? 1.0f / *p->o_scale : 1.0f;
    r->count = p->o.total_q * p->o.o_token;
    r->lse_count = p->o.total_q * p->o.num_heads;
    r->bytes = decode_memory(p->o_bytes);
    r->o = decode_memory((size_t)r->count * sizeof(float));
    r->lse = decode_memory(p->lse_bytes);
    CHECK_STATUS(fp8_device_download(d, r->bytes, g->io.o, p->o_bytes), FP8_OK);
    CHECK_STATUS(fp8_device_download(d, r->lse, g->io.lse, p->lse_bytes), FP8_OK);
    for (int64_t i = 0; i < r->count; i++)
        r->o[i] = decode_get(r->bytes, p->o.o_dtype, i) * descale;
}

/* FP8_EUNSUPPORTED: the backend does not serve, with its reason as the message; *r is empty. */
static inline fp8_status decode_problem_run(decode_result *r, fp8_device *d,
                                            const decode_problem *p, fp8_decode_backend backend) {
    fp8_decode_options o = p->o;
    fp8_decode_plan *plan = NULL;
    decode_device g;
    void *workspace = NULL;
    fp8_status st;

    memset(r, 0, sizeof *r);
    memset(&g, 0, sizeof g);
    o.backend = backend;
    FP8_TRY(fp8_decode_plan_create(&plan, d, &o));
    decode_device_init(&g, d, p);
    FP8_TRY(fp8_device_alloc(d, &workspace, fp8_decode_workspace_size(plan)));
    FP8_TRY(fp8_device_fill(d, workspace, 0xff, fp8_decode_workspace_size(plan)));
    FP8_TRY(fp8_decode_run(plan, &g.io, workspace, fp8_decode_workspace_size(plan)));
    decode_fetch(r, d, &g, p);
done:
    decode_device_free(&g, d);
    fp8_device_free(d, workspace);
    fp8_decode_plan_destroy(plan);
    return st;
}

/* ---- verdict --------------------------------------------------------------------------------- */

/* The oracle's O and LSE, NaN where no sequence is. P is in codes, if the options say so, for
 * sequences of more than exact_q queries; for the others P is exact: that is what `pages` owes (it
 * keeps P in 16 bits), and where a row sees few keys the two differ by up to 2^-4 of sum(P |V|),
 * which is more than the tolerances of the tests leave. */
static inline void decode_expect(double *want, double *lse, const decode_problem *p,
                                 int64_t exact_q) {
    const int64_t rows = p->o.total_q, heads = p->o.num_heads, row = heads * p->o.d_v;
    const fp8_decode_io io = decode_host_io(p);
    double *exact = decode_memory((size_t)(rows * row) * sizeof *exact);
    fp8_decode_options o = p->o;

    for (int64_t i = 0; i < rows * row; i++) want[i] = exact[i] = NAN;
    for (int64_t i = 0; i < rows * heads; i++) lse[i] = NAN;
    CHECK_STATUS(fp8_decode_reference(want, lse, &o, &io), FP8_OK);
    o.quantize_p = 0;
    if (p->o.quantize_p) CHECK_STATUS(fp8_decode_reference(exact, NULL, &o, &io), FP8_OK);
    for (int64_t s = 0; s < p->batch.num_seqs && p->o.quantize_p; s++) {
        const int64_t begin = p->batch.q_starts[s], end = p->batch.q_starts[s + 1];
        if (end <= begin || end - begin > exact_q) continue;
        memcpy(want + begin * row, exact + begin * row,
               (size_t)((end - begin) * row) * sizeof *want);
    }
    free(exact);
}

/* |got - want| <= atol + rtol |want| for rows of sequences; NaN still where no sequence is. For
 * exact_q see decode_expect. */
static inline void decode_check(const decode_result *r, const decode_problem *p, int64_t exact_q,
                                double atol, double rtol) {
    const fp8_decode_options *o = &p->o;
    const int64_t rows = o->total_q, row = (int64_t)o->num_heads * o->d_v;
    double *want = decode_memory((size_t)(rows * row) * sizeof *want);
    double *lse = decode_memory((size_t)(rows * o->num_heads) * sizeof *lse);
    int wrong = 0;

    decode_expect(want, lse, p, exact_q);
    for (int64_t i = 0; i < rows * row; i++) {
        const int64_t t = i / row;
        const double got = (double)r->o[t * o->o_token + i % row];
        const double slack = atol + rtol * fabs(want[i]);
        if (isnan(want[i]) ? isnan(got) : fabs(got - want[i]) <= slack) continue;
        if (wrong++ < 10)
            fprintf(stderr, "[%s] O row %lld head %lld [%lld]: got %g, want %g\n", check_case,
                    (long long)t, (long long)(i % row / o->d_v), (long long)(i % o->d_v), got,
                    want[i]);
    }
    for (int64_t i = 0; i < rows * o->num_heads && o->want_lse; i++) {
        const double got = (double)r->lse[i];
        if (isnan(lse[i]) ? isnan(got)
                          : got == lse[i] || fabs(got - lse[i]) <= atol + rtol * fabs(lse[i]))
            continue;
        if (wrong++ < 10)
            fprintf(stderr, "[%s] LSE %lld: got %g, want %g\n", check_case, (long long)i, got,
                    lse[i]);
    }
    CHECK(wrong == 0);
    free(want);
    free(lse);
}
#endif
