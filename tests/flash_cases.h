/* tests/flash_cases.h - a problem of attention_sweep.h on the flash backend: run, compared by the
 * sampled rows of flash_rows.h, run again for the same bytes. */
#ifndef FP8_TESTS_FLASH_CASES_H
#define FP8_TESTS_FLASH_CASES_H
#include "attention/flash_limits.h"
#include "flash_rows.h"

enum { SAMPLES = 24 };

/* ---- a case on the GPU ----------------------------------------------------------------------- */

typedef struct gpu_run {
    fp8_device *d;
    fp8_attention_plan *plan;
    void *at[SWEEP_SLOTS], *workspace;
    size_t workspace_bytes;
} gpu_run;

static inline void run_close(gpu_run *r) {
    for (int i = 0; i < SWEEP_SLOTS; i++) fp8_device_free(r->d, r->at[i]);
    fp8_device_free(r->d, r->workspace);
    fp8_attention_plan_destroy(r->plan);
}

static inline fp8_status run_open(gpu_run *r, fp8_device *d, const sweep_case *c) {
    fp8_attention_options o = c->o;
    fp8_status st;
    *r = (gpu_run){.d = d};
    o.backend = FP8_BACKEND_FLASH;
    FP8_TRY(fp8_attention_plan_create(&r->plan, d, &o));
    r->workspace_bytes = fp8_attention_workspace_size(r->plan);
    FP8_TRY(fp8_device_alloc(d, &r->workspace, r->workspace_bytes));
    FP8_TRY(fp8_device_fill(d, r->workspace, 0xff, r->workspace_bytes)); /* NaN: nothing stale */
    for (int i = 0; i < SWEEP_SLOTS; i++) {
        if (!c->buffer[i].data) continue;
        FP8_TRY(fp8_device_alloc(d, &r->at[i], c->buffer[i].bytes));
        FP8_TRY(fp8_device_upload(d, r->at[i], c->buffer[i].data, c->buffer[i].bytes));
    }
done:
    return st;
}

static inline fp8_status run_call(gpu_run *r, const sweep_case *c) {
    const fp8_attention_io io = sweep_io(c, r->at);
    return fp8_attention_run(r->plan, &io, r->workspace, r->workspace_bytes);
}

/* O, LSE and amax back into the case. */
static inline fp8_status run_fetch(gpu_run *r, sweep_case *c) {
    fp8_status st = FP8_OK;
    for (int i = SWEEP_O; i <= SWEEP_AMAX; i++)
        if (c->buffer[i].data)
            FP8_TRY(fp8_device_download(r->d, c->buffer[i].data, r->at[i], c->buffer[i].bytes));
done:
    return st;
}

/* One run; the outputs are poisoned before. */
static inline fp8_status run_once(fp8_device *d, sweep_case *c) {
    gpu_run r = {0};
    fp8_status st;
    sweep_poison(c);
    FP8_TRY(run_open(&r, d, c));
    FP8_TRY(run_call(&r, c));
    FP8_TRY(run_fetch(&r, c));
done:
    run_close(&r);
    return st;
}

/* ---- cases ----------------------------------------------------------------------------------- */

static inline fp8_attention_options base_options(int32_t heads, int32_t kv_heads, int32_t d,
                                                 int64_t b, int64_t s_q, int64_t s_kv,
                                                 fp8_dtype in, fp8_dtype out) {
    fp8_attention_options o = FP8_ATTENTION_OPTIONS;
    o.num_heads = heads;
    o.num_kv_heads = kv_heads;
    o.d_qk = o.d_v = d;
    o.num_seqs = b;
    o.max_q = s_q;
    o.max_kv = s_kv;
    o.q_dtype = o.kv_dtype = in;
    o.o_dtype = out;
    o.quantize_p = in == FP8_DTYPE_E4M3;
    o.want_lse = o.want_amax = 1;
    return o;
}

/* 0 to 4: none, causal top-left and bottom-right, window both sides, window with any. */
static inline void flash_set_mask(fp8_attention_options *o, int which, uint64_t *seed) {
    o->mask = which == 1   ? FP8_MASK_CAUSAL
              : which == 2 ? FP8_MASK_CAUSAL_BOTTOM_RIGHT
              : which == 4 ? (fp8_attention_mask)sweep_below(seed, 3)
                           : FP8_MASK_NONE;
    if (which < 3) return;
    o->window_left = sweep_below(seed, o->max_kv + 1);
    o->window_right = which == 3 ? sweep_below(seed, o->max_kv + 1) : -1;
    if (sweep_below(seed, 4) == 0) o->window_left = sweep_below(seed, 2) - 1;
}

