/* tests/attention_sweep.h - attention problems drawn at random over every option: options, operands
 * on the host in exact-size allocations, what must come out (fp8_attention_reference), and the
 * comparison. Any backend is held to it: bring a buffer's bytes to the device, run, bring back O,
 * LSE and the amax. */
#ifndef FP8_TESTS_ATTENTION_SWEEP_H
#define FP8_TESTS_ATTENTION_SWEEP_H
#include <string.h>

#include "attention/attention.h"
#include "attention/attention_impl.h"
#include "check.h"
#include "core/half.h"
#include "quant/quant.h"

/* ---- buffers --------------------------------------------------------------------------------- */

typedef enum sweep_slot {
    SWEEP_Q, /* Q, and K, V where the layout interleaves them with Q */
    SWEEP_K, /* K, and V where it interleaves the two */
    SWEEP_V,
    SWEEP_O,
    SWEEP_LSE,
    SWEEP_AMAX, /* S, O */
    SWEEP_Q_STARTS,
    SWEEP_KV_STARTS,
    SWEEP_Q_LENGTHS,
    SWEEP_KV_LENGTHS,
    SWEEP_Q_DESCALE,
    SWEEP_K_DESCALE,
    SWEEP_V_DESCALE,
    SWEEP_O_SCALE,
    SWEEP_MASK,
    SWEEP_BIAS,
    SWEEP_SLOPES,
    SWEEP_SINK,
    SWEEP_SLOTS
} sweep_slot;

typedef struct sweep_buffer {
    void *data; /* NULL: not wanted */
    size_t bytes;
} sweep_buffer;

typedef struct sweep_case {
    fp8_attention_options o;
    sweep_buffer buffer[SWEEP_SLOTS];
    int64_t total_q, total_kv;
    sweep_slot k_in, v_in; /* where K and V lie, from this byte on */
    size_t k_at, v_at;
    int bad_values, bad_v; /* NaN or Inf among Q, K, V; in V */
    double *want_o, *want_lse, want_amax[2];
    uint8_t *want_written; /* [elements of SWEEP_O] */
} sweep_case;

/* The io over buffers that lie at `at` (the case's own, or their copies on a device). */
static inline fp8_attention_io sweep_io(const sweep_case *c, void *const at[SWEEP_SLOTS]) {
    uint8_t *const k = at[c->k_in], *const v = at[c->v_in];
    float *const amax = at[SWEEP_AMAX];
    return (fp8_attention_io){.o = at[SWEEP_O],
                              .q = at[SWEEP_Q],
                              .k = k ? k + c->k_at : NULL,
                              .v = v ? v + c->v_at : NULL,
                              .q_starts = at[SWEEP_Q_STARTS],
                              .kv_starts = at[SWEEP_KV_STARTS],
                              .q_lengths = at[SWEEP_Q_LENGTHS],
                              .kv_lengths = at[SWEEP_KV_LENGTHS],
                              .total_q = c->total_q,
                              .total_kv = c->total_kv,
                              .q_descale = at[SWEEP_Q_DESCALE],
                              .k_descale = at[SWEEP_K_DESCALE],
                              .v_descale = at[SWEEP_V_DESCALE],
                              .o_scale = at[SWEEP_O_SCALE],
                              .mask = at[SWEEP_MASK],
                              .bias = at[SWEEP_BIAS],
                              .alibi_slopes = at[SWEEP_SLOPES],
                              .sink = at[SWEEP_SINK],
                              .lse = at[SWEEP_LSE],
                              .amax_s = amax,
                              .amax_o = amax ? amax + 1 : NULL};
}

static inline fp8_attention_io sweep_host_io(const sweep_case *c) {
    void *at[SWEEP_SLOTS];
    for (int i = 0; i < SWEEP_SLOTS; i++) at[i] = c->buffer[i].data;
    return sweep_io(c, at);
}

