/* Gated products by narrow tiles (quant/skinny.h) against the CPU's on the same codes: every token
 * count, sizes off tiles and units, every type of D, tiles of all sizes, hostile descales and
 * codes, equal bytes. Skipped off sm_90. */
#include <string.h>

#include "core/half.h"
#include "quant/cast.h"
#include "quant/skinny.h"
#include "quant/skinny_wide.h"
#include "tests/check.h"

static fp8_device *gpu, *cpu;

#define B16 FP8_DTYPE_BF16
#define H16 FP8_DTYPE_F16
#define B32 FP8_DTYPE_F32
#define E8 FP8_DTYPE_E4M3
#define NONE FP8_DTYPE_BOOL

typedef struct gated_case {
    const char *name;
    int64_t m, n, k, pad; /* pad: 16 bytes between rows, times */
    fp8_dtype d, bias;    /* bias NONE: none */
    int vectors, odd_d;   /* descales a token and a channel; elements between D's rows beside */
} gated_case;

static const gated_case cases[] = {
    {"one group", 3, 16, 128, 0, B16, NONE, 0, 0},
    {"one group, codes", 8, 16, 16, 0, E8, NONE, 0, 0},
    {"k of one", 1, 48, 1, 0, B32, NONE, 0, 0},
    {"k off a unit", 9, 64, 133, 0, E8, B16, 1, 0},
    {"k off a unit, f16", 17, 208, 1001, 1, H16, H16, 1, 0},
    {"k below a unit", 33, 96, 48, 0, B16, B32, 0, 0},
    {"rows off pairs", 12, 272, 272, 0, B16, B16, 1, 1},
    {"rows off pairs, codes", 12, 272, 272, 0, E8, B16, 1, 1},
    {"rows on pairs", 21, 272, 272, 1, E8, NONE, 1, 2},
    {"split", 24, 384, 2048, 2, E8, B16, 1, 0},
    {"split, f32", 64, 384, 2064, 0, B32, NONE, 1, 0},
    {"many tiles", 8, 40000, 256, 0, E8, NONE, 1, 0},
    {"many tiles, 32 tokens", 30, 20032, 160, 0, E8, B16, 0, 0},
    {"many tiles, 64 tokens", 64, 20016, 160, 0, B16, B16, 0, 0},
    {"n for wide tiles", 40, 274, 300, 0, E8, B16, 1, 0},
    {"tokens for wide tiles", 65, 272, 300, 0, E8, B16, 1, 0},
};

/* The same product twice: pointers of the host, and of the device. */
typedef struct problem {
    fp8_gemm host, g;
    void *memory[7], *device[7];
    size_t d_bytes;
} problem;

enum { AT_A, AT_B, AT_A_DESCALE, AT_B_DESCALE, AT_BIAS, AT_SCALE, AT_D };

static void *place(problem *p, int at, size_t bytes) {
    p->memory[at] = calloc(bytes, 1);
    if (!p->memory[at]) exit(1);
    CHECK_STATUS(fp8_device_alloc(gpu, &p->device[at], bytes), FP8_OK);
    return p->memory[at];
}

static void fill_codes(uint8_t *codes, int64_t rows, int64_t k, int64_t ld, uint64_t *seed) {
    memset(codes, 0x7f, (size_t)(rows * ld)); /* NaN between rows: must not be read as values */
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < k; j++)
            codes[i * ld + j] = fp8_from_f32(E8, check_normal(seed) * 4.0f);
}

static void fill_floats(float *x, int64_t count, uint64_t *seed) {
    for (int64_t i = 0; i < count; i++) x[i] = (float)(0.5 + check_uniform(seed));
}

static void upload(const problem *p, int at, size_t bytes) {
    CHECK_STATUS(fp8_device_upload(gpu, p->device[at], p->memory[at], bytes), FP8_OK);
}

static void upload_all(const problem *p) {
    const fp8_gemm *g = &p->g;
    upload(p, AT_A, (size_t)(g->m * g->lda));
    upload(p, AT_B, (size_t)(g->n * g->ldb));
    upload(p, AT_A_DESCALE, (size_t)g->m * 4);
    upload(p, AT_B_DESCALE, (size_t)g->n * 4);
    upload(p, AT_BIAS, (size_t)g->n * fp8_dtype_size(g->bias_dtype));
    upload(p, AT_SCALE, 4);
}

