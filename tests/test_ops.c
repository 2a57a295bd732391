/* model/ops_cpu.c, score_cpu.c: every operation against an obvious loop in double, in BF16 and
 * F32, at sizes around the chunk and the vector, with hostile values, and the same bytes on any
 * threads. */
#include <string.h>

#include "core/half.h"
#include "model/ops.h"
#include "tests/check.h"

static fp8_device *one, *many; /* 1 thread, 3 threads */
static const fp8_ops *ops;

static const fp8_dtype types[] = {FP8_DTYPE_F32, FP8_DTYPE_BF16};
static const struct {
    int64_t rows, cols;
} sizes[] = {{0, 8},  {1, 1},   {1, 2},   {3, 15},   {2, 16},   {5, 17},    {33, 64},
             {3, 511}, {2, 512}, {2, 513}, {70, 1000}, {2, 1040}, {1, 70000}};
enum { NUM_SIZES = sizeof sizes / sizeof *sizes, NUM_TYPES = 2 };

/* A tensor of the test: [rows, cols] of `type`, values given or read as float. */
static fp8_tensor make(fp8_dtype type, int64_t rows, int64_t cols) {
    const size_t bytes = (size_t)(rows * cols) * fp8_dtype_size(type);
    return fp8_tensor_view(calloc(bytes + 16, 1), type, FP8_PLACE_CPU, rows, cols);
}

static void set(const fp8_tensor *t, int64_t i, float v) {
    if (t->dtype == FP8_DTYPE_F32) ((float *)t->data)[i] = v;
    else ((uint16_t *)t->data)[i] = fp8_f32_to_bf16(v);
}

static double get(const fp8_tensor *t, int64_t i) {
    if (t->dtype == FP8_DTYPE_F32) return (double)((const float *)t->data)[i];
    return (double)fp8_bf16_to_f32(((const uint16_t *)t->data)[i]);
}

static fp8_tensor make_random(fp8_dtype type, int64_t rows, int64_t cols, uint64_t seed) {
    const fp8_tensor t = make(type, rows, cols);
    for (int64_t i = 0; i < rows * cols; i++) set(&t, i, check_normal(&seed));
    return t;
}

static fp8_tensor copy_of(const fp8_tensor *x) {
    const fp8_tensor t = make(x->dtype, x->shape[0], x->shape[1]);
    memcpy(t.data, x->data, (size_t)fp8_tensor_count(x) * fp8_dtype_size(x->dtype));
    return t;
}

static int same_bytes(const fp8_tensor *a, const fp8_tensor *b) {
    return memcmp(a->data, b->data, (size_t)fp8_tensor_count(a) * fp8_dtype_size(a->dtype)) == 0;
}

static double rounded(fp8_dtype type, double v) {
    return type == FP8_DTYPE_F32 ? v : (double)fp8_round_bf16((float)v);
}

/* One element within `steps` times 2^-8 in BF16 (one rounding is one step; two, where the first may
 * fall to the other side of a tie, three), or 3e-6 in F32; NaN for NaN. */
static int close_to(const fp8_tensor *t, int64_t i, double want, double steps) {
    const double got = get(t, i), bound = t->dtype == FP8_DTYPE_F32 ? 3e-6 : steps / 256.0;
    if (isnan(want)) return isnan(got);
    if (isinf(want)) return got == want;
    if (fabs(got - want) <= bound * fabs(want) + 1e-6) return 1;
    fprintf(stderr, "[%s] [%lld]: got %.9g, want %.9g\n", check_case, (long long)i, got, want);
    return 0;
}

static int all_close(const fp8_tensor *t, const double *want, double steps) {
    int bad = 0;
    for (int64_t i = 0; i < fp8_tensor_count(t) && bad < 10; i++)
        bad += !close_to(t, i, want[i], steps);
    return bad == 0;
}

/* Of the BF16 values, nearly all are the very ones the oracle rounds to (a sum in another order may
 * tip a tie): a rounding more or less would change every fifth. */
static int nearly_all_equal(const fp8_tensor *t, const double *want) {
    const int64_t n = fp8_tensor_count(t);
    int64_t bad = 0;
    if (t->dtype == FP8_DTYPE_F32) return 1;
    for (int64_t i = 0; i < n; i++)
        bad += !isnan(want[i]) && get(t, i) != rounded(t->dtype, want[i]);
    return bad <= n / 100;
}

