/* The flash backend: our attention for Hopper. In FP8 a run makes codes of what is in BF16 or F16
 * and writes V transposed, both into the workspace (flash_prologue.cu), then attends (flash.cu,
 * over long sequences flash_wide.cu); in 16 bits it attends (flash16.cu). Terms of the scores and
 * other head sizes have kernels of their own (flash_any.cu, flash16_any.cu). Lengths are read on
 * the device; what is fixed here are the tensor maps, which also keep every copy inside the
 * buffers. */
#include <stdlib.h>
#include <string.h>

#include "attention/flash.h"
#include "core/cuda_check.h"
#include "core/tensor_map.h"

enum {
    ALIGN = 256,    /* bytes; of each part of the workspace */
    SWIZZLE = 128,  /* bytes; widest box a swizzled copy takes */
    BAND_BYTES = 16 << 20 /* K and V that are worked on at once: a good third of the H200's L2 */
};

/* Where the parts of the workspace begin. */
typedef struct flash_places {
    size_t counters, pieces, amax[3], made[3], codes[3]; /* a part not needed: 0 bytes */
    size_t bytes;
} flash_places;

/* What tensor maps are made from, beside the options. */
typedef struct flash_operands {
    const void *q, *k, *v, *workspace;
    int64_t total_q, total_kv;
} flash_operands;

typedef struct flash_state {
    fp8_tensor_map_encode encode;
    int32_t num_sms;
    int is_16;
    int wide; /* flash_wide.cu */
    int any;  /* flash_any.cu or flash16_any.cu */
    flash_sizes sizes; /* of the kernel */
    int is_static; /* items of alike lengths, given out by their index: no launch before */
    flash_steps *steps; /* of a run of several launches; NULL: one */
    flash_places places;
    flash_operands mapped;   /* of the maps in params: those of the last run */
    flash_order order;       /* of the items, where V comes as it lies; else there is none */
    flash_params params;     /* what every run has in common */
    flash_prologue prologue; /* likewise */
    flash_later later;       /* what of it is left to flash_wide.cu */
} flash_state;

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static int32_t rows_of_tile(const fp8_attention_options *o) {
    const int32_t wide = flash_wide_rows(o);
    if (flash_is_any(o)) return FLASH_BLOCK_M;
    return flash_is_16(o) ? FLASH16_ROWS(o->d_v) : wide > 0 ? wide : FLASH_BLOCK_M;
}

/* ---- plan ------------------------------------------------------------------------------------ */

static int32_t bound_of(int64_t keys) {
    return keys < 0 || keys > FLASH_NO_WINDOW ? FLASH_NO_WINDOW : (int32_t)keys;
}

/* The most keys between promotions. */
static int32_t promote_keys(const fp8_attention_options *o) {
    const int32_t own = o->d_v == 64 ? FLASH_PROMOTE_KEYS : FLASH_CENTRE_KEYS;
    const int32_t keys = o->promote_keys > 0 ? o->promote_keys : own;
    return keys < FLASH_BLOCK_N ? FLASH_BLOCK_N : keys < FLASH_MAX_LENGTH ? keys : FLASH_MAX_LENGTH;
}

/* What of the terms a run does not change. */
static void fill_terms(flash_terms *t, const fp8_attention_options *o) {
    const float log2_e = 1.44269504f;
    const int64_t plane = o->max_q * o->max_kv;
    const int by_seq[] = {0, 0, 1, 1}, by_head[] = {0, 1, 0, 1}; /* of fp8_attention_bias_shape */

    t->changes = flash_has_terms(o);
    t->mask_head = by_head[o->mask_shape] ? plane : 0;
    t->mask_seq = by_seq[o->mask_shape] ? plane * (by_head[o->mask_shape] ? o->num_heads : 1) : 0;
    t->bias_head = by_head[o->bias_shape] ? plane : 0;
    t->bias_seq = by_seq[o->bias_shape] ? plane * (by_head[o->bias_shape] ? o->num_heads : 1) : 0;
    t->bias_dtype = (int32_t)o->bias_dtype;
    t->bias_first = o->bias == FP8_BIAS_PRE_SCALE;
    t->bias_factor = t->bias_first ? o->scale * log2_e : log2_e;
    t->alibi = o->bias == FP8_BIAS_ALIBI;
    t->has_sink = o->sink != FP8_SINK_NONE;
    t->cap = o->softcap * log2_e;
}

