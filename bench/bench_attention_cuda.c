/* `bench attention`: prefill by every backend on the same data. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench_impl.h"
#include "quant/quant.h"

enum { SAMPLED_ROWS = 64, SLOW_ROUNDS = 7 };

/* The published twelve. */
static const char *const default_shapes[] = {
    "1,24,24,128,4224,none",     "1,24,24,128,4608,none",     "2,16,16,64,512,none",
    "2,16,16,128,2048,causal",   "4,16,16,128,4096,none",     "1,16,16,128,16384,none",
    "1,16,16,128,16384,causal",  "2,32,4,128,8192,causal",    "1,8,8,256,16384,none",
    "4,32,32,64,4096,none",      "32,32,32,128,256,causal",   "64,16,16,256,128,causal",
};
enum { NUM_DEFAULT_SHAPES = sizeof default_shapes / sizeof *default_shapes };

typedef struct provider {
    const char *name;
    fp8_attention_backend backend;
    fp8_dtype in, out;
    fp8_attention_precision precision;
    double most_error; /* relative L2 beyond which the result is wrong */
} provider;

/* Rounding P to E4M3 costs 2.4 to 2.7e-2, O another 2.6e-2. */
static const provider providers[] = {
    {"flash exact", FP8_BACKEND_FLASH, FP8_DTYPE_E4M3, FP8_DTYPE_BF16, FP8_ATTENTION_EXACT, 4e-2},
    {"flash fast", FP8_BACKEND_FLASH, FP8_DTYPE_E4M3, FP8_DTYPE_BF16, FP8_ATTENTION_FAST, 6e-2},
    {"cuDNN FP8", FP8_BACKEND_FUSED, FP8_DTYPE_E4M3, FP8_DTYPE_E4M3, FP8_ATTENTION_FAST, 8e-2},
    {"flash BF16", FP8_BACKEND_FLASH, FP8_DTYPE_BF16, FP8_DTYPE_BF16, FP8_ATTENTION_EXACT, 1e-2},
    {"cuDNN BF16", FP8_BACKEND_FUSED, FP8_DTYPE_BF16, FP8_DTYPE_BF16, FP8_ATTENTION_EXACT, 1e-2},
    {"unfused", FP8_BACKEND_UNFUSED, FP8_DTYPE_E4M3, FP8_DTYPE_BF16, FP8_ATTENTION_EXACT, 4e-2},
};
enum { NUM_PROVIDERS = sizeof providers / sizeof *providers, REFERENCE = 2 }; /* cuDNN FP8 */

enum {
    COL_ERROR = BENCH_COLUMNS,
    COL_WORKSPACE,
    COL_HOST,
    COL_MHZ,
    NUM_COLS
};
static const fp8_bench_column columns[NUM_COLS] = {
    {"ms", 4},       {"ms_0.2", 4},       {"ms_0.8", 4},  {"TFLOP/s", 4}, {"of_cuDNN_FP8", 3},
    {"rel_L2", 3},   {"workspace_MB", 3}, {"host_us", 3}, {"SM_MHz", 4},
};

/* ---- operands -------------------------------------------------------------------------------- */

typedef struct tensor {
    int64_t n;
    uint16_t *host;  /* BF16 */
    uint8_t *codes;  /* host, E4M3 */
    void *bf16, *fp8; /* device */
    float descale;
} tensor;

typedef struct problem {
    fp8_device *d;
    const bench_shape *shape;
    tensor q, k, v;
    uint16_t *bias;
    void *bias_device;
    float *scales; /* device: descales of Q, K, V, scale of O, amax of P, amax of O */
    int32_t *q_starts, *kv_starts; /* device, [b + 1] */
    void *o;
    void *host_o;
    int64_t num_o;
    float o_descale;
} problem;

static void free_tensor(fp8_device *d, tensor *t) {
    free(t->host);
    free(t->codes);
    fp8_device_free(d, t->bf16);
    fp8_device_free(d, t->fp8);
}

