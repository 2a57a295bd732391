/* The flash backend: our FP8 attention for Hopper (flash.cu). A run writes V transposed into the
 * workspace (flash_v.cu), then attends. Lengths are read on the device; what is fixed here are the
 * tensor maps, which also keep every copy inside the buffers. */
#include <cudaTypedefs.h>
#include <stdlib.h>
#include <string.h>

#include "attention/flash.h"
#include "core/cuda_check.h"

enum {
    ALIGN = 256,    /* bytes; of the counter and of V transposed in the workspace */
    VECTOR = 16,    /* bytes; what tensor maps ask of addresses and strides, and stores of O */
    SWIZZLE = 128,  /* bytes; widest box a swizzled copy takes */
    BAND_BYTES = 16 << 20 /* K and V that are worked on at once: a good third of the H200's L2 */
};

typedef struct flash_state {
    PFN_cuTensorMapEncodeTiled_v12000 encode;
    int32_t num_sms;
    flash_params params; /* what every run has in common */
} flash_state;

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* ---- plan ------------------------------------------------------------------------------------ */

/* cuTensorMapEncodeTiled through the runtime, so that libcuda is not linked. */
static fp8_status find_encode(PFN_cuTensorMapEncodeTiled_v12000 *out) {
    enum cudaDriverEntryPointQueryResult found;
    void *f = NULL;
    fp8_status st = FP8_OK;

#if CUDART_VERSION >= 12050
    FP8_TRY_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000,
                                                  cudaEnableDefault, &found));
#else
    FP8_TRY_CUDA(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &f, cudaEnableDefault, &found));
#endif
    if (found != cudaDriverEntryPointSuccess || !f)
        st = FP8_FAIL(FP8_EUNSUPPORTED, "the driver has no cuTensorMapEncodeTiled");
    *out = (PFN_cuTensorMapEncodeTiled_v12000)f;
done:
    return st;
}

static void fill_params(flash_params *a, const fp8_attention_options *o) {
    const int64_t pitch = ceil_div(o->max_kv > 0 ? o->max_kv : 1, FLASH_BLOCK_N) * FLASH_BLOCK_N;
    const int64_t group = o->num_heads / o->num_kv_heads;
    const int64_t units = o->num_seqs * o->num_heads;
    const int64_t band = BAND_BYTES * group / (pitch * (o->d_qk + o->d_v));
    const int32_t no_window = 2 * FLASH_MAX_LENGTH;

    a->kv_pitch = pitch;
    a->num_seqs = (int32_t)o->num_seqs;
    a->num_heads = o->num_heads;
    a->num_kv_heads = o->num_kv_heads;
    a->max_q = (int32_t)o->max_q;
    a->max_kv = (int32_t)o->max_kv;
    a->tiles = (int32_t)ceil_div(o->max_q, FLASH_BLOCK_M);
    a->units = (int32_t)units;
    a->band = (int32_t)(band < 1 ? 1 : band > units ? units : band);
    a->num_items = (int32_t)(units * a->tiles);
    a->causal = o->mask == FP8_MASK_CAUSAL_BOTTOM_RIGHT;
    a->window = o->window_left >= 0 && o->window_left + 1 < no_window ? (int32_t)o->window_left + 1
                                                                      : no_window;
    a->scale = o->scale;
}

static size_t transposed_bytes(const fp8_attention_options *o, const flash_params *a) {
    return (size_t)(o->num_seqs * o->num_kv_heads * o->d_v * a->kv_pitch);
}

static fp8_status flash_open(fp8_attention_plan *p) {
    const fp8_attention_options *o = &p->options;
    flash_state *f = calloc(1, sizeof *f);
    fp8_status st = FP8_OK;
    int64_t bytes;

    if (!f) return FP8_FAIL(FP8_ENOMEM, "flash attention plan");
    p->state = f;
    fill_params(&f->params, o);
    FP8_TRY(fp8_shape_count(
        &bytes, (int64_t[]){o->num_seqs, o->num_kv_heads, o->d_v, f->params.kv_pitch}, 4));
    FP8_TRY_CUDA(cudaSetDevice(fp8_device_index(p->device)));
    FP8_TRY_CUDA(cudaDeviceGetAttribute(&f->num_sms, cudaDevAttrMultiProcessorCount,
                                        fp8_device_index(p->device)));
    FP8_TRY(attention_flash_prepare(o->d_v));
    FP8_TRY(find_encode(&f->encode));
    p->workspace_bytes = 2 * ALIGN + transposed_bytes(o, &f->params);
done:
    return st;
}

static void flash_close(fp8_attention_plan *p) {
    free(p->state);
    p->state = NULL;
}

/* ---- run ------------------------------------------------------------------------------------- */

static fp8_status check_alignment(const char *name, const void *x, int64_t stride_bytes) {
    if ((uintptr_t)x % VECTOR || stride_bytes % VECTOR)
        return FP8_FAIL(FP8_EINVAL,
                        "flash attention: %s at %p, rows %lld bytes apart, expected multiples "
                        "of %d",
                        name, x, (long long)stride_bytes, VECTOR);
    return FP8_OK;
}