static inline void *sweep_alloc(sweep_case *c, sweep_slot slot, int64_t count, size_t size) {
    const size_t bytes = (size_t)count * size;
    void *p = calloc(bytes ? bytes : 1, 1); /* exact size: ASan sees strays */
    if (!p) abort();
    c->buffer[slot] = (sweep_buffer){p, bytes};
    return p;
}

static inline void sweep_free(sweep_case *c) {
    for (int i = 0; i < SWEEP_SLOTS; i++) free(c->buffer[i].data);
    free(c->want_o);
    free(c->want_lse);
    free(c->want_written);
    memset(c, 0, sizeof *c);
}

/* ---- elements -------------------------------------------------------------------------------- */

static inline float sweep_load(const void *x, fp8_dtype t, int64_t i) {
    if (t == FP8_DTYPE_F32) return ((const float *)x)[i];
    if (t == FP8_DTYPE_BF16) return fp8_bf16_to_f32(((const uint16_t *)x)[i]);
    if (t == FP8_DTYPE_F16) return fp8_f16_to_f32(((const uint16_t *)x)[i]);
    return fp8_to_f32(FP8_DTYPE_E4M3, ((const uint8_t *)x)[i]);
}

static inline void sweep_store(void *x, fp8_dtype t, int64_t i, float f) {
    if (t == FP8_DTYPE_F32) ((float *)x)[i] = f;
    else if (t == FP8_DTYPE_BF16) ((uint16_t *)x)[i] = fp8_f32_to_bf16(f);
    else if (t == FP8_DTYPE_F16) ((uint16_t *)x)[i] = fp8_f32_to_f16(f);
    else ((uint8_t *)x)[i] = fp8_from_f32(FP8_DTYPE_E4M3, f);
}

/* Normals; E4M3 codes of normals times 16. Four elements a draw, from a table of them. */
static inline void sweep_fill(sweep_buffer *b, fp8_dtype t, uint64_t *seed) {
    enum { NORMALS = 1 << 16 };
    static float normals[NORMALS];
    const int64_t n = (int64_t)(b->bytes / fp8_dtype_size(t));
    uint64_t table_seed = 1, r = 0;
    for (int i = 0; normals[NORMALS - 1] == 0 && i < NORMALS; i++)
        normals[i] = check_normal(&table_seed);
    for (int64_t i = 0; i < n; i++) {
        r = i % 4 ? r >> 16 : check_random(seed);
        sweep_store(b->data, t, i,
                    normals[r % NORMALS] * (t == FP8_DTYPE_E4M3 ? 16.0f : 1.0f));
    }
}

/* ---- drawing --------------------------------------------------------------------------------- */

static inline int64_t sweep_below(uint64_t *seed, int64_t n) {
    return (int64_t)(check_random(seed) % (uint64_t)n);
}
#define SWEEP_PICK(seed, ...)                                                                      \
    ((const int64_t[]){__VA_ARGS__}[sweep_below(seed, (int64_t)(sizeof(                            \
                                                          (const int64_t[]){__VA_ARGS__}) /        \
                                                      sizeof(int64_t)))])

static inline int sweep_shares_q(fp8_attention_layout l) {
    return strchr(fp8_attention_layout_name(l), '3') != NULL;
}
static inline int sweep_shares_kv(fp8_attention_layout l) {
    return strchr(fp8_attention_layout_name(l), '2') != NULL;
}

