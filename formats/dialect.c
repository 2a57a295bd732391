/* formats/dialect.c - the table of dialects, and quantization_config as we write it. */
#include "formats/dialect.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "formats/dialect_pattern.h"
#include "formats/json_layout.h"

static const fp8_dialect_row rows[FP8_NUM_DIALECTS] = {
    [FP8_DIALECT_COMPRESSED_TENSORS] =
        {
            .name = "compressed-tensors",
            .weight = "%s.weight",
            .weight_descale = "%s.weight_scale",
            .input_descale = "%s.input_scale",
            .k_descale = "%s.k_scale",
            .v_descale = "%s.v_scale",
            .q_descale = "%s.q_scale",
        },
};

const fp8_dialect_row *fp8_dialect_get(fp8_dialect d) { return &rows[d]; }

fp8_status fp8_dialect_format(char *buf, size_t bytes, const char *pattern, const char *module) {
    const char *hole = pattern ? strstr(pattern, "%s") : NULL;
    size_t before, name, after;

    if (!hole)
        return FP8_FAIL(FP8_EINVAL, "%s: this dialect has no such name%s%s", module,
                        pattern ? ": " : "", pattern ? pattern : "");
    before = (size_t)(hole - pattern);
    name = strlen(module);
    after = strlen(hole + 2);
    if (bytes <= before || bytes - before <= name || bytes - before - name <= after)
        return FP8_FAIL(FP8_EOVERFLOW, "%s: name does not fit into %zu bytes", module, bytes);
    memcpy(buf, pattern, before);
    memcpy(buf + before, module, name);
    memcpy(buf + before + name, hole + 2, after + 1);
    return FP8_OK;
}

/* ---- enums ----------------------------------------------------------------------------------- */

static const char *const scheme_names[] = {
    [FP8_SCHEME_NONE] = "none",
    [FP8_SCHEME_TENSOR] = "tensor",
    [FP8_SCHEME_DYNAMIC] = "dynamic",
    [FP8_SCHEME_TENSOR_DYNAMIC] = "tensor-dynamic",
};
static const char *const mode_names[] = {"none", "dpa", "mha"};
static const char *const format_names[] = {"e4m3", "hybrid"};

const char *fp8_scheme_name(fp8_scheme s) { return scheme_names[s]; }
const char *fp8_attention_mode_name(fp8_attention_mode m) { return mode_names[m]; }
const char *fp8_fp8_format_name(fp8_fp8_format f) { return format_names[f]; }

fp8_status fp8_attention_mode_parse(fp8_attention_mode *out, const char *text) {
    for (int i = FP8_ATTENTION_NONE; i <= FP8_ATTENTION_MHA; i++)
        if (strcmp(text, mode_names[i]) == 0) {
            *out = (fp8_attention_mode)i;
            return FP8_OK;
        }
    return FP8_FAIL(FP8_EINVAL, "attention '%s': expected none, dpa or mha", text);
}

fp8_status fp8_fp8_format_parse(fp8_fp8_format *out, const char *text) {
    for (int i = FP8_FORMAT_E4M3; i <= FP8_FORMAT_HYBRID; i++)
        if (strcmp(text, format_names[i]) == 0) {
            *out = (fp8_fp8_format)i;
            return FP8_OK;
        }
    return FP8_FAIL(FP8_EINVAL, "format '%s': expected e4m3 or hybrid", text);
}

/* ---- writing --------------------------------------------------------------------------------- */

/* The arguments of one kind of tensor. Newer keys are left out on purpose: older readers refuse any
 * that they do not know. */
