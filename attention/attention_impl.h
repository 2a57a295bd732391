/* attention/attention_impl.h - private: what a plan is, what a backend offers, and the two rules
 * (where a sequence lies, which keys a query sees) that every backend shares. */
#ifndef FP8_ATTENTION_IMPL_H
#define FP8_ATTENTION_IMPL_H
#include "attention/attention.h"

#ifdef __CUDACC__
#define ATTENTION_INLINE static __host__ __device__ __forceinline__
#else
#define ATTENTION_INLINE static inline
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { ATTENTION_NUM_BACKENDS = 4, ATTENTION_REASON_BYTES = 512 };

struct fp8_attention_plan {
    fp8_attention_options options; /* scale resolved */
    fp8_device *device;
    const struct attention_backend *chosen;
    void *state; /* of the chosen backend */
    size_t workspace_bytes;
    char reasons[ATTENTION_NUM_BACKENDS * (ATTENTION_REASON_BYTES + 32)];
};

/* One backend. check and open refuse with FP8_EUNSUPPORTED, the reason being the message; check is
 * cheap and looks at options and device only, open builds p->state and p->workspace_bytes. On OK,
 * check leaves "which library" in `about`. */
typedef struct attention_backend {
    fp8_attention_backend id;
    const char *name;
    const char *switch_name; /* environment variable, 0 = off; NULL = none */
    fp8_status (*check)(const fp8_attention_plan *p, char about[ATTENTION_REASON_BYTES]);
    fp8_status (*open)(fp8_attention_plan *p);
    void (*close)(fp8_attention_plan *p); /* also after a failed open */
    fp8_status (*run)(fp8_attention_plan *p, const fp8_attention_io *io, void *workspace);
} attention_backend;

extern const attention_backend attention_backend_cpu;
#if FP8_CUDA
extern const attention_backend attention_backend_flash, attention_backend_fused,
    attention_backend_unfused;
#endif

/* Rows [*begin, *begin + length) of sequence s, whatever `starts` holds: within [0, total) and no
 * longer than `longest`. */
ATTENTION_INLINE int64_t attention_sequence(const int32_t *starts, int64_t s, int64_t total,
                                            int64_t longest, int64_t *begin) {
    int64_t b = starts[s], e = starts[s + 1];
    if (b < 0) b = 0;
    if (b > total) b = total;
    if (e > total) e = total;
    if (e < b) e = b;
    *begin = b;
    return e - b < longest ? e - b : longest;
}

/* Keys [*lo, *hi) that query `token` of s_q sees among s_kv; *lo >= *hi when there is none. */
ATTENTION_INLINE void attention_visible(const fp8_attention_options *o, int64_t token, int64_t s_q,
                                        int64_t s_kv, int64_t *lo, int64_t *hi) {
    const int64_t last = token + s_kv - s_q; /* bottom-right diagonal */
    *lo = 0;
    *hi = s_kv;
    if (o->mask != FP8_MASK_CAUSAL) return;
    *hi = last + 1 > 0 ? last + 1 : 0;
    if (o->window > 0 && last + 1 > o->window) *lo = last + 1 - o->window;
}

#ifdef __cplusplus
}
#endif
#endif