/* ---- embed, gather --------------------------------------------------------------------------- */

static void test_embed(fp8_dtype type, int64_t rows, int64_t cols) {
    enum { VOCAB = 7 };
    const fp8_tensor table = make_random(type, VOCAB, cols, 1), pos = make_random(type, 5, cols, 2);
    const fp8_tensor x = make(type, rows, cols), y = make(type, rows, cols);
    int32_t ids[128], positions[128];
    double *want = calloc((size_t)(rows * cols) + 1, sizeof *want);

    check_case = "embed";
    set(&table, 0, NAN);
    if (cols > 1) set(&table, 1, -0.0f);
    for (int32_t i = 0; i < rows; i++) {
        ids[i] = (i * 3) % VOCAB;
        positions[i] = i % 5;
    }
    CHECK_STATUS(ops->embed(many, &x, &table, ids, 1.0f, NULL, NULL), FP8_OK);
    for (int64_t r = 0; r < rows; r++)
        CHECK(memcmp((char *)x.data + (size_t)(r * cols) * fp8_dtype_size(type),
                     (char *)table.data + (size_t)(ids[r] * cols) * fp8_dtype_size(type),
                     (size_t)cols * fp8_dtype_size(type)) == 0);
    CHECK_STATUS(ops->gather(many, &y, &table, ids), FP8_OK);
    CHECK(same_bytes(&x, &y));

    CHECK_STATUS(ops->embed(many, &x, &table, ids, 8.9375f, &pos, positions), FP8_OK);
    for (int64_t i = 0; i < rows * cols; i++) {
        const double v = get(&table, ids[i / cols] * cols + i % cols) * 8.9375;
        want[i] = rounded(type, v) + get(&pos, positions[i / cols] * cols + i % cols);
    }
    CHECK(all_close(&x, want, 1.01));
    CHECK_STATUS(ops->embed(one, &y, &table, ids, 8.9375f, &pos, positions), FP8_OK);
    CHECK(same_bytes(&x, &y));
    free(want);
    free(table.data);
    free(pos.data);
    free(x.data);
    free(y.data);
}

/* ---- norms ----------------------------------------------------------------------------------- */

static void norm_row(double *y, const fp8_tensor *x, const fp8_tensor *w, const fp8_tensor *b,
                     int64_t row, fp8_norm_kind kind, double eps) {
    const int64_t n = x->shape[1];
    double mean = 0.0, square = 0.0, rstd;

    for (int64_t i = 0; kind == FP8_NORM_LAYER && i < n; i++)
        mean += get(x, row * n + i) / (double)n;
    for (int64_t i = 0; i < n; i++) {
        const double v = get(x, row * n + i) - mean;
        square += v * v / (double)n;
    }
    rstd = 1.0 / sqrt(square + eps);
    for (int64_t i = 0; i < n; i++) {
        const double v = (get(x, row * n + i) - mean) * rstd, weight = get(w, i);
        y[i] = kind == FP8_NORM_RMS        ? rounded(x->dtype, v) * weight
               : kind == FP8_NORM_RMS_PLUS ? v * (1.0 + weight)
                                           : v * weight + get(b, i);
    }
}

static void test_norm(fp8_dtype type, int64_t rows, int64_t cols) {
    static const fp8_norm_kind kinds[] = {FP8_NORM_RMS, FP8_NORM_RMS_PLUS, FP8_NORM_LAYER};
    const fp8_tensor w = make_random(type, 1, cols, 4), b = make_random(type, 1, cols, 5);
    double *want = calloc((size_t)(rows * cols) + 1, sizeof *want);

    for (int k = 0; k < 3; k++) {
        const fp8_tensor *bias = kinds[k] == FP8_NORM_LAYER ? &b : NULL;
        const fp8_tensor x = make_random(type, rows, cols, 3), y = make(type, rows, cols);
        check_case = "norm";
        for (int64_t i = 0; i < cols && rows > 1; i++) set(&x, i, 0.0f); /* a row of zeros */
        if (rows > 2) set(&x, cols, INFINITY);
        if (rows > 3) set(&x, 2 * cols, NAN);
        for (int64_t r = 0; r < rows; r++) norm_row(want + r * cols, &x, &w, &b, r, kinds[k], 1e-5);
        CHECK_STATUS(ops->norm(one, &y, &x, &w, bias, kinds[k], 1e-5f), FP8_OK);
        CHECK(all_close(&y, want, kinds[k] == FP8_NORM_RMS ? 3.02 : 1.01));
        CHECK(nearly_all_equal(&y, want));
        CHECK_STATUS(ops->norm(many, &x, &x, &w, bias, kinds[k], 1e-5f), FP8_OK); /* in place */
        CHECK(same_bytes(&x, &y));
        free(x.data);
        free(y.data);
    }
    free(want);
    free(w.data);
    free(b.data);
}