static void fill_params(flash_params *a, const fp8_attention_options *o) {
    const int packed = fp8_attention_layout_is_packed(o->layout);
    const int causal = o->mask == FP8_MASK_CAUSAL || o->mask == FP8_MASK_CAUSAL_BOTTOM_RIGHT;
    const int64_t keys = o->max_kv > 0 ? o->max_kv : 1;
    const int64_t group = o->num_heads / o->num_kv_heads;
    const int64_t units = o->num_seqs * o->num_heads;
    const int64_t band =
        BAND_BYTES * group / (keys * (o->d_qk + o->d_v) * (flash_is_16(o) ? 2 : 1));

    a->o_at = o->o;
    a->num_seqs = (int32_t)o->num_seqs;
    a->num_heads = o->num_heads;
    a->num_kv_heads = o->num_kv_heads;
    a->max_q = (int32_t)o->max_q;
    a->max_kv = (int32_t)o->max_kv;
    a->q_packed = packed && (flash_is_16(o) || o->q_dtype == FP8_DTYPE_E4M3);
    a->kv_packed = packed && (flash_is_16(o) || o->kv_dtype == FP8_DTYPE_E4M3);
    a->v_as_is = flash_v_as_is(o);
    a->tiles = (int32_t)ceil_div(o->max_q, rows_of_tile(o));
    a->units = (int32_t)units;
    a->band = (int32_t)(band < 1 ? 1 : band > units ? units : band);
    a->num_items = (int32_t)(units * a->tiles);
    a->top_left = o->mask == FP8_MASK_CAUSAL;
    a->left = bound_of(o->window_left);
    a->right = causal ? 0 : bound_of(o->window_right);
    a->granularity = (int32_t)o->granularity;
    a->o_dtype = (int32_t)o->o_dtype;
    a->promote_keys = o->precision == FP8_ATTENTION_FAST ? INT32_MAX : promote_keys(o);
    a->promote_mask = 0;
    while (a->promote_mask < a->promote_keys / FLASH_BLOCK_N / 2)
        a->promote_mask = 2 * a->promote_mask + 1;
    a->scale = o->scale;
    a->d_v = o->d_v;
    fill_terms(&a->terms, o);
}

/* What the prologue does with one of Q, K, V. */
static void fill_operand(flash_operand *x, const fp8_attention_options *o, fp8_dtype dtype,
                         fp8_strides at, int32_t heads, int32_t d, int64_t longest,
                         int transposed) {
    const int64_t pitch = ceil_div(longest > 0 ? longest : 1, FLASH_TILE) * FLASH_TILE;
    x->at = at;
    x->heads = heads;
    x->d = d;
    x->longest = (int32_t)longest;
    x->pitch = (int32_t)pitch;
    x->is_codes = dtype == FP8_DTYPE_E4M3;
    x->transposed = transposed;
    if (x->is_codes && !transposed) return;
    x->blocks = (int32_t)(o->num_seqs * heads * (pitch / FLASH_TILE) * (d / flash_part(o)));
}

