#include "core/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static fp8_log_fn sink;
static void *sink_ctx;
static fp8_log_level sink_level;

static int debug_level(void) { /* -1: no FP8_DEBUG */
    const char *v = getenv("FP8_DEBUG");
    return v && *v ? atoi(v) : -1;
}

void fp8_log_set(fp8_log_fn fn, void *ctx, fp8_log_level level) {
    sink = fn;
    sink_ctx = ctx;
    sink_level = level;
}

int fp8_log_enabled(fp8_log_level level) {
    return (sink && level <= sink_level) || (!sink && (int)level <= debug_level());
}

void fp8_log(fp8_log_level level, const char *fmt, ...) {
    char line[2048];
    va_list ap;

    if (!fp8_log_enabled(level)) return;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    if (sink) sink(sink_ctx, level, line);
    else fprintf(stderr, "fp8: %s\n", line);
}
