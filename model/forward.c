/* The wiring of a decoder transformer, once for all families, precisions and devices:
 *
 *   x = embed(ids)
 *   for each layer:  x += attention(norm(x)); x += mlp(norm(x))   (layer.c)
 *   logits = lm_head(final_norm(x))
 *
 * Everything runs in the scratch that the model was loaded with. Two things may still grow,
 * outside any kernel: a batch of a new look brings an attention plan (plans.c), and the first
 * batch that wants logits their buffer. */
#include "model/model_impl.h"

/* ---- logits ---------------------------------------------------------------------------------- */

/* Final norm, and the logits of every token or of each sequence's last. */
static fp8_status finish(fp8_pass *p, fp8_logits want, fp8_tensor *logits) {
    fp8_model *m = p->m;
    const int64_t layers = m->config.num_layers, vocab = m->config.vocab_size;
    const int64_t rows = want == FP8_LOGITS_ALL ? p->tokens : p->num_seqs;
    fp8_status st = FP8_OK;
    fp8_tensor x = p->y;
    size_t bytes = 0;

    FP8_TRY(fp8_pass_norm(p, &m->final_norm, &m->final_norm_bias));
    FP8_TRY(fp8_pass_tap(p, layers, FP8_POINT_HIDDEN, &p->y));
    FP8_TRY(fp8_pass_tap(p, -1, FP8_POINT_LM_HEAD_INPUT, &p->y));
    if (want == FP8_LOGITS_NONE) return FP8_OK;
    if (want == FP8_LOGITS_LAST) { /* the residual stream has done its duty: its memory is free */
        const fp8_embedding last = {.dtype = m->type, .tokens = rows, .cols = x.shape[1],
                                    .table = p->y.data, .ids = m->inputs.last, .multiplier = 1};
        x = p->x;
        x.shape[0] = rows;
        FP8_TRY(fp8_embed(m->device, x.data, &last, FP8_LAUNCH_OVERLAP));
    }
    FP8_TRY(fp8_mul_size(&bytes, (size_t)rows * sizeof(float), (size_t)vocab));
    FP8_TRY(fp8_buffer_reserve(m->device, &m->logits, bytes));
    *logits = fp8_tensor_view(m->logits.data, FP8_DTYPE_F32, fp8_device_place(m->device), rows,
                              vocab);
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

static fp8_status embed(const fp8_pass *p) {
    const fp8_model *m = p->m;
    const fp8_embedding e = {.dtype = m->type,
                             .tokens = p->tokens,
                             .cols = m->config.hidden_size,
                             .table = m->embed.data,
                             .ids = m->inputs.ids,
                             .multiplier = m->embed_multiplier,
                             .positions_table = m->positions.data,
                             .positions = m->inputs.positions};
    return fp8_embed(m->device, p->x.data, &e, FP8_LAUNCH_ORDERED);
}

fp8_status fp8_model_forward(fp8_model *m, const fp8_batch *batch, fp8_kv_cache *cache,
                             const fp8_tap *tapped, fp8_logits want, fp8_tensor *logits) {
    const int64_t past = cache ? cache->length : 0;
    fp8_pass p = {.m = m, .cache = cache, .tap = tapped, .past = past};
    fp8_status st = FP8_OK;

    if (want != FP8_LOGITS_NONE && !logits)
        return FP8_FAIL(FP8_EINVAL, "logits are wanted, but there is no tensor for them");
    if (cache && batch) FP8_TRY(check_cache(m, batch, cache));
    FP8_TRY(fp8_inputs_send(m, batch, past));
    p.tokens = batch->num_tokens;
    p.num_seqs = batch->num_seqs;
    p.x = fp8_tensor_view(m->scratch.x, m->type, fp8_device_place(m->device), p.tokens,
                          m->config.hidden_size);
    p.y = p.out = p.x;
    p.y.data = m->scratch.y;
    measure(&p, batch);
    FP8_TRY(fit_rope(&p));

    FP8_TRY(embed(&p));
    for (int64_t i = 0; i < m->config.num_layers; i++) FP8_TRY(fp8_layer_forward(&p, i));
    FP8_TRY(finish(&p, want, logits));
    if (cache) cache->length = past + batch->num_tokens;
done:
    return st;
}
