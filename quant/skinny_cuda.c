/* The host half of the skinny product (skinny.cu): what it takes, and its tensor maps. */
#include "core/cuda_check.h"
#include "quant/skinny_cuda.h"
#include "quant/skinny_wide.h"

enum { VECTOR = 16 }; /* bytes; what tensor maps ask of addresses and strides */

/* ---- what it takes --------------------------------------------------------------------------- */

static int is_result(fp8_dtype t) {
    return t == FP8_DTYPE_F32 || t == FP8_DTYPE_BF16 || t == FP8_DTYPE_F16 || t == FP8_DTYPE_E4M3;
}

static int on_vector(const void *p, int64_t ld) {
    return (uintptr_t)p % VECTOR == 0 && ld % VECTOR == 0;
}

fp8_status skinny_check(const fp8_device *d, const fp8_gemm *g) {
    const int64_t limit = INT64_C(1) << 30;

    if (fp8_device_place(d) != FP8_PLACE_CUDA || fp8_device_capability(d) != 90)
        return FP8_FAIL(FP8_EUNSUPPORTED, "skinny gemm: %s, expected compute capability 90",
                        fp8_device_name(d));
    if (g->a_dtype != FP8_DTYPE_E4M3 || g->b_dtype != FP8_DTYPE_E4M3 || !is_result(g->d_dtype))
        return FP8_FAIL(FP8_EUNSUPPORTED, "skinny gemm: %s x %s -> %s, expected F8_E4M3 x F8_E4M3",
                        fp8_dtype_name(g->a_dtype), fp8_dtype_name(g->b_dtype),
                        fp8_dtype_name(g->d_dtype));
    if (g->batch > 1 || g->b_is_kn)
        return FP8_FAIL(FP8_EUNSUPPORTED, "skinny gemm: batch %lld, b_is_kn %d",
                        (long long)g->batch, g->b_is_kn);
    if (g->scaling != FP8_GEMM_ROWS)
        return FP8_FAIL(FP8_EUNSUPPORTED, "skinny gemm: descales in blocks");
    if (g->m < 1 || g->m > SKINNY_MAX_TOKENS || g->n < 1 || g->k < 1 || g->n > limit ||
        g->k > limit || g->lda > limit || g->ldb > limit)
        return FP8_FAIL(FP8_EUNSUPPORTED, "skinny gemm: m=%lld n=%lld k=%lld, expected m 1 to %d",
                        (long long)g->m, (long long)g->n, (long long)g->k, SKINNY_MAX_TOKENS);
    if (!on_vector(g->a, g->lda) || !on_vector(g->b, g->ldb))
        return FP8_FAIL(FP8_EUNSUPPORTED,
                        "skinny gemm: a %p, lda %lld, b %p, ldb %lld, expected multiples of %d",
                        g->a, (long long)g->lda, g->b, (long long)g->ldb, VECTOR);
    (void)fp8_device_stream(d); /* makes d current */
    return skinny_available();
}

/* ---- tensor maps ----------------------------------------------------------------------------- */

fp8_status skinny_make_map(fp8_tensor_map_encode encode, CUtensorMap *map, const char *name,
                           const void *x, CUtensorMapDataType type, int64_t rows, int64_t cols,
                           int64_t ld_bytes, int32_t box_rows, int32_t box_cols,
                           CUtensorMapSwizzle swizzle) {
    const cuuint64_t sizes[2] = {(cuuint64_t)cols, (cuuint64_t)rows};
    const cuuint64_t strides[1] = {(cuuint64_t)ld_bytes};
    const cuuint32_t boxes[2] = {(cuuint32_t)box_cols, (cuuint32_t)box_rows}, steps[2] = {1, 1};
    const CUresult e = encode(map, type, 2, (void *)(uintptr_t)x, sizes, strides, boxes, steps,
                              CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                              CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                              CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);

    if (e == CUDA_SUCCESS) return FP8_OK;
    return FP8_FAIL(FP8_ECUDA, "skinny gemm: tensor map of %s [%lld, %lld], rows %lld bytes apart: "
                               "error %d",
                    name, (long long)rows, (long long)cols, (long long)ld_bytes, (int)e);
}

