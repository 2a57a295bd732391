/* `bench flux`: the protocol of the published tables of attention in the Flux image model. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench_impl.h"
#include "core/half.h"
#include "quant/quant.h"

enum { HEADS = 24, HEAD_DIM = 128, MOST = 4, NUM_DEFAULT = 6, TENSORS = 3 };
static const char *const default_lengths[NUM_DEFAULT] = {"4224", "4352", "4416",
                                                         "4480", "4544", "4608"};

/* How BF16 becomes FP8: by scales of the data, of a tensor or of each head, or by known ones.
 * CASTS: by fp8_quantize with scales known beforehand, and back. */
typedef enum route {
    ROUTE_PLAIN,
    ROUTE_CURRENT,
    ROUTE_HEADS,
    ROUTE_GIVEN,
    ROUTE_CASTS
} route;

typedef struct provider {
    const char *name;
    fp8_attention_backend backend;
    route route;
    fp8_attention_precision precision;
    double most_error;
} provider;

/* The data has whole numbers 1 to 4 in it, so that rows are steep: E4M3 of Q and K moves scores by
 * whole units, and an error of a fifth is FP8's own. */
static const provider providers[] = {
    {"flash exact, current scales", FP8_BACKEND_FLASH, ROUTE_CURRENT, FP8_ATTENTION_EXACT, 0.5},
    {"flash fast, current scales", FP8_BACKEND_FLASH, ROUTE_CURRENT, FP8_ATTENTION_FAST, 0.5},
    {"flash exact, scales of heads", FP8_BACKEND_FLASH, ROUTE_HEADS, FP8_ATTENTION_EXACT, 0.5},
    {"flash fast, scales of heads", FP8_BACKEND_FLASH, ROUTE_HEADS, FP8_ATTENTION_FAST, 0.5},
    {"flash exact, known scales", FP8_BACKEND_FLASH, ROUTE_GIVEN, FP8_ATTENTION_EXACT, 0.5},
    {"flash fast, known scales", FP8_BACKEND_FLASH, ROUTE_GIVEN, FP8_ATTENTION_FAST, 0.5},
    {"flash exact, separate casts", FP8_BACKEND_FLASH, ROUTE_CASTS, FP8_ATTENTION_EXACT, 0.5},
    {"cuDNN FP8, separate casts", FP8_BACKEND_FUSED, ROUTE_CASTS, FP8_ATTENTION_FAST, 0.5},
    {"cuDNN BF16", FP8_BACKEND_FUSED, ROUTE_PLAIN, FP8_ATTENTION_EXACT, 2e-2},
    {"flash BF16", FP8_BACKEND_FLASH, ROUTE_PLAIN, FP8_ATTENTION_EXACT, 2e-2},
    {"unfused BF16", FP8_BACKEND_UNFUSED, ROUTE_PLAIN, FP8_ATTENTION_EXACT, 2e-2},
};
enum { NUM_PROVIDERS = sizeof providers / sizeof *providers, REFERENCE = 8 };

enum {
    COL_ABSMAX = BENCH_COLUMNS,
    COL_MAE,
    COL_MSE,
    COL_ERROR,
    COL_WORKSPACE,
    COL_MHZ,
    NUM_COLS
};
static const fp8_bench_column columns[NUM_COLS] = {
    {"ms", 4},     {"ms_0.2", 4}, {"ms_0.8", 4}, {"TFLOP/s", 4},      {"of_cuDNN_BF16", 3},
    {"absmax", 3}, {"mae", 3},    {"mse", 3},    {"rel_L2", 3}, {"workspace_MB", 3},
    {"SM_MHz", 4},
};

typedef struct problem {
    fp8_device *d;
    bench_shape shape;
    int64_t n; /* elements of each tensor */
    uint16_t *host[TENSORS], *host_o;
    float *want;
    void *x[TENSORS], *codes[TENSORS]; /* device */
    void *o, *o_codes;
    float *want_device;
    float *descales, *scales; /* device: Q, K, V, O each */
    float amax[TENSORS];
} problem;

