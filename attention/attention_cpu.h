/* attention/attention_cpu.h - private: the CPU backend's run, also over keys in pages. */
#ifndef FP8_ATTENTION_ATTENTION_CPU_H
#define FP8_ATTENTION_ATTENTION_CPU_H
#include "attention/cache_impl.h"

/* Where K and V are when they are in pages: io.k, v and kv_starts are then not looked at, but
 * kv_lengths and the descales are. Key tiles never straddle a page. */
typedef struct cpu_paged {
    const fp8_kv_pages *pages;
    const fp8_kv_batch *batch;
} cpu_paged;

size_t attention_cpu_workspace(const fp8_attention_options *o, int32_t threads);

/* Options and io resolved; paged NULL: K and V are where io says. */
fp8_status attention_cpu_run(const fp8_attention_options *o, const fp8_attention_io *io,
                             const cpu_paged *paged, fp8_pool *pool, void *workspace);
#endif