/* Large rows and values: the mean of squares neither overflows nor loses its small terms. */
static void test_norm_range(void) {
    const fp8_tensor x = make(FP8_DTYPE_F32, 1, 8192), w = make(FP8_DTYPE_F32, 1, 8192);
    check_case = "norm range";
    for (int64_t i = 0; i < 8192; i++) {
        set(&x, i, i ? 1.0f : 3e4f);
        set(&w, i, 1.0f);
    }
    CHECK_STATUS(ops->norm(many, &x, &x, &w, NULL, FP8_NORM_RMS, 0.0f), FP8_OK);
    CHECK(fabs(get(&x, 5) * sqrt((9e8 + 8191.0) / 8192.0) - 1.0) < 1e-6);
    free(x.data);
    free(w.data);
}

/* ---- RoPE ------------------------------------------------------------------------------------ */

static void test_rope(fp8_dtype type, int64_t tokens, int64_t heads, int64_t dim) {
    const int64_t width = heads * dim, stride = width + 6, half = dim / 2, count = tokens * stride;
    const fp8_tensor x = make_random(type, tokens, stride, 6), before = copy_of(&x);
    fp8_tensor rows = x;
    float table[2][8 * 64];
    int32_t positions[128];
    double *want = calloc((size_t)count + 1, sizeof *want);

    check_case = "rope";
    for (int i = 0; i < 8 * 64; i++) {
        table[0][i] = cosf((float)i);
        table[1][i] = sinf((float)i);
    }
    for (int32_t t = 0; t < tokens; t++) positions[t] = (t * 5) % 8;
    for (int64_t i = 0; i < count; i++) {
        const int64_t t = i / stride, at = i % stride, lane = at % dim, j = lane % half;
        const int64_t pair = lane < half ? i + half : i - half;
        const double c = (double)table[0][positions[t] * half + j];
        const double s = (double)table[1][positions[t] * half + j];
        want[i] = get(&x, i); /* past the heads: left alone */
        if (at < width)
            want[i] = want[i] * c + (lane < half ? -s : s) * get(&before, pair);
    }
    rows.shape[1] = width;
    CHECK_STATUS(ops->rope(many, &rows, heads, dim, stride, table[0], table[1], positions), FP8_OK);
    CHECK(all_close(&x, want, 1.01));
    free(want);
    free(x.data);
    free(before.data);
}

/* ---- elementwise ----------------------------------------------------------------------------- */

static double activation(fp8_activation act, double x) {
    switch (act) {
    case FP8_ACT_SILU: return x / (1.0 + exp(-x));
    case FP8_ACT_GELU_TANH:
        return x / (1.0 + exp(-2.0 * 0.79788456080286536 * (x + 0.044715 * x * x * x)));
    case FP8_ACT_GELU_ERF: return 0.5 * x * (1.0 + erf(x * 0.70710678118654752));
    case FP8_ACT_RELU: return x < 0.0 ? 0.0 : x;
    }
    return 0.0;
}

static void test_activate(fp8_dtype type, int64_t rows, int64_t cols) {
    static const float hostile[] = {0.0f,   -0.0f,  INFINITY, NAN,   88.0f,
                                    -88.0f, 1e-40f, 20.0f,    -20.0f};
    const int64_t n = rows * cols;
    double *want = calloc((size_t)n + 1, sizeof *want);

    for (int act = FP8_ACT_SILU; act <= FP8_ACT_RELU; act++) {
        const fp8_tensor x = make_random(type, rows, cols, 7);
        const fp8_tensor up = make_random(type, rows, cols, 8);
        const fp8_tensor y = make(type, rows, cols);
        check_case = "activate";
        for (int64_t i = 0; i < n && i < 9; i++) set(&x, n - 1 - i, hostile[i]);
        for (int64_t i = 0; i < n; i++) want[i] = activation((fp8_activation)act, get(&x, i));
        CHECK_STATUS(ops->activate(many, &y, &x, NULL, (fp8_activation)act), FP8_OK);
        CHECK(all_close(&y, want, 1.01));
        for (int64_t i = 0; i < n; i++) want[i] = rounded(type, want[i]) * get(&up, i);
        CHECK_STATUS(ops->activate(one, &y, &x, &up, (fp8_activation)act), FP8_OK);
        CHECK(all_close(&y, want, 3.02));
        CHECK(nearly_all_equal(&y, want));
        CHECK_STATUS(ops->activate(many, &x, &x, &up, (fp8_activation)act), FP8_OK);
        CHECK(same_bytes(&x, &y));
        free(x.data);
        free(y.data);
        free(up.data);
    }
    free(want);
}

