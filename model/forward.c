/* The wiring of a decoder transformer, once for all families, precisions and devices:
 *
 *   x = embed(ids)
 *   for each layer:  x += attention(norm(x)); x += mlp(norm(x))   (layer.c)
 *   logits = lm_head(final_norm(x))
 *
 * Everything runs in the scratch that the model was loaded with. Two things may still grow,
 * outside any kernel: a batch of a new look brings an attention plan (plans.c), and the first
 * batch that wants logits their buffer. */
#include <stdlib.h>

#include "core/range.h"
#include "model/layer_impl.h"

/* ---- logits ---------------------------------------------------------------------------------- */

static fp8_status open_logits(fp8_model *m, fp8_tensor *logits, int64_t rows) {
    const int64_t vocab = m->config.vocab_size;
    fp8_status st = FP8_OK;
    size_t bytes = 0;

    FP8_TRY(fp8_mul_size(&bytes, (size_t)rows * sizeof(float), (size_t)vocab));
    FP8_TRY(fp8_buffer_reserve(m->device, &m->logits, bytes));
    *logits = fp8_tensor_view(m->logits.data, FP8_DTYPE_F32, fp8_device_place(m->device), rows,
                              vocab);
done:
    return st;
}

/* Logits of a head in FP8, rounded to the compute type as those of a real one are: of the rows that
 * make an id the final norm, quantized a token at a time, and nothing of the others. */
static fp8_status paged_head(fp8_pass *p, const int32_t *last_rows, int64_t rows,
                             fp8_tensor *logits) {
    const fp8_model *m = p->m;
    const fp8_linear_call call = {.accumulate = m->accumulate};
    const float softcap = (float)m->config.logit_softcap;
    fp8_status st = FP8_OK;
    fp8_layer_input in;

    p->tokens = rows;
    p->from = last_rows;
    FP8_TRY(fp8_pass_norm_into(p, &in, p->paged->head, &m->final_norm, &m->final_norm_bias, -1,
                               FP8_POINT_LM_HEAD_INPUT));
    FP8_TRY(open_logits(p->m, logits, rows));
    if (softcap <= 0) logits->dtype = m->type;
    FP8_TRY(fp8_pass_linear(p, p->paged->head, logits, &in.x, in.x_descale, call));
    if (softcap <= 0) return FP8_OK;
    FP8_TRY(m->ops->round(m->device, logits, m->type));
    FP8_TRY(m->ops->softcap(m->device, logits, softcap, m->type));
done:
    return st;
}

/* Final norm, and the logits of every token (last_rows NULL) or of `rows` rows; 0: none. */
static fp8_status finish(fp8_pass *p, const int32_t *last_rows, int64_t rows,
                         fp8_tensor *logits) {
    fp8_model *m = p->m;
    fp8_status st = FP8_OK;
    fp8_tensor x = p->y;

    if (p->paged && p->paged->head) return paged_head(p, last_rows, rows, logits);
    FP8_TRY(fp8_pass_norm(p, &m->final_norm, &m->final_norm_bias));
    FP8_TRY(fp8_pass_tap(p, m->config.num_layers, FP8_POINT_HIDDEN, &p->y));
    FP8_TRY(fp8_pass_tap(p, -1, FP8_POINT_LM_HEAD_INPUT, &p->y));
    if (!rows) return FP8_OK;
    if (last_rows) { /* the residual stream has done its duty: its memory is free */
        const fp8_embedding last = {.dtype = m->type, .tokens = rows, .cols = x.shape[1],
                                    .table = p->y.data, .ids = last_rows, .multiplier = 1};
        x = p->x;
        x.shape[0] = rows;
        FP8_TRY(fp8_embed(m->device, x.data, &last, FP8_LAUNCH_OVERLAP));
    }
    FP8_TRY(open_logits(m, logits, rows));
    FP8_TRY(fp8_model_lm_head(m, logits, &x));
done:
    return st;
}

/* ---- the forward ----------------------------------------------------------------------------- */

static fp8_status check_cache(const fp8_model *m, const fp8_batch *b, const fp8_kv_cache *c) {
    if (c->model != m) return FP8_FAIL(FP8_EINVAL, "the KV cache belongs to another model");
    if (b->num_seqs != 1)
        return FP8_FAIL(FP8_EINVAL, "%lld sequences with a KV cache, expected 1",
                        (long long)b->num_seqs);
    if (b->num_tokens > c->capacity - c->length)
        return FP8_FAIL(FP8_EINVAL, "KV cache: %lld tokens do not fit, %lld of %lld are taken",
                        (long long)b->num_tokens, (long long)c->length, (long long)c->capacity);
    return FP8_OK;
}

/* Equal lengths are worth a plan of exactly those; but a cached sequence grows from call to
 * call, and a lone one of odd length will hardly come again: those take a plan of rounded
 * lengths. */
