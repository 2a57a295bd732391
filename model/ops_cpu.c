/* The CPU operations. A row is taken CHUNK elements at a time into F32 on the stack, worked on and
 * rounded once on the way back; rows (or flat pieces) are spread over the pool. Sums run in LANES
 * partial sums whose order does not depend on threads or vector width. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "core/mathfn.h"
#include "model/ops.h"
#include "model/score_cpu.h"

enum { CHUNK = 512, LANES = 16, PIECE = 64 * CHUNK /* elements a worker takes at a time */ };

static int64_t rows_a_piece(int64_t cols) {
    return cols < 1 ? PIECE : cols < PIECE ? PIECE / cols : 1;
}

static int64_t shorter(int64_t a, int64_t b) { return a < b ? a : b; }

static void *at(const fp8_tensor *t, int64_t i) {
    return (char *)t->data + (size_t)i * fp8_dtype_size(t->dtype);
}

FP8_VECTOR static void load(float *restrict out, const void *restrict x, fp8_dtype t, int64_t n) {
    const uint16_t *b = x;
    if (t == FP8_DTYPE_F32) memcpy(out, x, (size_t)n * sizeof *out);
    else
        for (int64_t i = 0; i < n; i++) out[i] = fp8_bf16_to_f32(b[i]);
}

FP8_VECTOR static void store(void *restrict y, const float *restrict x, fp8_dtype t, int64_t n) {
    uint16_t *b = y;
    if (t == FP8_DTYPE_F32) memcpy(y, x, (size_t)n * sizeof *x);
    else
        for (int64_t i = 0; i < n; i++) b[i] = fp8_f32_to_bf16(x[i]);
}

FP8_VECTOR static void round_to(float *x, fp8_dtype t, int64_t n) {
    if (t == FP8_DTYPE_F32) return;
    for (int64_t i = 0; i < n; i++) x[i] = fp8_round_bf16(x[i]);
}

FP8_VECTOR static void multiply(float *restrict x, const float *restrict y, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] *= y[i];
}

FP8_VECTOR static void accumulate(float *restrict x, const float *restrict y, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] += y[i];
}

/* ---- embedding, gather ----------------------------------------------------------------------- */

typedef struct embed_job {
    const fp8_tensor *x, *table, *positions_table;
    const int32_t *ids, *positions;
    float multiplier;
} embed_job;

static void embed_row(const embed_job *j, int64_t t) {
    const int64_t cols = j->x->shape[1];
    const fp8_dtype type = j->x->dtype;
    float x[CHUNK], p[CHUNK];

    for (int64_t c = 0; c < cols; c += CHUNK) {
        const int64_t n = shorter(CHUNK, cols - c);
        load(x, at(j->table, j->ids[t] * cols + c), type, n);
        for (int64_t i = 0; i < n; i++) x[i] *= j->multiplier;
        if (j->positions_table) {
            round_to(x, type, n);
            load(p, at(j->positions_table, j->positions[t] * cols + c), type, n);
            accumulate(x, p, n);
        }
        store(at(j->x, t * cols + c), x, type, n);
    }
}

static fp8_status embed_range(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const embed_job *j = ctx;
    const int64_t cols = j->x->shape[1];
    const int plain = j->multiplier == 1.0f && !j->positions_table;
    (void)worker;
    for (int64_t t = begin; t < end; t++)
        if (!plain) embed_row(j, t);
        else
            memcpy(at(j->x, t * cols), at(j->table, j->ids[t] * cols),
                   (size_t)cols * fp8_dtype_size(j->x->dtype));
    return FP8_OK;
}

static fp8_status cpu_embed(fp8_device *d, const fp8_tensor *x, const fp8_tensor *table,
                            const int32_t *ids, float multiplier, const fp8_tensor *positions_table,
                            const int32_t *positions) {
    embed_job j = {x, table, positions_table, ids, positions, multiplier};
    assert(x->dtype == table->dtype && x->shape[1] == table->shape[1]);
    return fp8_parallel_for(fp8_device_pool(d), x->shape[0], rows_a_piece(x->shape[1]), embed_range,
                            &j);
}

static fp8_status cpu_gather(fp8_device *d, const fp8_tensor *out, const fp8_tensor *x,
                             const int32_t *rows) {
    return cpu_embed(d, out, x, rows, 1.0f, NULL, NULL);
}

/* ---- norms ----------------------------------------------------------------------------------- */

typedef struct norm_job {
    const fp8_tensor *y, *x, *w, *b;
    fp8_norm_kind kind;
    float eps;
} norm_job;

