/* The host half of the skinny product by wide tiles (skinny_wide.cu): checks and tensor maps. */
#include "core/cuda_check.h"
#include "quant/skinny_cuda.h"
#include "quant/skinny_wide_cuda.h"

static fp8_status check_tile(const wide_tile *t, const wide_args *a) {
    if (wide_is_compiled(t) && t->tokens >= a->tokens && t->stages >= 1 &&
        t->stages <= WIDE_MAX_STAGES && t->x_stages >= 1 && t->x_stages <= t->stages &&
        t->splits >= 1 && t->splits <= WIDE_MAX_SPLITS && t->splits <= a->units &&
        t->lead >= 0 && wide_sums_bytes(t) <= wide_ring_bytes(t) &&
        (!a->gated || (t->splits == 1 && wide_gates(t))))
        return FP8_OK;
    return FP8_FAIL(FP8_EINVAL,
                    "skinny gemm: a tile of %d tokens, %d rows, %d splits, %d and %d stages for %d "
                    "tokens, %d units of K",
                    t->tokens, t->rows, t->splits, t->stages, t->x_stages, a->tokens, a->units);
}

static int64_t columns_of(const fp8_gemm *g) {
    return fp8_gemm_is_gated(g->activation) ? g->n / 2 : g->n;
}

/* Do rows of D start where four columns can be stored at once? */
static int stores_fours(const fp8_gemm *g) {
    const uintptr_t step = g->d_dtype == FP8_DTYPE_BF16 ? 8 : 4;
    return (g->d_dtype == FP8_DTYPE_BF16 || g->d_dtype == FP8_DTYPE_E4M3) &&
           columns_of(g) % 4 == 0 && g->ldd % 4 == 0 && (uintptr_t)g->d % step == 0;
}

fp8_status wide_run_tile(fp8_device *d, const fp8_gemm *g, const wide_tile *t) {
    wide_args a = {.d = g->d, .bias = g->bias, .residual = g->residual,
                   .a_descale = g->a_descale, .b_descale = g->b_descale, .d_scale = g->d_scale,
                   .d_amax = g->d_amax, .ldd = g->ldd, .ldr = g->ldr, .tokens = (int32_t)g->m,
                   .n = (int32_t)g->n, .columns = (int32_t)columns_of(g),
                   .tiles = t->rows > 0 ? (int32_t)((g->n + t->rows - 1) / t->rows) : 0,
                   .units = (int32_t)((g->k + WIDE_BLOCK_K - 1) / WIDE_BLOCK_K),
                   .splits = t->splits, .stages = t->stages, .x_stages = t->x_stages,
                   .lead = t->lead, .a_vector = g->a_descale_count > 1,
                   .b_vector = g->b_descale_count > 1,
                   .gated = fp8_gemm_is_gated(g->activation), .activation = g->activation,
                   .vectors = stores_fours(g),
                   .early = g->launch == FP8_LAUNCH_OVERLAP, .alpha = g->alpha,
                   .d_dtype = g->d_dtype, .bias_dtype = g->bias_dtype,
                   .residual_dtype = g->residual_dtype};
    fp8_tensor_map_encode encode = NULL;
    fp8_status st;

    FP8_TRY(check_tile(t, &a));
    a.pair_slots = (int32_t)(wide_sums_bytes(t) / WIDE_PAIR_BYTES);
    FP8_TRY(fp8_tensor_map_encoder(&encode));
    FP8_TRY(skinny_make_map(encode, &a.w_map, "B", g->b, CU_TENSOR_MAP_DATA_TYPE_UINT8, g->n, g->k,
                            g->ldb, a.gated ? wide_chunk(t) : t->rows, WIDE_BLOCK_K,
                            CU_TENSOR_MAP_SWIZZLE_128B));
    FP8_TRY(skinny_make_map(encode, &a.x_map, "A", g->a, CU_TENSOR_MAP_DATA_TYPE_UINT8, g->m, g->k,
                            g->lda, t->tokens, WIDE_BLOCK_K, CU_TENSOR_MAP_SWIZZLE_128B));
    if (g->d_amax) FP8_TRY(fp8_device_fill(d, g->d_amax, 0, sizeof *g->d_amax));
    FP8_TRY(wide_launch(d, &a, t, g->launch));
done:
    return st;
}
