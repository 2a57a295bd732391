/* The plain version of every row primitive: the oracle of the others, and what runs on processors
 * that have none of their own. Loops are shaped so that compilers vectorize them. */
#include <math.h>
#include <string.h>

#include "core/half.h"
#include "quant/cast.h"
#include "quant/simd.h"

enum { TILE_ROWS = 4, TILE_COLS = 16, DOT_COLS = 4 };

/* A fused multiply-add where that is an instruction; a library call would cost fifty times that. */
#ifdef __FP_FAST_FMAF
#define MULTIPLY_ADD(a, b, c) fmaf((a), (b), (c))
#else
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#endif

static uint16_t load16(const void *in, int64_t i) {
    uint16_t u;
    memcpy(&u, (const char *)in + 2 * i, sizeof u);
    return u;
}

static void store16(void *out, int64_t i, uint16_t u) {
    memcpy((char *)out + 2 * i, &u, sizeof u);
}

static void widen(float *out, const void *in, fp8_dtype from, int64_t n) {
    const uint8_t *codes = in;

    if (from == FP8_DTYPE_F32) {
        memcpy(out, in, (size_t)n * sizeof *out);
    } else if (from == FP8_DTYPE_BF16) {
        for (int64_t i = 0; i < n; i++) out[i] = fp8_bf16_to_f32(load16(in, i));
    } else if (from == FP8_DTYPE_F16) {
        for (int64_t i = 0; i < n; i++) out[i] = fp8_f16_to_f32(load16(in, i));
    } else {
        for (int64_t i = 0; i < n; i++) out[i] = fp8_to_f32(from, codes[i]);
    }
}

static void narrow(void *out, fp8_dtype to, const float *in, int64_t n) {
    if (to == FP8_DTYPE_F32) {
        memcpy(out, in, (size_t)n * sizeof *in);
    } else if (to == FP8_DTYPE_BF16) {
        for (int64_t i = 0; i < n; i++) store16(out, i, fp8_f32_to_bf16(in[i]));
    } else {
        for (int64_t i = 0; i < n; i++) store16(out, i, fp8_f32_to_f16(in[i]));
    }
}

/* The sign is that of the operands: of a NaN product the processor may make either. */
static void encode(uint8_t *codes, fp8_dtype to, const float *x, int64_t n, float scale) {
    const uint32_t flip = fp8_f32_bits(scale);
    for (int64_t i = 0; i < n; i++) {
        const uint32_t sign = (fp8_f32_bits(x[i]) ^ flip) & 0x80000000u;
        const uint32_t magnitude = fp8_f32_bits(x[i] * scale) & 0x7fffffffu;
        codes[i] = fp8_from_f32(to, fp8_bits_f32(magnitude | sign));
    }
}

static float amax_bf16(const void *x, int64_t n, uint32_t *nonfinite) {
    uint32_t most = 0, others = 0;
    for (int64_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, (const char *)x + 2 * i, sizeof half);
        const uint32_t u = half & 0x7fffu, finite = u < 0x7f80u;
        most = finite && u > most ? u : most;
        others += !finite;
    }
    *nonfinite += others;
    return fp8_bits_f32(most << 16);
}

static float amax(const float *x, int64_t n, uint32_t *nonfinite) {
    uint32_t most = 0, others = 0; /* bits of non-negative floats order like the floats */
    for (int64_t i = 0; i < n; i++) {
        const uint32_t u = fp8_f32_bits(x[i]) & 0x7fffffffu, finite = u < 0x7f800000u;
        const uint32_t kept = finite ? u : 0;
        most = kept > most ? kept : most;
        others += !finite;
    }
    *nonfinite += others;
    return fp8_bits_f32(most);
}

static void transpose(float *out, int64_t out_stride, const float *in, int64_t in_stride,
                      int64_t rows, int64_t cols) {
    for (int64_t c = 0; c < cols; c++)
        for (int64_t r = 0; r < rows; r++) out[c * out_stride + r] = in[r * in_stride + c];
}

static void finish(float *out, const float *acc, float row, const float *column, const float *bias,
                   int64_t n) {
    for (int64_t j = 0; j < n; j++) out[j] = acc[j] * (column ? row * column[j] : row);
    if (!bias) return;
    for (int64_t j = 0; j < n; j++) out[j] = out[j] + bias[j];
}

static void tile(float *c, int64_t ldc, const float *a, const float *b, int64_t rows, int64_t k,
                 int first) {
    for (int64_t i = 0; i < rows; i++) {
        const float *a_row = a + i * FP8_TILE_A_STRIDE;
        float acc[TILE_COLS] = {0};
        if (!first) memcpy(acc, c + i * ldc, sizeof acc);
        for (int64_t p = 0; p < k; p++)
            for (int j = 0; j < TILE_COLS; j++)
                acc[j] = MULTIPLY_ADD(a_row[p], b[p * TILE_COLS + j], acc[j]);
        memcpy(c + i * ldc, acc, sizeof acc);
    }
}

static void dot(float *lanes, const float *a, int64_t a_stride, int64_t rows, const float *b,
                int64_t b_stride, int64_t n) {
    for (int64_t pair = 0; pair < rows * DOT_COLS; pair++) {
        const float *x = a + pair / DOT_COLS * a_stride, *y = b + pair % DOT_COLS * b_stride;
        float acc[FP8_DOT_LANES];
        memcpy(acc, lanes + pair * FP8_DOT_LANES, sizeof acc);
        for (int64_t p = 0; p < n; p += FP8_DOT_LANES)
            for (int l = 0; l < FP8_DOT_LANES; l++)
                acc[l] = MULTIPLY_ADD(x[p + l], y[p + l], acc[l]);
        memcpy(lanes + pair * FP8_DOT_LANES, acc, sizeof acc);
    }
}

const fp8_simd fp8_simd_scalar = {
    .name = "scalar",
    .tile_rows = TILE_ROWS,
    .tile_cols = TILE_COLS,
    .widen = widen,
    .narrow = narrow,
    .encode = encode,
    .amax = amax,
    .amax_bf16 = amax_bf16,
    .transpose = transpose,
    .finish = finish,
    .tile = tile,
    .dot = dot,
};
