/* `bench decode`: attention of one new token a sequence over a paged cache that no L2 holds; with
 * the append of those tokens before it, and in one call. */
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attention/decode.h"
#include "bench/bench_impl.h"
#include "core/cuda_check.h"
#include "core/half.h"
#include "quant/quant.h"

enum { SAMPLES = 12, NUM_PROVIDERS = 5, MOST_COPIES = 64, DEFAULT_PAGE = 128 };
static const int64_t block_elements = INT64_C(1) << 24; /* random, which pages repeat */
static const int64_t rotated_bytes = INT64_C(1) << 30;  /* of caches in turns: L2 holds 60 MB */
static const double most_error = 1e-2; /* BF16 rounding of O is 1.7e-3, P's adds to it */

typedef struct shape {
    char name[72];
    int64_t b, h, h_kv, d, kv, page;
} shape;

static const char *const default_shapes[] = {
    "64,16,16,256,1024", "64,16,16,256,4096", "64,16,16,256,8192", "64,32,8,128,1024",
    "64,32,8,128,4096",  "64,32,8,128,8192",  "1,32,4,128,4096",   "1,32,4,128,16384",
    "1,32,4,128,65536",  "1,32,4,128,262144",
};
enum { NUM_DEFAULT = sizeof default_shapes / sizeof *default_shapes };

static const char *const provider_names[NUM_PROVIDERS] = {
    "FP8 pages", "BF16 pages", "reading FP8 alone", "FP8, append before", "FP8, append in one"};
enum { FP8_PAGES, BF16_PAGES, READING, APPEND_BEFORE, APPEND_IN_ONE };

enum { COL_US, COL_LOW, COL_HIGH, COL_RATE, COL_SHARE, COL_ERROR, COL_MHZ, NUM_COLS };
static const fp8_bench_column columns[NUM_COLS] = {
    {"us", 4}, {"us_0.2", 4}, {"us_0.8", 4}, {"TB/s", 4}, {"of_reading", 3}, {"rel_L2", 3},
    {"SM_MHz", 4},
};

/* New tokens as the projections leave them, q, k and v side by side, and where q goes. */
typedef struct news {
    void *x, *q;
    float *turn; /* cos and sin of one position, which all have */
    fp8_kv_append op;
} news;

/* One type of pages. `copies` caches lie one after the other; copy c of sequence s, page j is page
 * order[(c * b + s) * pages + j] of the pool. */
typedef struct run {
    fp8_device *d;
    const shape *x;
    int provider, copies, next, sms;
    int64_t pages; /* a sequence */
    size_t cache_bytes;
    void *host; /* the block: codes or BF16 */
    void *pool, *q, *o, *workspace;
    uint16_t *host_q, *host_o;
    int32_t *order, *tables, *lengths, *starts;
    float *descales; /* device: K, V */
    size_t workspace_bytes;
    fp8_decode_plan *plan;
    fp8_decode_io io;
    const news *news; /* of APPEND_BEFORE and APPEND_IN_ONE: FP8_PAGES' but for their own plan */
    double error;
} run;

static const float descales[2] = {0.02f, 0.02f};

static int is_codes(const run *r) { return r->provider != BF16_PAGES; }
static int64_t element_bytes(const run *r) { return is_codes(r) ? 1 : 2; }
static int64_t page_elements(const shape *x) { return x->h_kv * x->page * x->d; }

static double element(const run *r, int64_t at) {
    at %= block_elements;
    if (is_codes(r))
        return (double)fp8_to_f32(FP8_DTYPE_E4M3, ((const uint8_t *)r->host)[at]) *
               (double)descales[0];
    return (double)fp8_bf16_to_f32(((const uint16_t *)r->host)[at]);
}

/* ---- a call ---------------------------------------------------------------------------------- */