/* A map of packed rows [rows, heads, d] of codes, boxes of `box` rows of one head. With no rows
 * nothing will be copied, but a map must describe something: `anything`. */
static fp8_status map_rows(const flash_state *f, CUtensorMap *map, const char *name, const void *x,
                           int64_t rows, int32_t heads, int32_t d, int64_t stride, int32_t box,
                           const void *anything) {
    const cuuint32_t width = d < SWIZZLE ? (cuuint32_t)d : SWIZZLE;
    const cuuint64_t sizes[3] = {(cuuint64_t)d, (cuuint64_t)heads,
                                 (cuuint64_t)(rows > 0 ? rows : 1)};
    const cuuint64_t strides[2] = {(cuuint64_t)d, (cuuint64_t)stride}; /* of heads, of rows */
    const cuuint32_t boxes[3] = {width, 1, (cuuint32_t)box}, steps[3] = {1, 1, 1};
    const CUresult e = f->encode(
        map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 3, (void *)(uintptr_t)(rows > 0 ? x : anything), sizes,
        strides, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
        width == SWIZZLE ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);

    if (e == CUDA_SUCCESS) return FP8_OK;
    return FP8_FAIL(FP8_ECUDA, "flash attention: tensor map of %s (%lld rows, %d heads): error %d",
                    name, (long long)rows, heads, (int)e);
}

/* A map of V transposed, boxes of one tile of keys by d. */
static fp8_status map_transposed(const flash_state *f, flash_params *a, int32_t d) {
    const cuuint64_t sizes[2] = {(cuuint64_t)a->kv_pitch,
                                 (cuuint64_t)a->num_seqs * (cuuint64_t)a->num_kv_heads *
                                     (cuuint64_t)d};
    const cuuint64_t strides[1] = {(cuuint64_t)a->kv_pitch};
    const cuuint32_t boxes[2] = {FLASH_BLOCK_N, (cuuint32_t)d}, steps[2] = {1, 1};
    const CUresult e = f->encode(&a->v_map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, a->v_transposed,
                                 sizes, strides, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (e == CUDA_SUCCESS) return FP8_OK;
    return FP8_FAIL(FP8_ECUDA, "flash attention: tensor map of V transposed (pitch %lld): error %d",
                    (long long)a->kv_pitch, (int)e);
}

static fp8_status fill_run(const flash_state *f, flash_params *a, const fp8_attention_options *o,
                           const fp8_attention_io *io, uint8_t *workspace) {
    fp8_status st = FP8_OK;

    workspace += (uintptr_t)-(intptr_t)(uintptr_t)workspace % ALIGN;
    a->next_item = (int32_t *)(void *)workspace;
    a->v_transposed = workspace + ALIGN;
    a->o = io->o;
    a->v = io->v;
    a->q_starts = io->q_starts;
    a->kv_starts = io->kv_starts;
    a->q_lengths = io->q_lengths;
    a->kv_lengths = io->kv_lengths;
    a->q_descale = io->q_descale;
    a->k_descale = io->k_descale;
    a->v_descale = io->v_descale;
    a->o_stride = o->o.token;
    a->v_stride = o->v.token;
    a->total_q = io->total_q;
    a->total_kv = io->total_kv;
    FP8_TRY(check_alignment("o", io->o, o->o.token * 2));
    FP8_TRY(check_alignment("q", io->q, o->q.token));
    FP8_TRY(check_alignment("k", io->k, o->k.token));
    FP8_TRY(check_alignment("v", io->v, o->v.token));
    FP8_TRY(map_rows(f, &a->q_map, "Q", io->q, io->total_q, o->num_heads, o->d_qk, o->q.token,
                     FLASH_BLOCK_M, workspace));
    FP8_TRY(map_rows(f, &a->k_map, "K", io->k, io->total_kv, o->num_kv_heads, o->d_qk,
                     io->total_kv > 0 ? o->k.token : (int64_t)o->num_kv_heads * o->d_qk,
                     FLASH_BLOCK_N, workspace));
    FP8_TRY(map_transposed(f, a, o->d_v));
done:
    return st;
}

static fp8_status flash_run(fp8_attention_plan *p, const fp8_attention_io *io, void *workspace) {
    const flash_state *f = p->state;
    const fp8_stream stream = fp8_device_stream(p->device);
    const int32_t d = p->options.d_v;
    flash_params a = f->params;
    fp8_status st = FP8_OK;

    if (a.num_items == 0) return FP8_OK;
    FP8_TRY(fill_run(f, &a, &p->options, io, workspace));
    FP8_TRY(attention_flash_transpose(&a, d, stream));
    FP8_TRY(attention_flash_launch(&a, d, f->num_sms < a.num_items ? f->num_sms : a.num_items,
                                   stream));
done:
    return st;
}

const attention_backend attention_backend_flash = {
    FP8_BACKEND_FLASH, "flash",     "FP8_FLASH_ATTN", attention_flash_check,
    flash_open,        flash_close, flash_run,
};
