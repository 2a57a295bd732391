/* Row primitives for AVX2 with FMA and F16C: 8 floats at a time; tails go through a small buffer.
 * Built for any x86-64 (target attributes), entered where simd.c allows. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "quant/simd.h"

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define INLINE_TARGET TARGET __attribute__((always_inline)) static inline

enum { WIDTH = 8, TILE_ROWS = 6, TILE_COLS = 16 }; /* 12 sums, 2 of b, 1 of a: 15 of 16 registers */

/* ---- conversions ----------------------------------------------------------------------------- */

INLINE_TARGET __m256 from_bf16(const uint16_t *in) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i_u *)in));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

INLINE_TARGET __m256 from_f16(const uint16_t *in) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i_u *)in));
}

/* An E4M3 code as an F16 2^8 too small: the exponent moves up one bit, the sign to the top; only
 * NaN needs care. */
INLINE_TARGET __m256 from_e4m3(const uint8_t *in) {
    const __m128i codes = _mm_loadl_epi64((const __m128i_u *)in);
    const __m128i wide = _mm_slli_epi16(_mm_cvtepi8_epi16(codes), 7); /* sign in 15, 14 */
    const __m128i nan_bits = _mm_set1_epi16((short)0xbf80);
    const __m128i half = _mm_and_si128(wide, nan_bits);
    const __m128i signless = _mm_or_si128(half, _mm_set1_epi16((short)0x8000));
    const __m128i nan = _mm_cmpeq_epi16(signless, nan_bits);
    const __m128i fixed =
        _mm_add_epi16(half, _mm_and_si128(nan, _mm_set1_epi16(0x7e00 - 0x3f80)));
    return _mm256_mul_ps(_mm256_cvtph_ps(fixed), _mm256_set1_ps(256.0f));
}

INLINE_TARGET __m256 from_e5m2(const uint8_t *in) {
    const __m128i wide = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i_u *)in));
    return _mm256_cvtph_ps(_mm_slli_epi16(wide, 8));
}

/* The low halves of eight 32-bit lanes, in order. */
INLINE_TARGET __m128i pack16(__m256i x) {
    return _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

INLINE_TARGET __m128i to_bf16(__m256 x) {
    const __m256i u = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return pack16(_mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, nan), 16));
}

/* As fp8_f32_to_f16: a NaN keeps only its sign. */
INLINE_TARGET __m128i to_f16(__m256 x) {
    const __m256 sign = _mm256_and_ps(x, _mm256_set1_ps(-0.0f));
    const __m256 quiet = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    return _mm256_cvtps_ph(_mm256_blendv_ps(x, _mm256_or_ps(sign, quiet), nan),
                           _MM_FROUND_TO_NEAREST_INT);
}

/* One loop for every narrow type: whole vectors from `in`, the tail from a zeroed copy of it. */
#define DEFINE_WIDEN(type, element)                                                                \
    TARGET static void widen_##type(float *out, const element *in, int64_t n) {                    \
        int64_t i = 0;                                                                             \
        for (; i + WIDTH <= n; i += WIDTH) _mm256_storeu_ps(out + i, from_##type(in + i));         \
        if (i < n) {                                                                               \
            element tail[2 * WIDTH] = {0};                                                         \
            float values[WIDTH];                                                                   \
            memcpy(tail, in + i, (size_t)(n - i) * sizeof *in);                                    \
            _mm256_storeu_ps(values, from_##type(tail));                                           \
            memcpy(out + i, values, (size_t)(n - i) * sizeof *out);                                \
        }                                                                                          \
    }
DEFINE_WIDEN(bf16, uint16_t)
DEFINE_WIDEN(f16, uint16_t)
DEFINE_WIDEN(e4m3, uint8_t)
DEFINE_WIDEN(e5m2, uint8_t)

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
    int64_t i = 0;

    if (to == FP8_DTYPE_F32) {
        memcpy(out, in, (size_t)n * sizeof *in);
        return;
    }
    for (; i + WIDTH <= n; i += WIDTH) {
        const __m256 x = _mm256_loadu_ps(in + i);
        _mm_storeu_si128((__m128i_u *)(half + i), to == FP8_DTYPE_BF16 ? to_bf16(x) : to_f16(x));
    }
    if (i < n) {
        float tail[WIDTH] = {0};
        __m128i packed;
        memcpy(tail, in + i, (size_t)(n - i) * sizeof *in);
        packed = to == FP8_DTYPE_BF16 ? to_bf16(_mm256_loadu_ps(tail))
                                      : to_f16(_mm256_loadu_ps(tail));
        memcpy(half + i, &packed, (size_t)(n - i) * sizeof *half);
    }
}

