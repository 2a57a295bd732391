/* The CPU backend: threaded over (sequence, KV head, tile of query rows). The query heads of a KV
 * head stand side by side as rows of one tile, so that they share its widened keys and values. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "attention/attention_impl.h"
#include "attention/tile_cpu.h"
#include "core/half.h"

/* One run, as the workers see it. */
typedef struct cpu_job {
    const fp8_attention_options *options;
    const fp8_attention_io *io;
    const attention_tile_kernels *kernels;
    int64_t group, tiles; /* query heads a KV head; tiles of the longest sequence */
    float score_scale, out_scale;
    uint8_t *scratch;
    size_t scratch_bytes; /* a worker's */
} cpu_job;

/* A work item, resolved. Row r of the group is query token r / group, its head r % group. */
typedef struct cpu_item {
    int64_t seq, kv_head, first_row, rows;
    int64_t q_begin, s_q, kv_begin, s_kv;
    int64_t lo, hi; /* keys any of the rows sees */
} cpu_item;

/* ---- scratch --------------------------------------------------------------------------------- */

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
static size_t lay_out(attention_tile *t, uint8_t *base, int64_t d_qk, int64_t d_v) {
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
    return at;
}

/* ---- one tile -------------------------------------------------------------------------------- */

static const void *element(const void *base, fp8_dtype dtype, int64_t index) {
    return (const uint8_t *)base + index * (int64_t)fp8_dtype_size(dtype);
}

/* Element offset of tile row r in Q or O. */
static int64_t row_offset(const cpu_job *j, const cpu_item *it, int64_t r, fp8_strides x) {
    const int64_t row = it->first_row + r;
    return attention_offset(x, it->seq, it->q_begin + row / j->group,
                            it->kv_head * j->group + row % j->group);
}

/* Q transposed, and an empty softmax. The rows up to TILE_ROWS are zero and see nothing. */
static void begin_tile(const cpu_job *j, const cpu_item *it, attention_tile *t) {
    const fp8_attention_options *o = j->options;
    memset(t->q, 0, (size_t)(t->d_qk * TILE_ROWS) * sizeof *t->q);
    memset(t->o, 0, (size_t)(t->d_v * TILE_ROWS) * sizeof *t->o);
    for (int64_t r = 0; r < TILE_ROWS; r++) {
        int64_t lo = 0, hi = 0;
        if (r < it->rows)
            attention_visible(o, (it->first_row + r) / j->group, it->s_q, it->s_kv, &lo, &hi);
        t->lo[r] = (int32_t)lo;
        t->hi[r] = (int32_t)hi;
        t->max[r] = -INFINITY;
        t->sum[r] = 0.0f;
    }
    for (int64_t r = 0; r < it->rows; r++) {
        const int64_t at = row_offset(j, it, r, o->q);
        j->kernels->widen(t->k, element(j->io->q, o->q_dtype, at), o->q_dtype, t->d_qk);
        for (int64_t i = 0; i < t->d_qk; i++) t->q[i * TILE_ROWS + r] = t->k[i];
    }
}

/* Widens `keys` rows of K or V from key `first` of the sequence on into a packed panel. */
static void load_panel(const cpu_job *j, const cpu_item *it, float *panel, const void *x,
                       fp8_strides strides, int64_t d, int64_t first, int64_t keys) {
    const fp8_dtype dtype = j->options->kv_dtype;
    for (int64_t i = 0; i < keys; i++) {
        const int64_t token = it->kv_begin + first + i;
        const int64_t at = attention_offset(strides, it->seq, token, it->kv_head);
        j->kernels->widen(panel + i * d, element(x, dtype, at), dtype, d);
    }
}