/* The next cache in turn. */
static fp8_status call_run(void *ctx) {
    run *r = ctx;
    const int copy = r->next++ % r->copies;
    if (r->provider == READING)
        return bench_read((uint8_t *)r->pool + (size_t)copy * r->cache_bytes, r->cache_bytes,
                          r->sms, fp8_device_stream(r->d));
    r->io.batch.page_table = r->tables + copy * r->x->b * r->pages;
    if (r->provider == APPEND_IN_ONE)
        return fp8_decode_append_run(r->plan, &r->io, &r->news->op, r->workspace,
                                     r->workspace_bytes);
    if (r->provider == APPEND_BEFORE) {
        const fp8_status st = fp8_kv_append_run(r->d, &r->io.pages, &r->io.batch, &r->news->op,
                                                FP8_LAUNCH_OVERLAP);
        if (st != FP8_OK) return st;
    }
    return fp8_decode_run(r->plan, &r->io, r->workspace, r->workspace_bytes);
}

/* ---- the data -------------------------------------------------------------------------------- */

static void close_run(run *r) {
    free(r->host);
    free(r->host_q);
    free(r->host_o);
    free(r->order);
    fp8_decode_plan_destroy(r->plan);
    if (!r->d) return;
    fp8_device_free(r->d, r->pool);
    fp8_device_free(r->d, r->q);
    fp8_device_free(r->d, r->o);
    fp8_device_free(r->d, r->workspace);
    fp8_device_free(r->d, r->tables);
    fp8_device_free(r->d, r->lengths);
    fp8_device_free(r->d, r->starts);
    fp8_device_free(r->d, r->descales);
}

/* A block of normals, as BF16 or as codes, and a pool that repeats it. */
static fp8_status make_pool(run *r) {
    const size_t pool_bytes = (size_t)r->copies * r->cache_bytes;
    const size_t block = (size_t)(block_elements * element_bytes(r));
    const float multiplier = 1.0f / descales[0];
    uint16_t *host = NULL;
    void *values = NULL, *scale = NULL, *codes = NULL;
    const void *from;
    float amax;
    fp8_status st;

    FP8_TRY(bench_upload_normal(r->d, &host, &values, block_elements, 5, 1, &amax));
    r->host = malloc(block);
    if (!r->host) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "bench decode: %zu bytes", block));
    FP8_TRY(fp8_device_alloc(r->d, &scale, sizeof multiplier));
    FP8_TRY(fp8_device_upload(r->d, scale, &multiplier, sizeof multiplier));
    FP8_TRY(fp8_device_alloc(r->d, &codes, block));
    if (is_codes(r))
        FP8_TRY(fp8_quantize(r->d, codes, FP8_DTYPE_E4M3, values, FP8_DTYPE_BF16, block_elements,
                             scale));
    from = is_codes(r) ? codes : values;
    FP8_TRY(fp8_device_download(r->d, r->host, from, block));
    FP8_TRY(fp8_device_alloc(r->d, &r->pool, pool_bytes));
    for (size_t at = 0; at < pool_bytes; at += block)
        FP8_TRY(fp8_device_copy(r->d, (uint8_t *)r->pool + at, from,
                                pool_bytes - at < block ? pool_bytes - at : block));
    FP8_TRY(fp8_device_sync(r->d));
done:
    free(host);
    fp8_device_free(r->d, values);
    fp8_device_free(r->d, scale);
    fp8_device_free(r->d, codes);
    return st;
}

