/* quant/skinny.h against sums in double on the same codes: every token count, odd sizes, each way
 * of storing, hostile codes, data of one sign, all splits, replay, equal bytes. Skipped off
 * sm_90. */
#include <string.h>

#include "core/graph.h"
#include "core/half.h"
#include "quant/cast.h"
#include "quant/skinny.h"
#include "quant/skinny_wide.h"
#include "tests/check.h"

static fp8_device *gpu;

typedef struct skinny_case {
    const char *name;
    int64_t m, n, k, pad; /* pad: bytes between rows, times 16 */
    fp8_dtype d, bias;    /* bias FP8_DTYPE_BOOL: none */
    int vectors, odd_d;   /* descales a token and a channel; D's rows off 16 bytes */
} skinny_case;

#define B16 FP8_DTYPE_BF16
#define H16 FP8_DTYPE_F16
#define B32 FP8_DTYPE_F32
#define E8 FP8_DTYPE_E4M3
#define NONE FP8_DTYPE_BOOL
static const skinny_case cases[] = {
    {"one tile", 16, 128, 128, 0, B16, NONE, 0, 0},
    {"one element", 1, 1, 1, 0, B16, NONE, 0, 0},
    {"odd n", 5, 131, 256, 0, B16, NONE, 1, 0},
    {"odd n, f32", 5, 131, 256, 0, B32, B32, 1, 0},
    {"odd k", 9, 64, 133, 0, B16, B16, 1, 0},
    {"odd k, f16", 17, 200, 1001, 1, H16, H16, 1, 0},
    {"k below a unit", 33, 96, 48, 0, B16, B16, 0, 0},
    {"rows off 16 bytes", 12, 260, 272, 0, B16, B16, 1, 2},
    {"rows off 4 bytes", 12, 260, 272, 0, B16, NONE, 1, 1},
    {"split", 24, 384, 2048, 2, B16, B16, 1, 0},
    {"split, f32", 70, 384, 2064, 0, B32, NONE, 1, 0},
    {"split, 128 tokens", 128, 256, 4096, 0, B16, B16, 1, 0},
    {"many tiles", 8, 40000, 256, 0, B16, NONE, 1, 0},
    {"many tiles, 64 tokens", 64, 20001, 160, 0, B16, B16, 0, 0},
    {"n of 8 and a half warp", 31, 16040, 160, 1, B16, B16, 0, 0},
    {"many tiles, 128 tokens", 127, 17024, 144, 0, B16, NONE, 1, 0},
};

typedef struct problem {
    fp8_gemm g;
    uint8_t *a, *b, *out;
    float *a_values, *b_values, *a_descale, *b_descale, *bias, *residual;
    void *device[8];
    size_t d_bytes;
} problem;

static const float d_scale = 0.25f;

typedef enum codes_kind { CODES_NORMAL, CODES_ONE_SIGN, CODES_ANY } codes_kind;

static int64_t row_bytes(int64_t k, int64_t pad) { return (k + 15) / 16 * 16 + 16 * pad; }

static void fill_codes(uint8_t *codes, float *values, int64_t rows, int64_t k, int64_t ld,
                       codes_kind kind, uint64_t *seed) {
    memset(codes, 0x7f, (size_t)(rows * ld)); /* NaN between rows: must not be read as values */
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < k; j++) {
            const float v = check_normal(seed) * 4.0f;
            uint8_t code = fp8_from_f32(FP8_DTYPE_E4M3, kind == CODES_ONE_SIGN ? fabsf(v) + 2 : v);
            if (kind == CODES_ANY) code = (uint8_t)(check_random(seed) % 0x7f);
            codes[i * ld + j] = code;
            values[i * k + j] = fp8_to_f32(FP8_DTYPE_E4M3, code);
        }
}

static void *upload(const void *host, size_t bytes) {
    void *p = NULL;
    CHECK_STATUS(fp8_device_alloc(gpu, &p, bytes), FP8_OK);
    CHECK_STATUS(fp8_device_upload(gpu, p, host, bytes), FP8_OK);
    return p;
}

static void *upload_bias(const float *bias, int64_t n, fp8_dtype t) {
    uint16_t *half = malloc((size_t)n * 2);
    void *p;
    if (t == B32) {
        free(half);
        return upload(bias, (size_t)n * 4);
    }
    for (int64_t i = 0; i < n; i++)
        half[i] = t == B16 ? fp8_f32_to_bf16(bias[i]) : fp8_f32_to_f16(bias[i]);
    p = upload(half, (size_t)n * 2);
    free(half);
    return p;
}

