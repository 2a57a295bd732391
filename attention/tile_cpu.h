/* attention/tile_cpu.h - private: one tile of query rows against one tile of keys, on one CPU core.
 *
 * Everything is transposed so that a vector runs over query rows: scores s[key][row] and outputs
 * o[d][row] are sums of (K or V element, broadcast) * (row vector), the softmax works lane by lane,
 * and nothing is ever summed across lanes. K and V stay in their natural layout, so decoding (few
 * rows) pays no transpose. A row's result does not depend on the rows beside it. */
#ifndef FP8_ATTENTION_TILE_CPU_H
#define FP8_ATTENTION_TILE_CPU_H
#include <stdint.h>

#include "core/dtype.h"

enum { TILE_ROWS = 64, TILE_KEYS = 64, TILE_ALIGN = 64 };

typedef struct attention_tile {
    int64_t rows, d_qk, d_v; /* rows in use, <= TILE_ROWS */
    float score_scale;       /* scale * q_descale * k_descale */
    int quantize_p;
    float *q; /* [d_qk, TILE_ROWS] */
    float *k; /* [TILE_KEYS, d_qk] */
    float *v; /* [TILE_KEYS, d_v] */
    float *s; /* [TILE_KEYS, TILE_ROWS] scores, then exp(score - max) or its E4M3 rounding * 2^8 */
    float *o; /* [d_v, TILE_ROWS] running sum of p V */
    float *max, *sum, *alpha; /* [TILE_ROWS] running maximum and sum; the rescale of a step */
    int32_t *lo, *hi;         /* [TILE_ROWS] keys [lo, hi) are seen; rows not in use: lo = hi */
    /* Changes a step's scores before their softmax: bias, mask, softcap. May be NULL. */
    void (*adjust)(const void *ctx, struct attention_tile *t, int64_t first, int64_t keys);
    const void *adjust_ctx;
} attention_tile;

typedef struct attention_tile_kernels {
    const char *name;
    /* out[i] = value of in[i]; F32, BF16, F16 or E4M3 (codes, without a descale) */
    void (*widen)(float *out, const void *in, fp8_dtype dtype, int64_t n);
    /* Takes in keys [first, first + keys), keys <= TILE_KEYS, of which t->k holds rows 0..keys-1.
     * raise_max updates t->max only. step is a step of the online softmax: t->max, sum and o. */
    void (*raise_max)(attention_tile *t, int64_t first, int64_t keys);
    void (*step)(attention_tile *t, int64_t first, int64_t keys);
} attention_tile_kernels;

/* What this processor runs, the fastest first: AVX-512, AVX2 with FMA, plain vectors of four; NULL
 * from the end of the list on. Index 0 is always there. */
const attention_tile_kernels *attention_tile_kernels_at(int32_t index);
#endif
