/* Casts on the CPU: rows are widened to F32 in a buffer that stays in the L1 cache, and go on from
 * there, so that every pair of types is covered by a handful of row primitives. */
#include "quant/cast_cpu.h"

#include <string.h>

#include "quant/scale_pair.h"

enum {
    CHUNK = 1024,     /* floats of an L1 buffer: 4 KiB */
    GRAIN = 64 * 1024 /* elements a piece of work: some 20 us, against 5 us to hand it out */
};

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* One argument block for all loops of this file; each uses what it needs. */
typedef struct cast_job {
    const fp8_simd *s;
    uint8_t *codes;
    const uint8_t *codes_in;
    const char *x;
    char *out;
    fp8_dtype code, real;
    float scale;
    float *descale;
    const float *descale_in;
    int64_t rows, cols;
} cast_job;

/* ---- one scale for all ----------------------------------------------------------------------- */

static void quantize_run(const cast_job *j, uint8_t *codes, const char *x, int64_t n,
                         float scale) {
    const int64_t size = (int64_t)fp8_dtype_size(j->real);
    _Alignas(64) float buf[CHUNK];

    for (int64_t i = 0; i < n; i += CHUNK) {
        const int64_t len = min64(CHUNK, n - i);
        j->s->widen(buf, x + i * size, j->real, len);
        j->s->encode(codes + i, j->code, buf, len, scale);
    }
}

static void dequantize_run(const cast_job *j, char *out, const uint8_t *codes, int64_t n,
                           float descale) {
    const int64_t size = (int64_t)fp8_dtype_size(j->real);
    _Alignas(64) float buf[CHUNK];

    for (int64_t i = 0; i < n; i += CHUNK) {
        const int64_t len = min64(CHUNK, n - i);
        j->s->widen(buf, codes + i, j->code, len);
        j->s->finish(buf, buf, descale, NULL, NULL, len);
        j->s->narrow(out + i * size, j->real, buf, len);
    }
}

static fp8_status quantize_piece(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const cast_job *j = ctx;
    (void)worker;
    quantize_run(j, j->codes + begin, j->x + begin * (int64_t)fp8_dtype_size(j->real), end - begin,
                 j->scale);
    return FP8_OK;
}

fp8_status fp8_cpu_quantize(const fp8_simd *s, fp8_pool *p, uint8_t *codes, fp8_dtype to,
                            const void *x, fp8_dtype from, int64_t n, float scale) {
    cast_job j = {.s = s, .codes = codes, .x = x, .code = to, .real = from, .scale = scale};
    return fp8_parallel_for(p, n, GRAIN, quantize_piece, &j);
}

static fp8_status dequantize_piece(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const cast_job *j = ctx;
    (void)worker;
    dequantize_run(j, j->out + begin * (int64_t)fp8_dtype_size(j->real), j->codes_in + begin,
                   end - begin, j->scale);
    return FP8_OK;
}

fp8_status fp8_cpu_dequantize(const fp8_simd *s, fp8_pool *p, void *x, fp8_dtype to,
                              const uint8_t *codes, fp8_dtype from, int64_t n, float descale) {
    cast_job j = {.s = s, .codes_in = codes, .out = x, .code = from, .real = to, .scale = descale};
    return fp8_parallel_for(p, n, GRAIN, dequantize_piece, &j);
}

/* ---- one scale a row ------------------------------------------------------------------------- */

/* Scale and descale of a group whose largest finite magnitude is amax. */
static void group_scale(fp8_dtype code, float amax, float *scale, float *descale) {
    *scale = *descale = 1.0f;
    if (amax > 0) fp8_scale_pair(fp8_max_of(code), amax, scale, descale);
}

static float row_amax(const cast_job *j, const char *x) {
    const int64_t size = (int64_t)fp8_dtype_size(j->real);
    _Alignas(64) float buf[CHUNK];
    uint32_t nonfinite = 0;
    float amax = 0;

    if (j->real == FP8_DTYPE_BF16) return j->s->amax_bf16(x, j->cols, &nonfinite);
    for (int64_t i = 0; i < j->cols; i += CHUNK) {
        const int64_t len = min64(CHUNK, j->cols - i);
        float part;
        j->s->widen(buf, x + i * size, j->real, len);
        part = j->s->amax(buf, len, &nonfinite);
        if (part > amax) amax = part;
    }
    return amax;
}

static fp8_status quantize_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const cast_job *j = ctx;
    const int64_t size = (int64_t)fp8_dtype_size(j->real);

    (void)worker;
    for (int64_t r = begin; r < end; r++) {
        const char *x = j->x + r * j->cols * size;
        float scale;
        group_scale(j->code, row_amax(j, x), &scale, &j->descale[r]);
        quantize_run(j, j->codes + r * j->cols, x, j->cols, scale);
    }
    return FP8_OK;
}

/* ---- one scale a column ---------------------------------------------------------------------- */

static fp8_status quantize_cols(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const cast_job *j = ctx;
    const int64_t size = (int64_t)fp8_dtype_size(j->real), n = end - begin;
    float amax[CHUNK] = {0}, scale[CHUNK], buf[CHUNK];

    (void)worker;
    for (int64_t r = 0; r < j->rows; r++) {
        j->s->widen(buf, j->x + (r * j->cols + begin) * size, j->real, n);
        for (int64_t c = 0; c < n; c++) {
            const float a = buf[c] < 0 ? -buf[c] : buf[c];
            amax[c] = a > amax[c] && a <= FLT_MAX ? a : amax[c];
        }
    }
    for (int64_t c = 0; c < n; c++)
        group_scale(j->code, amax[c], &scale[c], &j->descale[begin + c]);
    for (int64_t r = 0; r < j->rows; r++) {
        j->s->widen(buf, j->x + (r * j->cols + begin) * size, j->real, n);
        for (int64_t c = 0; c < n; c++) buf[c] *= scale[c];
        j->s->encode(j->codes + r * j->cols + begin, j->code, buf, n, 1.0f);
    }
    return FP8_OK;
}

