/* The gathered backend: any attention over pages as one over packed rows. Codes of Q meet codes of
 * K and V; a real Q meets them descaled to its own type. */
#include <stdlib.h>
#include <string.h>

#include "attention/decode_gathered.h"

enum { ALIGN = 256 };

typedef struct gathered_state {
    fp8_attention_plan *plan;
    fp8_dtype dtype; /* of the gathered keys */
    size_t k_bytes, v_bytes, number_bytes, plan_bytes; /* parts of the workspace, in this order */
} gathered_state;

static size_t padded(size_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }

static fp8_status size_rows(size_t *out, const fp8_decode_options *o, fp8_dtype t, int32_t d) {
    const int64_t shape[] = {o->num_seqs, o->max_kv, o->num_kv_heads, d};
    fp8_status st;
    FP8_TRY(fp8_shape_bytes(out, t, shape, 4));
    *out = padded(*out);
done:
    return st;
}

static fp8_status gathered_open(decode_part *p) {
    const fp8_decode_options *o = &p->options;
    gathered_state *s = calloc(1, sizeof *s);
    fp8_attention_options a = decode_as_attention(o);
    fp8_status st;

    p->state = s;
    if (!s) return FP8_FAIL(FP8_ENOMEM, "decode plan");
    s->dtype = o->q_dtype;
    a.kv_dtype = s->dtype;
    if (s->dtype != FP8_DTYPE_E4M3) a.quantize_p = 0;
    FP8_TRY(size_rows(&s->k_bytes, o, s->dtype, o->d_qk));
    FP8_TRY(size_rows(&s->v_bytes, o, s->dtype, o->d_v));
    s->number_bytes = padded((size_t)o->num_seqs * 4 * sizeof(int32_t));
    FP8_TRY(fp8_attention_plan_create(&s->plan, p->device, &a));
    s->plan_bytes = fp8_attention_workspace_size(s->plan);
    p->workspace_bytes = ALIGN + s->k_bytes + s->v_bytes + s->number_bytes + s->plan_bytes;
done:
    return st;
}

static void gathered_close(decode_part *p) {
    gathered_state *s = p->state;
    if (!s) return;
    fp8_attention_plan_destroy(s->plan);
    free(s);
}

/* Lays the keys over the workspace; returns what is left of it for the plan. */
static void *lay_out(gathered_keys *k, const decode_part *p, void *workspace) {
    const gathered_state *s = p->state;
    uint8_t *at = (uint8_t *)workspace + (uintptr_t)-(intptr_t)workspace % ALIGN;
    int32_t *numbers = (int32_t *)(void *)(at + s->k_bytes + s->v_bytes);

    *k = (gathered_keys){.k = at, .v = at + s->k_bytes, .room = p->options.max_kv,
                         .q_least = p->q_least, .q_most = p->q_most, .dtype = s->dtype};
    k->q_starts = numbers;
    k->q_lengths = numbers + p->options.num_seqs;
    k->kv_starts = numbers + 2 * p->options.num_seqs;
    k->kv_lengths = numbers + 3 * p->options.num_seqs;
    return at + s->k_bytes + s->v_bytes + s->number_bytes;
}

/* The plan's num_seqs may be more than the batch's: the others have no tokens. */
static fp8_status gathered_run(decode_part *p, const fp8_decode_io *io, void *workspace) {
    const gathered_state *s = p->state;
    const int codes = s->dtype == FP8_DTYPE_E4M3;
    gathered_keys keys;
    void *rest = lay_out(&keys, p, workspace);
    fp8_attention_io x;
    fp8_status st;

    FP8_TRY(fp8_device_fill(p->device, keys.q_starts, 0, s->number_bytes));
    FP8_TRY(gather_keys(p->device, &keys, &io->pages, &io->batch));
    x = (fp8_attention_io){.o = io->o, .q = io->q, .k = keys.k, .v = keys.v,
                           .q_starts = keys.q_starts, .q_lengths = keys.q_lengths,
                           .kv_starts = keys.kv_starts, .kv_lengths = keys.kv_lengths,
                           .total_q = io->batch.total_q,
                           .total_kv = p->options.num_seqs * p->options.max_kv,
                           .q_descale = codes ? io->q_descale : NULL,
                           .k_descale = codes ? io->pages.k_descale : NULL,
                           .v_descale = codes ? io->pages.v_descale : NULL,
                           .o_scale = io->o_scale, .alibi_slopes = io->alibi_slopes,
                           .sink = io->sink, .lse = io->lse};
    FP8_TRY(fp8_attention_run(s->plan, &x, rest, s->plan_bytes));
done:
    return st;
}

const decode_backend decode_backend_gathered = {
    FP8_DECODE_GATHERED, "gathered", decode_gathered_check, gathered_open, gathered_close,
    gathered_run,
};
