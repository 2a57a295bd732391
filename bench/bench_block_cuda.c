/* `bench block`: a decoder block of GPT-2's form over many tokens: dense with every step a pass of
 * its own, dense and FP8 with all that the products can take in, FP8 attention besides; each with
 * every attention backend. One sequence of the output is compared with the block in F32. */
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench_impl.h"
#include "core/cuda_check.h"
#include "core/half.h"
#include "model/model.h"

enum { W_Q, W_K, W_V, W_O, W_UP, W_DOWN, NUM_WEIGHTS };
enum { NUM_PRECISIONS = 4, NUM_BACKENDS = 3, NUM_RUNGS = NUM_PRECISIONS * NUM_BACKENDS };

static const char *const precisions[NUM_PRECISIONS] = {"plain BF16", "fused BF16", "FP8",
                                                       "FP8, FP8 attention"};
static const fp8_attention_backend backends[NUM_BACKENDS] = {
    FP8_BACKEND_FLASH, FP8_BACKEND_FUSED, FP8_BACKEND_UNFUSED};
enum { PLAIN, FUSED, FP8, FP8_ATTENTION };

static const double margin = 2; /* over the amax of one sequence: the others have more */
/* E4M3 inputs and weights alone cost 6.1e-2 on these data, all sums in double (docs/NOTES.md). */
static const double weight_spread = 0.02, most_error = 8e-2;

enum { COL_MS, COL_LOW, COL_HIGH, COL_TOKENS, COL_RATE, COL_GB, COL_ERROR, COL_MHZ, NUM_COLS };
static const fp8_bench_column columns[NUM_COLS] = {
    {"ms/iter", 4}, {"ms_0.2", 4}, {"ms_0.8", 4}, {"tokens/s", 4},
    {"TFLOP/s", 4}, {"peak_GB", 3}, {"rel_L2", 3}, {"SM_MHz", 4},
};

/* Host operands, BF16, and what one sequence of the block in F32 was. */
typedef struct problem {
    fp8_bench_block_shape shape;
    fp8_device *d, *cpu;
    uint16_t *w[NUM_WEIGHTS], *bias, *x; /* bias: zeros and small numbers, of every Linear */
    float *want;                         /* [seq, hidden] */
    float amax[FP8_NUM_POINTS];
    int64_t tokens;
} problem;

typedef struct rung {
    problem *p;
    int precision;
    fp8_attention_backend backend;
    fp8_linear *linears[NUM_WEIGHTS];
    fp8_block *block;
    fp8_block_spec spec;
    fp8_tensor x, y;
    void *owned[4], *starts; /* norms' weights and biases */
    fp8_block_batch batch;
    double error, gb;
    char note[256];
} rung;

