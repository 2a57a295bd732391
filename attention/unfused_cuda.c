/* The unfused backend: gather to padded BF16, S = Q K^T, softmax in FP32, O = P V, scatter. Any GPU
 * and any option; what it costs is the trip of S and P through memory. Work is cut into slices of
 * one fixed shape, so that both products are planned once and nothing depends on device data. */
#include <stdlib.h>

#include "attention/unfused.h"
#include "quant/gemm.h"

/* Slices take at most this many bytes of scratch, unless one unit by MIN_TOKENS needs more. */
#define SLICE_BYTES ((int64_t)1 << 30)

enum {
    MIN_TOKENS = 64,
    MAX_UNITS = 32768, /* a grid's second dimension ends at 65535 */
    PITCH = 8,         /* elements: 16 bytes of BF16, which every GEMM kernel takes */
    ALIGN = 256
};

typedef struct unfused_state {
    attention_slice shape; /* buffers as offsets into the workspace, unit0 and token0 not set */
    size_t at[8];          /* byte offsets of q, k, v, s, p, factor, o, GEMM workspace */
    size_t gemm_bytes;
} unfused_state;

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t pitch_of(int64_t n) { return ceil_div(n > 0 ? n : 1, PITCH) * PITCH; }

/* ---- slicing --------------------------------------------------------------------------------- */

/* Bytes of a unit's keys and values, and of one of its query tokens. */
static int64_t unit_bytes(const attention_slice *a) {
    return a->kv_pitch * (a->d_qk_pitch + a->d_v_pitch) * 2;
}
static int64_t token_bytes(const attention_slice *a) {
    return a->group * (a->d_qk_pitch * 2 + a->kv_pitch * (4 + 2) + 4 + a->d_v_pitch * 4);
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

/* Whole units while they fit; else one unit and some of its tokens. */
static void choose_slice(attention_slice *a) {
    const fp8_attention_options *o = &a->options;
    const int64_t whole = unit_bytes(a) + o->max_q * token_bytes(a);
    const int64_t fit = SLICE_BYTES / whole;
    a->units = even_part(o->num_seqs * o->num_kv_heads, fit < MAX_UNITS ? fit : MAX_UNITS, 1);
    a->tokens = fit > 0 ? o->max_q
                        : even_part(o->max_q, (SLICE_BYTES - unit_bytes(a)) / token_bytes(a),
                                    MIN_TOKENS);
}

/* ---- the two products ------------------------------------------------------------------------ */

static fp8_gemm scores_gemm(const attention_slice *a) {
    const int64_t rows = a->tokens * a->group;
    return (fp8_gemm){.m = rows,
                      .n = a->kv_pitch,
                      .k = a->d_qk_pitch,
                      .a = a->q,
                      .b = a->k,
                      .d = a->s,
                      .lda = a->d_qk_pitch,
                      .ldb = a->d_qk_pitch,
                      .ldd = a->kv_pitch,
                      .a_dtype = FP8_DTYPE_BF16,
                      .b_dtype = FP8_DTYPE_BF16,
                      .d_dtype = FP8_DTYPE_F32,
                      .alpha = 1.0f,
                      .a_descale_count = 1,
                      .b_descale_count = 1,
                      .batch = a->units,
                      .a_stride = rows * a->d_qk_pitch,
                      .b_stride = a->kv_pitch * a->d_qk_pitch,
                      .d_stride = rows * a->kv_pitch};
}

static fp8_gemm output_gemm(const attention_slice *a) {
    const int64_t rows = a->tokens * a->group;
    return (fp8_gemm){.m = rows,
                      .n = a->d_v_pitch,
                      .k = a->kv_pitch,
                      .a = a->p,
                      .b = a->v,
                      .d = a->o,
                      .lda = a->kv_pitch,
                      .ldb = a->d_v_pitch,
                      .ldd = a->d_v_pitch,
                      .a_dtype = FP8_DTYPE_BF16,
                      .b_dtype = FP8_DTYPE_BF16,
                      .d_dtype = FP8_DTYPE_F32,
                      .b_is_kn = 1,
                      .alpha = 1.0f,
                      .a_descale_count = 1,
                      .b_descale_count = 1,
                      .batch = a->units,
                      .a_stride = rows * a->kv_pitch,
                      .b_stride = a->kv_pitch * a->d_v_pitch,
                      .d_stride = rows * a->d_v_pitch};
}

/* ---- backend --------------------------------------------------------------------------------- */

static void lay_out(unfused_state *u) {
    const attention_slice *a = &u->shape;
    const int64_t rows = a->units * a->tokens * a->group, keys = a->units * a->kv_pitch;
    const int64_t bytes[8] = {rows * a->d_qk_pitch * 2,
                              keys * a->d_qk_pitch * 2,
                              keys * a->d_v_pitch * 2,
                              rows * a->kv_pitch * 4,
                              rows * a->kv_pitch * 2,
                              rows * 4,
                              rows * a->d_v_pitch * 4,
                              (int64_t)u->gemm_bytes};
    size_t at = 0;
    for (int i = 0; i < 8; i++) {
        u->at[i] = at;
        at += (size_t)(ceil_div(bytes[i], ALIGN) * ALIGN);
    }
}

static fp8_status unfused_open(fp8_attention_plan *p) {
    const fp8_attention_options *o = &p->options;
    unfused_state *u = calloc(1, sizeof *u);
    attention_slice *a;
    fp8_gemm gemm[2];
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
    FP8_TRY(check_bytes(a));
    choose_slice(a);
    gemm[0] = scores_gemm(a);
    gemm[1] = output_gemm(a);
    for (int i = 0; i < 2; i++) {
        size_t want;
        if (!fp8_gemm_supported(p->device, &gemm[i]))
            FP8_TRY(FP8_FAIL(FP8_EUNSUPPORTED, "no BF16 product %lld x %lld x %lld, batch %lld",
                             (long long)gemm[i].m, (long long)gemm[i].n, (long long)gemm[i].k,
                             (long long)gemm[i].batch));
        want = fp8_gemm_workspace_size(p->device, &gemm[i]);
        if (want > u->gemm_bytes) u->gemm_bytes = want;
    }
    lay_out(u);
    p->workspace_bytes = ALIGN + u->at[7] + u->gemm_bytes;
done:
    return st;
}

static void unfused_close(fp8_attention_plan *p) {
    free(p->state);
    p->state = NULL;
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

    if (o->max_q == 0) return FP8_OK;
    a.io = *io;
    a.q = (void *)(base + u->at[0]);
    a.k = (void *)(base + u->at[1]);
    a.v = (void *)(base + u->at[2]);
    a.s = (void *)(base + u->at[3]);
    a.p = (void *)(base + u->at[4]);
    a.factor = (void *)(base + u->at[5]);
    a.o = (void *)(base + u->at[6]);
    for (a.unit0 = 0; a.unit0 < num_units; a.unit0 += a.units) {
        FP8_TRY(attention_gather_kv(&a, fp8_device_stream(p->device)));
        for (a.token0 = 0; a.token0 < o->max_q; a.token0 += a.tokens)
            FP8_TRY(run_slice(p, &a, base + u->at[7]));
    }
done:
    return st;
}

const attention_backend attention_backend_unfused = {
    FP8_BACKEND_UNFUSED, "unfused",     "FP8_UNFUSED_ATTN", attention_unfused_check,
    unfused_open,        unfused_close, unfused_run,
};