static void free_problem(problem *p) {
    for (int i = 0; i < TENSORS; i++) {
        free(p->host[i]);
        fp8_device_free(p->d, p->x[i]);
        fp8_device_free(p->d, p->codes[i]);
    }
    free(p->host_o);
    free(p->want);
    fp8_device_free(p->d, p->o);
    fp8_device_free(p->d, p->o_codes);
    fp8_device_free(p->d, p->want_device);
    fp8_device_free(p->d, p->descales);
    fp8_device_free(p->d, p->scales);
}

static fp8_status make_reference(problem *p) {
    fp8_status st;
    FP8_TRY(bench_reference(p->want_device, p->x[0], p->x[1], p->x[2], &p->shape,
                            fp8_device_stream(p->d)));
    FP8_TRY(fp8_device_download(p->d, p->want, p->want_device, (size_t)p->n * sizeof(float)));
done:
    return st;
}

static float largest(const float *x, int64_t n) {
    float amax = 0;
    for (int64_t i = 0; i < n; i++)
        if (fabsf(x[i]) > amax) amax = fabsf(x[i]);
    return amax;
}

static fp8_status make_problem(problem *p) {
    float descale[4], scale[4];
    fp8_status st = FP8_OK;

    p->n = p->shape.s_q * HEADS * HEAD_DIM;
    p->host_o = malloc((size_t)p->n * sizeof *p->host_o);
    p->want = malloc((size_t)p->n * sizeof *p->want);
    if (!p->host_o || !p->want) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "bench flux: %s", p->shape.name));
    for (int i = 0; i < TENSORS; i++) {
        FP8_TRY(bench_upload_normal(p->d, &p->host[i], &p->x[i], p->n, 21 + (uint64_t)i, MOST,
                                    &p->amax[i]));
        FP8_TRY(fp8_device_alloc(p->d, &p->codes[i], (size_t)p->n));
    }
    FP8_TRY(fp8_device_alloc(p->d, &p->o, (size_t)p->n * 2));
    FP8_TRY(fp8_device_alloc(p->d, &p->o_codes, (size_t)p->n));
    FP8_TRY(fp8_device_alloc(p->d, (void **)&p->want_device, (size_t)p->n * sizeof(float)));
    FP8_TRY(fp8_device_alloc(p->d, (void **)&p->descales, sizeof descale));
    FP8_TRY(fp8_device_alloc(p->d, (void **)&p->scales, sizeof scale));
    FP8_TRY(make_reference(p));
    for (int i = 0; i < 4; i++) {
        const float amax = i < TENSORS ? p->amax[i] : 1.1f * largest(p->want, p->n);
        descale[i] = amax / FP8_E4M3_MAX;
        scale[i] = FP8_E4M3_MAX / amax;
    }
    FP8_TRY(fp8_device_upload(p->d, p->descales, descale, sizeof descale));
    FP8_TRY(fp8_device_upload(p->d, p->scales, scale, sizeof scale));
done:
    return st;
}

/* ---- one provider ---------------------------------------------------------------------------- */

typedef struct run {
    const provider *who;
    problem *p;
    fp8_attention_plan *plan;
    fp8_attention_io io;
    void *workspace;
    size_t workspace_bytes;
    double absmax, mae, mse, relative_l2;
    int wrong; /* a peer whose result is beyond its bound */
} run;

static fp8_status cast_in(const problem *p) {
    fp8_status st = FP8_OK;
    for (int i = 0; i < TENSORS; i++)
        FP8_TRY(fp8_quantize(p->d, p->codes[i], FP8_DTYPE_E4M3, p->x[i], FP8_DTYPE_BF16, p->n,
                             p->scales + i));
done:
    return st;
}

static fp8_status call_run(void *ctx) {
    const run *r = ctx;
    const problem *p = r->p;
    const int casts = r->who->route == ROUTE_CASTS;
    fp8_status st = FP8_OK;
    if (casts) FP8_TRY(cast_in(p));
    FP8_TRY(fp8_attention_run(r->plan, &r->io, r->workspace, r->workspace_bytes));
    if (casts && r->io.o == p->o_codes)
        FP8_TRY(fp8_dequantize(p->d, p->o, FP8_DTYPE_BF16, p->o_codes, FP8_DTYPE_E4M3, p->n,
                               p->descales + TENSORS));
done:
    return st;
}

