/* The CPU backend: threaded over (sequence, KV head, tile of query rows). The query heads of a KV
 * head stand side by side as rows of one tile, so that they share its widened keys and values.
 * Serves every option; precision says nothing here, all sums are in F32. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "attention/attention_cpu.h"
#include "attention/rows_cpu.h"
#include "attention/scores_cpu.h"

enum { STRIP = 16 }; /* elements of V that are turned at a time */

/* One run, as the workers see it. */
typedef struct cpu_job {
    const fp8_attention_options *options;
    const fp8_attention_io *io;
    const attention_tile_kernels *kernels;
    cpu_operand operands[CPU_OPERANDS];
    const cpu_paged *paged; /* NULL: K and V are operands */
    int64_t group, tiles; /* query heads a KV head; tiles of the longest sequence */
    uint8_t *scratch;
    size_t scratch_bytes; /* a worker's */
} cpu_job;

/* A work item, resolved. Row r of the group is query token r / group, its head r % group. */
typedef struct cpu_item {
    int64_t seq, kv_head, first_row, rows;
    int64_t q_begin, s_q, kv_begin, s_kv;
    int64_t lo, hi; /* keys any of the rows sees */
    float out_scale;
} cpu_item;

/* ---- scratch --------------------------------------------------------------------------------- */

typedef struct worker_scratch {
    attention_tile tile;
    float *amax; /* [2] P, |O| of all the worker did */
} worker_scratch;

static size_t padded(size_t bytes) {
    return (bytes + TILE_ALIGN - 1) / TILE_ALIGN * TILE_ALIGN;
}

/* Hands out `count` 4-byte elements from *at, or only counts when base is NULL. */
static void *take(uint8_t *base, size_t *at, int64_t count) {
    void *p = base ? base + *at : NULL;
    *at += padded((size_t)count * sizeof(float));
    return p;
}

/* Lays a worker's panels over `base`; returns their bytes. base NULL: only the bytes. */
static size_t lay_out(worker_scratch *w, uint8_t *base, int64_t d_qk, int64_t d_v) {
    attention_tile *t = &w->tile;
    size_t at = 0;
    t->q = take(base, &at, d_qk * TILE_ROWS);
    t->k = take(base, &at, d_qk * TILE_KEYS);
    t->v = take(base, &at, d_v * TILE_KEYS);
    t->s = take(base, &at, TILE_KEYS * TILE_ROWS);
    t->o = take(base, &at, d_v * TILE_ROWS);
    t->max = take(base, &at, TILE_ROWS);
    t->sum = take(base, &at, TILE_ROWS);
    t->alpha = take(base, &at, TILE_ROWS);
    t->lo = take(base, &at, TILE_ROWS);
    t->hi = take(base, &at, TILE_ROWS);
    w->amax = take(base, &at, 2);
    return at;
}

/* ---- one tile -------------------------------------------------------------------------------- */

static int64_t token_of(const cpu_job *j, const cpu_item *it, int64_t r) {
    return (it->first_row + r) / j->group;
}
static int64_t head_of(const cpu_job *j, const cpu_item *it, int64_t r) {
    return it->kv_head * j->group + (it->first_row + r) % j->group;
}

/* Q transposed, and an empty softmax. The rows up to TILE_ROWS, and those beyond the sequence, are
 * zero and see nothing. */
static void begin_tile(const cpu_job *j, const cpu_item *it, attention_tile *t) {
    const fp8_attention_options *o = j->options;
    memset(t->q, 0, (size_t)(t->d_qk * TILE_ROWS) * sizeof *t->q);
    memset(t->o, 0, (size_t)(t->d_v * TILE_ROWS) * sizeof *t->o);
    for (int64_t r = 0; r < TILE_ROWS; r++) {
        int64_t lo = 0, hi = 0;
        if (r < it->rows && token_of(j, it, r) < it->s_q)
            attention_visible(o, token_of(j, it, r), it->s_q, it->s_kv, &lo, &hi);
        t->lo[r] = (int32_t)lo;
        t->hi[r] = (int32_t)hi;
        t->max[r] = -INFINITY;
        t->sum[r] = 0.0f;
    }
    for (int64_t r = 0; r < it->rows && token_of(j, it, r) < it->s_q; r++) {
        attention_cpu_load(&j->operands[CPU_Q], o, j->kernels, it->seq,
                           it->q_begin + token_of(j, it, r), head_of(j, it, r), t->k);
        for (int64_t i = 0; i < t->d_qk; i++) t->q[i * TILE_ROWS + r] = t->k[i];
    }
}

