/* attention/attention_impl.h - private: what a plan is, what a backend offers, and the rules (where
 * a sequence and its elements lie, which keys a query sees) that every backend shares. */
#ifndef FP8_ATTENTION_IMPL_H
#define FP8_ATTENTION_IMPL_H
#include <float.h>
#include <math.h>

#include "attention/attention.h"

#ifdef __CUDACC__
#define ATTENTION_INLINE static __host__ __device__ __forceinline__
#else
#define ATTENTION_INLINE static inline
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum {
    ATTENTION_NUM_BACKENDS = FP8_ATTENTION_BACKENDS,
    ATTENTION_REASON_BYTES = FP8_ATTENTION_REASON_BYTES
};

typedef fp8_attention_target attention_target;

struct fp8_attention_plan {
    fp8_attention_options options; /* resolved */
    fp8_device *device;
    const struct attention_backend *chosen;
    void *state; /* of the chosen backend */
    size_t workspace_bytes;
    int checked; /* FP8_SYNC=1: lengths are looked at after each run */
    fp8_attention_verdict verdicts[ATTENTION_NUM_BACKENDS];
    char reasons[ATTENTION_NUM_BACKENDS * (ATTENTION_REASON_BYTES + 32)];
};

/* One backend. check and open refuse with FP8_EUNSUPPORTED, the reason being the message, one line.
 * check looks at its arguments only, so that any device can be asked about on any machine; on OK it
 * leaves "which library" in `about`. open builds p->state and p->workspace_bytes. Options are
 * resolved and checked, and so is the io of run: whoever stands behind these relies on it. */
typedef struct attention_backend {
    fp8_attention_backend id;
    const char *name;
    const char *switch_name; /* environment variable, 0 = off; NULL = none */
    fp8_status (*check)(const fp8_attention_options *o, const attention_target *t,
                        char about[ATTENTION_REASON_BYTES]);
    fp8_status (*open)(fp8_attention_plan *p); /* NULL: not in this build */
    void (*close)(fp8_attention_plan *p);      /* also after a failed open */
    fp8_status (*run)(fp8_attention_plan *p, const fp8_attention_io *io, void *workspace);
} attention_backend;

extern const attention_backend attention_backend_cpu;
#if FP8_CUDA
extern const attention_backend attention_backend_flash, attention_backend_fused,
    attention_backend_unfused;
size_t attention_cudnn_version(void);
void attention_cuda_libraries(char *text, size_t bytes);
#endif
fp8_status attention_flash_check(const fp8_attention_options *o, const attention_target *t,
                                 char about[ATTENTION_REASON_BYTES]);
int attention_flash_yields(const fp8_attention_options *o); /* 1: fused is the faster one */
fp8_status attention_fused_check(const fp8_attention_options *o, const attention_target *t,
                                 char about[ATTENTION_REASON_BYTES]);
fp8_status attention_unfused_check(const fp8_attention_options *o, const attention_target *t,
                                   char about[ATTENTION_REASON_BYTES]);

/* *out = the options with every default filled in: scale, strides (batch 0 where tokens are packed,
 * has_strides 1), windows that bound nothing -1. FP8_EINVAL or FP8_EOVERFLOW in words. */
fp8_status attention_resolve_options(fp8_attention_options *out,
                                     const fp8_attention_options *options);
/* Likewise for a run of resolved options: starts are NULL and totals num_seqs * max where tokens
 * are not packed. FP8_EINVAL in words. */
fp8_status attention_resolve_io(fp8_attention_io *out, const fp8_attention_options *o,
                                const fp8_attention_io *io);

/* Lengths and starts of a run as they are, on the host: FP8_EINVAL names the first that had to be
 * clamped. Waits for the device. */
fp8_status attention_report_lengths(fp8_device *d, const fp8_attention_options *o,
                                    const fp8_attention_io *io);

ATTENTION_INLINE int64_t attention_clamp(int64_t x, int64_t low, int64_t high) {
    return x < low ? low : x > high ? high : x;
}

/* Tokens of sequence s, whatever starts and lengths hold, at most `longest`: token i of it is token
 * *begin + i for attention_offset. starts NULL: tokens are not packed, *begin is 0; else *begin +
 * tokens <= total. */
