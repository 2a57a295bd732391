/* The FP8 attention cases of Transformer Engine's tests at their sizes and with their measure:
 * RMSE < tolerance x (largest - smallest value of both outputs), against BF16 or F16 attention of
 * the unfused backend on the inputs before quantization. Every backend that serves a case runs it.
 *
 * Cases: the configurations of tests/pytorch/attention/test_attention.py (FP8 against F16, custom
 * MHA, and the F16 families that FP8 is run on too). Scalings: `given` is delayed scaling with a
 * history of one step, `current`, and `mha`, E4M3 in and out. */
#include <math.h>
#include <string.h>

#include "attention/attention.h"
#include "check.h"
#include "core/half.h"
#include "quant/cast.h"

#define BF16 FP8_DTYPE_BF16
#define F16 FP8_DTYPE_F16
#define E4M3 FP8_DTYPE_E4M3
#define NONE FP8_MASK_NONE
#define CAUSAL FP8_MASK_CAUSAL
#define RIGHT FP8_MASK_CAUSAL_BOTTOM_RIGHT

enum { PADDED = 1, OFF_BY_ONE = 2, LEARNABLE = 4, SMALL = 8 /* 1e-4 * integers, bs3hd */ };

typedef struct te_case {
    const char *name;
    int b, s_q, s_kv, h, h_kv, d_qk, d_v;
    fp8_attention_mask mask;
    int window; /* left; right is 0; 0 = none */
    int flags;
} te_case;

