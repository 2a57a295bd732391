/* The operands of `bench block`, blocks made of them, and the contexts they stand behind. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench_block.h"
#include "core/half.h"

static const double weight_spread = 0.02;

static int64_t in_of(const fp8_bench_block_shape *s, int w) {
    return w == BLOCK_DOWN ? s->ffn : s->hidden;
}
static int64_t out_of(const fp8_bench_block_shape *s, int w) {
    return w == BLOCK_UP ? s->ffn : s->hidden;
}

/* ---- operands -------------------------------------------------------------------------------- */

typedef struct scale_job {
    uint16_t *x;
    float by, plus;
} scale_job;

static fp8_status scale_piece(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const scale_job *j = ctx;
    (void)worker;
    for (int64_t i = begin; i < end; i++)
        j->x[i] = fp8_f32_to_bf16(fp8_bf16_to_f32(j->x[i]) * j->by + j->plus);
    return FP8_OK;
}

/* *out = n numbers N(0, spread). */
static fp8_status make_normal(const block_problem *p, uint16_t **out, int64_t n, double spread,
                              uint64_t seed) {
    scale_job job = {NULL, (float)spread, 0};
    float amax;
    fp8_status st = FP8_OK;

    *out = malloc((size_t)n * sizeof **out);
    if (!*out) return FP8_FAIL(FP8_ENOMEM, "bench block: %lld elements", (long long)n);
    FP8_TRY(bench_normal(*out, n, seed, 1, &amax, fp8_device_pool(p->cpu)));
    job.x = *out;
    FP8_TRY(fp8_parallel_for(fp8_device_pool(p->cpu), n, 1 << 16, scale_piece, &job));
done:
    return st;
}

fp8_status bench_block_operands(block_problem *p) {
    const fp8_bench_block_shape *s = &p->shape;
    const int64_t rows = s->context ? s->context + s->seq : p->tokens;
    fp8_status st = FP8_OK;

    for (int i = 0; i < BLOCK_WEIGHTS; i++)
        FP8_TRY(make_normal(p, &p->w[i], in_of(s, i) * out_of(s, i), weight_spread,
                            (uint64_t)i + 1));
    FP8_TRY(make_normal(p, &p->bias, s->hidden + s->ffn, 0.1, 11));
    FP8_TRY(make_normal(p, &p->x, rows * s->hidden, 1, 12));
    /* one largest weight, so that they have one scale and can be one product */
    p->w[BLOCK_Q][0] = p->w[BLOCK_K][0] = p->w[BLOCK_V][0] = fp8_f32_to_bf16(0.125f);
done:
    return st;
}

/* ---- a block --------------------------------------------------------------------------------- */

static fp8_status make_linear(const block_problem *p, fp8_device *d, int w, int quantized,
                              float amax, fp8_linear **out) {
    static const char *const names[BLOCK_WEIGHTS] = {"q", "k", "v", "o", "up", "down"};
    const int on_cpu = fp8_device_place(d) == FP8_PLACE_CPU;
    const int64_t in = in_of(&p->shape, w), rows = out_of(&p->shape, w);
    const fp8_linear_spec spec = {
        .name = names[w], .in = in, .out = rows, .borrow_weight = on_cpu,
        .weight = fp8_tensor_view(p->w[w], FP8_DTYPE_BF16, FP8_PLACE_CPU, rows, in),
        .bias = fp8_tensor_view(p->bias, FP8_DTYPE_BF16, FP8_PLACE_CPU, rows, -1),
        .weight_scaling = quantized ? FP8_WEIGHT_TENSOR : FP8_WEIGHT_AS_GIVEN,
        .input = quantized ? FP8_INPUT_STATIC : FP8_INPUT_DENSE,
        .input_descale = amax / 448, .compute = on_cpu ? FP8_DTYPE_F32 : FP8_DTYPE_BF16};
    return fp8_linear_create(out, d, &spec);
}

/* Four vectors [hidden]: weights near 1 and biases near 0, of the compute type. */
static fp8_status make_norms(const block_problem *p, fp8_device *d, fp8_block_spec *s,
                             void *owned[4]) {
    fp8_tensor *const to[4] = {&s->norm1, &s->norm1_bias, &s->norm2, &s->norm2_bias};
    const int64_t n = p->shape.hidden;
    const size_t size = fp8_dtype_size(s->compute);
    float *wide = malloc((size_t)n * sizeof *wide);
    uint16_t *half = malloc((size_t)n * sizeof *half);
    fp8_status st = FP8_OK;

    if (!wide || !half) {
        st = FP8_FAIL(FP8_ENOMEM, "bench block: %lld elements", (long long)n);
        goto done;
    }
    for (int i = 0; i < 4; i++) {
        for (int64_t k = 0; k < n; k++) {
            half[k] = fp8_f32_to_bf16(fp8_bf16_to_f32(p->bias[k]) + (i % 2 ? 0.0f : 1.0f));
            wide[k] = fp8_bf16_to_f32(half[k]);
        }
        FP8_TRY(fp8_device_alloc(d, &owned[i], (size_t)n * size));
        FP8_TRY(fp8_device_upload(d, owned[i], size == 4 ? (void *)wide : (void *)half,
                                  (size_t)n * size));
        *to[i] = fp8_tensor_view(owned[i], s->compute, fp8_device_place(d), n, -1);
    }
done:
    free(wide);
    free(half);
    return st;
}