static problem make(const skinny_case *c, codes_kind kind) {
    uint64_t seed = (uint64_t)(c->m * 1000003 + c->n * 101 + c->k);
    const int64_t ld = row_bytes(c->k, c->pad);
    problem p = {0};
    fp8_gemm *g = &p.g;

    p.a = malloc((size_t)(c->m * ld));
    p.b = malloc((size_t)(c->n * ld));
    p.a_values = malloc((size_t)(c->m * c->k) * 4);
    p.b_values = malloc((size_t)(c->n * c->k) * 4);
    p.a_descale = malloc((size_t)c->m * 4);
    p.b_descale = malloc((size_t)c->n * 4);
    p.bias = malloc((size_t)c->n * 4);
    fill_codes(p.a, p.a_values, c->m, c->k, ld, kind, &seed);
    fill_codes(p.b, p.b_values, c->n, c->k, ld, kind, &seed);
    for (int64_t i = 0; i < c->m; i++) p.a_descale[i] = (float)(0.5 + check_uniform(&seed));
    for (int64_t i = 0; i < c->n; i++) p.b_descale[i] = (float)(0.5 + check_uniform(&seed));
    for (int64_t i = 0; i < c->n; i++) p.bias[i] = fp8_round_bf16(check_normal(&seed) * 64.0f);
    *g = (fp8_gemm){.m = c->m, .n = c->n, .k = c->k, .lda = ld, .ldb = ld,
                    .ldd = (c->n + 15) / 16 * 16 + 16 * c->pad + c->odd_d, .alpha = 0.75f,
                    .a_dtype = FP8_DTYPE_E4M3, .b_dtype = FP8_DTYPE_E4M3, .d_dtype = c->d,
                    .a_descale_count = c->vectors ? c->m : 1,
                    .b_descale_count = c->vectors ? c->n : 1, .bias_dtype = c->bias,
                    .backend = FP8_GEMM_SKINNY, .launch = FP8_LAUNCH_OVERLAP};
    p.d_bytes = (size_t)(c->m * g->ldd) * fp8_dtype_size(c->d);
    p.out = malloc(p.d_bytes);
    g->a = p.device[0] = upload(p.a, (size_t)(c->m * ld));
    g->b = p.device[1] = upload(p.b, (size_t)(c->n * ld));
    g->a_descale = p.device[2] = upload(p.a_descale, (size_t)c->m * 4);
    g->b_descale = p.device[3] = upload(p.b_descale, (size_t)c->n * 4);
    if (c->bias != NONE) g->bias = p.device[4] = upload_bias(p.bias, c->n, c->bias);
    CHECK_STATUS(fp8_device_alloc(gpu, &p.device[5], p.d_bytes), FP8_OK);
    g->d = p.device[5];
    return p;
}

