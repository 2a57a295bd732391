/* model/ops_cuda.cu, norm_cuda.cu, score_cuda.cu against the CPU operations: bit for bit where
 * ops.h leaves no choice, else within the roundings of BF16; odd sizes, unaligned rows, hostile
 * values, nothing written beside the result. */
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

/* At most `steps` BF16 neighbours apart (2^-7 |want| each) or `floor`, NaN for NaN; steps 0: the
 * same bits, but for a NaN's. All but a hundredth must be the same: what differs by parts in 10^6
 * falls to a neighbour only beside a tie. */
static void compare(const fp8_tensor *dev, const fp8_tensor *want, int steps, double floor) {
    const fp8_tensor got = fetch(dev);
    const int64_t n = fp8_tensor_count(want);
    int64_t bad = 0, other = 0;

    for (int64_t i = 0; i < n && bad < 10; i++) {
        const float g = get(&got, i), w = get(want, i);
        const double bound = 1.01 * steps / 128.0 * fabs((double)w) + floor;
        if ((isnan(g) && isnan(w)) || fp8_f32_bits(g) == fp8_f32_bits(w)) continue;
        other++;
        if (steps > 0 && fabs((double)g - (double)w) <= bound) continue;
        fprintf(stderr, "[%s] [%lld] of [%lld, %lld]: got %.9g, want %.9g\n", check_case,
                (long long)i, (long long)want->shape[0], (long long)want->shape[1], (double)g,
                (double)w);
        bad++;
    }
    CHECK(bad == 0 && other <= n / 100 + 3);
    free(got.data);
}

/* ---- embed, gather, add, round: bit for bit -------------------------------------------------- */

static void test_embed(int64_t rows, int64_t cols, int64_t skew) {
    enum { VOCAB = 7 };
    fp8_tensor table = random_tensor(FP8_DTYPE_BF16, VOCAB, cols, 1);
    fp8_tensor pos = random_tensor(FP8_DTYPE_BF16, 5, cols, 2);
    fp8_tensor x = random_tensor(FP8_DTYPE_BF16, rows, cols, 3);
    int32_t ids[300] = {0}, positions[300] = {0};

    next_case("embed");
    for (int64_t i = 0; i < NUM_HOSTILE; i++) set(&table, i * 3 % (VOCAB * cols), hostile[i]);
    ((uint16_t *)table.data)[cols / 2] = 0x7f81; /* a signalling NaN: copied, not computed */
    for (int32_t i = 0; i < rows; i++) {
        ids[i] = (i * 3) % VOCAB;
        positions[i] = i % 5;
    }
    const fp8_tensor dx = tensor_on_device(&x, skew), dy = tensor_on_device(&x, 0);
    const fp8_tensor dtable = tensor_on_device(&table, 0), dpos = tensor_on_device(&pos, skew);
    const int32_t *dids = on_device(ids, sizeof ids, 0);
    const int32_t *dpositions = on_device(positions, sizeof positions, 0);

    CHECK_STATUS(want_ops->gather(cpu, &x, &table, ids), FP8_OK);
    CHECK_STATUS(got_ops->gather(gpu, &dx, &dtable, dids), FP8_OK);
    const fp8_tensor got = fetch(&dx);
    CHECK(memcmp(got.data, x.data, bytes_of(&x)) == 0);
    free(got.data);
    CHECK_STATUS(want_ops->embed(cpu, &x, &table, ids, 8.9375f, NULL, NULL), FP8_OK);
    CHECK_STATUS(got_ops->embed(gpu, &dx, &dtable, dids, 8.9375f, NULL, NULL), FP8_OK);
    compare(&dx, &x, 0, 0);
    CHECK_STATUS(want_ops->embed(cpu, &x, &table, ids, 1.0f, &pos, positions), FP8_OK);
    CHECK_STATUS(got_ops->embed(gpu, &dy, &dtable, dids, 1.0f, &dpos, dpositions), FP8_OK);
    compare(&dy, &x, 0, 0);
    CHECK_STATUS(want_ops->embed(cpu, &x, &table, ids, 0.3f, &pos, positions), FP8_OK);
    CHECK_STATUS(got_ops->embed(gpu, &dy, &dtable, dids, 0.3f, &dpos, dpositions), FP8_OK);
    compare(&dy, &x, 0, 0);
    free(table.data);
    free(pos.data);
    free(x.data);
}