static inline void sweep_draw_shape(fp8_attention_options *o, uint64_t *s) {
    o->layout = (fp8_attention_layout)sweep_below(s, FP8_NUM_LAYOUTS);
    o->num_kv_heads = (int32_t)SWEEP_PICK(s, 1, 2, 3);
    o->num_heads = o->num_kv_heads * (int32_t)SWEEP_PICK(s, 1, 1, 2, 3);
    o->d_qk = (int32_t)SWEEP_PICK(s, 1, 8, 16, 20, 33);
    o->d_v = sweep_below(s, 2) ? o->d_qk : (int32_t)SWEEP_PICK(s, 1, 7, 16, 24);
    o->num_seqs = SWEEP_PICK(s, 0, 1, 1, 2, 2, 3);
    o->max_q = SWEEP_PICK(s, 0, 1, 2, 5, 17, 33, 63, 64, 65);
    o->max_kv = SWEEP_PICK(s, 0, 1, 2, 5, 17, 33, 63, 64, 65, 129);
    if (sweep_shares_q(o->layout)) {
        o->num_heads = o->num_kv_heads;
        o->max_kv = o->max_q;
    }
    if (sweep_shares_q(o->layout) || sweep_shares_kv(o->layout)) o->d_v = o->d_qk;
    o->padding = !fp8_attention_layout_is_packed(o->layout) && sweep_below(s, 2);
}

static inline void sweep_draw_formula(fp8_attention_options *o, uint64_t *s) {
    o->mask = (fp8_attention_mask)sweep_below(s, 4);
    o->mask_shape = (fp8_attention_bias_shape)sweep_below(s, 4);
    o->window_left = SWEEP_PICK(s, -1, -1, -1, 0, 1, 5, 40);
    o->window_right = SWEEP_PICK(s, -1, -1, -1, 0, 1, 5, 40);
    o->bias = (fp8_attention_bias)sweep_below(s, 4);
    o->bias_shape = (fp8_attention_bias_shape)sweep_below(s, 4);
    o->bias_dtype = (fp8_dtype)SWEEP_PICK(s, FP8_DTYPE_F32, FP8_DTYPE_BF16, FP8_DTYPE_F16);
    o->softcap = (float)SWEEP_PICK(s, 0, 0, 1, 30);
    o->sink = (fp8_attention_sink)SWEEP_PICK(s, 0, 0, 1, 2);
    o->scale = (float)SWEEP_PICK(s, 0, 0, -1, 2) * 0.25f;
}

static inline void sweep_draw_types(fp8_attention_options *o, uint64_t *s) {
    const fp8_dtype wide =
        (fp8_dtype)SWEEP_PICK(s, FP8_DTYPE_F32, FP8_DTYPE_BF16, FP8_DTYPE_F16);
    o->q_dtype = SWEEP_PICK(s, 0, 0, 1) ? FP8_DTYPE_E4M3 : wide;
    o->kv_dtype = SWEEP_PICK(s, 0, 1) ? FP8_DTYPE_E4M3 : wide;
    if (sweep_shares_q(o->layout)) o->q_dtype = o->kv_dtype; /* one memory, one type */
    o->o_dtype = (fp8_dtype)SWEEP_PICK(s, FP8_DTYPE_F32, FP8_DTYPE_BF16, FP8_DTYPE_F16,
                                       FP8_DTYPE_E4M3);
    if (o->q_dtype != FP8_DTYPE_E4M3 || o->kv_dtype != FP8_DTYPE_E4M3)
        o->quantize = (fp8_attention_quantize)sweep_below(s, 3);
    o->granularity = (fp8_attention_granularity)sweep_below(s, 3);
    o->quantize_p = (int)sweep_below(s, 2);
    o->precision = (fp8_attention_precision)sweep_below(s, 2);
    o->want_lse = (int)sweep_below(s, 2);
    o->want_amax = (int)sweep_below(s, 2);
}

/* Strides with gaps, of tensors that have their own memory. */
static inline void sweep_stretch(fp8_attention_options *o, uint64_t *s) {
    fp8_layout_strides x;
    fp8_strides *const all[4] = {&x.q, &x.k, &x.v, &x.o};
    if (fp8_attention_layout_strides(&x, o->layout, o->num_seqs, o->max_q, o->max_kv, o->num_heads,
                                     o->num_kv_heads, o->d_qk, o->d_v) != FP8_OK)
        abort();
    for (int i = 0; i < 4; i++) {
        const int64_t times = SWEEP_PICK(s, 1, 2, 3);
        all[i]->batch *= times;
        all[i]->token *= times;
        all[i]->head *= times;
    }
    o->has_strides = 1;
    o->q = x.q;
    o->k = x.k;
    o->v = x.v;
    o->o = x.o;
}