/* Pages in an order drawn at random; all sequences of x->kv keys, one query each. */
static fp8_status make_batch(run *r) {
    const int64_t b = r->x->b, n = r->copies * b * r->pages;
    int32_t *few = malloc((size_t)(b + 1) * sizeof *few);
    uint64_t state = 1;
    fp8_status st;

    r->order = malloc((size_t)n * sizeof *r->order);
    if (!few || !r->order) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "bench decode: %lld pages", (long long)n));
    for (int64_t i = 0; i < n; i++) {
        int64_t k;
        state = state * 6364136223846793005u + 1442695040888963407u;
        k = (int64_t)((state >> 33) % (uint64_t)(i + 1));
        r->order[i] = r->order[k];
        r->order[k] = (int32_t)i;
    }
    FP8_TRY(fp8_device_alloc(r->d, (void **)&r->tables, (size_t)n * sizeof(int32_t)));
    FP8_TRY(fp8_device_upload(r->d, r->tables, r->order, (size_t)n * sizeof(int32_t)));
    for (int64_t s = 0; s <= b; s++) few[s] = (int32_t)s;
    FP8_TRY(fp8_device_alloc(r->d, (void **)&r->starts, (size_t)(b + 1) * sizeof(int32_t)));
    FP8_TRY(fp8_device_upload(r->d, r->starts, few, (size_t)(b + 1) * sizeof(int32_t)));
    for (int64_t s = 0; s < b; s++) few[s] = (int32_t)r->x->kv;
    FP8_TRY(fp8_device_alloc(r->d, (void **)&r->lengths, (size_t)b * sizeof(int32_t)));
    FP8_TRY(fp8_device_upload(r->d, r->lengths, few, (size_t)b * sizeof(int32_t)));
done:
    free(few);
    return st;
}

static fp8_status make_plan(run *r) {
    const shape *x = r->x;
    fp8_decode_options o = FP8_DECODE_OPTIONS;

    o.num_heads = (int32_t)x->h;
    o.num_kv_heads = (int32_t)x->h_kv;
    o.d_qk = o.d_v = (int32_t)x->d;
    o.page_size = (int32_t)x->page;
    o.num_seqs = x->b;
    o.max_q = 1;
    o.max_kv = x->kv;
    o.kv_dtype = is_codes(r) ? FP8_DTYPE_E4M3 : FP8_DTYPE_BF16;
    o.quantize_p = is_codes(r);
    o.early = r->news != NULL; /* as in an engine: calls write the last token of each cache alone */
    o.backend = FP8_DECODE_PAGES;
    return fp8_decode_plan_create(&r->plan, r->d, &o);
}

static void bind_io(run *r) {
    const shape *x = r->x;
    const int64_t pages = r->copies * x->b * r->pages;
    r->io = (fp8_decode_io){
        .pages = {.dtype = is_codes(r) ? FP8_DTYPE_E4M3 : FP8_DTYPE_BF16,
                  .num_kv_heads = (int32_t)x->h_kv,
                  .d_qk = (int32_t)x->d,
                  .d_v = (int32_t)x->d,
                  .page_size = (int32_t)x->page,
                  .num_pages = pages,
                  .k = r->pool,
                  .v = (uint8_t *)r->pool + pages * page_elements(x) * element_bytes(r),
                  .k_descale = r->descales,
                  .v_descale = r->descales + 1},
        .batch = {.num_seqs = x->b, .max_pages = r->pages, .kv_lengths = r->lengths,
                  .q_starts = r->starts, .max_q = 1, .max_kv = x->kv, .total_q = x->b,
                  .page_table = r->tables},
        .o = r->o,
        .q = r->q};
}

static fp8_status open_run(run *r, fp8_device *d, const shape *x, int provider) {
    const int64_t rows = x->b * x->h * x->d;
    float amax;
    fp8_status st;

    r->d = d;
    r->x = x;
    r->provider = provider;
    r->pages = (x->kv + x->page - 1) / x->page;
    r->cache_bytes = (size_t)(2 * x->b * r->pages * page_elements(x) * element_bytes(r));
    r->copies = (int)(1 + rotated_bytes / (int64_t)r->cache_bytes);
    if (r->copies > MOST_COPIES) r->copies = MOST_COPIES;
    FP8_TRY(make_plan(r));
    FP8_TRY(make_pool(r));
    FP8_TRY(make_batch(r));
    FP8_TRY(bench_upload_normal(d, &r->host_q, &r->q, rows, 7, 1, &amax));
    r->host_o = malloc((size_t)rows * sizeof *r->host_o);
    if (!r->host_o) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "bench decode: %lld outputs", (long long)rows));
    FP8_TRY(fp8_device_alloc(d, &r->o, (size_t)rows * sizeof *r->host_o));
    FP8_TRY(fp8_device_alloc(d, (void **)&r->descales, sizeof descales));
    FP8_TRY(fp8_device_upload(d, r->descales, descales, sizeof descales));
    r->workspace_bytes = fp8_decode_workspace_size(r->plan);
    FP8_TRY(fp8_device_alloc(d, &r->workspace, r->workspace_bytes));
    bind_io(r);