static void measure(fp8_pass *p, const fp8_batch *b) {
    int equal = 1;

    for (int64_t s = 0; s < b->num_seqs; s++) {
        const int64_t len = (int64_t)b->starts[s + 1] - b->starts[s];
        equal &= s == 0 || len == p->max_len;
        if (len > p->max_len) p->max_len = len;
    }
    p->uniform = equal && !p->cache && (b->num_seqs > 1 || p->max_len % 64 == 0);
}

/* Keys that were turned by other frequencies than this batch asks for are of no use to it. YaRN and
 * the like never change; dynamic RoPE keeps old keys as they are, as transformers does. */
static fp8_status fit_rope(const fp8_pass *p) {
    const fp8_rope_config *rope = &p->m->config.rope;
    int64_t length = p->past + p->max_len;

    if (p->cache && p->cache->intended > length) length = p->cache->intended;
    if (p->past > 0 && rope->type == FP8_ROPE_LONGROPE &&
        fp8_rope_key(rope, length) != p->m->rope.key)
        return FP8_FAIL(FP8_EINVAL, "longrope: %lld cached tokens were turned for sequences up to "
                        "%lld, found %lld: clear the cache and bring them again",
                        (long long)p->past, (long long)rope->original_max_position,
                        (long long)length);
    return fp8_rope_fit(p->m, length);
}

static fp8_status embed(const fp8_pass *p, const int32_t *ids) {
    const fp8_model *m = p->m;
    const fp8_embedding e = {.dtype = m->type,
                             .tokens = p->tokens,
                             .cols = m->config.hidden_size,
                             .table = m->embed.data,
                             .ids = ids,
                             .multiplier = m->embed_multiplier,
                             .positions_table = m->positions.data,
                             .positions = p->positions};
    return fp8_embed(m->device, p->x.data, &e, FP8_LAUNCH_ORDERED);
}

/* A started pass goes on after others. */
static fp8_status resume(fp8_pass *p, const fp8_batch *batch) {
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_inputs_send(p->m, batch, p->past));
    p->positions = p->m->inputs.positions;
    FP8_TRY(fit_rope(p));
done:
    return st;
}

/* Hidden states at x and y, which hold `tokens` rows. */
static void open_pass(fp8_pass *p, int64_t tokens, void *x, void *y) {
    p->tokens = tokens;
    p->x = fp8_tensor_view(x, p->m->type, fp8_device_place(p->m->device), tokens,
                           p->m->config.hidden_size);
    p->y = p->out = p->x;
    p->y.data = y;
}

/* A pass over hidden states at x and y. */
static fp8_status start(fp8_pass *p, const fp8_batch *batch, void *x, void *y) {
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_inputs_send(p->m, batch, p->past));
    open_pass(p, batch->num_tokens, x, y);
    p->num_seqs = batch->num_seqs;
    p->positions = p->m->inputs.positions;
    measure(p, batch);
    FP8_TRY(fit_rope(p));
    FP8_TRY(embed(p, p->m->inputs.ids));
done:
    return st;
}

static fp8_status enter(const fp8_model *m, int64_t i) {
    return m->store ? fp8_layer_store_enter(m->store, i) : FP8_OK;
}

static fp8_status leave(const fp8_model *m, int64_t i) {
    return m->store ? fp8_layer_store_leave(m->store, i, i + 1 < m->config.num_layers ? i + 1 : -1)
                    : FP8_OK;
}

fp8_status fp8_model_forward(fp8_model *m, const fp8_batch *batch, fp8_kv_cache *cache,
                             const fp8_tap *tapped, fp8_logits want, fp8_tensor *logits) {
    const int64_t past = cache ? cache->length : 0;
    fp8_pass p = {.m = m, .cache = cache, .tap = tapped, .past = past};
    fp8_status st = FP8_OK;

    if (want != FP8_LOGITS_NONE && !logits)
        return FP8_FAIL(FP8_EINVAL, "logits are wanted, but there is no tensor for them");
    if (cache && batch) FP8_TRY(check_cache(m, batch, cache));
    FP8_TRY(start(&p, batch, m->scratch.x, m->scratch.y));
    for (int64_t i = 0; i < m->config.num_layers; i++) {
        FP8_TRY(enter(m, i));
        FP8_TRY(fp8_layer_forward(&p, i));
        FP8_TRY(leave(m, i));
    }
    FP8_TRY(finish(&p, want == FP8_LOGITS_LAST ? m->inputs.last : NULL,
                   want == FP8_LOGITS_NONE ? 0 : want == FP8_LOGITS_ALL ? p.tokens : p.num_seqs,
                   logits));
    if (cache) cache->length = past + batch->num_tokens;
done:
    return st;
}

