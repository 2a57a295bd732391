/* formats/dialect_print.c - quantization_config as we write it, in each dialect. */
#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "formats/dialect.h"
#include "formats/json_layout.h"

static int add_text(cJSON *array, const char *text) {
    cJSON *item = cJSON_CreateString(text);
    if (item && cJSON_AddItemToArray(array, item)) return 1;
    cJSON_Delete(item);
    return 0;
}

static int add_ignore(cJSON *root, const char *key, const fp8_quant_config *q) {
    cJSON *ignore = cJSON_AddArrayToObject(root, key);

    if (!ignore) return 0;
    for (int32_t i = 0; i < q->num_ignore; i++)
        if (!add_text(ignore, q->ignore[i])) return 0;
    return 1;
}

static int add_pair(cJSON *parent, const char *key, int a, int b) {
    const int pair[] = {a, b};
    cJSON *array = cJSON_CreateIntArray(pair, 2);
    if (array && cJSON_AddItemToObject(parent, key, array)) return 1;
    cJSON_Delete(array);
    return 0;
}

/* ---- compressed-tensors ---------------------------------------------------------------------- */

/* The arguments of one kind of tensor. Newer keys are left out on purpose: older readers refuse any
 * that they do not know. MXFP8 cannot be said without them. */
static int add_args(cJSON *parent, const char *key, const char *strategy, int dynamic,
                    int64_t group) {
    cJSON *a = cJSON_AddObjectToObject(parent, key);

    return a && cJSON_AddNumberToObject(a, "num_bits", 8) &&
           cJSON_AddStringToObject(a, "type", "float") && cJSON_AddTrueToObject(a, "symmetric") &&
           cJSON_AddStringToObject(a, "strategy", strategy) &&
           cJSON_AddBoolToObject(a, "dynamic", dynamic) &&
           (strcmp(strategy, "group") == 0
                ? cJSON_AddNumberToObject(a, "group_size", (double)group)
                : cJSON_AddNullToObject(a, "group_size")) &&
           (strcmp(strategy, "block") == 0
                ? add_pair(a, "block_structure", FP8_DIALECT_BLOCK, FP8_DIALECT_BLOCK)
                : cJSON_AddNullToObject(a, "block_structure") != NULL) &&
           cJSON_AddNullToObject(a, "actorder") &&
           (dynamic ? cJSON_AddNullToObject(a, "observer")
                    : cJSON_AddStringToObject(a, "observer", "minmax")) &&
           cJSON_AddObjectToObject(a, "observer_kwargs") &&
           (group != FP8_DIALECT_MX || (cJSON_AddStringToObject(a, "scale_dtype", "torch.uint8") &&
                                        cJSON_AddStringToObject(a, "zp_dtype", "torch.uint8")));
}

static int add_groups(cJSON *root, fp8_scheme scheme) {
    static const struct {
        const char *weights, *inputs;
        int dynamic;
    } strategies[FP8_NUM_SCHEMES] = {
        [FP8_SCHEME_TENSOR] = {"tensor", "tensor", 0},
        [FP8_SCHEME_DYNAMIC] = {"channel", "token", 1},
        [FP8_SCHEME_TENSOR_DYNAMIC] = {"tensor", "token", 1},
        [FP8_SCHEME_BLOCK] = {"block", "group", 1},
        [FP8_SCHEME_MX] = {"group", "group", 1},
    };
    const int64_t size = scheme == FP8_SCHEME_MX ? FP8_DIALECT_MX : FP8_DIALECT_BLOCK;
    cJSON *groups = cJSON_AddObjectToObject(root, "config_groups"), *group, *targets;

    if (scheme == FP8_SCHEME_NONE) return groups != NULL; /* the KV cache alone */
    group = cJSON_AddObjectToObject(groups, "group_0"); /* the name some readers look for */
    targets = cJSON_AddArrayToObject(group, "targets");
    return targets && add_text(targets, "Linear") &&
           add_args(group, "weights", strategies[scheme].weights, 0, size) &&
           add_args(group, "input_activations", strategies[scheme].inputs,
                    strategies[scheme].dynamic, size) &&
           cJSON_AddNullToObject(group, "output_activations");
}

