/* tests/flash_rows.h - problems of attention_sweep.h that are too large for the oracle: the formula
 * in double for a sample of the rows, and what must hold for all of them. */
#ifndef FP8_TESTS_FLASH_ROWS_H
#define FP8_TESTS_FLASH_ROWS_H
#include "attention_sweep.h"

/* Q, K or V of a case: values are element * descale, rounded to codes if it is quantized. */
typedef struct flash_source {
    const void *data;
    fp8_dtype dtype;
    fp8_strides strides;
    int64_t group, d;
    float *descales; /* owned; NULL: none */
    int rounded, rotated;
} flash_source;

typedef struct flash_rows {
    const sweep_case *c;
    fp8_attention_options o; /* resolved */
    fp8_attention_io io;     /* likewise, host */
    flash_source q, k, v;
} flash_rows;

/* ---- operands -------------------------------------------------------------------------------- */

static inline int64_t flash_descales(const fp8_attention_options *o) {
    return o->granularity == FP8_DESCALE_TENSOR ? 1
           : o->granularity == FP8_DESCALE_HEAD ? o->num_kv_heads
                                                : o->num_seqs * o->num_kv_heads;
}

/* The row of d elements from `at` on, rotated by options.hadamard if the source is. */
static inline void flash_raw(const flash_source *x, float *to, int64_t at) {
    const int64_t block = x->rotated ? attention_hadamard_block((int32_t)x->d) : 1;
    for (int64_t i = 0; i < x->d; i++) to[i] = sweep_load(x->data, x->dtype, at + i);
    for (int64_t step = 1; step < block; step *= 2)
        for (int64_t i = 0; i < x->d; i++)
            if (!(i & step)) {
                const float a = to[i], b = to[i + step];
                to[i] = a + b;
                to[i + step] = a - b;
            }
    for (int64_t i = 0; i < x->d && block > 1; i++) to[i] *= 1.0f / sqrtf((float)block);
}

static inline void flash_measure(const flash_rows *f, flash_source *x, int kv) {
    const fp8_attention_options *o = &f->o;
    const fp8_attention_io *io = &f->io;
    const int64_t heads = o->num_kv_heads * x->group;
    for (int64_t s = 0; s < o->num_seqs; s++) {
        int64_t begin, n = attention_sequence(kv ? io->kv_starts : io->q_starts,
                                              kv ? io->kv_lengths : io->q_lengths, s,
                                              kv ? io->total_kv : io->total_q,
                                              kv ? o->max_kv : o->max_q, &begin);
        for (int64_t i = 0; i < n * heads; i++) {
            const int64_t h = i % heads, t = i / heads;
            const int64_t at = attention_offset(x->strides, s, begin + t, h);
            float *amax = &x->descales[attention_descale_index(o, s, h / x->group)];
            float raw[256];
            flash_raw(x, raw, at);
            for (int64_t c = 0; c < x->d; c++)
                if (isfinite(raw[c]) && fabsf(raw[c]) > *amax) *amax = fabsf(raw[c]);
        }
    }
    for (int64_t i = 0; i < flash_descales(o); i++)
        x->descales[i] = attention_descale_of(x->descales[i]);
}

static inline void flash_open_source(flash_rows *f, flash_source *x, const void *data,
                                     fp8_dtype dtype, fp8_strides strides, int64_t group,
                                     int64_t d, const float *given, int kv) {
    const int64_t n = flash_descales(&f->o);
    *x = (flash_source){data, dtype, strides, group, d, NULL, dtype != FP8_DTYPE_E4M3, 0};
    x->rotated = f->o.hadamard && x != &f->v;
    if (x->rounded && f->o.quantize == FP8_QUANTIZE_NOT) return;
    x->descales = calloc((size_t)n + 1, sizeof *x->descales);
    if (!x->descales) abort();
    if (x->rounded && f->o.quantize == FP8_QUANTIZE_CURRENT) flash_measure(f, x, kv);
    else memcpy(x->descales, given, (size_t)n * sizeof *given);
}