static void drop(problem *p) {
    void *all[] = {p->a, p->b, p->out, p->a_values, p->b_values, p->a_descale, p->b_descale,
                   p->bias, p->residual};
    for (int i = 0; i < 8; i++) fp8_device_free(gpu, p->device[i]);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* The sum with its descales and bias. */
static double sum_of(const problem *p, int64_t i, int64_t j) {
    const fp8_gemm *g = &p->g;
    const float *a = p->a_values + i * g->k, *b = p->b_values + j * g->k;
    double sum = 0;
    for (int64_t k = 0; k < g->k; k++) sum += (double)a[k] * (double)b[k];
    sum *= (double)g->alpha * (double)p->a_descale[g->a_descale_count > 1 ? i : 0] *
           (double)p->b_descale[g->b_descale_count > 1 ? j : 0];
    return sum + (g->bias ? (double)p->bias[j] : 0);
}

static int64_t columns_of(const fp8_gemm *g) {
    return fp8_gemm_is_gated(g->activation) ? g->n / 2 : g->n;
}

static double expected(const problem *p, int64_t i, int64_t j) {
    const fp8_gemm *g = &p->g;
    double sum = sum_of(p, i, j);
    if (g->activation == FP8_GEMM_SWIGLU) sum /= 1 + exp(-sum);
    else if (g->activation != FP8_GEMM_IDENTITY)
        sum = sum / 2 * (1 + tanh(0.7978845608028654 * (sum + 0.044715 * sum * sum * sum)));
    if (fp8_gemm_is_gated(g->activation)) sum *= sum_of(p, i, g->n / 2 + j);
    return sum + (g->residual ? (double)p->residual[i * g->ldr + j] : 0);
}

static double result_at(const problem *p, int64_t at) {
    if (p->g.d_dtype == E8) return (double)(fp8_to_f32(E8, p->out[at]) / d_scale);
    if (p->g.d_dtype == B32) return (double)((const float *)(const void *)p->out)[at];
    if (p->g.d_dtype == B16)
        return (double)fp8_bf16_to_f32(((const uint16_t *)(const void *)p->out)[at]);
    return (double)fp8_f16_to_f32(((const uint16_t *)(const void *)p->out)[at]);
}

/* BF16 rounds to 2^-9, 1.7e-3 in root mean square, E4M3 to 2^-4, 2.7e-2; sums of FP8 keep 13 bits
 * between promotions. */
static double bound_of(const problem *p) {
    return p->g.d_dtype == E8 ? 4e-2 : p->g.d_dtype == B16 ? 4e-3 : 1e-3;
}

/* Relative L2 error over some 1000 columns; between the rows of D nothing may have changed. */
static void check_result(problem *p) {
    const fp8_gemm *g = &p->g;
    const int64_t step = g->n > 1500 ? 37 : g->n > 160 ? 3 : 1;
    const int64_t size = (int64_t)fp8_dtype_size(g->d_dtype);
    double error = 0, reference = 0;
    int64_t touched = 0;

    CHECK_STATUS(fp8_device_download(gpu, p->out, g->d, p->d_bytes), FP8_OK);
    for (int64_t i = 0; i < g->m; i++) {
        for (int64_t j = i % step; j < columns_of(g); j += step) {
            const double want = expected(p, i, j), e = result_at(p, i * g->ldd + j) - want;
            error += e * e;
            reference += want * want;
        }
        for (int64_t b = (i * g->ldd + columns_of(g)) * size; b < (i + 1) * g->ldd * size; b++)
            touched += p->out[b] != 0xff;
    }
    CHECK(touched == 0);
    error = sqrt(error / (reference > 0 ? reference : 1));
    if (error <= bound_of(p)) return;
    fprintf(stderr, "[%s] m=%lld: relative error %.3g, expected at most %.3g\n", check_case,
            (long long)g->m, error, bound_of(p));
    check_failures++;
}

static void run(problem *p) {
    CHECK_STATUS(fp8_device_fill(gpu, p->g.d, 0xff, p->d_bytes), FP8_OK);
    CHECK_STATUS(fp8_gemm_run(gpu, &p->g, NULL, 0), FP8_OK);
}

static void test_cases(void) {
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        problem p = make(&cases[i], CODES_NORMAL);
        uint8_t *once = malloc(p.d_bytes);
        check_case = cases[i].name;
        run(&p);
        check_result(&p);
        memcpy(once, p.out, p.d_bytes);
        p.g.launch = FP8_LAUNCH_ORDERED;
        run(&p);
        CHECK_STATUS(fp8_device_download(gpu, p.out, p.g.d, p.d_bytes), FP8_OK);
        CHECK(memcmp(once, p.out, p.d_bytes) == 0);
        free(once);
        drop(&p);
    }
}

static void test_every_count(void) {
    for (int64_t m = 1; m <= SKINNY_MAX_TOKENS; m++) {
        const skinny_case c = {"every count", m, 136, 272, 0, m % 3 ? B16 : B32, NONE, 1, 0};
        problem p = make(&c, CODES_NORMAL);
        check_case = c.name;
        run(&p);
        check_result(&p);
        drop(&p);
    }
}

/* The longest K in use, all of one sign: sums reach what FP8 accumulators cannot hold. */
static void test_same_sign(void) {
    static const skinny_case all[] = {{"same sign", 16, 128, 24576, 0, B32, NONE, 0, 0},
                                      {"same sign, bf16", 64, 128, 24576, 0, B16, NONE, 0, 0}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        problem p = make(&all[i], CODES_ONE_SIGN);
        check_case = all[i].name;
        run(&p);
        check_result(&p);
        drop(&p);
    }
}

