/* What calibration measures on the CPU: amax, and the error a static scale would make. */
#include <math.h>
#include <pthread.h>
#include <string.h>

#include "core/half.h"
#include "quant/cast_cpu.h"

enum {
    CHUNK = 1024,      /* floats of an L1 buffer */
    GRAIN = 64 * 1024, /* elements a piece of work */
    FIRST_INFINITE = 0x7f800000 >> 20, /* the bin where infinity lies, and NaN above */
    LANES = 8          /* partial sums of a piece: breaks the chain of additions */
};

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static float max_float(float a, float b) { return a > b ? a : b; }

typedef struct observe_job {
    const fp8_simd *s;
    const char *x;
    fp8_dtype dtype;
    int64_t rows, cols, stride;
    pthread_mutex_t lock; /* guards *slot and *stats: maxima and counts come in any order */
    fp8_amax_slot *slot;
    fp8_magnitudes *bins; /* NULL: not wanted */
    const uint8_t *first;
    fp8_error_stats *stats;
    fp8_dtype to;
    float scale, descale;
    double (*sums)[2]; /* signal and noise [FP8_ERROR_PIECES]: added up in order afterwards */
} observe_job;

/* ---- amax ------------------------------------------------------------------------------------ */

static float row_amax(const observe_job *j, int64_t row, uint32_t *nonfinite) {
    const int64_t size = (int64_t)fp8_dtype_size(j->dtype);
    const char *x = j->x + row * j->stride * size;
    _Alignas(64) float buf[CHUNK], amax = 0;

    if (j->dtype == FP8_DTYPE_BF16) return j->s->amax_bf16(x, j->cols, nonfinite);
    for (int64_t c = 0; c < j->cols; c += CHUNK) {
        const int64_t len = min64(CHUNK, j->cols - c);
        j->s->widen(buf, x + c * size, j->dtype, len);
        amax = max_float(amax, j->s->amax(buf, len, nonfinite));
    }
    return amax;
}

/* Counts of one row; those that are not finite lie in the last bins and are cut off later. A BF16
 * value has its bin in its own top bits. */
static void row_bins(const observe_job *j, uint32_t *bins, int64_t row) {
    const int64_t size = (int64_t)fp8_dtype_size(j->dtype);
    const char *x = j->x + row * j->stride * size;
    const uint16_t *half = (const uint16_t *)(const void *)x;
    float buf[CHUNK];

    for (int64_t c = 0; j->dtype == FP8_DTYPE_BF16 && c < j->cols; c++)
        bins[(half[c] & 0x7fffu) >> 4]++;
    for (int64_t c = 0; j->dtype != FP8_DTYPE_BF16 && c < j->cols; c += CHUNK) {
        const int64_t len = min64(CHUNK, j->cols - c);
        j->s->widen(buf, x + c * size, j->dtype, len);
        for (int64_t i = 0; i < len; i++) bins[(fp8_f32_bits(buf[i]) & 0x7fffffffu) >> 20]++;
    }
}

/* Rows of at most 2^31 elements together: the pool's grain sees to that. */
static void observe_bins(observe_job *j, int64_t begin, int64_t end) {
    uint32_t bins[FP8_ERROR_BINS] = {0};

    for (int64_t r = begin; r < end; r++) row_bins(j, bins, r);
    pthread_mutex_lock(&j->lock);
    for (int b = 0; b < FIRST_INFINITE; b++) j->bins->bins[b] += bins[b];
    pthread_mutex_unlock(&j->lock);
}

static fp8_status observe_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    observe_job *j = ctx;
    fp8_amax_slot found = {0};

    (void)worker;
    for (int64_t r = begin; r < end; r++) {
        const float amax = row_amax(j, r, &found.nonfinite);
        found.amax = max_float(found.amax, amax);
        if (!j->first || !j->first[r])
            found.amax_without_first = max_float(found.amax_without_first, amax);
    }
    pthread_mutex_lock(&j->lock);
    j->slot->amax = max_float(j->slot->amax, found.amax);
    j->slot->amax_without_first = max_float(j->slot->amax_without_first, found.amax_without_first);
    j->slot->nonfinite += found.nonfinite;
    pthread_mutex_unlock(&j->lock);
    if (j->bins) observe_bins(j, begin, end);
    return FP8_OK;
}

fp8_status fp8_cpu_observe(const fp8_simd *s, fp8_pool *p, fp8_amax_slot *out,
                           fp8_magnitudes *bins, const void *x, fp8_dtype dtype, int64_t rows,
                           int64_t cols, int64_t stride, const uint8_t *first) {
    observe_job j = {.s = s, .x = x, .dtype = dtype, .rows = rows, .cols = cols, .stride = stride,
                     .slot = out, .bins = bins, .first = first, .lock = PTHREAD_MUTEX_INITIALIZER};
    const int64_t grain = cols < GRAIN ? GRAIN / cols : 1;
    const fp8_status st = fp8_parallel_for(p, rows, grain, observe_rows, &j);
    pthread_mutex_destroy(&j.lock);
    return st;
}