fp8_status skinny_make_gated_map(fp8_tensor_map_encode encode, CUtensorMap *map, const void *b,
                                 int64_t n, int64_t k, int64_t ldb, int32_t rows) {
    const cuuint64_t half = (cuuint64_t)n / 2, stride = (cuuint64_t)ldb;
    const cuuint64_t sizes[4] = {(cuuint64_t)k, SKINNY_GROUP, 2, half / SKINNY_GROUP};
    const cuuint64_t strides[3] = {stride, half * stride, SKINNY_GROUP * stride};
    const cuuint32_t boxes[4] = {SKINNY_BLOCK_K, SKINNY_GROUP, 2,
                                 (cuuint32_t)rows / (2 * SKINNY_GROUP)};
    const cuuint32_t steps[4] = {1, 1, 1, 1};
    const CUresult e = encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 4, (void *)(uintptr_t)b, sizes,
                              strides, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                              CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                              CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);

    if (e == CUDA_SUCCESS) return FP8_OK;
    return FP8_FAIL(FP8_ECUDA, "skinny gemm: tensor map of gate and up [%lld, %lld], rows %lld "
                    "bytes apart: error %d", (long long)n, (long long)k, (long long)ldb, (int)e);
}

static fp8_status make_w_map(fp8_tensor_map_encode encode, CUtensorMap *map, const fp8_gemm *g,
                             const skinny_tile *t) {
    if (t->gated) return skinny_make_gated_map(encode, map, g->b, g->n, g->k, g->ldb, t->rows);
    return skinny_make_map(encode, map, "B", g->b, CU_TENSOR_MAP_DATA_TYPE_UINT8, g->n, g->k,
                           g->ldb, t->rows, SKINNY_BLOCK_K, CU_TENSOR_MAP_SWIZZLE_128B);
}

static fp8_status make_maps(skinny_args *a, const fp8_gemm *g, const skinny_tile *t) {
    fp8_tensor_map_encode encode = NULL;
    fp8_status st;

    FP8_TRY(fp8_tensor_map_encoder(&encode));
    FP8_TRY(make_w_map(encode, &a->w_map, g, t));
    FP8_TRY(skinny_make_map(encode, &a->x_map, "A", g->a, CU_TENSOR_MAP_DATA_TYPE_UINT8, g->m, g->k,
                            g->lda, t->tokens, SKINNY_BLOCK_K, CU_TENSOR_MAP_SWIZZLE_128B));
    /* NOTE: a copied box writes in steps of 16 bytes: past a row's end where n is off them. */
    a->d_by_copy = t->splits == 1 && !t->gated && g->d_dtype == FP8_DTYPE_BF16 && g->n % 8 == 0 &&
                   on_vector(g->d, 2 * g->ldd);
    if (a->d_by_copy)
        FP8_TRY(skinny_make_map(encode, &a->d_map, "D", g->d, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                g->m, g->n, 2 * g->ldd, t->tokens, SKINNY_ROW_STEP,
                                CU_TENSOR_MAP_SWIZZLE_NONE));
done:
    return st;
}

/* Can two columns of D be stored at once? */
static int stores_pairs(const fp8_gemm *g, int32_t columns) {
    const uintptr_t step = g->d_dtype == FP8_DTYPE_BF16 ? 4 : 2;
    return (g->d_dtype == FP8_DTYPE_BF16 || g->d_dtype == FP8_DTYPE_E4M3) && columns % 2 == 0 &&
           g->ldd % 2 == 0 && (uintptr_t)g->d % step == 0;
}

/* ---- run ------------------------------------------------------------------------------------- */