/* few: one count of tokens, three of splits. */
static void test_splits(int few) {
    static const skinny_case c = {"splits", 128, 300, 1536, 0, B32, NONE, 1, 0};
    static const skinny_tile bad[] = {
        {128, 1, 128, 2, 2, 3, 0, 4, 0, 0},  {64, 2, 128, 1, 3, 3, 0, 4, 0, 0},
        {128, 1, 0, 1, 3, 3, 0, 4, 0, 0},    {128, 1, 64, 1, 3, 3, 0, 4, 0, 0},
        {128, 1, 120, 1, 3, 3, 0, 4, 0, 0},  {128, 1, 128, 1, 3, 3, 0, 4, 1, 0},
        {128, 1, 128, 1, 3, 3, 0, 4, 0, -1}, {128, 1, 128, 1, 3, 3, -1, 4, 0, 0}};
    problem p = make(&c, CODES_ANY);
    for (int32_t tokens = few ? 32 : 8; tokens <= (few ? 32 : 128); tokens *= 2)
        for (int32_t splits = 1; splits <= SKINNY_MAX_SPLITS; splits += few ? 3 : 1) {
            const int32_t rows = SKINNY_ROWS - splits % 4 * SKINNY_ROW_STEP;
            const int32_t tiles = (300 + rows - 1) / rows;
            const skinny_tile t = {.tokens = tokens, .rows = rows, .splits = splits,
                                   .resident = tokens < SKINNY_MAX_TOKENS ? 2 : 1,
                                   .clusters = splits > 1 ? tiles : tiles - 1, .stages = 3,
                                   .ahead = splits % 3, .bound = (splits + 1) % 4,
                                   .lead = 1 + splits % 3};
            static char name[48];
            snprintf(name, sizeof name, "%d tokens, %d splits of %d rows", tokens, splits, rows);
            check_case = name;
            p.g.m = tokens < c.m ? tokens : c.m;
            p.g.a_descale_count = p.g.m;
            CHECK_STATUS(fp8_device_fill(gpu, p.g.d, 0xff, p.d_bytes), FP8_OK);
            CHECK_STATUS(skinny_run_tile(gpu, &p.g, &t), FP8_OK);
            check_result(&p);
        }
    check_case = "tiles that do not fit";
    p.g.m = p.g.a_descale_count = c.m; /* in the short form, too, more than 64 */
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK_STATUS(skinny_run_tile(gpu, &p.g, &bad[i]), FP8_EINVAL);
    drop(&p);
}

/* ---- wide tiles ------------------------------------------------------------------------------ */

/* What is behind the sum: D's type, residual (1: of BF16, 2: in D's place), activation, scale and
 * amax. */
typedef struct wide_store {
    const char *name;
    fp8_dtype d;
    int residual, codes;
    fp8_gemm_activation act;
} wide_store;

static void add_residual(problem *p, const wide_store *s) {
    fp8_gemm *g = &p->g;
    const int64_t count = g->m * g->ldd;
    uint16_t *half = malloc((size_t)count * 2);
    uint64_t seed = 11;

    p->residual = malloc((size_t)count * 4);
    for (int64_t i = 0; i < count; i++) {
        p->residual[i] = fp8_round_bf16(check_normal(&seed) * (s->codes ? 20.0f : 300.0f));
        half[i] = fp8_f32_to_bf16(p->residual[i]);
    }
    p->device[6] = upload(half, (size_t)count * 2);
    g->residual = s->residual == 2 ? g->d : p->device[6];
    g->residual_dtype = B16;
    g->ldr = g->ldd;
    free(half);
}

static void run_wide(problem *p, const wide_store *s, const wide_tile *t) {
    fp8_gemm *g = &p->g;
    float amax = 0, want = 0;

    CHECK_STATUS(fp8_device_fill(gpu, g->d, 0xff, p->d_bytes), FP8_OK);
    for (int64_t i = 0; s->residual == 2 && i < g->m; i++) /* what lies between rows stays */
        CHECK_STATUS(fp8_device_copy(gpu, (char *)g->d + 2 * i * g->ldd,
                                     (char *)p->device[6] + 2 * i * g->ldd, 2 * (size_t)g->n),
                     FP8_OK);
    if (t) CHECK_STATUS(wide_run_tile(gpu, g, t), FP8_OK);
    else CHECK_STATUS(fp8_gemm_run(gpu, g, NULL, 0), FP8_OK);
    check_result(p);
    if (!s->codes) return;
    CHECK_STATUS(fp8_device_download(gpu, &amax, p->g.d_amax, sizeof amax), FP8_OK);
    for (int64_t i = 0; i < g->m; i++)
        for (int64_t j = 0; j < columns_of(g); j++)
            want = fmaxf(want, fabsf((float)expected(p, i, j)));
    CHECK(fabsf(amax - want) <= 2e-3f * want);
}

