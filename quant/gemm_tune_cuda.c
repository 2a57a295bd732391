/* Timing cuBLASLt's candidates: every one a few times in turns, then the best of them more often,
 * each launch behind a fill of twice the L2 cache, everything queued without a wait, so that clocks
 * are those of a busy device. The best of long products then run for a while each: the power, not
 * the clock, is what they wait for, and the fill would let them rest. */
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

#include "core/cuda_check.h"
#include "core/half.h"
#include "core/log.h"
#include "quant/cast.h"
#include "quant/cuda_ops.h"
#include "quant/gemm_lt_cuda.h"

enum {
    CANDIDATES = 32,
    FINALISTS = 6,
    FIRST_ROUNDS = 3,
    FINAL_ROUNDS = 11,
    QUICK_ROUNDS = 5, /* the last ones for who waits: 3 % tell the candidates of interest apart */
    MAX_TIMES = CANDIDATES * FINAL_ROUNDS,
    PARTS = 3, /* of D that are compared: its beginning, middle and end */
    PART_BYTES = 256 << 10,
    PATTERN_BYTES = 1000016 /* of random numbers, repeated: no multiple of a row */
};
static const double gain_wanted = 0.99; /* of the first guess's time; less is noise */
/* From here on power decides (H200: in 8192 x 4096 x 16384 the fastest behind a fill takes 4 %
 * longer than the first guess when both run on), and how long each then runs at a time. */
static const double long_us = 100, run_us = 12000;

struct fp8_lt_tuning {
    void *flush;
    size_t flush_bytes;
    cudaEvent_t begin[MAX_TIMES], end[MAX_TIMES];
    int same_bits; /* candidates must give the first guess's D */
    fp8_gemm_tuned found;
};

/* ---- timing ---------------------------------------------------------------------------------- */

typedef struct contender {
    cublasLtMatmulHeuristicResult_t result;
    int order; /* of the heuristic */
    int broken;
    double us;
} contender;

static int by_time(const void *x, const void *y) {
    const contender *a = x, *b = y;
    if (a->broken != b->broken) return a->broken - b->broken;
    return a->us != b->us ? (a->us > b->us) - (a->us < b->us) : a->order - b->order;
}