static void free_problem(problem *p) {
    free_tensor(p->d, &p->q);
    free_tensor(p->d, &p->k);
    free_tensor(p->d, &p->v);
    free(p->bias);
    free(p->host_o);
    fp8_device_free(p->d, p->bias_device);
    fp8_device_free(p->d, p->scales);
    fp8_device_free(p->d, p->q_starts);
    fp8_device_free(p->d, p->kv_starts);
    fp8_device_free(p->d, p->o);
}

/* BF16 and, by its own amax, codes; slot: where its scale passes through p->scales. */
static fp8_status make_tensor(problem *p, tensor *t, int64_t n, int slot) {
    float amax = 0, scale;
    fp8_status st;

    t->n = n;
    FP8_TRY(bench_upload_normal(p->d, &t->host, &t->bf16, n, 1 + (uint64_t)slot, 1, &amax));
    t->descale = amax / FP8_E4M3_MAX;
    scale = FP8_E4M3_MAX / amax;
    t->codes = malloc((size_t)n);
    if (!t->codes) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "bench: %lld codes", (long long)n));
    FP8_TRY(fp8_device_alloc(p->d, &t->fp8, (size_t)n));
    FP8_TRY(fp8_device_upload(p->d, p->scales + slot, &scale, sizeof scale));
    FP8_TRY(fp8_quantize(p->d, t->fp8, FP8_DTYPE_E4M3, t->bf16, FP8_DTYPE_BF16, n,
                         p->scales + slot));
    FP8_TRY(fp8_device_download(p->d, t->codes, t->fp8, (size_t)n));
    FP8_TRY(fp8_device_upload(p->d, p->scales + slot, &t->descale, sizeof t->descale));
done:
    return st;
}

/* Sequence s begins at s * length. */
static fp8_status make_starts(fp8_device *d, int32_t **out, int64_t b, int64_t length) {
    const size_t bytes = (size_t)(b + 1) * sizeof **out;
    int32_t *host = malloc(bytes);
    fp8_status st;
    if (!host) return FP8_FAIL(FP8_ENOMEM, "bench: %lld starts", (long long)b);
    for (int64_t s = 0; s <= b; s++) host[s] = (int32_t)(s * length);
    FP8_TRY(fp8_device_alloc(d, (void **)out, bytes));
    FP8_TRY(fp8_device_upload(d, *out, host, bytes));
done:
    free(host);
    return st;
}

static fp8_status make_problem(problem *p) {
    const bench_shape *x = p->shape;
    const float ones[3] = {1.0f, 0.0f, 0.0f};
    float amax;
    fp8_status st;

    FP8_TRY(fp8_device_alloc(p->d, (void **)&p->scales, 6 * sizeof *p->scales));
    FP8_TRY(fp8_device_upload(p->d, p->scales + 3, ones, sizeof ones));
    FP8_TRY(make_tensor(p, &p->q, x->b * x->s_q * x->h * x->d_qk, 0));
    FP8_TRY(make_tensor(p, &p->k, x->b * x->s_kv * x->h_kv * x->d_qk, 1));
    FP8_TRY(make_tensor(p, &p->v, x->b * x->s_kv * x->h_kv * x->d_v, 2));
    if (x->bias)
        FP8_TRY(bench_upload_normal(p->d, &p->bias, &p->bias_device, x->h * x->s_q * x->s_kv, 5, 1,
                                    &amax));
    FP8_TRY(make_starts(p->d, &p->q_starts, x->b, x->s_q));
    FP8_TRY(make_starts(p->d, &p->kv_starts, x->b, x->s_kv));
    p->num_o = x->b * x->s_q * x->h * x->d_v;
    p->host_o = malloc((size_t)p->num_o * 2);
    if (!p->host_o) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "bench: output of %lld", (long long)p->num_o));
    FP8_TRY(fp8_device_alloc(p->d, &p->o, (size_t)p->num_o * 2));
done:
    return st;
}

/* ---- one provider on one problem ------------------------------------------------------------- */

typedef struct run {
    const provider *who;
    problem *p;
    fp8_attention_plan *plan;
    fp8_attention_io io;
    void *workspace;
    size_t workspace_bytes;
    int packed; /* the sequences as packed tokens */
    int wrong;  /* a peer whose result is beyond its bound */
    bench_error error;
} run;

