/* Attention over pages on the CPU: the oracle against attention's own over the keys as they are,
 * the backend against the oracle, bytes that do not depend on the company, what is refused. */
#include "decode_cases.h"

static fp8_device *device;

/* The oracle reads pages as cache.h says: the same keys, packed by hand, give the same. */
static void check_oracle(const decode_problem *p) {
    const fp8_decode_options *o = &p->o;
    const int64_t n = o->num_seqs, rows = o->total_q, keys = p->kv_starts[n];
    const int64_t groups = o->granularity == FP8_DESCALE_HEAD ? o->num_kv_heads : 1;
    const size_t count = (size_t)(rows * o->num_heads * o->d_v);
    double *got = decode_memory(count * sizeof *got), *want = decode_memory(count * sizeof *want);
    uint8_t *k = decode_memory((size_t)(keys * o->num_kv_heads * o->d_qk) * 4);
    uint8_t *v = decode_memory((size_t)(keys * o->num_kv_heads * o->d_v) * 4);
    const fp8_decode_io io = decode_host_io(p);
    fp8_attention_options a = FP8_ATTENTION_OPTIONS;
    fp8_attention_io x = {.q = p->q, .k = k, .v = v, .q_starts = p->batch.q_starts,
                          .kv_starts = p->kv_starts, .total_q = rows, .total_kv = keys,
                          .q_descale = p->q_descale, .k_descale = p->k_descale,
                          .v_descale = p->v_descale, .sink = p->sink, .alibi_slopes = p->slopes};

    for (int64_t i = 0; i < keys * o->num_kv_heads * o->d_qk; i++)
        decode_set(k, o->kv_dtype, i, p->k[i]);
    for (int64_t i = 0; i < keys * o->num_kv_heads * o->d_v; i++)
        decode_set(v, o->kv_dtype, i, p->v[i]);
    a.num_heads = o->num_heads;
    a.num_kv_heads = o->num_kv_heads;
    a.d_qk = o->d_qk;
    a.d_v = o->d_v;
    a.num_seqs = n;
    a.max_q = o->max_q;
    a.max_kv = o->max_kv;
    a.has_strides = 1;
    a.q = (fp8_strides){0, o->q_token, o->d_qk};
    a.k = (fp8_strides){0, (int64_t)o->num_kv_heads * o->d_qk, o->d_qk};
    a.v = (fp8_strides){0, (int64_t)o->num_kv_heads * o->d_v, o->d_v};
    a.o = (fp8_strides){0, (int64_t)o->num_heads * o->d_v, o->d_v};
    a.mask = o->mask;
    a.window_left = o->window_left;
    a.bias = o->alibi ? FP8_BIAS_ALIBI : FP8_BIAS_NONE;
    a.softcap = o->softcap;
    a.sink = o->sink;
    a.scale = o->scale;
    a.q_dtype = o->q_dtype;
    a.kv_dtype = o->kv_dtype;
    a.granularity = groups > 1 ? FP8_DESCALE_HEAD : FP8_DESCALE_TENSOR;
    a.quantize_p = o->quantize_p;
    CHECK_STATUS(fp8_decode_reference(got, NULL, o, &io), FP8_OK);
    CHECK_STATUS(fp8_attention_reference(want, NULL, NULL, &a, &x), FP8_OK);
    CHECK(memcmp(got, want, count * sizeof *got) == 0);
    free(got);
    free(want);
    free(k);
    free(v);
}

/* O in F32 is the formula's; else one rounding of it. */
static double relative_of(fp8_dtype o) {
    return o == BF16 ? 0x1p-8 : o == F16 ? 0x1p-11 : o == E4M3 ? 0x1p-4 : 1e-5;
}

static void test_cases(void) {
    for (int i = 0; i < NUM_DECODE_CASES; i++) {
        const decode_case *c = &decode_cases[i];
        decode_problem p;
        decode_result r;
        check_case = c->name;
        decode_problem_init(&p, c, (uint64_t)i + 77);
        check_oracle(&p);
        CHECK_STATUS(decode_problem_run(&r, device, &p, FP8_DECODE_CPU), FP8_OK);
        if (r.o)
            decode_check(&r, &p, 0, p.o.o_dtype == E4M3 ? 2e-4 : 2e-5,
                         relative_of(p.o.o_dtype));
        decode_result_free(&r);
        decode_problem_free(&p);
    }
}

/* F32 throughout, odd head sizes: the CPU alone. */
static void test_f32(void) {
    const decode_case c = {"F32, d 20 to 7", OPT(6, 3, 20, 7, 64, F32, F32, F32, CAUSAL),
                           RANDOM_ORDER, EDGES};
    decode_problem p;
    decode_result r;
    check_case = c.name;
    decode_problem_init(&p, &c, 5);
    check_oracle(&p);
    CHECK_STATUS(decode_problem_run(&r, device, &p, FP8_DECODE_AUTO), FP8_OK);
    if (r.o) decode_check(&r, &p, 0, 2e-5, 1e-5);
    decode_result_free(&r);
    decode_problem_free(&p);
}