static inline void flash_rows_open(flash_rows *f, const sweep_case *c) {
    const fp8_attention_io io = sweep_host_io(c);
    *f = (flash_rows){.c = c};
    if (attention_resolve_options(&f->o, &c->o) != FP8_OK ||
        attention_resolve_io(&f->io, &f->o, &io) != FP8_OK)
        abort();
    flash_open_source(f, &f->q, f->io.q, f->o.q_dtype, f->o.q,
                      f->o.num_heads / f->o.num_kv_heads, f->o.d_qk, f->io.q_descale, 0);
    flash_open_source(f, &f->k, f->io.k, f->o.kv_dtype, f->o.k, 1, f->o.d_qk, f->io.k_descale, 1);
    flash_open_source(f, &f->v, f->io.v, f->o.kv_dtype, f->o.v, 1, f->o.d_v, f->io.v_descale, 1);
}

static inline void flash_rows_close(flash_rows *f) {
    free(f->q.descales);
    free(f->k.descales);
    free(f->v.descales);
}

static inline void flash_load(const flash_rows *f, const flash_source *x, float *to, int64_t seq,
                              int64_t token, int64_t head) {
    const int64_t at = attention_offset(x->strides, seq, token, head);
    const float descale =
        x->descales ? x->descales[attention_descale_index(&f->o, seq, head / x->group)] : 1.0f;
    flash_raw(x, to, at);
    for (int64_t i = 0; i < x->d; i++) {
        float a = to[i];
        if (x->descales && x->rounded)
            a = fp8_to_f32(FP8_DTYPE_E4M3, fp8_from_f32(FP8_DTYPE_E4M3, a * (1.0f / descale)));
        to[i] = a * descale;
    }
}

/* ---- one row --------------------------------------------------------------------------------- */

/* S of key j from scale * q.k, with every term; -Inf where the mask hides it. */
static inline double flash_score(const flash_rows *f, double s, int64_t seq, int64_t head,
                                 int64_t token, int64_t j, int64_t diagonal) {
    const fp8_attention_options *o = &f->o;
    const int64_t bias_at = attention_bias_offset(o, o->bias_shape, seq, head, token, j);
    const double cap = (double)o->softcap;

    if (o->mask == FP8_MASK_ARBITRARY &&
        f->io.mask[attention_bias_offset(o, o->mask_shape, seq, head, token, j)])
        return -INFINITY;
    if (o->bias == FP8_BIAS_PRE_SCALE)
        s += (double)o->scale * (double)sweep_load(f->io.bias, o->bias_dtype, bias_at);
    if (cap > 0) s = cap * tanh(s / cap);
    if (o->bias == FP8_BIAS_POST_SCALE) s += (double)sweep_load(f->io.bias, o->bias_dtype, bias_at);
    if (o->bias == FP8_BIAS_ALIBI)
        s += (double)(f->io.alibi_slopes ? f->io.alibi_slopes[head]
                                         : attention_alibi_slope((int32_t)head, o->num_heads)) *
             (double)(j - diagonal);
    return s;
}

/* O [d], *lse and the largest P of a row that is there. */
static inline void flash_row(const flash_rows *f, double *out, double *lse, double *top_p,
                             int64_t seq, int64_t token, int64_t head, int64_t q_begin,
                             int64_t s_q, int64_t kv_begin, int64_t s_kv) {
    const fp8_attention_options *o = &f->o;
    const int64_t kv_head = head / f->q.group;
    const int64_t diagonal = attention_diagonal(o, token, s_q, s_kv);
    const double sink = o->sink == FP8_SINK_LEARNABLE ? (double)f->io.sink[head]
                        : o->sink == FP8_SINK_OFF_BY_ONE ? 0.0 : -INFINITY;
    float q[256], x[256];
    double *p = malloc((size_t)(s_kv + 1) * sizeof *p), max = -INFINITY, sum = 0, whole;
    int64_t lo, hi;

    if (!p) abort();
    attention_visible(o, token, s_q, s_kv, &lo, &hi);
    flash_load(f, &f->q, q, seq, q_begin + token, head);
    for (int64_t j = lo; j < hi; j++) {
        double s = 0;
        flash_load(f, &f->k, x, seq, kv_begin + j, kv_head);
        for (int64_t i = 0; i < o->d_qk; i++) s += (double)q[i] * (double)x[i];
        p[j] = flash_score(f, s * (double)o->scale, seq, head, token, j, diagonal);
        if (p[j] > max) max = p[j];
    }
    for (int64_t i = 0; i < o->d_v; i++) out[i] = 0;
    for (int64_t j = lo; j < hi && max > -INFINITY; j++) {
        p[j] = exp(p[j] - max);
        sum += p[j];
        flash_load(f, &f->v, x, seq, kv_begin + j, kv_head);
        for (int64_t i = 0; i < o->d_v; i++) out[i] += p[j] * (double)x[i];
    }
    *lse = sum > 0 ? log(sum) + max : -INFINITY;
    if (sink > -INFINITY) /* the larger of the two exponents out of the logarithm */
        *lse = fmax(*lse, sink) + log1p(exp(-fabs(*lse - sink)));
    whole = sum > 0 ? exp(*lse - max) : 1;
    for (int64_t i = 0; i < o->d_v; i++) out[i] /= whole;
    *top_p = sum > 0 ? 1 / whole : 0;
    free(p);
}

