/* formats/textdata.h - calibration and evaluation data: text, JSONL, either gzipped, and files of
 * token ids. */
#ifndef FP8_FORMATS_TEXTDATA_H
#define FP8_FORMATS_TEXTDATA_H
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#include "formats/tokenizer.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_text fp8_text;

/* path: *.jsonl / *.json.gz / *.jsonl.gz = one JSON object a line, its string `field`
 * (NULL: "text") is a sample; anything else is one plain text, which is one sample. .gz of both
 * (by content). name-only errors at open: FP8_ENOTFOUND, FP8_EIO. */
FP8_NODISCARD fp8_status fp8_text_open(fp8_text **out, const char *path, const char *field);
/* The same over bytes in memory (kept, not copied): plain text. */
FP8_NODISCARD fp8_status fp8_text_open_memory(fp8_text **out, const char *name, const char *text,
                                              size_t len);
void fp8_text_close(fp8_text *t);

int fp8_text_is_lines(const fp8_text *t); /* 1: JSONL, samples; 0: one stream */

/* Next sample: *text until the next call; *text NULL at the end. FP8_EFORMAT: "file: line 7: ..."
 * (not JSON, no such field, not a string), FP8_EDATA: not UTF-8, truncated gzip. */
FP8_NODISCARD fp8_status fp8_text_next(fp8_text *t, const char **text, size_t *len);

/* Token ids from a file, as sequences: ids[starts[i] .. starts[i+1]).
 *   .bin          raw little-endian u16 when vocab_size <= 65536, else u32; one sequence
 *   .npy          1-D (one sequence) or 2-D integer array, C order, little-endian, v1.0 to v3.0
 *   .safetensors  tensor "input_ids", or the only one; 1-D or 2-D integers
 * Every id must be in [0, vocab_size): FP8_EDATA names file, position, id. Empty: FP8_EDATA. */
typedef struct fp8_id_data {
    fp8_ids ids;
    int64_t *starts; /* num_seqs + 1 */
    int64_t num_seqs;
} fp8_id_data;
FP8_NODISCARD fp8_status fp8_id_data_load(fp8_id_data *out, const char *path, int64_t vocab_size);
void fp8_id_data_free(fp8_id_data *d);

#ifdef __cplusplus
}
#endif
#endif