static void fill_prologue(flash_prologue *p, const fp8_attention_options *o) {
    p->part = flash_part(o);
    p->num_kv_heads = o->num_kv_heads;
    p->granularity = (int32_t)o->granularity;
    p->num_descales = o->granularity == FP8_DESCALE_TENSOR ? 1
                      : o->granularity == FP8_DESCALE_HEAD
                          ? o->num_kv_heads
                          : (int32_t)o->num_seqs * o->num_kv_heads;
    p->f16 = o->q_dtype == FP8_DTYPE_F16 || o->kv_dtype == FP8_DTYPE_F16;
    p->backwards = o->quantize == FP8_QUANTIZE_CURRENT;
    if (flash_is_16(o)) return;
    fill_operand(&p->x[0], o, o->q_dtype, o->q, o->num_heads, o->d_qk, o->max_q, 0);
    fill_operand(&p->x[1], o, o->kv_dtype, o->k, o->num_kv_heads, o->d_qk, o->max_kv, 0);
    if (flash_v_as_is(o)) p->x[2].is_codes = 1;
    else fill_operand(&p->x[2], o, o->kv_dtype, o->v, o->num_kv_heads, o->d_v, o->max_kv, 1);
}

static fp8_status add_part(flash_places *w, size_t *at, int64_t count, int64_t size) {
    const int64_t shape[2] = {count, size};
    fp8_status st = FP8_OK;
    int64_t bytes;

    FP8_TRY(fp8_shape_count(&bytes, shape, 2));
    *at = w->bytes;
    if (__builtin_add_overflow(w->bytes, ((size_t)bytes + ALIGN - 1) / ALIGN * ALIGN, &w->bytes))
        st = FP8_FAIL(FP8_EOVERFLOW, "flash attention: workspace of 2^64 bytes");
done:
    return st;
}

static fp8_status place_parts(flash_state *f, const fp8_attention_options *o) {
    flash_places *w = &f->places;
    const flash_prologue *p = &f->prologue;
    fp8_status st = FP8_OK;

    FP8_TRY(add_part(w, &w->counters, p->num_counters, sizeof(int32_t)));
    FP8_TRY(add_part(w, &w->pieces, f->params.split > 0 ? f->num_sms : 0,
                     (int64_t)flash_wide_rows(o) * (o->d_v + 8) * (int64_t)sizeof(float)));
    for (int i = 0; i < 3; i++) {
        const flash_operand *x = &p->x[i];
        const int current = !x->is_codes && o->quantize == FP8_QUANTIZE_CURRENT;
        FP8_TRY(add_part(w, &w->amax[i], current ? p->num_descales : 0, sizeof(uint32_t)));
        FP8_TRY(add_part(w, &w->made[i], current ? p->num_descales : 0, sizeof(float)));
        FP8_TRY(add_part(w, &w->codes[i], x->blocks, (int64_t)FLASH_TILE * p->part));
    }
    w->bytes += ALIGN; /* to align the start */
done:
    return st;
}

/* Nothing to do before the attention: no codes to make, no amax to clear, and items that need no
 * counter: none is shorter than the plan says, none is long, and there is one band of them. */
static int is_static(const flash_params *a, const flash_prologue *p,
                     const fp8_attention_options *o) {
    for (int i = 0; i < 3; i++)
        if (p->x[i].blocks > 0) return 0;
    return !o->want_amax && !o->padding && !fp8_attention_layout_is_packed(o->layout) &&
           a->band == a->units && o->max_kv <= FLASH_STATIC_KEYS;
}

/* Items that all see the same keys are shared evenly, where that saves enough: as many that whole
 * waves of one a multiprocessor are left, and that none is longer than a block's share. A last tile
 * of few queries, kept apart and taken first, counts for 7 / 20 of a whole one, and the rest by its
 * warpgroups at work. */