static void test_add_round(int64_t rows, int64_t cols, int64_t skew) {
    fp8_tensor x = random_tensor(FP8_DTYPE_BF16, rows, cols, 4);
    fp8_tensor y = random_tensor(FP8_DTYPE_BF16, rows, cols, 5);
    fp8_tensor f = random_tensor(FP8_DTYPE_F32, rows, cols, 6);
    const int64_t n = rows * cols;

    next_case("add");
    for (int64_t i = 0; i < n && i < NUM_HOSTILE; i++) {
        set(&x, n - 1 - i, hostile[i]);
        set(&y, n - 1 - i, hostile[(i + 1) % NUM_HOSTILE]);
        set(&f, n - 1 - i, hostile[i]);
    }
    if (n > 20) set(&f, 20, fp8_bits_f32(0x3f808000u)); /* a tie, to even */
    if (n > 21) set(&f, 21, fp8_bits_f32(0x7f7fffffu)); /* rounds to Inf */
    const fp8_tensor dx = tensor_on_device(&x, 0), dy = tensor_on_device(&y, skew);
    const fp8_tensor df = tensor_on_device(&f, skew);
    CHECK_STATUS(want_ops->add(cpu, &x, &y), FP8_OK);
    CHECK_STATUS(got_ops->add(gpu, &dx, &dy), FP8_OK);
    compare(&dx, &x, 0, 0);

    check_case = "round";
    CHECK_STATUS(got_ops->round(gpu, &df, FP8_DTYPE_F32), FP8_OK);
    compare(&df, &f, 0, 0);
    CHECK_STATUS(want_ops->round(cpu, &f, FP8_DTYPE_BF16), FP8_OK);
    CHECK_STATUS(got_ops->round(gpu, &df, FP8_DTYPE_BF16), FP8_OK);
    compare(&df, &f, 0, 0);
    free(x.data);
    free(y.data);
    free(f.data);
}

/* ---- RoPE: bit for bit ----------------------------------------------------------------------- */

static void test_rope(int64_t tokens, int64_t heads, int64_t dim, int64_t gap, int64_t skew) {
    enum { POSITIONS = 8 };
    const int64_t width = heads * dim, stride = width + gap, half = dim / 2;
    fp8_tensor x = random_tensor(FP8_DTYPE_BF16, tokens, stride, 7);
    float *table = calloc((size_t)(2 * POSITIONS * half) + 1, sizeof *table);
    float *cos = table, *sin = table + POSITIONS * half;
    int32_t positions[300] = {0};

    next_case("rope");
    for (int64_t i = 0; i < POSITIONS * half; i++) {
        cos[i] = fp8_round_bf16(cosf((float)i));
        sin[i] = fp8_round_bf16(sinf((float)i));
    }
    for (int32_t t = 0; t < tokens; t++) positions[t] = (t * 5) % POSITIONS;
    if (tokens > 1) set(&x, 1, INFINITY);
    if (tokens > 1) set(&x, stride, NAN);
    const fp8_tensor dx = tensor_on_device(&x, skew);
    const size_t bytes = (size_t)(POSITIONS * half) * sizeof(float);
    const float *dcos = on_device(cos, bytes, 0), *dsin = on_device(sin, bytes, 0);
    const int32_t *dpositions = on_device(positions, sizeof positions, 0);

    CHECK_STATUS(want_ops->rope(cpu, &x, heads, dim, stride, cos, sin, positions), FP8_OK);
    CHECK_STATUS(got_ops->rope(gpu, &dx, heads, dim, stride, dcos, dsin, dpositions), FP8_OK);
    compare(&dx, &x, 0, 0);
    free(x.data);
    free(table);
}

