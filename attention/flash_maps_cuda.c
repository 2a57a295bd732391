/* Tensor maps of the flash backend: of Q, K and V as the caller has them, or of their codes. They
 * also keep every copy inside the buffers. */
#include "attention/flash_state.h"

enum { SWIZZLE = 128 }; /* bytes; widest box a swizzled copy takes */

/* Operands in memory of a map: [seqs, tokens, heads, d] by strides. */
typedef struct rows {
    const char *name;
    const void *data;
    fp8_strides at; /* elements */
    int64_t seqs, tokens;
    int32_t heads, d, element_bytes;
} rows;

/* A size of 1 leaves its stride free, and free strides need not be what a map wants. */
static cuuint64_t stride_bytes(int64_t size, int64_t stride, int32_t element_bytes) {
    return size > 1 ? (cuuint64_t)stride * (cuuint64_t)element_bytes : FLASH_VECTOR;
}

/* Boxes of SWIZZLE bytes of d, or half, by `tokens` of one head; beyond d they are 0. With no
 * tokens nothing will be copied, but a map must describe something: `anything`. */
static fp8_status map_rows(const flash_state *f, CUtensorMap *map, const rows *x, int32_t tokens,
                           const void *anything) {
    const int nothing = x->seqs == 0 || x->tokens == 0, size = x->element_bytes;
    const int32_t row = x->d * size;
    const int32_t width = size == 1 && f->sizes.qk % SWIZZLE ? SWIZZLE / 2 : SWIZZLE;
    const cuuint64_t sizes[4] = {(cuuint64_t)x->d, (cuuint64_t)x->heads,
                                 nothing ? 1 : (cuuint64_t)x->tokens,
                                 nothing ? 1 : (cuuint64_t)x->seqs};
    const cuuint64_t strides[3] = {
        nothing ? (cuuint64_t)row : stride_bytes(x->heads, x->at.head, size),
        stride_bytes((int64_t)sizes[2], x->at.token, size),
        stride_bytes((int64_t)sizes[3], x->at.batch, size)};
    const cuuint32_t box[4] = {(cuuint32_t)(width / size), 1, (cuuint32_t)tokens, 1};
    const cuuint32_t steps[4] = {1, 1, 1, 1};
    const CUresult e = f->encode(
        map, size == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_UINT16, 4,
        (void *)(uintptr_t)(nothing ? anything : x->data), sizes, strides, box, steps,
        CU_TENSOR_MAP_INTERLEAVE_NONE,
        width == SWIZZLE ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);

    if (e == CUDA_SUCCESS) return FP8_OK;
    return FP8_FAIL(FP8_ECUDA,
                    "flash attention: tensor map of %s (%lld x %lld tokens, %d heads, strides %lld "
                    "%lld %lld): error %d",
                    x->name, (long long)x->seqs, (long long)x->tokens, x->heads,
                    (long long)x->at.batch, (long long)x->at.token, (long long)x->at.head, (int)e);
}

/* A map of V transposed, boxes of one tile of keys by d. */
static fp8_status map_transposed(const flash_state *f, CUtensorMap *map, const flash_operand *v,
                                 int64_t num_seqs) {
    const cuuint64_t rows_of_v = (cuuint64_t)num_seqs * (cuuint64_t)v->heads * (cuuint64_t)v->d;
    const cuuint64_t sizes[2] = {(cuuint64_t)v->pitch, rows_of_v};
    const cuuint64_t strides[1] = {(cuuint64_t)v->pitch};
    const cuuint32_t boxes[2] = {FLASH_BLOCK_N, (cuuint32_t)f->sizes.v}, steps[2] = {1, 1};
    const CUresult e =
        f->encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, v->codes, sizes, strides, boxes, steps,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);

    if (e == CUDA_SUCCESS) return FP8_OK;
    return FP8_FAIL(FP8_ECUDA, "flash attention: tensor map of V transposed (pitch %d): error %d",
                    v->pitch, (int)e);
}

/* The caller's Q, K or V; packed tokens are all of one sequence. */
static rows rows_of_io(const char *name, const void *data, fp8_strides at, int packed,
                       int64_t seqs, int64_t longest, int64_t total, int32_t heads, int32_t d,
                       fp8_dtype dtype) {
    return (rows){name,  data,
                  at,    packed ? 1 : seqs,
                  packed ? total : longest,
                  heads, d,
                  (int32_t)fp8_dtype_size(dtype)};
}

/* Codes that the prologue made. */
static rows rows_of_codes(const char *name, const flash_operand *x, int64_t seqs) {
    const int64_t head = (int64_t)x->pitch * x->d;
    return (rows){name, x->codes, {x->heads * head, x->d, head}, seqs, x->pitch, x->heads, x->d, 1};
}

static fp8_status fill_maps(const flash_state *f, flash_params *a, const flash_prologue *p,
                            const fp8_attention_options *o, const fp8_attention_io *io,
                            const void *anything) {
    const int packed = fp8_attention_layout_is_packed(o->layout);
    const int32_t keys = !f->is_16 ? FLASH_BLOCK_N
                         : f->any  ? FLASH16_ANY_KEYS(f->sizes.v, f->sizes.kind == FLASH_ANY_EARLY)
                                   : FLASH16_KEYS(o->d_v);
    rows q = rows_of_io("Q", io->q, o->q, packed, o->num_seqs, o->max_q, io->total_q, o->num_heads,
                        o->d_qk, o->q_dtype);
    rows k = rows_of_io("K", io->k, o->k, packed, o->num_seqs, o->max_kv, io->total_kv,
                        o->num_kv_heads, o->d_qk, o->kv_dtype);
    const rows v = rows_of_io("V", io->v, o->v, packed, o->num_seqs, o->max_kv, io->total_kv,
                              o->num_kv_heads, o->d_v, o->kv_dtype);
    fp8_status st = FP8_OK;

    if (p->x[0].blocks > 0) q = rows_of_codes("Q in codes", &p->x[0], o->num_seqs);
    if (p->x[1].blocks > 0) k = rows_of_codes("K in codes", &p->x[1], o->num_seqs);
    FP8_TRY(map_rows(f, &a->q_map, &q, flash_rows_of_tile(o), anything));
    FP8_TRY(map_rows(f, &a->k_map, &k, keys, anything));
    if (f->is_16 || a->v_as_is) FP8_TRY(map_rows(f, &a->v_map, &v, keys, anything));
    else FP8_TRY(map_transposed(f, &a->v_map, &p->x[2], o->num_seqs));
done:
    return st;
}

fp8_status attention_flash_refresh_maps(flash_state *f, const flash_prologue *p,
                                        const fp8_attention_options *o,
                                        const fp8_attention_io *io, const void *workspace) {
    const flash_operands now = {io->q, io->k, io->v, workspace, io->total_q, io->total_kv};
    fp8_status st = FP8_OK;

    if (f->mapped.q == now.q && f->mapped.k == now.k && f->mapped.v == now.v &&
        f->mapped.workspace == now.workspace && f->mapped.total_q == now.total_q &&
        f->mapped.total_kv == now.total_kv)
        return FP8_OK;
    f->mapped.workspace = NULL; /* none, should this fail */
    FP8_TRY(fill_maps(f, &f->params, p, o, io, workspace));
    f->mapped = now;
done:
    return st;
}