/* ---- operands -------------------------------------------------------------------------------- */

/* Elements from the first of a tensor [b, tokens, heads, d] to behind its last. */
static inline int64_t sweep_extent(fp8_strides x, int64_t b, int64_t tokens, int64_t heads,
                                   int64_t d) {
    if (b == 0 || tokens == 0) return 0;
    return (b - 1) * x.batch + (tokens - 1) * x.token + (heads - 1) * x.head + d;
}

/* Starts (and lengths) of packed sequences, in a random order with gaps; returns the total. */
static inline int64_t sweep_pack(sweep_case *c, sweep_slot starts_slot, sweep_slot lengths_slot,
                                 int64_t longest, int apart, uint64_t *s) {
    const int64_t n = c->o.num_seqs, turn = n ? sweep_below(s, n) : 0;
    int32_t *starts = sweep_alloc(c, starts_slot, apart ? n : n + 1, sizeof *starts);
    int32_t *lengths = apart ? sweep_alloc(c, lengths_slot, n, sizeof *lengths) : NULL;
    int64_t at = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t seq = apart ? (i + turn) % n : i;
        const int64_t length = SWEEP_PICK(s, 0, 1, 2) == 0 ? longest : sweep_below(s, longest + 1);
        if (apart) at += SWEEP_PICK(s, 0, 0, 1, 3);
        starts[seq] = (int32_t)at;
        if (apart) lengths[seq] = (int32_t)length;
        at += length;
        if (!apart) starts[i + 1] = (int32_t)at;
    }
    return at;
}

static inline void sweep_pad(sweep_case *c, sweep_slot slot, int64_t longest, uint64_t *s) {
    int32_t *lengths;
    if (sweep_below(s, 4) == 0) return; /* NULL: all of them whole */
    lengths = sweep_alloc(c, slot, c->o.num_seqs, sizeof *lengths);
    for (int64_t i = 0; i < c->o.num_seqs; i++)
        lengths[i] = (int32_t)SWEEP_PICK(s, 0, longest, sweep_below(s, longest + 1), 1,
                                         longest + 3, -2); /* the last two are clamped */
}

static inline void sweep_make_lengths(sweep_case *c, uint64_t *s) {
    const fp8_attention_options *o = &c->o;
    if (fp8_attention_layout_is_packed(o->layout)) {
        const int apart = (int)sweep_below(s, 2);
        c->total_q = sweep_pack(c, SWEEP_Q_STARTS, SWEEP_Q_LENGTHS, o->max_q, apart, s);
        c->total_kv = sweep_pack(c, SWEEP_KV_STARTS, SWEEP_KV_LENGTHS, o->max_kv, apart, s);
        if (sweep_shares_q(o->layout)) /* one memory: the larger total for both */
            c->total_q = c->total_kv = c->total_q > c->total_kv ? c->total_q : c->total_kv;
    } else if (o->padding) {
        sweep_pad(c, SWEEP_Q_LENGTHS, o->max_q, s);
        sweep_pad(c, SWEEP_KV_LENGTHS, o->max_kv, s);
    }
}

