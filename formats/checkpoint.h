/* formats/checkpoint.h - a model on disk: one safetensors file or its shards, with the files that
 * lie beside it; and a new one written whole.
 *
 * Read-only handles are safe from many threads. */
#ifndef FP8_FORMATS_CHECKPOINT_H
#define FP8_FORMATS_CHECKPOINT_H
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#include "formats/safetensors.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_checkpoint fp8_checkpoint;

/* path: a .safetensors file, a *.index.json, or a folder that holds model.safetensors.index.json or
 * model.safetensors (or exactly one .safetensors file). Every shard of the index is opened and
 * checked: each listed tensor must be in the shard named, no tensor in two of them (one that is not
 * listed counts too), shard names may hold no path separator; metadata.total_size is not relied on.
 * FP8_ENOTFOUND, FP8_EFORMAT, FP8_EIO. */
FP8_NODISCARD fp8_status fp8_checkpoint_open(fp8_checkpoint **out, const char *path);
void fp8_checkpoint_close(fp8_checkpoint *c);
const char *fp8_checkpoint_path(const fp8_checkpoint *c);   /* as given */
const char *fp8_checkpoint_folder(const fp8_checkpoint *c); /* where config.json would be */
int64_t fp8_checkpoint_count(const fp8_checkpoint *c);
const fp8_st_entry *fp8_checkpoint_at(const fp8_checkpoint *c, int64_t i); /* shard, then offset */
const fp8_st_entry *fp8_checkpoint_find(const fp8_checkpoint *c, const char *name); /* or NULL */
int32_t fp8_checkpoint_num_shards(const fp8_checkpoint *c);
const fp8_safetensors *fp8_checkpoint_shard(const fp8_checkpoint *c, int32_t i);
/* First shard's __metadata__ value, or NULL. */
const char *fp8_checkpoint_metadata(const fp8_checkpoint *c, const char *key);
/* "folder/name" when that regular file exists beside the weights, else NULL; free(). FP8_EIO (the
 * system cannot tell), FP8_ENOMEM. */
FP8_NODISCARD fp8_status fp8_checkpoint_sibling(char **path, const fp8_checkpoint *c,
                                                const char *name);
size_t fp8_checkpoint_bytes(const fp8_checkpoint *c); /* all shards' files together */

/* CRC32 (zlib) over up to 64 evenly spaced 64 KiB samples of all shards' tensor data (everything
 * after the headers), with the total size: tells one source from another without reading it all. */
FP8_NODISCARD fp8_status fp8_checkpoint_fingerprint(const fp8_checkpoint *c, uint32_t *crc32);

/* Writing: a folder that appears whole. Tensors stream in spec order or any other. */
typedef struct fp8_checkpoint_writer fp8_checkpoint_writer;

typedef struct fp8_checkpoint_writer_options {
    size_t max_shard_bytes; /* 0: one file. A group never spans two shards */
    int force; /* replace an existing folder that is empty or holds a .safetensors file */
    /* Write the index of a single file too: vLLM and SGLang load every *.safetensors of a folder
     * that has none, and leave alone what lies beside the weights where it has one. */
    int index;
} fp8_checkpoint_writer_options;

/* specs[i] and groups[i]: tensors of equal consecutive group number stay in one shard (a weight
 * with its scales); groups NULL = each alone. Builds everything in a temporary sibling folder of
 * `folder`. FP8_EEXIST when `folder` exists without force, is nothing that force replaces, or
 * another process is writing it. FP8_ENOTFOUND when its parent does not exist; FP8_EINVAL: names,
 * shapes; FP8_EIO. What a killed process left of `folder` beside it is removed. */
FP8_NODISCARD fp8_status fp8_checkpoint_writer_create(fp8_checkpoint_writer **out,
                                                      const char *folder, const fp8_st_spec *specs,
                                                      const int64_t *groups, int64_t num_specs,
                                                      const fp8_st_pair *metadata,
                                                      int64_t num_metadata,
                                                      const fp8_checkpoint_writer_options *options);
FP8_NODISCARD fp8_status fp8_checkpoint_writer_put(fp8_checkpoint_writer *w, int64_t i,
                                                   const void *data, size_t bytes);
/* A part of tensor i, from byte `offset` on: parts in any order, none twice, from any threads; so
 * may whole tensors be put while threads put parts. Whoever brings the last bytes of a shard waits
 * until it is on the disk. */
FP8_NODISCARD fp8_status fp8_checkpoint_writer_put_part(fp8_checkpoint_writer *w, int64_t i,
                                                        size_t offset, const void *data,
                                                        size_t bytes);
/* Adds a file of this name to the folder: config.json, tokenizer.json, the record ... */
FP8_NODISCARD fp8_status fp8_checkpoint_writer_add(fp8_checkpoint_writer *w, const char *name,
                                                   const void *data, size_t bytes);
/* Writes the index if sharded, syncs, and puts the folder in its place in one rename (an old one is
 * exchanged, then removed). Frees the writer whatever it returns. FP8_EINVAL: a tensor was never
 * put; if only the last rename fails (FP8_EEXIST, FP8_EIO) the whole folder is kept under the name
 * the message says, else nothing stays. */
FP8_NODISCARD fp8_status fp8_checkpoint_writer_commit(fp8_checkpoint_writer *w);
void fp8_checkpoint_writer_abort(fp8_checkpoint_writer *w);
/* Path of the temporary folder, for another writer to put a file into before the commit. */
const char *fp8_checkpoint_writer_folder(const fp8_checkpoint_writer *w);

#ifdef __cplusplus
}
#endif
#endif
