/* The unfused backend: gather to padded operands, S = Q K^T, softmax in FP32, O = P V, scatter. Any
 * GPU and any option; what it costs is the trip of S and P through memory. Work is cut into slices
 * by the plan's maxima and what its mask hides for certain, so that nothing depends on device data.
 *
 * Products are in FP8 where both operands are codes and the device has FP8 tensor cores; codes are
 * F16 elsewhere, which holds each of them. */
#include <stdio.h>
#include <stdlib.h>

#include "attention/qkv_descales.h"
#include "attention/unfused.h"
#include "quant/gemm.h"

/* Slices take at most this many bytes of scratch, unless one unit by MIN_TOKENS needs more, and for
 * a mask's sake are not made smaller than this many scores (0.1 ms on an H200). */
#define SLICE_BYTES ((int64_t)1 << 30)
#define SLICE_SCORES 0x1p25

enum {
    MIN_TOKENS = 64,
    MAX_PARTS = 8,     /* of a triangle */
    MAX_UNITS = 32768, /* a grid's second dimension ends at 65535 */
    PITCH = 16,        /* elements: FP8 products want k and n so */
    ALIGN = 256
};

/* Parts of the workspace. */
enum { AT_Q, AT_K, AT_V, AT_S, AT_P, AT_FACTOR, AT_O, AT_DESCALES, AT_GEMM, NUM_PARTS };

typedef struct unfused_state {
    attention_slice shape; /* without pointers, unit0 and token0; s_pitch of the widest */
    size_t at[NUM_PARTS];  /* byte offsets */
    size_t gemm_bytes;
} unfused_state;

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t pitch_of(int64_t n) { return ceil_div(n > 0 ? n : 1, PITCH) * PITCH; }
static int64_t bytes_of(fp8_dtype t) { return (int64_t)fp8_dtype_size(t); }

/* ---- types ----------------------------------------------------------------------------------- */

static int is_codes(const fp8_attention_options *o, fp8_dtype t) {
    return t == FP8_DTYPE_E4M3 || o->quantize != FP8_QUANTIZE_NOT;
}

/* The type of a product whose operands are of `t`, at least one of them no code. */
static fp8_dtype dense_type(fp8_dtype t, int32_t capability) {
    return t == FP8_DTYPE_BF16 && capability < 80 ? FP8_DTYPE_F32 : t;
}

static void choose_types(attention_slice *a, int32_t capability) {
    const fp8_attention_options *o = &a->options;
    const int q = is_codes(o, o->q_dtype), kv = is_codes(o, o->kv_dtype);

    if (q && kv) a->qk_dtype = capability >= 89 ? FP8_DTYPE_E4M3 : FP8_DTYPE_F16;
    else a->qk_dtype = dense_type(q ? o->kv_dtype : o->q_dtype, capability);
    a->pv_dtype = a->qk_dtype;
    if (kv && o->quantize_p && capability >= 89) a->pv_dtype = FP8_DTYPE_E4M3;
    else if (a->qk_dtype == FP8_DTYPE_E4M3) a->pv_dtype = FP8_DTYPE_F16;
    a->p_scale = a->pv_dtype == FP8_DTYPE_F16 ? 0x1p14f : 1.0f;
    if (o->quantize_p) a->p_scale = 0x1p8f;
}

/* ---- slicing --------------------------------------------------------------------------------- */

/* *shift = diagonal - token where that is known without the lengths. */
static int known_diagonal(const fp8_attention_options *o, int64_t *shift) {
    *shift = o->mask == FP8_MASK_CAUSAL ? 0 : o->max_kv - o->max_q;
    return o->mask == FP8_MASK_CAUSAL ||
           (!o->padding && !fp8_attention_layout_is_packed(o->layout));
}

static int is_causal(const fp8_attention_options *o) {
    return o->mask == FP8_MASK_CAUSAL || o->mask == FP8_MASK_CAUSAL_BOTTOM_RIGHT;
}

/* Turns the slice to the tokens from token0 on and the keys that these may see: all of them unless
 * the diagonal is known. */
static void turn_to(attention_slice *a, int64_t token0) {
    const fp8_attention_options *o = &a->options;
    int64_t shift, first, last, lo = 0, hi = o->max_kv;

    a->token0 = token0;
    if (known_diagonal(o, &shift)) {
        first = token0 + shift;
        last = first + a->tokens - 1;
        if (is_causal(o)) hi = attention_clamp(last + 1, 0, hi);
        if (o->window_right >= 0) hi = attention_clamp(last + o->window_right + 1, 0, hi);
        if (o->window_left >= 0) lo = attention_clamp(first - o->window_left, 0, hi);
    }
    a->key0 = attention_clamp(lo / PITCH * PITCH, 0, a->kv_pitch - PITCH);
    a->s_pitch = pitch_of(hi - a->key0);
}

