/* core/range.h - private: names for stretches of a thread's time, as profilers show them (NVTX).
 * Nothing in builds without CUDA, and next to nothing where no profiler listens. */
#ifndef FP8_CORE_RANGE_H
#define FP8_CORE_RANGE_H
#include "core/status.h"

#if FP8_CUDA
void fp8_range_begin(const char *name); /* ranges nest */
void fp8_range_end(void);
#else
static inline void fp8_range_begin(const char *name) { (void)name; }
static inline void fp8_range_end(void) {}
#endif

static inline fp8_status fp8_range_ended(fp8_status st) {
    fp8_range_end();
    return st;
}

/* A call that gives a status, in a range of its own. */
#define FP8_IN_RANGE(name, call) (fp8_range_begin(name), fp8_range_ended(call))

#endif
