#include "attention/layout.h"

#include <string.h>

#include "core/tensor.h"

/* How the dimensions stand, and which tensors lie interleaved in one memory, before or after the
 * head. */
typedef enum token_order { ORDER_SBHD, ORDER_BSHD, ORDER_THD, ORDER_BHSD } token_order;
typedef enum sharing { SHARE_NONE, SHARE_KV, SHARE_QKV } sharing;

typedef struct layout_row {
    token_order order;
    sharing shared;
    int after_head; /* h3d: the tensors of one head side by side; else 3hd: all heads of each */
} layout_row;

static const layout_row layouts[FP8_NUM_LAYOUTS] = {
    [FP8_LAYOUT_SB3HD] = {ORDER_SBHD, SHARE_QKV, 0},
    [FP8_LAYOUT_SBH3D] = {ORDER_SBHD, SHARE_QKV, 1},
    [FP8_LAYOUT_SBHD_SB2HD] = {ORDER_SBHD, SHARE_KV, 0},
    [FP8_LAYOUT_SBHD_SBH2D] = {ORDER_SBHD, SHARE_KV, 1},
    [FP8_LAYOUT_SBHD_SBHD_SBHD] = {ORDER_SBHD, SHARE_NONE, 0},
    [FP8_LAYOUT_BS3HD] = {ORDER_BSHD, SHARE_QKV, 0},
    [FP8_LAYOUT_BSH3D] = {ORDER_BSHD, SHARE_QKV, 1},
    [FP8_LAYOUT_BSHD_BS2HD] = {ORDER_BSHD, SHARE_KV, 0},
    [FP8_LAYOUT_BSHD_BSH2D] = {ORDER_BSHD, SHARE_KV, 1},
    [FP8_LAYOUT_BSHD_BSHD_BSHD] = {ORDER_BSHD, SHARE_NONE, 0},
    [FP8_LAYOUT_T3HD] = {ORDER_THD, SHARE_QKV, 0},
    [FP8_LAYOUT_TH3D] = {ORDER_THD, SHARE_QKV, 1},
    [FP8_LAYOUT_THD_T2HD] = {ORDER_THD, SHARE_KV, 0},
    [FP8_LAYOUT_THD_TH2D] = {ORDER_THD, SHARE_KV, 1},
    [FP8_LAYOUT_THD_THD_THD] = {ORDER_THD, SHARE_NONE, 0},
    [FP8_LAYOUT_BHSD_BHSD_BHSD] = {ORDER_BHSD, SHARE_NONE, 0},
};

static const char *const names[FP8_NUM_LAYOUTS] = {
#define X(id, name) name,
    FP8_ATTENTION_LAYOUTS(X)
#undef X
};

static int known(fp8_attention_layout l) { return (unsigned)l < FP8_NUM_LAYOUTS; }

const char *fp8_attention_layout_name(fp8_attention_layout l) {
    return known(l) ? names[l] : "?";
}

fp8_status fp8_attention_layout_parse(fp8_attention_layout *out, const char *name) {
    if (!out || !name)
        return FP8_FAIL(FP8_EINVAL, "layout: out=%p name=%p", (void *)out, (const void *)name);
    for (int i = 0; i < FP8_NUM_LAYOUTS; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *out = (fp8_attention_layout)i;
        return FP8_OK;
    }
    return FP8_FAIL(FP8_EINVAL, "layout '%s' is not known, expected one like bshd_bshd_bshd", name);
}

int fp8_attention_layout_is_packed(fp8_attention_layout l) {
    return known(l) && layouts[l].order == ORDER_THD;
}

/* ---- strides --------------------------------------------------------------------------------- */

/* Of one tensor [b, s, heads, d] among `shared` interleaved ones. */
static fp8_strides strides_of(const layout_row *l, int64_t shared, int64_t b, int64_t s,
                              int64_t heads, int64_t d) {
    const int64_t row = shared * heads * d; /* elements of a token */
    const int64_t head = shared > 1 && l->after_head ? shared * d : d;
    switch (l->order) {
    case ORDER_SBHD: return (fp8_strides){row, b * row, head};
    case ORDER_BSHD: return (fp8_strides){s * row, row, head};
    case ORDER_THD: return (fp8_strides){0, row, head};
    case ORDER_BHSD: break;
    }
    return (fp8_strides){heads * s * d, d, s * d};
}

static fp8_status check_shared(fp8_attention_layout layout, int64_t s_q, int64_t s_kv,
                               int32_t num_heads, int32_t num_kv_heads, int32_t d_qk,
                               int32_t d_v) {
    const layout_row *l = &layouts[layout];
    if (l->shared == SHARE_QKV && num_heads != num_kv_heads)
        return FP8_FAIL(FP8_EINVAL, "layout %s: %d heads, %d KV heads, expected as many",
                        names[layout], num_heads, num_kv_heads);
    if (l->shared == SHARE_QKV && l->order != ORDER_THD && s_q != s_kv)
        return FP8_FAIL(FP8_EINVAL, "layout %s: %lld queries, %lld keys, expected as many",
                        names[layout], (long long)s_q, (long long)s_kv);
    if (l->shared != SHARE_NONE && d_qk != d_v)
        return FP8_FAIL(FP8_EINVAL, "layout %s: d_qk %d, d_v %d, expected the same",
                        names[layout], d_qk, d_v);
    return FP8_OK;
}

