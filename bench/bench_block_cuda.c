/* `bench block`: a decoder block of GPT-2's form: dense with every step a pass of its own, dense
 * and FP8 with all that the products can take in, FP8 attention besides; over whole sequences with
 * every attention backend, or, with a context, over pages that hold it, beside reading as many
 * bytes alone. One sequence of the output is compared with the block in F32. */
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench_block.h"
#include "core/cuda_check.h"
#include "core/half.h"

enum { NUM_BACKENDS = 3, NUM_RUNGS = BLOCK_PRECISIONS * NUM_BACKENDS };

static const char *const precisions[BLOCK_PRECISIONS] = {
    "plain BF16", "fused BF16", "FP8", "FP8, FP8 attention", "FP8, FP8 attention, fast sums"};
static const fp8_attention_backend backends[NUM_BACKENDS] = {
    FP8_BACKEND_FLASH, FP8_BACKEND_FUSED, FP8_BACKEND_UNFUSED};

static const double margin = 2; /* over the amax of one sequence: the others have more */
/* E4M3 inputs and weights alone cost 6.1e-2 on these data, all sums in double (docs/NOTES.md). */
static const double most_error = 8e-2;

enum { COL_MS, COL_LOW, COL_HIGH, COL_TOKENS, COL_RATE, COL_BYTES, COL_FLOOR, COL_GB, COL_ERROR,
       COL_MHZ, NUM_COLS };
static const fp8_bench_column columns[NUM_COLS] = {
    {"ms/iter", 4}, {"ms_0.2", 4}, {"ms_0.8", 4}, {"tokens/s", 4}, {"TFLOP/s", 4},
    {"TB/s", 3}, {"x floor", 3}, {"peak_GB", 3}, {"rel_L2", 3}, {"SM_MHz", 4},
};

/* ---- the reference --------------------------------------------------------------------------- */