fp8_status bench_block_make(block_run *r, fp8_device *d, int64_t tokens) {
    static const fp8_point inputs[BLOCK_WEIGHTS] = {
        FP8_POINT_QKV_INPUT, FP8_POINT_QKV_INPUT, FP8_POINT_QKV_INPUT,
        FP8_POINT_O_INPUT, FP8_POINT_UP_INPUT, FP8_POINT_DOWN_INPUT};
    const block_problem *p = r->p;
    const fp8_bench_block_shape *s = &p->shape;
    fp8_linear **const l = r->linears;
    fp8_status st = FP8_OK;

    for (int i = 0; i < BLOCK_WEIGHTS; i++)
        FP8_TRY(make_linear(p, d, i, r->precision >= BLOCK_FP8, p->amax[inputs[i]], &l[i]));
    r->spec = (fp8_block_spec){
        .hidden = s->hidden, .num_heads = s->heads, .num_kv_heads = s->heads,
        .head_dim = s->hidden / s->heads, .max_tokens = tokens,
        .compute = fp8_device_place(d) == FP8_PLACE_CPU ? FP8_DTYPE_F32 : FP8_DTYPE_BF16,
        .norm = FP8_NORM_LAYER, .norm_eps = 1e-5f, .act = FP8_ACT_GELU_TANH, .q = l[BLOCK_Q],
        .k = l[BLOCK_K], .v = l[BLOCK_V], .o = l[BLOCK_O], .up = l[BLOCK_UP], .down = l[BLOCK_DOWN],
        .backend = r->backend, .steps = r->precision == BLOCK_PLAIN ? FP8_BLOCK_SINGLE
                                                                    : FP8_BLOCK_AT_STORE};
    if (r->precision == BLOCK_FP8_FAST) r->spec.accumulate = FP8_ACCUMULATE_FAST;
    if (r->precision >= BLOCK_FP8_ATTENTION) {
        const float most = fmaxf(p->amax[FP8_POINT_Q],
                                 fmaxf(p->amax[FP8_POINT_K], p->amax[FP8_POINT_V]));
        r->spec.q_descale = r->spec.k_descale = r->spec.v_descale = most / 448;
        r->spec.quantize_p = 1;
        r->spec.precision = FP8_ATTENTION_FAST; /* few keys; and fused has no other */
    }
    if (r->precision != BLOCK_PLAIN) {
        FP8_TRY(fp8_linear_join(&r->joined, l, 3));
        r->spec.joined_qkv = r->joined;
    }
    FP8_TRY(make_norms(p, d, &r->spec, r->owned));
    FP8_TRY(fp8_block_create(&r->block, d, &r->spec));
done:
    return st;
}

void bench_block_free(block_run *r, fp8_device *d) {
    fp8_block_destroy(r->block);
    for (int i = 0; i < BLOCK_WEIGHTS; i++) fp8_linear_destroy(r->linears[i]);
    for (int i = 0; i < 4; i++) fp8_device_free(d, r->owned[i]);
    fp8_device_free(d, r->x.data);
    fp8_device_free(d, r->y.data);
    fp8_linear_destroy(r->joined);
    fp8_device_free(d, r->starts);
    fp8_device_free(d, r->lengths);
    fp8_device_free(d, r->table);
    fp8_device_free(d, r->pages.k);
    fp8_device_free(d, r->pages.v);
}

/* ---- what it is called with ------------------------------------------------------------------ */

static fp8_status upload_ints(fp8_device *d, int32_t **place, const int32_t *x, int64_t n) {
    const size_t bytes = (size_t)n * sizeof *x;
    fp8_status st = FP8_OK;

    if (!*place) FP8_TRY(fp8_device_alloc(d, (void **)place, bytes));
    FP8_TRY(fp8_device_upload(d, *place, x, bytes));
done:
    return st;
}

/* x and y, empty, and starts of `seqs` sequences. */
static fp8_status make_tokens(block_run *r, fp8_device *d, int64_t seqs) {
    const fp8_bench_block_shape *s = &r->p->shape;
    const int64_t tokens = seqs * s->seq;
    int32_t *starts = malloc((size_t)(seqs + 1) * sizeof *starts);
    fp8_tensor *const to[2] = {&r->x, &r->y};
    fp8_status st = FP8_OK;

    if (!starts) return FP8_FAIL(FP8_ENOMEM, "bench block: %lld sequences", (long long)seqs);
    for (int64_t i = 0; i <= seqs; i++) starts[i] = (int32_t)(i * s->seq);
    FP8_TRY(upload_ints(d, &r->starts, starts, seqs + 1));
    for (int i = 0; i < 2; i++) {
        void *data = NULL;
        FP8_TRY(fp8_device_alloc(d, &data, (size_t)(tokens * s->hidden) *
                                               fp8_dtype_size(r->spec.compute)));
        *to[i] = fp8_tensor_view(data, r->spec.compute, fp8_device_place(d), tokens, s->hidden);
    }
done:
    free(starts);
    return st;
}