static void test_add_round(fp8_dtype type, int64_t rows, int64_t cols) {
    const fp8_tensor x = make_random(type, rows, cols, 9), y = make_random(type, rows, cols, 10);
    const fp8_tensor f = make_random(FP8_DTYPE_F32, rows, cols, 11), g = copy_of(&f);
    const int64_t n = rows * cols;
    double *want = calloc((size_t)n + 1, sizeof *want);

    check_case = "add";
    if (n > 1) {
        set(&x, 0, INFINITY);
        set(&y, 0, -INFINITY);
    }
    for (int64_t i = 0; i < n; i++) want[i] = get(&x, i) + get(&y, i);
    CHECK_STATUS(ops->add(many, &x, &y), FP8_OK);
    CHECK(all_close(&x, want, 1.01));
    check_case = "round";
    CHECK_STATUS(ops->round(many, &f, FP8_DTYPE_F32), FP8_OK);
    CHECK(same_bytes(&f, &g));
    CHECK_STATUS(ops->round(many, &f, FP8_DTYPE_BF16), FP8_OK);
    for (int64_t i = 0; i < n; i++)
        CHECK(((float *)f.data)[i] == fp8_round_bf16(((float *)g.data)[i]));
    free(want);
    free(x.data);
    free(y.data);
    free(f.data);
    free(g.data);
}

/* ---- scores ---------------------------------------------------------------------------------- */

static double log_sum_exp(const float *x, int64_t n) {
    double max = -INFINITY, sum = 0.0;
    for (int64_t i = 0; i < n; i++) max = (double)x[i] > max ? (double)x[i] : max;
    for (int64_t i = 0; i < n; i++) sum += exp((double)x[i] - max);
    return max + log(sum);
}

static void test_score(int64_t rows, int64_t vocab, float spread, float offset) {
    const fp8_tensor x = make_random(FP8_DTYPE_F32, rows, vocab, 12);
    const fp8_tensor ref = make_random(FP8_DTYPE_F32, rows, vocab, 13);
    float nll[128], kl[128], again[128];
    uint8_t top1[128];
    int32_t targets[128];

    check_case = "score";
    for (int64_t i = 0; i < rows * vocab; i++) {
        set(&ref, i, spread * (float)get(&ref, i) + offset);
        set(&x, i, (float)get(&ref, i) + 0.05f * (float)get(&x, i));
    }
    for (int32_t r = 0; r < rows; r++) targets[r] = (int32_t)((r * 7) % vocab);
    CHECK_STATUS(ops->score(many, &x, &ref, targets, nll, kl, top1), FP8_OK);
    CHECK_STATUS(ops->score(one, &x, NULL, targets, again, NULL, NULL), FP8_OK);
    CHECK(memcmp(nll, again, (size_t)rows * sizeof *nll) == 0);
    for (int64_t r = 0; r < rows; r++) {
        const float *a = (float *)x.data + r * vocab, *b = (float *)ref.data + r * vocab;
        const double la = log_sum_exp(a, vocab), lb = log_sum_exp(b, vocab);
        double want = 0.0;
        int64_t ia = 0, ib = 0;
        for (int64_t i = 0; i < vocab; i++) {
            want += exp((double)b[i] - lb) * (((double)b[i] - lb) - ((double)a[i] - la));
            ia = a[i] > a[ia] ? i : ia;
            ib = b[i] > b[ib] ? i : ib;
        }
        CHECK(fabs((double)nll[r] - (la - (double)a[targets[r]])) <= 2e-6 * (1.0 + fabs(la)));
        CHECK(fabs((double)kl[r] - want) <= 1e-6 + 1e-4 * want);
        CHECK(top1[r] == (ia == ib));
    }
    CHECK_STATUS(ops->score(many, &ref, &ref, targets, nll, kl, top1), FP8_OK);
    for (int64_t r = 0; r < rows; r++) CHECK(kl[r] == 0.0f && top1[r] == 1);
    free(x.data);
    free(ref.data);
}

