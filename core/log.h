/* core/log.h - the library's only voice: a callback. The default sink is none, or stderr when the
 * environment has FP8_DEBUG=1|2. Thread-safe; set the sink before other threads log. */
#ifndef FP8_CORE_LOG_H
#define FP8_CORE_LOG_H
#include "core/status.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum fp8_log_level {
    FP8_LOG_WARNING = 0, /* something the caller would want to know */
    FP8_LOG_INFO = 1,    /* what was chosen (FP8_DEBUG=1) */
    FP8_LOG_DETAIL = 2   /* whole configurations and reasons (FP8_DEBUG=2) */
} fp8_log_level;

typedef void (*fp8_log_fn)(void *ctx, fp8_log_level level, const char *line);

/* Sends lines of `level` and more urgent to `fn`; fn NULL restores the default sink. */
void fp8_log_set(fp8_log_fn fn, void *ctx, fp8_log_level level);

/* Nonzero when a line of this level would reach a sink: skip the formatting otherwise. */
int fp8_log_enabled(fp8_log_level level);

void fp8_log(fp8_log_level level, const char *fmt, ...) FP8_PRINTF(2, 3);

#ifdef __cplusplus
}
#endif
#endif