static void fill_bias(void *bias, fp8_dtype t, int64_t n, uint64_t *seed) {
    for (int64_t i = 0; i < n; i++) {
        const float v = check_normal(seed);
        if (t == B32) ((float *)bias)[i] = v;
        else ((uint16_t *)bias)[i] = t == B16 ? fp8_f32_to_bf16(v) : fp8_f32_to_f16(v);
    }
}

static problem make(const gated_case *c, fp8_gemm_activation act) {
    uint64_t seed = (uint64_t)(c->m * 1000003 + c->n * 101 + c->k);
    const int64_t ld = (c->k + 15) / 16 * 16 + 16 * c->pad;
    const fp8_dtype bias = c->bias == NONE ? B32 : c->bias;
    problem p = {0};
    fp8_gemm *g = &p.g;

    *g = (fp8_gemm){.m = c->m, .n = c->n, .k = c->k, .lda = ld, .ldb = ld,
                    .ldd = (c->n / 2 + 15) / 16 * 16 + 16 * c->pad + c->odd_d, .alpha = 0.75f / 64,
                    .a_dtype = E8, .b_dtype = E8, .d_dtype = c->d, .activation = act,
                    .a_descale_count = c->vectors ? c->m : 1,
                    .b_descale_count = c->vectors ? c->n : 1, .bias_dtype = bias,
                    .backend = FP8_GEMM_SKINNY, .launch = FP8_LAUNCH_OVERLAP};
    p.d_bytes = (size_t)(c->m * g->ldd) * fp8_dtype_size(c->d);
    fill_codes(place(&p, AT_A, (size_t)(c->m * ld)), c->m, c->k, ld, &seed);
    fill_codes(place(&p, AT_B, (size_t)(c->n * ld)), c->n, c->k, ld, &seed);
    fill_floats(place(&p, AT_A_DESCALE, (size_t)c->m * 4), c->m, &seed);
    fill_floats(place(&p, AT_B_DESCALE, (size_t)c->n * 4), c->n, &seed);
    fill_bias(place(&p, AT_BIAS, (size_t)c->n * fp8_dtype_size(bias)), bias, c->n, &seed);
    *(float *)place(&p, AT_SCALE, 4) = 0.7f;
    (void)place(&p, AT_D, p.d_bytes);
    upload_all(&p);
    p.host = *g;
    p.host.backend = FP8_GEMM_AUTO;
    for (int i = 0; i < 2; i++) {
        fp8_gemm *of = i ? &p.host : g;
        void *const *at = i ? p.memory : p.device;
        of->a = at[AT_A], of->b = at[AT_B], of->d = at[AT_D];
        of->a_descale = at[AT_A_DESCALE], of->b_descale = at[AT_B_DESCALE];
        if (c->bias != NONE) of->bias = at[AT_BIAS];
        if (c->d == E8) of->d_scale = at[AT_SCALE];
    }
    return p;
}

static void drop(problem *p) {
    for (int i = 0; i < 7; i++) {
        fp8_device_free(gpu, p->device[i]);
        free(p->memory[i]);
    }
}

static double value_at(fp8_dtype t, const void *d, int64_t at) {
    if (t == E8) return (double)fp8_to_f32(E8, ((const uint8_t *)d)[at]);
    if (t == B32) return (double)((const float *)d)[at];
    return (double)(t == B16 ? fp8_bf16_to_f32(((const uint16_t *)d)[at])
                             : fp8_f16_to_f32(((const uint16_t *)d)[at]));
}

/* Relative to the CPU's D, in L2: a code moves by a step, 2^-4 to 2^-3 of it, where the sums, 2^-13
 * apart at most times a few that cancel, lie on either side of an edge, of one in a hundred; BF16
 * by 2^-8 of one in ten. */
static double bound_of(fp8_dtype d) { return d == E8 ? 2e-2 : d == B16 ? 2e-3 : 1e-3; }