fp8_status fp8_model_step(fp8_model *m, const fp8_paged *paged, int64_t tokens, const int32_t *ids,
                          const int32_t *positions, const int32_t *last, int64_t num_last,
                          fp8_tensor *logits) {
    fp8_pass p = {.m = m, .paged = paged, .positions = positions,
                  .num_seqs = paged->batch.num_seqs};
    fp8_status st = FP8_OK;

    open_pass(&p, tokens, m->scratch.x, m->scratch.y);
    if (m->positions.data) FP8_TRY(FP8_IN_RANGE("embedding", embed(&p, ids)));
    else p.ids = ids;
    for (int64_t i = 0; i < m->config.num_layers; i++) FP8_TRY(fp8_layer_forward(&p, i));
    FP8_TRY(FP8_IN_RANGE("head", finish(&p, last, num_last, logits)));
done:
    return st;
}

/* All batches are embedded, go through each layer in turn, and get their final norm. */
static fp8_status run_together(fp8_model *m, fp8_pass *passes, const fp8_batch *batches,
                               int64_t count, unsigned char *rows, fp8_layer_fn after_layer,
                               void *ctx) {
    const size_t row = (size_t)m->config.hidden_size * fp8_dtype_size(m->type);
    fp8_status st = FP8_OK;

    for (int64_t b = 0; b < count; b++) {
        const size_t bytes = (size_t)batches[b].num_tokens * row;
        FP8_TRY(start(&passes[b], &batches[b], rows, rows + bytes));
        rows += 2 * bytes;
    }
    for (int64_t i = 0; i < m->config.num_layers; i++) {
        FP8_TRY(enter(m, i));
        for (int64_t b = 0; b < count; b++) {
            FP8_TRY(resume(&passes[b], &batches[b]));
            FP8_TRY(fp8_layer_forward(&passes[b], i));
        }
        FP8_TRY(leave(m, i));
        if (after_layer) FP8_TRY(after_layer(ctx, i));
    }
    for (int64_t b = 0; b < count; b++) {
        FP8_TRY(resume(&passes[b], &batches[b]));
        FP8_TRY(finish(&passes[b], NULL, 0, NULL));
    }
done:
    return st;
}

fp8_status fp8_model_forward_layers(fp8_model *m, const fp8_batch *batches, int64_t count,
                                    const fp8_tap *taps, fp8_layer_fn after_layer, void *ctx) {
    const size_t row = 2 * (size_t)m->config.hidden_size * fp8_dtype_size(m->type);
    fp8_pass *passes = calloc((size_t)count + 1, sizeof *passes);
    size_t tokens = 0;
    void *rows = NULL;
    fp8_status st = FP8_OK;

    if (!passes) return FP8_FAIL(FP8_ENOMEM, "%lld batches", (long long)count);
    for (int64_t b = 0; b < count; b++) {
        if (batches[b].num_tokens < 1 || batches[b].num_tokens > m->max_tokens)
            FP8_TRY(FP8_FAIL(FP8_EINVAL, "a batch of %lld tokens, expected 1 to %lld",
                             (long long)batches[b].num_tokens, (long long)m->max_tokens));
        passes[b] = (fp8_pass){.m = m, .tap = taps ? &taps[b] : NULL};
        tokens += (size_t)batches[b].num_tokens;
    }
    FP8_TRY(fp8_device_alloc(m->device, &rows, tokens * row));
    st = run_together(m, passes, batches, count, rows, after_layer, ctx);
done:
    fp8_device_free(m->device, rows); /* waits */
    free(passes);
    return st;
}

fp8_status fp8_model_forward_part(fp8_model *m, const fp8_batch *batch, const void *from, void *to,
                                  int64_t begin, int64_t end, const fp8_tap *tapped) {
    fp8_pass p = {.m = m, .tap = tapped};
    size_t bytes = 0;
    fp8_status st = FP8_OK;

    if (begin < 0 || end > m->config.num_layers || begin > end || (!from && begin > 0))
        return FP8_FAIL(FP8_EINVAL, "layers %lld to %lld of a model of %lld, from %s",
                        (long long)begin, (long long)end, (long long)m->config.num_layers,
                        from ? "a residual stream" : "the embedding");
    if (m->store)
        return FP8_FAIL(FP8_EUNSUPPORTED, "a part of a forward needs a model that is on the device "
                        "as a whole, found one in memory for two layers");
    FP8_TRY(start(&p, batch, m->scratch.x, m->scratch.y));
    bytes = (size_t)fp8_tensor_count(&p.x) * fp8_dtype_size(m->type);
    if (from) FP8_TRY(fp8_device_copy(m->device, p.x.data, from, bytes));
    for (int64_t i = begin; i < end; i++) FP8_TRY(fp8_layer_forward(&p, i));
    if (!to) return FP8_OK;
    FP8_TRY(fp8_pass_settle(&p));
    FP8_TRY(fp8_device_copy(m->device, to, p.x.data, bytes));
done:
    return st;
}