static void share_items(flash_state *f, const fp8_attention_options *o, int apart) {
    flash_params *a = &f->params;
    const int32_t rows = flash_wide_rows(o), last = (a->max_q - 1) % rows + 1;
    const int64_t sms = f->num_sms, keys = ceil_div(o->max_kv, FLASH_BLOCK_N);
    const int64_t shorts = apart && last < rows ? a->units : 0, whole = a->num_items - shorts;
    const int64_t all = rows / FLASH_WIDE_ROWS, at_work = ceil_div(last, FLASH_WIDE_ROWS);
    const int64_t of_short = ceil_div(keys * (7 * all + 13 * at_work), 20 * all);
    const int64_t total = shorts * of_short + whole * keys;
    const int64_t waves = total / (sms * keys) - 1; /* left to be taken one by one */
    const int64_t idle = (ceil_div(a->num_items, sms) * keys * sms - total) / sms;
    const int64_t shared = total - waves * sms * keys;

    a->split = 0;
    if (o->d_v == 256 || a->v_as_is) return; /* these kernels do not */
    if (a->right < FLASH_NO_WINDOW || a->left < FLASH_NO_WINDOW || keys > FLASH_SHARED_KEYS) return;
    if (waves < 0 || waves * sms > whole || idle < FLASH_SHARED_TILES) return;
    a->split = (int32_t)(a->num_items - waves * sms);
    a->short_items = (int32_t)shorts;
    a->key_tiles = (int32_t)keys;
    a->short_tiles = (int32_t)of_short;
    a->stretch = (int32_t)(shared / sms);
    a->longer = (int32_t)(shared % sms);
}

/* Codes of the groups that no block begins with are made later, where they are half of them at
 * least. Items go by groups then, so that few are asked for at a time; under a causal mask, longest
 * first, by bands of as many units as all blocks begin with. */
static int plan_later(flash_state *f, const fp8_attention_options *o) {
    flash_params *a = &f->params;
    flash_later *l = &f->later;
    const int32_t group = o->num_heads / o->num_kv_heads;
    int64_t units;

    if (!flash_can_make_later(o)) return 0;
    share_items(f, o, 0);
    units = ceil_div(ceil_div(a->split > 0 ? a->split : f->num_sms, a->tiles), group) * group;
    if (2 * units > a->units) return 0;
    l->groups = (int32_t)o->num_seqs * o->num_kv_heads;
    l->first = (int32_t)units / group;
    l->observes = flash_can_observe_later(o);
    l->tasks = 2 * f->prologue.x[1].pitch / FLASH_TILE +
               group * (f->prologue.x[0].pitch / FLASH_TILE);
    a->band = o->mask == FP8_MASK_NONE ? group : (int32_t)units;
    return 1;
}

/* Tiles of keys that the queries of an item see, of alike lengths. */
static int32_t tiles_seen(const flash_params *a, int32_t tile, int32_t rows) {
    const int64_t first = (int64_t)tile * rows;
    const int64_t last = first + rows < a->max_q ? first + rows : a->max_q;
    const int64_t diagonal = a->top_left ? 0 : a->max_kv - a->max_q;
    const int64_t lo = first + diagonal - a->left, hi = last + diagonal + a->right;
    const int64_t begin = lo > 0 ? lo : 0, end = hi < a->max_kv ? hi : a->max_kv;
    return end > begin ? (int32_t)(ceil_div(end, FLASH_BLOCK_N) - begin / FLASH_BLOCK_N) : 0;
}

/* An item costs its tiles of keys and, to begin and to store, as much as two more (measured). */
static void order_items(flash_state *f, const fp8_attention_options *o) {
    const flash_params *a = &f->params;
    const int32_t blocks = f->num_sms < a->num_items ? f->num_sms : a->num_items;
    int32_t costs[FLASH_ORDER_ITEMS];

    if (!f->is_static || !f->wide || a->num_items > FLASH_ORDER_ITEMS) return;
    for (int32_t i = 0; i < a->num_items; i++)
        costs[i] = 2 + tiles_seen(a, a->tiles - 1 - i / a->units, rows_of_tile(o));
    attention_flash_order(&f->order, costs, a->num_items, blocks);
}

/* Makes room for the kernel that will serve. */
static fp8_status prepare(const flash_state *f, const fp8_attention_options *o) {
    const int f16 = o->q_dtype == FP8_DTYPE_F16;
    if (f->any && f->is_16) return attention_flash16_any_prepare(f->sizes, f16);
    if (f->any) return attention_flash_any_prepare(f->sizes);
    if (f->is_16) return attention_flash16_prepare(o->d_v, f16);
    if (f->wide) return attention_flash_wide_prepare(&f->params, o->d_v);
    return attention_flash_prepare(o->d_v, f->params.v_as_is);
}