fp8_status bench_block_batch(block_run *r, fp8_device *d, int64_t seqs) {
    const int64_t n = seqs * r->p->shape.seq * r->p->shape.hidden;
    fp8_status st = FP8_OK;

    FP8_TRY(make_tokens(r, d, seqs));
    if (r->spec.compute == FP8_DTYPE_BF16)
        FP8_TRY(fp8_device_upload(d, r->x.data, r->p->x, (size_t)n * sizeof *r->p->x));
    for (int64_t i = 0; i < n && r->spec.compute == FP8_DTYPE_F32; i++)
        ((float *)r->x.data)[i] = fp8_bf16_to_f32(r->p->x[i]);
    r->batch = (fp8_block_batch){r->starts, NULL, seqs, r->p->shape.seq, 1};
done:
    return st;
}

/* ---- behind a context ------------------------------------------------------------------------ */

enum { PAGE = 128 };

static fp8_status make_pages(block_run *r) {
    const fp8_bench_block_shape *s = &r->p->shape;
    const int64_t each = (s->context + s->seq + PAGE - 1) / PAGE;
    int32_t *table = malloc((size_t)(s->batch * each) * sizeof *table);
    fp8_kv_layout lie;
    fp8_status st = FP8_OK;

    if (!table) return FP8_FAIL(FP8_ENOMEM, "bench block: %lld pages", (long long)each);
    r->pages = (fp8_kv_pages){
        .dtype = r->precision >= BLOCK_FP8_ATTENTION ? FP8_DTYPE_E4M3 : r->spec.compute,
        .num_kv_heads = (int32_t)s->heads, .d_qk = (int32_t)(s->hidden / s->heads),
        .d_v = (int32_t)(s->hidden / s->heads), .page_size = PAGE, .num_pages = s->batch * each};
    FP8_TRY(fp8_kv_pages_layout(&lie, &r->pages));
    FP8_TRY(fp8_device_alloc(r->p->d, &r->pages.k, lie.k_bytes));
    FP8_TRY(fp8_device_alloc(r->p->d, &r->pages.v, lie.v_bytes));
    fp8_kv_identity_table(table, s->batch, each);
    FP8_TRY(upload_ints(r->p->d, &r->table, table, s->batch * each));
    r->keys = (fp8_kv_batch){.num_seqs = s->batch, .page_table = r->table, .max_pages = each,
                             .q_starts = r->starts, .max_q = s->seq,
                             .max_kv = s->context + s->seq, .total_q = r->p->tokens};
done:
    free(table);
    return st;
}

/* The next forward is of tokens first .. first + seq - 1 of every sequence, the same in each. */
static fp8_status place_tokens(block_run *r, int64_t first, uint16_t *x, int32_t *lengths) {
    const fp8_bench_block_shape *s = &r->p->shape;
    const int64_t n = s->seq * s->hidden;
    fp8_status st = FP8_OK;

    for (int64_t b = 0; b < s->batch; b++) {
        memcpy(x + b * n, r->p->x + first * s->hidden, (size_t)n * sizeof *x);
        lengths[b] = (int32_t)(first + s->seq);
    }
    FP8_TRY(upload_ints(r->p->d, &r->lengths, lengths, s->batch));
    FP8_TRY(fp8_device_upload(r->p->d, r->x.data, x, (size_t)(s->batch * n) * sizeof *x));
    r->keys.kv_lengths = r->lengths;
done:
    return st;
}

fp8_status bench_block_context(block_run *r) {
    const fp8_bench_block_shape *s = &r->p->shape;
    uint16_t *x = malloc((size_t)(r->p->tokens * s->hidden) * sizeof *x);
    int32_t *lengths = malloc((size_t)s->batch * sizeof *lengths);
    fp8_status st = FP8_OK;

    if (!x || !lengths) {
        st = FP8_FAIL(FP8_ENOMEM, "bench block: %lld tokens", (long long)r->p->tokens);
        goto done;
    }
    FP8_TRY(make_tokens(r, r->p->d, s->batch));
    FP8_TRY(make_pages(r));
    for (int64_t first = 0; first <= s->context; first += s->seq) {
        FP8_TRY(place_tokens(r, first, x, lengths));
        if (first < s->context) FP8_TRY(bench_block_call(r));
    }
done:
    free(x);
    free(lengths);
    return st;
}

fp8_status bench_block_call(void *run) {
    block_run *r = run;
    if (r->pages.k)
        return fp8_block_forward_pages(r->block, &r->y, &r->x, NULL, &r->pages, &r->keys);
    return fp8_block_forward(r->block, &r->y, &r->x, &r->batch, NULL);
}