/* Likewise for keys of one page. V, transposed there, is turned in strips. */
static void load_page(const cpu_job *j, const cpu_item *it, float *panel, int which, int64_t first,
                      int64_t keys) {
    const fp8_kv_pages *p = j->paged->pages;
    const int64_t size = (int64_t)fp8_dtype_size(p->dtype), token = first % p->page_size;
    const int64_t page = kv_page(j->paged->batch, it->seq, first, p->page_size, p->num_pages);
    const uint8_t *k = (const uint8_t *)p->k + kv_k_offset(p, page, it->kv_head, token) * size;
    const uint8_t *v = (const uint8_t *)p->v + kv_v_offset(p, page, it->kv_head, token) * size;
    float strip[STRIP][TILE_KEYS];

    if (which == CPU_K) {
        j->kernels->widen(panel, k, p->dtype, keys * p->d_qk);
        return;
    }
    for (int64_t i = 0; i < p->d_v; i += STRIP) {
        const int64_t n = p->d_v - i < STRIP ? p->d_v - i : STRIP;
        for (int64_t c = 0; c < n; c++)
            j->kernels->widen(strip[c], v + (i + c) * p->page_size * size, p->dtype, keys);
        for (int64_t t = 0; t < keys; t++)
            for (int64_t c = 0; c < n; c++) panel[t * p->d_v + i + c] = strip[c][t];
    }
}

/* Widens `keys` rows of K or V from key `first` of the sequence on into a packed panel. */
static void load_panel(const cpu_job *j, const cpu_item *it, float *panel, int which, int64_t first,
                       int64_t keys) {
    const cpu_operand *x = &j->operands[which];
    if (j->paged) {
        load_page(j, it, panel, which, first, keys);
        return;
    }
    for (int64_t i = 0; i < keys; i++)
        attention_cpu_load(x, j->options, j->kernels, it->seq, it->kv_begin + first + i,
                           it->kv_head, panel + i * x->d);
}

/* What a row's O is multiplied by, its LSE and its largest P. The sink joins the sum, not the
 * maximum that P was rounded against; a row that saw no key, or none above -Inf, gives 0. */
static float finish_row(const cpu_job *j, const cpu_item *it, const attention_tile *t, int64_t r,
                        float *lse, float *largest) {
    const fp8_attention_options *o = j->options;
    const float max = t->max[r], sum = t->sum[r];
    float sink, top, weight, total;

    *largest = 0.0f;
    if (o->sink == FP8_SINK_NONE) {
        *lse = sum == 0.0f ? -INFINITY : max + logf(sum);
        if (sum == 0.0f) return 0.0f;
        *largest = 1.0f / sum;
        return it->out_scale / sum;
    }
    sink = o->sink == FP8_SINK_LEARNABLE ? j->io->sink[head_of(j, it, r)] : 0.0f;
    top = max > sink ? max : sink;
    if (top == -INFINITY) top = 0.0f;
    weight = sum == 0.0f ? 0.0f : expf(max - top);
    total = sum * weight + expf(sink - top);
    *lse = top + logf(total);
    if (sum == 0.0f) return 0.0f;
    *largest = weight / total;
    return it->out_scale * weight / total;
}

/* Row r of O, 0 whatever V holds where factor is 0; `row` is room for one. */
static void store_row(const cpu_job *j, const cpu_item *it, worker_scratch *w, int64_t r,
                      float factor, float *row) {
    const fp8_attention_options *o = j->options;
    const attention_tile *t = &w->tile;
    const int64_t at = attention_offset(o->o, it->seq, it->q_begin + token_of(j, it, r),
                                        head_of(j, it, r));
    for (int64_t i = 0; i < t->d_v; i++)
        row[i] = factor == 0.0f ? 0.0f : t->o[i * TILE_ROWS + r] * factor;
    if (o->want_amax)
        for (int64_t i = 0; i < t->d_v; i++) w->amax[1] = fmaxf(w->amax[1], fabsf(row[i]));
    attention_cpu_store(j->io->o, o->o_dtype, at, row, t->d_v,
                        o->o_dtype == FP8_DTYPE_E4M3 ? *j->io->o_scale : 1.0f);
}