done:
    return st;
}

/* ---- the check ------------------------------------------------------------------------------- */

/* o[d] of one row over the first cache, in F64; p: of x->kv. */
static void expected(double *o, double *p, const run *r, int64_t s, int64_t h) {
    const shape *x = r->x;
    const int64_t head = h / (x->h / x->h_kv), v = r->copies * x->b * r->pages * page_elements(x);
    double most = -INFINITY, sum = 0;

    for (int64_t j = 0; j < x->kv; j++) {
        const int64_t page = r->order[s * r->pages + j / x->page];
        const int64_t at = page * page_elements(x) + (head * x->page + j % x->page) * x->d;
        double dot = 0;
        for (int64_t i = 0; i < x->d; i++)
            dot += (double)fp8_bf16_to_f32(r->host_q[(s * x->h + h) * x->d + i]) *
                   element(r, at + i);
        p[j] = dot / sqrt((double)x->d);
        most = fmax(most, p[j]);
    }
    for (int64_t i = 0; i < x->d; i++) o[i] = 0;
    for (int64_t j = 0; j < x->kv; j++) {
        const int64_t page = r->order[s * r->pages + j / x->page];
        const int64_t at = v + page * page_elements(x) + head * x->d * x->page + j % x->page;
        const double w = exp(p[j] - most);
        sum += w;
        for (int64_t i = 0; i < x->d; i++) o[i] += w * element(r, at + i * x->page);
    }
    for (int64_t i = 0; i < x->d; i++) o[i] /= sum;
}

static fp8_status check_run(run *r) {
    const shape *x = r->x;
    const size_t bytes = (size_t)(x->b * x->h * x->d) * sizeof *r->host_o;
    double *p = malloc((size_t)(x->kv + x->d) * sizeof *p), error = 0, reference = 0;
    fp8_status st = FP8_OK;

    if (!p) return FP8_FAIL(FP8_ENOMEM, "bench decode: %lld keys", (long long)x->kv);
    FP8_TRY(fp8_device_fill(r->d, r->o, 0xff, bytes));
    r->next = 0;
    FP8_TRY(call_run(r));
    FP8_TRY(fp8_device_download(r->d, r->host_o, r->o, bytes));
    for (int64_t i = 0; i < SAMPLES; i++) {
        const int64_t row = i * (x->b * x->h - 1) / (SAMPLES - 1);
        expected(p + x->kv, p, r, row / x->h, row % x->h);
        for (int64_t k = 0; k < x->d; k++) {
            const double e = (double)fp8_bf16_to_f32(r->host_o[row * x->d + k]) - p[x->kv + k];
            error += e * e;
            reference += p[x->kv + k] * p[x->kv + k];
        }
    }
    r->error = sqrt(error / reference);
    if (!(r->error <= most_error))
        st = FP8_FAIL(FP8_EDATA, "bench decode: %s: %s is wrong: relative L2 %.3g, expected at "
                                 "most %.2g",
                      x->name, provider_names[r->provider], r->error, most_error);
done:
    free(p);
    return st;
}

/* ---- with an append -------------------------------------------------------------------------- */

static void close_news(fp8_device *d, news *n) {
    fp8_device_free(d, n->x);
    fp8_device_free(d, n->q);
    fp8_device_free(d, n->turn);
}