/* ---- comparison ------------------------------------------------------------------------------ */

typedef struct flash_bounds {
    double o;   /* relative L2 of the sampled rows */
    double lse; /* relative to 1 + |LSE| */
} flash_bounds;

/* What rounding P to E4M3 (2.7e-2) or 16 bits, and O, may cost; LSE: FP8 products keep 14 bits. */
static inline flash_bounds flash_bounds_of(const fp8_attention_options *o) {
    const int codes = o->q_dtype == FP8_DTYPE_E4M3 || o->kv_dtype == FP8_DTYPE_E4M3 ||
                      o->quantize != FP8_QUANTIZE_NOT;
    flash_bounds b = {codes ? 3.2e-2 : o->q_dtype == FP8_DTYPE_BF16 ? 5e-3 : 1e-3,
                      codes ? 4e-3 : 3e-5};
    if (o->o_dtype == FP8_DTYPE_BF16 && b.o < 5e-3) b.o = 5e-3;
    if (o->o_dtype == FP8_DTYPE_E4M3) b.o += 3.2e-2;
    return b;
}

typedef struct flash_sums {
    double error, norm, top_p, top_o;
    int64_t rows, wrong;
} flash_sums;

static inline double flash_got(const flash_rows *f, int64_t at) {
    const double x = (double)sweep_load(f->c->buffer[SWEEP_O].data, f->o.o_dtype, at);
    return f->o.o_dtype == FP8_DTYPE_E4M3 ? x / (double)*f->io.o_scale : x;
}

static inline void flash_compare_row(const flash_rows *f, flash_sums *v, double lse_bound,
                                     int64_t seq, int64_t token, int64_t head, int64_t begin,
                                     int64_t s_q, int64_t kv_begin, int64_t s_kv) {
    const int64_t at = attention_offset(f->o.o, seq, begin + token, head);
    const int64_t lse_at = attention_lse_offset(&f->o, &f->io, seq, head, begin, token);
    double want[256] = {0}, lse = -INFINITY, top_p = 0, lse_got;

    if (token < s_q)
        flash_row(f, want, &lse, &top_p, seq, token, head, begin, s_q, kv_begin, s_kv);
    for (int64_t i = 0; i < f->o.d_v; i++) {
        const double got = flash_got(f, at + i);
        v->error += (got - want[i]) * (got - want[i]);
        v->norm += want[i] * want[i];
        v->wrong += top_p == 0 && got != 0;
    }
    if (top_p > v->top_p) v->top_p = top_p;
    v->rows++;
    if (!f->o.want_lse) return;
    lse_got = (double)f->io.lse[lse_at];
    if (lse == -INFINITY ? lse_got == lse : fabs(lse_got - lse) <= lse_bound * (1 + fabs(lse)))
        return;
    if (v->wrong++ < 3)
        fprintf(stderr, "  sequence %lld token %lld head %lld: LSE %g, expected %g\n",
                (long long)seq, (long long)token, (long long)head, lse_got, lse);
}