/* lanes[i % LANES] += (x[i] - mean)^power, power 1 or 2; n a multiple of LANES. */
FP8_VECTOR static void add_powers(float *restrict lanes, const float *restrict x, int64_t n,
                                  float mean, int power) {
    for (int64_t i = 0; i < n; i += LANES)
        for (int k = 0; k < LANES; k++) {
            const float v = x[i + k] - mean;
            lanes[k] += power == 2 ? v * v : v;
        }
}

static float mean_power(const norm_job *j, int64_t row, float mean, int power) {
    const int64_t cols = j->x->shape[1];
    float lanes[LANES] = {0}, x[CHUNK], sum = 0.0f;

    for (int64_t c = 0; c < cols; c += CHUNK) {
        int64_t n = shorter(CHUNK, cols - c);
        load(x, at(j->x, row * cols + c), j->x->dtype, n);
        while (n % LANES) x[n++] = mean; /* adds nothing */
        add_powers(lanes, x, n, mean, power);
    }
    for (int k = 0; k < LANES; k++) sum += lanes[k];
    return sum / (float)cols;
}

FP8_VECTOR static void normalize(float *restrict x, const float *restrict w,
                                 const float *restrict b, int64_t n, fp8_norm_kind kind, float mean,
                                 float rstd, fp8_dtype type) {
    switch (kind) {
    case FP8_NORM_RMS:
        for (int64_t i = 0; i < n; i++) x[i] *= rstd;
        if (type == FP8_DTYPE_BF16)
            for (int64_t i = 0; i < n; i++) x[i] = fp8_round_bf16(x[i]);
        for (int64_t i = 0; i < n; i++) x[i] *= w[i];
        return;
    case FP8_NORM_RMS_PLUS:
        for (int64_t i = 0; i < n; i++) x[i] = x[i] * rstd * (1.0f + w[i]);
        return;
    case FP8_NORM_LAYER:
        for (int64_t i = 0; i < n; i++) x[i] = (x[i] - mean) * rstd * w[i] + b[i];
        return;
    }
}

static fp8_status norm_range(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const norm_job *j = ctx;
    const int64_t cols = j->x->shape[1];
    const fp8_dtype type = j->x->dtype;
    float x[CHUNK], w[CHUNK], b[CHUNK] = {0};
    (void)worker;

    for (int64_t r = begin; r < end; r++) {
        const float mean = j->kind == FP8_NORM_LAYER ? mean_power(j, r, 0.0f, 1) : 0.0f;
        const float rstd = 1.0f / sqrtf(mean_power(j, r, mean, 2) + j->eps);
        for (int64_t c = 0; c < cols; c += CHUNK) {
            const int64_t n = shorter(CHUNK, cols - c);
            load(x, at(j->x, r * cols + c), type, n);
            load(w, at(j->w, c), type, n);
            if (j->b) load(b, at(j->b, c), type, n);
            normalize(x, w, b, n, j->kind, mean, rstd, type);
            store(at(j->y, r * cols + c), x, type, n);
        }
    }
    return FP8_OK;
}

static fp8_status cpu_norm(fp8_device *d, const fp8_tensor *y, const fp8_tensor *x,
                           const fp8_tensor *w, const fp8_tensor *b, fp8_norm_kind kind,
                           float eps) {
    norm_job j = {y, x, w, kind == FP8_NORM_LAYER ? b : NULL, kind, eps};
    assert(y->dtype == x->dtype && w->dtype == x->dtype && y->shape[1] == x->shape[1]);
    return fp8_parallel_for(fp8_device_pool(d), x->shape[0], rows_a_piece(x->shape[1]), norm_range,
                            &j);
}

/* ---- RoPE ------------------------------------------------------------------------------------ */

typedef struct rope_job {
    const fp8_tensor *x;
    int64_t heads, dim, row_stride;
    const float *cos, *sin;
    const int32_t *positions;
} rope_job;

/* One head: (a, b) -> (a cos - b sin, b cos + a sin) over its two halves. */
FP8_VECTOR static void rotate_bf16(uint16_t *restrict a, uint16_t *restrict b,
                                   const float *restrict cos, const float *restrict sin,
                                   int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const float u = fp8_bf16_to_f32(a[i]), v = fp8_bf16_to_f32(b[i]);
        a[i] = fp8_f32_to_bf16(u * cos[i] - v * sin[i]);
        b[i] = fp8_f32_to_bf16(v * cos[i] + u * sin[i]);
    }
}

FP8_VECTOR static void rotate_f32(float *restrict a, float *restrict b, const float *restrict cos,
                                  const float *restrict sin, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const float u = a[i], v = b[i];
        a[i] = u * cos[i] - v * sin[i];
        b[i] = v * cos[i] + u * sin[i];
    }
}