/* A cluster's blocks exchange their sums once. */
static fp8_status check_tile(const skinny_tile *t, const skinny_args *a, int gated) {
    if (t->tokens >= a->tokens && t->rows >= SKINNY_MIN_ROWS && t->rows <= SKINNY_ROWS &&
        t->rows % SKINNY_ROW_STEP == 0 && t->ahead >= 0 && t->bound >= 0 && t->stages >= 1 &&
        t->stages <= SKINNY_MAX_STAGES && t->splits >= 1 && t->splits <= SKINNY_MAX_SPLITS &&
        t->splits <= a->units && t->clusters >= 1 && t->clusters <= a->tiles &&
        (t->splits == 1 || t->clusters == a->tiles) && t->gated == gated &&
        (!gated || (t->tokens <= SKINNY_GATED_TOKENS && t->splits == 1)))
        return FP8_OK;
    return FP8_FAIL(FP8_EINVAL,
                    "skinny gemm: %d tokens, %d rows, %d splits, %d clusters, %d stages, %d ahead, "
                    "bound %d, gated %d for %d tokens, %d tiles, %d units of K, gated %d",
                    t->tokens, t->rows, t->splits, t->clusters, t->stages, t->ahead, t->bound,
                    t->gated, a->tokens, a->tiles, a->units, gated);
}

fp8_status skinny_run_tile(fp8_device *d, const fp8_gemm *g, const skinny_tile *t) {
    const int gated = fp8_gemm_is_gated(g->activation);
    const int32_t bound = t->bound > 0 && t->bound < t->stages ? t->bound : t->stages;
    skinny_args a = {.d = g->d, .bias = g->bias, .residual = g->residual, .ldr = g->ldr,
                     .residual_dtype = g->residual_dtype, .a_descale = g->a_descale,
                     .b_descale = g->b_descale, .d_scale = g->d_scale, .ldd = g->ldd,
                     .tokens = (int32_t)g->m, .rows = t->rows,
                     .columns = (int32_t)(gated ? g->n / 2 : g->n),
                     .activation = g->activation,
                     .tiles = t->rows > 0 ? (int32_t)((g->n + t->rows - 1) / t->rows) : 0,
                     .units = (int32_t)((g->k + SKINNY_BLOCK_K - 1) / SKINNY_BLOCK_K),
                     .splits = t->splits, .stages = t->stages, .ahead = t->ahead,
                     .lead = t->lead, .bound = bound,
                     .paced = bound < t->stages || t->ahead > 0,
                     .stage_bytes = (int32_t)skinny_stage_bytes(t),
                     .box_bytes = (int32_t)skinny_box_bytes(t),
                     .a_vector = g->a_descale_count > 1, .b_vector = g->b_descale_count > 1,
                     .early = g->launch == FP8_LAUNCH_OVERLAP, .alpha = g->alpha,
                     .d_dtype = g->d_dtype, .bias_dtype = g->bias_dtype};
    fp8_status st;

    FP8_TRY(skinny_check(d, g));
    if (skinny_is_wide(g)) {
        st = FP8_FAIL(FP8_EINVAL, "skinny gemm: no more than a bias, and a residual of up to %d "
                      "tokens or a gate of up to %d, behind the sum, or a wide tile",
                      (int)SKINNY_RESIDUAL_TOKENS, (int)SKINNY_GATED_TOKENS);
        goto done;
    }
    a.pairs = stores_pairs(g, a.columns);
    FP8_TRY(check_tile(t, &a, gated));
    FP8_TRY(make_maps(&a, g, t));
    FP8_TRY(skinny_launch(d, &a, t, g->launch));
done:
    return st;
}

fp8_status skinny_run(fp8_device *d, const fp8_gemm *g) {
    skinny_tile t;
    wide_tile wide;
    int sms = 0;
    fp8_status st;

    FP8_TRY(skinny_check(d, g));
    FP8_TRY_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount,
                                        fp8_device_index(d)));
    if (skinny_is_wide(g) || skinny_is_short(g)) {
        wide = wide_choose(g, sms);
        FP8_TRY(wide_run_tile(d, g, &wide));
        goto done;
    }
    t = skinny_choose(g, sms);
    FP8_TRY(skinny_run_tile(d, g, &t));
done:
    return st;
}