static const te_case cases[] = {
    /* FP8 against F16 */
    {"fp8_9", 2, 2048, 2048, 128, 128, 192, 128, NONE, 0, 0},
    {"fp8_10", 2, 2048, 2048, 128, 128, 192, 128, CAUSAL, 0, 0},
    {"fp8_11", 2, 2048, 2048, 128, 128, 192, 128, RIGHT, 0, 0},
    {"fp8_12", 1, 8192, 8192, 32, 4, 128, 128, CAUSAL, 0, 0},
    {"fp8_13", 2, 8192, 8192, 32, 4, 128, 128, CAUSAL, 128, 0},
    {"fp8_14", 2, 4096, 4096, 64, 8, 64, 64, CAUSAL, 0, 0},
    {"fp8_15", 1, 8192, 8192, 64, 64, 64, 64, CAUSAL, 128, 0},
    {"fp8_16", 1, 8192, 8192, 64, 8, 64, 64, CAUSAL, 0, LEARNABLE},
    {"fp8_17", 2, 4096, 4096, 64, 64, 64, 64, CAUSAL, 128, LEARNABLE},
    {"fp8_18", 1, 8192, 8192, 32, 4, 128, 128, NONE, 0, PADDED},
    {"fp8_19", 2, 2048, 2048, 16, 16, 128, 128, CAUSAL, 0, PADDED},
    {"fp8_20", 2, 2048, 2048, 24, 12, 128, 128, CAUSAL, 0, PADDED},
    /* custom MHA */
    {"fp8_1", 1, 512, 512, 1, 1, 64, 64, NONE, 0, SMALL},
    {"fp8_2", 4, 512, 512, 16, 16, 64, 64, NONE, 0, SMALL},
    {"fp8_3", 1, 2048, 2048, 1, 1, 128, 128, NONE, 0, SMALL},
    {"fp8_4", 2, 2048, 2048, 24, 24, 128, 128, NONE, 0, SMALL},
    {"fp8_5", 1, 512, 512, 1, 1, 64, 64, CAUSAL, 0, SMALL},
    {"fp8_6", 4, 512, 512, 16, 16, 64, 64, CAUSAL, 0, SMALL},
    {"fp8_7", 1, 2048, 2048, 1, 1, 128, 128, CAUSAL, 0, SMALL},
    {"fp8_8", 2, 2048, 2048, 24, 24, 128, 128, CAUSAL, 0, SMALL},
    /* base */
    {"base_1", 8, 128, 128, 16, 16, 64, 64, NONE, 0, 0},
    {"base_2", 4, 128, 256, 16, 16, 64, 64, NONE, 0, 0},
    {"base_3", 2, 2048, 2048, 24, 24, 128, 128, NONE, 0, 0},
    {"base_4", 1, 2048, 4096, 24, 24, 128, 128, NONE, 0, 0},
    {"base_5", 8, 1, 2048, 16, 16, 128, 128, NONE, 0, 0},
    {"base_6", 8, 1, 2048, 16, 16, 256, 256, NONE, 0, 0},
    {"base_7", 8, 1, 2048, 16, 16, 192, 192, NONE, 0, 0},
    {"base_8", 8, 128, 2048, 16, 16, 192, 192, NONE, 0, 0},
    /* masks */
    {"mask_1_0", 2, 2048, 2048, 16, 16, 64, 64, CAUSAL, 0, 0},
    {"mask_1_1", 2, 2048, 2048, 24, 1, 128, 128, CAUSAL, 0, 0},
    {"mask_1_2", 2, 2048, 4096, 24, 24, 128, 128, CAUSAL, 0, 0},
    {"mask_2_0", 2, 2048, 2048, 16, 16, 64, 64, RIGHT, 0, 0},
    {"mask_2_1", 2, 2048, 2048, 24, 1, 128, 128, RIGHT, 0, 0},
    {"mask_2_2", 2, 2048, 4096, 24, 24, 128, 128, RIGHT, 0, 0},
    {"mask_3_0", 2, 2048, 2048, 16, 16, 64, 64, NONE, 0, PADDED},
    {"mask_3_1", 2, 2048, 2048, 24, 1, 128, 128, NONE, 0, PADDED},
    {"mask_3_2", 2, 2048, 4096, 24, 24, 128, 128, NONE, 0, PADDED},
    {"mask_4_0", 2, 2048, 2048, 16, 16, 64, 64, CAUSAL, 0, PADDED},
    {"mask_4_1", 2, 2048, 2048, 24, 1, 128, 128, CAUSAL, 0, PADDED},
    {"mask_4_2", 2, 2048, 4096, 24, 24, 128, 128, CAUSAL, 0, PADDED},
    {"mask_5_0", 2, 2048, 2048, 16, 16, 64, 64, RIGHT, 0, PADDED},
    {"mask_5_1", 2, 2048, 2048, 24, 1, 128, 128, RIGHT, 0, PADDED},
    {"mask_5_2", 2, 2048, 4096, 24, 24, 128, 128, RIGHT, 0, PADDED},
    /* sliding windows */
    {"swa_1_0", 2, 2048, 2048, 16, 16, 64, 64, NONE, 128, 0},
    {"swa_1_1", 2, 2048, 2048, 24, 4, 128, 128, NONE, 128, 0},
    {"swa_1_2", 2, 2048, 4096, 24, 24, 128, 128, NONE, 128, 0},
    {"swa_2_1", 2, 2048, 2048, 24, 4, 128, 128, CAUSAL, 128, 0},
    {"swa_3_1", 2, 2048, 2048, 24, 4, 128, 128, RIGHT, 128, 0},
    {"swa_3_2", 2, 2048, 4096, 24, 24, 128, 128, RIGHT, 128, 0},
    {"swa_4_1", 2, 2048, 2048, 24, 4, 128, 128, NONE, 128, PADDED},
    {"swa_5_1", 2, 2048, 2048, 24, 4, 128, 128, CAUSAL, 128, PADDED},
    {"swa_6_1", 2, 2048, 2048, 24, 4, 128, 128, RIGHT, 128, PADDED},
    {"swa_6_2", 2, 2048, 4096, 24, 24, 128, 128, RIGHT, 128, PADDED},
    /* sinks */
    {"softmax_1", 2, 2048, 2048, 64, 8, 64, 64, CAUSAL, 0, OFF_BY_ONE},
    {"softmax_2", 2, 2048, 2048, 64, 8, 64, 64, CAUSAL, 0, LEARNABLE},
    {"softmax_3", 2, 2048, 2048, 64, 8, 64, 64, CAUSAL, 128, OFF_BY_ONE},
    {"softmax_4", 2, 2048, 2048, 64, 8, 64, 64, CAUSAL, 128, LEARNABLE},
    {"softmax_5", 2, 2048, 2048, 64, 8, 64, 64, NONE, 0, PADDED | LEARNABLE},
    /* d_qk and d_v apart */
    {"mla_1", 8, 128, 128, 16, 16, 64, 128, NONE, 0, 0},
    {"mla_2", 4, 128, 256, 16, 16, 192, 128, NONE, 0, 0},
    {"mla_3", 2, 2048, 2048, 24, 24, 128, 64, CAUSAL, 0, 0},
    {"mla_4", 1, 2048, 4096, 24, 24, 192, 128, CAUSAL, 0, 0},
    {"mla_5", 8, 1, 2048, 16, 16, 192, 128, NONE, 0, 0},
    {"mla_6", 8, 1, 2048, 16, 16, 256, 128, NONE, 0, 0},
};
enum { NUM_CASES = sizeof cases / sizeof *cases, NUM_FP8_CASES = 12, MAX_B = 8 };

