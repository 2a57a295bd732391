/* formats/dialect_parse_fp8.c - quant_method "fp8" (one scale a weight, or DeepSeek's blocks) and
 * "modelopt", as others write them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "formats/dialect_reader.h"

/* Without a list every engine leaves the output layer alone. */
static fp8_status ignore_lm_head(fp8_quant_reader *r) {
    fp8_quant_config *q = r->out;

    if (r->has_ignore) return FP8_OK;
    q->ignore = malloc(sizeof *q->ignore);
    if (!q->ignore) return FP8_FAIL(FP8_ENOMEM, "%s: ignore list", r->name);
    q->ignore[0] = strdup("lm_head");
    q->num_ignore = 1;
    return q->ignore[0] ? FP8_OK : FP8_FAIL(FP8_ENOMEM, "%s: ignore list", r->name);
}

/* ---- fp8 ------------------------------------------------------------------------------------- */

static fp8_status read_block_size(fp8_quant_reader *r) {
    char found[64];
    int64_t side[2] = {0, 0};
    fp8_status st = FP8_OK;
    fp8_json_event e;

    FP8_TRY(fp8_json_next(r->json, &e));
    if (e.type == FP8_JSON_NULL) return FP8_OK;
    if (e.type != FP8_JSON_ARRAY)
        return fp8_qr_wrong_type(r, &e, "weight_block_size", "an array");
    for (int i = 0; i < 2; i++)
        FP8_TRY(fp8_json_get_int(r->json, "weight_block_size", 1, INT32_MAX, &side[i]));
    FP8_TRY(fp8_json_expect(r->json, FP8_JSON_ARRAY_END, "weight_block_size", &e));
    snprintf(found, sizeof found, "%dx%d", (int)side[0], (int)side[1]);
    if (side[0] != FP8_DIALECT_BLOCK || side[1] != FP8_DIALECT_BLOCK)
        return fp8_qr_refuse(r, "weight_block_size", found);
    r->blocks = 1;
done:
    return st;
}

/* A string that must be `only` (or null). */
static fp8_status read_only(fp8_quant_reader *r, const char *what, const char *only, int *given) {
    char text[FP8_SHOWN_BYTES];
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_qr_text(r, what, text));
    *given = *text != '\0';
    if (*given && strcmp(text, only) != 0) return fp8_qr_refuse(r, what, text);
done:
    return st;
}

fp8_status fp8_qr_fp8_member(fp8_quant_reader *r, const fp8_json_event *key, void *ctx) {
    int given = 0;

    (void)ctx;
    if (fp8_json_is(key, "activation_scheme"))
        return fp8_qr_text(r, "activation_scheme", r->activations);
    if (fp8_json_is(key, "weight_block_size")) return read_block_size(r);
    if (fp8_json_is(key, "fmt")) return read_only(r, "fmt", "e4m3", &given);
    if (fp8_json_is(key, "scale_fmt")) return read_only(r, "scale_fmt", "ue8m0", &r->out->ue8m0);
    if (fp8_json_is(key, "kv_cache_scheme"))
        return read_only(r, "kv_cache_scheme", "static", &r->out->kv_fp8);
    if (fp8_json_is(key, "ignored_layers") || fp8_json_is(key, "modules_to_not_convert"))
        return fp8_qr_ignore(r);
    return fp8_qr_skip(r);
}

fp8_status fp8_qr_fp8_judge(fp8_quant_reader *r) {
    const int is_static = strcmp(r->activations, "static") == 0;
    fp8_quant_config *q = r->out;

    if (!*r->activations)
        return FP8_FAIL(FP8_EFORMAT, "%s: quantization_config: activation_scheme is missing",
                        r->name);
    if (!is_static && strcmp(r->activations, "dynamic") != 0)
        return fp8_qr_refuse(r, "activation_scheme", r->activations);
    if (r->blocks && is_static)
        return fp8_qr_refuse(r, "weight_block_size with activation_scheme", r->activations);
    if (q->ue8m0 && !r->blocks) return fp8_qr_refuse(r, "scale_fmt without blocks", "ue8m0");
    q->dialect = r->blocks ? FP8_DIALECT_DEEPSEEK : FP8_DIALECT_FP8;
    if (r->blocks && q->kv_fp8) return fp8_qr_refuse(r, "kv_cache_scheme with blocks", "static");
    q->scheme = r->blocks   ? FP8_SCHEME_BLOCK
                : is_static ? FP8_SCHEME_TENSOR
                            : FP8_SCHEME_TENSOR_DYNAMIC;
    return ignore_lm_head(r);
}

/* ---- modelopt -------------------------------------------------------------------------------- */

/* "kv_cache_scheme" of config.json: only that it is there, and of 8 bits, counts. */
static fp8_status read_kv_member(fp8_quant_reader *r, const fp8_json_event *key, void *ctx) {
    int64_t bits = 0;
    fp8_status st = FP8_OK;

    (void)ctx;
    if (!fp8_json_is(key, "num_bits")) return fp8_qr_skip(r);
    FP8_TRY(fp8_json_get_int(r->json, "num_bits", 1, 64, &bits));
    if (bits != 8) return fp8_qr_refuse(r, "kv_cache_scheme", "not of 8 bits");
done:
    return st;
}

static fp8_status read_kv_algo(fp8_quant_reader *r) {
    char text[FP8_SHOWN_BYTES];
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_qr_text(r, "kv_cache_quant_algo", text));
    if (*text && strcasecmp(text, "FP8") != 0)
        return fp8_qr_refuse(r, "kv_cache_quant_algo", text);
    r->out->kv_fp8 = *text != '\0';
done:
    return st;
}

fp8_status fp8_qr_modelopt_member(fp8_quant_reader *r, const fp8_json_event *key, void *ctx) {
    (void)ctx;
    if (fp8_json_is(key, "quant_algo")) return fp8_qr_text(r, "quant_algo", r->algo);
    if (fp8_json_is(key, "kv_cache_quant_algo")) return read_kv_algo(r);
    if (fp8_json_is(key, "kv_cache_scheme"))
        return fp8_qr_object(r, "kv_cache_scheme", &r->out->kv_fp8, read_kv_member, NULL);
    if (fp8_json_is(key, "ignore") || fp8_json_is(key, "exclude_modules"))
        return fp8_qr_ignore(r);
    return fp8_qr_skip(r);
}

fp8_status fp8_qr_modelopt_judge(fp8_quant_reader *r) {
    r->out->dialect = FP8_DIALECT_MODELOPT;
    if (!*r->algo)
        return FP8_FAIL(FP8_EFORMAT, "%s: quantization_config: quant_algo is missing", r->name);
    if (strcasecmp(r->algo, "FP8") == 0) r->out->scheme = FP8_SCHEME_TENSOR;
    else if (strcasecmp(r->algo, "FP8_PER_CHANNEL_PER_TOKEN") == 0)
        r->out->scheme = FP8_SCHEME_DYNAMIC;
    else return fp8_qr_refuse(r, "quant_algo", r->algo);
    return ignore_lm_head(r);
}