static void test_score_hostile(void) {
    static const int32_t zero[4] = {0, 0, 0, 0};
    float x[4][20], ref[4][20], nll[4], kl[4];
    uint8_t top1[4];
    fp8_tensor tx = fp8_tensor_view(x, FP8_DTYPE_F32, FP8_PLACE_CPU, 4, 20);
    fp8_tensor tref = fp8_tensor_view(ref, FP8_DTYPE_F32, FP8_PLACE_CPU, 4, 20);

    check_case = "score of hostile rows";
    for (int r = 0; r < 4; r++)
        for (int i = 0; i < 20; i++) x[r][i] = ref[r][i] = (float)(i % 3);
    x[0][4] = ref[0][4] = -INFINITY; /* in both: no divergence from it */
    x[1][3] = -INFINITY;             /* the reference thinks it possible */
    x[2][5] = NAN;
    ref[3][5] = -INFINITY;           /* only the reference rules it out */
    CHECK_STATUS(ops->score(many, &tx, &tref, zero, nll, kl, top1), FP8_OK);
    CHECK(kl[0] == 0.0f && isfinite(nll[0]) && top1[0] == 1);
    CHECK(kl[1] == INFINITY && isfinite(nll[1]));
    CHECK(isnan(nll[2]) && isnan(kl[2]));
    CHECK(isfinite(kl[3]) && kl[3] > 0.0f);
}

static void test_argmax(void) {
    enum { N = 37 };
    static const struct {
        const char *name;
        float fill;
        int at[2];
        float value[2];
        int32_t want;
    } cases[] = {
        {"one", 0.0f, {5, 5}, {1.0f, 1.0f}, 5},
        {"tie", 0.0f, {33, 7}, {1.0f, 1.0f}, 7},
        {"all equal", 2.0f, {3, 3}, {2.0f, 2.0f}, 0},
        {"NaN first", NAN, {36, 36}, {-5.0f, -5.0f}, 36},
        {"all NaN", NAN, {1, 1}, {NAN, NAN}, 0},
        {"NaN ties -Inf", -INFINITY, {0, 0}, {NAN, NAN}, 0},
        {"Inf", 0.0f, {30, 31}, {3e38f, INFINITY}, 31},
        {"negative", -7.0f, {35, 35}, {-6.5f, -6.5f}, 35},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        float x[N];
        int32_t best = -1;
        const fp8_tensor t = fp8_tensor_view(x, FP8_DTYPE_F32, FP8_PLACE_CPU, 1, N);
        check_case = cases[c].name;
        for (int i = 0; i < N; i++) x[i] = cases[c].fill;
        for (int i = 0; i < 2; i++) x[cases[c].at[i]] = cases[c].value[i];
        CHECK_STATUS(ops->argmax(one, &t, &best), FP8_OK);
        CHECK(best == cases[c].want);
    }
}

int main(void) {
    CHECK_STATUS(fp8_device_create(&one, "cpu", 1), FP8_OK);
    CHECK_STATUS(fp8_device_create(&many, "cpu", 3), FP8_OK);
    if (!one || !many) return 1;
    ops = fp8_ops_cpu();
    for (int t = 0; t < NUM_TYPES; t++) {
        for (int s = 0; s < NUM_SIZES; s++) {
            test_embed(types[t], sizes[s].rows, sizes[s].cols);
            test_norm(types[t], sizes[s].rows, sizes[s].cols);
            test_activate(types[t], sizes[s].rows, sizes[s].cols);
            test_add_round(types[t], sizes[s].rows, sizes[s].cols);
        }
        test_rope(types[t], 0, 2, 8);
        test_rope(types[t], 1, 1, 2);
        test_rope(types[t], 70, 3, 34);
        test_rope(types[t], 9, 2, 128);
    }
    test_norm_range();
    test_score(3, 1, 1.0f, 0.0f);
    test_score(5, 17, 3.0f, -40.0f);
    test_score(2, 513, 4.0f, 0.0f);
    test_score(2, 8192, 2.0f, 1000.0f);
    test_score_hostile();
    test_argmax();
    fp8_device_destroy(one);
    fp8_device_destroy(many);
    return CHECK_DONE();
}