typedef enum scaling { GIVEN, CURRENT, MHA } scaling;

typedef struct variant {
    scaling scaling;
    fp8_dtype dtype;
    fp8_attention_layout layout;
} variant;

static const variant variants[] = {
    {CURRENT, BF16, FP8_LAYOUT_BSHD_BSHD_BSHD}, {GIVEN, BF16, FP8_LAYOUT_BSHD_BSHD_BSHD},
    {CURRENT, F16, FP8_LAYOUT_SBHD_SBHD_SBHD},  {GIVEN, BF16, FP8_LAYOUT_SBH3D},
    {MHA, BF16, FP8_LAYOUT_BSHD_BSHD_BSHD},
};
static const variant small_variants[] = {{GIVEN, BF16, FP8_LAYOUT_BS3HD}};
static const fp8_attention_backend backends[] = {FP8_BACKEND_FLASH, FP8_BACKEND_FUSED,
                                                 FP8_BACKEND_UNFUSED};

/* ---- a case on the device -------------------------------------------------------------------- */

enum { POOL = 1000003 }; /* numbers; a prime, so that no two rows are alike */

typedef struct operand {
    void *x, *codes; /* of the whole memory */
    int64_t n;
    float descale;
} operand;

static fp8_device *gpu;
static operand q, k, v; /* the three memories; k and v empty where q holds all */
static void *lengths[2], *sink, *scales, *amax;
static float pool_amax;

static void *reserve(int64_t bytes) {
    void *p = NULL;
    CHECK_STATUS(fp8_device_alloc(gpu, &p, (size_t)bytes), FP8_OK);
    if (!p) exit(1);
    return p;
}

static void *upload(const void *x, size_t bytes) {
    void *p = reserve((int64_t)bytes);
    CHECK_STATUS(fp8_device_upload(gpu, p, x, bytes), FP8_OK);
    return p;
}

/* Random numbers in BF16 or F16 on the device: normal ones, or 1e-4 x (-100 .. 100). */
static void *make_pool(fp8_dtype dtype, int small) {
    uint16_t *host = malloc(POOL * sizeof *host);
    uint64_t seed = 11;
    void *dev;
    pool_amax = 0;
    for (int i = 0; i < POOL; i++) {
        const float f = small ? 1e-4f * (float)((int)(check_random(&seed) % 200) - 100)
                              : check_normal(&seed);
        host[i] = dtype == BF16 ? fp8_f32_to_bf16(f) : fp8_f32_to_f16(f);
        pool_amax = fmaxf(pool_amax, fabsf(f));
    }
    dev = upload(host, POOL * sizeof *host);
    free(host);
    return dev;
}