static fp8_status call_run(void *ctx) {
    const run *r = ctx;
    return fp8_attention_run(r->plan, &r->io, r->workspace, r->workspace_bytes);
}

/* packed: for a backend that takes packed tokens alone, and of causal masks the bottom-right one,
 * which is the same over as many keys as queries. */
static fp8_attention_options options_of(const provider *who, const bench_shape *x, int packed) {
    fp8_attention_options o = FP8_ATTENTION_OPTIONS;
    o.num_heads = (int32_t)x->h;
    o.num_kv_heads = (int32_t)x->h_kv;
    o.d_qk = (int32_t)x->d_qk;
    o.d_v = (int32_t)x->d_v;
    o.num_seqs = x->b;
    o.max_q = x->s_q;
    o.max_kv = x->s_kv;
    o.layout = packed ? FP8_LAYOUT_THD_THD_THD : FP8_LAYOUT_BSHD_BSHD_BSHD;
    o.mask = x->mask;
    if (packed && x->mask == FP8_MASK_CAUSAL && x->s_q == x->s_kv)
        o.mask = FP8_MASK_CAUSAL_BOTTOM_RIGHT;
    o.bias = x->bias ? FP8_BIAS_POST_SCALE : FP8_BIAS_NONE;
    o.bias_shape = FP8_BIAS_1HSS;
    o.bias_dtype = FP8_DTYPE_BF16;
    o.q_dtype = o.kv_dtype = who->in;
    o.o_dtype = who->out;
    o.quantize_p = who->in == FP8_DTYPE_E4M3 && who->backend != FP8_BACKEND_UNFUSED;
    o.precision = who->precision;
    o.backend = who->backend;
    return o;
}

static fp8_attention_io io_of(const problem *p, fp8_dtype in) {
    const int fp8 = in == FP8_DTYPE_E4M3;
    const fp8_attention_io io = {
        .o = p->o,
        .q = fp8 ? p->q.fp8 : p->q.bf16,
        .k = fp8 ? p->k.fp8 : p->k.bf16,
        .v = fp8 ? p->v.fp8 : p->v.bf16,
        .q_starts = p->q_starts,
        .kv_starts = p->kv_starts,
        .total_q = p->shape->b * p->shape->s_q,
        .total_kv = p->shape->b * p->shape->s_kv,
        .q_descale = p->scales,
        .k_descale = p->scales + 1,
        .v_descale = p->scales + 2,
        .o_scale = p->scales + 3,
        .bias = p->bias_device,
        .amax_s = p->scales + 4,
        .amax_o = p->scales + 5,
    };
    return io;
}

/* The scale of an E4M3 output, from the amax of a run of its own plan that asks for it. */
static fp8_status find_o_scale(run *r) {
    fp8_attention_options o = options_of(r->who, r->p->shape, r->packed);
    fp8_attention_plan *plan = NULL;
    void *workspace = NULL;
    float amax = 0, scale;
    fp8_status st;

    o.want_amax = 1;
    FP8_TRY(fp8_attention_plan_create(&plan, r->p->d, &o));
    FP8_TRY(fp8_device_alloc(r->p->d, &workspace, fp8_attention_workspace_size(plan)));
    FP8_TRY(fp8_attention_run(plan, &r->io, workspace, fp8_attention_workspace_size(plan)));
    FP8_TRY(fp8_device_download(r->p->d, &amax, r->p->scales + 5, sizeof amax));
    scale = amax > 0 ? FP8_E4M3_MAX / amax : 1.0f;
    r->p->o_descale = 1.0f / scale;
    FP8_TRY(fp8_device_upload(r->p->d, r->p->scales + 3, &scale, sizeof scale));
done:
    fp8_device_free(r->p->d, workspace);
    fp8_attention_plan_destroy(plan);
    return st;
}