/* ---- norms ----------------------------------------------------------------------------------- */

/* The sums differ in order, so r by parts in 10^6: one rounding, in RMS two. floor: what cancels in
 * LAYER, parts in 10^6 of values up to 20. */
static void test_norm(int64_t rows, int64_t cols, int64_t skew) {
    static const fp8_norm_kind kinds[] = {FP8_NORM_RMS, FP8_NORM_RMS_PLUS, FP8_NORM_LAYER};
    fp8_tensor w = random_tensor(FP8_DTYPE_BF16, 1, cols, 8);
    fp8_tensor b = random_tensor(FP8_DTYPE_BF16, 1, cols, 9);

    for (int k = 0; k < 3; k++) {
        fp8_tensor x = random_tensor(FP8_DTYPE_BF16, rows, cols, 10), y = copy_of(&x);
        next_case("norm");
        for (int64_t i = 0; i < cols && rows > 1; i++) set(&x, i, 0.0f);
        if (rows > 2) set(&x, cols + cols / 2, INFINITY);
        if (rows > 3) set(&x, 2 * cols, NAN);
        if (rows > 4) set(&x, 4 * cols - 1, 3e38f); /* squares overflow */
        const fp8_tensor dx = tensor_on_device(&x, skew), dy = tensor_on_device(&y, 0);
        const fp8_tensor dw = tensor_on_device(&w, 0), db = tensor_on_device(&b, skew);
        const fp8_tensor *bias = kinds[k] == FP8_NORM_LAYER ? &b : NULL;
        const fp8_tensor *dbias = bias ? &db : NULL;

        CHECK_STATUS(want_ops->norm(cpu, &y, &x, &w, bias, kinds[k], 1e-5f), FP8_OK);
        CHECK_STATUS(got_ops->norm(gpu, &dy, &dx, &dw, dbias, kinds[k], 1e-5f), FP8_OK);
        compare(&dy, &y, kinds[k] == FP8_NORM_RMS ? 2 : 1, 3e-5);
        CHECK_STATUS(got_ops->norm(gpu, &dx, &dx, &dw, dbias, kinds[k], 1e-5f), FP8_OK);
        compare(&dx, &y, kinds[k] == FP8_NORM_RMS ? 2 : 1, 3e-5);
        free(x.data);
        free(y.data);
    }
    free(w.data);
    free(b.data);
}

/* 300 and 302 by turns: variance 1 about the mean, lost in E[x^2] - mean^2. */
static void test_norm_offset(int64_t cols) {
    fp8_tensor x = random_tensor(FP8_DTYPE_BF16, 3, cols, 11), y = copy_of(&x);
    fp8_tensor w = random_tensor(FP8_DTYPE_BF16, 1, cols, 12);

    next_case("norm of a large offset");
    for (int64_t i = 0; i < 3 * cols; i++) {
        set(&x, i, i % 2 ? 302.0f : 300.0f);
        set(&y, i, i % 2 ? 1.0f : -1.0f);
    }
    for (int64_t i = 0; i < cols; i++) set(&w, i, 1.0f);
    const fp8_tensor dx = tensor_on_device(&x, 0), dw = tensor_on_device(&w, 0);
    CHECK_STATUS(got_ops->norm(gpu, &dx, &dx, &dw, NULL, FP8_NORM_LAYER, 1e-6f), FP8_OK);
    compare(&dx, &y, 0, 0);
    free(x.data);
    free(y.data);
    free(w.data);
}

/* ---- activations ----------------------------------------------------------------------------- */

/* expf and erff differ from the CPU's by a few units of F32. floor: near its zero, 1 + erf is a
 * multiple of 2^-24. */
static double floor_of(fp8_activation act) { return act == FP8_ACT_GELU_ERF ? 1e-6 : 2e-40; }

