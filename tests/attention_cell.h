/* tests/attention_cell.h - one attention problem of any layout and any options: memory filled at
 * random (NaN wherever nothing may be read), the call on a device, and the oracle beside it. */
#ifndef FP8_TESTS_ATTENTION_CELL_H
#define FP8_TESTS_ATTENTION_CELL_H
#include <string.h>

#include "attention/attention.h"
#include "check.h"
#include "core/half.h"
#include "quant/cast.h"

enum { CELL_MAX_SEQS = 8 };

/* Memory of a cell. Tensors that a layout interleaves lie in that of the first. */
enum {
    MEM_Q,
    MEM_K,
    MEM_V,
    MEM_O,
    MEM_LSE,
    MEM_AMAX,
    MEM_Q_STARTS,
    MEM_KV_STARTS,
    MEM_Q_LENGTHS,
    MEM_KV_LENGTHS,
    MEM_Q_DESCALE,
    MEM_K_DESCALE,
    MEM_V_DESCALE,
    MEM_O_SCALE,
    MEM_MASK,
    MEM_BIAS,
    MEM_SLOPES,
    MEM_SINK,
    NUM_MEM
};

typedef struct cell_lengths {
    int32_t q, kv;
} cell_lengths;

typedef struct cell {
    fp8_attention_options o; /* with strides */
    fp8_layout_strides at;
    int packed;
    cell_lengths length[CELL_MAX_SEQS]; /* of each sequence */
    int64_t q_begin[CELL_MAX_SEQS], kv_begin[CELL_MAX_SEQS];
    int64_t total_q, total_kv;
    int k_mem, v_mem;
    void *host[NUM_MEM]; /* NULL: the options do not ask for it */
    size_t bytes[NUM_MEM];
} cell;

/* ---- elements -------------------------------------------------------------------------------- */

static inline void element_set(void *p, fp8_dtype t, int64_t i, float x) {
    if (t == FP8_DTYPE_E4M3) ((uint8_t *)p)[i] = fp8_from_f32(t, x);
    else if (t == FP8_DTYPE_BF16) ((uint16_t *)p)[i] = fp8_f32_to_bf16(x);
    else if (t == FP8_DTYPE_F16) ((uint16_t *)p)[i] = fp8_f32_to_f16(x);
    else ((float *)p)[i] = x;
}

static inline float element_get(const void *p, fp8_dtype t, int64_t i) {
    if (t == FP8_DTYPE_E4M3) return fp8_to_f32(t, ((const uint8_t *)p)[i]);
    if (t == FP8_DTYPE_BF16) return fp8_bf16_to_f32(((const uint16_t *)p)[i]);
    if (t == FP8_DTYPE_F16) return fp8_f16_to_f32(((const uint16_t *)p)[i]);
    return ((const float *)p)[i];
}

