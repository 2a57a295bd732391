/* model/ops_cpu.c, score_cpu.c: rounding and scores against obvious loops in double, with hostile
 * values, and the same bytes on any threads. */
#include <string.h>

#include "core/half.h"
#include "model/ops.h"
#include "tests/check.h"

static fp8_device *one, *many; /* 1 thread, 3 threads */
static const fp8_ops *ops;

static const struct {
    int64_t rows, cols;
} sizes[] = {{0, 8},  {1, 1},   {1, 2},   {3, 15},   {2, 16},   {5, 17},    {33, 64},
             {3, 511}, {2, 512}, {2, 513}, {70, 1000}, {2, 1040}, {1, 70000}};
enum { NUM_SIZES = sizeof sizes / sizeof *sizes };

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

/* ---- rounding -------------------------------------------------------------------------------- */

static void test_round(int64_t rows, int64_t cols) {
    const fp8_tensor f = make_random(FP8_DTYPE_F32, rows, cols, 11), g = copy_of(&f);

    check_case = "round";
    CHECK_STATUS(ops->round(many, &f, FP8_DTYPE_F32), FP8_OK);
    CHECK(same_bytes(&f, &g));
    CHECK_STATUS(ops->round(many, &f, FP8_DTYPE_BF16), FP8_OK);
    for (int64_t i = 0; i < rows * cols; i++)
        CHECK(((float *)f.data)[i] == fp8_round_bf16(((float *)g.data)[i]));
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

int main(void) {
    CHECK_STATUS(fp8_device_create(&one, "cpu", 1), FP8_OK);
    CHECK_STATUS(fp8_device_create(&many, "cpu", 3), FP8_OK);
    if (!one || !many) return 1;
    ops = fp8_ops_cpu();
    for (int i = 0; i < NUM_SIZES; i++) test_round(sizes[i].rows, sizes[i].cols);
    test_score(3, 1, 1.0f, 0.0f);
    test_score(5, 17, 3.0f, -40.0f);
    test_score(2, 513, 4.0f, 0.0f);
    test_score(2, 8192, 2.0f, 1000.0f);
    test_score_hostile();
    fp8_device_destroy(one);
    fp8_device_destroy(many);
    return CHECK_DONE();
}