/* Bytes of a unit's keys and values, and of one of its query tokens with `keys` keys. */
static int64_t unit_bytes(const attention_slice *a) {
    return a->kv_pitch *
           (a->d_qk_pitch * bytes_of(a->qk_dtype) + a->d_v_pitch * bytes_of(a->pv_dtype));
}
static int64_t token_bytes(const attention_slice *a, int64_t keys) {
    return a->group * (a->d_qk_pitch * bytes_of(a->qk_dtype) +
                       keys * (4 + bytes_of(a->pv_dtype)) + 4 + a->d_v_pitch * 4);
}

/* That neither of the above, times the tokens, leaves int64_t. */
static fp8_status check_bytes(const attention_slice *a) {
    const fp8_attention_options *o = &a->options;
    const int64_t d = a->d_qk_pitch + a->d_v_pitch, row = a->kv_pitch + d;
    int64_t count;
    fp8_status st;
    FP8_TRY(fp8_shape_count(&count, (int64_t[]){a->kv_pitch, d, 4}, 3));
    FP8_TRY(fp8_shape_count(&count, (int64_t[]){o->max_q, o->num_heads, row, 16}, 4));
done:
    return st;
}

/* The most of `total` that fits `limit`, at least `least`, cut into even parts. */
static int64_t even_part(int64_t total, int64_t limit, int64_t least) {
    if (limit < least) limit = least;
    return limit >= total ? total : ceil_div(total, ceil_div(total, limit));
}

/* Tokens of a slice, memory aside: all of them, or few enough that a mask leaves out most of what
 * it hides: of a triangle 8 parts cost 9/16 of the square; a window wants tokens as wide as it. */
static int64_t wanted_tokens(const attention_slice *a) {
    const fp8_attention_options *o = &a->options;
    const int bounded_left = o->window_left >= 0;
    const int bounded_right = is_causal(o) || o->window_right >= 0;
    const double scores = (double)o->num_seqs * o->num_heads * (double)o->max_q * (double)o->max_kv;
    const int64_t right = is_causal(o) ? 0 : o->window_right;
    int64_t shift, parts = MAX_PARTS;

    if (!known_diagonal(o, &shift) || !(bounded_left || bounded_right)) return o->max_q;
    if (bounded_left && bounded_right) parts = o->max_q / (o->window_left + right + MIN_TOKENS);
    if ((double)parts > scores / SLICE_SCORES) parts = (int64_t)(scores / SLICE_SCORES);
    return parts > 1 ? ceil_div(o->max_q, parts) : o->max_q;
}

/* The slice's s_pitch for the widest of its turns, which buffers are made for. */
static int64_t widest_turn(attention_slice *a) {
    int64_t widest = 0;
    for (int64_t token0 = 0; token0 < a->options.max_q; token0 += a->tokens) {
        turn_to(a, token0);
        if (a->s_pitch > widest) widest = a->s_pitch;
    }
    return widest;
}

/* Whole units while they fit; else one unit and some of its tokens. */
static void choose_slice(attention_slice *a) {
    const fp8_attention_options *o = &a->options;
    int64_t bytes, fit;

    a->tokens = wanted_tokens(a);
    bytes = token_bytes(a, widest_turn(a));
    fit = SLICE_BYTES / (unit_bytes(a) + a->tokens * bytes);
    a->units = even_part(o->num_seqs * o->num_kv_heads, fit < MAX_UNITS ? fit : MAX_UNITS, 1);
    if (fit == 0)
        a->tokens = even_part(a->tokens, (SLICE_BYTES - unit_bytes(a)) / bytes, MIN_TOKENS);
    a->s_pitch = widest_turn(a);
    a->key0 = a->token0 = 0;
}

/* ---- the two products ------------------------------------------------------------------------ */