static fp8_status open_news(news *n, fp8_device *d, const shape *x) {
    const int64_t width = (x->h + 2 * x->h_kv) * x->d, half = x->d / 2;
    float turn[2 * 1024], amax;
    uint16_t *host = NULL;
    fp8_status st = FP8_OK;

    if (x->d > 1024) return FP8_FAIL(FP8_EINVAL, "bench decode: %s: d above 1024", x->name);
    for (int64_t i = 0; i < half; i++) {
        turn[i] = 0.6f;
        turn[half + i] = 0.8f;
    }
    FP8_TRY(bench_upload_normal(d, &host, &n->x, x->b * width, 11, 1, &amax));
    FP8_TRY(fp8_device_alloc(d, &n->q, (size_t)(x->b * x->h * x->d) * sizeof(uint16_t)));
    FP8_TRY(fp8_device_alloc(d, (void **)&n->turn, (size_t)x->d * sizeof *n->turn));
    FP8_TRY(fp8_device_upload(d, n->turn, turn, (size_t)x->d * sizeof *turn));
    n->op = (fp8_kv_append){.q = {.x = n->x, .token_stride = width, .head_stride = x->d},
                            .num_heads = (int32_t)x->h,
                            .dtype = FP8_DTYPE_BF16,
                            .rotary_dim = (int32_t)x->d,
                            .cos = n->turn,
                            .sin = n->turn + half,
                            .num_positions = 1,
                            .q_out = n->q,
                            .q_dtype = FP8_DTYPE_BF16};
    n->op.k = n->op.v = n->op.q;
    n->op.k.x = (uint16_t *)n->x + x->h * x->d;
    n->op.v.x = (uint16_t *)n->x + (x->h + x->h_kv) * x->d;
done:
    free(host);
    return st;
}

/* Both ways leave the same bytes of O. */
static fp8_status check_news(run *before, run *in_one) {
    const shape *x = before->x;
    const size_t bytes = (size_t)(x->b * x->h * x->d) * sizeof(uint16_t);
    void *o[2] = {malloc(bytes), malloc(bytes)};
    run *const both[2] = {before, in_one};
    fp8_status st = FP8_OK;

    if (!o[0] || !o[1]) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "bench decode: %zu bytes", bytes));
    for (int i = 0; i < 2; i++) {
        both[i]->next = 0;
        FP8_TRY(fp8_device_fill(before->d, before->o, 0xff, bytes));
        FP8_TRY(call_run(both[i]));
        FP8_TRY(fp8_device_download(before->d, o[i], before->o, bytes));
    }
    if (memcmp(o[0], o[1], bytes) != 0)
        st = FP8_FAIL(FP8_EDATA, "bench decode: %s: an append in one call leaves other bytes of O",
                      x->name);
done:
    free(o[0]);
    free(o[1]);
    return st;
}

/* ---- the table ------------------------------------------------------------------------------- */

static fp8_status add_row(fp8_bench_table *t, const run *r, const bench_contender *c,
                          double reading_rate, double mhz) {
    const double rate = (double)r->cache_bytes / c->ms * 1e-9;
    fp8_bench_row *row;
    fp8_status st;
    FP8_TRY(fp8_bench_add_row(t, &row, r->x->name, provider_names[r->provider]));
    row->value[COL_US] = c->ms * 1e3;
    row->value[COL_LOW] = c->ms_low * 1e3;
    row->value[COL_HIGH] = c->ms_high * 1e3;
    row->value[COL_RATE] = rate;
    row->value[COL_SHARE] = rate / reading_rate;
    if (r->provider < READING) row->value[COL_ERROR] = r->error;
    if (mhz > 0) row->value[COL_MHZ] = mhz;
done:
    return st;
}

