/* core/status.h - status codes and the per-thread error message.
 *
 * Every fallible function of the library returns fp8_status and leaves, on failure, one line in
 * this thread's last error: the object's name, what was expected, what was found. Nothing here
 * prints, aborts or exits. */
#ifndef FP8_CORE_STATUS_H
#define FP8_CORE_STATUS_H

/* One list: the enum, the names and the default texts cannot drift apart. */
#define FP8_STATUS_MAP(X)                                                                          \
    X(OK, 0, "success")                                                                            \
    X(EINVAL, 1, "invalid argument")                                                               \
    X(ENOMEM, 2, "out of memory")                                                                  \
    X(EIO, 3, "read or write failed")                                                              \
    X(EFORMAT, 4, "malformed file")                                                                \
    X(EOVERFLOW, 5, "size arithmetic overflows")                                                   \
    X(EUNSUPPORTED, 6, "not supported on this device or build")                                    \
    X(ECUDA, 7, "CUDA, cuBLASLt or cuDNN call failed")                                             \
    X(ENOTFOUND, 8, "no such file, tensor or token")                                               \
    X(EEXIST, 9, "output exists already")                                                          \
    X(EDATA, 10, "data is empty, non-finite or does not fit the model")                            \
    X(ECANCELED, 11, "interrupted by the caller")

typedef enum fp8_status {
#define X(name, code, text) FP8_##name = code,
    FP8_STATUS_MAP(X)
#undef X
} fp8_status;

#if defined(__GNUC__)
#define FP8_PRINTF(f, a) __attribute__((format(printf, f, a)))
#define FP8_NODISCARD __attribute__((warn_unused_result))
#else
#define FP8_PRINTF(f, a)
#define FP8_NODISCARD
#endif

#ifdef __cplusplus
extern "C" {
#endif

const char *fp8_status_name(fp8_status s); /* "FP8_EFORMAT"; never NULL */
const char *fp8_status_text(fp8_status s); /* "malformed file"; never NULL */

/* This thread's last failure, "formats/json.c:41: FP8_EFORMAT: message"; never NULL, valid until
 * the next failing call on this thread. */
const char *fp8_last_error(void);

/* The same without the source location and status name: the line to show to a user. */
const char *fp8_last_message(void);

/* Records the message for this thread and returns `s`, so that a check is one line. A worker
 * thread's message is carried to the calling thread by fp8_parallel_for. */
fp8_status fp8_fail(fp8_status s, const char *file, int line, const char *fmt, ...)
    FP8_PRINTF(4, 5);

#define FP8_FAIL(s, ...) fp8_fail((s), __FILE__, __LINE__, __VA_ARGS__)

/* Needs `fp8_status st` and a `done:` label in scope: the single exit frees everything. */
#define FP8_TRY(expr)                                                                              \
    do {                                                                                           \
        st = (expr);                                                                               \
        if (st != FP8_OK) goto done;                                                               \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
