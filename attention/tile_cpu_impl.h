/* attention/tile_cpu_impl.h - private: the body of tile_cpu.c, once an instruction set. Before each
 * inclusion: NAME(x), LANES, SPREAD(x), MUL_ADD(a, b, c), LANE_MAX(a, b) (b where a is NaN) and
 * BLOCK_M, rows of the register block: 2 * BLOCK_M accumulators, 2 vectors and a broadcast fit. */

#define VF NAME(vec_f32)
#define VU NAME(vec_u32)
#define VI NAME(vec_i32)
typedef float VF __attribute__((vector_size(4 * LANES), may_alias));
typedef uint32_t VU __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t VI __attribute__((vector_size(4 * LANES), may_alias));

static ALWAYS_INLINE VF NAME(pick)(VI mask, VF yes, VF no) {
    return (VF)(((VI)yes & mask) | ((VI)no & ~mask));
}

static void NAME(widen)(float *out, const void *in, fp8_dtype dtype, int64_t n) {
    if (dtype == FP8_DTYPE_F32) {
        memcpy(out, in, (size_t)n * sizeof *out);
    } else if (dtype == FP8_DTYPE_BF16) {
        const uint16_t *x = in;
        for (int64_t i = 0; i < n; i++) out[i] = fp8_bf16_to_f32(x[i]);
    } else if (dtype == FP8_DTYPE_F16) {
        const uint16_t *x = in;
        for (int64_t i = 0; i < n; i++) out[i] = fp8_f16_to_f32(x[i]);
    } else {
        const uint8_t *x = in;
        for (int64_t i = 0; i < n; i++) out[i] = e4m3_value(x[i]);
    }
}

/* exp(x) for x <= 0 or NaN, within 2 ulp; below the normal range 0. x = n ln2 + r, |r| <= 0.35; the
 * series to r^7/7! leaves r^8/8! < 6e-9. NaN passes through the polynomial. */
static ALWAYS_INLINE VF NAME(exp)(VF x) {
    const VF zero = {0};
    const VF rounder = zero + 12582912.0f; /* 1.5 * 2^23: x + rounder ends in an integer */
    const VF t = MUL_ADD(x, zero + 1.44269504f, rounder), n = t - rounder;
    const VF r = MUL_ADD(n, zero + 2.12194440e-4f, MUL_ADD(n, zero - 0.693359375f, x));
    const VU power = ((VU)t << 23) + 0x3f800000u;
    VF p = zero + 1.98412698e-4f;
    p = MUL_ADD(p, r, zero + 1.38888889e-3f);
    p = MUL_ADD(p, r, zero + 8.33333333e-3f);
    p = MUL_ADD(p, r, zero + 4.16666667e-2f);
    p = MUL_ADD(p, r, zero + 1.66666667e-1f);
    p = MUL_ADD(p, r, zero + 0.5f);
    p = MUL_ADD(p, r, zero + 1.0f);
    p = MUL_ADD(p, r, zero + 1.0f);
    return (VF)((VI)(p * (VF)power) & ~(VI)(x < zero - 87.3f));
}

/* x in [0, 448] to the nearest E4M3 value, ties to even: three mantissa bits, or below 2^-6 a
 * multiple of 2^-9, which is the spacing of floats at 2^14. */
static ALWAYS_INLINE VF NAME(round_e4m3)(VF x) {
    const VF zero = {0}, spacer = zero + 16384.0f;
    const VU u = (VU)x, normal = (u + 0x7ffffu + ((u >> 20) & 1u)) & 0xfff00000u;
    return NAME(pick)((VI)(x < zero + 0.015625f), (x + spacer) - spacer, (VF)normal);
}

/* c[i][r] = c[i][r] * alpha[r] + sum_k a[i * a_i + k * a_k] * b[k][r] for i < block and `vecs`
 * vectors of r; alpha NULL: the sum alone. b and c have rows of TILE_ROWS. Summing a tile apart
 * before it joins c keeps the error of long sequences at keys / TILE_KEYS + TILE_KEYS roundings. */
static ALWAYS_INLINE void NAME(block)(float *c, const float *a, int64_t a_i, int64_t a_k,
                                      const float *b, int64_t k, const float *alpha, int block,
                                      int vecs) {
    VF acc[BLOCK_M][2];
    for (int i = 0; i < block; i++)
        for (int j = 0; j < vecs; j++) acc[i][j] = (VF){0};
    for (int64_t kk = 0; kk < k; kk++) {
        for (int i = 0; i < block; i++) {
            const VF x = SPREAD(a[i * a_i + kk * a_k]);
            for (int j = 0; j < vecs; j++)
                acc[i][j] = MUL_ADD(x, *(const VF *)(b + kk * TILE_ROWS + j * LANES), acc[i][j]);
        }
    }
    for (int i = 0; i < block; i++)
        for (int j = 0; j < vecs; j++) {
            VF *out = (VF *)(c + i * TILE_ROWS + j * LANES);
            if (alpha) *out = MUL_ADD(*out, *(const VF *)(alpha + j * LANES), acc[i][j]);
            else *out = acc[i][j];
        }
}

