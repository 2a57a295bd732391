/* Row primitives for AVX-512 (F, BW, VL, DQ): 16 floats at a time, tails by mask. Written with
 * target attributes: built for any x86-64, entered where simd.c allows. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "quant/simd.h"

#define TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")))
#define INLINE_TARGET TARGET __attribute__((always_inline)) static inline

/* 28 sums, 2 of b, 1 of a: 31 of 32 registers. */
enum { WIDTH = 16, TILE_ROWS = 14, TILE_COLS = 32 };

/* The mask of the first n lanes; all 16 from 16 on. */
INLINE_TARGET __mmask16 lanes_of(int64_t n) {
    return (__mmask16)(n >= WIDTH ? 0xffffu : (1u << n) - 1u);
}

/* ---- conversions ----------------------------------------------------------------------------- */

INLINE_TARGET __m512 from_bf16(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

/* 32 E4M3 codes as F16 2^8 too small: the exponent moves up one bit, the sign to the top; only NaN
 * needs care. */
INLINE_TARGET __m512i e4m3_to_half(__m256i codes) {
    const __m512i wide = _mm512_slli_epi16(_mm512_cvtepi8_epi16(codes), 7); /* sign in 15, 14 */
    const __m512i half = _mm512_and_si512(wide, _mm512_set1_epi16((short)0xbf80));
    const __m512i top = _mm512_set1_epi16((short)0x8000);
    const __mmask32 nan = _mm512_cmpeq_epi16_mask(_mm512_or_si512(half, top),
                                                  _mm512_set1_epi16((short)0xbf80));
    return _mm512_mask_add_epi16(half, nan, half, _mm512_set1_epi16(0x7e00 - 0x3f80));
}

INLINE_TARGET __m512 from_e4m3_half(__m256i half) {
    return _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0f));
}

INLINE_TARGET __m512 from_e5m2(__m128i x) {
    return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(x), 8));
}

INLINE_TARGET __m256i to_bf16(__m512 x) {
    const __m512i u = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(
        _mm512_srli_epi32(_mm512_mask_mov_epi32(up, nan, quiet), 16));
}

/* As fp8_f32_to_f16: a NaN keeps only its sign. */
INLINE_TARGET __m256i to_f16(__m512 x) {
    const __m512i u = _mm512_castps_si512(x);
    const __m512i nans = _mm512_or_si512(_mm512_and_si512(u, _mm512_set1_epi32((int)0x80000000u)),
                                         _mm512_set1_epi32(0x7fc00000));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512 clean = _mm512_castsi512_ps(_mm512_mask_mov_epi32(u, nan, nans));
    return _mm512_cvtps_ph(clean, _MM_FROUND_TO_NEAREST_INT);
}

TARGET static void widen_bf16(float *out, const uint16_t *in, int64_t n) {
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH)
        _mm512_storeu_ps(out + i, from_bf16(_mm256_loadu_si256((const __m256i_u *)(in + i))));
    if (i < n) {
        const __mmask16 m = lanes_of(n - i);
        _mm512_mask_storeu_ps(out + i, m, from_bf16(_mm256_maskz_loadu_epi16(m, in + i)));
    }
}

TARGET static void widen_f16(float *out, const uint16_t *in, int64_t n) {
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH)
        _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i_u *)(in + i))));
    if (i < n) {
        const __mmask16 m = lanes_of(n - i);
        _mm512_mask_storeu_ps(out + i, m, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, in + i)));
    }
}

TARGET static void widen_e4m3(float *out, const uint8_t *in, int64_t n) {
    int64_t i = 0;
    for (; i + 2 * WIDTH <= n; i += 2 * WIDTH) {
        const __m512i half = e4m3_to_half(_mm256_loadu_si256((const __m256i_u *)(in + i)));
        _mm512_storeu_ps(out + i, from_e4m3_half(_mm512_castsi512_si256(half)));
        _mm512_storeu_ps(out + i + WIDTH, from_e4m3_half(_mm512_extracti64x4_epi64(half, 1)));
    }
    if (i < n) {
        const __mmask32 m = (__mmask32)((1u << (n - i)) - 1u);
        const __m512i half = e4m3_to_half(_mm256_maskz_loadu_epi8(m, in + i));
        _mm512_mask_storeu_ps(out + i, (__mmask16)m, from_e4m3_half(_mm512_castsi512_si256(half)));
        _mm512_mask_storeu_ps(out + i + WIDTH, (__mmask16)(m >> WIDTH),
                              from_e4m3_half(_mm512_extracti64x4_epi64(half, 1)));
    }
}

