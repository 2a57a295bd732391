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

typedef enum fp8_dialect {
    FP8_DIALECT_COMPRESSED_TENSORS,
    FP8_DIALECT_FP8,      /* "fp8" of Hugging Face and vLLM: one scale a weight */
    FP8_DIALECT_DEEPSEEK, /* "fp8" with weight_block_size: weight_scale_inv */
    FP8_DIALECT_MODELOPT, /* hf_quant_config.json, and a copy in config.json */
    FP8_NUM_DIALECTS
} fp8_dialect;

/* How the Linears are scaled. */
typedef enum fp8_scheme {
    FP8_SCHEME_NONE,           /* weights as they were */
    FP8_SCHEME_TENSOR,         /* static: one descale a weight, one an input */
    FP8_SCHEME_DYNAMIC,        /* one a weight's output channel; one a token, at run time */
    FP8_SCHEME_TENSOR_DYNAMIC, /* one descale a weight; one a token, computed at run time */
    FP8_SCHEME_BLOCK,          /* one a square of 128 x 128 weights; one a token and 128 columns */
    FP8_SCHEME_MX,             /* MXFP8: one a row and 32 columns of weights, and of inputs, powers
                                * of two; weight and input for products that Hopper has not */
    FP8_NUM_SCHEMES
} fp8_scheme;

enum {
    FP8_DIALECT_BLOCK = 128, /* side of a square of weights that shares a descale */
    FP8_DIALECT_MX = 32      /* columns that do in MXFP8 */
};

/* One dialect. `%s` is the Linear's name ("model.layers.0.mlp.up_proj") or, for k/v/q, the
 * attention module's ("model.layers.0.self_attn"). NULL: the dialect has no such. */
typedef struct fp8_dialect_row {
    const char *name;   /* as flags, reports and messages spell it */
    const char *method; /* quant_method */
    const char *weight, *weight_descale, *input_descale;
    const char *k_descale, *v_descale, *q_descale;
    int32_t one_ndim;     /* rank of a descale that stands alone: 0 [], 1 [1] */
    int32_t channel_ndim; /* of descales by channel: 1 [out], 2 [out, 1] */
    unsigned schemes;     /* 1 << fp8_scheme of each that it can spell; NONE: KV cache alone */
    int kv_per_head;      /* k and v descales may be one a head */
} fp8_dialect_row;

const fp8_dialect_row *fp8_dialect_get(fp8_dialect d);
int fp8_dialect_has(fp8_dialect d, fp8_scheme s);
FP8_NODISCARD fp8_status fp8_dialect_parse(fp8_dialect *out, const char *name); /* FP8_EINVAL */

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
    int kv_per_head;               /* one a head: [heads, 1, 1] */
    int ue8m0;                     /* BLOCK: descales are powers of two */
    int bf16_scales;               /* when written: weight descales as BF16 */
    fp8_attention_mode attention;  /* ours: in safetensors __metadata__ "fp8calib.attention" */
    fp8_fp8_format format;         /* ours: "fp8calib.format" */
    char **ignore;                 /* modules kept as they were, as the dialect spells them */
    int32_t num_ignore;
} fp8_quant_config;

/* Reads config.json's "quantization_config", or ModelOpt's hf_quant_config.json. Absent or null:
 * scheme NONE. Unknown keys are passed over; `attention` and `format` are not in it (NONE, E4M3: a
 * model's loader fills them in). FP8_EUNSUPPORTED names the quant_method, format, status, strategy
 * or ignore pattern we do not read; FP8_EFORMAT. The ignore list is allocated; on failure *out is
 * empty. */
FP8_NODISCARD fp8_status fp8_quant_config_parse(fp8_quant_config *out, const char *name,
                                                const char *json, size_t len);
/* Of the file config_json; where that says nothing, of an hf_quant_config.json beside it.
 * FP8_ENOTFOUND, FP8_EIO. */
FP8_NODISCARD fp8_status fp8_quant_config_load(fp8_quant_config *out, const char *config_json);
void fp8_quant_config_free(fp8_quant_config *q);

/* The JSON value for "quantization_config", two spaces a level; free(). Only keys that every reader
 * of the dialect knows. FP8_EINVAL: nothing is quantized, or not as the dialect can spell it. */
FP8_NODISCARD fp8_status fp8_quant_config_print(char **out, const fp8_quant_config *q);
/* hf_quant_config.json of a ModelOpt checkpoint; *out = NULL for other dialects. */
FP8_NODISCARD fp8_status fp8_quant_config_print_side(char **out, const fp8_quant_config *q);

/* 1 when `module` is named by the ignore list:
 *   compressed-tensors  equal, or a "re:" pattern that matches at its start (the subset: literal
 *                       characters, `.`, `.*`, `\.`, `^` first, `$` last, `[0-9]+`)
 *   fp8, deepseek       equal, a module inside the one named, or the name's last parts
 *   modelopt            a wildcard (fnmatch), or a module inside the one named */
int fp8_quant_config_ignores(const fp8_quant_config *q, const char *module);

/* A row's pattern with `module` for its %s. FP8_EOVERFLOW: it does not fit; FP8_EINVAL: NULL. */
FP8_NODISCARD fp8_status fp8_dialect_format(char *buf, size_t bytes, const char *pattern,
                                            const char *module);

/* Names of the enums as flags, metadata and reports spell them ("dpa", "hybrid", "tensor-dynamic"),
 * and back: FP8_EINVAL. */
const char *fp8_scheme_name(fp8_scheme s);
const char *fp8_attention_mode_name(fp8_attention_mode m);
const char *fp8_fp8_format_name(fp8_fp8_format f);
FP8_NODISCARD fp8_status fp8_scheme_parse(fp8_scheme *out, const char *text);
FP8_NODISCARD fp8_status fp8_attention_mode_parse(fp8_attention_mode *out, const char *text);
FP8_NODISCARD fp8_status fp8_fp8_format_parse(fp8_fp8_format *out, const char *text);

#ifdef __cplusplus
}
#endif
#endif
