#include "core/status.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char last_error[1024];
static _Thread_local int message_at; /* where the user's part of last_error begins */

const char *fp8_status_name(fp8_status s) {
    switch (s) {
#define X(name, code, text)                                                                        \
    case FP8_##name: return "FP8_" #name;
        FP8_STATUS_MAP(X)
#undef X
    }
    return "FP8_unknown";
}

const char *fp8_status_text(fp8_status s) {
    switch (s) {
#define X(name, code, text)                                                                        \
    case FP8_##name: return text;
        FP8_STATUS_MAP(X)
#undef X
    }
    return "unknown status";
}

const char *fp8_last_error(void) { return last_error; }

const char *fp8_last_message(void) { return last_error + message_at; }

/* __FILE__ is absolute under CMake: show it from the module folder on. */
static const char *short_path(const char *file) {
    const char *cut = file;
    int slashes = 0;
    for (const char *p = file; *p; p++) slashes += *p == '/';
    for (const char *p = file; *p && slashes > 1; p++)
        if (*p == '/') {
            slashes--;
            cut = p + 1;
        }
    return cut;
}

fp8_status fp8_fail(fp8_status s, const char *file, int line, const char *fmt, ...) {
    char text[sizeof last_error]; /* arguments may point into last_error itself */
    va_list ap;
    int n;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    n = snprintf(last_error, sizeof last_error, "%s:%d: %s: ", short_path(file), line,
                 fp8_status_name(s));
    message_at = n < 0 || (size_t)n >= sizeof last_error ? 0 : n;
    snprintf(last_error + message_at, sizeof last_error - (size_t)message_at, "%s", text);
    return s;
}
