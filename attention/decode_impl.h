/* attention/decode_impl.h - private: what a decode plan is made of and what its backends offer. */
#ifndef FP8_ATTENTION_DECODE_IMPL_H
#define FP8_ATTENTION_DECODE_IMPL_H
#include "attention/cache_impl.h"
#include "attention/append.h"
#include "attention/decode.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { DECODE_BACKENDS = 3, DECODE_PARTS = 2 };

/* One backend at work in a plan. */
typedef struct decode_part {
    const struct decode_backend *backend; /* NULL: no such part */
    fp8_decode_options options; /* resolved: scale, total_q, q_token, o_token are filled in */
    fp8_device *device;
    int64_t q_least, q_most; /* sequences with n = kv_tokens outside of these are another part's:
                              * neither O nor LSE of theirs is touched */
    void *state;
    size_t workspace_bytes;
    int64_t split_keys; /* what open settled on; options.split_keys where that is not 0 */
    int32_t blocks;     /* fp8_decode_plan_blocks; open sets it */
} decode_part;

/* check and open refuse with FP8_EUNSUPPORTED, the reason being the message, one line. check looks
 * at its arguments only, so that any device can be asked about on any machine; on OK it leaves what
 * serves in `about` ("sm_90a, d 128"). It sees max_q as it is, but for `pages`, which is asked for
 * min(max_q, FP8_DECODE_ROWS). open sets state, workspace_bytes, split_keys. What run gets was
 * checked: pages of the geometry with strides, a batch within the options, no NULL that is needed;
 * a batch of no sequences or rows does not come. appends: whether append_run would be the append
 * and run in one launch, the same bytes; both NULL: never. */
typedef struct decode_backend {
    fp8_decode_backend id;
    const char *name;
    fp8_status (*check)(const fp8_decode_options *o, const attention_target *t,
                        char about[ATTENTION_REASON_BYTES]);
    fp8_status (*open)(decode_part *p); /* NULL: not in this build */
    void (*close)(decode_part *p);      /* also after a failed open */
    fp8_status (*run)(decode_part *p, const fp8_decode_io *io, void *workspace);
    int (*appends)(const decode_part *p, const fp8_decode_io *io, const fp8_kv_append *append);
    fp8_status (*append_run)(decode_part *p, const fp8_decode_io *io, const fp8_kv_append *append,
                             void *workspace);
} decode_backend;

struct fp8_decode_plan {
    fp8_decode_options options; /* resolved */
    fp8_device *device;
    decode_part parts[DECODE_PARTS]; /* the first: sequences of few queries, or all */
    size_t workspace_bytes;
    int checked; /* FP8_SYNC=1: the batch is looked at after each run */
    char reasons[DECODE_BACKENDS * (ATTENTION_REASON_BYTES + 32)];
};

extern const decode_backend decode_backend_cpu;
#if FP8_CUDA
extern const decode_backend decode_backend_pages;    /* decode_pages_cuda.c */
extern const decode_backend decode_backend_gathered; /* decode_gathered_cuda.c */
#endif
fp8_status decode_pages_check(const fp8_decode_options *o, const attention_target *t,
                              char about[ATTENTION_REASON_BYTES]); /* decode_pages_check.c */
fp8_status decode_gathered_check(const fp8_decode_options *o, const attention_target *t,
                                 char about[ATTENTION_REASON_BYTES]); /* decode_gathered_check.c */

/* The same attention over K and V packed as [keys, num_kv_heads, d]; of resolved options. */
fp8_attention_options decode_as_attention(const fp8_decode_options *o);
/* *out = the options with every default filled in; FP8_EINVAL or FP8_EOVERFLOW in words. */
fp8_status decode_resolve_options(fp8_decode_options *out, const fp8_decode_options *options);
/* Likewise for a run of resolved options. */
fp8_status decode_resolve_io(fp8_decode_io *out, const fp8_decode_options *o,
                             const fp8_decode_io *io);

fp8_status decode_check_workspace(const fp8_decode_plan *p, const void *workspace,
                                  size_t workspace_bytes);

/* Keys [*lo, *hi) that query `token` of n sees among `keys`; *lo >= *hi when there is none. */
ATTENTION_INLINE void decode_visible(const fp8_decode_options *o, int64_t token, int64_t n,
                                     int64_t keys, int64_t *lo, int64_t *hi) {
    const int64_t t = keys - n + token;
    *hi = o->mask == FP8_MASK_NONE ? keys : attention_clamp(t + 1, 0, keys);
    *lo = o->window_left >= 0 ? attention_clamp(t - o->window_left, 0, keys) : 0;
}

/* Index of a descale, Q's too: of KV head `kv_head`. */
ATTENTION_INLINE int64_t decode_descale_index(const fp8_decode_options *o, int64_t kv_head) {
    return o->granularity == FP8_DESCALE_TENSOR ? 0 : kv_head;
}

#ifdef __cplusplus
}
#endif
#endif
