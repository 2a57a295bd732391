/* What is done with logits: scores on the device, and greedy generation. */
#include <stdlib.h>
#include <string.h>

#include "model/model_impl.h"

fp8_status fp8_model_score(fp8_model *m, const fp8_tensor *logits, const fp8_tensor *reference,
                           const int32_t *targets, float *nll, float *kl, uint8_t *top1) {
    const int64_t rows = logits->shape[0], vocab = logits->shape[1];
    const size_t floats = (size_t)rows * sizeof(float);
    fp8_device *d = m->device;
    fp8_status st = FP8_OK;
    char *at;

    if (!targets || !nll || (!reference && (kl || top1)))
        return FP8_FAIL(FP8_EINVAL, "score: NULL targets, nll, or reference where it is needed");
    if (reference && (reference->shape[0] != rows || reference->shape[1] != vocab))
        return FP8_FAIL(FP8_EINVAL, "score: logits [%lld, %lld] against a reference [%lld, %lld]",
                        (long long)rows, (long long)vocab, (long long)reference->shape[0],
                        (long long)reference->shape[1]);
    for (int64_t r = 0; r < rows; r++)
        if (targets[r] < 0 || targets[r] >= vocab)
            return FP8_FAIL(FP8_EINVAL, "targets[%lld] is %d, the vocabulary has %lld",
                            (long long)r, targets[r], (long long)vocab);
    FP8_TRY(fp8_buffer_reserve(d, &m->scores, 3 * floats + (size_t)rows));
    at = m->scores.data; /* targets, nll, kl, top1 */
    FP8_TRY(fp8_device_upload(d, at, targets, floats));
    FP8_TRY(m->ops->score(d, logits, reference, (const int32_t *)(void *)at,
                          (float *)(void *)(at + floats),
                          kl ? (float *)(void *)(at + 2 * floats) : NULL,
                          top1 ? (uint8_t *)at + 3 * floats : NULL));
    FP8_TRY(fp8_device_download(d, nll, at + floats, floats));
    if (kl) FP8_TRY(fp8_device_download(d, kl, at + 2 * floats, floats));
    if (top1) FP8_TRY(fp8_device_download(d, top1, at + 3 * floats, (size_t)rows));
done:
    return st;
}

/* The next id after `count` ids go through the cache, as many at a time as a forward may bring. */
static fp8_status next_id(fp8_model *m, fp8_kv_cache *cache, const int32_t *ids, int64_t count,
                          int32_t *best) {
    fp8_status st = FP8_OK;
    fp8_tensor logits;

    cache->intended = cache->length + count;
    for (int64_t i = 0; i < count; i += m->max_tokens) {
        const int64_t n = count - i < m->max_tokens ? count - i : m->max_tokens;
        const int32_t starts[2] = {0, (int32_t)n};
        const fp8_batch batch = {ids + i, n, starts, 1};
        const fp8_logits want = i + n == count ? FP8_LOGITS_LAST : FP8_LOGITS_NONE;
        FP8_TRY(fp8_model_forward(m, &batch, cache, NULL, want, &logits));
    }
    FP8_TRY(fp8_buffer_reserve(m->device, &m->scores, sizeof *best));
    FP8_TRY(fp8_top_k(m->device, m->scores.data, NULL, logits.data, logits.dtype, 1,
                      m->config.vocab_size, 0, 1, FP8_LAUNCH_OVERLAP));
    FP8_TRY(fp8_device_download(m->device, best, m->scores.data, sizeof *best));
done:
    return st;
}

static int is_eos(const fp8_model_config *c, int32_t id) {
    for (int32_t i = 0; i < c->num_eos; i++)
        if (c->eos_ids[i] == id) return 1;
    return 0;
}

/* Like next_id for `last`, the youngest of `made` ids; but where RoPE's frequencies change at this
 * length the cache is of no use, and everything goes through it again. */
static fp8_status go_on(fp8_model *m, fp8_kv_cache *cache, const int32_t *prompt,
                        int64_t num_prompt, const fp8_ids *ids, int64_t made, int32_t *id) {
    const fp8_rope_config *rope = &m->config.rope;
    const int64_t count = num_prompt + made;
    fp8_status st = FP8_OK;
    int32_t *all = NULL;

    if (rope->type != FP8_ROPE_LONGROPE ||
        fp8_rope_key(rope, count) == fp8_rope_key(rope, count - 1))
        return next_id(m, cache, id, 1, id);
    all = malloc((size_t)count * sizeof *all);
    if (!all) return FP8_FAIL(FP8_ENOMEM, "%lld ids", (long long)count);
    memcpy(all, prompt, (size_t)num_prompt * sizeof *all);
    memcpy(all + num_prompt, ids->data + ids->count - made, (size_t)made * sizeof *all);
    fp8_kv_cache_clear(cache);
    st = next_id(m, cache, all, count, id);
    free(all);
    return st;
}

fp8_status fp8_model_generate(fp8_model *m, fp8_ids *ids, const int32_t *prompt, int64_t num_prompt,
                              int64_t max_new, int ignore_eos, fp8_token_fn on, void *ctx) {
    const int64_t total = num_prompt + max_new;
    fp8_kv_cache *cache = NULL;
    fp8_status st = FP8_OK;
    int32_t id = 0;

    if (num_prompt < 1 || max_new < 0 || total > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "a prompt of %lld tokens and %lld new ones",
                        (long long)num_prompt, (long long)max_new);
    if (m->positions.data && total - 1 > m->config.max_position) /* the last id is not fed back */
        return FP8_FAIL(FP8_EINVAL, "%lld prompt tokens and %lld new ones, the model learned %lld "
                        "positions", (long long)num_prompt, (long long)max_new,
                        (long long)m->config.max_position);
    if (max_new == 0) return FP8_OK;
    FP8_TRY(fp8_kv_cache_create(&cache, m, total));
    FP8_TRY(next_id(m, cache, prompt, num_prompt, &id));
    for (int64_t made = 1;; made++) {
        if (!ignore_eos && is_eos(&m->config, id)) break;
        FP8_TRY(fp8_ids_push(ids, id));
        if ((on && on(ctx, id)) || made == max_new) break;
        FP8_TRY(go_on(m, cache, prompt, num_prompt, ids, made, &id));
    }
done:
    fp8_kv_cache_destroy(cache);
    return st;
}
