/* core/threads.h - a pool of worker threads and one parallel loop over it.
 *
 * A pool is driven by one thread at a time; the caller's thread works too, so a pool of n runs
 * n-1 threads. Results must not depend on how the range is cut: that is the loop body's duty. */
#ifndef FP8_CORE_THREADS_H
#define FP8_CORE_THREADS_H
#include <stdint.h>

#include "core/status.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_pool fp8_pool;

/* threads 0 = one a processor this process may run on. FP8_EINVAL (< 0, > 1024), FP8_ENOMEM. */
FP8_NODISCARD fp8_status fp8_pool_create(fp8_pool **out, int32_t threads);
void fp8_pool_destroy(fp8_pool *p); /* NULL is fine */
int32_t fp8_pool_threads(const fp8_pool *p); /* 1 for NULL */

/* Body: handles [begin, end); worker is 0 .. threads-1, for scratch of one's own. */
typedef fp8_status (*fp8_range_fn)(void *ctx, int64_t begin, int64_t end, int32_t worker);

/* Cuts [0, n) into pieces of `grain` (the last shorter) handed out as workers come free, and
 * returns when all are done: FP8_OK, or the first failure (later pieces are then skipped; its
 * message becomes this thread's). p NULL runs in place. Not reentrant: a body may not call it on
 * the same pool. */
FP8_NODISCARD fp8_status fp8_parallel_for(fp8_pool *p, int64_t n, int64_t grain, fp8_range_fn fn,
                                          void *ctx);

#ifdef __cplusplus
}
#endif
#endif