fp8_status fp8_attention_layout_strides(fp8_layout_strides *out, fp8_attention_layout layout,
                                        int64_t b, int64_t s_q, int64_t s_kv, int32_t num_heads,
                                        int32_t num_kv_heads, int32_t d_qk, int32_t d_v) {
    const layout_row *l = known(layout) ? &layouts[layout] : NULL;
    const int64_t batch = b > 0 ? b : 1, longest = s_q > s_kv ? s_q : s_kv;
    int64_t after_q, after_k, of_q, of_kv, count;
    fp8_status st;

    if (!out || !l || b < 0 || s_q < 0 || s_kv < 0 || num_heads <= 0 || num_kv_heads <= 0 ||
        d_qk <= 0 || d_v <= 0)
        return FP8_FAIL(FP8_EINVAL,
                        "layout %d: out=%p b %lld s %lld %lld heads %d %d d %d %d", (int)layout,
                        (void *)out, (long long)b, (long long)s_q, (long long)s_kv, num_heads,
                        num_kv_heads, d_qk, d_v);
    FP8_TRY(check_shared(layout, s_q, s_kv, num_heads, num_kv_heads, d_qk, d_v));
    FP8_TRY(fp8_shape_count(&count, (int64_t[]){3, batch, longest, num_heads, d_qk}, 5));
    FP8_TRY(fp8_shape_count(&count, (int64_t[]){3, batch, longest, num_heads, d_v}, 5));
    of_q = l->shared == SHARE_QKV ? 3 : 1;
    of_kv = l->shared == SHARE_QKV ? 3 : l->shared == SHARE_KV ? 2 : 1;
    after_q = l->after_head ? d_qk : (int64_t)num_heads * d_qk;
    after_k = l->after_head ? d_qk : (int64_t)num_kv_heads * d_qk;
    *out = (fp8_layout_strides){
        .q = strides_of(l, of_q, b, s_q, num_heads, d_qk),
        .k = strides_of(l, of_kv, b, s_kv, num_kv_heads, d_qk),
        .v = strides_of(l, of_kv, b, s_kv, num_kv_heads, d_v),
        .o = strides_of(l, 1, b, s_q, num_heads, d_v),
    };
    if (l->shared == SHARE_QKV) out->k_offset = after_q;
    if (l->shared != SHARE_NONE) out->v_offset = out->k_offset + after_k;
done:
    return st;
}

/* ---- detection ------------------------------------------------------------------------------- */

typedef struct seen_tensor {
    fp8_strides strides;
    int64_t b, s, heads;
} seen_tensor;

/* A dimension of size 1 (or 0) has any stride. */
static int same_strides(const seen_tensor *x, const fp8_strides *want, int packed) {
    return (packed || x->b <= 1 || x->strides.batch == want->batch) &&
           (x->s <= 1 || x->strides.token == want->token) &&
           (x->heads <= 1 || x->strides.head == want->head);
}

/* Whether b lies `elements` behind a; elements 0: b has its own memory, wherever. */
static int lies_at(const void *a, const void *b, int64_t elements, size_t element_bytes) {
    return elements == 0 ||
           (uintptr_t)b - (uintptr_t)a == (uintptr_t)elements * (uintptr_t)element_bytes;
}

fp8_status fp8_attention_layout_detect(fp8_attention_layout *out, const void *q, const void *k,
                                       const void *v, const fp8_strides *qs, const fp8_strides *ks,
                                       const fp8_strides *vs, int packed, size_t element_bytes,
                                       int64_t b, int64_t s_q, int64_t s_kv, int32_t num_heads,
                                       int32_t num_kv_heads, int32_t d_qk, int32_t d_v) {
    fp8_layout_strides want;

    if (!out || !qs || !ks || !vs || element_bytes == 0)
        return FP8_FAIL(FP8_EINVAL, "layout: out=%p strides=%p %p %p, %zu bytes an element",
                        (void *)out, (const void *)qs, (const void *)ks, (const void *)vs,
                        element_bytes);
    for (int i = 0; i < FP8_NUM_LAYOUTS; i++) {
        const seen_tensor sq = {*qs, b, packed ? 2 : s_q, num_heads};
        const seen_tensor sk = {*ks, b, packed ? 2 : s_kv, num_kv_heads};
        const seen_tensor sv = {*vs, b, packed ? 2 : s_kv, num_kv_heads};
        const fp8_attention_layout l = (fp8_attention_layout)i;
        const layout_row *row = &layouts[i];
        if ((row->order == ORDER_THD) != !!packed) continue;
        if (check_shared(l, s_q, s_kv, num_heads, num_kv_heads, d_qk, d_v) != FP8_OK) continue;
        if (fp8_attention_layout_strides(&want, l, b, s_q, s_kv, num_heads, num_kv_heads, d_qk,
                                         d_v) != FP8_OK)
            return FP8_EINVAL;
        if (same_strides(&sq, &want.q, packed) && same_strides(&sk, &want.k, packed) &&
            same_strides(&sv, &want.v, packed) &&
            lies_at(q, k, want.k_offset, element_bytes) &&
            lies_at(row->shared == SHARE_QKV ? q : k, v, want.v_offset, element_bytes)) {
            *out = l;
            return FP8_OK;
        }
    }
    return FP8_FAIL(FP8_EUNSUPPORTED,
                    "layout: strides of Q %lld %lld %lld, K %lld %lld %lld, V %lld %lld %lld "
                    "(batch, token, head) are none of the %d known ones",
                    (long long)qs->batch, (long long)qs->token, (long long)qs->head,
                    (long long)ks->batch, (long long)ks->token, (long long)ks->head,
                    (long long)vs->batch, (long long)vs->token, (long long)vs->head,
                    FP8_NUM_LAYOUTS);
}
