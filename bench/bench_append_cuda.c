/* `bench append`: new tokens into a paged cache of E4M3 codes, one launch: 8192 tokens of four
 * sequences, against a copy in the same race, and one token of each of 64, ordered and
 * overlapping. What came out is compared with the CPU's. */
#include <stdlib.h>
#include <string.h>

#include "bench/bench_impl.h"

enum { SETS = 2, LARGE = 8192, SMALL = 64, LONG = 2048, PAGE = 64, POSITIONS = LONG };
enum { SEQS = LARGE / LONG, TABLE_PAGES = LONG / PAGE, PAGES = SMALL * TABLE_PAGES };

typedef struct append_case {
    const char *name;
    int32_t heads, kv_heads, d;
    int normed;
    fp8_dtype q_dtype;
} append_case;

static const append_case cases[] = {
    {"32/8 d 128", 32, 8, 128, 0, FP8_DTYPE_E4M3},
    {"32/8 d 128, Q in BF16", 32, 8, 128, 0, FP8_DTYPE_BF16},
    {"32/8 d 128, normed", 32, 8, 128, 1, FP8_DTYPE_E4M3},
    {"16/16 d 256", 16, 16, 256, 0, FP8_DTYPE_E4M3},
};
enum { NUM_CASES = sizeof cases / sizeof *cases };

/* In one place; x [LARGE, heads of q, k, v]. */
typedef struct append_set {
    uint16_t *x, *weight;
    uint8_t *k, *v, *q;
    float *tables; /* cos, sin, then the descale */
    int32_t *large_table, *large_lengths, *large_starts, *small_table, *small_lengths,
        *small_starts;
} append_set;

typedef struct append_call {
    fp8_device *d;
    const append_case *c; /* NULL: a copy */
    const append_set *sets;
    int small, count;
    fp8_launch how;
} append_call;

static int64_t row_of(const append_case *c) {
    return (int64_t)(c->heads + 2 * c->kv_heads) * c->d;
}

static size_t pool_bytes(const append_case *c) {
    return (size_t)PAGES * (size_t)c->kv_heads * PAGE * (size_t)c->d;
}

static fp8_status run_append(fp8_device *d, const append_case *c, const append_set *s, int small,
                             fp8_launch how) {
    const float *descale = s->tables + POSITIONS * c->d;
    const fp8_kv_pages pages = {.dtype = FP8_DTYPE_E4M3, .num_kv_heads = c->kv_heads,
                                .d_qk = c->d, .d_v = c->d, .page_size = PAGE,
                                .num_pages = PAGES, .k = s->k, .v = s->v, .k_descale = descale,
                                .v_descale = descale};
    const fp8_kv_batch batch = {.num_seqs = small ? SMALL : SEQS,
                                .page_table = small ? s->small_table : s->large_table,
                                .max_pages = TABLE_PAGES,
                                .kv_lengths = small ? s->small_lengths : s->large_lengths,
                                .q_starts = small ? s->small_starts : s->large_starts,
                                .max_q = small ? 1 : LONG, .max_kv = LONG,
                                .total_q = small ? SMALL : LARGE};
    const int64_t row = row_of(c);
    const fp8_kv_append a = {
        .q = {.x = s->x, .token_stride = row, .head_stride = c->d,
              .norm_weight = c->normed ? s->weight : NULL},
        .k = {.x = s->x + c->heads * c->d, .token_stride = row, .head_stride = c->d,
              .norm_weight = c->normed ? s->weight : NULL},
        .v = {.x = s->x + (c->heads + c->kv_heads) * c->d, .token_stride = row,
              .head_stride = c->d},
        .num_heads = c->heads, .dtype = FP8_DTYPE_BF16, .eps = 1e-6f, .rotary_dim = c->d,
        .cos = s->tables, .sin = s->tables + POSITIONS * c->d / 2, .num_positions = POSITIONS,
        .q_out = s->q, .q_dtype = c->q_dtype, .q_descale = descale};
    return fp8_kv_append_run(d, &pages, &batch, &a, how);
}

static fp8_status call_once(void *ctx) {
    append_call *b = ctx;
    const append_set *s = &b->sets[b->count++ % SETS];
    if (b->c) return run_append(b->d, b->c, s, b->small, b->how);
    return fp8_device_copy(b->d, s->k, s->v, pool_bytes(&cases[0]));
}

/* ---- data ------------------------------------------------------------------------------------ */

static fp8_status make_set(fp8_device *d, append_set *s, const append_case *c) {
    const size_t row = (size_t)row_of(c), tables = (size_t)(POSITIONS * c->d + 1) * sizeof(float);
    const size_t numbers = (size_t)PAGES * 2 + 4096;
    void *to[] = {&s->x, &s->weight, &s->k, &s->v, &s->q, &s->tables, &s->large_table};
    const size_t bytes[] = {LARGE * row * 2, (size_t)c->d * 2, pool_bytes(c), pool_bytes(c),
                            LARGE * row * 2, tables, numbers * sizeof(int32_t)};
    fp8_status st = FP8_OK;

    for (size_t i = 0; i < sizeof to / sizeof *to; i++)
        FP8_TRY(fp8_device_alloc(d, to[i], bytes[i]));
    s->small_table = s->large_table + SEQS * TABLE_PAGES;
    s->large_lengths = s->small_table + SMALL * TABLE_PAGES;
    s->large_starts = s->large_lengths + SEQS;
    s->small_lengths = s->large_starts + SEQS + 1;
    s->small_starts = s->small_lengths + SMALL;
done:
    return st;
}