static int by_double(const void *x, const void *y) {
    const double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

typedef struct timing {
    cudaStream_t stream;
    cublasLtHandle_t handle;
    fp8_lt_problem *problem;
    const fp8_lt_call *call;
} timing;

/* One launch of each; a candidate that cuBLASLt then refuses is out. */
static void warm_up(const timing *t, contender *all, int count) {
    for (int i = 0; i < count; i++)
        all[i].broken = fp8_lt_matmul(t->handle, t->problem, t->call, &all[i].result.algo,
                                      t->stream) != FP8_OK;
}

/* all[i].us = the median of `rounds`. */
static fp8_status time_all(const timing *t, contender *all, int count, int rounds) {
    fp8_lt_tuning *w = t->call->tuning;
    double us[FINAL_ROUNDS];
    fp8_status st = FP8_OK;

    for (int r = 0; r < rounds; r++)
        for (int i = 0; i < count; i++) {
            const int at = i * rounds + r;
            if (all[i].broken) continue;
            FP8_TRY_CUDA(cudaMemsetAsync(w->flush, r, w->flush_bytes, t->stream));
            FP8_TRY_CUDA(cudaEventRecord(w->begin[at], t->stream));
            FP8_TRY(fp8_lt_matmul(t->handle, t->problem, t->call, &all[i].result.algo, t->stream));
            FP8_TRY_CUDA(cudaEventRecord(w->end[at], t->stream));
        }
    FP8_TRY_CUDA(cudaStreamSynchronize(t->stream));
    for (int i = 0; i < count; i++) {
        if (all[i].broken) continue;
        for (int r = 0; r < rounds; r++) {
            float ms = 0;
            FP8_TRY_CUDA(cudaEventElapsedTime(&ms, w->begin[i * rounds + r],
                                              w->end[i * rounds + r]));
            us[r] = (double)ms * 1e3;
        }
        qsort(us, (size_t)rounds, sizeof *us, by_double);
        all[i].us = us[rounds / 2];
    }
done:
    return st;
}

/* The same by launches that follow each other for run_us, in two turns of which the last counts. */
static fp8_status time_long(const timing *t, contender *all, int count) {
    fp8_lt_tuning *w = t->call->tuning;
    int launches[FINALISTS] = {0};
    fp8_status st = FP8_OK;

    for (int i = 0; i < count; i++)
        launches[i] = !all[i].broken && all[i].us < run_us ? (int)(run_us / all[i].us) : 1;
    for (int turn = 0; turn < 2; turn++)
        for (int i = 0; i < count; i++) {
            if (all[i].broken) continue;
            FP8_TRY_CUDA(cudaEventRecord(w->begin[i], t->stream));
            for (int k = 0; k < launches[i]; k++)
                FP8_TRY(fp8_lt_matmul(t->handle, t->problem, t->call, &all[i].result.algo,
                                      t->stream));
            FP8_TRY_CUDA(cudaEventRecord(w->end[i], t->stream));
        }
    FP8_TRY_CUDA(cudaStreamSynchronize(t->stream));
    for (int i = 0; i < count; i++) {
        float ms = 0;
        if (all[i].broken) continue;
        FP8_TRY_CUDA(cudaEventElapsedTime(&ms, w->begin[i], w->end[i]));
        all[i].us = (double)ms * 1e3 / launches[i];
    }
done:
    return st;
}

/* The heuristic's first is always among the last few, so that it is beaten in the same rounds. */
static int choose_finalists(contender *all, int count) {
    int last = count < FINALISTS ? count : FINALISTS;
    qsort(all, (size_t)count, sizeof *all, by_time);
    for (int i = last; i < count; i++)
        if (all[i].order == 0) {
            const contender first = all[i];
            all[i] = all[last - 1];
            all[last - 1] = first;
        }
    return last;
}

static fp8_status keep(fp8_device *d, const fp8_lt_call *call, const contender *best) {
    fp8_algo_entry e;

    memset(&e, 0, sizeof e);
    if (!fp8_lt_key(&e.key, d, call)) return FP8_OK;
    memcpy(e.algo.words, &best->result.algo, sizeof e.algo.words);
    e.algo.workspace_bytes = (int64_t)best->result.workspaceSize;
    e.algo.ns = (int64_t)(best->us * 1e3);
    return fp8_algo_keep(&e);
}

/* Parts of the D that this candidate makes, to host memory; *bytes of them. */
static fp8_status make_parts(fp8_device *d, const timing *t, const contender *x,
                             unsigned char *out, size_t *bytes) {
    const fp8_lt_call *c = t->call;
    const size_t size = fp8_dtype_size(c->d_dtype);
    const size_t all = (size_t)((c->g->m - 1) * c->ldd + c->g->n) * size;
    const size_t part = all < PART_BYTES ? all : PART_BYTES;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_lt_matmul(t->handle, t->problem, c, &x->result.algo, t->stream));
    for (size_t i = 0; i < PARTS; i++)
        FP8_TRY(fp8_device_download(d, out + i * part,
                                    (const char *)c->d + i * ((all - part) / (PARTS - 1)), part));
    *bytes = PARTS * part;
done:
    return st;
}

static fp8_status compare(fp8_device *d, const timing *t, const contender *a, const contender *b,
                          int *equal) {
    unsigned char *parts = malloc((size_t)2 * PARTS * PART_BYTES);
    size_t bytes = 0;
    fp8_status st = FP8_OK;

    if (!parts) return FP8_FAIL(FP8_ENOMEM, "gemm tune: parts of two results");
    FP8_TRY(make_parts(d, t, a, parts, &bytes));
    FP8_TRY(make_parts(d, t, b, parts + (size_t)PARTS * PART_BYTES, &bytes));
    *equal = memcmp(parts, parts + (size_t)PARTS * PART_BYTES, bytes) == 0;
done:
    free(parts);
    return st;
}

/* all[], the fastest first: the one to keep, `first` (the first guess) unless another is enough
 * faster. */
static fp8_status choose(fp8_device *d, const timing *t, const contender *all, int first,
                         int *best) {
    fp8_status st = FP8_OK;

    *best = first;
    for (int i = 0; i < first && all[i].us <= gain_wanted * all[first].us; i++) {
        int equal = 1;
        if (t->call->tuning->same_bits) FP8_TRY(compare(d, t, &all[first], &all[i], &equal));
        if (!equal) continue;
        *best = i;
        break;
    }
done:
    return st;
}

static fp8_status race(fp8_device *d, const timing *t, contender *all, int count) {
    fp8_gemm_tuned *found = &t->call->tuning->found;
    int last, first = 0, best = 0;
    fp8_status st;

    warm_up(t, all, count);
    FP8_TRY(time_all(t, all, count, FIRST_ROUNDS));
    last = choose_finalists(all, count);
    FP8_TRY(time_all(t, all, last,
                     t->call->tuning->same_bits ? QUICK_ROUNDS : FINAL_ROUNDS));
    if (!t->call->tuning->same_bits && last > 0 && all[0].us >= long_us)
        FP8_TRY(time_long(t, all, last));
    qsort(all, (size_t)last, sizeof *all, by_time);
    if (all[0].broken) goto done; /* the run goes another way, and says why */
    found->candidates = count;
    while (first < last && (all[first].order != 0 || all[first].broken)) first++;
    if (first < last) FP8_TRY(choose(d, t, all, first, &best));
    else if (t->call->tuning->same_bits) goto done; /* the run takes the next that it can */
    found->first_us = all[first < last ? first : 0].us;
    found->best_us = all[best].us;
    FP8_TRY(keep(d, t->call, &all[best]));
    fp8_log(FP8_LOG_INFO, "gemm tune: m=%lld n=%lld k=%lld: %.2f us, algorithm %d of %d; first "
            "guess %.2f us", (long long)t->call->g->m, (long long)t->call->g->n,
            (long long)t->call->g->k, found->best_us, all[best].order + 1, count, found->first_us);
done:
    return st;
}