/* ---- error of a static scale ----------------------------------------------------------------- */

/* What one piece of the rows adds; bins are 16 KiB of the thread's stack. */
typedef struct error_piece {
    double signal[LANES], noise[LANES];
    uint64_t count, clipped;
    uint64_t bins[FP8_ERROR_BINS];
} error_piece;

static void measure_chunk(const observe_job *j, error_piece *e, const float *x, const float *q,
                          int64_t n) {
    const float limit = fp8_max_of(j->to);

    for (int64_t i = 0; i < n; i++) {
        const uint32_t magnitude = fp8_f32_bits(x[i]) & 0x7fffffffu;
        double error;
        if (magnitude >= 0x7f800000u) continue;
        error = (double)x[i] - (double)q[i];
        e->signal[i % LANES] += (double)x[i] * (double)x[i];
        e->noise[i % LANES] += error * error;
        e->clipped += fabsf(x[i] * j->scale) > limit;
        e->bins[magnitude >> 20]++;
        e->count++;
    }
}

static void measure_row(const observe_job *j, error_piece *e, int64_t row) {
    const int64_t size = (int64_t)fp8_dtype_size(j->dtype);
    float x[CHUNK], q[CHUNK];
    uint8_t codes[CHUNK];

    for (int64_t c = 0; c < j->cols; c += CHUNK) {
        const int64_t len = min64(CHUNK, j->cols - c);
        j->s->widen(x, j->x + (row * j->stride + c) * size, j->dtype, len);
        j->s->encode(codes, j->to, x, len, j->scale);
        j->s->widen(q, codes, j->to, len);
        j->s->finish(q, q, j->descale, NULL, NULL, len);
        measure_chunk(j, e, x, q, len);
    }
}

/* Piece `begin` of FP8_ERROR_PIECES: the pool hands them out one by one. */
static fp8_status measure_piece(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    observe_job *j = ctx;
    const int64_t per = j->rows / FP8_ERROR_PIECES, more = j->rows % FP8_ERROR_PIECES;
    const int64_t from = begin * per + min64(begin, more), to = from + per + (begin < more);
    double *sums = j->sums[begin];
    error_piece e;

    (void)end, (void)worker;
    memset(&e, 0, sizeof e);
    for (int64_t r = from; r < to; r++) measure_row(j, &e, r);
    sums[0] = sums[1] = 0;
    for (int l = 0; l < LANES; l++) {
        sums[0] += e.signal[l];
        sums[1] += e.noise[l];
    }
    pthread_mutex_lock(&j->lock);
    j->stats->count += e.count;
    j->stats->clipped += e.clipped;
    for (int b = 0; b < FP8_ERROR_BINS; b++) j->stats->bins[b] += e.bins[b];
    pthread_mutex_unlock(&j->lock);
    return FP8_OK;
}

fp8_status fp8_cpu_measure_error(const fp8_simd *s, fp8_pool *p, fp8_error_stats *out,
                                 const void *x, fp8_dtype dtype, int64_t rows, int64_t cols,
                                 int64_t stride, fp8_dtype to, float scale, float descale,
                                 void *workspace) {
    observe_job j = {.s = s, .x = x, .dtype = dtype, .rows = rows, .cols = cols, .stride = stride,
                     .stats = out, .to = to, .scale = scale, .descale = descale,
                     .sums = workspace, .lock = PTHREAD_MUTEX_INITIALIZER};
    const fp8_status st = fp8_parallel_for(p, FP8_ERROR_PIECES, 1, measure_piece, &j);

    pthread_mutex_destroy(&j.lock);
    if (st != FP8_OK) return st;
    for (int i = 0; i < FP8_ERROR_PIECES; i++) {
        out->signal += j.sums[i][0];
        out->noise += j.sums[i][1];
    }
    return FP8_OK;
}

/* ---- figures read from the statistics -------------------------------------------------------- */

double fp8_error_quantile(const fp8_error_stats *host_stats, double fraction) {
    const double want = fraction * (double)host_stats->count;
    uint64_t below = 0;

    if (host_stats->count == 0) return 0;
    for (uint32_t b = 0; b < FP8_ERROR_BINS; b++) {
        below += host_stats->bins[b];
        if (below > 0 && (double)below >= want) {
            const uint32_t edge = (b + 1) << 20; /* past the last finite bin lies Inf */
            return edge < 0x7f800000u ? (double)fp8_bits_f32(edge) : 0x1p128;
        }
    }
    return 0x1p128;
}

double fp8_error_sqnr_db(const fp8_error_stats *host_stats) {
    if (host_stats->noise <= 0) return INFINITY;
    return 10 * log10(host_stats->signal / host_stats->noise);
}
