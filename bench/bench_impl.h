/* bench/bench_impl.h - private: what the attention benchmarks share. */
#ifndef FP8_BENCH_IMPL_H
#define FP8_BENCH_IMPL_H
#include "attention/attention.h"
#include "bench/bench.h"

/* ---- shapes and data (bench_shapes.c) -------------------------------------------------------- */

typedef struct bench_shape {
    char name[72];
    int64_t b, h, h_kv, d_qk, d_v, s_q, s_kv;
    fp8_attention_mask mask;
    int bias; /* 1: post-scale, BF16 [1, h, s_q, s_kv] */
} bench_shape;

/* "2,16,16,128,2048,causal", "1,8,2,192/128,512/1024,none,bias". FP8_EINVAL. */
FP8_NODISCARD fp8_status bench_parse_shape(bench_shape *out, const char *text);
double bench_flops(const bench_shape *x);  /* of both products; causal halved */
double bench_scores(const bench_shape *x); /* elements of P; likewise */

/* BF16 x[n], host: standard normal, times a random whole number in 1 .. most. The same for the same
 * seed. *amax = max |x|. */
FP8_NODISCARD fp8_status bench_normal(uint16_t *x, int64_t n, uint64_t seed, int32_t most,
                                      float *amax, fp8_pool *pool);

/* ---- rows in F64 (bench_sample.c) ------------------------------------------------------------ */

/* Host operands [b, s, h, d], packed: BF16, or E4M3 with descales. */
typedef struct bench_operands {
    const bench_shape *shape;
    const void *q, *k, *v;
    fp8_dtype dtype;
    float q_descale, k_descale, v_descale;
    const uint16_t *bias; /* BF16, or NULL */
} bench_operands;

typedef struct bench_error {
    double relative_l2, absmax, mae, mse;
    int64_t rows;
} bench_error;

/* Compares `rows` rows of o, spread over sequences, heads and tokens, with the formula in F64. o:
 * host [b, s_q, h, d_v], BF16, or E4M3 with o_descale. FP8_ENOMEM. */
FP8_NODISCARD fp8_status bench_check_rows(bench_error *out, const void *o, fp8_dtype o_dtype,
                                          float o_descale, const bench_operands *x, int64_t rows,
                                          fp8_pool *pool);

/* ---- the device's clock (bench_clock.c) ------------------------------------------------------ */

/* MHz of the SMs right now by NVML, 0 where it does not tell. */
double bench_sm_clock(int32_t device);

/* ---- timing (bench_race_cuda.c) -------------------------------------------------------------- */

typedef struct bench_contender {
    fp8_status (*call)(void *ctx); /* enqueues one piece of work; can be captured */
    void *ctx;
    double ms, ms_low, ms_high; /* median, 0.2 and 0.8 quantile, of one call */
    double host_us;             /* what one call costs the calling thread */
} bench_contender;

/* Measures the contenders in turns, `rounds` times each, as replays of CUDA graphs of as many calls
 * as take about a third of a millisecond. *mhz: the SM clock meanwhile. */
FP8_NODISCARD fp8_status bench_race(fp8_device *d, bench_contender *all, int32_t count,
                                    const fp8_bench_options *options, double *mhz);

/* ---- the device (bench_device_cuda.c) -------------------------------------------------------- */

/* bench_normal on the host (free it) and on the device. */
FP8_NODISCARD fp8_status bench_upload_normal(fp8_device *d, uint16_t **host, void **device,
                                             int64_t n, uint64_t seed, int32_t most, float *amax);

typedef struct bench_rates {
    double fp8_flops; /* a second, measured: an 8192^3 product; 0 = no FP8 */
    int sms;
} bench_rates;
FP8_NODISCARD fp8_status bench_measure_rates(bench_rates *out, fp8_device *d,
                                             const fp8_bench_options *options);

/* ---- who takes part (bench_field.c) ---------------------------------------------------------- */

enum { BENCH_FIELD_MAX = 16 };

/* Providers of one shape: who serves is timed, of the others the reason is told. */
typedef struct bench_field {
    bench_contender contenders[BENCH_FIELD_MAX]; /* of those that serve */
    int32_t count;
    int32_t place[BENCH_FIELD_MAX]; /* of provider i in contenders; -1: refused, or wrong */
    char why[BENCH_FIELD_MAX][256];
} bench_field;

typedef struct bench_entry {
    fp8_attention_backend backend;
    int wrong; /* its result is beyond its bound: told, not timed */
    double relative_l2;
    fp8_status (*call)(void *ctx); /* as a contender's */
    void *ctx;
} bench_entry;

/* Provider i, whose opening gave `opened`: takes part; by FP8_EUNSUPPORTED its backend's reason is
 * kept; any other error is returned. */
FP8_NODISCARD fp8_status bench_field_enter(bench_field *f, int32_t i, fp8_status opened,
                                           const bench_entry *e);
/* From the message of a plan that was refused: the backend's own reason. */
void bench_keep_reason(char out[256], const char *message, fp8_attention_backend backend);

/* Median of provider i, 0 where it has none. */
double bench_field_ms(const bench_field *f, int32_t i);

/* The columns that a table of such a race begins with. */
enum { BENCH_MS, BENCH_LOW, BENCH_HIGH, BENCH_TFLOPS, BENCH_RATIO, BENCH_COLUMNS };

/* *row = provider i's, those columns filled, the ratio to provider `reference`; NULL where it does
 * not serve: its reason is in the table. */
FP8_NODISCARD fp8_status bench_field_row(fp8_bench_table *t, fp8_bench_row **row,
                                         const bench_field *f, int32_t i, const char *name,
                                         int32_t reference, const bench_shape *x);

/* A row for the longer of the tensor cores' time at the measured rate and that of the exponentials,
 * 16 a clock and SM; none where those are not known. */
FP8_NODISCARD fp8_status bench_add_limit(fp8_bench_table *t, const bench_shape *x,
                                         const bench_rates *r, double mhz, double reference_ms);

/* ---- FP32 (bench_reference.cu) --------------------------------------------------------------- */

/* o[b, s_q, h, d], F32, from BF16 q, k, v of [b, s, h, d], all on the device: the formula, one warp
 * a row, no mask; d_qk = d_v = 64 or 128. Asynchronous. FP8_EINVAL, FP8_ECUDA. */
#ifdef __cplusplus
extern "C"
#endif
FP8_NODISCARD fp8_status bench_reference(float *o, const void *q, const void *k, const void *v,
                                         const bench_shape *x, fp8_stream stream);

/* ---- reading (bench_read.cu) ----------------------------------------------------------------- */

/* Reads `bytes` (of 16-byte words) of device memory once, on sms multiprocessors. Asynchronous. */
#ifdef __cplusplus
extern "C"
#endif
FP8_NODISCARD fp8_status bench_read(const void *data, size_t bytes, int sms, fp8_stream stream);

#endif
