/* tests/append_pair.h - an append and attention over what it leaves, in one call and one after the
 * other: random problems of one token a sequence, and both ways' bytes. */
#ifndef FP8_TESTS_APPEND_PAIR_H
#define FP8_TESTS_APPEND_PAIR_H
#include "append_cases.h"
#include "attention/decode.h"
#include "core/graph.h"

enum { PAIR_K, PAIR_V, PAIR_O, PAIR_LSE, PAIR_COUNT };

typedef struct pair_problem {
    append_case c;
    append_problem p;
    fp8_decode_options o; /* complete */
    int amax;             /* with slots */
} pair_problem;

typedef struct pair_result {
    void *bytes[PAIR_COUNT];
    size_t size[PAIR_COUNT];
    int is_one;
} pair_result;

/* Keys that are there already. */
static inline void pair_fill_pages(append_problem *p, uint64_t *seed) {
    for (int k = MEM_K; k <= MEM_V; k++) {
        const int64_t n = (int64_t)(p->bytes[k] / fp8_dtype_size(p->c->kv_dtype));
        const float size = p->c->kv_dtype == E4M3 ? 64.0f : 1.0f;
        for (int64_t i = 0; i < n; i++)
            decode_set(p->host[k], p->c->kv_dtype, i, check_normal(seed) * size);
    }
}

/* `o`: what is not of sizes and types. */
static inline void pair_init(pair_problem *x, const append_case *c, fp8_decode_options o,
                             uint64_t seed) {
    x->c = *c;
    x->amax = 0;
    append_problem_init(&x->p, &x->c, seed);
    pair_fill_pages(&x->p, &seed);
    o.num_heads = c->heads;
    o.num_kv_heads = c->kv_heads;
    o.d_qk = c->d_qk;
    o.d_v = c->d_v;
    o.page_size = c->page_size;
    o.num_seqs = c->num_seqs;
    o.max_q = x->p.batch.max_q;
    o.max_kv = x->p.batch.max_kv;
    o.total_q = x->p.batch.total_q;
    o.q_dtype = c->q_dtype;
    o.kv_dtype = c->kv_dtype;
    o.o_dtype = c->dtype;
    o.granularity = c->per_head ? FP8_DESCALE_HEAD : FP8_DESCALE_TENSOR;
    o.want_lse = 1;
    x->o = o;
}

static inline void pair_free(pair_problem *x) { append_problem_free(&x->p); }

/* A run under way, on the device. */
typedef struct pair_run {
    fp8_device *d;
    fp8_decode_plan *plan;
    fp8_decode_io io;
    void *o, *lse, *workspace;
    size_t o_bytes, lse_bytes, workspace_bytes;
} pair_run;

static inline fp8_status pair_open(pair_run *r, fp8_device *d, pair_problem *x) {
    const int64_t rows = x->p.batch.total_q * x->o.num_heads;
    fp8_status st;

    *r = (pair_run){.d = d};
    FP8_TRY(fp8_decode_plan_create(&r->plan, d, &x->o));
    FP8_TRY(append_upload(&x->p, d));
    if (!x->amax) x->p.a.q.amax = x->p.a.k.amax = x->p.a.v.amax = NULL;
    r->workspace_bytes = fp8_decode_workspace_size(r->plan);
    r->o_bytes = (size_t)(rows * x->o.d_v) * fp8_dtype_size(x->o.o_dtype);
    r->lse_bytes = (size_t)rows * sizeof(float);
    FP8_TRY(fp8_device_alloc(d, &r->workspace, r->workspace_bytes));
    FP8_TRY(fp8_device_alloc(d, &r->o, r->o_bytes));
    FP8_TRY(fp8_device_alloc(d, &r->lse, r->lse_bytes));
    FP8_TRY(fp8_device_fill(d, r->o, 0xff, r->o_bytes));
    FP8_TRY(fp8_device_fill(d, r->lse, 0xff, r->lse_bytes));
    r->io = (fp8_decode_io){.pages = x->p.pages, .batch = x->p.batch, .o = r->o, .lse = r->lse,
                            .q_descale = x->p.a.q_descale};
done:
    return st;
}

static inline fp8_status pair_call(pair_run *r, pair_problem *x, int together) {
    fp8_status st;

    if (together)
        return fp8_decode_append_run(r->plan, &r->io, &x->p.a, r->workspace, r->workspace_bytes);
    FP8_TRY(fp8_kv_append_run(r->d, &x->p.pages, &x->p.batch, &x->p.a, FP8_LAUNCH_ORDERED));
    r->io.q = x->p.a.q_out;
    FP8_TRY(fp8_decode_run(r->plan, &r->io, r->workspace, r->workspace_bytes));
done:
    return st;
}

static inline fp8_status pair_fetch(pair_result *out, pair_run *r, pair_problem *x) {
    const void *from[PAIR_COUNT] = {x->p.device[MEM_K], x->p.device[MEM_V], r->o, r->lse};
    const size_t size[PAIR_COUNT] = {x->p.bytes[MEM_K], x->p.bytes[MEM_V], r->o_bytes,
                                     r->lse_bytes};
    fp8_status st = FP8_OK;

    for (int i = 0; i < PAIR_COUNT; i++) {
        out->size[i] = size[i];
        out->bytes[i] = decode_memory(size[i]);
        FP8_TRY(fp8_device_download(r->d, out->bytes[i], from[i], size[i]));
    }
    out->is_one = fp8_decode_append_is_one(r->plan, &r->io, &x->p.a);
done:
    return st;
}

