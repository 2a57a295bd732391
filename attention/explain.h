/* attention/explain.h - which backend would serve an attention, and why each other would not: on a
 * device, or on one that is only described. attention.h is the header to include. */
#ifndef FP8_ATTENTION_EXPLAIN_H
#define FP8_ATTENTION_EXPLAIN_H
#include <stddef.h>

#include "attention/attention_options.h"
#include "core/device.h"
#ifdef __cplusplus
extern "C" {
#endif

/* All that a verdict depends on beside the options and the environment. */
typedef struct fp8_attention_target {
    fp8_place place;
    int32_t capability;   /* 90 for sm_90; 0 on the CPU */
    size_t cudnn_version; /* 91900 for 9.19.0; 0 = none */
    const char *name;     /* "NVIDIA H200" */
} fp8_attention_target;

fp8_attention_target fp8_attention_target_of(const fp8_device *d); /* its name is d's */

enum { FP8_ATTENTION_BACKENDS = 4, FP8_ATTENTION_REASON_BYTES = 512 };

typedef struct fp8_attention_verdict {
    fp8_attention_backend backend;
    int serves;
    char reason[FP8_ATTENTION_REASON_BYTES]; /* one line: what serves, or why it does not */
} fp8_attention_verdict;

/* The verdicts in the order in which a plan asks, and *chosen = the first that serves, AUTO when
 * none does; FP8_FLASH_ATTN and its like count. d: as a plan on it would find, which may take as
 * long as making one. d NULL: by what is known of `target`, which need not be here; a library may
 * still refuse when a plan is made. FP8_EINVAL: options that make no sense. */
FP8_NODISCARD fp8_status fp8_attention_explain(
    fp8_attention_backend *chosen, fp8_attention_verdict verdicts[FP8_ATTENTION_BACKENDS],
    fp8_device *d, const fp8_attention_target *target, const fp8_attention_options *options);

/* The options with their defaults filled in, in words: lines of "what: value", a newline between
 * two. FP8_EINVAL: options that make no sense. */
FP8_NODISCARD fp8_status fp8_attention_describe(char *text, size_t bytes,
                                                const fp8_attention_options *options);

/* "CUDA 13.0, cuBLASLt 13.0.0, cuDNN 9.19.0", or "a build without CUDA". */
const char *fp8_attention_libraries(void);

#ifdef __cplusplus
}
#endif
#endif