/* Byte for byte: twice the same, and each sequence alone the same. */
static void test_same_bytes(void) {
    const decode_case c = {"same bytes", OPT(8, 2, 128, 128, 64, BF16, E4M3, BF16, CAUSAL,
                                             .split_keys = 128),
                           RANDOM_ORDER, 5, {{1, 700}, {3, 65}, {20, 333}, {1, 128}, {8, 40}}};
    decode_problem p;
    decode_result r, again;
    check_case = c.name;
    decode_problem_init(&p, &c, 9);
    CHECK_STATUS(decode_problem_run(&r, device, &p, FP8_DECODE_CPU), FP8_OK);
    CHECK_STATUS(decode_problem_run(&again, device, &p, FP8_DECODE_CPU), FP8_OK);
    CHECK(memcmp(r.bytes, again.bytes, p.o_bytes) == 0);
    for (int64_t s = 0; s < 5; s++) {
        const decode_problem one = decode_problem_alone(&p, s);
        decode_result x;
        CHECK_STATUS(decode_problem_run(&x, device, &one, FP8_DECODE_CPU), FP8_OK);
        CHECK(memcmp(x.bytes,
                     r.bytes + (size_t)(p.batch.q_starts[s] * p.o.o_token) * 2,
                     one.o_bytes) == 0);
        decode_result_free(&x);
    }
    decode_result_free(&r);
    decode_result_free(&again);
    decode_problem_free(&p);
}

/* Lengths, starts and pages that point outside: as the oracle clamps them, and no stray access
 * (which the sanitizer sees). FP8_SYNC=1 reports it. */
static void test_hostile(void) {
    static int32_t lengths[] = {INT32_MAX, -5, 1000, 40}, starts[] = {-3, 2, 2, 900, 4};
    static int32_t table[4 * 3];
    const decode_case c = {"hostile", OPT(4, 2, 64, 64, 64, BF16, E4M3, BF16, CAUSAL),
                           RANDOM_ORDER, 4, {{1, 100}, {1, 90}, {1, 128}, {1, 60}}};
    decode_problem p, bad;
    decode_result r;

    check_case = c.name;
    decode_problem_init(&p, &c, 3);
    memset(p.pages.k, 0x31, p.k_bytes);
    memset(p.pages.v, 0x32, p.v_bytes);
    for (int i = 0; i < 12; i++) table[i] = i % 3 == 0 ? -i * 1000 : INT32_MAX - i;
    bad = p;
    bad.batch.kv_lengths = lengths;
    bad.batch.q_starts = starts;
    bad.batch.page_table = table;
    bad.batch.max_pages = 3;
    CHECK_STATUS(decode_problem_run(&r, device, &bad, FP8_DECODE_CPU), FP8_OK);
    if (r.o) decode_check(&r, &bad, 0, 2e-5, 0x1p-8);
    decode_result_free(&r);
    setenv("FP8_SYNC", "1", 1);
    CHECK_STATUS(decode_problem_run(&r, device, &bad, FP8_DECODE_CPU), FP8_EINVAL);
    decode_result_free(&r);
    CHECK_STATUS(decode_problem_run(&r, device, &p, FP8_DECODE_CPU), FP8_OK);
    decode_result_free(&r);
    unsetenv("FP8_SYNC");
    decode_problem_free(&p);
}

/* ---- refusals -------------------------------------------------------------------------------- */

static void refuse_options(const char *name, fp8_decode_options o, fp8_status want) {
    fp8_decode_plan *plan = NULL;
    check_case = name;
    CHECK_STATUS(fp8_decode_plan_create(&plan, device, &o), want);
    CHECK(!plan);
}