/* Q, K, V: one memory, two or three, as the layout says. */
static inline void sweep_make_operands(sweep_case *c, uint64_t *s) {
    const fp8_attention_options *o = &c->o;
    const int packed = fp8_attention_layout_is_packed(o->layout);
    const int64_t b = packed ? 1 : o->num_seqs;
    const int64_t t_q = packed ? c->total_q : o->max_q, t_kv = packed ? c->total_kv : o->max_kv;
    const size_t size = fp8_dtype_size(o->kv_dtype);
    fp8_attention_options r;
    fp8_layout_strides x;
    int64_t q, k, v;

    if (attention_resolve_options(&r, o) != FP8_OK ||
        fp8_attention_layout_strides(&x, o->layout, o->num_seqs, o->max_q, o->max_kv, o->num_heads,
                                     o->num_kv_heads, o->d_qk, o->d_v) != FP8_OK)
        abort();
    q = sweep_extent(r.q, b, t_q, o->num_heads, o->d_qk);
    k = sweep_extent(r.k, b, t_kv, o->num_kv_heads, o->d_qk);
    v = sweep_extent(r.v, b, t_kv, o->num_kv_heads, o->d_v);
    c->k_in = sweep_shares_q(o->layout) ? SWEEP_Q : SWEEP_K;
    c->v_in = c->k_in == SWEEP_Q ? SWEEP_Q : sweep_shares_kv(o->layout) ? SWEEP_K : SWEEP_V;
    c->k_at = (size_t)x.k_offset * size;
    c->v_at = (size_t)x.v_offset * size;
    if (c->v_in == SWEEP_Q && v > 0) q = x.v_offset + v;
    if (c->v_in == SWEEP_K && v > 0) k = x.v_offset + v;
    sweep_alloc(c, SWEEP_Q, q, fp8_dtype_size(o->q_dtype));
    if (c->k_in == SWEEP_K) sweep_alloc(c, SWEEP_K, k, size);
    if (c->v_in == SWEEP_V) sweep_alloc(c, SWEEP_V, v, size);
    for (int i = SWEEP_Q; i <= SWEEP_V; i++)
        if (c->buffer[i].data)
            sweep_fill(&c->buffer[i], i == SWEEP_Q ? o->q_dtype : o->kv_dtype, s);
    sweep_alloc(c, SWEEP_O, sweep_extent(r.o, b, t_q, o->num_heads, o->d_v),
                fp8_dtype_size(o->o_dtype));
    sweep_alloc(c, SWEEP_LSE, packed ? o->num_heads * t_q : b * o->num_heads * t_q, sizeof(float));
}

/* What scales the codes back to normals, give or take a factor of two. */
static inline void sweep_make_descales(sweep_case *c, uint64_t *s) {
    const fp8_attention_options *o = &c->o;
    const int64_t units = o->num_seqs * o->num_kv_heads;
    const int64_t count = o->granularity == FP8_DESCALE_TENSOR ? 1
                          : o->granularity == FP8_DESCALE_HEAD ? o->num_kv_heads : units;
    for (int i = SWEEP_Q_DESCALE; i <= SWEEP_V_DESCALE; i++) {
        const fp8_dtype t = i == SWEEP_Q_DESCALE ? o->q_dtype : o->kv_dtype;
        float *x;
        if (t != FP8_DTYPE_E4M3 && o->quantize != FP8_QUANTIZE_GIVEN) continue;
        x = sweep_alloc(c, (sweep_slot)i, count, sizeof *x);
        for (int64_t g = 0; g < count; g++)
            x[g] = (0.5f + (float)check_uniform(s)) / (t == FP8_DTYPE_E4M3 ? 16.0f : 64.0f);
    }
    if (o->quantize == FP8_QUANTIZE_GIVEN) /* all three are asked for */
        for (int i = SWEEP_Q_DESCALE; i <= SWEEP_V_DESCALE; i++)
            if (!c->buffer[i].data) abort();
}

static inline int64_t sweep_plane(const fp8_attention_options *o, fp8_attention_bias_shape shape) {
    const int64_t b = shape == FP8_BIAS_B1SS || shape == FP8_BIAS_BHSS ? o->num_seqs : 1;
    const int64_t h = shape == FP8_BIAS_1HSS || shape == FP8_BIAS_BHSS ? o->num_heads : 1;
    return b * h * o->max_q * o->max_kv;
}