static fp8_status check_run(run *r) {
    const problem *p = r->p;
    const int fp8 = r->who->in == FP8_DTYPE_E4M3, fp8_out = r->who->out == FP8_DTYPE_E4M3;
    const size_t bytes = (size_t)p->num_o * (fp8_out ? 1 : 2);
    const bench_operands x = {
        .shape = p->shape,
        .q = fp8 ? (void *)p->q.codes : (void *)p->q.host,
        .k = fp8 ? (void *)p->k.codes : (void *)p->k.host,
        .v = fp8 ? (void *)p->v.codes : (void *)p->v.host,
        .dtype = r->who->in,
        .q_descale = fp8 ? p->q.descale : 1.0f,
        .k_descale = fp8 ? p->k.descale : 1.0f,
        .v_descale = fp8 ? p->v.descale : 1.0f,
        .bias = p->bias,
    };
    fp8_status st;

    FP8_TRY(fp8_device_fill(p->d, p->o, 0xff, bytes)); /* NaN */
    FP8_TRY(call_run(r));
    FP8_TRY(fp8_device_download(p->d, p->host_o, p->o, bytes));
    FP8_TRY(bench_check_rows(&r->error, p->host_o, r->who->out, fp8_out ? p->o_descale : 1.0f, &x,
                             SAMPLED_ROWS, fp8_device_pool(p->d)));
    r->wrong = !(r->error.relative_l2 <= r->who->most_error);
    if (r->wrong && r->who->backend != FP8_BACKEND_FUSED)
        st = FP8_FAIL(FP8_EDATA, "bench attention: %s: %s is wrong: relative L2 %.3g of %lld rows "
                                 "against F64, expected at most %.2g",
                      p->shape->name, r->who->name, r->error.relative_l2, (long long)r->error.rows,
                      r->who->most_error);
done:
    return st;
}

/* As [b, s, h, d], or as packed tokens where the backend asks for them. */
static fp8_status make_plan(run *r) {
    fp8_attention_options o = options_of(r->who, r->p->shape, 0);
    fp8_status st = fp8_attention_plan_create(&r->plan, r->p->d, &o);
    if (st != FP8_EUNSUPPORTED || o.backend != FP8_BACKEND_FLASH) return st;
    o = options_of(r->who, r->p->shape, 1);
    st = fp8_attention_plan_create(&r->plan, r->p->d, &o);
    r->packed = st == FP8_OK;
    return st;
}

/* FP8_EUNSUPPORTED when the backend refuses. */
static fp8_status open_run(run *r, const provider *who, problem *p) {
    fp8_status st;

    r->who = who;
    r->p = p;
    r->io = io_of(p, who->in);
    FP8_TRY(make_plan(r));
    r->workspace_bytes = fp8_attention_workspace_size(r->plan);
    FP8_TRY(fp8_device_alloc(p->d, &r->workspace, r->workspace_bytes));
    if (who->out == FP8_DTYPE_E4M3) FP8_TRY(find_o_scale(r));
    FP8_TRY(check_run(r));
done:
    return st;
}

static void close_run(run *r) {
    if (r->p) fp8_device_free(r->p->d, r->workspace);
    fp8_attention_plan_destroy(r->plan);
}

/* ---- the table ------------------------------------------------------------------------------- */

typedef struct field {
    run runs[NUM_PROVIDERS];
    bench_field in;
} field;
_Static_assert((int)NUM_PROVIDERS <= (int)BENCH_FIELD_MAX, "a race has room for fewer");

static fp8_status add_result(fp8_bench_table *t, const field *f, int32_t i, double mhz) {
    const run *r = &f->runs[i];
    fp8_bench_row *row;
    fp8_status st;

    FP8_TRY(bench_field_row(t, &row, &f->in, i, providers[i].name, REFERENCE, r->p->shape));
    if (!row) goto done;
    row->value[COL_ERROR] = r->error.relative_l2;
    row->value[COL_WORKSPACE] = (double)r->workspace_bytes * 1e-6;
    row->value[COL_HOST] = f->in.contenders[f->in.place[i]].host_us;
    if (mhz > 0) row->value[COL_MHZ] = mhz;
    if (r->packed) snprintf(row->note, sizeof row->note, "as packed tokens");
done:
    return st;
}