ATTENTION_INLINE int64_t attention_sequence(const int32_t *starts, const int32_t *lengths,
                                            int64_t s, int64_t total, int64_t longest,
                                            int64_t *begin) {
    int64_t length;
    *begin = 0;
    if (!starts) return lengths ? attention_clamp(lengths[s], 0, longest) : longest;
    *begin = attention_clamp(starts[s], 0, total);
    length = lengths ? lengths[s] : starts[s + 1] - *begin;
    if (length > total - *begin) length = total - *begin;
    return attention_clamp(length, 0, longest);
}

/* Element (s, token, head, 0): `token` counts from `begin` of attention_sequence on. Batch strides
 * of packed tokens are 0. */
ATTENTION_INLINE int64_t attention_offset(fp8_strides x, int64_t s, int64_t token, int64_t head) {
    return s * x.batch + token * x.token + head * x.head;
}

/* The key on the diagonal of query `token`: top-left for FP8_MASK_CAUSAL, else bottom-right. */
ATTENTION_INLINE int64_t attention_diagonal(const fp8_attention_options *o, int64_t token,
                                            int64_t s_q, int64_t s_kv) {
    return o->mask == FP8_MASK_CAUSAL ? token : token + s_kv - s_q;
}

/* Keys [*lo, *hi) that query `token` of s_q sees among s_kv; *lo >= *hi when there is none. An
 * arbitrary mask takes more away. */
ATTENTION_INLINE void attention_visible(const fp8_attention_options *o, int64_t token, int64_t s_q,
                                        int64_t s_kv, int64_t *lo, int64_t *hi) {
    const int64_t t = attention_diagonal(o, token, s_q, s_kv);
    int64_t end = s_kv;
    if (o->mask == FP8_MASK_CAUSAL || o->mask == FP8_MASK_CAUSAL_BOTTOM_RIGHT)
        end = attention_clamp(t + 1, 0, end);
    if (o->window_right >= 0) end = attention_clamp(t + o->window_right + 1, 0, end);
    *hi = end;
    *lo = o->window_left >= 0 ? attention_clamp(t - o->window_left, 0, s_kv) : 0;
}

/* Element of a [b | 1, h | 1, max_q, max_kv] bias or mask. */
ATTENTION_INLINE int64_t attention_bias_offset(const fp8_attention_options *o,
                                               fp8_attention_bias_shape shape, int64_t s,
                                               int64_t head, int64_t i, int64_t j) {
    const int64_t heads = shape == FP8_BIAS_1HSS || shape == FP8_BIAS_BHSS ? o->num_heads : 1;
    const int64_t b = shape == FP8_BIAS_B1SS || shape == FP8_BIAS_BHSS ? s : 0;
    const int64_t plane = b * heads + (heads > 1 ? head : 0);
    return (plane * o->max_q + i) * o->max_kv + j;
}

/* The slope of a head, as fp8_attention_alibi_slopes has it. */
ATTENTION_INLINE float attention_alibi_slope(int32_t head, int32_t num_heads) {
    int32_t n = 1;
    while (n <= num_heads / 2) n *= 2;
    return head < n ? exp2f(-8.0f * (float)(head + 1) / (float)n)
                    : exp2f(-4.0f * (float)(2 * (head - n) + 1) / (float)n);
}

/* The descale of FP8_QUANTIZE_CURRENT. */
ATTENTION_INLINE float attention_descale_of(float amax) {
    const float descale = amax / 448.0f;
    if (!(amax > 0.0f)) return 1.0f;
    return descale > FLT_MIN ? descale : FLT_MIN;
}

/* Columns of a block of options.hadamard. */
ATTENTION_INLINE int32_t attention_hadamard_block(int32_t d_qk) {
    int32_t block = 1;
    while (block < 128 && d_qk % (2 * block) == 0) block *= 2;
    return block;
}

/* Row of a sequence's query token in LSE [num_seqs, num_heads, max_q], packed [num_heads, total_q];
 * `begin` as attention_sequence gave it. */
ATTENTION_INLINE int64_t attention_lse_offset(const fp8_attention_options *o,
                                              const fp8_attention_io *io, int64_t s, int64_t head,
                                              int64_t begin, int64_t token) {
    return io->q_starts ? head * io->total_q + begin + token
                        : (s * o->num_heads + head) * o->max_q + token;
}

/* Index of a descale. */
ATTENTION_INLINE int64_t attention_descale_index(const fp8_attention_options *o, int64_t s,
                                                 int64_t kv_head) {
    if (o->granularity == FP8_DESCALE_TENSOR) return 0;
    return o->granularity == FP8_DESCALE_HEAD ? kv_head : s * o->num_kv_heads + kv_head;
}

#ifdef __cplusplus
}
#endif
#endif