TARGET static void widen_e5m2(float *out, const uint8_t *in, int64_t n) {
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH)
        _mm512_storeu_ps(out + i, from_e5m2(_mm_loadu_si128((const __m128i_u *)(in + i))));
    if (i < n) {
        const __mmask16 m = lanes_of(n - i);
        _mm512_mask_storeu_ps(out + i, m, from_e5m2(_mm_maskz_loadu_epi8(m, in + i)));
    }
}

static void widen(float *out, const void *in, fp8_dtype from, int64_t n) {
    switch (from) {
    case FP8_DTYPE_BF16: widen_bf16(out, in, n); break;
    case FP8_DTYPE_F16: widen_f16(out, in, n); break;
    case FP8_DTYPE_E4M3: widen_e4m3(out, in, n); break;
    case FP8_DTYPE_E5M2: widen_e5m2(out, in, n); break;
    default: memcpy(out, in, (size_t)n * sizeof *out);
    }
}

TARGET static void narrow(void *out, fp8_dtype to, const float *in, int64_t n) {
    uint16_t *half = out;

    if (to == FP8_DTYPE_F32) {
        memcpy(out, in, (size_t)n * sizeof *in);
        return;
    }
    for (int64_t i = 0; i < n; i += WIDTH) {
        const __mmask16 m = lanes_of(n - i);
        const __m512 x = _mm512_maskz_loadu_ps(m, in + i);
        _mm256_mask_storeu_epi16(half + i, m, to == FP8_DTYPE_BF16 ? to_bf16(x) : to_f16(x));
    }
}

/* See fp8_from_f32, whose steps these are: saturate, round by an integer or (among subnormals) a
 * float addition, NaN, sign. `drop` and the constants come inlined. */
INLINE_TARGET __m128i encode16(__m512 x, __m512 scale, int drop, int rebias, uint32_t max,
                               uint32_t min_normal, uint32_t magic, int nan_code) {
    const __m512i top = _mm512_set1_epi32((int)0x80000000u);
    const __m512i bits = _mm512_castps_si512(_mm512_mul_ps(x, scale));
    const __m512i sign = _mm512_and_si512(
        _mm512_xor_si512(_mm512_castps_si512(x), _mm512_castps_si512(scale)), top);
    const __m512i magnitude = _mm512_andnot_si512(top, bits);
    const __mmask16 nan = _mm512_cmpgt_epu32_mask(magnitude, _mm512_set1_epi32(0x7f800000));
    const __m512i u = _mm512_min_epu32(magnitude, _mm512_set1_epi32((int)max));
    const __mmask16 small = _mm512_cmplt_epu32_mask(u, _mm512_set1_epi32((int)min_normal));
    const __m512i odd =
        _mm512_and_si512(_mm512_srli_epi32(u, (unsigned)drop), _mm512_set1_epi32(1));
    const __m512i half = _mm512_set1_epi32((1 << (drop - 1)) - 1);
    const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, half));
    const __m512i spacing = _mm512_set1_epi32((int)magic);
    const __m512 sum = _mm512_add_ps(_mm512_castsi512_ps(u), _mm512_castsi512_ps(spacing));
    __m512i code = _mm512_sub_epi32(_mm512_srli_epi32(rounded, (unsigned)drop),
                                    _mm512_set1_epi32(rebias));
    code = _mm512_mask_sub_epi32(code, small, _mm512_castps_si512(sum), spacing);
    code = _mm512_mask_mov_epi32(code, nan, _mm512_set1_epi32(nan_code));
    return _mm512_cvtepi32_epi8(_mm512_or_si512(code, _mm512_srli_epi32(sign, 24)));
}

INLINE_TARGET void encode_all(uint8_t *codes, const float *x, int64_t n, float scale, int drop,
                              int rebias, uint32_t max, uint32_t min_normal, uint32_t magic,
                              int nan_code) {
    const __m512 s = _mm512_set1_ps(scale);
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH)
        _mm_storeu_si128((__m128i_u *)(codes + i),
                         encode16(_mm512_loadu_ps(x + i), s, drop, rebias, max, min_normal, magic,
                                  nan_code));
    if (i < n) {
        const __mmask16 m = lanes_of(n - i);
        _mm_mask_storeu_epi8(codes + i, m,
                             encode16(_mm512_maskz_loadu_ps(m, x + i), s, drop, rebias, max,
                                      min_normal, magic, nan_code));
    }
}