static fp8_status open_field(field *f, problem *p, const fp8_bench_options *options) {
    fp8_status st = FP8_OK;
    for (int i = 0; i < NUM_PROVIDERS; i++) {
        run *r = &f->runs[i];
        bench_entry e;
        char line[160];
        snprintf(line, sizeof line, "%s: %s", p->shape->name, providers[i].name);
        if (options->note) options->note(line);
        st = open_run(r, &providers[i], p);
        e = (bench_entry){providers[i].backend, r->wrong, r->error.relative_l2, call_run, r};
        FP8_TRY(bench_field_enter(&f->in, i, st, &e));
    }
done:
    return st;
}

/* The last provider, unfused, is several times slower than the others and would cool the device
 * between their turns: it runs after them. */
static fp8_status race_field(bench_field *f, fp8_device *d, const fp8_bench_options *options,
                             double *mhz) {
    const int32_t slow = f->place[NUM_PROVIDERS - 1] >= 0;
    fp8_bench_options fewer = *options;
    double slow_mhz = 0;
    fp8_status st;

    fewer.rounds = options->rounds < SLOW_ROUNDS ? options->rounds : SLOW_ROUNDS;
    FP8_TRY(bench_race(d, f->contenders, f->count - slow, options, mhz));
    if (slow) FP8_TRY(bench_race(d, f->contenders + f->count - 1, 1, &fewer, &slow_mhz));
    if (*mhz == 0) *mhz = slow_mhz;
done:
    return st;
}

static fp8_status bench_one(fp8_bench_table *t, fp8_device *d, const bench_shape *x,
                            const bench_rates *r, const fp8_bench_options *options) {
    problem p = {.d = d, .shape = x, .o_descale = 1.0f};
    field *f = calloc(1, sizeof *f);
    double mhz = 0;
    fp8_status st;

    if (!f) return FP8_FAIL(FP8_ENOMEM, "bench attention");
    FP8_TRY(make_problem(&p));
    FP8_TRY(open_field(f, &p, options));
    FP8_TRY(race_field(&f->in, d, options, &mhz));
    for (int i = 0; i < NUM_PROVIDERS; i++) FP8_TRY(add_result(t, f, i, mhz));
    FP8_TRY(bench_add_limit(t, x, r, mhz, bench_field_ms(&f->in, REFERENCE)));
done:
    for (int i = 0; i < NUM_PROVIDERS; i++) close_run(&f->runs[i]);
    free(f);
    free_problem(&p);
    return st;
}

fp8_status fp8_bench_attention(fp8_bench_table *out, fp8_device *d,
                               const fp8_bench_options *options) {
    const int given = options->num_shapes > 0;
    const int32_t count = given ? options->num_shapes : NUM_DEFAULT_SHAPES;
    bench_shape *shapes = calloc((size_t)count, sizeof *shapes);
    bench_rates r = {0};
    fp8_status st = FP8_OK;

    if (!shapes) return FP8_FAIL(FP8_ENOMEM, "bench attention: %d shapes", count);
    for (int32_t i = 0; i < count; i++)
        FP8_TRY(bench_parse_shape(&shapes[i], given ? options->shapes[i] : default_shapes[i]));
    if (fp8_device_place(d) != FP8_PLACE_CUDA)
        FP8_TRY(FP8_FAIL(FP8_EUNSUPPORTED, "bench attention: the device is the CPU"));
    FP8_TRY(bench_measure_rates(&r, d, options));
    out->columns = columns;
    out->num_columns = NUM_COLS;
    out->drawn = BENCH_TFLOPS;
    snprintf(out->title, sizeof out->title,
             "Attention, %s: median of %lld graph replays in turns, random normal data, 0.2 and "
             "0.8 quantiles; FP8 product %.0f TFLOP/s",
             fp8_device_name(d), (long long)options->rounds, r.fp8_flops * 1e-12);
    for (int32_t i = 0; i < count; i++) FP8_TRY(bench_one(out, d, &shapes[i], &r, options));
done:
    free(shapes);
    return st;
}
