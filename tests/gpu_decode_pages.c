/* What gpu_decode.c leaves open of our kernels over pages: every size of head, page and group with
 * every type, the same bytes however sequences come together, NaN, long sums of one sign.
 * `gpu_decode_pages few` leaves what a sanitizer gets through in seconds. */
#include "decode_cases.h"

static fp8_device *device;

/* Sizes of heads, groups, pages and types, on lengths drawn anew. */
static void test_shapes(int few) {
    static const int32_t heads[][2] = {{64, 64}, {128, 128}, {192, 128}, {256, 256}};
    static const int32_t groups[][2] = {{1, 1}, {4, 4}, {6, 2}, {8, 1}, {9, 1}, {32, 2}};
    static const fp8_dtype types[][2] = {{BF16, E4M3}, {E4M3, E4M3}, {F16, E4M3}, {BF16, BF16},
                                         {F16, F16}};
    uint64_t seed = 5;
    for (int i = 0; i < 4 * 6 * 5; i += few ? 17 : 1 + i % 2) {
        decode_case c = {"shapes",
                         OPT(groups[i % 6][0], groups[i % 6][1], heads[i / 6 % 4][0],
                             heads[i / 6 % 4][1], i % 2 ? 64 : 128, types[i / 24][0],
                             types[i / 24][1], BF16, CAUSAL),
                         RANDOM_ORDER, 6, {{1, 1}}};
        decode_problem p;
        decode_result r;
        char name[96];
        for (int s = 0; s < c.num_seqs; s++) {
            c.length[s].q = (int32_t)(check_random(&seed) % 9);
            c.length[s].kv = (int32_t)(check_random(&seed) % (s == 0 ? 700 : 200));
        }
        c.o.split_keys = i % 4 == 3 ? 256 : 0;
        snprintf(name, sizeof name, "%d/%d heads, d %d, page %d, %s over %s", c.o.num_heads,
                 c.o.num_kv_heads, c.o.d_qk, c.o.page_size, fp8_dtype_name(c.o.q_dtype),
                 fp8_dtype_name(c.o.kv_dtype));
        check_case = name;
        decode_problem_init(&p, &c, (uint64_t)i + 400);
        CHECK_STATUS(decode_problem_run(&r, device, &p, FP8_DECODE_PAGES), FP8_OK);
        if (r.o) decode_check(&r, &p, FP8_DECODE_ROWS, 4e-3, 1e-2);
        decode_result_free(&r);
        decode_problem_free(&p);
    }
}

/* ---- the same bytes -------------------------------------------------------------------------- */

/* Sequences `first` .. `first` + n - 1 of a problem, in the same pages. */
static decode_problem some_of(const decode_problem *p, int64_t first, int64_t n, int32_t *starts) {
    const int32_t begin = p->batch.q_starts[first];
    decode_problem x = *p;
    for (int64_t s = 0; s <= n; s++) starts[s] = p->batch.q_starts[first + s] - begin;
    x.o.num_seqs = x.batch.num_seqs = n;
    x.o.total_q = x.batch.total_q = starts[n];
    x.batch.page_table += first * p->batch.max_pages;
    x.batch.kv_lengths += first;
    x.batch.q_starts = starts;
    x.q = (uint8_t *)p->q + (size_t)(begin * p->o.q_token) * fp8_dtype_size(p->o.q_dtype);
    x.q_bytes = (size_t)(starts[n] * p->o.q_token) * fp8_dtype_size(p->o.q_dtype);
    x.o_bytes = (size_t)(starts[n] * p->o.o_token) * fp8_dtype_size(p->o.o_dtype);
    x.lse_bytes = (size_t)(starts[n] * p->o.num_heads) * sizeof(float);
    return x;
}

static void check_same(const decode_problem *p, int64_t first, int64_t n, const uint8_t *want) {
    int32_t starts[DECODE_MAX_SEQS + 1];
    const decode_problem x = some_of(p, first, n, starts);
    decode_result r;
    CHECK_STATUS(decode_problem_run(&r, device, &x, FP8_DECODE_PAGES), FP8_OK);
    if (r.bytes)
        CHECK(memcmp(r.bytes,
                     want + (size_t)(p->batch.q_starts[first] * p->o.o_token) *
                                fp8_dtype_size(p->o.o_dtype),
                     x.o_bytes) == 0);
    decode_result_free(&r);
}