/* NaN and Inf where the CPU has them; between the rows of D nothing may have changed. */
static void check_result(problem *p) {
    const fp8_gemm *g = &p->g;
    const int64_t columns = g->n / 2, size = (int64_t)fp8_dtype_size(g->d_dtype);
    uint8_t *got = malloc(p->d_bytes), *want = p->memory[AT_D];
    double error = 0, reference = 0;
    int64_t touched = 0, special = 0;

    CHECK_STATUS(fp8_device_download(gpu, got, g->d, p->d_bytes), FP8_OK);
    for (int64_t i = 0; i < g->m; i++) {
        for (int64_t j = 0; j < columns; j++) {
            const double w = value_at(g->d_dtype, want, i * g->ldd + j);
            const double v = value_at(g->d_dtype, got, i * g->ldd + j);
            if (!isfinite(w) || !isfinite(v)) special += !(isnan(w) ? isnan(v) : v == w);
            else error += (v - w) * (v - w), reference += w * w;
        }
        for (int64_t b = (i * g->ldd + columns) * size; b < (i + 1) * g->ldd * size; b++)
            touched += got[b] != 0xff;
    }
    CHECK(touched == 0);
    CHECK(special == 0);
    error = sqrt(error / (reference > 0 ? reference : 1));
    if (!(error <= bound_of(g->d_dtype))) {
        fprintf(stderr, "[%s] m=%lld: relative error %.3g, expected at most %.3g\n", check_case,
                (long long)g->m, error, bound_of(g->d_dtype));
        check_failures++;
    }
    free(got);
}

static void run_cpu(problem *p) {
    const size_t bytes = fp8_gemm_workspace_size(cpu, &p->host);
    void *workspace = malloc(bytes + 1);
    CHECK_STATUS(fp8_gemm_run(cpu, &p->host, workspace, bytes), FP8_OK);
    free(workspace);
}

static void run_gpu(problem *p, const skinny_tile *t) {
    CHECK_STATUS(fp8_device_fill(gpu, p->g.d, 0xff, p->d_bytes), FP8_OK);
    if (t) CHECK_STATUS(skinny_run_tile(gpu, &p->g, t), FP8_OK);
    else CHECK_STATUS(fp8_gemm_run(gpu, &p->g, NULL, 0), FP8_OK);
}

/* By the cut that is chosen, twice. */
static void test_case(const gated_case *c, fp8_gemm_activation act) {
    problem p = make(c, act);
    uint8_t *bytes[2] = {malloc(p.d_bytes), malloc(p.d_bytes)};

    check_case = c->name;
    run_cpu(&p);
    for (int i = 0; i < 2; i++) {
        p.g.launch = i ? FP8_LAUNCH_ORDERED : FP8_LAUNCH_OVERLAP;
        run_gpu(&p, NULL);
        CHECK_STATUS(fp8_device_download(gpu, bytes[i], p.g.d, p.d_bytes), FP8_OK);
    }
    CHECK(memcmp(bytes[0], bytes[1], p.d_bytes) == 0);
    check_result(&p);
    free(bytes[0]);
    free(bytes[1]);
    drop(&p);
}

static void test_every_count(void) {
    static const fp8_dtype types[] = {E8, B16, H16, B32};
    for (int64_t m = 1; m <= SKINNY_GATED_TOKENS; m++) {
        const gated_case c = {"every count", m, 272, 272, 0, types[m % 4], m % 3 ? B16 : NONE, 1,
                              0};
        test_case(&c, m % 2 ? FP8_GEMM_SWIGLU : FP8_GEMM_GEGLU_TANH);
    }
}

static void test_cuts(void) {
    static const gated_case c = {"cuts", 64, 816, 1536, 0, E8, B16, 1, 0};
    for (int32_t tokens = 8; tokens <= SKINNY_GATED_TOKENS; tokens *= 2)
        for (int32_t rows = SKINNY_MIN_ROWS; rows <= SKINNY_ROWS; rows += SKINNY_ROW_STEP) {
            const int32_t step = rows / SKINNY_ROW_STEP;
            const skinny_tile t = {.tokens = tokens, .rows = rows, .splits = 1, .resident = 2,
                                   .clusters = 1 + step % 6, .stages = 2 + step % 3,
                                   .ahead = step % 4, .bound = step % 2, .lead = step % 3,
                                   .gated = 1};
            gated_case of = c;
            static char name[48];
            problem p;

            snprintf(name, sizeof name, "%d tokens, %d rows", tokens, rows);
            check_case = name;
            of.m = tokens - step % 3;
            of.d = step % 2 ? E8 : B16;
            p = make(&of, FP8_GEMM_SWIGLU);
            run_cpu(&p);
            run_gpu(&p, &t);
            check_result(&p);
            drop(&p);
        }
}