static void free_set(fp8_device *d, append_set *s) {
    void *all[] = {s->x, s->weight, s->k, s->v, s->q, s->tables, s->large_table};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) fp8_device_free(d, all[i]);
}

/* Pages in an order that steps through all of them. */
static void fill_numbers(const append_set *s) {
    for (int i = 0; i < SEQS * TABLE_PAGES; i++) s->large_table[i] = (i * 37 + 5) % PAGES;
    for (int i = 0; i < PAGES; i++) s->small_table[i] = (i * 29 + 11) % PAGES;
    for (int i = 0; i < SEQS; i++) s->large_lengths[i] = LONG;
    for (int i = 0; i <= SEQS; i++) s->large_starts[i] = i * LONG;
    for (int i = 0; i < SMALL; i++) s->small_lengths[i] = 1 + (i * 997) % LONG;
    for (int i = 0; i <= SMALL; i++) s->small_starts[i] = i;
}

static fp8_status fill_set(const append_set *s, const append_case *c, fp8_pool *pool) {
    float amax;
    fp8_status st = FP8_OK;

    FP8_TRY(bench_normal(s->x, LARGE * row_of(c), 3, 1, &amax, pool));
    FP8_TRY(bench_normal(s->weight, c->d, 4, 1, &amax, pool));
    for (int64_t i = 0; i < POSITIONS * c->d / 2; i++) {
        s->tables[i] = 0.8f;
        s->tables[POSITIONS * c->d / 2 + i] = 0.6f;
    }
    s->tables[POSITIONS * c->d] = 8.0f / 448.0f;
    fill_numbers(s);
    memset(s->k, 0, pool_bytes(c));
    memset(s->v, 0, pool_bytes(c));
done:
    return st;
}

static fp8_status send_set(fp8_device *d, const append_set *to, const append_set *from,
                           const append_case *c) {
    const size_t row = (size_t)row_of(c);
    fp8_status st = FP8_OK;
    FP8_TRY(fp8_device_upload(d, to->x, from->x, LARGE * row * 2));
    FP8_TRY(fp8_device_upload(d, to->weight, from->weight, (size_t)c->d * 2));
    FP8_TRY(fp8_device_upload(d, to->tables, from->tables,
                              (size_t)(POSITIONS * c->d + 1) * sizeof(float)));
    FP8_TRY(fp8_device_upload(d, to->large_table, from->large_table,
                              ((size_t)PAGES * 2 + 4096) * sizeof(int32_t)));
    FP8_TRY(fp8_device_fill(d, to->k, 0, pool_bytes(c)));
    FP8_TRY(fp8_device_fill(d, to->v, 0, pool_bytes(c)));
done:
    return st;
}

/* ---- check ----------------------------------------------------------------------------------- */

/* FP8_EDATA when codes differ from the CPU's by more than a step, or more than one in 500. */
static fp8_status compare(fp8_device *d, const char *what, const uint8_t *gpu, const uint8_t *want,
                          size_t bytes) {
    uint8_t *got = malloc(bytes);
    int64_t other = 0, apart = 0;
    fp8_status st = FP8_OK;

    if (!got) return FP8_FAIL(FP8_ENOMEM, "bench append: %zu bytes", bytes);
    FP8_TRY(fp8_device_download(d, got, gpu, bytes));
    for (size_t i = 0; i < bytes; i++) {
        const int step = (got[i] & 0x7f) - (want[i] & 0x7f);
        other += got[i] != want[i];
        apart += step > 1 || step < -1;
    }
    if (apart || other > (int64_t)bytes / 500)
        st = FP8_FAIL(FP8_EDATA, "bench append: %s: %lld of %zu bytes are not the CPU's, %lld by "
                                 "more than a step", what, (long long)other, bytes,
                      (long long)apart);
done:
    free(got);
    return st;
}

/* Both sizes, one after the other, in the first set and on the CPU. */
static fp8_status check_case(fp8_device *d, fp8_device *cpu, const append_case *c,
                             const append_set *gpu, const append_set *host) {
    fp8_status st = FP8_OK;
    for (int small = 0; small < 2; small++) {
        FP8_TRY(run_append(d, c, gpu, small, FP8_LAUNCH_ORDERED));
        FP8_TRY(run_append(cpu, c, host, small, FP8_LAUNCH_ORDERED));
    }
    FP8_TRY(compare(d, "K", gpu->k, host->k, pool_bytes(c)));
    FP8_TRY(compare(d, "V", gpu->v, host->v, pool_bytes(c)));
    if (c->q_dtype == FP8_DTYPE_E4M3)
        FP8_TRY(compare(d, "Q", gpu->q, host->q, (size_t)LARGE * (size_t)(c->heads * c->d)));
done:
    return st;
}