/* Half the distance of neighbours at 1, the most that rounding moves a number. */
static inline double unit_roundoff(fp8_dtype t) {
    return t == FP8_DTYPE_E4M3 ? 0x1p-4 : t == FP8_DTYPE_BF16 ? 0x1p-8
                              : t == FP8_DTYPE_F16 ? 0x1p-11 : 0x1p-24;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static inline void *cell_memory(cell *c, int mem, int64_t count, size_t size) {
    c->bytes[mem] = (size_t)(count > 0 ? count : 1) * size; /* exact: strays are seen */
    c->host[mem] = malloc(c->bytes[mem]);
    if (!c->host[mem]) abort();
    memset(c->host[mem], 0xff, c->bytes[mem]); /* NaN in every float type */
    return c->host[mem];
}

static inline void cell_free(cell *c) {
    for (int i = 0; i < NUM_MEM; i++) free(c->host[i]);
}

/* One past the last element of a tensor that starts at `offset`. */
static inline int64_t cell_extent(const cell *c, fp8_strides x, int64_t offset, int64_t tokens,
                                  int64_t heads, int64_t d) {
    if (tokens == 0 || (!c->packed && c->o.num_seqs == 0)) return 0;
    return offset + (c->packed ? 0 : (c->o.num_seqs - 1) * x.batch) + (tokens - 1) * x.token +
           (heads - 1) * x.head + d;
}

static inline int64_t cell_at(fp8_strides x, int64_t s, int64_t token, int64_t head) {
    return s * x.batch + token * x.token + head * x.head;
}

static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Q, K, V as their layout shares memory. */
static inline void cell_operands(cell *c) {
    const fp8_attention_options *o = &c->o;
    const char *name = fp8_attention_layout_name(o->layout);
    const int all = strchr(name, '3') != NULL, kv = strchr(name, '2') != NULL;
    const int64_t tq = c->packed ? c->total_q : o->max_q, tk = c->packed ? c->total_kv : o->max_kv;
    int64_t size[3] = {cell_extent(c, o->q, c->at.q_offset, tq, o->num_heads, o->d_qk),
                       cell_extent(c, o->k, c->at.k_offset, tk, o->num_kv_heads, o->d_qk),
                       cell_extent(c, o->v, c->at.v_offset, tk, o->num_kv_heads, o->d_v)};
    c->k_mem = all ? MEM_Q : MEM_K;
    c->v_mem = all ? MEM_Q : kv ? MEM_K : MEM_V;
    if (all) size[0] = larger(size[0], larger(size[1], size[2]));
    if (kv) size[1] = larger(size[1], size[2]);
    cell_memory(c, MEM_Q, size[0], fp8_dtype_size(o->q_dtype));
    if (!all) cell_memory(c, MEM_K, size[1], fp8_dtype_size(o->kv_dtype));
    if (!all && !kv) cell_memory(c, MEM_V, size[2], fp8_dtype_size(o->kv_dtype));
    cell_memory(c, MEM_O, cell_extent(c, o->o, 0, tq, o->num_heads, o->d_v),
                fp8_dtype_size(o->o_dtype));
}

/* Where each sequence lies: packed with gaps before each, in falling order when `backwards`. */
static inline void cell_place(cell *c, int gap, int backwards, int same) {
    const int64_t n = c->o.num_seqs;
    c->total_q = c->total_kv = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t s = backwards ? n - 1 - i : i;
        const cell_lengths *l = &c->length[s];
        c->q_begin[s] = c->packed ? c->total_q + gap : 0;
        c->kv_begin[s] = c->packed ? c->total_kv + gap : 0;
        c->total_q += (same ? larger(l->q, l->kv) : l->q) + gap;
        c->total_kv += (same ? larger(l->q, l->kv) : l->kv) + gap;
    }
}

/* starts [num_seqs], or [num_seqs + 1] without lengths. */
static inline void cell_index(cell *c, int starts, int lengths, int with_lengths, int is_q) {
    const int64_t n = c->o.num_seqs;
    if (c->packed) {
        int32_t *at = cell_memory(c, starts, n + !with_lengths, sizeof(int32_t));
        for (int64_t s = 0; s < n; s++) at[s] = (int32_t)(is_q ? c->q_begin[s] : c->kv_begin[s]);
        if (!with_lengths) at[n] = (int32_t)(is_q ? c->total_q : c->total_kv);
    }
    if (with_lengths) {
        int32_t *l = cell_memory(c, lengths, n, sizeof(int32_t));
        for (int64_t s = 0; s < n; s++) l[s] = is_q ? c->length[s].q : c->length[s].kv;
    }
}

/* ---- values ---------------------------------------------------------------------------------- */

/* Codes of normal numbers with a deviation of 16, or the numbers themselves. */
static inline void cell_fill(const cell *c, void *memory, fp8_dtype t, fp8_strides x,
                             int64_t offset, int is_q, int64_t heads, int64_t d, uint64_t *seed) {
    const float unit = t == FP8_DTYPE_E4M3 ? 16.0f : 1.0f;
    for (int64_t s = 0; s < c->o.num_seqs; s++)
        for (int64_t i = 0; i < (is_q ? c->length[s].q : c->length[s].kv); i++)
            for (int64_t h = 0; h < heads; h++)
                for (int64_t e = 0; e < d; e++) {
                    const int64_t token = (is_q ? c->q_begin[s] : c->kv_begin[s]) + i;
                    element_set(memory, t, offset + cell_at(x, s, token, h) + e,
                                check_normal(seed) * unit);
                }
}