/* With a given split a sequence gives the same bytes in any batch; without, a batch does. */
static void test_same_bytes(void) {
    for (int i = 0; i < 4; i++) {
        const decode_case c = {
            "same bytes",
            OPT(8, i % 2 ? 8 : 2, 128, 128, i / 2 ? 128 : 64, BF16, E4M3, BF16, CAUSAL,
                .split_keys = i == 3 ? 0 : 256 << i),
            RANDOM_ORDER, 6, {{1, 9000}, {3, 65}, {8, 2333}, {1, 128}, {0, 40}, {2, 5000}}};
        decode_problem p;
        decode_result r;
        check_case = c.name;
        decode_problem_init(&p, &c, (uint64_t)i + 9);
        CHECK_STATUS(decode_problem_run(&r, device, &p, FP8_DECODE_PAGES), FP8_OK);
        if (r.bytes) check_same(&p, 0, 6, r.bytes);
        for (int s = 0; s < 6 && r.bytes && c.o.split_keys; s++) check_same(&p, s, 1, r.bytes);
        if (r.bytes && c.o.split_keys) check_same(&p, 2, 4, r.bytes);
        decode_result_free(&r);
        decode_problem_free(&p);
    }
}

/* ---- what is not finite, what is long -------------------------------------------------------- */

/* NaN in a query spoils its row alone; no other changes by a bit. */
static void test_not_finite(void) {
    const decode_case c = {"NaN in a query", OPT(8, 2, 128, 128, 64, BF16, E4M3, BF16, CAUSAL),
                           RANDOM_ORDER, 2, {{2, 700}, {1, 300}}};
    decode_problem p;
    decode_result good, bad;
    const int32_t row = 128; /* d */

    check_case = c.name;
    decode_problem_init(&p, &c, 3);
    CHECK_STATUS(decode_problem_run(&good, device, &p, FP8_DECODE_PAGES), FP8_OK);
    ((uint16_t *)p.q)[3 * row + 5] = 0x7fc0;
    CHECK_STATUS(decode_problem_run(&bad, device, &p, FP8_DECODE_PAGES), FP8_OK);
    for (int64_t i = 0; i < good.count && good.o && bad.o; i++) {
        const int was_nan = isnan(good.o[i]); /* rows in no sequence are left alone */
        if (i / row == 3 || was_nan ? isnan(bad.o[i]) : bad.o[i] == good.o[i]) continue;
        fprintf(stderr, "[%s] row %lld [%lld]: %g, without %g\n", check_case, (long long)(i / row),
                (long long)(i % row), (double)bad.o[i], (double)good.o[i]);
        CHECK(!"NaN is where it should be");
        break;
    }
    decode_result_free(&good);
    decode_result_free(&bad);
    decode_problem_free(&p);
}

/* V of one sign, even scores, 128 k keys: sums that lose bits would be far off. */
static void test_long(void) {
    const decode_case c = {"128 k keys of one sign",
                           OPT(4, 1, 128, 128, 128, BF16, E4M3, BF16, CAUSAL, .scale = 0.001f),
                           RANDOM_ORDER, 2, {{1, 131072}, {1, 8192}}};
    decode_problem p;
    decode_result r;

    check_case = c.name;
    decode_problem_init(&p, &c, 8);
    for (size_t i = 0; i < p.v_bytes; i++) ((uint8_t *)p.pages.v)[i] &= 0x7f; /* NaN stays */
    CHECK_STATUS(decode_problem_run(&r, device, &p, FP8_DECODE_PAGES), FP8_OK);
    if (r.o) decode_check(&r, &p, FP8_DECODE_ROWS, 1e-6, 5e-3);
    decode_result_free(&r);
    decode_problem_free(&p);
}

/* Lengths of 1 to 32 k and none, drawn anew each time. */
static void test_ragged(void) {
    uint64_t seed = 77;
    for (int i = 0; i < 2; i++) {
        decode_case c = {"ragged", OPT(4, 1, 128, 128, i % 2 ? 64 : 128, BF16, E4M3, BF16, CAUSAL),
                         i == 1 ? SHARED_ORDER : RANDOM_ORDER, 12, {{1, 32768}}};
        decode_problem p;
        decode_result r;
        check_case = c.name;
        for (int s = 1; s < c.num_seqs; s++) {
            c.length[s].q = 1;
            c.length[s].kv = s == 4 ? 0 : (int32_t)(check_random(&seed) % (1u << (5 + s % 9)));
        }
        decode_problem_init(&p, &c, seed);
        CHECK_STATUS(decode_problem_run(&r, device, &p, FP8_DECODE_PAGES), FP8_OK);
        if (r.o) decode_check(&r, &p, FP8_DECODE_ROWS, 4e-3, 1e-2);
        decode_result_free(&r);
        decode_problem_free(&p);
    }
}

int main(int argc, char **argv) {
    const int few = argc > 1 && strcmp(argv[1], "few") == 0;
    device = check_gpu();
    if (!device) return TEST_SKIP;
    test_not_finite();
    test_shapes(few);
    if (few) goto done;
    test_same_bytes();
    test_long();
    test_ragged();
done:
    fp8_device_destroy(device);
    return CHECK_DONE();
}