static void test_activate(int64_t rows, int64_t cols, int64_t skew) {
    const int64_t n = rows * cols;

    for (int act = FP8_ACT_SILU; act <= FP8_ACT_RELU; act++) {
        fp8_tensor x = random_tensor(FP8_DTYPE_BF16, rows, cols, 13), y = copy_of(&x);
        fp8_tensor up = random_tensor(FP8_DTYPE_BF16, rows, cols, 14);
        const fp8_activation a = (fp8_activation)act;
        const double floor = floor_of(a);
        next_case("activate");
        for (int64_t i = 0; i < n && i < NUM_HOSTILE; i++) set(&x, n - 1 - i, hostile[i]);
        const fp8_tensor dx = tensor_on_device(&x, skew), dy = tensor_on_device(&y, 0);
        const fp8_tensor dup = tensor_on_device(&up, 0), dup2 = tensor_on_device(&up, skew);

        CHECK_STATUS(want_ops->activate(cpu, &y, &x, NULL, a), FP8_OK);
        CHECK_STATUS(got_ops->activate(gpu, &dy, &dx, NULL, a), FP8_OK);
        compare(&dy, &y, 1, floor);
        CHECK_STATUS(want_ops->activate(cpu, &y, &x, &up, a), FP8_OK);
        CHECK_STATUS(got_ops->activate(gpu, &dy, &dx, &dup, a), FP8_OK);
        compare(&dy, &y, 2, 4 * floor);
        CHECK_STATUS(got_ops->activate(gpu, &dup2, &dx, &dup2, a), FP8_OK);
        compare(&dup2, &y, 2, 4 * floor);
        CHECK_STATUS(got_ops->activate(gpu, &dx, &dx, &dup, a), FP8_OK);
        compare(&dx, &y, 2, 4 * floor);
        free(x.data);
        free(y.data);
        free(up.data);
    }
}

/* Every BF16 there is, through every activation. */
static void test_activate_all(void) {
    fp8_tensor x = random_tensor(FP8_DTYPE_BF16, 256, 256, 0), y = copy_of(&x);

    for (int i = 0; i < 65536; i++) ((uint16_t *)x.data)[i] = (uint16_t)i;
    for (int act = FP8_ACT_SILU; act <= FP8_ACT_RELU; act++) {
        next_case("activate, all inputs");
        const fp8_tensor dx = tensor_on_device(&x, 0), dy = tensor_on_device(&y, 0);
        CHECK_STATUS(want_ops->activate(cpu, &y, &x, NULL, (fp8_activation)act), FP8_OK);
        CHECK_STATUS(got_ops->activate(gpu, &dy, &dx, NULL, (fp8_activation)act), FP8_OK);
        compare(&dy, &y, 1, floor_of((fp8_activation)act));
    }
    free(x.data);
    free(y.data);
}

/* ---- scores ---------------------------------------------------------------------------------- */

enum { SCORE_ROWS = 8 };

typedef struct scores {
    float nll[SCORE_ROWS], kl[SCORE_ROWS];
    uint8_t top1[SCORE_ROWS];
    int32_t best[SCORE_ROWS];
} scores;

static scores on_cpu(const fp8_tensor *x, const fp8_tensor *ref, const int32_t *targets) {
    scores s = {0};
    CHECK_STATUS(want_ops->score(cpu, x, ref, targets, s.nll, s.kl, s.top1), FP8_OK);
    CHECK_STATUS(want_ops->argmax(cpu, x, s.best), FP8_OK);
    return s;
}