/* 1: this very product has been timed. */
static int is_known(const fp8_device *d, const fp8_lt_call *c) {
    fp8_algo_entry entry;
    fp8_algo_key key;

    return fp8_lt_key(&key, d, c) && fp8_algo_find(&key, &entry) && entry.key.m == c->g->m;
}

fp8_status fp8_lt_time(fp8_device *d, cublasLtHandle_t handle, fp8_lt_problem *p,
                       const fp8_lt_call *c) {
    const timing t = {fp8_device_stream(d), handle, p, c};
    cublasLtMatmulHeuristicResult_t results[CANDIDATES];
    contender all[CANDIDATES];
    fp8_status st;
    int count = 0;

    if (c->tuning->same_bits && is_known(d, c)) return FP8_OK;
    FP8_TRY(fp8_lt_candidates(handle, p, c, results, CANDIDATES, &count));
    if (count == 0) goto done;
    for (int i = 0; i < count; i++)
        all[i] = (contender){.result = results[i], .order = i};
    FP8_TRY(race(d, &t, all, count));
done:
    return st;
}

/* ---- scratch --------------------------------------------------------------------------------- */

static fp8_status start_tuning(fp8_device *d, fp8_lt_tuning *w) {
    int l2 = 0;
    fp8_status st = FP8_OK;

    FP8_TRY_CUDA(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, fp8_device_index(d)));
    w->flush_bytes = 2 * (size_t)l2;
    FP8_TRY(fp8_device_alloc(d, &w->flush, w->flush_bytes));
    for (int i = 0; i < MAX_TIMES; i++) {
        FP8_TRY_CUDA(cudaEventCreate(&w->begin[i]));
        FP8_TRY_CUDA(cudaEventCreate(&w->end[i]));
    }
done:
    return st;
}

static void stop_tuning(fp8_device *d, fp8_lt_tuning *w) {
    fp8_device_free(d, w->flush);
    for (int i = 0; i < MAX_TIMES; i++) {
        if (w->begin[i]) (void)cudaEventDestroy(w->begin[i]);
        if (w->end[i]) (void)cudaEventDestroy(w->end[i]);
    }
}

/* Codes of normal numbers: what power, and so the clock, depends on. A sum of four uniform ones is
 * near enough. */
static void fill_pattern(uint8_t *out, fp8_dtype t, uint64_t state) {
    const int64_t size = (int64_t)fp8_dtype_size(t);
    for (int64_t i = 0; i + size <= PATTERN_BYTES; i += size) {
        float x = -2;
        for (int k = 0; k < 4; k++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            x += (float)(state >> 40) * 0x1p-24f;
        }
        if (t == FP8_DTYPE_E4M3 || t == FP8_DTYPE_E5M2) out[i] = fp8_from_f32(t, x * 64);
        else if (t == FP8_DTYPE_F16) {
            const uint16_t half = fp8_f32_to_f16(x);
            memcpy(out + i, &half, sizeof half);
        } else if (t == FP8_DTYPE_BF16) {
            const uint16_t half = fp8_f32_to_bf16(x);
            memcpy(out + i, &half, sizeof half);
        } else memcpy(out + i, &x, sizeof x);
    }
}

static fp8_status make_random(fp8_device *d, void **out, fp8_dtype t, int64_t elements,
                              uint64_t seed) {
    const size_t bytes = (size_t)elements * fp8_dtype_size(t);
    uint8_t *pattern = malloc(PATTERN_BYTES);
    size_t done_bytes = bytes < PATTERN_BYTES ? bytes : PATTERN_BYTES;
    fp8_status st;

    if (!pattern) return FP8_FAIL(FP8_ENOMEM, "gemm tune: %d bytes", PATTERN_BYTES);
    fill_pattern(pattern, t, seed);
    FP8_TRY(fp8_device_alloc(d, out, bytes));
    FP8_TRY(fp8_device_upload(d, *out, pattern, done_bytes));
    while (done_bytes < bytes) {
        const size_t more = bytes - done_bytes < done_bytes ? bytes - done_bytes : done_bytes;
        FP8_TRY(fp8_device_copy(d, (char *)*out + done_bytes, *out, more));
        done_bytes += more;
    }
done:
    free(pattern);
    return st;
}