static fp8_attention_options options_of(const provider *who, const bench_shape *x) {
    fp8_attention_options o = FP8_ATTENTION_OPTIONS;
    const int casts = who->route == ROUTE_CASTS;
    o.num_heads = o.num_kv_heads = HEADS;
    o.d_qk = o.d_v = HEAD_DIM;
    o.num_seqs = 1;
    o.max_q = o.max_kv = x->s_q;
    o.layout = FP8_LAYOUT_BSHD_BSHD_BSHD;
    o.q_dtype = o.kv_dtype = casts ? FP8_DTYPE_E4M3 : FP8_DTYPE_BF16;
    o.o_dtype = casts && who->backend == FP8_BACKEND_FUSED ? FP8_DTYPE_E4M3 : FP8_DTYPE_BF16;
    o.quantize = who->route == ROUTE_CURRENT || who->route == ROUTE_HEADS ? FP8_QUANTIZE_CURRENT
                 : who->route == ROUTE_GIVEN                              ? FP8_QUANTIZE_GIVEN
                                                                          : FP8_QUANTIZE_NOT;
    if (who->route == ROUTE_HEADS) o.granularity = FP8_DESCALE_HEAD;
    o.quantize_p = who->route != ROUTE_PLAIN;
    o.precision = who->precision;
    o.backend = who->backend;
    return o;
}

/* Against FP32 on the operands in BF16, all elements. */
static fp8_status check_run(run *r) {
    problem *p = r->p;
    double squares = 0, absolute = 0, reference = 0;
    fp8_status st;

    FP8_TRY(fp8_device_fill(p->d, p->o, 0xff, (size_t)p->n * 2)); /* NaN */
    FP8_TRY(call_run(r));
    FP8_TRY(fp8_device_download(p->d, p->host_o, p->o, (size_t)p->n * 2));
    r->absmax = 0;
    for (int64_t i = 0; i < p->n; i++) {
        const double want = (double)p->want[i];
        const double e = fabs((double)fp8_bf16_to_f32(p->host_o[i]) - want);
        squares += e * e;
        absolute += e;
        reference += want * want;
        if (!(e <= r->absmax)) r->absmax = e;
    }
    r->mae = absolute / (double)p->n;
    r->mse = squares / (double)p->n;
    r->relative_l2 = sqrt(squares / reference);
    r->wrong = !(r->relative_l2 <= r->who->most_error);
    if (r->wrong && r->who->backend != FP8_BACKEND_FUSED)
        st = FP8_FAIL(FP8_EDATA, "bench flux: length %s: %s is wrong: relative L2 %.3g against "
                                 "FP32, expected at most %.2g",
                      p->shape.name, r->who->name, r->relative_l2, r->who->most_error);
done:
    return st;
}

static fp8_status open_run(run *r, const provider *who, problem *p) {
    const fp8_attention_options o = options_of(who, &p->shape);
    const int fp8 = o.q_dtype == FP8_DTYPE_E4M3;
    fp8_status st;

    r->who = who;
    r->p = p;
    r->io = (fp8_attention_io){.o = o.o_dtype == FP8_DTYPE_E4M3 ? p->o_codes : p->o,
                               .q = fp8 ? p->codes[0] : p->x[0],
                               .k = fp8 ? p->codes[1] : p->x[1],
                               .v = fp8 ? p->codes[2] : p->x[2],
                               .q_descale = p->descales,
                               .k_descale = p->descales + 1,
                               .v_descale = p->descales + 2,
                               .o_scale = p->scales + TENSORS};
    FP8_TRY(fp8_attention_plan_create(&r->plan, p->d, &o));
    r->workspace_bytes = fp8_attention_workspace_size(r->plan);
    FP8_TRY(fp8_device_alloc(p->d, &r->workspace, r->workspace_bytes));
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

    FP8_TRY(bench_field_row(t, &row, &f->in, i, providers[i].name, REFERENCE, &r->p->shape));
    if (!row) goto done;
    row->value[COL_ABSMAX] = r->absmax;
    row->value[COL_MAE] = r->mae;
    row->value[COL_MSE] = r->mse;
    row->value[COL_ERROR] = r->relative_l2;
    row->value[COL_WORKSPACE] = (double)r->workspace_bytes * 1e-6;
    if (mhz > 0) row->value[COL_MHZ] = mhz;
done:
    return st;
}

