/* formats/dialect.c - the table of dialects, and what its ignore lists mean. */
#include "formats/dialect.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include "formats/dialect_pattern.h"

#define HAS(scheme) (1u << FP8_SCHEME_##scheme)

static const fp8_dialect_row rows[FP8_NUM_DIALECTS] = {
    [FP8_DIALECT_COMPRESSED_TENSORS] =
        {
            .name = "compressed-tensors",
            .method = "compressed-tensors",
            .weight = "%s.weight",
            .weight_descale = "%s.weight_scale",
            .input_descale = "%s.input_scale",
            .k_descale = "%s.k_scale",
            .v_descale = "%s.v_scale",
            .q_descale = "%s.q_scale",
            .one_ndim = 1,
            .channel_ndim = 2,
            .schemes = HAS(NONE) | HAS(TENSOR) | HAS(DYNAMIC) | HAS(TENSOR_DYNAMIC) | HAS(BLOCK) |
                       HAS(MX),
            .kv_per_head = 1,
        },
    [FP8_DIALECT_FP8] =
        {
            .name = "fp8",
            .method = "fp8",
            .weight = "%s.weight",
            .weight_descale = "%s.weight_scale",
            .input_descale = "%s.input_scale",
            .k_descale = "%s.k_scale",
            .v_descale = "%s.v_scale",
            .q_descale = "%s.q_scale", /* as vLLM takes it from any checkpoint */
            .schemes = HAS(TENSOR) | HAS(TENSOR_DYNAMIC),
        },
    [FP8_DIALECT_DEEPSEEK] =
        {
            .name = "deepseek",
            .method = "fp8",
            .weight = "%s.weight",
            .weight_descale = "%s.weight_scale_inv",
            .schemes = HAS(BLOCK),
        },
    [FP8_DIALECT_MODELOPT] =
        {
            .name = "modelopt",
            .method = "modelopt",
            .weight = "%s.weight",
            .weight_descale = "%s.weight_scale",
            .input_descale = "%s.input_scale",
            .k_descale = "%s.k_proj.k_scale",
            .v_descale = "%s.v_proj.v_scale",
            .channel_ndim = 1,
            .schemes = HAS(TENSOR) | HAS(DYNAMIC),
        },
};

const fp8_dialect_row *fp8_dialect_get(fp8_dialect d) { return &rows[d]; }

int fp8_dialect_has(fp8_dialect d, fp8_scheme s) { return (rows[d].schemes >> s & 1u) != 0; }

fp8_status fp8_dialect_parse(fp8_dialect *out, const char *name) {
    for (int i = 0; i < FP8_NUM_DIALECTS; i++)
        if (strcmp(name, rows[i].name) == 0) {
            *out = (fp8_dialect)i;
            return FP8_OK;
        }
    return FP8_FAIL(FP8_EINVAL, "dialect '%s': expected compressed-tensors, fp8, deepseek or "
                    "modelopt", name);
}

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
    [FP8_SCHEME_BLOCK] = "block",
    [FP8_SCHEME_MX] = "mxfp8",
};
static const char *const mode_names[] = {"none", "dpa", "mha"};
static const char *const format_names[] = {"e4m3", "hybrid"};

const char *fp8_scheme_name(fp8_scheme s) { return scheme_names[s]; }
const char *fp8_attention_mode_name(fp8_attention_mode m) { return mode_names[m]; }
const char *fp8_fp8_format_name(fp8_fp8_format f) { return format_names[f]; }

fp8_status fp8_scheme_parse(fp8_scheme *out, const char *text) {
    for (int i = FP8_SCHEME_NONE; i < FP8_NUM_SCHEMES; i++)
        if (strcmp(text, scheme_names[i]) == 0) {
            *out = (fp8_scheme)i;
            return FP8_OK;
        }
    return FP8_FAIL(FP8_EINVAL, "scheme '%s': expected none, tensor, dynamic, tensor-dynamic, "
                    "block or mxfp8", text);
}

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

/* ---- the ignore list ------------------------------------------------------------------------- */

/* `module` is what `name` names, or inside it. */
static int is_inside(const char *name, const char *module) {
    const size_t n = strlen(name);
    return strncmp(module, name, n) == 0 && (module[n] == '\0' || module[n] == '.');
}

static int ends_in(const char *name, const char *module) {
    const size_t n = strlen(name), m = strlen(module);
    return m > n && module[m - n - 1] == '.' && strcmp(module + m - n, name) == 0;
}

static int names(fp8_dialect dialect, const char *name, const char *module) {
    if (dialect == FP8_DIALECT_MODELOPT)
        return fnmatch(name, module, 0) == 0 || is_inside(name, module);
    if (dialect != FP8_DIALECT_COMPRESSED_TENSORS)
        return is_inside(name, module) || ends_in(name, module);
    return strncmp(name, "re:", 3) == 0 ? fp8_pattern_match(name + 3, module)
                                        : strcmp(name, module) == 0;
}

int fp8_quant_config_ignores(const fp8_quant_config *q, const char *module) {
    for (int32_t i = 0; i < q->num_ignore; i++)
        if (names(q->dialect, q->ignore[i], module)) return 1;
    return 0;
}

void fp8_quant_config_free(fp8_quant_config *q) {
    for (int32_t i = 0; i < q->num_ignore; i++) free(q->ignore[i]);
    free(q->ignore);
    memset(q, 0, sizeof *q);
}