/* ---- tensor maps ----------------------------------------------------------------------------- */

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
    FP8_TRY(map_rows(f, &a->q_map, &q, rows_of_tile(o), anything));
    FP8_TRY(map_rows(f, &a->k_map, &k, keys, anything));
    if (f->is_16 || a->v_as_is) FP8_TRY(map_rows(f, &a->v_map, &v, keys, anything));
    else FP8_TRY(map_transposed(f, &a->v_map, &p->x[2], o->num_seqs));
done:
    return st;
}

/* Maps anew where something has moved since the last run: three cost 1 us of the host's time. */
static fp8_status refresh_maps(flash_state *f, const flash_prologue *p,
                               const fp8_attention_options *o, const fp8_attention_io *io,
                               const void *workspace) {
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

/* ---- run ------------------------------------------------------------------------------------- */

static fp8_status check_io(const fp8_attention_io *io) {
    const struct {
        const char *name;
        const void *data;
    } all[] = {{"o", io->o}, {"q", io->q}, {"k", io->k}, {"v", io->v}};

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if ((uintptr_t)all[i].data % FLASH_VECTOR)
            return FP8_FAIL(FP8_EINVAL, "flash attention: %s at %p, expected a multiple of %d",
                            all[i].name, all[i].data, FLASH_VECTOR);
    if (io->total_q > INT32_MAX || io->total_kv > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "flash attention: total_q %lld, total_kv %lld, expected below "
                                    "2^31",
                        (long long)io->total_q, (long long)io->total_kv);
    return FP8_OK;
}

/* One operand's share of a run; *descale becomes what the attention reads. */
static void bind_operand(flash_operand *x, const flash_places *w, int i, uint8_t *workspace,
                         const void *from, const float **descale, int current) {
    x->from = from;
    x->codes = workspace + w->codes[i];
    x->descale = *descale;
    if (x->is_codes || !current) return;
    x->amax = (uint32_t *)(void *)(workspace + w->amax[i]);
    x->made = (float *)(void *)(workspace + w->made[i]);
    *descale = x->made;
}

static void bind_terms(flash_terms *t, const fp8_attention_options *o,
                       const fp8_attention_io *io) {
    const int has_bias = o->bias == FP8_BIAS_PRE_SCALE || o->bias == FP8_BIAS_POST_SCALE;
    const int even = o->max_kv % 2 == 0;
    t->mask = o->mask == FP8_MASK_ARBITRARY ? io->mask : NULL;
    t->bias = has_bias ? io->bias : NULL;
    t->slopes = io->alibi_slopes;
    t->sink = o->sink == FP8_SINK_LEARNABLE ? io->sink : NULL;
    t->mask_pairs = even && (uintptr_t)t->mask % 2 == 0;
    t->bias_pairs = even && (uintptr_t)t->bias % (2 * fp8_dtype_size(o->bias_dtype)) == 0;
}

/* Of the codes, and of their amax, what is left to the attention. */
static void bind_later(flash_state *f, flash_prologue *p) {
    flash_later *l = &f->later;

    for (int i = 0; i < 3; i++) p->x[i].observed = p->x[i].amax ? p->x[i].blocks : 0;
    if (l->groups == 0) return;
    l->made = p->next_item + p->num_counters - l->groups;
    l->seen = l->made - l->groups;
    l->next = l->seen - 1;
    l->prologue = *p;
    for (int i = 0; i < 3; i++) {
        p->x[i].blocks = p->x[i].blocks / l->groups * l->first;
        if (l->observes) p->x[i].observed = p->x[i].blocks;
    }
}

static void bind_run(flash_state *f, flash_prologue *p, const fp8_attention_options *o,
                     const fp8_attention_io *io, uint8_t *workspace) {
    flash_params *a = &f->params;
    const int current = o->quantize == FP8_QUANTIZE_CURRENT;

    a->o = io->o;
    a->o_scale = o->o_dtype == FP8_DTYPE_E4M3 ? io->o_scale : NULL;
    a->lse = o->want_lse ? io->lse : NULL;
    p->amax_s = a->amax_s = o->want_amax ? io->amax_s : NULL;
    p->amax_o = a->amax_o = o->want_amax ? io->amax_o : NULL;
    p->next_item = a->next_item = (int32_t *)(void *)(workspace + f->places.counters);
    a->arrived = a->next_item + 1;
    a->pieces = (float *)(void *)(workspace + f->places.pieces);
    bind_terms(&a->terms, o, io);
    p->x[0].starts = a->q_starts = io->q_starts;
    p->x[0].lengths = a->q_lengths = io->q_lengths;
    p->x[0].total = a->total_q = io->total_q;
    p->x[1].starts = p->x[2].starts = a->kv_starts = io->kv_starts;
    p->x[1].lengths = p->x[2].lengths = a->kv_lengths = io->kv_lengths;
    p->x[1].total = p->x[2].total = a->total_kv = io->total_kv;
    if (f->is_16) return;
    a->q_descale = io->q_descale;
    a->k_descale = io->k_descale;
    a->v_descale = io->v_descale;
    bind_operand(&p->x[0], &f->places, 0, workspace, io->q, &a->q_descale, current);
    bind_operand(&p->x[1], &f->places, 1, workspace, io->k, &a->k_descale, current);
    bind_operand(&p->x[2], &f->places, 2, workspace, io->v, &a->v_descale, current);
    bind_later(f, p);
}

/* Codes, V transposed, and what the attention starts from. Rotated Q and K have launches of their
 * own, after the one that clears their amax. */
static fp8_status prepare_operands(flash_prologue *p, const fp8_attention_options *o,
                                   int32_t num_sms, const flash_queue *to) {
    flash_prologue rotated;
    fp8_status st;

    if (!o->hadamard) return attention_flash_prologue(p, to);
    p->beside = p->x[2].blocks > 0;
    rotated = *p;
    rotated.part = attention_hadamard_block(o->d_qk);
    for (int i = 0; i < 2; i++) {
        rotated.x[i].blocks = p->x[i].blocks * p->part / rotated.part;
        p->x[i].blocks = p->x[i].observed = 0;
    }
    FP8_TRY(attention_flash_prologue(p, to));
    if (p->backwards) FP8_TRY(attention_flash_rotate(&rotated, 1, num_sms, to));
    FP8_TRY(attention_flash_rotate(&rotated, 0, num_sms, to));
done:
    return st;
}

static fp8_status attend(const flash_state *f, const fp8_attention_options *o,
                         const flash_queue *to) {
    const flash_params *a = &f->params;
    const int32_t blocks = f->num_sms < a->num_items ? f->num_sms : a->num_items;
    const int f16 = o->q_dtype == FP8_DTYPE_F16;
    if (f->any && f->is_16)
        return attention_flash16_any_launch(a, f->sizes, f16, blocks, to);
    if (f->any) return attention_flash_any_launch(a, f->sizes, blocks, to);
    if (f->is_16) return attention_flash16_launch(a, o->d_v, f16, blocks, to);
    if (f->wide)
        return attention_flash_wide_launch(a, &f->order, &f->later, o->d_v, blocks, to);
    return attention_flash_launch(a, o->d_v, blocks, to);
}

static fp8_status enqueue(const flash_state *f, const fp8_attention_options *o, flash_prologue *p,
                          const flash_queue *to) {
    fp8_status st = FP8_OK;
    if (!f->is_static) FP8_TRY(prepare_operands(p, o, f->num_sms, to));
    FP8_TRY(attend(f, o, to));
done:
    return st;
}

/* Where a run has several launches. What they are given is not looked at yet. */
static fp8_status make_steps(flash_state *f, const fp8_attention_options *o) {
    static uint8_t somewhere[1]; /* in the workspace's place */
    const fp8_attention_io nothing = {0};
    flash_prologue p = f->prologue;
    flash_queue to = {0};
    fp8_status st = FP8_OK;

    if (f->is_static || f->params.num_items == 0) return FP8_OK;
    FP8_TRY(flash_steps_create(&f->steps));
    to.steps = f->steps;
    bind_run(f, &p, o, &nothing, somewhere);
    FP8_TRY(enqueue(f, o, &p, &to));
    FP8_TRY(flash_steps_finish(f->steps));
done:
    return st;
}

static fp8_status flash_run(fp8_attention_plan *plan, const fp8_attention_io *io,
                            void *workspace) {
    flash_state *f = plan->state;
    const fp8_attention_options *o = &plan->options;
    flash_queue to = {fp8_device_stream(plan->device), NULL};
    uint8_t *base = (uint8_t *)workspace + (uintptr_t)-(intptr_t)(uintptr_t)workspace % ALIGN;
    flash_prologue p = f->prologue;
    int captured = 1;
    fp8_status st;

    FP8_TRY(check_io(io));
    bind_run(f, &p, o, io, base);
    if (f->is_static) f->params.next_item = NULL;
    if (f->params.num_items == 0) { /* amax is written all the same */
        memset(p.x, 0, sizeof p.x);
        return attention_flash_prologue(&p, &to);
    }
    FP8_TRY(refresh_maps(f, &p, o, io, base));
    if (f->steps) FP8_TRY(flash_steps_captured(&captured, to.stream));
    if (captured) return enqueue(f, o, &p, &to);
    to.steps = f->steps;
    flash_steps_begin(f->steps);
    FP8_TRY(enqueue(f, o, &p, &to));
    FP8_TRY(flash_steps_launch(f->steps, to.stream));
done:
    return st;
}

/* ---- plan: open and close -------------------------------------------------------------------- */

static fp8_status flash_open(fp8_attention_plan *p) {
    const fp8_attention_options *o = &p->options;
    flash_state *f = calloc(1, sizeof *f);
    fp8_status st = FP8_OK;

    if (!f) return FP8_FAIL(FP8_ENOMEM, "flash attention plan");
    p->state = f;
    f->is_16 = flash_is_16(o);
    f->wide = flash_wide_rows(o) > 0;
    f->any = flash_is_any(o);
    f->sizes = flash_any_sizes(o);
    fill_params(&f->params, o);
    fill_prologue(&f->prologue, o);
    FP8_TRY_CUDA(cudaSetDevice(fp8_device_index(p->device)));
    FP8_TRY_CUDA(cudaDeviceGetAttribute(&f->num_sms, cudaDevAttrMultiProcessorCount,
                                        fp8_device_index(p->device)));
    f->is_static = is_static(&f->params, &f->prologue, o);
    order_items(f, o);
    if (!plan_later(f, o) && f->wide) share_items(f, o, 1);
    f->prologue.num_counters = 1 + (f->params.split > 0 ? f->num_sms * rows_of_tile(o) / 16 : 0) +
                               (f->later.groups > 0 ? 1 + 2 * f->later.groups : 0);
    FP8_TRY(place_parts(f, o));
    FP8_TRY(prepare(f, o));
    FP8_TRY(fp8_tensor_map_encoder(&f->encode));
    FP8_TRY(make_steps(f, o));
    p->workspace_bytes = f->places.bytes;
done:
    return st;
}

static void flash_close(fp8_attention_plan *p) {
    flash_state *f = p->state;
    if (f) flash_steps_destroy(f->steps);
    free(p->state);
    p->state = NULL;
}

const attention_backend attention_backend_flash = {
    FP8_BACKEND_FLASH, "flash",     "FP8_FLASH_ATTN", attention_flash_check,
    flash_open,        flash_close, flash_run,
};