static void test_options(void) {
    const fp8_decode_options good = {.num_heads = 4, .num_kv_heads = 2, .d_qk = 64, .d_v = 64,
                                     .page_size = 64, .num_seqs = 2, .max_q = 1, .max_kv = 100,
                                     .q_dtype = BF16, .kv_dtype = E4M3, .o_dtype = BF16,
                                     .mask = FP8_MASK_CAUSAL_BOTTOM_RIGHT, .window_left = -1};
#define REFUSE(field, value)                                                                       \
    do {                                                                                           \
        fp8_decode_options o = good;                                                               \
        o.field = value;                                                                           \
        refuse_options(#field " " #value, o, FP8_EINVAL);                                          \
    } while (0)
    REFUSE(num_heads, 5);
    REFUSE(d_v, 0);
    REFUSE(page_size, 32);
    REFUSE(mask, FP8_MASK_CAUSAL);
    REFUSE(granularity, FP8_DESCALE_BATCH_HEAD);
    REFUSE(kv_dtype, FP8_DTYPE_F16);
    REFUSE(kv_dtype, FP8_DTYPE_E5M2);
    REFUSE(q_token, 255);
    REFUSE(o_token, 17);
    REFUSE(split_keys, 65);
    REFUSE(split_keys, -64);
    REFUSE(softcap, -1.0f);
    REFUSE(max_q, -1);
    REFUSE(total_q, -1);
    REFUSE(backend, (fp8_decode_backend)9);
#undef REFUSE
}

static void test_backends(void) {
    const decode_case c = {"backends", OPT(4, 2, 64, 64, 64, BF16, E4M3, BF16, CAUSAL),
                           IN_ORDER, 1, {{1, 5}}};
    fp8_decode_plan *plan = NULL;
    decode_problem p;
    check_case = c.name;
    decode_problem_init(&p, &c, 1);
    CHECK_STATUS(fp8_decode_plan_create(&plan, device, &p.o), FP8_OK);
    if (plan) {
        CHECK(fp8_decode_plan_backend(plan) == FP8_DECODE_CPU);
        CHECK(strstr(fp8_decode_plan_reasons(plan), "cpu: "));
        CHECK(strstr(fp8_decode_plan_reasons(plan), ": serves"));
    }
    fp8_decode_plan_destroy(plan);
    setenv("FP8_DECODE_BACKEND", "nonsense", 1);
    CHECK_STATUS(fp8_decode_plan_create(&plan, device, &p.o), FP8_EINVAL);
    setenv("FP8_DECODE_BACKEND", "cpu", 1);
    CHECK_STATUS(fp8_decode_plan_create(&plan, device, &p.o), FP8_OK);
    fp8_decode_plan_destroy(plan);
    unsetenv("FP8_DECODE_BACKEND");
    p.o.backend = FP8_DECODE_PAGES;
    CHECK_STATUS(fp8_decode_plan_create(&plan, device, &p.o), FP8_EUNSUPPORTED);
    CHECK(strcmp(fp8_decode_backend_name(FP8_DECODE_GATHERED), "gathered") == 0);
    decode_problem_free(&p);
}

static void refuse_io(const char *name, fp8_decode_plan *plan, const fp8_decode_io *io,
                      uint8_t *workspace) {
    check_case = name;
    CHECK_STATUS(fp8_decode_run(plan, io, workspace, fp8_decode_workspace_size(plan)), FP8_EINVAL);
}

static void test_io(void) {
    const decode_case c = {"io", OPT(4, 2, 64, 64, 64, E4M3, E4M3, E4M3, CAUSAL,
                                     .sink = FP8_SINK_LEARNABLE), IN_ORDER, 2, {{1, 5}, {2, 70}}};
    fp8_decode_plan *plan = NULL;
    decode_device g;
    decode_problem p;
    uint8_t *workspace;

    check_case = c.name;
    decode_problem_init(&p, &c, 1);
    CHECK_STATUS(fp8_decode_plan_create(&plan, device, &p.o), FP8_OK);
    decode_device_init(&g, device, &p);
    workspace = decode_memory(fp8_decode_workspace_size(plan));
    CHECK_STATUS(fp8_decode_run(plan, &g.io, workspace, fp8_decode_workspace_size(plan)), FP8_OK);
    CHECK_STATUS(fp8_decode_run(plan, &g.io, workspace, 5), FP8_EINVAL);
#define REFUSE(field, value)                                                                       \
    do {                                                                                           \
        fp8_decode_io io = g.io;                                                                   \
        io.field = value;                                                                          \
        refuse_io(#field " " #value, plan, &io, workspace);                                        \
    } while (0)
    REFUSE(q, NULL);
    REFUSE(o, NULL);
    REFUSE(lse, NULL);
    REFUSE(q_descale, NULL);
    REFUSE(o_scale, NULL);
    REFUSE(sink, NULL);
    REFUSE(pages.k, NULL);
    REFUSE(pages.v_descale, NULL);
    REFUSE(pages.page_size, 128);
    REFUSE(pages.num_kv_heads, 4);
    REFUSE(pages.granularity, FP8_DESCALE_HEAD);
    REFUSE(pages.num_pages, 0);
    REFUSE(pages.k_page, 1);
    REFUSE(batch.num_seqs, 3);
    REFUSE(batch.max_q, 3);
    REFUSE(batch.max_kv, 71);
    REFUSE(batch.total_q, 100);
    REFUSE(batch.q_starts, NULL);
    REFUSE(batch.kv_lengths, NULL);
    REFUSE(batch.page_table, NULL);
#undef REFUSE
    free(workspace);
    decode_device_free(&g, device);
    decode_problem_free(&p);
    fp8_decode_plan_destroy(plan);
}

int main(void) {
    CHECK_STATUS(fp8_device_create(&device, "cpu", 2), FP8_OK);
    if (!device) return CHECK_DONE();
    test_cases();
    test_f32();
    test_same_bytes();
    test_hostile();
    test_options();
    test_backends();
    test_io();
    fp8_device_destroy(device);
    return CHECK_DONE();
}
