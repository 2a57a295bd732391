/* formats/dialect_reader.h - private: how quantization_config is read, for the files that know one
 * dialect each. */
#ifndef FP8_FORMATS_DIALECT_READER_H
#define FP8_FORMATS_DIALECT_READER_H
#include "formats/dialect.h"
#include "formats/json.h"
#include "formats/utf8.h"

/* What decides of "weights", "input_activations", "kv_cache_scheme". */
typedef struct fp8_quant_args {
    int present, dynamic, has_type;
    char strategy[FP8_SHOWN_BYTES];
    int64_t group_size;
    char block[FP8_SHOWN_BYTES]; /* "128x128" */
    char scale_dtype[FP8_SHOWN_BYTES]; /* "torch.uint8" */
} fp8_quant_args;

typedef struct fp8_quant_reader {
    fp8_json *json;
    const char *name;
    char method[FP8_SHOWN_BYTES], format[FP8_SHOWN_BYTES], status[FP8_SHOWN_BYTES];
    char algo[FP8_SHOWN_BYTES], activations[FP8_SHOWN_BYTES]; /* quant_algo, activation_scheme */
    int num_groups, present; /* present: the key is there and not null */
    int blocks, has_ignore, is_side; /* weight_block_size; a list was read; hf_quant_config.json */
    fp8_quant_args weights, inputs, kv;
    fp8_quant_config *out;
} fp8_quant_reader;

/* Handles the value of `key`, which is good until the value is read. */
typedef fp8_status (*fp8_qr_member_fn)(fp8_quant_reader *r, const fp8_json_event *key, void *ctx);

fp8_status fp8_qr_refuse(const fp8_quant_reader *r, const char *what, const char *found);
fp8_status fp8_qr_wrong_type(fp8_quant_reader *r, const fp8_json_event *e, const char *what,
                             const char *expected);
/* A string, fit to print; "" for null. */
fp8_status fp8_qr_text(fp8_quant_reader *r, const char *what, char buf[FP8_SHOWN_BYTES]);
/* Every member of the object that has just been opened goes to `fn`. */
fp8_status fp8_qr_members(fp8_quant_reader *r, fp8_qr_member_fn fn, void *ctx);
/* An object, or null, which counts as absent. */
fp8_status fp8_qr_object(fp8_quant_reader *r, const char *what, int *present, fp8_qr_member_fn fn,
                         void *ctx);
fp8_status fp8_qr_skip(fp8_quant_reader *r);
/* A list of module names, added to the ignore list. */
fp8_status fp8_qr_ignore(fp8_quant_reader *r);

/* Members of quantization_config and, when all are read, what they mean. */
fp8_status fp8_qr_fp8_member(fp8_quant_reader *r, const fp8_json_event *key, void *ctx);
fp8_status fp8_qr_fp8_judge(fp8_quant_reader *r);
fp8_status fp8_qr_modelopt_member(fp8_quant_reader *r, const fp8_json_event *key, void *ctx);
fp8_status fp8_qr_modelopt_judge(fp8_quant_reader *r);
#endif