static fp8_status bench_one(fp8_bench_table *t, fp8_device *d, const shape *x,
                            const fp8_bench_options *options) {
    run runs[NUM_PROVIDERS] = {0};
    bench_contender contenders[NUM_PROVIDERS];
    news n = {0};
    double mhz = 0, append_mhz = 0;
    fp8_status st = FP8_OK;

    if (options->note) options->note(x->name);
    for (int i = 0; i < READING; i++) {
        FP8_TRY(open_run(&runs[i], d, x, i));
        FP8_TRY(check_run(&runs[i]));
    }
    runs[READING] = (run){.d = d, .x = x, .provider = READING, .pool = runs[FP8_PAGES].pool,
                          .copies = runs[FP8_PAGES].copies,
                          .cache_bytes = runs[FP8_PAGES].cache_bytes};
    FP8_TRY_CUDA(cudaDeviceGetAttribute(&runs[READING].sms, cudaDevAttrMultiProcessorCount,
                                        fp8_device_index(d)));
    FP8_TRY(open_news(&n, d, x));
    for (int i = APPEND_BEFORE; i < NUM_PROVIDERS; i++) {
        runs[i] = runs[FP8_PAGES];
        runs[i].provider = i;
        runs[i].news = &n;
        runs[i].io.q = n.q;
        runs[i].plan = NULL;
        FP8_TRY(make_plan(&runs[i]));
    }
    FP8_TRY(check_news(&runs[APPEND_BEFORE], &runs[APPEND_IN_ONE]));
    for (int i = 0; i < NUM_PROVIDERS; i++)
        contenders[i] = (bench_contender){.call = call_run, .ctx = &runs[i]};
    /* apart: what an append leaves in the L2 cache to be written would slow down who comes next */
    FP8_TRY(bench_race(d, contenders, APPEND_BEFORE, options, &mhz));
    FP8_TRY(bench_race(d, contenders + APPEND_BEFORE, NUM_PROVIDERS - APPEND_BEFORE, options,
                       &append_mhz));
    if (mhz == 0) mhz = append_mhz;
    for (int i = 0; i < NUM_PROVIDERS; i++)
        FP8_TRY(add_row(t, &runs[i], &contenders[i],
                        (double)runs[READING].cache_bytes / contenders[READING].ms * 1e-9, mhz));
done:
    for (int i = 0; i < READING; i++) close_run(&runs[i]);
    for (int i = APPEND_BEFORE; i < NUM_PROVIDERS; i++) fp8_decode_plan_destroy(runs[i].plan);
    close_news(d, &n);
    return st;
}

/* "64,32,8,128,4096" or with a page size. */
static fp8_status parse(shape *x, const char *text) {
    int64_t all[6] = {0, 0, 0, 0, 0, DEFAULT_PAGE};
    const char *at = text;
    int count = 0;

    while (count < 6) {
        char *end;
        all[count++] = strtoll(at, &end, 10);
        if (end == at || all[count - 1] < 1 || all[count - 1] > INT32_MAX) break;
        at = end;
        if (*at == '\0' && count >= 5) {
            *x = (shape){.b = all[0], .h = all[1], .h_kv = all[2], .d = all[3], .kv = all[4],
                         .page = all[5]};
            snprintf(x->name, sizeof x->name, "%s", text);
            return FP8_OK;
        }
        if (*at++ != ',') break;
    }
    return FP8_FAIL(FP8_EINVAL, "bench decode: --shape '%s': expected b,h,h_kv,d,kv[,page]", text);
}

fp8_status fp8_bench_decode(fp8_bench_table *out, fp8_device *d,
                            const fp8_bench_options *options) {
    const int given = options->num_shapes > 0;
    const char *const *shapes = given ? options->shapes : default_shapes;
    const int32_t count = given ? options->num_shapes : NUM_DEFAULT;
    shape x;
    fp8_status st = FP8_OK;

    for (int32_t i = 0; i < count; i++) FP8_TRY(parse(&x, shapes[i]));
    if (fp8_device_place(d) != FP8_PLACE_CUDA)
        FP8_TRY(FP8_FAIL(FP8_EUNSUPPORTED, "bench decode: the device is the CPU"));
    out->columns = columns;
    out->num_columns = NUM_COLS;
    out->drawn = COL_RATE;
    snprintf(out->title, sizeof out->title,
             "Attention of one new token a sequence over pages, BF16 queries, %s: caches in turns, "
             "median of %lld graph replays in turns; errors of sampled rows against F64",
             fp8_device_name(d), (long long)options->rounds);
    for (int32_t i = 0; i < count; i++) {
        FP8_TRY(parse(&x, shapes[i]));
        FP8_TRY(bench_one(out, d, &x, options));
    }
done:
    return st;
}