static int64_t in_of(const fp8_bench_block_shape *s, int w) {
    return w == W_DOWN ? s->ffn : s->hidden;
}
static int64_t out_of(const fp8_bench_block_shape *s, int w) {
    return w == W_UP ? s->ffn : s->hidden;
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
static fp8_status make_normal(const problem *p, uint16_t **out, int64_t n, double spread,
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

static fp8_status make_problem(problem *p) {
    const fp8_bench_block_shape *s = &p->shape;
    fp8_status st = FP8_OK;

    for (int i = 0; i < NUM_WEIGHTS; i++)
        FP8_TRY(make_normal(p, &p->w[i], in_of(s, i) * out_of(s, i), weight_spread,
                            (uint64_t)i + 1));
    FP8_TRY(make_normal(p, &p->bias, s->hidden + s->ffn, 0.1, 11));
    FP8_TRY(make_normal(p, &p->x, p->tokens * s->hidden, 1, 12));
done:
    return st;
}

/* ---- a block --------------------------------------------------------------------------------- */

static fp8_status make_linear(const problem *p, fp8_device *d, int w, int quantized, float amax,
                              fp8_linear **out) {
    static const char *const names[NUM_WEIGHTS] = {"q", "k", "v", "o", "up", "down"};
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
static fp8_status make_norms(const problem *p, fp8_device *d, fp8_block_spec *s, void *owned[4]) {
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

static fp8_status make_block(rung *r, fp8_device *d, int64_t tokens) {
    static const fp8_point inputs[NUM_WEIGHTS] = {
        FP8_POINT_QKV_INPUT, FP8_POINT_QKV_INPUT, FP8_POINT_QKV_INPUT,
        FP8_POINT_O_INPUT, FP8_POINT_UP_INPUT, FP8_POINT_DOWN_INPUT};
    const problem *p = r->p;
    const fp8_bench_block_shape *s = &p->shape;
    fp8_linear **const l = r->linears;
    fp8_status st = FP8_OK;

    for (int i = 0; i < NUM_WEIGHTS; i++)
        FP8_TRY(make_linear(p, d, i, r->precision >= FP8, p->amax[inputs[i]], &l[i]));
    r->spec = (fp8_block_spec){
        .hidden = s->hidden, .num_heads = s->heads, .num_kv_heads = s->heads,
        .head_dim = s->hidden / s->heads, .max_tokens = tokens,
        .compute = fp8_device_place(d) == FP8_PLACE_CPU ? FP8_DTYPE_F32 : FP8_DTYPE_BF16,
        .norm = FP8_NORM_LAYER, .norm_eps = 1e-5f, .act = FP8_ACT_GELU_TANH, .q = l[W_Q],
        .k = l[W_K], .v = l[W_V], .o = l[W_O], .up = l[W_UP], .down = l[W_DOWN],
        .backend = r->backend, .steps = r->precision == PLAIN ? FP8_BLOCK_SINGLE
                                                              : FP8_BLOCK_AT_STORE};
    if (r->precision == FP8_ATTENTION) {
        r->spec.q_descale = p->amax[FP8_POINT_Q] / 448;
        r->spec.k_descale = p->amax[FP8_POINT_K] / 448;
        r->spec.v_descale = p->amax[FP8_POINT_V] / 448;
        r->spec.quantize_p = 1;
    }
    FP8_TRY(make_norms(p, d, &r->spec, r->owned));
    FP8_TRY(fp8_block_create(&r->block, d, &r->spec));
done:
    return st;
}

static void free_rung(rung *r, fp8_device *d) {
    fp8_block_destroy(r->block);
    for (int i = 0; i < NUM_WEIGHTS; i++) fp8_linear_destroy(r->linears[i]);
    for (int i = 0; i < 4; i++) fp8_device_free(d, r->owned[i]);
    fp8_device_free(d, r->x.data);
    fp8_device_free(d, r->y.data);
    fp8_device_free(d, r->starts);
}

/* x, y and starts of `seqs` sequences, x from the host's as the compute type has it. */
static fp8_status make_batch(rung *r, fp8_device *d, int64_t seqs) {
    const fp8_bench_block_shape *s = &r->p->shape;
    const int64_t tokens = seqs * s->seq, n = tokens * s->hidden;
    const fp8_dtype type = r->spec.compute;
    int32_t *starts = malloc((size_t)(seqs + 1) * sizeof *starts);
    void *x = NULL, *y = NULL;
    fp8_status st = FP8_OK;

    if (!starts) return FP8_FAIL(FP8_ENOMEM, "bench block: %lld sequences", (long long)seqs);
    for (int64_t i = 0; i <= seqs; i++) starts[i] = (int32_t)(i * s->seq);
    FP8_TRY(fp8_device_alloc(d, &r->starts, (size_t)(seqs + 1) * sizeof *starts));
    FP8_TRY(fp8_device_upload(d, r->starts, starts, (size_t)(seqs + 1) * sizeof *starts));
    FP8_TRY(fp8_device_alloc(d, &x, (size_t)n * fp8_dtype_size(type)));
    r->x = fp8_tensor_view(x, type, fp8_device_place(d), tokens, s->hidden);
    FP8_TRY(fp8_device_alloc(d, &y, (size_t)n * fp8_dtype_size(type)));
    r->y = fp8_tensor_view(y, type, fp8_device_place(d), tokens, s->hidden);
    if (type == FP8_DTYPE_BF16) FP8_TRY(fp8_device_upload(d, x, r->p->x, (size_t)n * 2));
    for (int64_t i = 0; i < n && type == FP8_DTYPE_F32; i++)
        ((float *)x)[i] = fp8_bf16_to_f32(r->p->x[i]);
    r->batch = (fp8_block_batch){r->starts, NULL, seqs, s->seq, 1};
done:
    free(starts);
    return st;
}

/* ---- the reference --------------------------------------------------------------------------- */

static fp8_status see_amax(void *ctx, int32_t layer, fp8_point point, const fp8_tensor *x) {
    problem *p = ctx;
    const float *v = x->data;
    const int64_t n = fp8_tensor_count(x);
    float most = 0;

    (void)layer;
    for (int64_t i = 0; i < n; i++) most = fmaxf(most, fabsf(v[i]));
    p->amax[point] = most * (float)margin;
    return FP8_OK;
}

/* The first sequence through the block in F32 on the CPU: what the others are held to, and the
 * scales of the FP8 ones. */
static fp8_status make_reference(problem *p) {
    rung r = {.p = p, .precision = FUSED, .backend = FP8_BACKEND_AUTO};
    const fp8_tap tap = {.on = see_amax, .ctx = p};
    const size_t n = (size_t)(p->shape.seq * p->shape.hidden);
    fp8_status st = FP8_OK;

    p->want = malloc(n * sizeof *p->want);
    if (!p->want) return FP8_FAIL(FP8_ENOMEM, "bench block: %zu elements", n);
    FP8_TRY(make_block(&r, p->cpu, p->shape.seq));
    FP8_TRY(make_batch(&r, p->cpu, 1));
    FP8_TRY(fp8_block_forward(r.block, &r.y, &r.x, &r.batch, &tap));
    memcpy(p->want, r.y.data, n * sizeof *p->want);
done:
    free_rung(&r, p->cpu);
    return st;
}

static fp8_status measure_error(rung *r) {
    const int64_t n = r->p->shape.seq * r->p->shape.hidden;
    uint16_t *got = malloc((size_t)n * sizeof *got);
    double error = 0, size = 0;
    fp8_status st = FP8_OK;

    if (!got) return FP8_FAIL(FP8_ENOMEM, "bench block: %lld elements", (long long)n);
    FP8_TRY(fp8_device_download(r->p->d, got, r->y.data, (size_t)n * sizeof *got));
    for (int64_t i = 0; i < n; i++) {
        const double want = (double)r->p->want[i], e = (double)fp8_bf16_to_f32(got[i]) - want;
        error += e * e;
        size += want * want;
    }
    r->error = sqrt(error / size);
    if (!(r->error <= most_error))
        st = FP8_FAIL(FP8_EDATA, "bench block: %s, %s: relative L2 %.3g against F32, at most %g",
                      precisions[r->precision], fp8_attention_backend_name(r->backend), r->error,
                      most_error);
done:
    free(got);
    return st;
}

/* ---- the rungs ------------------------------------------------------------------------------- */

static fp8_status call_rung(void *ctx) {
    rung *r = ctx;
    return fp8_block_forward(r->block, &r->y, &r->x, &r->batch, NULL);
}

static size_t free_memory(void) {
    size_t now = 0, all = 0;
    return cudaMemGetInfo(&now, &all) == cudaSuccess ? now : 0;
}

/* Made, tuned, run once and checked. A backend that does not serve says so in the note. */
static fp8_status make_rung(rung *r, problem *p, int precision, fp8_attention_backend backend) {
    const size_t before = free_memory();
    fp8_status st = FP8_OK;

    r->p = p;
    r->precision = precision;
    r->backend = backend;
    FP8_TRY(make_block(r, p->d, p->tokens));
    FP8_TRY(make_batch(r, p->d, p->shape.batch));
    st = call_rung(r);
    if (st == FP8_EUNSUPPORTED) {
        rung none = {.p = p, .precision = precision, .backend = backend};
        bench_keep_reason(none.note, fp8_last_message(), backend);
        if (!none.note[0]) /* the reason does not follow the backend's name */
            snprintf(none.note, sizeof none.note, "%.*s", (int)strcspn(fp8_last_message(), "\n"),
                     fp8_last_message());
        free_rung(r, p->d);
        *r = none;
        return FP8_OK;
    }
    FP8_TRY(st);
    r->gb = (double)(before - free_memory()) * 1e-9;
    FP8_TRY(measure_error(r));
    FP8_TRY(fp8_block_tune(r->block, p->tokens));
done:
    return st;
}

static double flops_of(const problem *p) {
    const fp8_bench_block_shape *s = &p->shape;
    const double tokens = (double)p->tokens, hidden = (double)s->hidden;
    const double linears = 2 * tokens * hidden * (4 * hidden + 2 * (double)s->ffn);
    return linears + 2 * tokens * (double)s->seq * hidden; /* 4 s / 2: causal */
}

static fp8_status add_row(fp8_bench_table *t, const rung *r, const bench_contender *c, double mhz) {
    const problem *p = r->p;
    fp8_bench_row *row;
    char subject[72];
    fp8_status st = FP8_OK;

    snprintf(subject, sizeof subject, "forward, b %lld, s %lld, hidden %lld, ffn %lld",
             (long long)p->shape.batch, (long long)p->shape.seq, (long long)p->shape.hidden,
             (long long)p->shape.ffn);
    FP8_TRY(fp8_bench_add_row(t, &row, subject, precisions[r->precision]));
    snprintf(row->provider, sizeof row->provider, "%s, %s", precisions[r->precision],
             fp8_attention_backend_name(r->backend));
    snprintf(row->note, sizeof row->note, "%s", r->note);
    if (!c) goto done;
    row->value[COL_MS] = c->ms;
    row->value[COL_LOW] = c->ms_low;
    row->value[COL_HIGH] = c->ms_high;
    row->value[COL_TOKENS] = (double)p->tokens / c->ms * 1e3;
    row->value[COL_RATE] = flops_of(p) / c->ms * 1e-9;
    row->value[COL_GB] = r->gb;
    row->value[COL_ERROR] = r->error;
    if (mhz > 0) row->value[COL_MHZ] = mhz;
done:
    return st;
}

static int wanted(const fp8_bench_block_shape *s, int precision) {
    return s->dtype == FP8_BENCH_ALL || (s->dtype == FP8_BENCH_FP8) == (precision >= FP8);
}

static fp8_status race(fp8_bench_table *t, problem *p, rung rungs[NUM_RUNGS],
                       const fp8_bench_options *options) {
    bench_contender all[NUM_RUNGS] = {{0}};
    int32_t count = 0;
    double mhz = 0;
    fp8_status st = FP8_OK;

    for (int i = 0; i < NUM_RUNGS; i++) {
        const int precision = i / NUM_BACKENDS;
        if (!wanted(&p->shape, precision)) continue;
        if (options->note) options->note(precisions[precision]);
        FP8_TRY(make_rung(&rungs[i], p, precision, backends[i % NUM_BACKENDS]));
        if (rungs[i].block) all[count++] = (bench_contender){.call = call_rung, .ctx = &rungs[i]};
    }
    FP8_TRY(bench_race(p->d, all, count, options, &mhz));
    count = 0;
    for (int i = 0; i < NUM_RUNGS; i++)
        if (rungs[i].p)
            FP8_TRY(add_row(t, &rungs[i], rungs[i].block ? &all[count++] : NULL, mhz));
done:
    return st;
}

static fp8_status check_shape(const fp8_bench_block_shape *s) {
    const int64_t d = s->heads > 0 ? s->hidden / s->heads : 0;
    if (s->hidden >= 16 && s->ffn >= 16 && s->hidden % 16 == 0 && s->ffn % 16 == 0 && d > 0 &&
        d * s->heads == s->hidden && s->seq > 0 && s->batch > 0 &&
        s->seq * s->batch <= INT32_MAX / 4)
        return FP8_OK;
    return FP8_FAIL(FP8_EINVAL, "bench block: hidden %lld, ffn %lld, %lld heads, seq %lld, batch "
                    "%lld: sizes in sixteens, whole heads", (long long)s->hidden,
                    (long long)s->ffn, (long long)s->heads, (long long)s->seq,
                    (long long)s->batch);
}

fp8_status fp8_bench_block(fp8_bench_table *out, fp8_device *d, const fp8_bench_options *options) {
    problem p = {.shape = options->block, .d = d};
    rung rungs[NUM_RUNGS] = {{0}};
    fp8_status st = FP8_OK;

    FP8_TRY(check_shape(&p.shape));
    if (options->num_shapes > 0)
        return FP8_FAIL(FP8_EINVAL, "bench block: its shape is --hidden, --ffn-hidden, --heads, "
                        "--seq and --batch, not --shape");
    if (fp8_device_place(d) != FP8_PLACE_CUDA)
        return FP8_FAIL(FP8_EUNSUPPORTED, "bench block: the device is the CPU");
    p.tokens = p.shape.seq * p.shape.batch;
    FP8_TRY(fp8_device_create(&p.cpu, "cpu", 0));
    FP8_TRY(make_problem(&p));
    FP8_TRY(make_reference(&p));
    out->columns = columns;
    out->num_columns = NUM_COLS;
    out->drawn = COL_MS;
    snprintf(out->title, sizeof out->title,
             "Decoder block (LayerNorm, GELU, biases, causal), forward, %s: median of %lld graph "
             "replays in turns; relative L2 of the output against F32",
             fp8_device_name(d), (long long)options->rounds);
    FP8_TRY(race(out, &p, rungs, options));
done:
    for (int i = 0; i < NUM_RUNGS; i++) free_rung(&rungs[i], d);
    for (int i = 0; i < NUM_WEIGHTS; i++) free(p.w[i]);
    free(p.bias);
    free(p.x);
    free(p.want);
    fp8_device_destroy(p.cpu);
    return st;
}