static fp8_status open_field(field *f, problem *p, const fp8_bench_options *options) {
    fp8_status st = FP8_OK;
    for (int i = 0; i < NUM_PROVIDERS; i++) {
        run *r = &f->runs[i];
        bench_entry e;
        char line[160];
        snprintf(line, sizeof line, "length %s: %s", p->shape.name, providers[i].name);
        if (options->note) options->note(line);
        st = open_run(r, &providers[i], p);
        e = (bench_entry){providers[i].backend, r->wrong, r->relative_l2, call_run, r};
        FP8_TRY(bench_field_enter(&f->in, i, st, &e));
    }
done:
    return st;
}

static fp8_status bench_one(fp8_bench_table *t, fp8_device *d, const bench_shape *x,
                            const bench_rates *r, const fp8_bench_options *options) {
    problem p = {.d = d, .shape = *x};
    field *f = calloc(1, sizeof *f);
    double mhz = 0;
    fp8_status st;

    if (!f) return FP8_FAIL(FP8_ENOMEM, "bench flux");
    FP8_TRY(make_problem(&p));
    FP8_TRY(open_field(f, &p, options));
    FP8_TRY(bench_race(d, f->in.contenders, f->in.count, options, &mhz));
    for (int i = 0; i < NUM_PROVIDERS; i++) FP8_TRY(add_result(t, f, i, mhz));
    FP8_TRY(bench_add_limit(t, x, r, mhz, bench_field_ms(&f->in, REFERENCE)));
done:
    for (int i = 0; i < NUM_PROVIDERS; i++) close_run(&f->runs[i]);
    free(f);
    free_problem(&p);
    return st;
}

static fp8_status parse_length(bench_shape *out, const char *text) {
    char full[64];
    fp8_status st;
    if (strlen(text) > 8 || !*text || text[strspn(text, "0123456789")])
        return FP8_FAIL(FP8_EINVAL, "--shape '%s': expected a length, such as 4608", text);
    snprintf(full, sizeof full, "1,%d,%d,%d,%s,none", HEADS, HEADS, HEAD_DIM, text);
    FP8_TRY(bench_parse_shape(out, full));
    snprintf(out->name, sizeof out->name, "%s", text);
done:
    return st;
}

fp8_status fp8_bench_flux(fp8_bench_table *out, fp8_device *d, const fp8_bench_options *options) {
    const int given = options->num_shapes > 0;
    const int32_t count = given ? options->num_shapes : NUM_DEFAULT;
    bench_shape *shapes = calloc((size_t)count, sizeof *shapes);
    bench_rates r = {0};
    fp8_status st = FP8_OK;

    if (!shapes) return FP8_FAIL(FP8_ENOMEM, "bench flux: %d shapes", count);
    for (int32_t i = 0; i < count; i++)
        FP8_TRY(parse_length(&shapes[i], given ? options->shapes[i] : default_lengths[i]));
    if (fp8_device_place(d) != FP8_PLACE_CUDA)
        FP8_TRY(FP8_FAIL(FP8_EUNSUPPORTED, "bench flux: the device is the CPU"));
    FP8_TRY(bench_measure_rates(&r, d, options));
    out->columns = columns;
    out->num_columns = NUM_COLS;
    out->drawn = BENCH_MS;
    snprintf(out->title, sizeof out->title,
             "Flux attention (b 1, h %d, d %d), %s: BF16 in and out, quantizing inside the time; "
             "median of %lld graph replays in turns; errors against FP32",
             HEADS, HEAD_DIM, fp8_device_name(d), (long long)options->rounds);
    for (int32_t i = 0; i < count; i++) FP8_TRY(bench_one(out, d, &shapes[i], &r, options));
done:
    free(shapes);
    return st;
}