static const wide_store wide_stores[] = {
    {"plain", B16, 0, 0, FP8_GEMM_IDENTITY},
    {"residual", B16, 1, 0, FP8_GEMM_IDENTITY},
    {"swiglu", B16, 0, 0, FP8_GEMM_SWIGLU},
    {"in place", B16, 2, 0, FP8_GEMM_IDENTITY},
    {"residual, f32", B32, 1, 0, FP8_GEMM_IDENTITY},
    {"geglu, codes", E8, 0, 1, FP8_GEMM_GEGLU_TANH},
    {"gelu", B16, 0, 0, FP8_GEMM_GELU_TANH},
    {"gelu, f16", H16, 0, 0, FP8_GEMM_GELU_TANH},
    {"codes", E8, 0, 1, FP8_GEMM_IDENTITY},
    {"swiglu, f32", B32, 0, 0, FP8_GEMM_SWIGLU},
    {"residual, codes", E8, 1, 1, FP8_GEMM_IDENTITY},
};
enum { NUM_STORES = sizeof wide_stores / sizeof *wide_stores };

/* One product by this cut, NULL: by the one that is chosen; codes and gated ones of small numbers,
 * which E4M3 still holds. */
static void test_store(const skinny_case *c, const wide_tile *t, const wide_store *s) {
    const float scales[2] = {d_scale, 0};
    static char name[96];
    skinny_case of = *c;
    problem p;

    of.d = s->d;
    if (s->codes) of.bias = NONE;
    if (t && of.m > t->tokens) of.m = t->tokens - 7;
    p = make(&of, CODES_NORMAL);
    if (t)
        snprintf(name, sizeof name, "%s: %d x %d, %d splits, %s", c->name, t->tokens, t->rows,
                 t->splits, s->name);
    else snprintf(name, sizeof name, "%s, m=%lld: %s", c->name, (long long)of.m, s->name);
    check_case = name;
    p.device[7] = upload(scales, sizeof scales);
    if (s->residual) add_residual(&p, s);
    p.g.activation = s->act;
    if (s->codes || fp8_gemm_is_gated(s->act)) p.g.alpha /= 64;
    if (s->codes) p.g.d_scale = p.device[7], p.g.d_amax = (float *)p.device[7] + 1;
    run_wide(&p, s, t);
    drop(&p);
}

/* Every tile that is compiled by every number of splits. */
static void test_wide(const skinny_case *c, int step) {
    static const int32_t tiles[][2] = {{64, 96},  {64, 112}, {64, 128}, {64, 192}, {64, 224},
                                       {64, 256}, {128, 96}, {128, 112}, {128, 128}};
    size_t next = 0;

    for (size_t i = 0; i < sizeof tiles / sizeof *tiles; i++)
        for (int32_t splits = 1; splits <= WIDE_MAX_SPLITS; splits += step) {
            wide_tile t = {.tokens = tiles[i][0], .rows = tiles[i][1], .resident = 1,
                           .splits = splits, .stages = 6, .x_stages = 2 + splits % 2,
                           .lead = splits % 3};
            while (wide_shared_bytes(&t) > 227 * 1024) t.stages--;
            if (wide_sums_bytes(&t) > wide_ring_bytes(&t)) continue;
            while (fp8_gemm_is_gated(wide_stores[next % NUM_STORES].act)) next++;
            test_store(c, &t, &wide_stores[next++ % NUM_STORES]);
            for (size_t j = 0; j < NUM_STORES && splits == 1 && wide_gates(&t); j++)
                if (fp8_gemm_is_gated(wide_stores[j].act)) test_store(c, &t, &wide_stores[j]);
        }
}