static inline int64_t cell_descales(const fp8_attention_options *o) {
    return o->granularity == FP8_DESCALE_TENSOR  ? 1
           : o->granularity == FP8_DESCALE_HEAD ? o->num_kv_heads
                                                : o->num_seqs * o->num_kv_heads;
}

/* Descales that bring codes back to numbers of about one; for numbers to be quantized, some that
 * let the largest saturate. */
static inline void cell_scales(cell *c, uint64_t *seed) {
    const fp8_attention_options *o = &c->o;
    const int64_t n = cell_descales(o);
    const int given = o->quantize == FP8_QUANTIZE_GIVEN;
    for (int t = 0; t < 3; t++) {
        const int codes = (t == 0 ? o->q_dtype : o->kv_dtype) == FP8_DTYPE_E4M3;
        const float unit = codes ? 1.0f / 16.0f : 3.0f / FP8_E4M3_MAX;
        float *x;
        if (!codes && !given) continue;
        x = cell_memory(c, MEM_Q_DESCALE + t, n, sizeof(float));
        for (int64_t i = 0; i < n; i++) x[i] = unit * (0.7f + (float)check_uniform(seed));
    }
    if (o->o_dtype == FP8_DTYPE_E4M3)
        *(float *)cell_memory(c, MEM_O_SCALE, 1, sizeof(float)) = 90.0f;
}

static inline int64_t cell_plane(const fp8_attention_options *o, fp8_attention_bias_shape shape) {
    const int64_t b = shape == FP8_BIAS_B1SS || shape == FP8_BIAS_BHSS ? o->num_seqs : 1;
    const int64_t h = shape == FP8_BIAS_1HSS || shape == FP8_BIAS_BHSS ? o->num_heads : 1;
    return b * h * o->max_q * o->max_kv;
}

static inline void cell_terms(cell *c, uint64_t *seed) {
    const fp8_attention_options *o = &c->o;
    if (o->mask == FP8_MASK_ARBITRARY) { /* a third, and every 11th row whole */
        const int64_t n = cell_plane(o, o->mask_shape);
        uint8_t *m = cell_memory(c, MEM_MASK, n, 1);
        for (int64_t i = 0; i < n; i++) {
            const uint8_t hit = (uint8_t)(check_random(seed) % 3 == 0 ? 1 + i % 255 : 0);
            m[i] = i / larger(o->max_kv, 1) % 11 == 5 ? 1 : hit;
        }
    }
    if (o->bias == FP8_BIAS_PRE_SCALE || o->bias == FP8_BIAS_POST_SCALE) {
        const int64_t n = cell_plane(o, o->bias_shape);
        void *b = cell_memory(c, MEM_BIAS, n, fp8_dtype_size(o->bias_dtype));
        for (int64_t i = 0; i < n; i++) element_set(b, o->bias_dtype, i, check_normal(seed));
        for (int64_t i = 0; i < n; i += 29) element_set(b, o->bias_dtype, i, -INFINITY);
    }
    if (o->bias == FP8_BIAS_ALIBI && check_random(seed) % 2) {
        float *x = cell_memory(c, MEM_SLOPES, o->num_heads, sizeof(float));
        for (int h = 0; h < o->num_heads; h++) x[h] = (float)check_uniform(seed);
    }
    if (o->sink == FP8_SINK_LEARNABLE) {
        float *x = cell_memory(c, MEM_SINK, o->num_heads, sizeof(float));
        for (int h = 0; h < o->num_heads; h++) x[h] = 3.0f * check_normal(seed);
    }
}