/* See fp8_from_f32, whose steps these are. All magnitudes are below 2^31, so signed compares do. */
INLINE_TARGET __m256i encode8(__m256 x, __m256 scale, int drop, int rebias, uint32_t max,
                              uint32_t min_normal, uint32_t magic, int nan_code) {
    const __m256i top = _mm256_set1_epi32((int)0x80000000u);
    const __m256i bits = _mm256_castps_si256(_mm256_mul_ps(x, scale));
    const __m256i sign = _mm256_and_si256(_mm256_castps_si256(_mm256_xor_ps(x, scale)), top);
    const __m256i magnitude = _mm256_andnot_si256(top, bits);
    const __m256i nan = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7f800000));
    const __m256i u = _mm256_min_epi32(magnitude, _mm256_set1_epi32((int)max));
    const __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)min_normal), u);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, drop), _mm256_set1_epi32(1));
    const __m256i half = _mm256_set1_epi32((1 << (drop - 1)) - 1);
    const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, half));
    const __m256i spacing = _mm256_set1_epi32((int)magic);
    const __m256 sum = _mm256_add_ps(_mm256_castsi256_ps(u), _mm256_castsi256_ps(spacing));
    const __m256i normal =
        _mm256_sub_epi32(_mm256_srli_epi32(rounded, drop), _mm256_set1_epi32(rebias));
    const __m256i subnormal = _mm256_sub_epi32(_mm256_castps_si256(sum), spacing);
    __m256i code = _mm256_blendv_epi8(normal, subnormal, small);
    code = _mm256_blendv_epi8(code, _mm256_set1_epi32(nan_code), nan);
    return _mm256_or_si256(code, _mm256_srli_epi32(sign, 24));
}

INLINE_TARGET __m128i encode_e4m3(__m256 x, __m256 scale) {
    return pack16(encode8(x, scale, 20, 120 << 3, 0x43e00000u, 0x3c800000u, 0x46800000u, 0x7f));
}

INLINE_TARGET __m128i encode_e5m2(__m256 x, __m256 scale) {
    return pack16(encode8(x, scale, 21, 112 << 2, 0x47600000u, 0x38800000u, 0x43000000u, 0x7e));
}

#define DEFINE_ENCODE(type)                                                                        \
    TARGET static void encode_all_##type(uint8_t *codes, const float *x, int64_t n, float scale) { \
        const __m256 s = _mm256_set1_ps(scale);                                                    \
        int64_t i = 0;                                                                             \
        for (; i + WIDTH <= n; i += WIDTH) {                                                       \
            const __m128i c = encode_##type(_mm256_loadu_ps(x + i), s);                            \
            _mm_storel_epi64((__m128i_u *)(codes + i), _mm_packus_epi16(c, c));                    \
        }                                                                                          \
        if (i < n) {                                                                               \
            float tail[WIDTH] = {0};                                                               \
            __m128i c;                                                                             \
            memcpy(tail, x + i, (size_t)(n - i) * sizeof *x);                                      \
            c = encode_##type(_mm256_loadu_ps(tail), s);                                           \
            c = _mm_packus_epi16(c, c);                                                            \
            memcpy(codes + i, &c, (size_t)(n - i));                                                \
        }                                                                                          \
    }
DEFINE_ENCODE(e4m3)
DEFINE_ENCODE(e5m2)

static void encode(uint8_t *codes, fp8_dtype to, const float *x, int64_t n, float scale) {
    if (to == FP8_DTYPE_E4M3) encode_all_e4m3(codes, x, n, scale);
    else encode_all_e5m2(codes, x, n, scale);
}