TARGET static void encode(uint8_t *codes, fp8_dtype to, const float *x, int64_t n, float scale) {
    if (to == FP8_DTYPE_E4M3)
        encode_all(codes, x, n, scale, 20, 120 << 3, 0x43e00000u, 0x3c800000u, 0x46800000u, 0x7f);
    else
        encode_all(codes, x, n, scale, 21, 112 << 2, 0x47600000u, 0x38800000u, 0x43000000u, 0x7e);
}

TARGET static float amax_bf16(const void *x, int64_t n, uint32_t *nonfinite) {
    enum { HALVES = 2 * WIDTH };
    const __m512i inf = _mm512_set1_epi16(0x7f80), abs = _mm512_set1_epi16(0x7fff);
    __m512i most = _mm512_setzero_si512();
    uint32_t bits, others = 0;
    float value;

    for (int64_t i = 0; i < n; i += HALVES) {
        const __mmask32 m = n - i >= HALVES ? 0xffffffffu : (1u << (n - i)) - 1u;
        const __m512i u = _mm512_and_si512(
            _mm512_maskz_loadu_epi16(m, (const char *)x + 2 * i), abs);
        const __mmask32 finite = _mm512_cmplt_epu16_mask(u, inf);
        most = _mm512_mask_max_epu16(most, finite, most, u);
        others += (uint32_t)__builtin_popcount(~finite);
    }
    *nonfinite += others;
    bits = _mm512_reduce_max_epu32(
        _mm512_max_epu32(_mm512_slli_epi32(most, 16),
                         _mm512_and_si512(most, _mm512_set1_epi32((int)0xffff0000u))));
    memcpy(&value, &bits, sizeof value);
    return value;
}

TARGET static float amax(const float *x, int64_t n, uint32_t *nonfinite) {
    const __m512i inf = _mm512_set1_epi32(0x7f800000), abs = _mm512_set1_epi32(0x7fffffff);
    __m512i most = _mm512_setzero_si512();
    uint32_t bits, others = 0;
    float value;

    for (int64_t i = 0; i < n; i += WIDTH) {
        const __mmask16 m = lanes_of(n - i);
        const __m512i u = _mm512_and_si512(_mm512_maskz_loadu_epi32(m, x + i), abs);
        const __mmask16 finite = _mm512_cmplt_epu32_mask(u, inf);
        most = _mm512_mask_max_epu32(most, finite, most, u);
        others += (uint32_t)__builtin_popcount((unsigned)(uint16_t)~finite);
    }
    *nonfinite += others;
    bits = _mm512_reduce_max_epu32(most);
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* ---- matrix product -------------------------------------------------------------------------- */

/* r[0 .. 15] become the columns of what they were: 2x2 exchanges of 32, 64, 128 and 256 bits. */
INLINE_TARGET void transpose16(__m512 r[WIDTH]) {
    __m512 t[WIDTH];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            const __m512d lo = _mm512_castps_pd(t[i + j]), hi = _mm512_castps_pd(t[i + 2 + j]);
            r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(lo, hi));
            r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(lo, hi));
        }
    for (int j = 0; j < 4; j++) { /* r[4q + j]: column j of each 128-bit lane, rows 4q .. 4q + 3 */
        const __m512 a = _mm512_shuffle_f32x4(r[j], r[4 + j], 0x88);
        const __m512 b = _mm512_shuffle_f32x4(r[j], r[4 + j], 0xdd);
        const __m512 c = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0x88);
        const __m512 d = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0xdd);
        t[j] = _mm512_shuffle_f32x4(a, c, 0x88);
        t[4 + j] = _mm512_shuffle_f32x4(b, d, 0x88);
        t[8 + j] = _mm512_shuffle_f32x4(a, c, 0xdd);
        t[12 + j] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
    for (int i = 0; i < 16; i++) r[i] = t[i];
}

TARGET static void transpose(float *out, int64_t out_stride, const float *in, int64_t in_stride,
                             int64_t rows, int64_t cols) {
    for (int64_t r = 0; r < rows; r += WIDTH)
        for (int64_t c = 0; c < cols; c += WIDTH) {
            const __mmask16 in_mask = lanes_of(cols - c), out_mask = lanes_of(rows - r);
            const float *from = in + r * in_stride + c;
            float *to = out + c * out_stride + r;
            __m512 v[WIDTH];
            for (int i = 0; i < WIDTH; i++)
                v[i] = r + i < rows ? _mm512_maskz_loadu_ps(in_mask, from + i * in_stride)
                                    : _mm512_setzero_ps();
            transpose16(v);
            for (int i = 0; i < WIDTH; i++)
                if (c + i < cols) _mm512_mask_storeu_ps(to + i * out_stride, out_mask, v[i]);
        }
}