/* Strides as of bshd or thd rows, with `pad` elements of room after each head, token and batch. */
static inline fp8_strides cell_padded(const cell *c, int64_t tokens, int64_t heads, int64_t d,
                                      int64_t pad) {
    const int64_t head = d + pad, token = heads * head + pad;
    return (fp8_strides){c->packed ? 0 : tokens * token + pad, token, head};
}

static inline void cell_strides(cell *c, int64_t pad) {
    fp8_attention_options *o = &c->o;
    if (pad >= 0) {
        o->has_strides = 1;
        o->q = cell_padded(c, o->max_q, o->num_heads, o->d_qk, pad);
        o->k = cell_padded(c, o->max_kv, o->num_kv_heads, o->d_qk, pad);
        o->v = cell_padded(c, o->max_kv, o->num_kv_heads, o->d_v, pad);
        o->o = cell_padded(c, o->max_q, o->num_heads, o->d_v, pad);
        return;
    }
    CHECK_STATUS(fp8_attention_layout_strides(&c->at, o->layout, o->num_seqs, o->max_q, o->max_kv,
                                              o->num_heads, o->num_kv_heads, o->d_qk, o->d_v),
                 FP8_OK);
    o->q = c->at.q;
    o->k = c->at.k;
    o->v = c->at.v;
    o->o = c->at.o;
}

/* The lengths as the layout allows them: one length each where tokens are not packed and come
 * without lengths. */
static inline void cell_measure(cell *c, const cell_lengths *lengths, int apart, int same) {
    fp8_attention_options *o = &c->o;
    for (int s = 0; s < o->num_seqs; s++) {
        c->length[s] = lengths[s];
        if (same && !apart) c->length[s].kv = c->length[s].q;
        o->max_q = larger(o->max_q, c->length[s].q);
        o->max_kv = larger(o->max_kv, c->length[s].kv);
    }
    if (same) o->max_q = o->max_kv = larger(o->max_q, o->max_kv);
    o->padding = !c->packed && apart;
    for (int s = 0; s < o->num_seqs && !c->packed && !apart; s++)
        c->length[s] = (cell_lengths){(int32_t)o->max_q, (int32_t)o->max_kv};
}

/* o: all but num_seqs, max_q, max_kv, padding and strides. apart: lengths are given apart from
 * starts (packed: with gaps, in any order) or of the padded. pad < 0: strides of the layout. */
static inline void cell_init(cell *c, const fp8_attention_options *o, const cell_lengths *lengths,
                             int num_seqs, int apart, int64_t pad, uint64_t seed) {
    const int same = strchr(fp8_attention_layout_name(o->layout), '3') != NULL;
    const int gap = apart ? (int)(check_random(&seed) % 4) : 0;
    int64_t rows;

    memset(c, 0, sizeof *c);
    c->o = *o;
    c->o.num_seqs = num_seqs;
    c->packed = fp8_attention_layout_is_packed(o->layout);
    cell_measure(c, lengths, apart, same);
    cell_place(c, gap, apart && check_random(&seed) % 2, same);
    cell_strides(c, pad);
    cell_operands(c);
    cell_fill(c, c->host[MEM_Q], o->q_dtype, c->o.q, c->at.q_offset, 1, o->num_heads, o->d_qk,
              &seed);
    cell_fill(c, c->host[c->k_mem], o->kv_dtype, c->o.k, c->at.k_offset, 0, o->num_kv_heads,
              o->d_qk, &seed);
    cell_fill(c, c->host[c->v_mem], o->kv_dtype, c->o.v, c->at.v_offset, 0, o->num_kv_heads, o->d_v,
              &seed);
    cell_index(c, MEM_Q_STARTS, MEM_Q_LENGTHS, apart, 1);
    cell_index(c, MEM_KV_STARTS, MEM_KV_LENGTHS, apart, 0);
    cell_scales(c, &seed);
    cell_terms(c, &seed);
    rows = c->packed ? c->total_q : num_seqs * c->o.max_q;
    if (o->want_lse) cell_memory(c, MEM_LSE, o->num_heads * rows, sizeof(float));
    if (o->want_amax) cell_memory(c, MEM_AMAX, 2, sizeof(float));
}