static fp8_status rope_range(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const rope_job *j = ctx;
    const int64_t half = j->dim / 2;
    (void)worker;

    for (int64_t t = begin; t < end; t++) {
        const float *cos = j->cos + j->positions[t] * half, *sin = j->sin + j->positions[t] * half;
        for (int64_t h = 0; h < j->heads; h++) {
            void *a = at(j->x, t * j->row_stride + h * j->dim);
            if (j->x->dtype == FP8_DTYPE_BF16)
                rotate_bf16(a, (uint16_t *)a + half, cos, sin, half);
            else rotate_f32(a, (float *)a + half, cos, sin, half);
        }
    }
    return FP8_OK;
}

static fp8_status cpu_rope(fp8_device *d, const fp8_tensor *x, int64_t heads, int64_t dim,
                           int64_t row_stride, const float *cos, const float *sin,
                           const int32_t *positions) {
    rope_job j = {x, heads, dim, row_stride, cos, sin, positions};
    return fp8_parallel_for(fp8_device_pool(d), x->shape[0], rows_a_piece(heads * dim), rope_range,
                            &j);
}

/* ---- elementwise ----------------------------------------------------------------------------- */

typedef enum flat_kind { FLAT_ACTIVATE, FLAT_ADD, FLAT_ROUND } flat_kind;

typedef struct flat_job {
    flat_kind kind;
    const fp8_tensor *y, *x, *z; /* y = f(x, z) */
    fp8_activation act;
    fp8_dtype to;
} flat_job;

FP8_VECTOR static void apply(float *x, int64_t n, fp8_activation act) {
    switch (act) {
    case FP8_ACT_SILU:
        for (int64_t i = 0; i < n; i++) x[i] = fp8_siluf(x[i]);
        return;
    case FP8_ACT_GELU_TANH:
        for (int64_t i = 0; i < n; i++) x[i] = fp8_gelu_tanhf(x[i]);
        return;
    case FP8_ACT_GELU_ERF:
        for (int64_t i = 0; i < n; i++) x[i] *= 0.5f * (1.0f + erff(x[i] * 0.70710678118654752f));
        return;
    case FP8_ACT_RELU:
        for (int64_t i = 0; i < n; i++) x[i] = x[i] < 0.0f ? 0.0f : x[i];
        return;
    }
}

static fp8_status flat_range(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const flat_job *j = ctx;
    float x[CHUNK], z[CHUNK];
    (void)worker;

    for (int64_t i = begin; i < end; i += CHUNK) {
        const int64_t n = shorter(CHUNK, end - i);
        load(x, at(j->x, i), j->x->dtype, n);
        if (j->z) load(z, at(j->z, i), j->z->dtype, n);
        if (j->kind == FLAT_ROUND) round_to(x, j->to, n);
        if (j->kind == FLAT_ADD) accumulate(x, z, n);
        if (j->kind == FLAT_ACTIVATE) {
            apply(x, n, j->act);
            if (j->z) {
                round_to(x, j->x->dtype, n);
                multiply(x, z, n);
            }
        }
        store(at(j->y, i), x, j->y->dtype, n);
    }
    return FP8_OK;
}

static fp8_status cpu_activate(fp8_device *d, const fp8_tensor *y, const fp8_tensor *x,
                               const fp8_tensor *up, fp8_activation act) {
    flat_job j = {FLAT_ACTIVATE, y, x, up, act, x->dtype};
    return fp8_parallel_for(fp8_device_pool(d), fp8_tensor_count(x), PIECE, flat_range, &j);
}

static fp8_status cpu_add(fp8_device *d, const fp8_tensor *x, const fp8_tensor *y) {
    flat_job j = {FLAT_ADD, x, x, y, FP8_ACT_RELU, x->dtype};
    return fp8_parallel_for(fp8_device_pool(d), fp8_tensor_count(x), PIECE, flat_range, &j);
}

static fp8_status cpu_round(fp8_device *d, const fp8_tensor *x, fp8_dtype to) {
    flat_job j = {FLAT_ROUND, x, x, NULL, FP8_ACT_RELU, to};
    assert(x->dtype == FP8_DTYPE_F32);
    if (to == FP8_DTYPE_F32) return FP8_OK;
    return fp8_parallel_for(fp8_device_pool(d), fp8_tensor_count(x), PIECE, flat_range, &j);
}

const fp8_ops *fp8_ops_cpu(void) {
    static const fp8_ops ops = {
        .embed = cpu_embed,
        .norm = cpu_norm,
        .rope = cpu_rope,
        .activate = cpu_activate,
        .add = cpu_add,
        .gather = cpu_gather,
        .round = cpu_round,
        .score = fp8_score_cpu,
        .argmax = fp8_argmax_cpu,
    };
    return &ops;
}