static void end_tile(const cpu_job *j, const cpu_item *it, worker_scratch *w) {
    const fp8_attention_options *o = j->options;
    for (int64_t r = 0; r < it->rows; r++) {
        const int64_t token = token_of(j, it, r);
        float factor = 0.0f, lse = -INFINITY, largest = 0.0f;
        if (token < it->s_q) factor = finish_row(j, it, &w->tile, r, &lse, &largest);
        w->amax[0] = fmaxf(w->amax[0], largest);
        if (o->want_lse)
            j->io->lse[attention_lse_offset(o, j->io, it->seq, head_of(j, it, r), it->q_begin,
                                            token)] = lse;
        store_row(j, it, w, r, factor, w->tile.v);
    }
}

/* Key tiles start at multiples of TILE_KEYS: a row meets the same tiles in whatever company. With
 * quantize_p the maximum is found first: P is rounded against the final one. */
static void run_tile(const cpu_job *j, const cpu_item *it, worker_scratch *w) {
    const int64_t start = it->lo / TILE_KEYS * TILE_KEYS;
    attention_tile *t = &w->tile;

    begin_tile(j, it, t);
    for (int pass = t->quantize_p ? 0 : 1; pass < 2; pass++) {
        for (int64_t first = start; first < it->hi; first += TILE_KEYS) {
            const int64_t keys = it->hi - first < TILE_KEYS ? it->hi - first : TILE_KEYS;
            load_panel(j, it, t->k, CPU_K, first, keys);
            if (pass == 0) {
                j->kernels->raise_max(t, first, keys);
            } else {
                load_panel(j, it, t->v, CPU_V, first, keys);
                j->kernels->step(t, first, keys);
            }
        }
    }
    end_tile(j, it, w);
}

/* ---- the run --------------------------------------------------------------------------------- */

/* Item `index`, tiles fastest and the last (under a causal mask the longest) first; 0 when the
 * sequence has no such tile. Where tokens are not packed, those beyond its length are tiles too: O
 * is 0 there. */
static int find_item(const cpu_job *j, int64_t index, cpu_item *it) {
    const fp8_attention_options *o = j->options;
    const int64_t seq = index / j->tiles / o->num_kv_heads;
    int64_t lo, hi, total, last;

    it->seq = seq;
    it->s_q = attention_sequence(j->io->q_starts, j->io->q_lengths, seq, j->io->total_q, o->max_q,
                                 &it->q_begin);
    it->s_kv = attention_sequence(j->io->kv_starts, j->io->kv_lengths, seq, j->io->total_kv,
                                  o->max_kv, &it->kv_begin);
    it->kv_head = index / j->tiles % o->num_kv_heads;
    it->first_row = (j->tiles - 1 - index % j->tiles) * TILE_ROWS;
    total = (j->io->q_starts ? it->s_q : o->max_q) * j->group;
    if (it->first_row >= total) return 0;
    it->rows = total - it->first_row < TILE_ROWS ? total - it->first_row : TILE_ROWS;
    it->lo = it->hi = 0;
    last = (it->first_row + it->rows - 1) / j->group;
    if (last >= it->s_q) last = it->s_q - 1;
    if (token_of(j, it, 0) > last) return 1;
    attention_visible(o, token_of(j, it, 0), it->s_q, it->s_kv, &it->lo, &hi);
    attention_visible(o, last, it->s_q, it->s_kv, &lo, &it->hi);
    return 1;
}

static fp8_status run_items(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const cpu_job *j = ctx;
    const fp8_attention_options *o = j->options;
    const cpu_operand *x = j->operands;
    const float *slopes = j->io->alibi_slopes;
    worker_scratch w = {.tile = {.d_qk = o->d_qk, .d_v = o->d_v, .quantize_p = o->quantize_p}};

    (void)lay_out(&w, j->scratch + (size_t)worker * j->scratch_bytes, o->d_qk, o->d_v);
    for (int64_t i = begin; i < end; i++) {
        cpu_scores scores = {.options = o, .bias = j->io->bias, .mask = j->io->mask,
                             .slopes = slopes, .group = j->group};
        cpu_item it;
        if (!find_item(j, i, &it)) continue;
        scores.seq = it.seq;
        scores.kv_head = it.kv_head;
        scores.first_row = it.first_row;
        scores.s_q = it.s_q;
        scores.s_kv = it.s_kv;
        w.tile.rows = it.rows;
        w.tile.adjust = attention_cpu_adjusts(o) ? attention_cpu_adjust : NULL;
        w.tile.adjust_ctx = &scores;
        w.tile.score_scale = o->scale * attention_cpu_descale(&x[CPU_Q], o, it.seq, it.kv_head) *
                             attention_cpu_descale(&x[CPU_K], o, it.seq, it.kv_head);
        it.out_scale = (o->quantize_p ? 1.0f / 256.0f : 1.0f) *
                       attention_cpu_descale(&x[CPU_V], o, it.seq, it.kv_head);
        run_tile(j, &it, &w);
    }
    return FP8_OK;
}