static fp8_gemm scores_gemm(const attention_slice *a) {
    const int64_t rows = a->tokens * a->group;
    return (fp8_gemm){.m = rows,
                      .n = a->s_pitch,
                      .k = a->d_qk_pitch,
                      .a = a->q,
                      .b = (uint8_t *)a->k + a->key0 * a->d_qk_pitch * bytes_of(a->qk_dtype),
                      .d = a->s,
                      .lda = a->d_qk_pitch,
                      .ldb = a->d_qk_pitch,
                      .ldd = a->s_pitch,
                      .a_dtype = a->qk_dtype,
                      .b_dtype = a->qk_dtype,
                      .d_dtype = FP8_DTYPE_F32,
                      .alpha = 1.0f,
                      .a_descale_count = 1,
                      .b_descale_count = 1,
                      .batch = a->units,
                      .a_stride = rows * a->d_qk_pitch,
                      .b_stride = a->kv_pitch * a->d_qk_pitch,
                      .d_stride = rows * a->s_pitch};
}

static fp8_gemm output_gemm(const attention_slice *a) {
    const int64_t rows = a->tokens * a->group;
    const int transposed = a->pv_dtype == FP8_DTYPE_E4M3;
    const int64_t key = transposed ? 1 : a->d_v_pitch; /* elements from one key of V to the next */
    const int fast = transposed && a->options.precision == FP8_ATTENTION_FAST;
    return (fp8_gemm){.m = rows,
                      .n = a->d_v_pitch,
                      .k = a->s_pitch,
                      .a = a->p,
                      .b = (uint8_t *)a->v + a->key0 * key * bytes_of(a->pv_dtype),
                      .d = a->o,
                      .lda = a->s_pitch,
                      .ldb = transposed ? a->kv_pitch : a->d_v_pitch,
                      .ldd = a->d_v_pitch,
                      .a_dtype = a->pv_dtype,
                      .b_dtype = a->pv_dtype,
                      .d_dtype = FP8_DTYPE_F32,
                      .b_is_kn = !transposed,
                      .alpha = 1.0f,
                      .a_descale_count = 1,
                      .b_descale_count = 1,
                      .batch = a->units,
                      .a_stride = rows * a->s_pitch,
                      .b_stride = a->kv_pitch * a->d_v_pitch,
                      .d_stride = rows * a->d_v_pitch,
                      .accumulate = fast ? FP8_ACCUMULATE_FAST : FP8_ACCUMULATE_EXACT};
}

/* ---- the plan -------------------------------------------------------------------------------- */

static void lay_out(unfused_state *u) {
    const attention_slice *a = &u->shape;
    const fp8_attention_options *o = &a->options;
    const int64_t rows = a->units * a->tokens * a->group, keys = a->units * a->kv_pitch;
    const int64_t bytes[NUM_PARTS] = {
        [AT_Q] = rows * a->d_qk_pitch * bytes_of(a->qk_dtype),
        [AT_K] = keys * a->d_qk_pitch * bytes_of(a->qk_dtype),
        [AT_V] = keys * a->d_v_pitch * bytes_of(a->pv_dtype),
        [AT_S] = rows * a->s_pitch * 4,
        [AT_P] = rows * a->s_pitch * bytes_of(a->pv_dtype),
        [AT_FACTOR] = rows * 4,
        [AT_O] = rows * a->d_v_pitch * 4,
        [AT_DESCALES] = o->quantize == FP8_QUANTIZE_CURRENT ? attention_descale_count(o) * 12 : 0,
        [AT_GEMM] = (int64_t)u->gemm_bytes};
    size_t at = 0;
    for (int i = 0; i < NUM_PARTS; i++) {
        u->at[i] = at;
        at += (size_t)(ceil_div(bytes[i], ALIGN) * ALIGN);
    }
}

static fp8_status check_products(const fp8_attention_plan *p, unfused_state *u) {
    const fp8_gemm gemm[2] = {scores_gemm(&u->shape), output_gemm(&u->shape)};
    for (int i = 0; i < 2; i++) {
        const size_t want = fp8_gemm_workspace_size(p->device, &gemm[i]);
        if (!fp8_gemm_supported(p->device, &gemm[i]))
            return FP8_FAIL(FP8_EUNSUPPORTED, "no %s product %lld x %lld x %lld, batch %lld",
                            fp8_dtype_name(gemm[i].a_dtype), (long long)gemm[i].m,
                            (long long)gemm[i].n, (long long)gemm[i].k, (long long)gemm[i].batch);
        if (want > u->gemm_bytes) u->gemm_bytes = want;
    }
    return FP8_OK;
}