static int build_compressed_tensors(cJSON *root, const fp8_quant_config *q) {
    const char *format = q->scheme == FP8_SCHEME_NONE ? "dense"
                         : q->scheme == FP8_SCHEME_MX ? "mxfp8-quantized" : "float-quantized";

    if (!add_groups(root, q->scheme) || !cJSON_AddStringToObject(root, "format", format) ||
        !cJSON_AddNullToObject(root, "global_compression_ratio") || !add_ignore(root, "ignore", q))
        return 0;
    if (q->kv_fp8 ? !add_args(root, "kv_cache_scheme", q->kv_per_head ? "attn_head" : "tensor", 0,
                              0)
                  : !cJSON_AddNullToObject(root, "kv_cache_scheme"))
        return 0;
    /* "compressed", never "frozen": transformers left the scales of such checkpoints out. */
    return cJSON_AddStringToObject(root, "quant_method", "compressed-tensors") &&
           cJSON_AddStringToObject(root, "quantization_status", "compressed");
}

/* ---- fp8, deepseek --------------------------------------------------------------------------- */

static int build_fp8(cJSON *root, const fp8_quant_config *q) {
    const char *scheme = q->scheme == FP8_SCHEME_TENSOR ? "static" : "dynamic";

    return cJSON_AddStringToObject(root, "quant_method", "fp8") &&
           cJSON_AddStringToObject(root, "activation_scheme", scheme) &&
           add_ignore(root, "ignored_layers", q) &&
           (!q->kv_fp8 || cJSON_AddStringToObject(root, "kv_cache_scheme", "static"));
}

/* Every reader leaves lm_head alone; only what goes beyond that is listed. */
static int build_deepseek(cJSON *root, const fp8_quant_config *q) {
    const int more = q->num_ignore != 1 || strcmp(q->ignore[0], "lm_head") != 0;

    return cJSON_AddStringToObject(root, "activation_scheme", "dynamic") &&
           cJSON_AddStringToObject(root, "fmt", "e4m3") &&
           (!more || add_ignore(root, "modules_to_not_convert", q)) &&
           cJSON_AddStringToObject(root, "quant_method", "fp8") &&
           (!q->ue8m0 || cJSON_AddStringToObject(root, "scale_fmt", "ue8m0")) &&
           add_pair(root, "weight_block_size", FP8_DIALECT_BLOCK, FP8_DIALECT_BLOCK);
}

/* ---- modelopt -------------------------------------------------------------------------------- */

static int add_short_args(cJSON *parent, const char *key, int dynamic) {
    cJSON *a = cJSON_AddObjectToObject(parent, key);
    return a && cJSON_AddBoolToObject(a, "dynamic", dynamic) &&
           cJSON_AddNumberToObject(a, "num_bits", 8) && cJSON_AddStringToObject(a, "type", "float");
}

/* Readers tell these checkpoints by the producer's name. */
static int add_producer(cJSON *root) {
    cJSON *producer = cJSON_AddObjectToObject(root, "producer");
    return producer && cJSON_AddStringToObject(producer, "name", "modelopt") &&
           cJSON_AddStringToObject(producer, "version", "0.29.0");
}

static const char *algo_of(const fp8_quant_config *q) {
    return q->scheme == FP8_SCHEME_DYNAMIC ? "FP8_PER_CHANNEL_PER_TOKEN" : "FP8";
}

