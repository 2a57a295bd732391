/* model/ops_cuda.cu, score_cuda.cu against the CPU operations: rounding bit for bit, scores within
 * the roundings of their sums; odd sizes, unaligned rows, hostile values, nothing written beside
 * the result. */
#include <string.h>

#include "core/half.h"
#include "model/ops.h"
#include "tests/check.h"

static fp8_device *cpu, *gpu;
static const fp8_ops *want_ops, *got_ops;

/* ---- tensors --------------------------------------------------------------------------------- */

enum { GUARD = 64, POOL_BYTES = 16 << 20 };

/* Device memory of one case, handed out from the front; all bytes between tensors are 0xee. */
static char *pool;
static size_t pool_used;

static void next_case(const char *name) {
    check_case = name;
    pool_used = 0;
    CHECK_STATUS(fp8_device_fill(gpu, pool, 0xee, POOL_BYTES), FP8_OK);
}

/* `bytes` at `skew` bytes past a 256-byte boundary, guards around. */
static void *take(size_t bytes, size_t skew) {
    char *p = pool + pool_used + 256 + skew;
    pool_used += (bytes + skew + GUARD + 511) / 256 * 256;
    if (pool_used > POOL_BYTES) {
        fprintf(stderr, "gpu_ops: POOL_BYTES is too small\n");
        exit(1);
    }
    return p;
}

static void *on_device(const void *host, size_t bytes, size_t skew) {
    void *p = take(bytes, skew);
    CHECK_STATUS(fp8_device_upload(gpu, p, host, bytes), FP8_OK);
    return p;
}

static size_t bytes_of(const fp8_tensor *t) {
    return (size_t)fp8_tensor_count(t) * fp8_dtype_size(t->dtype);
}

static void set(const fp8_tensor *t, int64_t i, float v) {
    if (t->dtype == FP8_DTYPE_F32) ((float *)t->data)[i] = v;
    else ((uint16_t *)t->data)[i] = fp8_f32_to_bf16(v);
}

static float get(const fp8_tensor *t, int64_t i) {
    if (t->dtype == FP8_DTYPE_F32) return ((const float *)t->data)[i];
    return fp8_bf16_to_f32(((const uint16_t *)t->data)[i]);
}

static const float hostile[] = {0.0f,   -0.0f, INFINITY, -INFINITY, NAN,    88.0f, -88.0f,
                                1e-40f, 20.0f, -20.0f,   3e38f,     -3e38f, 448.0f};
enum { NUM_HOSTILE = sizeof hostile / sizeof *hostile };

static fp8_tensor random_tensor(fp8_dtype type, int64_t rows, int64_t cols, uint64_t seed) {
    fp8_tensor t = fp8_tensor_view(NULL, type, FP8_PLACE_CPU, rows, cols);
    t.data = calloc(bytes_of(&t) + 1, 1);
    for (int64_t i = 0; i < rows * cols; i++) set(&t, i, check_normal(&seed));
    return t;
}

static fp8_tensor copy_of(const fp8_tensor *t) {
    fp8_tensor c = *t;
    c.data = malloc(bytes_of(t) + 1);
    memcpy(c.data, t->data, bytes_of(t));
    return c;
}

static fp8_tensor tensor_on_device(const fp8_tensor *host, int64_t skew) {
    fp8_tensor t = *host;
    t.place = FP8_PLACE_CUDA;
    t.data = on_device(host->data, bytes_of(host), (size_t)skew * fp8_dtype_size(host->dtype));
    return t;
}

/* ---- comparison ------------------------------------------------------------------------------ */

/* Waits; the bytes of `dev` in an allocated copy, its guards checked. */
static fp8_tensor fetch(const fp8_tensor *dev) {
    const size_t n = bytes_of(dev);
    unsigned char *all = malloc(n + 2 * GUARD);
    fp8_tensor t = *dev;

    CHECK_STATUS(fp8_device_download(gpu, all, (char *)dev->data - GUARD, n + 2 * GUARD), FP8_OK);
    for (size_t i = 0; i < GUARD; i++) CHECK(all[i] == 0xee && all[GUARD + n + i] == 0xee);
    t.place = FP8_PLACE_CPU;
    t.data = malloc(n + 1);
    memcpy(t.data, all + GUARD, n);
    free(all);
    return t;
}

/* The same bits, but for a NaN's. */
static void compare(const fp8_tensor *dev, const fp8_tensor *want) {
    const fp8_tensor got = fetch(dev);
    const int64_t n = fp8_tensor_count(want);
    int64_t bad = 0;

    for (int64_t i = 0; i < n && bad < 10; i++) {
        const float g = get(&got, i), w = get(want, i);
        if ((isnan(g) && isnan(w)) || fp8_f32_bits(g) == fp8_f32_bits(w)) continue;
        fprintf(stderr, "[%s] [%lld] of [%lld, %lld]: got %.9g, want %.9g\n", check_case,
                (long long)i, (long long)want->shape[0], (long long)want->shape[1], (double)g,
                (double)w);
        bad++;
    }
    CHECK(bad == 0);
    free(got.data);
}

