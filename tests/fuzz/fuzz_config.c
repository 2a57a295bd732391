/* Fuzz target of config.json and quantization_config.
 *
 * Beyond memory errors: what is accepted keeps the promises of the headers; one key goes into any
 * object, all other bytes stay, and doing it again changes nothing. */
#include <stdlib.h>
#include <string.h>

#include "formats/config.h"
#include "formats/dialect.h"

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

#define MUST(cond) ((cond) ? (void)0 : abort())

static int is_size(int64_t n) { return n > 0 && n <= INT32_MAX; }

static void check_config(const char *text, size_t size) {
    fp8_model_config c;
    const fp8_status st = fp8_config_parse(&c, "fuzz", text, size);

    MUST(st == FP8_OK || st == FP8_EFORMAT || st == FP8_EUNSUPPORTED);
    MUST(st == FP8_OK || !strchr(fp8_last_message(), '\n'));
    if (st != FP8_OK) return;
    MUST(is_size(c.hidden_size) && is_size(c.intermediate_size) && is_size(c.vocab_size));
    MUST(is_size(c.num_heads) && is_size(c.num_kv_heads) && is_size(c.head_dim));
    MUST(is_size(c.max_position) && is_size(c.num_layers) && c.num_layers <= FP8_MAX_LAYERS);
    MUST(c.num_heads % c.num_kv_heads == 0 && c.norm_eps > 0);
    MUST(c.rope.type == FP8_ROPE_NONE || c.rope.theta > 0);
    MUST(c.rope.type == FP8_ROPE_NONE || (c.rotary_dim >= 2 && c.rotary_dim <= c.head_dim));
    MUST(c.rotary_dim % 2 == 0 && c.rotary_dim / 2 <= FP8_MAX_ROPE_FACTORS);
    MUST(c.num_experts <= FP8_MAX_EXPERTS && c.experts_per_token <= c.num_experts);
    MUST(c.attention_scale >= 0 && c.softcap >= 0 && c.logit_softcap >= 0);
    MUST(c.num_eos >= 0 && c.num_eos <= FP8_MAX_EOS && c.bos_id >= -1);
    for (int64_t i = 0; i < c.num_layers; i++) MUST(c.layer_window[i] >= 0);
}

static void check_quant(const char *text, size_t size) {
    fp8_quant_config q, back;
    char *value = NULL, *whole = NULL;
    size_t len = 0;
    const fp8_status st = fp8_quant_config_parse(&q, "fuzz", text, size);

    MUST(st == FP8_OK || st == FP8_EFORMAT || st == FP8_EUNSUPPORTED);
    if (st != FP8_OK || (q.scheme == FP8_SCHEME_NONE && !q.kv_fp8)) {
        MUST(q.ignore == NULL && q.num_ignore == 0);
        return;
    }
    (void)fp8_quant_config_ignores(&q, "model.layers.10.self_attn.q_proj");
    MUST(fp8_quant_config_print(&value, &q) == FP8_OK);
    MUST(fp8_config_insert(&whole, &len, "fuzz", text, size, value) == FP8_OK);
    MUST(fp8_quant_config_parse(&back, "fuzz", whole, len) == FP8_OK);
    MUST(back.scheme == q.scheme && back.kv_fp8 == q.kv_fp8 && back.num_ignore == q.num_ignore);
    for (int32_t i = 0; i < q.num_ignore; i++) MUST(strcmp(q.ignore[i], back.ignore[i]) == 0);
    fp8_quant_config_free(&q);
    fp8_quant_config_free(&back);
    free(value);
    free(whole);
}

/* The key may be in the text, perhaps with escapes. */
static int may_have_key(const char *text, size_t size) {
    static const char key[] = "quantization_config";
    const size_t n = sizeof key - 1;

    if (memchr(text, '\\', size)) return 1;
    for (size_t i = 0; i + n <= size; i++)
        if (memcmp(text + i, key, n) == 0) return 1;
    return 0;
}

static void check_insert(const char *text, size_t size) {
    static const char value[] = "{\"a\": [1, {\"b\": \"}\\\"\"}], \"c\": {}}";
    char *once = NULL, *twice = NULL;
    size_t len = 0, len2 = 0, front = 0, back = 0;

    if (fp8_config_insert(&once, &len, "fuzz", text, size, value) != FP8_OK) return;
    MUST(fp8_config_insert(&twice, &len2, "fuzz", once, len, value) == FP8_OK);
    MUST(len == len2 && memcmp(once, twice, len) == 0);
    if (!may_have_key(text, size)) {
        MUST(len > size);
        while (front < size && once[front] == text[front]) front++;
        while (back < size - front && once[len - 1 - back] == text[size - 1 - back]) back++;
        MUST(front + back == size);
    }
    free(once);
    free(twice);
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    char *text = malloc(size ? size : 1); /* so that its end is watched */
    if (!text) return 0;
    if (size) memcpy(text, data, size);
    check_config(text, size);
    check_quant(text, size);
    check_insert(text, size);
    free(text);
    return 0;
}