/* n numbers of the pool, from `start` on, around and around; and their codes. */
static operand make_operand(const void *pool, fp8_dtype dtype, int64_t n, int64_t start) {
    operand t = {.n = n, .descale = pool_amax / FP8_E4M3_MAX};
    const float scale = 1.0f / t.descale;
    void *dev_scale = upload(&scale, sizeof scale);
    t.x = reserve(n * 2);
    t.codes = reserve(n);
    for (int64_t at = 0, from = start; at < n; from = 0) {
        const int64_t count = POOL - from < n - at ? POOL - from : n - at;
        CHECK_STATUS(fp8_device_copy(gpu, (uint16_t *)t.x + at, (const uint16_t *)pool + from,
                                     (size_t)count * 2),
                     FP8_OK);
        at += count;
    }
    CHECK_STATUS(fp8_quantize(gpu, t.codes, E4M3, t.x, dtype, n, dev_scale), FP8_OK);
    fp8_device_free(gpu, dev_scale);
    return t;
}

static void free_operand(operand *t) {
    fp8_device_free(gpu, t->x);
    fp8_device_free(gpu, t->codes);
    memset(t, 0, sizeof *t);
}

static void make_inputs(const te_case *c, const variant *w) {
    const int shared = strchr(fp8_attention_layout_name(w->layout), '3') != NULL;
    const int64_t nq = (int64_t)c->b * c->s_q * c->h * c->d_qk;
    const int64_t nk = (int64_t)c->b * c->s_kv * c->h_kv * c->d_qk;
    const int64_t nv = (int64_t)c->b * c->s_kv * c->h_kv * c->d_v;
    void *pool = make_pool(w->dtype, c->flags & SMALL);
    int32_t l[2][MAX_B];
    float logits[128];
    uint64_t seed = 5;

    q = make_operand(pool, w->dtype, shared ? 3 * nq : nq, 0);
    if (!shared) {
        k = make_operand(pool, w->dtype, nk, 300007);
        v = make_operand(pool, w->dtype, nv, 600011);
    }
    for (int i = 0; i < c->b; i++) {
        l[0][i] = 1 + (int32_t)(check_random(&seed) % (uint64_t)c->s_q);
        l[1][i] = c->s_q == c->s_kv ? l[0][i]
                                    : 1 + (int32_t)(check_random(&seed) % (uint64_t)c->s_kv);
    }
    for (int i = 0; i < c->h; i++) logits[i] = check_normal(&seed);
    lengths[0] = upload(l[0], sizeof l[0]);
    lengths[1] = upload(l[1], sizeof l[1]);
    sink = upload(logits, sizeof logits);
    scales = reserve(4 * sizeof(float));
    amax = reserve(2 * sizeof(float));
    fp8_device_free(gpu, pool);
}

static void free_inputs(void) {
    void *all[] = {lengths[0], lengths[1], sink, scales, amax};
    free_operand(&q);
    free_operand(&k);
    free_operand(&v);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) fp8_device_free(gpu, all[i]);
}

/* ---- one call -------------------------------------------------------------------------------- */

static fp8_attention_options options_of(const te_case *c, const variant *w) {
    fp8_attention_options o = FP8_ATTENTION_OPTIONS;
    o.layout = w->layout;
    o.num_heads = c->h;
    o.num_kv_heads = c->h_kv;
    o.d_qk = c->d_qk;
    o.d_v = c->d_v;
    o.num_seqs = c->b;
    o.max_q = c->s_q;
    o.max_kv = c->s_kv;
    o.padding = c->flags & PADDED;
    o.mask = c->mask;
    o.window_left = c->window ? c->window : -1;
    o.window_right = c->window ? 0 : -1;
    o.sink = c->flags & LEARNABLE    ? FP8_SINK_LEARNABLE
             : c->flags & OFF_BY_ONE ? FP8_SINK_OFF_BY_ONE
                                     : FP8_SINK_NONE;
    o.q_dtype = o.kv_dtype = o.o_dtype = w->dtype;
    return o;
}