/* ---- the call -------------------------------------------------------------------------------- */

static inline fp8_attention_io cell_io(const cell *c, void *const mem[NUM_MEM]) {
    const size_t q = fp8_dtype_size(c->o.q_dtype), kv = fp8_dtype_size(c->o.kv_dtype);
    float *amax = mem[MEM_AMAX];
    const fp8_attention_io io = {
        .o = mem[MEM_O],
        .q = (const uint8_t *)mem[MEM_Q] + (size_t)c->at.q_offset * q,
        .k = (const uint8_t *)mem[c->k_mem] + (size_t)c->at.k_offset * kv,
        .v = (const uint8_t *)mem[c->v_mem] + (size_t)c->at.v_offset * kv,
        .q_starts = mem[MEM_Q_STARTS],
        .kv_starts = mem[MEM_KV_STARTS],
        .q_lengths = mem[MEM_Q_LENGTHS],
        .kv_lengths = mem[MEM_KV_LENGTHS],
        .total_q = c->total_q,
        .total_kv = c->total_kv,
        .q_descale = mem[MEM_Q_DESCALE],
        .k_descale = mem[MEM_K_DESCALE],
        .v_descale = mem[MEM_V_DESCALE],
        .o_scale = mem[MEM_O_SCALE],
        .mask = mem[MEM_MASK],
        .bias = mem[MEM_BIAS],
        .alibi_slopes = mem[MEM_SLOPES],
        .sink = mem[MEM_SINK],
        .lse = mem[MEM_LSE],
        .amax_s = amax,
        .amax_o = amax ? amax + 1 : NULL,
    };
    return io;
}

static inline void cell_poison(cell *c) {
    for (int i = MEM_O; i <= MEM_AMAX; i++)
        if (c->host[i]) memset(c->host[i], 0xff, c->bytes[i]);
}

/* Device copies of all memory; workspace filled with NaN. */
static inline fp8_status cell_upload(const cell *c, fp8_device *d, void *dev[NUM_MEM]) {
    fp8_status st = FP8_OK;
    for (int i = 0; i < NUM_MEM; i++) {
        if (!c->host[i]) continue;
        FP8_TRY(fp8_device_alloc(d, &dev[i], c->bytes[i]));
        FP8_TRY(fp8_device_upload(d, dev[i], c->host[i], c->bytes[i]));
    }
done:
    return st;
}

static inline fp8_status cell_download(cell *c, fp8_device *d, void *const dev[NUM_MEM]) {
    fp8_status st = FP8_OK;
    for (int i = MEM_O; i <= MEM_AMAX; i++)
        if (c->host[i]) FP8_TRY(fp8_device_download(d, c->host[i], dev[i], c->bytes[i]));
done:
    return st;
}

/* Runs a plan of c->o and fetches O, LSE and amax over what the cell holds. */
static inline fp8_status cell_run(cell *c, fp8_device *d, fp8_attention_plan *plan) {
    const size_t bytes = fp8_attention_workspace_size(plan);
    void *dev[NUM_MEM] = {NULL}, *workspace = NULL;
    fp8_attention_io io;
    fp8_status st;

    FP8_TRY(cell_upload(c, d, dev));
    FP8_TRY(fp8_device_alloc(d, &workspace, bytes));
    FP8_TRY(fp8_device_fill(d, workspace, 0xff, bytes)); /* NaN: nothing stale may help */
    io = cell_io(c, dev);
    FP8_TRY(fp8_attention_run(plan, &io, workspace, bytes));
    FP8_TRY(cell_download(c, d, dev));
done:
    for (int i = 0; i < NUM_MEM; i++) fp8_device_free(d, dev[i]);
    fp8_device_free(d, workspace);
    return st;
}
#endif