/* ---- rounding -------------------------------------------------------------------------------- */

static void test_round(int64_t rows, int64_t cols, int64_t skew) {
    fp8_tensor f = random_tensor(FP8_DTYPE_F32, rows, cols, 6);
    const int64_t n = rows * cols;

    next_case("round");
    for (int64_t i = 0; i < n && i < NUM_HOSTILE; i++) set(&f, n - 1 - i, hostile[i]);
    if (n > 20) set(&f, 20, fp8_bits_f32(0x3f808000u)); /* a tie, to even */
    if (n > 21) set(&f, 21, fp8_bits_f32(0x7f7fffffu)); /* rounds to Inf */
    const fp8_tensor df = tensor_on_device(&f, skew);
    CHECK_STATUS(got_ops->round(gpu, &df, FP8_DTYPE_F32), FP8_OK);
    compare(&df, &f);
    CHECK_STATUS(want_ops->round(cpu, &f, FP8_DTYPE_BF16), FP8_OK);
    CHECK_STATUS(got_ops->round(gpu, &df, FP8_DTYPE_BF16), FP8_OK);
    compare(&df, &f);
    free(f.data);
}

/* ---- scores ---------------------------------------------------------------------------------- */

enum { SCORE_ROWS = 8 };

typedef struct scores {
    float nll[SCORE_ROWS], kl[SCORE_ROWS];
    uint8_t top1[SCORE_ROWS];
} scores;

static scores on_cpu(const fp8_tensor *x, const fp8_tensor *ref, const int32_t *targets) {
    scores s = {0};
    CHECK_STATUS(want_ops->score(cpu, x, ref, targets, s.nll, s.kl, s.top1), FP8_OK);
    return s;
}

static scores on_gpu(const fp8_tensor *x, const fp8_tensor *ref, const int32_t *targets) {
    scores s = {0}, *dev = take(sizeof s, 0);
    CHECK_STATUS(got_ops->score(gpu, x, ref, targets, dev->nll, dev->kl, dev->top1), FP8_OK);
    CHECK_STATUS(fp8_device_download(gpu, &s, dev, sizeof s), FP8_OK);
    return s;
}

static int near(float got, float want, double bound) {
    if ((isnan(got) && isnan(want)) || got == want) return 1;
    if (fabs((double)got - (double)want) <= bound) return 1;
    fprintf(stderr, "[%s] got %.9g, want %.9g\n", check_case, (double)got, (double)want);
    return 0;
}

/* Rows of both at skews, so that the two are aligned alike or not. The bounds are those of the
 * CPU's own test: F32 exponentials, summed in partial sums. */
static void check_scores(const fp8_tensor *x, const fp8_tensor *ref, int64_t skew,
                         int64_t ref_skew) {
    const int64_t rows = x->shape[0], vocab = x->shape[1];
    int32_t targets[SCORE_ROWS] = {0};

    for (int32_t r = 0; r < rows; r++) targets[r] = (int32_t)((r * 7919) % vocab);
    const fp8_tensor dx = tensor_on_device(x, skew), dref = tensor_on_device(ref, ref_skew);
    const int32_t *dtargets = on_device(targets, sizeof targets, 0);
    const scores want = on_cpu(x, ref, targets), got = on_gpu(&dx, &dref, dtargets);
    const scores again = on_gpu(&dx, &dref, dtargets), self = on_gpu(&dref, &dref, dtargets);
    float *nll = take(sizeof want.nll, 0), alone[SCORE_ROWS];

    CHECK_STATUS(got_ops->score(gpu, &dx, NULL, dtargets, nll, NULL, NULL), FP8_OK);
    CHECK_STATUS(fp8_device_download(gpu, alone, nll, sizeof alone), FP8_OK);
    for (int64_t r = 0; r < rows; r++) {
        const double size = 1.0 + fabs((double)want.nll[r]);
        CHECK(near(got.nll[r], want.nll[r], 2e-6 * size));
        CHECK(near(alone[r], want.nll[r], 2e-6 * size));
        CHECK(near(got.kl[r], want.kl[r], 1e-6 + 1e-4 * fabs((double)want.kl[r])));
        CHECK(got.top1[r] == want.top1[r]);
        CHECK(isnan(self.kl[r]) || self.kl[r] == 0.0f);
        CHECK(self.top1[r] == 1);
    }
    CHECK(memcmp(&got, &again, sizeof got) == 0);
}

