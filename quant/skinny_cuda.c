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

static fp8_status make_maps(skinny_args *a, const fp8_gemm *g, const skinny_tile *t) {
    fp8_tensor_map_encode encode = NULL;
    fp8_status st;

    FP8_TRY(fp8_tensor_map_encoder(&encode));
    FP8_TRY(skinny_make_map(encode, &a->w_map, "B", g->b, CU_TENSOR_MAP_DATA_TYPE_UINT8, g->n, g->k,
                            g->ldb, t->rows, SKINNY_BLOCK_K, CU_TENSOR_MAP_SWIZZLE_128B));
    FP8_TRY(skinny_make_map(encode, &a->x_map, "A", g->a, CU_TENSOR_MAP_DATA_TYPE_UINT8, g->m, g->k,
                            g->lda, t->tokens, SKINNY_BLOCK_K, CU_TENSOR_MAP_SWIZZLE_128B));
    /* NOTE: a copied box writes in steps of 16 bytes: past a row's end where n is off them. */
    a->d_by_copy = t->splits == 1 && g->d_dtype == FP8_DTYPE_BF16 && g->n % 8 == 0 &&
                   on_vector(g->d, 2 * g->ldd);
    if (a->d_by_copy)
        FP8_TRY(skinny_make_map(encode, &a->d_map, "D", g->d, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                g->m, g->n, 2 * g->ldd, t->tokens, SKINNY_ROW_STEP,
                                CU_TENSOR_MAP_SWIZZLE_NONE));
done:
    return st;
}

/* ---- run ------------------------------------------------------------------------------------- */

/* A cluster's blocks exchange their sums once. */
static fp8_status check_tile(const skinny_tile *t, const skinny_args *a) {
    if (t->tokens >= a->tokens && t->rows >= SKINNY_MIN_ROWS && t->rows <= SKINNY_ROWS &&
        t->rows % SKINNY_ROW_STEP == 0 && t->ahead >= 0 && t->stages >= 1 &&
        t->stages <= SKINNY_MAX_STAGES && t->splits >= 1 && t->splits <= SKINNY_MAX_SPLITS &&
        t->splits <= a->units && t->clusters >= 1 && t->clusters <= a->tiles &&
        (t->splits == 1 || t->clusters == a->tiles))
        return FP8_OK;
    return FP8_FAIL(FP8_EINVAL,
                    "skinny gemm: %d tokens, %d rows, %d splits, %d clusters, %d stages for %d "
                    "tokens, %d tiles, %d units of K",
                    t->tokens, t->rows, t->splits, t->clusters, t->stages, a->tokens, a->tiles,
                    a->units);
}

fp8_status skinny_run_tile(fp8_device *d, const fp8_gemm *g, const skinny_tile *t) {
    skinny_args a = {.d = g->d, .bias = g->bias, .residual = g->residual, .ldr = g->ldr,
                     .residual_dtype = g->residual_dtype, .a_descale = g->a_descale,
                     .b_descale = g->b_descale, .ldd = g->ldd, .tokens = (int32_t)g->m,
                     .n = (int32_t)g->n, .rows = t->rows,
                     .tiles = t->rows > 0 ? (int32_t)((g->n + t->rows - 1) / t->rows) : 0,
                     .units = (int32_t)((g->k + SKINNY_BLOCK_K - 1) / SKINNY_BLOCK_K),
                     .splits = t->splits, .stages = t->stages, .ahead = t->ahead,
                     .lead = t->lead, .stage_bytes = (int32_t)skinny_stage_bytes(t),
                     .box_bytes = (int32_t)skinny_box_bytes(t),
                     .a_vector = g->a_descale_count > 1, .b_vector = g->b_descale_count > 1,
                     .early = g->launch == FP8_LAUNCH_OVERLAP, .alpha = g->alpha,
                     .d_dtype = g->d_dtype, .bias_dtype = g->bias_dtype};
    fp8_status st;

    FP8_TRY(skinny_check(d, g));
    if (skinny_is_wide(g)) {
        st = FP8_FAIL(FP8_EINVAL, "skinny gemm: no more than a bias, and a residual of up to %d "
                      "tokens, behind the sum, or a wide tile", (int)SKINNY_RESIDUAL_TOKENS);
        goto done;
    }
    FP8_TRY(check_tile(t, &a));
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
    if (skinny_is_wide(g) || skinny_is_long(g)) {
        wide = wide_choose(g, sms);
        FP8_TRY(wide_run_tile(d, g, &wide));
        goto done;
    }
    t = skinny_choose(g->m, g->n, g->k, sms);
    FP8_TRY(skinny_run_tile(d, g, &t));
done:
    return st;
}