/* NaN codes in x and in rows of gate and up, -0, and descales that are Inf, NaN, 0. */
static void test_hostile(void) {
    static const fp8_dtype types[] = {E8, B16, H16, B32};
    for (int i = 0; i < 8; i++) {
        const gated_case c = {"hostile", 20, 160, 400, 0, types[i % 4], i > 3 ? B16 : NONE, 1, 0};
        problem p = make(&c, i % 3 ? FP8_GEMM_SWIGLU : FP8_GEMM_GEGLU_TANH);
        uint8_t *a = p.memory[AT_A], *b = p.memory[AT_B];
        float *a_descale = p.memory[AT_A_DESCALE], *b_descale = p.memory[AT_B_DESCALE];

        check_case = c.name;
        a[3 * p.g.lda + 399] = 0xff;
        b[30 * p.g.ldb] = 0x7f;
        b[(80 + 41) * p.g.ldb + 200] = 0x7f;
        memset(a + 7 * p.g.lda, 0x80, (size_t)c.k);
        a_descale[11] = INFINITY, a_descale[12] = NAN, a_descale[13] = 0;
        b_descale[50] = INFINITY, b_descale[80 + 51] = -INFINITY, b_descale[52] = -1e30f;
        upload_all(&p);
        run_cpu(&p);
        run_gpu(&p, NULL);
        check_result(&p);
        drop(&p);
    }
}

static void test_refused(void) {
    static const gated_case c = {"refused", 32, 304, 256, 0, E8, NONE, 0, 0};
    const skinny_tile good = {.tokens = 32, .resident = 2, .rows = 128, .splits = 1, .clusters = 3,
                              .stages = 3, .lead = 4, .gated = 1};
    problem p = make(&c, FP8_GEMM_SWIGLU);
    skinny_tile bad[5] = {good, good, good, good, good};
    fp8_gemm g = p.g;

    check_case = c.name;
    bad[0].gated = 0;
    bad[1].tokens = 128;
    bad[2].bound = -1;
    bad[3].rows = 72;
    bad[4].splits = 2;
    CHECK_STATUS(skinny_run_tile(gpu, &g, &good), FP8_OK);
    for (int i = 0; i < 5; i++) CHECK_STATUS(skinny_run_tile(gpu, &g, &bad[i]), FP8_EINVAL);
    g.n = 302;
    CHECK_STATUS(skinny_run_tile(gpu, &g, &good), FP8_EINVAL);
    g.n = 304;
    g.d_amax = p.device[AT_SCALE];
    CHECK_STATUS(skinny_run_tile(gpu, &g, &good), FP8_EINVAL);
    drop(&p);
}

/* Who is asked whether a gated product pays. */
static void test_gates(void) {
    static const struct {
        int64_t m, n, k;
        int gates;
    } rows[] = {{1, 28672, 4096, 1},  {32, 49152, 3072, 1}, {64, 28672, 4096, 1},
                {64, 49152, 3072, 1}, {65, 49152, 3072, 0}, {8, 2048, 2048, 0}};
    check_case = "gates";
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const fp8_gemm g = {.m = rows[i].m, .n = rows[i].n, .k = rows[i].k, .lda = rows[i].k,
                            .ldb = rows[i].k, .ldd = rows[i].n / 2, .a_dtype = E8, .b_dtype = E8,
                            .d_dtype = E8, .alpha = 1, .activation = FP8_GEMM_SWIGLU};
        CHECK(fp8_gemm_gates(gpu, &g) == rows[i].gates);
    }
}

int main(int argc, char **argv) {
    const int few = argc > 1 && strcmp(argv[1], "few") == 0;
    gpu = check_hopper();
    if (!gpu) return TEST_SKIP;
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 0), FP8_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (!few || cases[i].n < 1000)
            test_case(&cases[i], i % 2 ? FP8_GEMM_SWIGLU : FP8_GEMM_GEGLU_TANH);
    test_hostile();
    if (!few) {
        test_every_count();
        test_refused();
        test_gates();
    }
    test_cuts();
    fp8_device_destroy(cpu);
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