/* Every store by the cut that is chosen: with one tile and more, splits and none. */
static void test_chosen(void) {
    static const int64_t tokens[] = {1, 9, 24, 32, 33, 64, 100};
    static const skinny_case all[] = {{"chosen", 0, 272, 1056, 0, B16, B16, 1, 0},
                                      {"chosen, many tiles", 0, 17800, 144, 0, B16, NONE, 0, 0}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        for (size_t j = 0; j < sizeof tokens / sizeof *tokens; j++)
            for (size_t k = j % 2; k < NUM_STORES; k += 1 + i) {
                skinny_case c = all[i];
                c.m = tokens[j];
                test_store(&c, NULL, &wide_stores[k]);
            }
}

static const skinny_case wide_cases[] = {
    {"wide", 64, 264, 1030, 0, B16, B16, 1, 0},
    {"wide, odd", 113, 230, 1034, 1, B16, B32, 1, 1},
    {"wide, few tokens", 3, 300, 1040, 0, B16, NONE, 0, 0},
};

/* A NaN code spoils its row or column and nothing else; rows of zeros give the bias. */
static void test_hostile(void) {
    static const skinny_case c = {"hostile", 20, 150, 400, 0, B32, B32, 0, 0};
    problem p = make(&c, CODES_NORMAL);
    int64_t wrong = 0;

    check_case = c.name;
    p.a[3 * p.g.lda + 399] = 0xff;
    p.b[140 * p.g.ldb] = 0x7f;
    memset(p.a + 7 * p.g.lda, 0x80, (size_t)c.k); /* -0 */
    CHECK_STATUS(fp8_device_upload(gpu, p.device[0], p.a, (size_t)(c.m * p.g.lda)), FP8_OK);
    CHECK_STATUS(fp8_device_upload(gpu, p.device[1], p.b, (size_t)(c.n * p.g.ldb)), FP8_OK);
    run(&p);
    CHECK_STATUS(fp8_device_download(gpu, p.out, p.g.d, p.d_bytes), FP8_OK);
    for (int64_t i = 0; i < c.m; i++)
        for (int64_t j = 0; j < c.n; j++) {
            const double v = result_at(&p, i * p.g.ldd + j);
            wrong += (v != v) != (i == 3 || j == 140);
            if (i == 7 && j != 140) wrong += v != (double)p.bias[j];
        }
    CHECK(wrong == 0);
    drop(&p);
}

static void test_refused(void) {
    static const skinny_case c = {"refused", 32, 64, 128, 0, B16, NONE, 0, 0};
    problem p = make(&c, CODES_NORMAL);
    fp8_gemm bad[7];

    for (int i = 0; i < 7; i++) bad[i] = p.g;
    bad[0].m = 129;
    bad[1].m = 256;
    bad[2].lda = 136;
    bad[3].b = (const char *)p.g.b + 8;
    bad[4].b_dtype = FP8_DTYPE_E5M2;
    bad[5].batch = 2;
    bad[6].b_is_kn = 1;
    bad[6].ldb = 64;
    for (int i = 0; i < 7; i++) {
        static char name[24];
        snprintf(name, sizeof name, "refused %d", i);
        check_case = name;
        CHECK(!fp8_gemm_supported(gpu, &bad[i]));
        CHECK_STATUS(fp8_gemm_run(gpu, &bad[i], NULL, 0), FP8_EUNSUPPORTED);
    }
    drop(&p);
}

/* Products one after the other in a graph, which may overlap. */
static void test_replay(void) {
    static const skinny_case c = {"replay", 40, 640, 640, 0, B16, NONE, 1, 0};
    problem p = make(&c, CODES_NORMAL);
    fp8_graph *graph = NULL;

    check_case = c.name;
    run(&p); /* loads the kernels */
    CHECK_STATUS(fp8_device_fill(gpu, p.g.d, 0xff, p.d_bytes), FP8_OK);
    CHECK_STATUS(fp8_device_sync(gpu), FP8_OK);
    CHECK_STATUS(fp8_graph_begin(gpu), FP8_OK);
    for (int i = 0; i < 20; i++) CHECK_STATUS(fp8_gemm_run(gpu, &p.g, NULL, 0), FP8_OK);
    CHECK_STATUS(fp8_graph_end(gpu, &graph), FP8_OK);
    CHECK(fp8_graph_get_shape(graph).early == 19);
    for (int i = 0; i < 3; i++) CHECK_STATUS(fp8_graph_launch(graph), FP8_OK);
    check_result(&p);
    fp8_graph_destroy(graph);
    drop(&p);
}

int main(int argc, char **argv) {
    const int few = argc > 1 && strcmp(argv[1], "few") == 0;
    gpu = check_hopper();
    if (!gpu) return TEST_SKIP;
    test_cases();
    test_hostile();
    for (size_t i = 0; i < sizeof wide_cases / sizeof *wide_cases; i++)
        test_wide(&wide_cases[i], few ? 3 : 1);
    test_splits(few);
    if (!few) {
        test_every_count();
        test_same_sign();
        test_chosen();
        test_refused();
        test_replay();
    }
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