/* What belongs to no sequence becomes NaN: no run may let it matter. */
static inline void spoil_outside(sweep_case *c) {
    fp8_attention_options o;
    fp8_attention_io io = sweep_host_io(c);
    uint8_t *used[3] = {NULL, NULL, NULL};

    if (attention_resolve_options(&o, &c->o) != FP8_OK ||
        attention_resolve_io(&io, &o, &io) != FP8_OK)
        abort();
    for (int i = 0; i < 3; i++) used[i] = calloc(c->buffer[i].bytes + 1, 1);
    for (int x = 0; x < 3; x++) {
        const fp8_strides at = x == 0 ? o.q : x == 1 ? o.k : o.v;
        const int64_t heads = x == 0 ? o.num_heads : o.num_kv_heads;
        const int64_t size = (int64_t)fp8_dtype_size(x == 0 ? o.q_dtype : o.kv_dtype);
        const int slot = x == 0 ? SWEEP_Q : x == 1 ? (int)c->k_in : (int)c->v_in;
        const int64_t offset = x == 0 ? 0 : (int64_t)(x == 1 ? c->k_at : c->v_at);
        for (int64_t s = 0; s < o.num_seqs; s++) {
            int64_t begin, n = attention_sequence(x ? io.kv_starts : io.q_starts,
                                                  x ? io.kv_lengths : io.q_lengths, s,
                                                  x ? io.total_kv : io.total_q,
                                                  x ? o.max_kv : o.max_q, &begin);
            for (int64_t i = 0; i < n * heads; i++)
                memset(used[slot] + offset +
                           attention_offset(at, s, begin + i / heads, i % heads) * size,
                       1, (size_t)((x == 2 ? o.d_v : o.d_qk) * size));
        }
    }
    for (int i = 0; i < 3; i++) {
        const fp8_dtype t = i == SWEEP_Q ? o.q_dtype : o.kv_dtype;
        const size_t size = fp8_dtype_size(t);
        for (size_t k = 0; k < c->buffer[i].bytes / size; k++)
            if (!used[i][k * size]) sweep_store(c->buffer[i].data, t, (int64_t)k, NAN);
        free(used[i]);
    }
}

static inline void case_open(sweep_case *c, const fp8_attention_options *o, uint64_t seed) {
    memset(c, 0, sizeof *c);
    c->o = *o;
    sweep_make_lengths(c, &seed);
    sweep_make_operands(c, &seed);
    sweep_make_descales(c, &seed);
    sweep_make_terms(c, &seed);
    spoil_outside(c);
}

/* Runs a case, compares, runs it again for the same bytes; returns the relative L2 of O. */
static inline double check_run(fp8_device *d, sweep_case *c, uint64_t seed) {
    void *once[3];
    double error;

    CHECK_STATUS(run_once(d, c), FP8_OK);
    error = flash_compare(c, SAMPLES, seed);
    flash_check_all(c);
    for (int i = 0; i < 3; i++) {
        once[i] = malloc(c->buffer[SWEEP_O + i].bytes + 1);
        if (!once[i]) abort();
        if (c->buffer[SWEEP_O + i].data)
            memcpy(once[i], c->buffer[SWEEP_O + i].data, c->buffer[SWEEP_O + i].bytes);
    }
    CHECK_STATUS(run_once(d, c), FP8_OK);
    for (int i = 0; i < 3; i++) {
        if (c->buffer[SWEEP_O + i].data)
            CHECK(memcmp(once[i], c->buffer[SWEEP_O + i].data, c->buffer[SWEEP_O + i].bytes) == 0);
        free(once[i]);
    }
    return error;
}

static inline double check_options(fp8_device *d, const fp8_attention_options *o, uint64_t seed) {
    sweep_case c;
    double error;
    case_open(&c, o, seed);
    error = check_run(d, &c, seed);
    sweep_free(&c);
    return error;
}
#endif