static inline void sweep_make_terms(sweep_case *c, uint64_t *s) {
    const fp8_attention_options *o = &c->o;
    if (o->mask == FP8_MASK_ARBITRARY) {
        const int64_t n = sweep_plane(o, o->mask_shape), one_in = SWEEP_PICK(s, 2, 2, 30);
        uint8_t *mask = sweep_alloc(c, SWEEP_MASK, n, 1);
        for (int64_t i = 0; i < n; i++) /* whole rows too: 8 in a run */
            mask[i] = (uint8_t)(sweep_below(s, one_in) == 0 ? 1 + sweep_below(s, 255) : 0);
        if (n >= 40) memset(mask, 1, (size_t)n / 4);
    }
    if (o->bias == FP8_BIAS_PRE_SCALE || o->bias == FP8_BIAS_POST_SCALE) {
        const int64_t n = sweep_plane(o, o->bias_shape);
        sweep_alloc(c, SWEEP_BIAS, n, fp8_dtype_size(o->bias_dtype));
        sweep_fill(&c->buffer[SWEEP_BIAS], o->bias_dtype, s);
        for (int64_t i = 0; i < n / 5; i++) /* a mask as a bias */
            if (o->bias == FP8_BIAS_POST_SCALE)
                sweep_store(c->buffer[SWEEP_BIAS].data, o->bias_dtype, sweep_below(s, n),
                            -INFINITY);
    }
    if (o->bias == FP8_BIAS_ALIBI && sweep_below(s, 2)) {
        float *slopes = sweep_alloc(c, SWEEP_SLOPES, o->num_heads, sizeof *slopes);
        for (int i = 0; i < o->num_heads; i++) slopes[i] = (float)check_uniform(s);
    }
    if (o->sink == FP8_SINK_LEARNABLE) {
        float *sink = sweep_alloc(c, SWEEP_SINK, o->num_heads, sizeof *sink);
        for (int i = 0; i < o->num_heads; i++) sink[i] = 3.0f * check_normal(s);
    }
    if (o->o_dtype == FP8_DTYPE_E4M3) *(float *)sweep_alloc(c, SWEEP_O_SCALE, 1, 4) = 100.0f;
    if (o->want_amax) sweep_alloc(c, SWEEP_AMAX, 2, sizeof(float));
}

/* NaN and Inf in a few places of Q, K, V. */
static inline void sweep_spoil(sweep_case *c, uint64_t *s) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = SWEEP_Q; i <= SWEEP_V; i++) {
        const fp8_dtype t = i == SWEEP_Q ? c->o.q_dtype : c->o.kv_dtype;
        const int64_t n = (int64_t)(c->buffer[i].bytes / fp8_dtype_size(t));
        if (n == 0 || sweep_below(s, 2)) continue;
        c->bad_values = 1;
        c->bad_v |= i == (int)c->v_in;
        for (int64_t k = 0; k < 1 + n / 500; k++)
            sweep_store(c->buffer[i].data, t, sweep_below(s, n), bad[sweep_below(s, 3)]);
    }
}

/* Case `index` of the sweep; the same on every machine. */
static inline void sweep_draw(sweep_case *c, uint64_t index) {
    const fp8_attention_options start = FP8_ATTENTION_OPTIONS;
    uint64_t s = index * 1000003u + 17u;

    memset(c, 0, sizeof *c);
    c->o = start;
    sweep_draw_shape(&c->o, &s);
    sweep_draw_formula(&c->o, &s);
    sweep_draw_types(&c->o, &s);
    if (!sweep_shares_q(c->o.layout) && !sweep_shares_kv(c->o.layout) && sweep_below(&s, 3) == 0)
        sweep_stretch(&c->o, &s);
    sweep_make_lengths(c, &s);
    sweep_make_operands(c, &s);
    sweep_make_descales(c, &s);
    sweep_make_terms(c, &s);
    if (sweep_below(&s, 6) == 0) sweep_spoil(c, &s);
}

