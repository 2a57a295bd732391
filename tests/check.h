/* tests/check.h - the whole test framework. A test is a program; its exit status is the verdict. */
#ifndef FP8_TESTS_CHECK_H
#define FP8_TESTS_CHECK_H
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/device.h"
#include "core/status.h"

enum { TEST_SKIP = 77 }; /* CTest: SKIP_RETURN_CODE 77 */
static int check_failures;
static const char *check_case = "";

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: [%s] %s\n", __FILE__, __LINE__, check_case, #cond);            \
            check_failures++;                                                                      \
        }                                                                                          \
    } while (0)
#define CHECK_STATUS(expr, want)                                                                   \
    do {                                                                                           \
        fp8_status got_ = (expr);                                                                  \
        if (got_ != (want)) {                                                                      \
            fprintf(stderr, "%s:%d: [%s] %s: got %s, want %s (%s)\n", __FILE__, __LINE__,          \
                    check_case, #expr, fp8_status_name(got_), fp8_status_name(want),               \
                    fp8_last_error());                                                             \
            check_failures++;                                                                      \
        }                                                                                          \
    } while (0)
#define CHECK_DONE() (check_failures ? 1 : 0)

/* "$FP8_TEST_DATA/relative" in a static buffer when that file is there, else NULL: then the test
 * does what it can without, or returns TEST_SKIP. */
static inline const char *check_data(const char *relative) {
    static char path[4096];
    const char *root = getenv("FP8_TEST_DATA");
    snprintf(path, sizeof path, "%s/%s", root && *root ? root : "../shared", relative);
    return access(path, R_OK) == 0 ? path : NULL;
}

/* A CUDA device, or NULL where there is none (print it and return TEST_SKIP). */
static inline fp8_device *check_gpu(void) {
    fp8_device *d = NULL;
    if (fp8_device_create(&d, "cuda", 0) != FP8_OK) {
        fprintf(stderr, "skipped: %s\n", fp8_last_message());
        return NULL;
    }
    return d;
}

/* The same of a Hopper GPU, for what is compiled for no other. */
static inline fp8_device *check_hopper(void) {
    fp8_device *d = check_gpu();
    if (!d || fp8_device_capability(d) == 90) return d;
    fprintf(stderr, "skipped: %s is no sm_90\n", fp8_device_name(d));
    fp8_device_destroy(d);
    return NULL;
}

/* SplitMix64: the same numbers on every machine. */
static inline uint64_t check_random(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static inline double check_uniform(uint64_t *state) { /* [0, 1) */
    return (double)(check_random(state) >> 11) * 0x1p-53;
}
static inline float check_normal(uint64_t *state) {
    const double u = 1.0 - check_uniform(state), v = check_uniform(state);
    return (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
}

/* ||got - want|| / ||want||; NaN anywhere gives NaN, which no bound passes. */
static inline double check_relative_l2(const float *got, const float *want, int64_t n) {
    double err = 0, ref = 0;
    for (int64_t i = 0; i < n; i++) {
        const double e = (double)got[i] - (double)want[i];
        err += e * e;
        ref += (double)want[i] * (double)want[i];
    }
    return ref > 0 ? sqrt(err / ref) : sqrt(err);
}
#endif