/* Elements that a matrix of a batch spans. */
static int64_t span(int64_t rows, int64_t ld, int64_t batch, int64_t stride) {
    return rows * ld + (batch > 1 ? (batch - 1) * stride : 0);
}

typedef struct scratch {
    void *a, *b, *d, *bias, *residual, *ones; /* ones: floats for every descale */
} scratch;

static int64_t num_descales(const fp8_gemm *g) {
    const int64_t groups = (g->k + FP8_GEMM_BLOCK - 1) / FP8_GEMM_BLOCK;
    const int64_t blocks = (g->n + FP8_GEMM_BLOCK - 1) / FP8_GEMM_BLOCK;
    const int64_t a = g->scaling == FP8_GEMM_BLOCKS ? groups * g->a_descale_ld : g->m;
    const int64_t b = g->scaling == FP8_GEMM_BLOCKS ? blocks * g->b_descale_ld : g->n;
    return a > b ? a : b;
}

/* Points g to scratch; all descales are the same vector of ones. */
static fp8_status replace_operands(fp8_device *d, fp8_gemm *g, scratch *s) {
    const int64_t batch = g->batch > 1 ? g->batch : 1;
    const int64_t ones = (num_descales(g) + 3) / 4 * 4; /* d_amax behind them */
    const float one = 1;
    fp8_status st = FP8_OK;

    if (!g->a) FP8_TRY(make_random(d, &s->a, g->a_dtype, span(g->m, g->lda, batch, g->a_stride),
                                   1));
    if (!g->b) FP8_TRY(make_random(d, &s->b, g->b_dtype, span(g->b_is_kn ? g->k : g->n, g->ldb,
                                                              batch, g->b_stride), 2));
    FP8_TRY(make_random(d, &s->d, g->d_dtype, span(g->m, g->ldd, batch, g->d_stride), 3));
    if (g->bias) FP8_TRY(make_random(d, &s->bias, g->bias_dtype, g->n, 4));
    if (g->residual) FP8_TRY(make_random(d, &s->residual, g->residual_dtype,
                                         span(g->m, g->ldr, batch, g->r_stride), 5));
    FP8_TRY(fp8_device_alloc(d, &s->ones, (size_t)(ones + 4) * sizeof(float)));
    FP8_TRY(fp8_device_upload(d, s->ones, &one, sizeof one));
    FP8_TRY(fp8_cuda_repeat(d, s->ones, s->ones, ones + 4));
    if (!g->a) g->a = s->a;
    if (!g->b) g->b = s->b;
    g->d = s->d;
    if (g->bias) g->bias = s->bias;
    if (g->residual) g->residual = s->residual;
    if (g->a_descale) g->a_descale = s->ones;
    if (g->b_descale) g->b_descale = s->ones;
    if (g->d_scale) g->d_scale = s->ones;
    if (g->d_amax) g->d_amax = (float *)s->ones + ones;
done:
    return st;
}

static fp8_status refuse_capture(fp8_device *d) {
    enum cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    fp8_status st = FP8_OK;
    FP8_TRY_CUDA(cudaStreamIsCapturing(fp8_device_stream(d), &capture));
    if (capture != cudaStreamCaptureStatusNone)
        st = FP8_FAIL(FP8_EINVAL, "gemm tune: the stream is being captured");
done:
    return st;
}

fp8_status fp8_cuda_gemm_tune(fp8_device *d, const fp8_gemm *g, void *workspace,
                              size_t workspace_bytes, int same_bits, fp8_gemm_tuned *tuned) {
    fp8_lt_tuning *w = NULL;
    scratch s = {0};
    fp8_gemm own = *g;
    fp8_status st;

    FP8_TRY(refuse_capture(d));
    w = calloc(1, sizeof *w);
    if (!w) {
        st = FP8_FAIL(FP8_ENOMEM, "gemm tune: %zu bytes", sizeof *w);
        goto done;
    }
    w->same_bits = same_bits;
    FP8_TRY(start_tuning(d, w));
    FP8_TRY(replace_operands(d, &own, &s));
    FP8_TRY(fp8_cuda_gemm_make(d, &own, workspace, workspace_bytes, w));
    FP8_TRY(fp8_device_sync(d));
    *tuned = w->found;
done:
    fp8_device_free(d, s.a);
    fp8_device_free(d, s.b);
    fp8_device_free(d, s.d);
    fp8_device_free(d, s.bias);
    fp8_device_free(d, s.residual);
    fp8_device_free(d, s.ones);
    if (w) stop_tuning(d, w);
    free(w);
    return st;
}