static fp8_status unfused_open(fp8_attention_plan *p) {
    const fp8_attention_options *o = &p->options;
    unfused_state *u = calloc(1, sizeof *u);
    attention_slice *a;
    fp8_status st;

    if (!u) return FP8_FAIL(FP8_ENOMEM, "unfused attention plan");
    p->state = u;
    a = &u->shape;
    a->options = *o;
    a->group = o->num_heads / o->num_kv_heads;
    a->kv_pitch = pitch_of(o->max_kv);
    a->d_qk_pitch = pitch_of(o->d_qk);
    a->d_v_pitch = pitch_of(o->d_v);
    if (o->num_seqs == 0 || o->max_q == 0) return FP8_OK; /* nothing to run, ever */
    choose_types(a, fp8_device_capability(p->device));
    FP8_TRY(check_bytes(a));
    choose_slice(a);
    FP8_TRY(check_products(p, u));
    lay_out(u);
    p->workspace_bytes = ALIGN + u->at[AT_GEMM] + u->gemm_bytes;
done:
    return st;
}

static void unfused_close(fp8_attention_plan *p) {
    free(p->state);
    p->state = NULL;
}

/* ---- a run ----------------------------------------------------------------------------------- */

/* The descales that slices use. */
static fp8_status find_descales(fp8_attention_plan *p, attention_slice *a, uint8_t *base) {
    const unfused_state *u = p->state;
    const fp8_attention_options *o = &p->options;
    const fp8_stream stream = fp8_device_stream(p->device);
    float *current = (void *)(base + u->at[AT_DESCALES]);
    const int64_t count = attention_descale_count(o);
    const int made = o->quantize == FP8_QUANTIZE_CURRENT;

    if (is_codes(o, o->q_dtype)) a->q_descale = a->io.q_descale;
    if (is_codes(o, o->kv_dtype)) {
        a->k_descale = a->io.k_descale;
        a->v_descale = a->io.v_descale;
    }
    if (made && o->q_dtype != FP8_DTYPE_E4M3) a->q_descale = current;
    if (made && o->kv_dtype != FP8_DTYPE_E4M3) {
        a->k_descale = current + count;
        a->v_descale = current + 2 * count;
    }
    return made ? attention_current_descales(current, o, &a->io, stream) : FP8_OK;
}

/* One slice's queries, its unit's keys being in place. */
static fp8_status run_slice(fp8_attention_plan *p, const attention_slice *a, void *gemm_workspace) {
    const unfused_state *u = p->state;
    const fp8_stream stream = fp8_device_stream(p->device);
    const fp8_gemm scores = scores_gemm(a), output = output_gemm(a);
    fp8_status st;

    FP8_TRY(attention_gather_q(a, stream));
    FP8_TRY(fp8_gemm_run(p->device, &scores, gemm_workspace, u->gemm_bytes));
    FP8_TRY(attention_softmax(a, stream));
    FP8_TRY(fp8_gemm_run(p->device, &output, gemm_workspace, u->gemm_bytes));
    FP8_TRY(attention_scatter_o(a, stream));
done:
    return st;
}

static fp8_status unfused_run(fp8_attention_plan *p, const fp8_attention_io *io, void *workspace) {
    const unfused_state *u = p->state;
    const fp8_attention_options *o = &p->options;
    const int64_t num_units = o->num_seqs * o->num_kv_heads;
    uint8_t *base = (uint8_t *)workspace + (uintptr_t)-(intptr_t)workspace % ALIGN;
    attention_slice a = u->shape;
    fp8_status st = FP8_OK;

    if (o->want_amax) {
        FP8_TRY(fp8_device_fill(p->device, io->amax_s, 0, sizeof(float)));
        FP8_TRY(fp8_device_fill(p->device, io->amax_o, 0, sizeof(float)));
    }
    if (num_units == 0 || o->max_q == 0) goto done;
    a.io = *io;
    a.q = base + u->at[AT_Q];
    a.k = base + u->at[AT_K];
    a.v = base + u->at[AT_V];
    a.s = (void *)(base + u->at[AT_S]);
    a.p = base + u->at[AT_P];
    a.factor = (void *)(base + u->at[AT_FACTOR]);
    a.o = (void *)(base + u->at[AT_O]);
    FP8_TRY(find_descales(p, &a, base));
    for (a.unit0 = 0; a.unit0 < num_units; a.unit0 += a.units) {
        FP8_TRY(attention_gather_kv(&a, fp8_device_stream(p->device)));
        for (int64_t token0 = 0; token0 < o->max_q; token0 += a.tokens) {
            turn_to(&a, token0);
            FP8_TRY(run_slice(p, &a, base + u->at[AT_GEMM]));
        }
    }
done:
    return st;
}

const attention_backend attention_backend_unfused = {
    FP8_BACKEND_UNFUSED, "unfused",     "FP8_UNFUSED_ATTN", attention_unfused_check,
    unfused_open,        unfused_close, unfused_run,
};