/* A sample of about `rows` rows of a case that ran, O in place; returns the relative L2. */
static inline double flash_compare(const sweep_case *c, int64_t rows, uint64_t seed) {
    static const int64_t edges[] = {0, 1, 63, 64, 127, 128, 255, 256};
    flash_rows f;
    flash_sums v = {0};
    flash_bounds b;
    double error;

    flash_rows_open(&f, c);
    b = flash_bounds_of(&f.o);
    for (int64_t i = 0; i < rows && f.o.num_seqs > 0 && f.o.max_q > 0; i++) {
        const int64_t seq = i % f.o.num_seqs, head = sweep_below(&seed, f.o.num_heads);
        int64_t begin, kv_begin, written, token;
        const int64_t s_q = attention_sequence(f.io.q_starts, f.io.q_lengths, seq, f.io.total_q,
                                               f.o.max_q, &begin);
        const int64_t s_kv = attention_sequence(f.io.kv_starts, f.io.kv_lengths, seq,
                                                f.io.total_kv, f.o.max_kv, &kv_begin);
        written = f.io.q_starts ? s_q : f.o.max_q;
        token = i % 3 == 0 ? edges[i / 3 % 8] : i % 3 == 1 ? written - 1 - edges[i / 3 % 8]
                                                           : sweep_below(&seed, f.o.max_q);
        if (token < 0 || token >= written) continue;
        flash_compare_row(&f, &v, b.lse, seq, token, head, begin, s_q, kv_begin, s_kv);
    }
    error = v.norm > 0 ? sqrt(v.error / v.norm) : sqrt(v.error);
    CHECK(error <= b.o);
    CHECK(v.wrong == 0);
    if (f.o.want_amax)
        CHECK((double)*f.io.amax_s >= v.top_p * (1 - 1e-2) && *f.io.amax_s <= 1.001f);
    if (!(error <= b.o) || v.wrong) {
        fprintf(stderr, "  relative L2 %g of %lld rows, bound %g, %lld wrong\n", error,
                (long long)v.rows, b.o, (long long)v.wrong);
        sweep_print(c, stderr);
    }
    flash_rows_close(&f);
    return error;
}

/* Every row that is not sampled too: amax_o is the largest |O|; nothing else of O is touched. */
static inline void flash_check_all(const sweep_case *c) {
    const size_t size = fp8_dtype_size(c->o.o_dtype), bytes = c->buffer[SWEEP_O].bytes;
    const uint8_t *out = c->buffer[SWEEP_O].data;
    uint8_t *written = calloc(bytes + 1, 1);
    double top = 0;
    int64_t strays = 0;
    flash_rows f;

    if (!written) abort();
    flash_rows_open(&f, c);
    for (int64_t s = 0; s < f.o.num_seqs; s++) {
        int64_t begin, n = attention_sequence(f.io.q_starts, f.io.q_lengths, s, f.io.total_q,
                                              f.o.max_q, &begin);
        if (!f.io.q_starts) n = f.o.max_q;
        for (int64_t i = 0; i < n * f.o.num_heads; i++) {
            const int64_t at =
                attention_offset(f.o.o, s, begin + i / f.o.num_heads, i % f.o.num_heads);
            memset(written + at * (int64_t)size, 1, (size_t)f.o.d_v * size);
            for (int64_t k = 0; k < f.o.d_v; k++) {
                const double a = fabs(flash_got(&f, at + k));
                if (a > top || isnan(a)) top = isnan(top) ? top : a;
            }
        }
    }
    for (size_t i = 0; i < bytes; i++) strays += !written[i] && out[i] != SWEEP_POISON;
    CHECK(strays == 0);
    if (f.o.want_amax) {
        const int codes = f.o.o_dtype == FP8_DTYPE_E4M3;
        const double unit = codes ? 0x1p-4 : 0x1p-8, amax = (double)*f.io.amax_o;
        const int saturated = codes && top * (double)*f.io.o_scale >= 448;
        CHECK(isnan(top) || (saturated && amax > top) || fabs(amax - top) <= unit * top + 1e-4);
    }
    flash_rows_close(&f);
    free(written);
}
#endif