static inline void pair_close(pair_run *r, pair_problem *x) {
    for (int i = 0; i < MEM_COUNT; i++) {
        fp8_device_free(r->d, x->p.device[i]);
        x->p.device[i] = NULL;
    }
    append_point(&x->p, x->p.host);
    fp8_device_free(r->d, r->o);
    fp8_device_free(r->d, r->lse);
    fp8_device_free(r->d, r->workspace);
    fp8_decode_plan_destroy(r->plan);
}

static inline fp8_status pair_result_of(pair_result *out, fp8_device *d, pair_problem *x,
                                        int together) {
    pair_run r;
    fp8_status st;

    memset(out, 0, sizeof *out);
    FP8_TRY(pair_open(&r, d, x));
    FP8_TRY(pair_call(&r, x, together));
    FP8_TRY(pair_fetch(out, &r, x));
done:
    pair_close(&r, x);
    return st;
}

static inline void pair_result_free(pair_result *r) {
    for (int i = 0; i < PAIR_COUNT; i++) free(r->bytes[i]);
}

static inline void pair_same(const pair_result *got, const pair_result *want) {
    static const char *const names[PAIR_COUNT] = {"K", "V", "O", "LSE"};
    for (int i = 0; i < PAIR_COUNT; i++) {
        const uint8_t *a = got->bytes[i], *b = want->bytes[i];
        size_t wrong = 0, first = 0;
        for (size_t k = 0; a && b && k < got->size[i]; k++) {
            if (a[k] == b[k]) continue;
            if (!wrong++) first = k;
        }
        CHECK(a && b && got->size[i] == want->size[i]);
        if (wrong)
            fprintf(stderr, "[%s] %zu bytes of %s, the first %zu: %#x, apart %#x\n", check_case,
                    wrong, names[i], first, a[first], b[first]);
        CHECK(wrong == 0);
    }
}

/* Both ways from the same memory, the one twice. Returns whether it was one launch. */
static inline int pair_check(fp8_device *d, pair_problem *x) {
    pair_result apart, together, again;
    int is_one;

    CHECK_STATUS(pair_result_of(&apart, d, x, 0), FP8_OK);
    CHECK_STATUS(pair_result_of(&together, d, x, 1), FP8_OK);
    CHECK_STATUS(pair_result_of(&again, d, x, 1), FP8_OK);
    pair_same(&together, &apart);
    pair_same(&again, &together);
    is_one = together.is_one;
    pair_result_free(&apart);
    pair_result_free(&together);
    pair_result_free(&again);
    return is_one;
}

/* ---- problems -------------------------------------------------------------------------------- */

/* The n-th of many: all head sizes, pages, groups, types, with everything else drawn. */
static inline void pair_draw(pair_problem *x, int n) {
    static const int32_t dims[] = {64, 128, 256}, groups[] = {1, 2, 4, 5, 8, 9, 16};
    static const fp8_dtype types[][3] = {{BF16, E4M3, E4M3}, {BF16, E4M3, BF16}, {F16, E4M3, F16},
                                         {BF16, BF16, BF16}, {F16, E4M3, E4M3}, {F16, F16, F16}};
    static const int64_t windows[] = {-1, -1, 0, 70}, splits[] = {0, 0, 128, 256};
    static const int32_t edges[] = {0, 1, 2, 63, 64, 65, 127, 128, 129, 192, 193};
    uint64_t seed = (uint64_t)n * 77 + 5;
    const int32_t d = dims[n % 3], group = groups[n / 6 % 7];
    const fp8_dtype *type = types[n % 6 == 5 ? 5 : (n + n / 6) % 6];
    fp8_decode_options o = FP8_DECODE_OPTIONS;
    append_case c = {"drawn", 0, 0, d, d, n / 3 % 2 ? 64 : 128, type[0], type[1], type[2], d,
                     HALVES, 0, 0, 0, 0, 0, 0, DECODE_MAX_SEQS, {{0, 0}}};

    c.kv_heads = 1 + (int32_t)(check_random(&seed) % 3);
    c.heads = group * c.kv_heads;
    c.rotary_dim = (int32_t)(check_random(&seed) % 3) * d / 2;
    c.rope = check_random(&seed) % 2 ? PAIRS : HALVES;
    c.normed = check_random(&seed) % 2;
    c.plus = check_random(&seed) % 2;
    c.rounded = check_random(&seed) % 2;
    c.given_positions = check_random(&seed) % 2;
    c.per_head = type[1] == E4M3 && check_random(&seed) % 2;
    c.gap = check_random(&seed) % 3 ? 0 : 16;
    for (int s = 0; s < c.num_seqs; s++) {
        c.length[s].q = s != 4;
        c.length[s].kv = check_random(&seed) % 2
                             ? edges[check_random(&seed) % (sizeof edges / sizeof *edges)]
                             : (int32_t)(check_random(&seed) % (s == 0 ? 1500 : 400));
    }
    o.window_left = windows[check_random(&seed) % 4];
    o.split_keys = splits[check_random(&seed) % 4];
    o.softcap = check_random(&seed) % 4 ? 0.0f : 5.0f;
    o.quantize_p = type[1] == E4M3;
    pair_init(x, &c, o, seed);
}

/* Decoding of 8 heads over 2, d 128, codes. */
static inline void pair_usual(pair_problem *x, uint64_t seed) {
    static const append_case c = {"usual", 8, 2, 128, 128, 64, BF16, E4M3, E4M3, 128, HALVES, 1, 0,
                                  0, 0, 0, 0, DECODING};
    const fp8_decode_options o = FP8_DECODE_OPTIONS;
    pair_init(x, &c, o, seed);
}
#endif
