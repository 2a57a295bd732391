/* Sampled rows of an attention output against the formula in F64. */
#include <math.h>
#include <stdlib.h>

#include "bench/bench_impl.h"
#include "core/half.h"
#include "quant/quant.h"

static double e4m3[256]; /* filled by bench_check_rows */

static double value(const void *x, fp8_dtype dtype, int64_t i) {
    if (dtype == FP8_DTYPE_E4M3) return e4m3[((const uint8_t *)x)[i]];
    return (double)fp8_bf16_to_f32(((const uint16_t *)x)[i]);
}

static int64_t keys_of(const bench_shape *x, int64_t token) {
    int64_t n = x->s_kv;
    if (x->mask == FP8_MASK_CAUSAL) n = token + 1;
    if (x->mask == FP8_MASK_CAUSAL_BOTTOM_RIGHT) n = token + x->s_kv - x->s_q + 1;
    return n < 0 ? 0 : n > x->s_kv ? x->s_kv : n;
}

/* p[j] = exp(S - max), *sum of them; keys [0, n). */
static void probabilities(double *p, double *sum, const bench_operands *a, int64_t s, int64_t head,
                          int64_t token, int64_t n) {
    const bench_shape *x = a->shape;
    const int64_t q_row = ((s * x->s_q + token) * x->h + head) * x->d_qk;
    const int64_t kv_head = head / (x->h / x->h_kv);
    const double factor =
        (double)a->q_descale * (double)a->k_descale / sqrt((double)x->d_qk);
    double max = -INFINITY;

    for (int64_t j = 0; j < n; j++) {
        const int64_t k_row = ((s * x->s_kv + j) * x->h_kv + kv_head) * x->d_qk;
        double dot = 0;
        for (int64_t c = 0; c < x->d_qk; c++)
            dot += value(a->q, a->dtype, q_row + c) * value(a->k, a->dtype, k_row + c);
        p[j] = dot * factor;
        if (a->bias)
            p[j] += value(a->bias, FP8_DTYPE_BF16, (head * x->s_q + token) * x->s_kv + j);
        if (p[j] > max) max = p[j];
    }
    *sum = 0;
    for (int64_t j = 0; j < n; j++) *sum += p[j] = exp(p[j] - max);
}

static void reference_row(double *o, double *p, const bench_operands *a, int64_t s, int64_t head,
                          int64_t token) {
    const bench_shape *x = a->shape;
    const int64_t n = keys_of(x, token), kv_head = head / (x->h / x->h_kv);
    double sum;

    for (int64_t c = 0; c < x->d_v; c++) o[c] = 0;
    if (n == 0) return;
    probabilities(p, &sum, a, s, head, token, n);
    for (int64_t j = 0; j < n; j++) {
        const int64_t v_row = ((s * x->s_kv + j) * x->h_kv + kv_head) * x->d_v;
        for (int64_t c = 0; c < x->d_v; c++) o[c] += p[j] * value(a->v, a->dtype, v_row + c);
    }
    for (int64_t c = 0; c < x->d_v; c++) o[c] *= (double)a->v_descale / sum;
}

typedef struct sums {
    double squares, reference, absolute, absmax;
} sums;

typedef struct check_job {
    const bench_operands *a;
    const void *o;
    fp8_dtype o_dtype;
    double o_descale;
    int64_t rows;
    sums *found; /* of each row */
} check_job;

static void compare_row(sums *out, const check_job *job, const double *want, int64_t at) {
    for (int64_t c = 0; c < job->a->shape->d_v; c++) {
        const double e = value(job->o, job->o_dtype, at + c) * job->o_descale - want[c];
        out->squares += e * e;
        out->absolute += fabs(e);
        out->reference += want[c] * want[c];
        if (!(fabs(e) <= out->absmax)) out->absmax = fabs(e); /* NaN stays */
    }
}

/* Row i of the sample: heads and sequences in turn, tokens from the last one back in odd steps. */
static fp8_status check_range(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const check_job *job = ctx;
    const bench_shape *x = job->a->shape;
    double *p = malloc((size_t)x->s_kv * sizeof *p), *o = malloc((size_t)x->d_v * sizeof *o);
    fp8_status st = FP8_OK;

    (void)worker;
    if (!p || !o) {
        st = FP8_FAIL(FP8_ENOMEM, "bench: a row of %lld keys", (long long)x->s_kv);
        goto done;
    }
    for (int64_t i = begin; i < end; i++) {
        const int64_t head = i % x->h, s = i / x->h % x->b;
        const int64_t token = (x->s_q - 1) - (i * 7919 % x->s_q);
        reference_row(o, p, job->a, s, head, token);
        compare_row(&job->found[i], job, o, ((s * x->s_q + token) * x->h + head) * x->d_v);
    }
done:
    free(p);
    free(o);
    return st;
}

fp8_status bench_check_rows(bench_error *out, const void *o, fp8_dtype o_dtype, float o_descale,
                            const bench_operands *x, int64_t rows, fp8_pool *pool) {
    check_job job = {.a = x, .o = o, .o_dtype = o_dtype, .o_descale = (double)o_descale,
                     .rows = rows};
    const double count = (double)(rows * x->shape->d_v);
    sums all = {0};
    fp8_status st;

    for (int c = 0; c < 256; c++) e4m3[c] = (double)fp8_to_f32(FP8_DTYPE_E4M3, (uint8_t)c);
    job.found = calloc((size_t)rows, sizeof *job.found);
    if (!job.found) return FP8_FAIL(FP8_ENOMEM, "bench: %lld rows", (long long)rows);
    FP8_TRY(fp8_parallel_for(pool, rows, 1, check_range, &job));
    for (int64_t i = 0; i < rows; i++) {
        all.squares += job.found[i].squares;
        all.reference += job.found[i].reference;
        all.absolute += job.found[i].absolute;
        if (!(job.found[i].absmax <= all.absmax)) all.absmax = job.found[i].absmax;
    }
    *out = (bench_error){sqrt(all.squares / all.reference), all.absmax, all.absolute / count,
                         all.squares / count, rows};
done:
    free(job.found);
    return st;
}
