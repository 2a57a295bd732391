/* quant/gemm.h on CUDA against sums in double: each way a product is made, odd layouts, same-sign
 * data, CUDA graphs, the same bytes each time. */
#include <string.h>

#include "core/graph.h"
#include "core/half.h"
#include "quant/cast.h"
#include "quant/gemm.h"
#include "tests/check.h"

static const fp8_dtype types[] = {FP8_DTYPE_F32, FP8_DTYPE_BF16, FP8_DTYPE_F16, FP8_DTYPE_E4M3,
                                  FP8_DTYPE_E5M2};
enum { F32, BF16, F16, E4M3, E5M2 };

static fp8_device *gpu, *cpu;

typedef struct gemm_shape {
    const char *name;
    int64_t m, n, k, batch;
    int kn, pad;       /* pad: elements between rows */
    int a, b, d;
    int descales;      /* 0 none, 1 scalars, 2 vectors, 3 vector x scalar, 4 scalar x vector */
    int bias;          /* -1 none, else a type */
    double bound;      /* relative L2 */
} gemm_shape;

/* Bounds: the store rounds with at most 2^-9 relative error a BF16 element, in root mean square
 * some 1.7e-3, 2e-4 for F16; F32 sums of these few hundred products stay below 1e-5. FP8 sums keep
 * some 13 bits between promotions: 1e-3 with room. */
static const gemm_shape cases[] = {
    {"bf16", 64, 128, 96, 0, 0, 0, BF16, BF16, BF16, 0, -1, 3e-3},
    {"bf16, f32 out", 64, 128, 96, 0, 0, 0, BF16, BF16, F32, 0, -1, 1e-5},
    {"bf16, odd", 17, 20, 80, 0, 0, 1, BF16, BF16, BF16, 0, -1, 3e-3},
    {"bf16, odd, f32 out", 7, 13, 33, 0, 0, 3, BF16, BF16, F32, 0, -1, 1e-5},
    {"bf16 bias", 33, 48, 64, 0, 0, 0, BF16, BF16, BF16, 0, BF16, 3e-3},
    {"bf16 kn", 40, 96, 72, 0, 1, 0, BF16, BF16, BF16, 0, BF16, 3e-3},
    {"bf16 kn, odd, batch", 9, 15, 21, 3, 1, 1, BF16, BF16, F32, 0, -1, 1e-5},
    {"bf16 batch bias", 16, 32, 64, 4, 0, 0, BF16, BF16, BF16, 0, BF16, 3e-3},
    {"bf16 descales", 33, 48, 64, 0, 0, 0, BF16, BF16, BF16, 2, BF16, 3e-3},
    {"bf16 descales, f32 in place", 33, 47, 64, 0, 0, 1, BF16, BF16, F32, 3, F32, 1e-5},
    {"bf16 descales, batch", 12, 16, 32, 3, 0, 1, BF16, BF16, F16, 4, F32, 5e-4},
    {"bf16 descales, many passes", 1100, 16384, 32, 0, 0, 0, BF16, BF16, BF16, 2, -1, 3e-3},
    {"f32", 50, 60, 70, 0, 0, 0, F32, F32, F32, 0, F32, 1e-6},
    {"f32 odd kn", 5, 7, 9, 0, 1, 1, F32, F32, F32, 0, -1, 1e-6},
    {"f32, bf16 out", 20, 24, 30, 0, 0, 0, F32, F32, BF16, 0, BF16, 3e-3},
    {"f16", 31, 64, 40, 0, 0, 0, F16, F16, F16, 0, F16, 5e-4},
    {"one row", 1, 64, 128, 0, 0, 0, BF16, BF16, BF16, 0, -1, 3e-3},
    {"k = 0", 5, 8, 0, 0, 0, 0, BF16, BF16, BF16, 1, BF16, 3e-3},
    {"fp8 scalars", 48, 64, 256, 0, 0, 0, E4M3, E4M3, BF16, 1, -1, 4e-3},
    {"fp8, odd tokens", 17, 128, 80, 0, 0, 0, E4M3, E4M3, BF16, 1, BF16, 4e-3},
    {"fp8, f32 out, f32 bias", 33, 64, 256, 0, 0, 0, E4M3, E4M3, F32, 1, F32, 1e-3},
    {"fp8, f16 out", 33, 64, 256, 0, 0, 0, E4M3, E4M3, F16, 1, F16, 1e-3},
    {"fp8 no descales", 16, 32, 64, 0, 0, 16, E4M3, E4M3, BF16, 0, -1, 4e-3},
    {"fp8 vectors", 65, 128, 512, 0, 0, 0, E4M3, E4M3, BF16, 2, -1, 4e-3},
    {"fp8 vectors, bias", 65, 128, 512, 0, 0, 0, E4M3, E4M3, BF16, 2, BF16, 4e-3},
    {"fp8 vectors, f32 out", 65, 128, 512, 0, 0, 0, E4M3, E4M3, F32, 2, -1, 1e-3},
    {"fp8 vector x scalar", 19, 48, 128, 0, 0, 0, E4M3, E4M3, BF16, 3, -1, 4e-3},
    {"fp8 scalar x vector", 19, 48, 128, 0, 0, 0, E4M3, E4M3, BF16, 4, -1, 4e-3},
    {"fp8 one row, vector", 1, 48, 128, 0, 0, 0, E4M3, E4M3, BF16, 2, -1, 4e-3},
    {"e5m2 x e4m3", 32, 48, 128, 0, 0, 0, E5M2, E4M3, BF16, 1, -1, 4e-3},
    {"e4m3 x e5m2", 32, 48, 128, 0, 0, 0, E4M3, E5M2, BF16, 1, -1, 4e-3},
};