TARGET static float amax_bf16(const void *x, int64_t n, uint32_t *nonfinite) {
    enum { HALVES = 2 * WIDTH };
    const __m256i inf = _mm256_set1_epi16(0x7f80), abs = _mm256_set1_epi16(0x7fff);
    __m256i most = _mm256_setzero_si256();
    uint16_t lanes[HALVES], tail[HALVES] = {0};
    uint32_t bits = 0, finite = 0;
    float value;

    for (int64_t i = 0; i < n; i += HALVES) {
        const int whole = i + HALVES <= n;
        const char *from = (const char *)x + 2 * i;
        __m256i u, below;
        if (!whole) memcpy(tail, from, (size_t)(n - i) * sizeof *tail);
        u = _mm256_and_si256(_mm256_loadu_si256((const __m256i_u *)(whole ? from : (char *)tail)),
                             abs);
        below = _mm256_cmpgt_epi16(inf, u);
        most = _mm256_max_epi16(most, _mm256_and_si256(u, below));
        finite += (uint32_t)__builtin_popcount((unsigned)_mm256_movemask_epi8(below)) / 2;
    }
    *nonfinite += (uint32_t)((n + HALVES - 1) / HALVES * HALVES) - finite;
    _mm256_storeu_si256((__m256i_u *)lanes, most);
    for (int l = 0; l < HALVES; l++) bits = lanes[l] > bits ? lanes[l] : bits;
    bits <<= 16;
    memcpy(&value, &bits, sizeof value);
    return value;
}

TARGET static float amax(const float *x, int64_t n, uint32_t *nonfinite) {
    const __m256i inf = _mm256_set1_epi32(0x7f800000), abs = _mm256_set1_epi32(0x7fffffff);
    __m256i most = _mm256_setzero_si256();
    uint32_t lanes[WIDTH], bits = 0, finite = 0;
    float value, tail[WIDTH] = {0};

    for (int64_t i = 0; i < n; i += WIDTH) {
        const int whole = i + WIDTH <= n;
        __m256i u, below;
        if (!whole) memcpy(tail, x + i, (size_t)(n - i) * sizeof *x);
        u = _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(whole ? x + i : tail)), abs);
        below = _mm256_cmpgt_epi32(inf, u);
        most = _mm256_max_epi32(most, _mm256_and_si256(u, below));
        finite += (uint32_t)__builtin_popcount(
            (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(below)));
    }
    /* The zeros that fill the tail were counted as finite. */
    *nonfinite += (uint32_t)((n + WIDTH - 1) / WIDTH * WIDTH) - finite;
    _mm256_storeu_si256((__m256i_u *)lanes, most);
    for (int l = 0; l < WIDTH; l++) bits = lanes[l] > bits ? lanes[l] : bits;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* ---- matrix product -------------------------------------------------------------------------- */

/* 2x2 exchanges of 32, 64 and 128 bits. */
INLINE_TARGET void transpose8(__m256 r[WIDTH]) {
    __m256 t[WIDTH];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            const __m256d lo = _mm256_castps_pd(t[i + j]), hi = _mm256_castps_pd(t[i + 2 + j]);
            r[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(lo, hi));
            r[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(lo, hi));
        }
    for (int j = 0; j < 4; j++) {
        t[j] = _mm256_permute2f128_ps(r[j], r[4 + j], 0x20);
        t[4 + j] = _mm256_permute2f128_ps(r[j], r[4 + j], 0x31);
    }
    for (int i = 0; i < 8; i++) r[i] = t[i];
}

TARGET static void transpose_whole(float *out, int64_t out_stride, const float *in,
                                   int64_t in_stride) {
    __m256 v[WIDTH];
    for (int i = 0; i < WIDTH; i++) v[i] = _mm256_loadu_ps(in + i * in_stride);
    transpose8(v);
    for (int i = 0; i < WIDTH; i++) _mm256_storeu_ps(out + i * out_stride, v[i]);
}