static ALWAYS_INLINE void NAME(columns)(float *c, const float *a, int64_t a_i, int64_t a_k,
                                        const float *b, int64_t m, int64_t k, const float *alpha,
                                        int vecs) {
    int64_t i = 0;
    for (; i + BLOCK_M <= m; i += BLOCK_M)
        NAME(block)(c + i * TILE_ROWS, a + i * a_i, a_i, a_k, b, k, alpha, BLOCK_M, vecs);
    for (; i < m; i++) NAME(block)(c + i * TILE_ROWS, a + i * a_i, a_i, a_k, b, k, alpha, 1, vecs);
}

/* The product over all rows in use, two vectors at a time. */
static ALWAYS_INLINE void NAME(product)(float *c, const float *a, int64_t a_i, int64_t a_k,
                                        const float *b, int64_t m, int64_t k, const float *alpha,
                                        int64_t rows) {
    int64_t r = 0;
    for (; r + LANES < rows; r += 2 * LANES)
        NAME(columns)(c + r, a, a_i, a_k, b + r, m, k, alpha ? alpha + r : NULL, 2);
    if (r < rows) NAME(columns)(c + r, a, a_i, a_k, b + r, m, k, alpha ? alpha + r : NULL, 1);
}

/* s[key][row] = scaled score, or -Inf where the row does not see the key. */
static void NAME(scores)(attention_tile *t, int64_t first, int64_t keys) {
    const VF minus_inf = (VF){0} - INFINITY;
    NAME(product)(t->s, t->k, t->d_qk, 1, t->q, keys, t->d_qk, NULL, t->rows);
    for (int64_t r = 0; r < t->rows; r += LANES) {
        const VI lo = *(const VI *)(t->lo + r) - (int32_t)first;
        const VI hi = *(const VI *)(t->hi + r) - (int32_t)first;
        for (int64_t j = 0; j < keys; j++) {
            VF *s = (VF *)(t->s + j * TILE_ROWS + r);
            const VI at = (VI){0} + (int32_t)j;
            *s = NAME(pick)((VI)(at >= lo) & (VI)(at < hi), *s * t->score_scale, minus_inf);
        }
    }
    if (t->adjust) t->adjust(t->adjust_ctx, t, first, keys);
}

static void NAME(raise_max)(attention_tile *t, int64_t first, int64_t keys) {
    NAME(scores)(t, first, keys);
    for (int64_t r = 0; r < t->rows; r += LANES) {
        VF *max = (VF *)(t->max + r);
        for (int64_t j = 0; j < keys; j++)
            *max = LANE_MAX(*(const VF *)(t->s + j * TILE_ROWS + r), *max);
    }
}

/* Scores -> p in place for one vector of rows, with the running maximum and sum. */
static ALWAYS_INLINE void NAME(softmax)(attention_tile *t, int64_t r, int64_t keys, int quantize) {
    const VF minus_inf = (VF){0} - INFINITY;
    VF *s = (VF *)(t->s + r), *max = (VF *)(t->max + r), *sum = (VF *)(t->sum + r);
    const int64_t stride = TILE_ROWS / LANES;
    VF top = *max, total = {0}, base;

    for (int64_t j = 0; j < keys; j++) top = LANE_MAX(s[j * stride], top);
    base = NAME(pick)((VI)(top == minus_inf), (VF){0}, top); /* nothing seen yet: exp(-Inf) = 0 */
    for (int64_t j = 0; j < keys; j++) {
        const VF p = NAME(exp)(s[j * stride] - base);
        total += p;
        s[j * stride] = quantize ? NAME(round_e4m3)(p * 256.0f) : p;
    }
    *(VF *)(t->alpha + r) = NAME(exp)(*max - base);
    *sum = MUL_ADD(*sum, *(const VF *)(t->alpha + r), total);
    *max = top;
}

static void NAME(step)(attention_tile *t, int64_t first, int64_t keys) {
    NAME(scores)(t, first, keys);
    for (int64_t r = 0; r < t->rows; r += LANES) {
        if (t->quantize_p) NAME(softmax)(t, r, keys, 1);
        else NAME(softmax)(t, r, keys, 0);
    }
    NAME(product)(t->o, t->v, 1, t->d_v, t->s, t->d_v, keys, t->alpha, t->rows);
}

#undef VF
#undef VU
#undef VI
#undef NAME
#undef LANES
#undef SPREAD
#undef MUL_ADD
#undef LANE_MAX
#undef BLOCK_M