/* o[r] = O_r * out_scale / sum_r, rounded once; 0 for a row that saw no key. */
static void end_tile(const cpu_job *j, const cpu_item *it, attention_tile *t) {
    const fp8_attention_io *io = j->io;
    const fp8_dtype dtype = j->options->o_dtype;
    const int64_t size = (int64_t)fp8_dtype_size(dtype);
    for (int64_t r = 0; r < it->rows; r++) {
        const float factor = j->out_scale / t->sum[r];
        const int64_t at = row_offset(j, it, r, j->options->o);
        if (t->hi[r] <= t->lo[r]) { /* whatever V holds */
            memset((uint8_t *)io->o + at * size, 0, (size_t)(t->d_v * size));
            continue;
        }
        if (dtype == FP8_DTYPE_F32) {
            float *out = (float *)io->o + at;
            for (int64_t i = 0; i < t->d_v; i++) out[i] = t->o[i * TILE_ROWS + r] * factor;
        } else {
            uint16_t *out = (uint16_t *)io->o + at;
            for (int64_t i = 0; i < t->d_v; i++)
                out[i] = fp8_f32_to_bf16(t->o[i * TILE_ROWS + r] * factor);
        }
    }
}

/* Key tiles start at multiples of TILE_KEYS: a row meets the same tiles in whatever company. With
 * quantize_p the maximum is found first: P is rounded against the final one. */
static void run_tile(const cpu_job *j, const cpu_item *it, attention_tile *t) {
    const fp8_attention_io *io = j->io;
    const int64_t start = it->lo / TILE_KEYS * TILE_KEYS;

    begin_tile(j, it, t);
    for (int pass = t->quantize_p ? 0 : 1; pass < 2; pass++) {
        for (int64_t first = start; first < it->hi; first += TILE_KEYS) {
            const int64_t keys = it->hi - first < TILE_KEYS ? it->hi - first : TILE_KEYS;
            load_panel(j, it, t->k, io->k, j->options->k, t->d_qk, first, keys);
            if (pass == 0) {
                j->kernels->raise_max(t, first, keys);
            } else {
                load_panel(j, it, t->v, io->v, j->options->v, t->d_v, first, keys);
                j->kernels->step(t, first, keys);
            }
        }
    }
    end_tile(j, it, t);
}

/* ---- the run --------------------------------------------------------------------------------- */

/* Item `index`, tiles fastest and the last (under a causal mask the longest) first; 0 when the
 * sequence has no such tile. */
static int find_item(const cpu_job *j, int64_t index, cpu_item *it) {
    const fp8_attention_options *o = j->options;
    const int64_t seq = index / j->tiles / o->num_kv_heads;
    int64_t lo, hi, total;

    it->seq = seq;
    it->s_q = attention_sequence(j->io->q_starts, j->io->q_lengths, seq, j->io->total_q, o->max_q,
                                 &it->q_begin);
    it->s_kv = attention_sequence(j->io->kv_starts, j->io->kv_lengths, seq, j->io->total_kv,
                                  o->max_kv, &it->kv_begin);
    it->kv_head = index / j->tiles % o->num_kv_heads;
    it->first_row = (j->tiles - 1 - index % j->tiles) * TILE_ROWS;
    total = it->s_q * j->group;
    if (it->first_row >= total) return 0;
    it->rows = total - it->first_row < TILE_ROWS ? total - it->first_row : TILE_ROWS;
    attention_visible(o, it->first_row / j->group, it->s_q, it->s_kv, &it->lo, &hi);
    attention_visible(o, (it->first_row + it->rows - 1) / j->group, it->s_q, it->s_kv, &lo,
                      &it->hi);
    return 1;
}

static fp8_status run_items(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const cpu_job *j = ctx;
    const fp8_attention_options *o = j->options;
    attention_tile t = {.d_qk = o->d_qk,
                        .d_v = o->d_v,
                        .score_scale = j->score_scale,
                        .quantize_p = o->quantize_p};

    (void)lay_out(&t, j->scratch + (size_t)worker * j->scratch_bytes, o->d_qk, o->d_v);
    for (int64_t i = begin; i < end; i++) {
        cpu_item it;
        if (!find_item(j, i, &it)) continue;
        t.rows = it.rows;
        run_tile(j, &it, &t);
    }
    return FP8_OK;
}

