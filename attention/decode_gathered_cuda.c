/* The gathered backend: any attention over pages as one over packed rows. Codes of Q meet codes of
 * K and V; a real Q meets them descaled to its own type. */
#include <stdlib.h>
#include <string.h>

#include "attention/decode_gathered.h"
#include "attention/flash_limits.h"

enum { ALIGN = 256 };

typedef struct gathered_state {
    fp8_attention_plan *plan;
    fp8_dtype dtype; /* of the gathered keys */
    int64_t chunks, pieces, piece; /* as gathered_keys has them */
    size_t k_bytes, v_bytes, number_bytes, plan_bytes; /* parts of the workspace, in this order */
} gathered_state;

static size_t padded(size_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }

static int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static int is_causal(const fp8_decode_options *o) {
    return o->mask == FP8_MASK_CAUSAL_BOTTOM_RIGHT;
}

/* Sequences of this part that a batch may have. */
static int64_t most_chunks(const decode_part *p) {
    const fp8_decode_options *o = &p->options;
    const int64_t fit = o->total_q / (p->q_least > 1 ? p->q_least : 1);
    const int64_t most = least_of(o->num_seqs, fit > 1 ? fit : 1);
    return o->max_chunks && p->q_least > FP8_DECODE_ROWS ? least_of(most, o->max_chunks) : most;
}

static fp8_status size_rows(size_t *out, const gathered_state *s, const fp8_decode_options *o,
                            int32_t d) {
    const int64_t shape[] = {s->chunks, o->max_kv, o->num_kv_heads, d};
    fp8_status st;
    FP8_TRY(fp8_shape_bytes(out, s->dtype, shape, 4));
    *out = padded(*out);
done:
    return st;
}

/* A plan for pieces of `piece` queries. */
static fp8_status plan_pieces(gathered_state *s, const decode_part *p, int64_t piece) {
    const fp8_decode_options *o = &p->options;
    const int64_t each = ceil_div(o->max_q, piece);
    fp8_attention_options a = decode_as_attention(o);

    s->piece = piece;
    s->pieces = least_of(s->chunks * each, s->chunks + o->total_q / piece);
    a.num_seqs = s->pieces;
    a.max_q = piece;
    a.kv_dtype = s->dtype;
    if (s->dtype != FP8_DTYPE_E4M3) a.quantize_p = 0;
    return fp8_attention_plan_create(&s->plan, p->device, &a);
}

/* Query rows of a tile of the flash kernel that would read gathered rows as they lie, so that
 * pieces cost nothing; 0: another serves, or one that turns V first, for each piece anew. */
static int64_t rows_of_tile(const gathered_state *s, const fp8_decode_options *o) {
    fp8_attention_options a = decode_as_attention(o);
    a.max_q = FLASH_BLOCK_M;
    a.kv_dtype = s->dtype;
    if (!is_causal(o)) return 0;
    if (s->dtype == FP8_DTYPE_E4M3) return flash_v_as_is(&a) ? FLASH_BLOCK_M : 0;
    return FLASH16_ROWS(o->d_v);
}

/* In pieces of a tile where flash serves them, else of whole sequences. */
static fp8_status open_plan(gathered_state *s, const decode_part *p) {
    const int64_t rows = rows_of_tile(s, &p->options), most = p->options.max_q;
    fp8_status st = FP8_OK;

    if (rows > 0 && rows < most) {
        FP8_TRY(plan_pieces(s, p, rows));
        if (fp8_attention_plan_backend(s->plan) == FP8_BACKEND_FLASH) goto done;
        fp8_attention_plan_destroy(s->plan);
        s->plan = NULL;
    }
    FP8_TRY(plan_pieces(s, p, most > 0 ? most : 1));
done:
    return st;
}

static fp8_status gathered_open(decode_part *p) {
    const fp8_decode_options *o = &p->options;
    gathered_state *s = calloc(1, sizeof *s);
    fp8_status st;

    p->state = s;
    if (!s) return FP8_FAIL(FP8_ENOMEM, "decode plan");
    s->dtype = o->q_dtype;
    s->chunks = most_chunks(p);
    FP8_TRY(size_rows(&s->k_bytes, s, o, o->d_qk));
    FP8_TRY(size_rows(&s->v_bytes, s, o, o->d_v));
    FP8_TRY(open_plan(s, p));
    s->number_bytes = padded((size_t)(4 * s->pieces + 2 * s->chunks) * sizeof(int32_t));
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
                         .q_least = p->q_least, .q_most = p->q_most, .dtype = s->dtype,
                         .chunks = s->chunks, .pieces = s->pieces, .piece = s->piece,
                         .causal = is_causal(&p->options)};
    k->q_starts = numbers;
    k->q_lengths = numbers + s->pieces;
    k->kv_starts = numbers + 2 * s->pieces;
    k->kv_lengths = numbers + 3 * s->pieces;
    k->sequence = numbers + 4 * s->pieces;
    k->keys = k->sequence + s->chunks;
    return at + s->k_bytes + s->v_bytes + s->number_bytes;
}

/* The plan's pieces may be more than the batch's: the others have no tokens. */
static fp8_status gathered_run(decode_part *p, const fp8_decode_io *io, void *workspace) {
    const gathered_state *s = p->state;
    const int codes = s->dtype == FP8_DTYPE_E4M3;
    gathered_keys keys;
    void *rest = lay_out(&keys, p, workspace);
    fp8_attention_io x;
    fp8_status st;

    FP8_TRY(gather_keys(p->device, &keys, &io->pages, &io->batch));
    x = (fp8_attention_io){.o = io->o, .q = io->q, .k = keys.k, .v = keys.v,
                           .q_starts = keys.q_starts, .q_lengths = keys.q_lengths,
                           .kv_starts = keys.kv_starts, .kv_lengths = keys.kv_lengths,
                           .total_q = io->batch.total_q,
                           .total_kv = s->chunks * p->options.max_kv,
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
    gathered_run, NULL, NULL,
};
