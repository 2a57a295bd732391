/* quant/gemm.h on the CPU: every version of the loops against sums in double, the same bits for any
 * number of threads, what must be refused. */
#include <float.h>
#include <string.h>

#include "core/half.h"
#include "quant/gemm_cpu.h"
#include "tests/check.h"

static const fp8_dtype types[] = {FP8_DTYPE_F32, FP8_DTYPE_BF16, FP8_DTYPE_F16, FP8_DTYPE_E4M3,
                                  FP8_DTYPE_E5M2};
enum { F32, BF16, F16, E4M3, E5M2, NUM_TYPES };

/* A product with its operands, and what it should be. */
typedef struct gemm_case {
    fp8_gemm g;
    void *a, *b, *d, *bias;
    float *fa, *fb, *fbias, *a_descale, *b_descale;
} gemm_case;

static void *checked(size_t bytes) {
    void *p = malloc(bytes ? bytes : 1);
    if (!p) exit(1);
    return p;
}

/* n elements of a type, and their values: normal, with a 0 and a -0 among them. */
static void make(void **out, float **values, fp8_dtype t, int64_t n, uint64_t *seed) {
    *values = checked((size_t)n * sizeof(float));
    *out = checked((size_t)n * fp8_dtype_size(t));
    for (int64_t i = 0; i < n; i++)
        (*values)[i] = check_random(seed) % 64 ? check_normal(seed) : -0.0f;
    if (t == FP8_DTYPE_E4M3 || t == FP8_DTYPE_E5M2)
        fp8_simd_scalar.encode(*out, t, *values, n, 8);
    else fp8_simd_scalar.narrow(*out, t, *values, n);
    fp8_simd_scalar.widen(*values, *out, t, n);
}

typedef struct gemm_shape {
    int64_t m, n, k, batch;
    int kn, pad; /* pad: elements between rows */
    int a, b, d;
    int descales; /* 0 none, 1 scalars, 2 vectors, 3 vector and scalar */
    int bias;     /* -1 none, else a type */
} gemm_shape;

static void make_case(gemm_case *c, const gemm_shape *s) {
    const int64_t batch = s->batch > 1 ? s->batch : 1;
    const int64_t b_rows = s->kn ? s->k : s->n, b_cols = s->kn ? s->n : s->k;
    uint64_t seed = (uint64_t)(s->m * 31 + s->n * 7 + s->k);
    fp8_gemm *g = &c->g;

    memset(c, 0, sizeof *c);
    *g = (fp8_gemm){.m = s->m, .n = s->n, .k = s->k, .lda = s->k + s->pad,
                    .ldb = b_cols + s->pad, .ldd = s->n + s->pad, .a_dtype = types[s->a],
                    .b_dtype = types[s->b], .d_dtype = types[s->d], .b_is_kn = s->kn,
                    .alpha = 0.75f, .batch = s->batch};
    g->a_stride = s->m * g->lda + s->pad;
    g->b_stride = b_rows * g->ldb + s->pad;
    g->d_stride = s->m * g->ldd + s->pad;
    make(&c->a, &c->fa, g->a_dtype, batch * g->a_stride, &seed);
    make(&c->b, &c->fb, g->b_dtype, batch * g->b_stride, &seed);
    c->d = checked((size_t)(batch * g->d_stride) * sizeof(float));
    if (s->descales) {
        g->a_descale_count = s->descales == 1 ? 1 : s->m;
        g->b_descale_count = s->descales == 2 ? s->n : 1;
        c->a_descale = checked((size_t)(s->m + 1) * sizeof(float));
        c->b_descale = checked((size_t)(s->n + 1) * sizeof(float));
        for (int64_t i = 0; i <= s->m; i++) c->a_descale[i] = (float)(0.5 + check_uniform(&seed));
        for (int64_t i = 0; i <= s->n; i++) c->b_descale[i] = (float)(0.5 + check_uniform(&seed));
    }
    if (s->bias >= 0) make(&c->bias, &c->fbias, types[s->bias], s->n, &seed);
    g->a = c->a;
    g->b = c->b;
    g->d = c->d;
    g->a_descale = c->a_descale;
    g->b_descale = c->b_descale;
    g->bias = c->bias;
    g->bias_dtype = s->bias >= 0 ? types[s->bias] : FP8_DTYPE_BOOL;
}