static scores on_gpu(const fp8_tensor *x, const fp8_tensor *ref, const int32_t *targets) {
    scores s = {0}, *dev = take(sizeof s, 0);
    CHECK_STATUS(got_ops->score(gpu, x, ref, targets, dev->nll, dev->kl, dev->top1), FP8_OK);
    CHECK_STATUS(got_ops->argmax(gpu, x, dev->best), FP8_OK);
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
        CHECK(got.top1[r] == want.top1[r] && got.best[r] == want.best[r]);
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
    next_case("argmax of ties");
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
    fp8_tensor row = random_tensor(FP8_DTYPE_BF16, 1, 8, 20);

    next_case("refusals");
    const fp8_tensor df = tensor_on_device(&f, 0), db = tensor_on_device(&b, 0);
    const fp8_tensor drow = tensor_on_device(&row, 0);
    float *nll = take(64, 0);
    int32_t *ids = take(64, 0);
    CHECK_STATUS(got_ops->add(gpu, &db, &drow), FP8_EINVAL);
    CHECK_STATUS(got_ops->add(gpu, &db, &b), FP8_EINVAL);
    CHECK_STATUS(got_ops->add(gpu, &df, &df), FP8_EINVAL);
    CHECK_STATUS(got_ops->activate(gpu, &db, &drow, NULL, FP8_ACT_SILU), FP8_EINVAL);
    CHECK_STATUS(got_ops->norm(gpu, &db, &db, &db, NULL, FP8_NORM_RMS, 1e-5f), FP8_EINVAL);
    CHECK_STATUS(got_ops->round(gpu, &db, FP8_DTYPE_BF16), FP8_EINVAL);
    CHECK_STATUS(got_ops->round(gpu, &df, FP8_DTYPE_E4M3), FP8_EINVAL);
    CHECK_STATUS(got_ops->rope(gpu, &db, 1, 7, 8, nll, nll, ids), FP8_EINVAL);
    CHECK_STATUS(got_ops->rope(gpu, &db, 2, 8, 8, nll, nll, ids), FP8_EINVAL);
    CHECK_STATUS(got_ops->score(gpu, &df, NULL, ids, nll, nll, NULL), FP8_EINVAL);
    CHECK_STATUS(got_ops->score(gpu, &db, NULL, ids, nll, NULL, NULL), FP8_EINVAL);
    CHECK_STATUS(got_ops->argmax(gpu, &db, ids), FP8_EINVAL);
    free(f.data);
    free(b.data);
    free(row.data);
}

static void test_size(int64_t rows, int64_t cols) {
    for (int64_t skew = 0; skew < 2; skew++) {
        test_embed(rows, cols, skew);
        test_add_round(rows, cols, skew);
        test_norm(rows, cols, skew);
        test_activate(rows, cols, skew);
    }
}

/* "gpu_ops few": some sizes of each operation, for compute-sanitizer's racecheck. */
int main(int argc, char **argv) {
    static const int64_t rows[] = {0, 1, 7, 300};
    static const int64_t wide[] = {255,  256,  264,   384,   1000,  2048,
                                   4096, 4097, 16384, 16392, 20001, 24576};
    const int few = argc > 1 && strcmp(argv[1], "few") == 0;

    gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 0), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(gpu, (void **)&pool, POOL_BYTES), FP8_OK);
    if (!cpu || !pool) return 1;
    want_ops = fp8_ops_cpu();
    got_ops = fp8_ops_cuda();
    for (int r = 0; r < 4; r++)
        for (int64_t cols = 1; cols <= 130; cols += few ? 43 : 1) test_size(rows[r], cols);
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i += few ? 5 : 1) test_size(7, wide[i]);
    for (int r = 0; r < 4; r++)
        for (int64_t skew = 0; skew < 2; skew++) {
            test_rope(rows[r], 1, 2, 0, skew);
            test_rope(rows[r], 3, 34, 6, skew);
            test_rope(rows[r], 2, 16, 0, skew);
            test_rope(rows[r], 5, 64, 8, skew);
            test_rope(rows[r], 32, 128, 0, skew);
            test_rope(rows[r], 9, 256, 4, skew);
        }
    test_norm_offset(128);
    test_norm_offset(4096);
    test_norm_offset(4098);
    test_activate_all();
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