/* n elements of a type made from normal numbers (or |N| + 0.5) on the host and the device. */
typedef struct operand {
    float *values;
    void *raw, *device;
    size_t bytes;
} operand;

static operand make(fp8_dtype t, int64_t n, uint64_t seed, int same_sign) {
    const float grow = t == FP8_DTYPE_E4M3 || t == FP8_DTYPE_E5M2 ? 4.0f : 1.0f;
    operand o = {.bytes = (size_t)n * fp8_dtype_size(t)};

    o.values = malloc((size_t)(n + 1) * 4);
    o.raw = malloc(o.bytes + 4);
    for (int64_t i = 0; i < n; i++) {
        const float v = check_normal(&seed);
        o.values[i] = (same_sign ? fabsf(v) + 0.5f : v) * grow;
    }
    for (int64_t i = 0; i < n; i++) {
        const float v = o.values[i];
        if (t == FP8_DTYPE_F32) ((float *)o.raw)[i] = v;
        else if (t == FP8_DTYPE_BF16) ((uint16_t *)o.raw)[i] = fp8_f32_to_bf16(v);
        else if (t == FP8_DTYPE_F16) ((uint16_t *)o.raw)[i] = fp8_f32_to_f16(v);
        else ((uint8_t *)o.raw)[i] = fp8_from_f32(t, v);
        if (t == FP8_DTYPE_BF16) o.values[i] = fp8_bf16_to_f32(((uint16_t *)o.raw)[i]);
        else if (t == FP8_DTYPE_F16) o.values[i] = fp8_f16_to_f32(((uint16_t *)o.raw)[i]);
        else if (t != FP8_DTYPE_F32) o.values[i] = fp8_to_f32(t, ((uint8_t *)o.raw)[i]);
    }
    CHECK_STATUS(fp8_device_alloc(gpu, &o.device, o.bytes), FP8_OK);
    CHECK_STATUS(fp8_device_upload(gpu, o.device, o.raw, o.bytes), FP8_OK);
    return o;
}

static void drop(operand *o) {
    fp8_device_free(gpu, o->device);
    free(o->values);
    free(o->raw);
}

/* A whole problem. */
typedef struct problem {
    fp8_gemm g;
    operand a, b, d, bias, a_descale, b_descale;
} problem;

static problem make_problem(const gemm_shape *s, int same_sign) {
    const int64_t batch = s->batch > 1 ? s->batch : 1;
    const int64_t b_rows = s->kn ? s->k : s->n, b_cols = s->kn ? s->n : s->k;
    problem p = {0};
    fp8_gemm *g = &p.g;

    *g = (fp8_gemm){.m = s->m, .n = s->n, .k = s->k, .lda = s->k + s->pad, .ldb = b_cols + s->pad,
                    .ldd = s->n + s->pad, .a_dtype = types[s->a], .b_dtype = types[s->b],
                    .d_dtype = types[s->d], .b_is_kn = s->kn, .alpha = 0.75f, .batch = s->batch,
                    .a_descale_count = s->descales == 2 || s->descales == 3 ? s->m : 1,
                    .b_descale_count = s->descales == 2 || s->descales == 4 ? s->n : 1};
    g->a_stride = s->m * g->lda + s->pad;
    g->b_stride = b_rows * g->ldb + s->pad;
    g->d_stride = s->m * g->ldd + s->pad;
    p.a = make(g->a_dtype, batch * g->a_stride, 1, same_sign);
    p.b = make(g->b_dtype, batch * g->b_stride, 2, same_sign);
    p.d = make(g->d_dtype, batch * g->d_stride, 3, 0);
    g->a = p.a.device;
    g->b = p.b.device;
    g->d = p.d.device;
    if (s->descales) {
        p.a_descale = make(FP8_DTYPE_F32, g->a_descale_count, 4, 1);
        p.b_descale = make(FP8_DTYPE_F32, g->b_descale_count, 5, 1);
        g->a_descale = p.a_descale.device;
        g->b_descale = p.b_descale.device;
    }
    if (s->bias >= 0) {
        p.bias = make(types[s->bias], s->n, 6, 0);
        g->bias = p.bias.device;
        g->bias_dtype = types[s->bias];
    }
    return p;
}