static int build_modelopt(cJSON *root, const fp8_quant_config *q) {
    cJSON *groups = cJSON_AddObjectToObject(root, "config_groups");
    cJSON *group = cJSON_AddObjectToObject(groups, "group_0"), *targets;

    if (!add_short_args(group, "input_activations", q->scheme == FP8_SCHEME_DYNAMIC) ||
        !add_short_args(group, "weights", 0))
        return 0;
    targets = cJSON_AddArrayToObject(group, "targets");
    return targets && add_text(targets, "Linear") && add_ignore(root, "ignore", q) &&
           cJSON_AddStringToObject(root, "quant_algo", algo_of(q)) &&
           (!q->kv_fp8 || add_short_args(root, "kv_cache_scheme", 0)) && add_producer(root) &&
           cJSON_AddStringToObject(root, "quant_method", "modelopt");
}

static int build_modelopt_side(cJSON *root, const fp8_quant_config *q) {
    cJSON *quantization;

    if (!add_producer(root)) return 0;
    quantization = cJSON_AddObjectToObject(root, "quantization");
    return cJSON_AddStringToObject(quantization, "quant_algo", algo_of(q)) &&
           (q->kv_fp8 ? cJSON_AddStringToObject(quantization, "kv_cache_quant_algo", "FP8")
                      : cJSON_AddNullToObject(quantization, "kv_cache_quant_algo")) &&
           add_ignore(quantization, "exclude_modules", q);
}

/* ---- text ------------------------------------------------------------------------------------ */

typedef int (*build_fn)(cJSON *root, const fp8_quant_config *q);

/* Allocated, two spaces a level; NULL: memory. */
static char *pretty(const char *flat) {
    static const fp8_json_style style = {"\n", "  ", 2};
    const size_t len = fp8_json_layout(NULL, flat, strlen(flat), &style, 0);
    char *text = malloc(len + 1);

    if (!text) return NULL;
    fp8_json_layout(text, flat, strlen(flat), &style, 0);
    text[len] = '\0';
    return text;
}

static fp8_status print(char **out, const fp8_quant_config *q, build_fn build) {
    cJSON *root = cJSON_CreateObject();
    char *flat = NULL;

    if (root && build(root, q)) flat = cJSON_PrintUnformatted(root);
    if (flat) *out = pretty(flat);
    cJSON_free(flat);
    cJSON_Delete(root);
    return *out ? FP8_OK : FP8_FAIL(FP8_ENOMEM, "quantization_config");
}

static fp8_status check(const fp8_quant_config *q) {
    const fp8_dialect_row *row = fp8_dialect_get(q->dialect);

    if (q->scheme == FP8_SCHEME_NONE && !q->kv_fp8)
        return FP8_FAIL(FP8_EINVAL, "quantization_config: no Linear is quantized");
    if (!fp8_dialect_has(q->dialect, q->scheme))
        return FP8_FAIL(FP8_EINVAL, "dialect %s has no scheme %s", row->name,
                        fp8_scheme_name(q->scheme));
    if (q->kv_fp8 && !row->k_descale)
        return FP8_FAIL(FP8_EINVAL, "dialect %s has no names for KV scales", row->name);
    if (q->kv_fp8 && q->kv_per_head && !row->kv_per_head)
        return FP8_FAIL(FP8_EINVAL, "dialect %s has no KV scales by head", row->name);
    return FP8_OK;
}

fp8_status fp8_quant_config_print(char **out, const fp8_quant_config *q) {
    static const build_fn builders[FP8_NUM_DIALECTS] = {
        [FP8_DIALECT_COMPRESSED_TENSORS] = build_compressed_tensors,
        [FP8_DIALECT_FP8] = build_fp8,
        [FP8_DIALECT_DEEPSEEK] = build_deepseek,
        [FP8_DIALECT_MODELOPT] = build_modelopt,
    };
    const fp8_status st = check(q);

    *out = NULL;
    return st != FP8_OK ? st : print(out, q, builders[q->dialect]);
}

fp8_status fp8_quant_config_print_side(char **out, const fp8_quant_config *q) {
    const fp8_status st = check(q);

    *out = NULL;
    if (st != FP8_OK || q->dialect != FP8_DIALECT_MODELOPT) return st;
    return print(out, q, build_modelopt_side);
}