static fp8_status see_amax(void *ctx, int32_t layer, fp8_point point, const fp8_tensor *x) {
    block_problem *p = ctx;
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
static fp8_status make_reference(block_problem *p) {
    block_problem whole = *p; /* the context is tokens like others */
    block_run r = {.p = &whole, .precision = BLOCK_FUSED, .backend = FP8_BACKEND_AUTO};
    const fp8_tap tap = {.on = see_amax, .ctx = p};
    const size_t n = (size_t)(p->shape.seq * p->shape.hidden);
    fp8_status st = FP8_OK;

    whole.shape.seq += p->shape.context;
    whole.shape.context = 0;
    p->want = malloc(n * sizeof *p->want);
    if (!p->want) return FP8_FAIL(FP8_ENOMEM, "bench block: %zu elements", n);
    FP8_TRY(bench_block_make(&r, p->cpu, whole.shape.seq));
    FP8_TRY(bench_block_batch(&r, p->cpu, 1));
    FP8_TRY(fp8_block_forward(r.block, &r.y, &r.x, &r.batch, &tap));
    memcpy(p->want, (float *)r.y.data + p->shape.context * p->shape.hidden, n * sizeof *p->want);
done:
    bench_block_free(&r, p->cpu);
    return st;
}

static fp8_status measure_error(block_run *r) {
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

static size_t free_memory(void) {
    size_t now = 0, all = 0;
    return cudaMemGetInfo(&now, &all) == cudaSuccess ? now : 0;
}

/* Made, tuned, run once and checked. A backend that does not serve says so in the note. */
static fp8_status make_rung(block_run *r, block_problem *p, int precision,
                            fp8_attention_backend backend) {
    const size_t before = free_memory();
    fp8_status st = FP8_OK;

    r->p = p;
    r->precision = precision;
    r->backend = backend;
    FP8_TRY(bench_block_make(r, p->d, p->tokens));
    if (p->shape.context) FP8_TRY(bench_block_context(r));
    else FP8_TRY(bench_block_batch(r, p->d, p->shape.batch));
    st = bench_block_call(r);
    if (st == FP8_EUNSUPPORTED) {
        block_run none = {.p = p, .precision = precision, .backend = backend};
        bench_keep_reason(none.note, fp8_last_message(), backend);
        if (!none.note[0]) /* the reason does not follow the backend's name */
            snprintf(none.note, sizeof none.note, "%.*s", (int)strcspn(fp8_last_message(), "\n"),
                     fp8_last_message());
        bench_block_free(r, p->d);
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

/* Of the Linears and of attention, in which a token sees half of its sequence, and its context. */
static double flops_of(const block_problem *p) {
    const fp8_bench_block_shape *s = &p->shape;
    const double tokens = (double)p->tokens, hidden = (double)s->hidden;
    const double linears = 2 * tokens * hidden * (4 * hidden + 2 * (double)s->ffn);
    return linears + 4 * tokens * ((double)s->seq / 2 + (double)s->context) * hidden;
}

/* What a forward over pages must read: weights, and the keys and values of all sequences. */
static double bytes_of(const block_problem *p, int precision) {
    const fp8_bench_block_shape *s = &p->shape;
    const double hidden = (double)s->hidden;
    const double weights = hidden * (4 * hidden + 2 * (double)s->ffn);
    const double keys = 2 * (double)(s->batch * (s->context + s->seq)) * hidden;
    return weights * (precision >= BLOCK_FP8 ? 1 : 2) +
           keys * (precision >= BLOCK_FP8_ATTENTION ? 1 : 2);
}

/* Device memory that is read alone: as many bytes as the leanest forward over pages must read. */
typedef struct reading {
    fp8_device *d;
    void *data;
    size_t bytes;
    int sms;
} reading;

static fp8_status call_reading(void *ctx) {
    const reading *r = ctx;
    return bench_read(r->data, r->bytes, r->sms, fp8_device_stream(r->d));
}

static fp8_status open_reading(reading *r, const block_problem *p) {
    const int precision = p->shape.dtype == FP8_BENCH_BF16 ? BLOCK_FUSED : BLOCK_FP8_ATTENTION;
    fp8_status st = FP8_OK;

    r->d = p->d;
    r->bytes = (size_t)bytes_of(p, precision) / 16 * 16;
    FP8_TRY_CUDA(cudaDeviceGetAttribute(&r->sms, cudaDevAttrMultiProcessorCount, 0));
    FP8_TRY(fp8_device_alloc(p->d, &r->data, r->bytes));
    FP8_TRY(fp8_device_fill(p->d, r->data, 1, r->bytes));
done:
    return st;
}

/* ---- the table ------------------------------------------------------------------------------- */

static fp8_status new_row(fp8_bench_table *t, fp8_bench_row **row, const block_problem *p,
                          const char *provider) {
    const fp8_bench_block_shape *s = &p->shape;
    char subject[72], behind[32] = "";

    if (s->context) snprintf(behind, sizeof behind, " after %lld", (long long)s->context);
    snprintf(subject, sizeof subject, "forward, b %lld, s %lld%s, hidden %lld, ffn %lld",
             (long long)s->batch, (long long)s->seq, behind, (long long)s->hidden,
             (long long)s->ffn);
    return fp8_bench_add_row(t, row, subject, provider);
}

static void add_times(fp8_bench_row *row, const bench_contender *c, double mhz) {
    row->value[COL_MS] = c->ms;
    row->value[COL_LOW] = c->ms_low;
    row->value[COL_HIGH] = c->ms_high;
    if (mhz > 0) row->value[COL_MHZ] = mhz;
}

/* c NULL: refused, r's note says why. floor: bytes a millisecond that reading alone has; 0: the
 * bytes are not what bounds it. */
static fp8_status add_row(fp8_bench_table *t, const block_run *r, const bench_contender *c,
                          double mhz, double floor) {
    const block_problem *p = r->p;
    const double bytes = bytes_of(p, r->precision);
    fp8_bench_row *row;
    fp8_status st = FP8_OK;

    FP8_TRY(new_row(t, &row, p, precisions[r->precision]));
    snprintf(row->provider, sizeof row->provider, "%s, %s", precisions[r->precision],
             p->shape.context ? "pages" : fp8_attention_backend_name(r->backend));
    snprintf(row->note, sizeof row->note, "%s", r->note);
    if (!c) goto done;
    add_times(row, c, mhz);
    row->value[COL_TOKENS] = (double)p->tokens / c->ms * 1e3;
    row->value[COL_RATE] = flops_of(p) / c->ms * 1e-9;
    if (floor > 0) row->value[COL_BYTES] = bytes / c->ms * 1e-9;
    if (floor > 0) row->value[COL_FLOOR] = c->ms * floor / bytes;
    row->value[COL_GB] = r->gb;
    row->value[COL_ERROR] = r->error;
done:
    return st;
}

static fp8_status add_reading(fp8_bench_table *t, const reading *r, const block_problem *p,
                              const bench_contender *c, double mhz) {
    fp8_bench_row *row;
    fp8_status st = FP8_OK;

    FP8_TRY(new_row(t, &row, p, "reading alone"));
    add_times(row, c, mhz);
    row->value[COL_BYTES] = (double)r->bytes / c->ms * 1e-9;
done:
    return st;
}

/* A context leaves attention no choice of backends; few tokens' sums are never fast, and what they
 * gain does not hang on the backend. */
static int wanted(const fp8_bench_block_shape *s, int precision, int backend) {
    if (backend > 0 && (s->context || precision == BLOCK_FP8_FAST)) return 0;
    if (s->context && precision == BLOCK_FP8_FAST) return 0;
    return s->dtype == FP8_BENCH_ALL || (s->dtype == FP8_BENCH_FP8) == (precision >= BLOCK_FP8);
}

static fp8_status race(fp8_bench_table *t, block_problem *p, block_run rungs[NUM_RUNGS],
                       reading *read, const fp8_bench_options *options) {
    bench_contender all[NUM_RUNGS + 1] = {{0}};
    int32_t count = 0;
    double mhz = 0, floor = 0;
    fp8_status st = FP8_OK;

    if (p->shape.context) FP8_TRY(open_reading(read, p));
    for (int i = 0; i < NUM_RUNGS; i++) {
        const int precision = i / NUM_BACKENDS, backend = i % NUM_BACKENDS;
        if (!wanted(&p->shape, precision, backend)) continue;
        if (options->note) options->note(precisions[precision]);
        FP8_TRY(make_rung(&rungs[i], p, precision, backends[backend]));
        if (rungs[i].block)
            all[count++] = (bench_contender){.call = bench_block_call, .ctx = &rungs[i]};
    }
    if (read->data) all[count++] = (bench_contender){.call = call_reading, .ctx = read};
    FP8_TRY(bench_race(p->d, all, count, options, &mhz));
    if (read->data) floor = (double)read->bytes / all[count - 1].ms;
    if (read->data) FP8_TRY(add_reading(t, read, p, &all[count - 1], mhz));
    count = 0;
    for (int i = 0; i < NUM_RUNGS; i++)
        if (rungs[i].p)
            FP8_TRY(add_row(t, &rungs[i], rungs[i].block ? &all[count++] : NULL, mhz, floor));
done:
    return st;
}

static fp8_status check_shape(const fp8_bench_block_shape *s) {
    const int64_t d = s->heads > 0 ? s->hidden / s->heads : 0;
    if (s->hidden >= 16 && s->ffn >= 16 && s->hidden % 16 == 0 && s->ffn % 16 == 0 && d > 0 &&
        d * s->heads == s->hidden && s->seq > 0 && s->batch > 0 &&
        s->seq * s->batch <= INT32_MAX / 4 && s->context >= 0 && s->context % s->seq == 0)
        return FP8_OK;
    return FP8_FAIL(FP8_EINVAL, "bench block: hidden %lld, ffn %lld, %lld heads, seq %lld, batch "
                    "%lld, context %lld: sizes in sixteens, whole heads, a context in seqs",
                    (long long)s->hidden, (long long)s->ffn, (long long)s->heads,
                    (long long)s->seq, (long long)s->batch, (long long)s->context);
}

fp8_status fp8_bench_block(fp8_bench_table *out, fp8_device *d, const fp8_bench_options *options) {
    block_problem p = {.shape = options->block, .d = d};
    block_run rungs[NUM_RUNGS] = {{0}};
    reading read = {0};
    fp8_status st = FP8_OK;

    FP8_TRY(check_shape(&p.shape));
    if (options->num_shapes > 0)
        return FP8_FAIL(FP8_EINVAL, "bench block: its shape is --hidden, --ffn-hidden, --heads, "
                        "--seq, --batch and --context, not --shape");
    if (fp8_device_place(d) != FP8_PLACE_CUDA)
        return FP8_FAIL(FP8_EUNSUPPORTED, "bench block: the device is the CPU");
    p.tokens = p.shape.seq * p.shape.batch;
    FP8_TRY(fp8_device_create(&p.cpu, "cpu", 0));
    FP8_TRY(bench_block_operands(&p));
    FP8_TRY(make_reference(&p));
    out->columns = columns;
    out->num_columns = NUM_COLS;
    out->drawn = COL_MS;
    snprintf(out->title, sizeof out->title,
             "Decoder block (LayerNorm, GELU, biases, causal), forward, %s: median of %lld graph "
             "replays in turns; relative L2 of the output against F32",
             fp8_device_name(d), (long long)options->rounds);
    FP8_TRY(race(out, &p, rungs, &read, options));
done:
    for (int i = 0; i < NUM_RUNGS; i++) bench_block_free(&rungs[i], d);
    fp8_device_free(d, read.data);
    for (int i = 0; i < BLOCK_WEIGHTS; i++) free(p.w[i]);
    free(p.bias);
    free(p.x);
    free(p.want);
    fp8_device_destroy(p.cpu);
    return st;
}