static inline void sweep_print(const sweep_case *c, FILE *f) {
    const fp8_attention_options *o = &c->o;
    fprintf(f,
            "  h %d/%d d %d/%d b %lld s %lld/%lld %s%s%s mask %d/%d window %lld %lld bias %d/%d "
            "softcap %g sink %d scale %g %s %s %s quantize %d/%d p %d\n",
            o->num_heads, o->num_kv_heads, o->d_qk, o->d_v, (long long)o->num_seqs,
            (long long)o->max_q, (long long)o->max_kv, fp8_attention_layout_name(o->layout),
            o->padding ? " padded" : "", o->has_strides ? " strided" : "", (int)o->mask,
            (int)o->mask_shape, (long long)o->window_left, (long long)o->window_right,
            (int)o->bias, (int)o->bias_shape, (double)o->softcap, (int)o->sink, (double)o->scale,
            fp8_dtype_name(o->q_dtype), fp8_dtype_name(o->kv_dtype), fp8_dtype_name(o->o_dtype),
            (int)o->quantize, (int)o->granularity, o->quantize_p);
}

/* ---- expectation and comparison -------------------------------------------------------------- */

enum { SWEEP_POISON = 0x55 }; /* every byte of O, LSE and the amax before a run */

static inline void sweep_poison(sweep_case *c) {
    for (int i = SWEEP_O; i <= SWEEP_AMAX; i++)
        if (c->buffer[i].data) memset(c->buffer[i].data, SWEEP_POISON, c->buffer[i].bytes);
}

/* Runs the oracle. */
static inline void sweep_expect(sweep_case *c) {
    const fp8_attention_options *o = &c->o;
    const int64_t rows = fp8_attention_layout_is_packed(o->layout) ? c->total_q
                                                                   : o->num_seqs * o->max_q;
    const fp8_attention_io io = sweep_host_io(c);
    c->want_o = calloc((size_t)(rows * o->num_heads * o->d_v) + 1, sizeof(double));
    c->want_lse = calloc((size_t)(rows * o->num_heads) + 1, sizeof(double));
    c->want_written = calloc(c->buffer[SWEEP_O].bytes + 1, 1);
    if (!c->want_o || !c->want_lse || !c->want_written) abort();
    CHECK_STATUS(fp8_attention_reference(c->want_o, c->want_lse, c->want_amax, o, &io), FP8_OK);
}

/* How far O may be: |got - want| <= eps + (half a unit in the last place of its type). */
static inline int sweep_close(const sweep_case *c, double got, double want, double eps) {
    const fp8_dtype t = c->o.o_dtype;
    const double scale = t == FP8_DTYPE_E4M3 ? (double)*(float *)c->buffer[SWEEP_O_SCALE].data : 1;
    const double unit = t == FP8_DTYPE_F32 ? 0x1p-24 : t == FP8_DTYPE_BF16 ? 0x1p-8
                        : t == FP8_DTYPE_F16 ? 0x1p-11 : 0x1p-4;
    const double least = t == FP8_DTYPE_F16 ? 0x1p-25 : t == FP8_DTYPE_E4M3 ? 0x1p-10 : 0;
    if (isnan(want)) return isnan(got);
    if (t == FP8_DTYPE_E4M3 && fabs(want) * scale > 448) want = copysign(448 / scale, want);
    if (isinf(want)) return got == want;
    return fabs(got / (t == FP8_DTYPE_E4M3 ? scale : 1) - want) <=
           eps + unit * (fabs(want) + eps) + least / scale;
}

typedef struct sweep_bounds {
    double o;     /* of values of about 1 */
    double lse;   /* relative to 1 + |LSE| */
    double flip;  /* quantize_p: O of rows in which a P may have been rounded the other way */
    double flips; /* the part of the rows that may be such */
} sweep_bounds;

typedef struct sweep_verdict {
    int64_t rows, wrong, flipped;
} sweep_verdict;