static void test_score(int64_t rows, int64_t vocab, float spread, float offset) {
    static const int64_t skews[][2] = {{0, 0}, {1, 1}, {0, 1}, {3, 2}};
    fp8_tensor x = random_tensor(FP8_DTYPE_F32, rows, vocab, 15);
    fp8_tensor ref = random_tensor(FP8_DTYPE_F32, rows, vocab, 16);

    for (int64_t i = 0; i < rows * vocab; i++) {
        set(&ref, i, spread * get(&ref, i) + offset);
        set(&x, i, get(&ref, i) + 0.05f * get(&x, i));
    }
    for (size_t i = 0; i < sizeof skews / sizeof *skews; i++) {
        next_case("score");
        check_scores(&x, &ref, skews[i][0], skews[i][1]);
    }
    free(x.data);
    free(ref.data);
}

static void test_score_hostile(int64_t vocab) {
    fp8_tensor x = random_tensor(FP8_DTYPE_F32, SCORE_ROWS, vocab, 17), ref = copy_of(&x);
    const int64_t mid = vocab / 2, last = vocab - 1;

    next_case("score of hostile rows");
    set(&x, 0 * vocab + mid, -INFINITY); /* in both: no divergence from it */
    set(&ref, 0 * vocab + mid, -INFINITY);
    set(&x, 1 * vocab + mid, -INFINITY); /* the reference thinks it possible */
    set(&x, 2 * vocab + last, NAN);
    set(&ref, 3 * vocab + mid, -INFINITY); /* only the reference rules it out */
    set(&x, 4 * vocab + mid, INFINITY);
    for (int64_t i = 0; i < vocab; i++) set(&x, 5 * vocab + i, -INFINITY);
    set(&ref, 5 * vocab, 9.0f); /* and the first of equals is the first of all */
    for (int64_t i = 0; i < vocab; i++) set(&x, 6 * vocab + i, i % 2 ? -INFINITY : NAN);
    for (int64_t i = 0; i < 4; i++) set(&ref, 7 * vocab + i, -300.0f); /* of no weight: exp(-300) */
    set(&x, 7 * vocab, -INFINITY);
    check_scores(&x, &ref, 0, 0);
    next_case("ties");
    for (int64_t i = 0; i < SCORE_ROWS * vocab; i++) set(&x, i, -7.0f);
    set(&x, 1 * vocab + mid, 3.0f); /* the first of several */
    set(&x, 1 * vocab + mid + 1, 3.0f);
    set(&x, 1 * vocab + last, 3.0f);
    set(&x, 2 * vocab + last, -6.5f);
    for (int64_t i = 0; i < last; i++) set(&x, 3 * vocab + i, NAN);
    check_scores(&x, &ref, 1, 0);
    free(x.data);
    free(ref.data);
}

/* ---- arguments ------------------------------------------------------------------------------- */

static void test_refusals(void) {
    fp8_tensor f = random_tensor(FP8_DTYPE_F32, 2, 8, 18);
    fp8_tensor b = random_tensor(FP8_DTYPE_BF16, 2, 8, 19);

    next_case("refusals");
    const fp8_tensor df = tensor_on_device(&f, 0), db = tensor_on_device(&b, 0);
    float *nll = take(64, 0);
    int32_t *ids = take(64, 0);
    CHECK_STATUS(got_ops->round(gpu, &f, FP8_DTYPE_BF16), FP8_EINVAL);
    CHECK_STATUS(got_ops->round(gpu, &db, FP8_DTYPE_BF16), FP8_EINVAL);
    CHECK_STATUS(got_ops->round(gpu, &df, FP8_DTYPE_E4M3), FP8_EINVAL);
    CHECK_STATUS(got_ops->score(gpu, &df, NULL, ids, nll, nll, NULL), FP8_EINVAL);
    CHECK_STATUS(got_ops->score(gpu, &db, NULL, ids, nll, NULL, NULL), FP8_EINVAL);
    free(f.data);
    free(b.data);
}

int main(void) {
    static const int64_t sizes[] = {0, 1, 3, 4, 5, 127, 1023, 1024, 1025, 70000};

    gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 0), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(gpu, (void **)&pool, POOL_BYTES), FP8_OK);
    if (!cpu || !pool) return 1;
    want_ops = fp8_ops_cpu();
    got_ops = fp8_ops_cuda();
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int64_t skew = 0; skew < 2; skew++) test_round(1, sizes[i], skew);
    test_score(3, 1, 1.0f, 0.0f);
    test_score(5, 17, 3.0f, -40.0f);
    test_score(7, 512, 4.0f, 0.0f);
    test_score(7, 8193, 2.0f, 1000.0f);
    test_score(3, 128256, 3.0f, 0.0f);
    test_score(3, 128257, 8.0f, -20.0f);
    test_score_hostile(20);
    test_score_hostile(5003);
    test_refusals();
    fp8_device_free(gpu, pool);
    fp8_device_destroy(gpu);
    fp8_device_destroy(cpu);
    return CHECK_DONE();
}