static int add_args(cJSON *parent, const char *key, const char *strategy, int dynamic) {
    cJSON *a = cJSON_AddObjectToObject(parent, key);

    return a && cJSON_AddNumberToObject(a, "num_bits", 8) &&
           cJSON_AddStringToObject(a, "type", "float") && cJSON_AddTrueToObject(a, "symmetric") &&
           cJSON_AddStringToObject(a, "strategy", strategy) &&
           cJSON_AddBoolToObject(a, "dynamic", dynamic) &&
           cJSON_AddNullToObject(a, "group_size") && cJSON_AddNullToObject(a, "block_structure") &&
           cJSON_AddNullToObject(a, "actorder") &&
           (dynamic ? cJSON_AddNullToObject(a, "observer")
                    : cJSON_AddStringToObject(a, "observer", "minmax")) &&
           cJSON_AddObjectToObject(a, "observer_kwargs");
}

static int add_text(cJSON *array, const char *text) {
    cJSON *item = cJSON_CreateString(text);
    if (item && cJSON_AddItemToArray(array, item)) return 1;
    cJSON_Delete(item);
    return 0;
}

static int add_groups(cJSON *root, fp8_scheme scheme) {
    const char *weights = scheme == FP8_SCHEME_DYNAMIC ? "channel" : "tensor";
    const int dynamic = scheme != FP8_SCHEME_TENSOR;
    cJSON *groups = cJSON_AddObjectToObject(root, "config_groups");
    cJSON *group = cJSON_AddObjectToObject(groups, "group_0"); /* the name some readers look for */
    cJSON *targets = cJSON_AddArrayToObject(group, "targets");

    return targets && add_text(targets, "Linear") &&
           add_args(group, "weights", weights, 0) &&
           add_args(group, "input_activations", dynamic ? "token" : "tensor", dynamic) &&
           cJSON_AddNullToObject(group, "output_activations");
}

static int build(cJSON *root, const fp8_quant_config *q) {
    cJSON *ignore;

    if (!add_groups(root, q->scheme) ||
        !cJSON_AddStringToObject(root, "format", "float-quantized") ||
        !cJSON_AddNullToObject(root, "global_compression_ratio"))
        return 0;
    ignore = cJSON_AddArrayToObject(root, "ignore");
    if (!ignore) return 0;
    for (int32_t i = 0; i < q->num_ignore; i++)
        if (!add_text(ignore, q->ignore[i])) return 0;
    if (q->kv_fp8 ? !add_args(root, "kv_cache_scheme", "tensor", 0)
                  : !cJSON_AddNullToObject(root, "kv_cache_scheme"))
        return 0;
    /* "compressed", never "frozen": transformers left the scales of such checkpoints out. */
    return cJSON_AddStringToObject(root, "quant_method", rows[q->dialect].name) &&
           cJSON_AddStringToObject(root, "quantization_status", "compressed");
}

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

fp8_status fp8_quant_config_print(char **out, const fp8_quant_config *q) {
    cJSON *root = NULL;
    char *flat = NULL;

    *out = NULL;
    if (q->scheme == FP8_SCHEME_NONE)
        return FP8_FAIL(FP8_EINVAL, "quantization_config: no Linear is quantized");
    root = cJSON_CreateObject();
    if (root && build(root, q)) flat = cJSON_PrintUnformatted(root);
    if (flat) *out = pretty(flat);
    cJSON_free(flat);
    cJSON_Delete(root);
    return *out ? FP8_OK : FP8_FAIL(FP8_ENOMEM, "quantization_config");
}

/* ---- the ignore list ------------------------------------------------------------------------- */

int fp8_quant_config_ignores(const fp8_quant_config *q, const char *module) {
    for (int32_t i = 0; i < q->num_ignore; i++) {
        const char *name = q->ignore[i];
        if (strncmp(name, "re:", 3) == 0 ? fp8_pattern_match(name + 3, module)
                                         : strcmp(name, module) == 0)
            return 1;
    }
    return 0;
}

void fp8_quant_config_free(fp8_quant_config *q) {
    for (int32_t i = 0; i < q->num_ignore; i++) free(q->ignore[i]);
    free(q->ignore);
    memset(q, 0, sizeof *q);
}