/* The workers' amax, zeroed before the run and joined after it. */
static float *amax_of(const cpu_job *j, int32_t worker) {
    worker_scratch w;
    (void)lay_out(&w, j->scratch + (size_t)worker * j->scratch_bytes, j->options->d_qk,
                  j->options->d_v);
    return w.amax;
}

static void join_amax(const cpu_job *j, int32_t threads) {
    float s = 0.0f, o = 0.0f;
    for (int32_t i = 0; i < threads; i++) {
        s = fmaxf(s, amax_of(j, i)[0]);
        o = fmaxf(o, amax_of(j, i)[1]);
    }
    *j->io->amax_s = s;
    *j->io->amax_o = o;
}

static size_t current_bytes(const fp8_attention_options *o) {
    return padded((size_t)attention_cpu_descales(o) * sizeof(float));
}

size_t attention_cpu_workspace(const fp8_attention_options *o, int32_t threads) {
    worker_scratch shape;
    return TILE_ALIGN + current_bytes(o) +
           (size_t)threads * lay_out(&shape, NULL, o->d_qk, o->d_v);
}

fp8_status attention_cpu_run(const fp8_attention_options *o, const fp8_attention_io *io,
                             const cpu_paged *paged, fp8_pool *pool, void *workspace) {
    const int32_t threads = fp8_pool_threads(pool);
    uint8_t *base = (uint8_t *)workspace + (uintptr_t)-(intptr_t)workspace % TILE_ALIGN;
    worker_scratch shape;
    cpu_job j = {.options = o,
                 .io = io,
                 .kernels = attention_tile_kernels_at(0),
                 .paged = paged,
                 .group = o->num_heads / o->num_kv_heads};
    fp8_status st;

    j.tiles = (o->max_q * j.group + TILE_ROWS - 1) / TILE_ROWS;
    j.scratch = base + current_bytes(o);
    j.scratch_bytes = lay_out(&shape, NULL, o->d_qk, o->d_v);
    for (int32_t i = 0; i < threads; i++) memset(amax_of(&j, i), 0, 2 * sizeof(float));
    FP8_TRY(attention_cpu_operands(j.operands, o, io, (float *)(void *)base, j.kernels, pool));
    FP8_TRY(fp8_parallel_for(pool, o->num_seqs * o->num_kv_heads * j.tiles, 1, run_items, &j));
    if (o->want_amax) join_amax(&j, threads);
done:
    return st;
}

static fp8_status cpu_run(fp8_attention_plan *p, const fp8_attention_io *io, void *workspace) {
    return attention_cpu_run(&p->options, io, NULL, fp8_device_pool(p->device), workspace);
}

static fp8_status cpu_check(const fp8_attention_options *o, const attention_target *t,
                            char about[ATTENTION_REASON_BYTES]) {
    if (t->place != FP8_PLACE_CPU)
        return FP8_FAIL(FP8_EUNSUPPORTED, "the data is on %s", t->name);
    if (o->hadamard)
        return FP8_FAIL(FP8_EUNSUPPORTED, "hadamard: Q and K are not rotated here");
    snprintf(about, ATTENTION_REASON_BYTES, "%s, %s", t->name, attention_tile_kernels_at(0)->name);
    return FP8_OK;
}

static fp8_status cpu_open(fp8_attention_plan *p) {
    p->workspace_bytes = attention_cpu_workspace(&p->options,
                                                 fp8_pool_threads(fp8_device_pool(p->device)));
    return FP8_OK;
}

static void cpu_close(fp8_attention_plan *p) { (void)p; }

const attention_backend attention_backend_cpu = {
    FP8_BACKEND_CPU, "cpu", NULL, cpu_check, cpu_open, cpu_close, cpu_run,
};