static void drop_problem(problem *p) {
    operand *all[] = {&p->a, &p->b, &p->d, &p->bias, &p->a_descale, &p->b_descale};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) drop(all[i]);
}

static double expected(const problem *p, int64_t batch, int64_t i, int64_t j) {
    const fp8_gemm *g = &p->g;
    const float *a = p->a.values + batch * g->a_stride + i * g->lda;
    const float *b = p->b.values + batch * g->b_stride + (g->b_is_kn ? j : j * g->ldb);
    const int64_t step = g->b_is_kn ? g->ldb : 1;
    double sum = 0;

    for (int64_t k = 0; k < g->k; k++) sum += (double)a[k] * (double)b[k * step];
    sum *= (double)g->alpha;
    if (g->a_descale) sum *= (double)p->a_descale.values[g->a_descale_count > 1 ? i : 0];
    if (g->b_descale) sum *= (double)p->b_descale.values[g->b_descale_count > 1 ? j : 0];
    return sum + (g->bias ? (double)p->bias.values[j] : 0);
}

static float result_at(const problem *p, int64_t at) {
    if (p->g.d_dtype == FP8_DTYPE_F32) return ((const float *)p->d.raw)[at];
    return p->g.d_dtype == FP8_DTYPE_BF16 ? fp8_bf16_to_f32(((const uint16_t *)p->d.raw)[at])
                                          : fp8_f16_to_f32(((const uint16_t *)p->d.raw)[at]);
}

/* Relative L2 error of D (downloaded), over all rows, or some of a large one. Between rows and past
 * the last column nothing may have changed. */
static double error_of(const problem *p) {
    const fp8_gemm *g = &p->g;
    const int64_t step = g->m * g->n > 1 << 18 ? 97 : 1;
    double error = 0, reference = 0;

    for (int64_t b = 0; b < (g->batch > 1 ? g->batch : 1); b++)
        for (int64_t i = 0; i < g->m; i += step) {
            for (int64_t j = 0; j < g->n; j++) {
                const double want = expected(p, b, i, j);
                const double e = (double)result_at(p, b * g->d_stride + i * g->ldd + j) - want;
                error += e * e;
                reference += want * want;
            }
            for (int64_t j = g->n; j < g->ldd; j++) {
                const int64_t at = b * g->d_stride + i * g->ldd + j;
                CHECK(result_at(p, at) == p->d.values[at]);
            }
        }
    return sqrt(error / reference);
}

static void download(problem *p) {
    CHECK_STATUS(fp8_device_download(gpu, p->d.raw, p->d.device, p->d.bytes), FP8_OK);
}

static double run(problem *p, fp8_accumulate accumulate) {
    const size_t bytes = fp8_gemm_workspace_size(gpu, &p->g);
    void *workspace = NULL;

    p->g.accumulate = accumulate;
    CHECK_STATUS(fp8_device_alloc(gpu, &workspace, bytes), FP8_OK);
    CHECK_STATUS(fp8_gemm_run(gpu, &p->g, workspace, bytes), FP8_OK);
    download(p);
    fp8_device_free(gpu, workspace);
    return error_of(p);
}

static int is_fp8_case(const gemm_shape *s) { return s->a >= E4M3; }

static void test_cases(void) {
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        problem p;
        void *once;
        double error;
        if (is_fp8_case(&cases[i]) && fp8_device_capability(gpu) < 89) continue;
        check_case = cases[i].name;
        p = make_problem(&cases[i], 0);
        CHECK(fp8_gemm_supported(gpu, &p.g));
        error = run(&p, FP8_ACCUMULATE_EXACT);
        if (!(error <= cases[i].bound)) {
            fprintf(stderr, "[%s] relative error %.3g, expected at most %.3g\n", check_case, error,
                    cases[i].bound);
            check_failures++;
        }
        once = malloc(p.d.bytes);
        memcpy(once, p.d.raw, p.d.bytes);
        run(&p, FP8_ACCUMULATE_EXACT);
        CHECK(memcmp(once, p.d.raw, p.d.bytes) == 0);
        free(once);
        drop_problem(&p);
    }
}