/* One row of O and its LSE. */
static inline void sweep_compare_row(sweep_case *c, const fp8_attention_options *r,
                                     const sweep_bounds *bounds, int64_t seq, int64_t begin,
                                     int64_t token, int64_t head, sweep_verdict *v) {
    const int packed = fp8_attention_layout_is_packed(r->layout);
    const fp8_attention_io io = sweep_host_io(c);
    const int64_t row = packed ? begin + token : seq * r->max_q + token;
    const int64_t at = attention_offset(r->o, seq, begin + token, head);
    const double *want = c->want_o + (row * r->num_heads + head) * r->d_v;
    int wrong = 0, flipped = 0;

    for (int64_t i = 0; i < r->d_v; i++) {
        const double got = (double)sweep_load(c->buffer[SWEEP_O].data, r->o_dtype, at + i);
        c->want_written[at + i] = 1;
        if (sweep_close(c, got, want[i], bounds->o)) continue;
        if (c->bad_v && !isnan(want[i]) && want[i] != 0) continue; /* 0 * NaN of a key beside */
        if (r->quantize_p && sweep_close(c, got, want[i], bounds->flip)) flipped = 1;
        else wrong = 1;
        if (wrong && v->wrong < 3)
            fprintf(stderr, "  sequence %lld token %lld head %lld column %lld: %g, expected %g\n",
                    (long long)seq, (long long)token, (long long)head, (long long)i, got,
                    want[i]);
    }
    if (r->want_lse) {
        const fp8_attention_io *x = &io;
        const int64_t lse_at = packed ? head * x->total_q + row
                                      : (seq * r->num_heads + head) * r->max_q + token;
        const double got = (double)io.lse[lse_at], lse = c->want_lse[lse_at];
        const int same = isnan(lse) || isinf(lse)
                             ? got == lse || (isnan(got) && isnan(lse))
                             : fabs(got - lse) <= bounds->lse * (1 + fabs(lse));
        if (!same)
            fprintf(stderr, "  sequence %lld token %lld head %lld: LSE %g, expected %g\n",
                    (long long)seq, (long long)token, (long long)head, got, lse);
        wrong |= !same;
    }
    v->rows++;
    v->wrong += wrong;
    v->flipped += flipped;
}

static inline int sweep_amax_close(double got, double want, double eps) {
    return isinf(want) ? got == want : fabs(got - want) <= eps * (1 + fabs(want));
}

/* O, LSE and amax against the oracle; elements that are none of O's rows still poisoned. */
static inline void sweep_compare(sweep_case *c, const sweep_bounds *bounds) {
    const int packed = fp8_attention_layout_is_packed(c->o.layout);
    const size_t size = fp8_dtype_size(c->o.o_dtype);
    const uint8_t *bytes = c->buffer[SWEEP_O].data;
    const float *amax = c->buffer[SWEEP_AMAX].data;
    const int failures = check_failures;
    sweep_verdict v = {0, 0, 0};
    fp8_attention_options r;
    fp8_attention_io io = sweep_host_io(c);
    int64_t strays = 0;

    CHECK_STATUS(attention_resolve_options(&r, &c->o), FP8_OK);
    CHECK_STATUS(attention_resolve_io(&io, &r, &io), FP8_OK);
    for (int64_t s = 0; s < r.num_seqs; s++) {
        int64_t begin;
        const int64_t length = attention_sequence(io.q_starts, io.q_lengths, s, io.total_q,
                                                  r.max_q, &begin);
        for (int64_t t = 0; t < (packed ? length : r.max_q); t++)
            for (int64_t h = 0; h < r.num_heads; h++)
                sweep_compare_row(c, &r, bounds, s, begin, t, h, &v);
    }
    for (size_t i = 0; i < c->buffer[SWEEP_O].bytes; i++)
        strays += !c->want_written[i / size] && bytes[i] != SWEEP_POISON;
    CHECK(v.wrong == 0);
    CHECK((double)v.flipped <= 1 + bounds->flips * (double)v.rows);
    CHECK(strays == 0);
    if (r.want_amax) {
        const double eps = r.quantize_p ? bounds->flip : bounds->o;
        CHECK(sweep_amax_close((double)amax[0], c->want_amax[0], bounds->o));
        CHECK(c->bad_v || sweep_amax_close((double)amax[1], c->want_amax[1], eps));
    }
    if (check_failures != failures) sweep_print(c, stderr);
}
#endif