static fp8_status cpu_run(fp8_attention_plan *p, const fp8_attention_io *io, void *workspace) {
    const fp8_attention_options *o = &p->options;
    fp8_pool *pool = fp8_device_pool(p->device);
    attention_tile shape;
    cpu_job j = {.options = o,
                 .io = io,
                 .kernels = attention_tile_kernels_at(0),
                 .group = o->num_heads / o->num_kv_heads};

    j.tiles = (o->max_q * j.group + TILE_ROWS - 1) / TILE_ROWS;
    if (j.tiles == 0) return FP8_OK;
    j.score_scale = o->scale;
    j.out_scale = o->quantize_p ? 1.0f / 256.0f : 1.0f;
    if (o->q_dtype == FP8_DTYPE_E4M3) j.score_scale *= *io->q_descale;
    if (o->kv_dtype == FP8_DTYPE_E4M3) {
        j.score_scale *= *io->k_descale;
        j.out_scale *= *io->v_descale;
    }
    j.scratch = (uint8_t *)workspace + (uintptr_t)-(intptr_t)workspace % TILE_ALIGN;
    j.scratch_bytes = lay_out(&shape, NULL, o->d_qk, o->d_v);
    return fp8_parallel_for(pool, o->num_seqs * o->num_kv_heads * j.tiles, 1, run_items, &j);
}

static fp8_status check_types(const fp8_attention_options *o) {
    if (o->q_dtype == FP8_DTYPE_F16 || o->kv_dtype == FP8_DTYPE_F16)
        return FP8_FAIL(FP8_EUNSUPPORTED, "F16 operands");
    if (o->o_dtype != FP8_DTYPE_F32 && o->o_dtype != FP8_DTYPE_BF16)
        return FP8_FAIL(FP8_EUNSUPPORTED, "o_dtype %s, expected F32 or BF16",
                        fp8_dtype_name(o->o_dtype));
    if (o->quantize != FP8_QUANTIZE_NOT) return FP8_FAIL(FP8_EUNSUPPORTED, "operands to quantize");
    if (o->granularity != FP8_DESCALE_TENSOR)
        return FP8_FAIL(FP8_EUNSUPPORTED, "descales of heads");
    return FP8_OK;
}

static fp8_status cpu_check(const fp8_attention_options *o, const attention_target *t,
                            char about[ATTENTION_REASON_BYTES]) {
    fp8_status st;
    if (t->place != FP8_PLACE_CPU)
        return FP8_FAIL(FP8_EUNSUPPORTED, "the data is on %s", t->name);
    snprintf(about, ATTENTION_REASON_BYTES, "%s, %s", t->name, attention_tile_kernels_at(0)->name);
    FP8_TRY(check_types(o));
    if (o->padding) return FP8_FAIL(FP8_EUNSUPPORTED, "padding");
    if (o->mask == FP8_MASK_ARBITRARY) return FP8_FAIL(FP8_EUNSUPPORTED, "an arbitrary mask");
    if (o->bias != FP8_BIAS_NONE) return FP8_FAIL(FP8_EUNSUPPORTED, "a bias");
    if (o->softcap > 0.0f) return FP8_FAIL(FP8_EUNSUPPORTED, "softcap");
    if (o->sink != FP8_SINK_NONE) return FP8_FAIL(FP8_EUNSUPPORTED, "a sink");
    if (o->want_lse || o->want_amax) return FP8_FAIL(FP8_EUNSUPPORTED, "LSE or amax");
done:
    return st;
}

static fp8_status cpu_open(fp8_attention_plan *p) {
    const size_t threads = (size_t)fp8_pool_threads(fp8_device_pool(p->device));
    attention_tile shape;
    p->workspace_bytes = TILE_ALIGN + threads * lay_out(&shape, NULL, p->options.d_qk,
                                                        p->options.d_v);
    return FP8_OK;
}

static void cpu_close(fp8_attention_plan *p) { (void)p; }

const attention_backend attention_backend_cpu = {
    FP8_BACKEND_CPU, "cpu", NULL, cpu_check, cpu_open, cpu_close, cpu_run,
};