static fp8_attention_io io_of(const te_case *c, const fp8_attention_options *o, void *out) {
    const int codes = o->q_dtype == E4M3;
    const size_t size = codes ? 1 : 2;
    fp8_layout_strides at;
    fp8_attention_io io = {.o = out, .sink = sink};
    const uint8_t *bases[3] = {codes ? q.codes : q.x, codes ? k.codes : k.x, codes ? v.codes : v.x};

    CHECK_STATUS(fp8_attention_layout_strides(&at, o->layout, o->num_seqs, o->max_q, o->max_kv,
                                              o->num_heads, o->num_kv_heads, o->d_qk, o->d_v),
                 FP8_OK);
    io.q = bases[0] + (size_t)at.q_offset * size;
    io.k = (k.n ? bases[1] : bases[0]) + (size_t)at.k_offset * size;
    io.v = (k.n ? bases[2] : bases[0]) + (size_t)at.v_offset * size;
    if (c->flags & PADDED) {
        io.q_lengths = lengths[0];
        io.kv_lengths = lengths[1];
    }
    io.q_descale = io.k_descale = io.v_descale = scales;
    io.o_scale = (float *)scales + 1;
    io.amax_s = amax;
    io.amax_o = (float *)amax + 1;
    return io;
}

/* FP8_EUNSUPPORTED: not served. */
static fp8_status attend(const te_case *c, const fp8_attention_options *o, void *out) {
    const fp8_attention_io io = io_of(c, o, out);
    fp8_attention_plan *plan = NULL;
    void *workspace = NULL;
    fp8_status st;
    FP8_TRY(fp8_attention_plan_create(&plan, gpu, o));
    FP8_TRY(fp8_device_alloc(gpu, &workspace, fp8_attention_workspace_size(plan)));
    FP8_TRY(fp8_attention_run(plan, &io, workspace, fp8_attention_workspace_size(plan)));
    FP8_TRY(fp8_device_sync(gpu));
done:
    fp8_device_free(gpu, workspace);
    fp8_attention_plan_destroy(plan);
    return st;
}

/* ---- the measure ----------------------------------------------------------------------------- */

enum { CHUNK = 1 << 20, MAX_CHUNKS = 6 };

static float element(const void *p, fp8_dtype t, int64_t i) {
    if (t == E4M3) return fp8_to_f32(t, ((const uint8_t *)p)[i]);
    if (t == BF16) return fp8_bf16_to_f32(((const uint16_t *)p)[i]);
    return fp8_f16_to_f32(((const uint16_t *)p)[i]);
}

/* RMSE over the range, of chunks spread over both outputs; elements 0 in both (padding) do not
 * count. NaN if any is. */
static double measure(const void *got, fp8_dtype got_type, double descale, const void *want,
                      fp8_dtype want_type, int64_t n) {
    const int64_t chunks = n <= CHUNK * MAX_CHUNKS ? (n + CHUNK - 1) / CHUNK : MAX_CHUNKS;
    double sum = 0, low = INFINITY, high = -INFINITY;
    int64_t count = 0;
    void *a = malloc(CHUNK * 2), *b = malloc(CHUNK * 2);

    for (int64_t i = 0; i < chunks; i++) {
        const int64_t at = n <= CHUNK * MAX_CHUNKS ? i * CHUNK : (n - CHUNK) / (chunks - 1) * i;
        const int64_t size = n - at < CHUNK ? n - at : CHUNK;
        const size_t ga = fp8_dtype_size(got_type), gb = fp8_dtype_size(want_type);
        CHECK_STATUS(fp8_device_download(gpu, a, (const uint8_t *)got + (size_t)at * ga,
                                         (size_t)size * ga), FP8_OK);
        CHECK_STATUS(fp8_device_download(gpu, b, (const uint8_t *)want + (size_t)at * gb,
                                         (size_t)size * gb), FP8_OK);
        for (int64_t e = 0; e < size; e++) {
            const double x = (double)element(a, got_type, e) * descale;
            const double y = (double)element(b, want_type, e);
            if (x == 0 && y == 0) continue;
            sum += (x - y) * (x - y);
            low = fmin(low, fmin(x, y));
            high = fmax(high, fmax(x, y));
            count++;
        }
    }
    free(a);
    free(b);
    return count ? sqrt(sum / (double)count) / (high - low) : 0;
}