/* ---- the table ------------------------------------------------------------------------------- */

enum { COL_MB, COL_US, COL_RATE, COL_SHARE, COL_SMALL, COL_OVERLAP, COL_MHZ, NUM_COLS };
static const fp8_bench_column columns[NUM_COLS] = {
    {"MB", 4},       {"us", 4},         {"GB/s", 4}, {"% of copy", 3},
    {"64 tok us", 3}, {"overlapped", 3}, {"MHz", 4},
};

static fp8_status bench_one(fp8_bench_table *t, fp8_device *d, const append_case *c,
                            const append_set *sets, const fp8_bench_options *options) {
    const double in = 2.0 * LARGE * (double)row_of(c);
    const double q = (double)fp8_dtype_size(c->q_dtype) * LARGE * c->heads * c->d;
    const double bytes = in + q + 2.0 * LARGE * c->kv_heads * c->d;
    append_call calls[] = {{d, c, sets, 1, 0, FP8_LAUNCH_ORDERED},
                           {d, c, sets, 1, 0, FP8_LAUNCH_OVERLAP},
                           {d, c, sets, 0, 0, FP8_LAUNCH_ORDERED},
                           {d, NULL, sets, 0, 0, FP8_LAUNCH_ORDERED}};
    enum { NUM_CALLS = sizeof calls / sizeof *calls };
    bench_contender all[NUM_CALLS] = {{0}};
    double mhz = 0, copy;
    fp8_bench_row *row;
    fp8_status st = FP8_OK;

    for (int i = 0; i < NUM_CALLS; i++)
        all[i] = (bench_contender){.call = call_once, .ctx = &calls[i]};
    FP8_TRY(bench_race(d, all, NUM_CALLS, options, &mhz));
    FP8_TRY(fp8_bench_add_row(t, &row, c->name, "fp8rt"));
    copy = 2.0 * (double)pool_bytes(&cases[0]) / all[3].ms;
    row->value[COL_MB] = bytes * 1e-6;
    row->value[COL_US] = all[2].ms * 1e3;
    row->value[COL_RATE] = bytes / all[2].ms * 1e-6;
    row->value[COL_SHARE] = 100 * bytes / all[2].ms / copy;
    row->value[COL_SMALL] = all[0].ms * 1e3;
    row->value[COL_OVERLAP] = all[1].ms * 1e3;
    if (mhz > 0) row->value[COL_MHZ] = mhz;
    snprintf(row->note, sizeof row->note, "copy %.0f GB/s", copy * 1e-6);
done:
    return st;
}

static int wanted(const append_case *c, const fp8_bench_options *options) {
    for (int32_t i = 0; i < options->num_shapes; i++)
        if (strstr(c->name, options->shapes[i])) return 1;
    return options->num_shapes == 0;
}

static fp8_status bench_case(fp8_bench_table *out, fp8_device *d, fp8_device *cpu,
                             const append_case *c, const fp8_bench_options *options) {
    append_set sets[SETS] = {{0}}, host = {0};
    fp8_status st;

    FP8_TRY(make_set(cpu, &host, c));
    FP8_TRY(fill_set(&host, c, fp8_device_pool(cpu)));
    for (int i = 0; i < SETS; i++) {
        FP8_TRY(make_set(d, &sets[i], c));
        FP8_TRY(send_set(d, &sets[i], &host, c));
    }
    FP8_TRY(check_case(d, cpu, c, &sets[0], &host));
    FP8_TRY(bench_one(out, d, c, sets, options));
done:
    for (int i = 0; i < SETS; i++) free_set(d, &sets[i]);
    free_set(cpu, &host);
    return st;
}

fp8_status fp8_bench_append(fp8_bench_table *out, fp8_device *d,
                            const fp8_bench_options *options) {
    fp8_device *cpu = NULL;
    int count = 0;
    fp8_status st;

    for (int i = 0; i < NUM_CASES; i++) count += wanted(&cases[i], options);
    if (count == 0)
        return FP8_FAIL(FP8_EINVAL, "bench append: --shape '%s' is part of no line's name",
                        options->shapes[0]);
    if (fp8_device_place(d) != FP8_PLACE_CUDA)
        return FP8_FAIL(FP8_EUNSUPPORTED, "bench append: the device is the CPU");
    FP8_TRY(fp8_device_create(&cpu, "cpu", 0));
    out->columns = columns;
    out->num_columns = NUM_COLS;
    out->drawn = COL_SHARE;
    snprintf(out->title, sizeof out->title,
             "Append to a paged cache of codes, %s: %d tokens, bytes read and written against a "
             "copy's in the same race; and %d sequences' one token; median of %lld graph replays",
             fp8_device_name(d), LARGE, SMALL, (long long)options->rounds);
    for (int i = 0; i < NUM_CASES; i++) {
        if (!wanted(&cases[i], options)) continue;
        if (options->note) options->note(cases[i].name);
        FP8_TRY(bench_case(out, d, cpu, &cases[i], options));
    }
done:
    fp8_device_destroy(cpu);
    return st;
}