static void free_case(gemm_case *c) {
    void *all[] = {c->a, c->b, c->d, c->bias, c->fa, c->fb, c->fbias, c->a_descale, c->b_descale};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* Half a unit in the last place of a result type, relative, and its smallest spacing. */
static double rounding(fp8_dtype t) {
    return t == FP8_DTYPE_BF16 ? 0x1p-8 : t == FP8_DTYPE_F16 ? 0x1p-11 : 0x1p-24;
}

/* |err| of a sum of k products rounded each time in F32 is at most k eps sum |a||b| to first order
 * (eps = 2^-24; k + 1 covers the product's own rounding), then 4 roundings of scales and bias, then
 * the rounding of the store. */
static void check_element(const gemm_case *c, int64_t batch, int64_t i, int64_t j) {
    const fp8_gemm *g = &c->g;
    const float *a = c->fa + batch * g->a_stride + i * g->lda;
    const float *b = c->fb + batch * g->b_stride + (g->b_is_kn ? j : j * g->ldb);
    const int64_t at = batch * g->d_stride + i * g->ldd + j, step = g->b_is_kn ? g->ldb : 1;
    const double bias = c->fbias ? (double)c->fbias[j] : 0;
    double sum = 0, magnitude = 0, factor = (double)g->alpha, bound;
    float got;

    if (c->a_descale) factor *= (double)c->a_descale[g->a_descale_count > 1 ? i : 0];
    if (c->b_descale) factor *= (double)c->b_descale[g->b_descale_count > 1 ? j : 0];
    for (int64_t p = 0; p < g->k; p++) {
        const double product = (double)a[p] * (double)b[p * step];
        sum += product;
        magnitude += fabs(product);
    }
    fp8_simd_scalar.widen(&got, (const char *)c->d + at * (int64_t)fp8_dtype_size(g->d_dtype),
                          g->d_dtype, 1);
    bound = 0x1p-24 * (((double)g->k + 4) * magnitude * factor + fabs(bias));
    bound += rounding(g->d_dtype) * (fabs(sum * factor + bias) + bound) + 0x1p-25;
    if (fabs((double)got - (sum * factor + bias)) <= bound) return;
    if (++check_failures < 10)
        fprintf(stderr, "[%s] [%lld, %lld] of %lld: got %.9g, want %.9g +- %.3g\n", check_case,
                (long long)i, (long long)j, (long long)batch, (double)got, sum * factor + bias,
                bound);
}

static void run_case(const fp8_simd *s, fp8_inner inner, fp8_pool *p, gemm_case *c) {
    const size_t bytes = fp8_cpu_gemm_workspace_size(s, fp8_pool_threads(p), &c->g);
    void *workspace = checked(bytes);
    CHECK_STATUS(fp8_cpu_gemm_run(s, inner, p, &c->g, workspace, bytes), FP8_OK);
    free(workspace);
}

static void check_product(const fp8_simd *s, fp8_inner inner, fp8_pool *pools[2],
                          const gemm_shape *shape) {
    const int64_t batch = shape->batch > 1 ? shape->batch : 1;
    gemm_case c;
    char name[160];
    size_t bytes;
    void *once;

    snprintf(name, sizeof name, "%s%s %lldx%lldx%lld batch %lld kn %d types %d %d %d descales %d",
             s->name, inner == FP8_INNER_BLAS ? "+blas" : "", (long long)shape->m,
             (long long)shape->n, (long long)shape->k, (long long)shape->batch, shape->kn,
             shape->a, shape->b, shape->d, shape->descales);
    check_case = name;
    make_case(&c, shape);
    bytes = (size_t)(batch * c.g.d_stride) * fp8_dtype_size(c.g.d_dtype);
    once = checked(bytes);
    memset(c.d, 0x5a, bytes);
    run_case(s, inner, pools[0], &c);
    memcpy(once, c.d, bytes);
    for (int64_t b = 0; b < batch; b++)
        for (int64_t i = 0; i < shape->m; i++)
            for (int64_t j = 0; j < shape->n; j++) check_element(&c, b, i, j);
    memset(c.d, 0x5a, bytes); /* also: what lies between rows stays as it was */
    run_case(s, inner, pools[1], &c);
    CHECK(memcmp(once, c.d, bytes) == 0);
    if (shape->pad && shape->m > 1 && shape->n > 0)
        CHECK(((uint8_t *)c.d)[(size_t)shape->n * fp8_dtype_size(c.g.d_dtype)] == 0x5a);
    free(once);
    free_case(&c);
    check_case = "";
}

static void test_shapes(const fp8_simd *s, fp8_inner inner, fp8_pool *pools[2]) {
    static const gemm_shape cases[] = {
        {0, 5, 7, 0, 0, 0, F32, F32, F32, 0, -1},
        {5, 0, 7, 0, 0, 0, F32, F32, F32, 0, -1},
        {3, 5, 0, 0, 0, 0, F32, F32, F32, 1, F32},
        {9, 5, 0, 0, 0, 0, F32, F32, F32, 1, F32},
        {1, 1, 1, 0, 0, 0, F32, F32, F32, 0, -1},
        {1, 33, 80, 0, 0, 0, BF16, BF16, BF16, 1, BF16},
        {2, 31, 513, 0, 0, 3, F32, BF16, F32, 2, F32},
        {3, 32, 15, 0, 0, 1, F16, F16, F16, 3, F16},
        {4, 97, 1025, 0, 0, 0, E4M3, E4M3, BF16, 2, -1},
        {5, 20, 16, 0, 0, 1, E4M3, E5M2, F32, 1, -1},
        {8, 64, 300, 0, 0, 0, BF16, E4M3, BF16, 2, BF16},
        {8, 65, 17, 0, 1, 1, F32, F32, F32, 0, -1},
        {1, 40, 70, 0, 1, 0, BF16, BF16, F32, 0, F32},
        {9, 20, 80, 0, 0, 0, BF16, BF16, F32, 0, -1},
        {13, 33, 257, 0, 0, 1, F32, F32, F32, 0, -1},
        {14, 32, 256, 0, 0, 0, F32, F32, F32, 0, -1},
        {15, 31, 255, 0, 1, 2, F16, BF16, F32, 2, F32},
        {29, 193, 65, 0, 0, 0, E5M2, E4M3, F16, 2, F16},
        {16, 16, 16, 0, 0, 0, E5M2, E5M2, F32, 3, -1},
        {337, 20, 30, 0, 0, 1, BF16, BF16, BF16, 0, BF16},
        {40, 385, 520, 0, 1, 0, BF16, BF16, BF16, 1, -1},
        {17, 19, 23, 3, 0, 1, F32, BF16, F32, 2, F32},
        {5, 19, 23, 3, 0, 1, F32, BF16, F32, 2, F32},
        {12, 64, 17, 2, 1, 1, BF16, BF16, BF16, 0, -1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_product(s, inner, pools, &cases[i]);
    for (int64_t m = 1; m <= 30; m++) { /* every height of the tile, and a split of two */
        const gemm_shape shape = {m, 34, 40, 0, 1, 0, BF16, E4M3, F32, 2, F32};
        check_product(s, inner, pools, &shape);
    }
}

/* Products of these types are exact in F32: fused or not, every version sums to the same bits. */
static void test_versions_agree(fp8_pool *pool) {
    const gemm_shape shapes[] = {{33, 70, 600, 0, 0, 1, BF16, E4M3, F32, 2, F32},
                                 {3, 70, 600, 0, 0, 1, BF16, E4M3, F32, 2, F32},
                                 {20, 70, 90, 0, 1, 1, F16, E5M2, BF16, 1, BF16}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        gemm_case c;
        size_t bytes;
        void *want;
        check_case = "versions agree";
        make_case(&c, &shapes[i]);
        bytes = (size_t)c.g.d_stride * fp8_dtype_size(c.g.d_dtype);
        want = checked(bytes);
        memset(c.d, 0, bytes);
        run_case(&fp8_simd_scalar, FP8_INNER_TILE, pool, &c);
        memcpy(want, c.d, bytes);
        for (int level = 1; level < FP8_NUM_SIMD_LEVELS; level++) {
            const fp8_simd *s = fp8_simd_at((fp8_simd_level)level);
            if (!s) continue;
            memset(c.d, 0, bytes);
            run_case(s, FP8_INNER_TILE, pool, &c);
            CHECK(memcmp(c.d, want, bytes) == 0);
        }
        free(want);
        free_case(&c);
    }
}

static void test_nonfinite(fp8_device *d) {
    enum { M = 10, N = 3, K = 20 };
    float a[M * K], b[N * K], out[M * N], scratch[1 << 19];
    fp8_gemm g = {.m = M, .n = N, .k = K, .a = a, .b = b, .d = out, .lda = K, .ldb = K, .ldd = N,
                  .a_dtype = FP8_DTYPE_F32, .b_dtype = FP8_DTYPE_F32, .d_dtype = FP8_DTYPE_F32,
                  .alpha = 1};
    check_case = "non-finite";
    for (int i = 0; i < M * K; i++) a[i] = 1;
    for (int i = 0; i < N * K; i++) b[i] = 1;
    a[0] = NAN;
    b[K] = INFINITY;
    for (int m = 2; m <= M; m += 8) {
        g.m = m;
        CHECK_STATUS(fp8_gemm_run(d, &g, scratch, sizeof scratch), FP8_OK);
        CHECK(isnan(out[0]) && isnan(out[1]) && isnan(out[2]));
        CHECK(out[N] == K && isinf(out[N + 1]) && out[N + 2] == K);
    }
}

static void test_refused(fp8_device *d) {
    static float x[1024];
    const fp8_gemm good = {.m = 16, .n = 4, .k = 4, .a = x, .b = x, .d = x + 512, .lda = 4,
                           .ldb = 4, .ldd = 4, .a_dtype = FP8_DTYPE_F32,
                           .b_dtype = FP8_DTYPE_F32, .d_dtype = FP8_DTYPE_F32, .alpha = 1};
    fp8_gemm bad[10];
    for (int i = 0; i < 10; i++) bad[i] = good;
    bad[0].m = -1;
    bad[1].lda = 3;
    bad[2].ldb = 3;
    bad[3].ldd = 3;
    bad[4].a = NULL;
    bad[5].d = NULL;
    bad[6].d_dtype = FP8_DTYPE_E5M2;
    bad[7].a_dtype = FP8_DTYPE_I32;
    bad[8].a_descale = x, bad[8].a_descale_count = 3;
    bad[9].bias = x, bad[9].bias_dtype = FP8_DTYPE_E4M3;
    for (int i = 0; i < 10; i++) {
        char name[16];
        snprintf(name, sizeof name, "refused %d", i);
        check_case = name;
        CHECK_STATUS(fp8_gemm_run(d, &bad[i], x, sizeof x), FP8_EINVAL);
    }
    check_case = "workspace";
    CHECK(fp8_gemm_supported(d, &good) && !fp8_gemm_supported(d, &bad[1]));
    CHECK(fp8_gemm_workspace_size(d, &good) > 0);
    CHECK_STATUS(fp8_gemm_run(d, &good, x, 8), FP8_EINVAL);
    check_case = "";
}

/* A workspace for m rows serves every smaller number of rows. */
static void test_workspace_grows(const fp8_device *d) {
    size_t before = 0;
    check_case = "workspace of fewer rows";
    for (int64_t m = 1; m <= 4100; m++) {
        const fp8_gemm g = {.m = m, .n = 384, .k = 128, .lda = 128, .ldb = 128, .ldd = 384,
                            .a_dtype = FP8_DTYPE_BF16, .b_dtype = FP8_DTYPE_BF16,
                            .d_dtype = FP8_DTYPE_BF16, .alpha = 1};
        const size_t bytes = fp8_gemm_workspace_size(d, &g);
        CHECK(bytes >= before);
        before = bytes;
    }
}

int main(void) {
    fp8_pool *pools[2] = {NULL, NULL};
    fp8_device *d = NULL;

    CHECK_STATUS(fp8_pool_create(&pools[1], 3), FP8_OK);
    CHECK_STATUS(fp8_device_create(&d, "cpu", 2), FP8_OK);
    if (check_failures) return CHECK_DONE();
    for (int level = 0; level < FP8_NUM_SIMD_LEVELS; level++) {
        const fp8_simd *s = fp8_simd_at((fp8_simd_level)level);
        if (s) test_shapes(s, FP8_INNER_TILE, pools);
    }
    if (fp8_blas_available()) test_shapes(fp8_simd_best(), FP8_INNER_BLAS, pools);
    test_versions_agree(pools[1]);
    test_nonfinite(d);
    test_refused(d);
    test_workspace_grows(d);
    fp8_device_destroy(d);
    fp8_pool_destroy(pools[1]);
    return CHECK_DONE();
}