/* ---- the cases ------------------------------------------------------------------------------- */

static int served[3], refused[3];
static double worst[3];

static void run_backend(const te_case *c, const variant *w, int which, const void *want,
                        float want_amax) {
    const double tolerance = c->flags & SMALL ? 0.13 : w->scaling == MHA ? 0.15 : 0.11;
    const int64_t n = (int64_t)c->b * c->s_q * c->h * c->d_v;
    fp8_attention_options o = options_of(c, w);
    const float host[2] = {q.descale, w->scaling == MHA ? FP8_E4M3_MAX / want_amax : 1.0f};
    void *out = reserve(n * 2);
    double error;
    fp8_status st;

    o.backend = backends[which];
    o.quantize_p = 1;
    if (w->scaling == MHA) o.q_dtype = o.kv_dtype = o.o_dtype = E4M3;
    else o.quantize = w->scaling == GIVEN ? FP8_QUANTIZE_GIVEN : FP8_QUANTIZE_CURRENT;
    CHECK_STATUS(fp8_device_upload(gpu, scales, host, sizeof host), FP8_OK);
    CHECK_STATUS(fp8_device_fill(gpu, out, 0xff, (size_t)n * 2), FP8_OK);
    st = attend(c, &o, out);
    if (st == FP8_EUNSUPPORTED && backends[which] != FP8_BACKEND_UNFUSED) {
        refused[which]++;
    } else {
        CHECK_STATUS(st, FP8_OK);
        error = measure(out, o.o_dtype, 1 / (double)host[1], want, w->dtype, n);
        CHECK(error < tolerance);
        served[which]++;
        worst[which] = fmax(worst[which], error / tolerance);
        printf("%-10s %-7s %-14s %-7s %s RMSE / range %.5f\n", c->name,
               w->scaling == MHA ? "mha" : w->scaling == GIVEN ? "given" : "current",
               fp8_attention_layout_name(w->layout), fp8_attention_backend_name(backends[which]),
               fp8_dtype_name(w->dtype), error);
    }
    fp8_device_free(gpu, out);
}

static void run_variant(const te_case *c, const variant *w) {
    fp8_attention_options o = options_of(c, w);
    void *want = reserve((int64_t)c->b * c->s_q * c->h * c->d_v * 2);
    float largest[2];

    check_case = c->name;
    make_inputs(c, w);
    o.backend = FP8_BACKEND_UNFUSED;
    o.want_amax = 1;
    CHECK_STATUS(attend(c, &o, want), FP8_OK);
    CHECK_STATUS(fp8_device_download(gpu, largest, amax, sizeof largest), FP8_OK);
    for (int i = 0; i < 3; i++) run_backend(c, w, i, want, largest[1]);
    free_inputs();
    fp8_device_free(gpu, want);
}

int main(void) {
    gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    for (int i = 0; i < NUM_CASES; i++) {
        const te_case *c = &cases[i];
        const int all = i < NUM_FP8_CASES;
        const int shareable = c->h == c->h_kv && c->d_qk == c->d_v && c->s_q == c->s_kv;
        if (c->flags & SMALL) {
            run_variant(c, &small_variants[0]);
            continue;
        }
        for (size_t j = 0; j < (all ? sizeof variants / sizeof *variants : 1); j++)
            if (shareable || variants[j].layout != FP8_LAYOUT_SBH3D) run_variant(c, &variants[j]);
    }
    for (int i = 0; i < 3; i++)
        fprintf(stderr, "%-8s served %d of %d, worst error %.3f of its tolerance\n",
                fp8_attention_backend_name(backends[i]), served[i], served[i] + refused[i],
                worst[i]);
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