/* Sums of one sign grow past what Hopper's FP8 accumulators hold unless they are promoted. Enough
 * tiles for every SM, so that no split of K hides it. */
static void test_same_sign(void) {
    static const struct {
        const char *name;
        int d, descales;
        double bound;
    } rows[] = {{"same sign, f32", F32, 1, 1e-3},
                {"same sign, bf16", BF16, 1, 4e-3},
                {"same sign, vectors", BF16, 2, 4e-3}};
    if (fp8_device_capability(gpu) < 89) return;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const gemm_shape s = {rows[i].name, 2048, 1024, 4096, 0, 0, 0, E4M3, E4M3, rows[i].d,
                              rows[i].descales, -1, rows[i].bound};
        problem p = make_problem(&s, 1);
        const double exact = run(&p, FP8_ACCUMULATE_EXACT), fast = run(&p, FP8_ACCUMULATE_FAST);
        check_case = rows[i].name;
        fprintf(stderr, "%s: relative error %.2g, fast accumulation %.2g\n", s.name, exact, fast);
        CHECK(exact <= s.bound);
        if (fp8_device_capability(gpu) == 90 && rows[i].descales == 1) CHECK(fast > 1e-2);
        drop_problem(&p);
    }
}

static void test_graph(void) {
    const int fp8 = fp8_device_capability(gpu) >= 89;
    const gemm_shape s = {"graph", 32, 64, 128, 0, 0, 0, fp8 ? E4M3 : BF16, fp8 ? E4M3 : BF16,
                          BF16, 2, -1, 4e-3};
    problem p = make_problem(&s, 0);
    const size_t bytes = fp8_gemm_workspace_size(gpu, &p.g);
    fp8_graph *graph = NULL;
    void *workspace = NULL;

    check_case = "graph";
    CHECK_STATUS(fp8_device_alloc(gpu, &workspace, bytes), FP8_OK);
    CHECK_STATUS(fp8_gemm_run(gpu, &p.g, workspace, bytes), FP8_OK); /* loads the kernels */
    CHECK_STATUS(fp8_device_sync(gpu), FP8_OK);
    CHECK_STATUS(fp8_graph_begin(gpu), FP8_OK);
    CHECK_STATUS(fp8_gemm_run(gpu, &p.g, workspace, bytes), FP8_OK);
    CHECK_STATUS(fp8_graph_end(gpu, &graph), FP8_OK);
    CHECK_STATUS(fp8_device_fill(gpu, p.d.device, 0, p.d.bytes), FP8_OK);
    if (graph) CHECK_STATUS(fp8_graph_launch(graph), FP8_OK);
    download(&p);
    CHECK(error_of(&p) <= s.bound);
    fp8_graph_destroy(graph);
    fp8_device_free(gpu, workspace);
    drop_problem(&p);
}

static void test_refused(void) {
    const gemm_shape good = {"refused", 32, 64, 128, 0, 0, 0, E4M3, E4M3, BF16, 0, -1, 1};
    problem p = make_problem(&good, 0);
    fp8_gemm bad[6];

    for (int i = 0; i < 6; i++) bad[i] = p.g;
    bad[0].k = 120;
    bad[1].n = 56; /* not a multiple of 16 */
    bad[2].a_dtype = bad[2].b_dtype = FP8_DTYPE_E5M2;
    bad[3].b_dtype = FP8_DTYPE_BF16;
    bad[4].b_is_kn = 1;
    bad[5].a = (const char *)p.g.a + 1;
    for (int i = 0; i < 6; i++) {
        char name[24];
        snprintf(name, sizeof name, "refused %d", i);
        check_case = name;
        CHECK(!fp8_gemm_supported(gpu, &bad[i]));
        CHECK_STATUS(fp8_gemm_run(gpu, &bad[i], NULL, 0), FP8_EUNSUPPORTED);
    }
    check_case = "no workspace";
    p.g.a_descale = p.g.b_descale = p.a.device;
    p.g.a_descale_count = 32;
    p.g.b_descale_count = 1;
    CHECK_STATUS(fp8_gemm_run(gpu, &p.g, NULL, 0),
                 fp8_device_capability(gpu) >= 89 ? FP8_EINVAL : FP8_EUNSUPPORTED);
    drop_problem(&p);
    check_case = "";
}

int main(void) {
    gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 0), FP8_OK);
    test_cases();
    test_same_sign();
    test_graph();
    test_refused();
    fp8_device_destroy(cpu);
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
