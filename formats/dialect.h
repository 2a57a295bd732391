/* formats/dialect.h - how a quantized checkpoint is spelled on disk: names of scales, which way
 * they multiply, and the JSON that declares them. One table; a dialect is a row.
 *
 * Law: every scale on disk is a descale (code * descale = value), whatever its name says. */
#ifndef FP8_FORMATS_DIALECT_H
#define FP8_FORMATS_DIALECT_H
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#include "core/tensor.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum fp8_dialect { FP8_DIALECT_COMPRESSED_TENSORS, FP8_NUM_DIALECTS } fp8_dialect;

/* Names of one dialect. `%s` is the Linear's name ("model.layers.0.mlp.up_proj") or, for
 * k/v/q, the attention module's ("model.layers.0.self_attn"). NULL: the dialect has no such. */
typedef struct fp8_dialect_row {
    const char *name; /* quant_method: "compressed-tensors" */
    const char *weight, *weight_descale, *input_descale;
    const char *k_descale, *v_descale, *q_descale;
} fp8_dialect_row;

const fp8_dialect_row *fp8_dialect_get(fp8_dialect d);

/* How the Linears are scaled. */
typedef enum fp8_scheme {
    FP8_SCHEME_NONE,          /* weights as they were */
    FP8_SCHEME_TENSOR,        /* static: one descale a weight, one an input */
    FP8_SCHEME_DYNAMIC,       /* one a weight's output channel; one a token, at run time */
    FP8_SCHEME_TENSOR_DYNAMIC /* one descale a weight; one a token, computed at run time */
} fp8_scheme;

typedef enum fp8_attention_mode {
    FP8_ATTENTION_NONE, /* BF16 attention (keys and values may still be stored as FP8) */
    FP8_ATTENTION_DPA,  /* Q, K, V quantized for the two products; output BF16 */
    FP8_ATTENTION_MHA   /* likewise, output quantized with the o_proj input's scale at once */
} fp8_attention_mode;

typedef enum fp8_fp8_format { FP8_FORMAT_E4M3, FP8_FORMAT_HYBRID } fp8_fp8_format;

typedef struct fp8_quant_config {
    fp8_dialect dialect;
    fp8_scheme scheme;
    int kv_fp8;                    /* k_scale and v_scale are there */
    fp8_attention_mode attention;  /* ours: in safetensors __metadata__ "fp8calib.attention" */
    fp8_fp8_format format;         /* ours: "fp8calib.format" */
    char **ignore;                 /* module names or "re:..." patterns kept as they were */
    int32_t num_ignore;
} fp8_quant_config;

/* Reads config.json's "quantization_config". Absent or null: scheme NONE. Unknown keys are passed
 * over; `attention` and `format` are not in it (NONE, E4M3: the model's loader fills them in).
 * FP8_EUNSUPPORTED names the quant_method, format, status, strategy or ignore pattern we do not
 * read; FP8_EFORMAT. The ignore list is allocated; on failure *out is empty. */
FP8_NODISCARD fp8_status fp8_quant_config_parse(fp8_quant_config *out, const char *name,
                                                const char *json, size_t len);
void fp8_quant_config_free(fp8_quant_config *q);

/* The JSON value for "quantization_config", two spaces a level; free(). Only keys that every reader
 * of the dialect knows. FP8_EINVAL: scheme NONE. */
FP8_NODISCARD fp8_status fp8_quant_config_print(char **out, const fp8_quant_config *q);

/* 1 when `module` is named by the ignore list: equal, or a "re:" pattern that matches at its start
 * (the subset: literal characters, `.`, `.*`, `\.`, `^` first, `$` last, `[0-9]+`). */
int fp8_quant_config_ignores(const fp8_quant_config *q, const char *module);

/* A row's pattern with `module` for its %s. FP8_EOVERFLOW: it does not fit; FP8_EINVAL: NULL. */
FP8_NODISCARD fp8_status fp8_dialect_format(char *buf, size_t bytes, const char *pattern,
                                            const char *module);

/* Names of the enums as flags, metadata and reports spell them ("dpa", "hybrid", "tensor-dynamic"),
 * and back: FP8_EINVAL. */
const char *fp8_scheme_name(fp8_scheme s);
const char *fp8_attention_mode_name(fp8_attention_mode m);
const char *fp8_fp8_format_name(fp8_fp8_format f);
FP8_NODISCARD fp8_status fp8_attention_mode_parse(fp8_attention_mode *out, const char *text);
FP8_NODISCARD fp8_status fp8_fp8_format_parse(fp8_fp8_format *out, const char *text);

#ifdef __cplusplus
}
#endif
#endif