fp8_status fp8_cpu_quantize_groups(const fp8_simd *s, fp8_pool *p, uint8_t *codes, fp8_dtype to,
                                   float *descale, const void *x, fp8_dtype from, int64_t rows,
                                   int64_t cols, int32_t axis) {
    cast_job j = {.s = s, .codes = codes, .x = x, .code = to, .real = from, .descale = descale,
                  .rows = rows, .cols = cols};
    if (axis == 0)
        return fp8_parallel_for(p, rows, max64(1, GRAIN / max64(1, cols)), quantize_rows, &j);
    return fp8_parallel_for(p, cols, min64(CHUNK, max64(64, GRAIN / max64(1, rows))),
                            quantize_cols, &j);
}

static fp8_status dequantize_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const cast_job *j = ctx;
    (void)worker;
    for (int64_t r = begin; r < end; r++)
        dequantize_run(j, j->out + r * j->cols * (int64_t)fp8_dtype_size(j->real),
                       j->codes_in + r * j->cols, j->cols, j->descale_in[r]);
    return FP8_OK;
}

static fp8_status dequantize_cols(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const cast_job *j = ctx;
    const int64_t size = (int64_t)fp8_dtype_size(j->real);
    _Alignas(64) float buf[CHUNK];

    (void)worker;
    for (int64_t r = begin; r < end; r++) {
        for (int64_t c = 0; c < j->cols; c += CHUNK) {
            const int64_t len = min64(CHUNK, j->cols - c), at = r * j->cols + c;
            j->s->widen(buf, j->codes_in + at, j->code, len);
            j->s->finish(buf, buf, 1.0f, j->descale_in + c, NULL, len);
            j->s->narrow(j->out + at * size, j->real, buf, len);
        }
    }
    return FP8_OK;
}

fp8_status fp8_cpu_dequantize_groups(const fp8_simd *s, fp8_pool *p, void *x, fp8_dtype to,
                                     const uint8_t *codes, fp8_dtype from, const float *descale,
                                     int64_t rows, int64_t cols, int32_t axis) {
    cast_job j = {.s = s, .codes_in = codes, .out = x, .code = from, .real = to,
                  .descale_in = descale, .rows = rows, .cols = cols};
    return fp8_parallel_for(p, rows, max64(1, GRAIN / cols),
                            axis == 0 ? dequantize_rows : dequantize_cols, &j);
}

/* ---- transpose ------------------------------------------------------------------------------- */

enum { TRANSPOSE_TILE = 64 }; /* 64 cache lines read and 64 written stay in the L1 cache */

static fp8_status transpose_cols(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const cast_job *j = ctx;
    (void)worker;
    for (int64_t r0 = 0; r0 < j->rows; r0 += TRANSPOSE_TILE) {
        const int64_t r1 = min64(j->rows, r0 + TRANSPOSE_TILE);
        for (int64_t c = begin; c < end; c++)
            for (int64_t r = r0; r < r1; r++)
                j->codes[c * j->rows + r] = j->codes_in[r * j->cols + c];
    }
    return FP8_OK;
}

fp8_status fp8_cpu_transpose_codes(fp8_pool *p, uint8_t *out, const uint8_t *in, int64_t rows,
                                   int64_t cols) {
    cast_job j = {.codes = out, .codes_in = in, .rows = rows, .cols = cols};
    return fp8_parallel_for(p, cols, TRANSPOSE_TILE, transpose_cols, &j);
}

/* Columns [begin, end) of the tiles: at most TRANSPOSE_TILE of them. */
static fp8_status quantize_transposed_cols(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const cast_job *j = ctx;
    const int64_t size = (int64_t)fp8_dtype_size(j->real), n = end - begin;
    uint8_t tile[TRANSPOSE_TILE][TRANSPOSE_TILE];

    (void)worker;
    for (int64_t r0 = 0; r0 < j->rows; r0 += TRANSPOSE_TILE) {
        const int64_t height = min64(j->rows - r0, TRANSPOSE_TILE);
        for (int64_t r = 0; r < height; r++) {
            const int64_t at = (r0 + r) * j->cols + begin;
            quantize_run(j, tile[r], j->x + at * size, n, j->scale);
            if (j->out) memcpy(j->out + at, tile[r], (size_t)n);
        }
        for (int64_t c = 0; c < n; c++)
            for (int64_t r = 0; r < height; r++)
                j->codes[(begin + c) * j->rows + r0 + r] = tile[r][c];
    }
    return FP8_OK;
}

fp8_status fp8_cpu_quantize_transposed(const fp8_simd *s, fp8_pool *p, uint8_t *codes_t,
                                       uint8_t *codes, fp8_dtype to, const void *x,
                                       fp8_dtype from, int64_t rows, int64_t cols, float scale) {
    cast_job j = {.s = s, .codes = codes_t, .out = (char *)codes, .x = x, .code = to, .real = from,
                  .scale = scale, .rows = rows, .cols = cols};
    return fp8_parallel_for(p, cols, TRANSPOSE_TILE, quantize_transposed_cols, &j);
}