TARGET static void finish(float *out, const float *acc, float row, const float *column,
                          const float *bias, int64_t n) {
    const __m512 scale = _mm512_set1_ps(row);
    for (int64_t j = 0; j < n; j += WIDTH) {
        const __mmask16 m = lanes_of(n - j);
        __m512 s = scale, v;
        if (column) s = _mm512_mul_ps(s, _mm512_maskz_loadu_ps(m, column + j));
        v = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, acc + j), s);
        if (bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(m, bias + j));
        _mm512_mask_storeu_ps(out + j, m, v);
    }
}

/* `rows` is a constant wherever this is inlined, so that the sums live in registers. */
INLINE_TARGET void tile_of(int rows, float *c, int64_t ldc, const float *a, const float *b,
                           int64_t k, int first) {
    __m512 sum[TILE_ROWS][2];
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
        sum[i][0] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(c + i * ldc);
        sum[i][1] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(c + i * ldc + WIDTH);
    }
    for (int64_t p = 0; p < k; p++) {
        const __m512 b0 = _mm512_loadu_ps(b + p * TILE_COLS);
        const __m512 b1 = _mm512_loadu_ps(b + p * TILE_COLS + WIDTH);
#pragma GCC unroll 14
        for (int i = 0; i < rows; i++) {
            const __m512 x = _mm512_set1_ps(a[i * FP8_TILE_A_STRIDE + p]);
            sum[i][0] = _mm512_fmadd_ps(x, b0, sum[i][0]);
            sum[i][1] = _mm512_fmadd_ps(x, b1, sum[i][1]);
        }
    }
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
        _mm512_storeu_ps(c + i * ldc, sum[i][0]);
        _mm512_storeu_ps(c + i * ldc + WIDTH, sum[i][1]);
    }
}

#define TILE_HEIGHTS(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14)
#define X(rows)                                                                                    \
    TARGET static void tile_##rows(float *c, int64_t ldc, const float *a, const float *b,          \
                                   int64_t k, int first) {                                         \
        tile_of(rows, c, ldc, a, b, k, first);                                                     \
    }
TILE_HEIGHTS(X)
#undef X

static void tile(float *c, int64_t ldc, const float *a, const float *b, int64_t rows, int64_t k,
                 int first) {
    switch (rows) {
#define X(rows)                                                                                    \
    case rows: tile_##rows(c, ldc, a, b, k, first); break;
        TILE_HEIGHTS(X)
#undef X
    }
}

INLINE_TARGET void dot_of(int rows, float *lanes, const float *a, int64_t a_stride, const float *b,
                          int64_t b_stride, int64_t n) {
    __m512 sum[4][4];
#pragma GCC unroll 16
    for (int i = 0; i < rows * 4; i++) sum[i / 4][i % 4] = _mm512_loadu_ps(lanes + i * WIDTH);
    for (int64_t p = 0; p < n; p += WIDTH) {
        __m512 y[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) y[j] = _mm512_loadu_ps(b + j * b_stride + p);
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            const __m512 x = _mm512_loadu_ps(a + i * a_stride + p);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) sum[i][j] = _mm512_fmadd_ps(x, y[j], sum[i][j]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows * 4; i++) _mm512_storeu_ps(lanes + i * WIDTH, sum[i / 4][i % 4]);
}

TARGET static void dot(float *lanes, const float *a, int64_t a_stride, int64_t rows, const float *b,
                       int64_t b_stride, int64_t n) {
    switch (rows) {
    case 1: dot_of(1, lanes, a, a_stride, b, b_stride, n); break;
    case 2: dot_of(2, lanes, a, a_stride, b, b_stride, n); break;
    case 3: dot_of(3, lanes, a, a_stride, b, b_stride, n); break;
    default: dot_of(4, lanes, a, a_stride, b, b_stride, n);
    }
}

const fp8_simd fp8_simd_avx512 = {
    .name = "avx512",
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
#else
typedef int fp8_simd_avx512_is_for_x86_64; /* ISO C wants a declaration in a file */
#endif
