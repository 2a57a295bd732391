/* formats/tokenizer.h - tokenizer.json of Hugging Face: byte-level BPE (GPT-2, Llama-3, Qwen) and
 * byte-fallback BPE (Llama-2, Gemma, Metaspace), exactly.
 *
 * Immutable once open: encode and decode are safe from many threads. */
#ifndef FP8_FORMATS_TOKENIZER_H
#define FP8_FORMATS_TOKENIZER_H
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_tokenizer fp8_tokenizer;

/* A growing list of ids; {0} is empty. */
typedef struct fp8_ids {
    int32_t *data;
    int64_t count, cap;
} fp8_ids;
FP8_NODISCARD fp8_status fp8_ids_push(fp8_ids *ids, int32_t id);
FP8_NODISCARD fp8_status fp8_ids_append(fp8_ids *ids, const int32_t *data, int64_t count);
void fp8_ids_free(fp8_ids *ids);

/* FP8_ENOTFOUND, FP8_EIO, FP8_EFORMAT (malformed, or an id from 2^24 on), FP8_EUNSUPPORTED (a
 * model, normalizer, pre-tokenizer, post-processor or decoder we do not implement, by name; a regex
 * in full). The file's truncation and padding are ignored. */
FP8_NODISCARD fp8_status fp8_tokenizer_open(fp8_tokenizer **out, const char *path);
void fp8_tokenizer_close(fp8_tokenizer *t);

/* Largest id + 1, added tokens included. */
int64_t fp8_tokenizer_vocab_size(const fp8_tokenizer *t);

typedef enum fp8_special { FP8_SPECIAL_NONE, FP8_SPECIAL_ADD } fp8_special;

/* Appends the ids of text (UTF-8, may hold NUL) to ids; FP8_SPECIAL_ADD lets the post-processor put
 * its tokens around them. O(n log n). On failure ids is as it was. FP8_EDATA: not UTF-8 (offset
 * named), or a character in no token where the unknown token is none either; FP8_EOVERFLOW: 2 GiB
 * without a place to cut; FP8_ENOMEM. */
FP8_NODISCARD fp8_status fp8_tokenizer_encode(const fp8_tokenizer *t, fp8_ids *ids,
                                              const char *text, size_t len, fp8_special special);

/* *out = the text, NUL-terminated as well, *len bytes; free(). Special tokens are skipped when
 * skip_special. Bytes that make no UTF-8 become U+FFFD. FP8_EDATA: an id outside the vocabulary. */
FP8_NODISCARD fp8_status fp8_tokenizer_decode(const fp8_tokenizer *t, char **out, size_t *len,
                                              const int32_t *ids, int64_t count, int skip_special);

/* The ids the post-processor puts before a text (BOS, mostly); 0 when none. */
int64_t fp8_tokenizer_prefix(const fp8_tokenizer *t, const int32_t **ids);

#ifdef __cplusplus
}
#endif
#endif