static void transpose(float *out, int64_t out_stride, const float *in, int64_t in_stride,
                      int64_t rows, int64_t cols) {
    for (int64_t r = 0; r < rows; r += WIDTH)
        for (int64_t c = 0; c < cols; c += WIDTH) {
            const float *from = in + r * in_stride + c;
            float *to = out + c * out_stride + r;
            if (r + WIDTH <= rows && c + WIDTH <= cols) {
                transpose_whole(to, out_stride, from, in_stride);
                continue;
            }
            for (int64_t j = 0; j < WIDTH && c + j < cols; j++)
                for (int64_t i = 0; i < WIDTH && r + i < rows; i++)
                    to[j * out_stride + i] = from[i * in_stride + j];
        }
}

TARGET static void finish(float *out, const float *acc, float row, const float *column,
                          const float *bias, int64_t n) {
    for (int64_t j = 0; j < n; j++) out[j] = acc[j] * (column ? row * column[j] : row);
    if (!bias) return;
    for (int64_t j = 0; j < n; j++) out[j] = out[j] + bias[j];
}

/* `rows` is a constant wherever this is inlined, so that the sums live in registers. */
INLINE_TARGET void tile_of(int rows, float *c, int64_t ldc, const float *a, const float *b,
                           int64_t k, int first) {
    __m256 sum[TILE_ROWS][2];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        sum[i][0] = first ? _mm256_setzero_ps() : _mm256_loadu_ps(c + i * ldc);
        sum[i][1] = first ? _mm256_setzero_ps() : _mm256_loadu_ps(c + i * ldc + WIDTH);
    }
    for (int64_t p = 0; p < k; p++) {
        const __m256 b0 = _mm256_loadu_ps(b + p * TILE_COLS);
        const __m256 b1 = _mm256_loadu_ps(b + p * TILE_COLS + WIDTH);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            const __m256 x = _mm256_broadcast_ss(a + i * FP8_TILE_A_STRIDE + p);
            sum[i][0] = _mm256_fmadd_ps(x, b0, sum[i][0]);
            sum[i][1] = _mm256_fmadd_ps(x, b1, sum[i][1]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        _mm256_storeu_ps(c + i * ldc, sum[i][0]);
        _mm256_storeu_ps(c + i * ldc + WIDTH, sum[i][1]);
    }
}

TARGET static void tile(float *c, int64_t ldc, const float *a, const float *b, int64_t rows,
                        int64_t k, int first) {
    switch (rows) {
    case 1: tile_of(1, c, ldc, a, b, k, first); break;
    case 2: tile_of(2, c, ldc, a, b, k, first); break;
    case 3: tile_of(3, c, ldc, a, b, k, first); break;
    case 4: tile_of(4, c, ldc, a, b, k, first); break;
    case 5: tile_of(5, c, ldc, a, b, k, first); break;
    default: tile_of(6, c, ldc, a, b, k, first);
    }
}

/* One row of A with four of B; the 16 lanes of a sum are two registers. */
TARGET static void dot(float *lanes, const float *a, int64_t a_stride, int64_t rows, const float *b,
                       int64_t b_stride, int64_t n) {
    for (int64_t i = 0; i < rows; i++) {
        float *out = lanes + i * 4 * FP8_DOT_LANES;
        __m256 sum[8];
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) sum[j] = _mm256_loadu_ps(out + j * WIDTH);
        for (int64_t p = 0; p < n; p += FP8_DOT_LANES) {
            const __m256 x0 = _mm256_loadu_ps(a + i * a_stride + p);
            const __m256 x1 = _mm256_loadu_ps(a + i * a_stride + p + WIDTH);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                const float *y = b + j * b_stride + p;
                sum[2 * j] = _mm256_fmadd_ps(x0, _mm256_loadu_ps(y), sum[2 * j]);
                sum[2 * j + 1] = _mm256_fmadd_ps(x1, _mm256_loadu_ps(y + WIDTH), sum[2 * j + 1]);
            }
        }
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) _mm256_storeu_ps(out + j * WIDTH, sum[j]);
    }
}

const fp8_simd fp8_simd_avx2 = {
    .name = "avx2",
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
typedef int fp8_simd_avx2_is_for_x86_64; /* ISO C wants a declaration in a file */
#endif
