#define _DEFAULT_SOURCE /* realpath */
#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/arena.h"
#include "core/log.h"
#include "formats/checkpoint.h"
#include "formats/file.h"
#include "formats/folder.h"
#include "formats/json_text.h"
#include "formats/new_file.h"
#include "formats/safetensors_impl.h"

enum { NAME_BYTES = 64 }; /* of a shard's file name */

/* Specs [begin, end) make one shard. Its file is opened with its first tensor and closed with its
 * last, so that tensors in spec order need one open file, however many shards there are. */
typedef struct shard {
    int64_t begin, end, num_put;
    fp8_st_writer *writer;
} shard;

struct fp8_checkpoint_writer {
    char *folder;    /* where it will be */
    char *temporary; /* where it is built */
    int lock;        /* descriptor of the temporary folder, or -1 */
    int replace, index;
    fp8_st_spec *specs;
    unsigned char *put; /* [num_specs]: whole */
    size_t *filled;     /* [num_specs]: bytes */
    pthread_mutex_t guard; /* of the shards' state, put, filled and failed, while parts come */
    int64_t num_specs;
    int32_t *shard_of; /* [num_specs] */
    shard *shards;
    int32_t num_shards;
    fp8_st_pair *metadata;
    int64_t num_metadata;
    size_t total_bytes;
    fp8_status failed; /* of a put: nothing more is taken */
    fp8_arena arena;   /* all of the above but the names of folders */
};

/* ---- what is planned ----------------------------------------------------------------------- */

static size_t bytes_of(const fp8_st_spec *spec) {
    size_t bytes = 0;
    /* cannot fail: the specs have been checked */
    return fp8_shape_bytes(&bytes, spec->dtype, spec->shape, spec->ndim) == FP8_OK ? bytes : 0;
}

/* A shard takes whole groups while they fit; one that is larger than a shard has one of its own. */
static fp8_status cut_shards(fp8_checkpoint_writer *w, const int64_t *groups, size_t max_bytes) {
    size_t filled = 0;
    fp8_status st = FP8_OK;

    w->num_shards = 1;
    for (int64_t i = 0, end; i < w->num_specs; i = end) {
        size_t group = 0;
        for (end = i; end < w->num_specs && (end == i || (groups && groups[end] == groups[i]));
             end++)
            FP8_TRY(fp8_add_size(&group, group, bytes_of(&w->specs[end])));
        if (max_bytes > 0 && i > w->shards[w->num_shards - 1].begin &&
            (group > max_bytes || filled > max_bytes - group)) {
            w->shards[w->num_shards++].begin = i;
            filled = 0;
        }
        FP8_TRY(fp8_add_size(&filled, filled, group));
        FP8_TRY(fp8_add_size(&w->total_bytes, w->total_bytes, group));
        w->shards[w->num_shards - 1].end = end;
        for (int64_t k = i; k < end; k++) w->shard_of[k] = w->num_shards - 1;
    }
done:
    return st;
}

static fp8_status copy_plan(fp8_checkpoint_writer *w, const fp8_st_spec *specs, int64_t num_specs,
                            const fp8_st_pair *metadata, int64_t num_metadata) {
    fp8_arena *a = &w->arena;
    const size_t n = (size_t)num_specs, m = (size_t)num_metadata;

    w->num_specs = num_specs;
    w->num_metadata = num_metadata;
    w->specs = fp8_arena_alloc(a, n * sizeof *w->specs);
    w->put = fp8_arena_alloc(a, n);
    w->filled = fp8_arena_alloc(a, n * sizeof *w->filled);
    w->shard_of = fp8_arena_alloc(a, n * sizeof *w->shard_of);
    w->shards = fp8_arena_alloc(a, (n + 1) * sizeof *w->shards);
    w->metadata = fp8_arena_alloc(a, m * sizeof *w->metadata);
    if (!w->specs || !w->put || !w->filled) goto memory;
    if (!w->shard_of || !w->shards || !w->metadata) goto memory;
    for (size_t i = 0; i < n; i++) {
        w->specs[i] = specs[i];
        w->specs[i].name = fp8_arena_copy(a, specs[i].name, strlen(specs[i].name));
        if (!w->specs[i].name) goto memory;
    }
    for (size_t i = 0; i < m; i++) {
        w->metadata[i].key = fp8_arena_copy(a, metadata[i].key, strlen(metadata[i].key));
        w->metadata[i].value = fp8_arena_copy(a, metadata[i].value, strlen(metadata[i].value));
        if (!w->metadata[i].key || !w->metadata[i].value) goto memory;
    }
    return FP8_OK;
memory:
    return FP8_FAIL(FP8_ENOMEM, "%s: no memory for its tensors", w->folder);
}

/* ---- where it goes ------------------------------------------------------------------------- */

/* A folder is replaced only if nothing is in it or a checkpoint is: a wrong path is not to cost
 * somebody's files. */
static fp8_status check_replaceable(const char *folder) {
    DIR *dir = opendir(folder);
    int names = 0, weights = 0;

    if (!dir) return FP8_FAIL_ERRNO(folder, "open");
    for (const struct dirent *e; (e = readdir(dir));) {
        const size_t len = strlen(e->d_name);
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        names++;
        weights += len > 12 && strcmp(e->d_name + len - 12, ".safetensors") == 0;
    }
    closedir(dir);
    if (names == 0 || weights > 0) return FP8_OK;
    return FP8_FAIL(FP8_EEXIST, "%s: a folder with files but no .safetensors among them is not "
                    "replaced", folder);
}

/* The folder's own path: without slashes at the end, and of what a link points to, so that the new
 * one is built beside the old one. */
static fp8_status resolve(fp8_checkpoint_writer *w, const char *folder, int force) {
    size_t len = strlen(folder);
    struct stat info;
    char *real;

    if (len == 0) return FP8_FAIL(FP8_EINVAL, "the output folder's name is empty");
    while (len > 1 && folder[len - 1] == '/') len--;
    w->folder = strndup(folder, len);
    if (!w->folder) return FP8_FAIL(FP8_ENOMEM, "%s: no memory for its name", folder);
    if (lstat(w->folder, &info) != 0) return FP8_OK;
    if (!force) return FP8_FAIL(FP8_EEXIST, "%s: exists already", w->folder);
    if (!fp8_path_is_dir(w->folder))
        return FP8_FAIL(FP8_EEXIST, "%s: expected a folder to replace, found %s", w->folder,
                        S_ISREG(info.st_mode)   ? "a regular file"
                        : S_ISLNK(info.st_mode) ? "a link to no folder"
                                                : "a device, pipe or socket");
    real = realpath(w->folder, NULL);
    if (!real) return FP8_FAIL_ERRNO(w->folder, "resolve");
    free(w->folder);
    w->folder = real;
    return check_replaceable(w->folder);
}

/* ---- the writer ---------------------------------------------------------------------------- */

fp8_status fp8_checkpoint_writer_create(fp8_checkpoint_writer **out, const char *folder,
                                        const fp8_st_spec *specs, const int64_t *groups,
                                        int64_t num_specs, const fp8_st_pair *metadata,
                                        int64_t num_metadata,
                                        const fp8_checkpoint_writer_options *options) {
    const fp8_checkpoint_writer_options none = {0}, *o = options ? options : &none;
    fp8_checkpoint_writer *w = NULL;
    fp8_status st;

    *out = NULL;
    if (num_specs < 0 || num_metadata < 0)
        return FP8_FAIL(FP8_EINVAL, "%s: %lld tensors, %lld metadata", folder, (long long)num_specs,
                        (long long)num_metadata);
    w = calloc(1, sizeof *w);
    if (!w) return FP8_FAIL(FP8_ENOMEM, "%s: no memory to write it", folder);
    w->lock = -1;
    pthread_mutex_init(&w->guard, NULL);
    w->replace = o->force;
    w->index = o->index;
    FP8_TRY(resolve(w, folder, o->force));
    st = fp8_st_check_specs(specs, num_specs);
    if (st == FP8_OK) st = fp8_st_check_metadata(metadata, num_metadata);
    if (st != FP8_OK) FP8_TRY(FP8_FAIL(st, "%s: %s", folder, fp8_last_message()));
    FP8_TRY(copy_plan(w, specs, num_specs, metadata, num_metadata));
    FP8_TRY(cut_shards(w, groups, o->max_shard_bytes));
    FP8_TRY(fp8_folder_create(&w->temporary, &w->lock, w->folder));
    *out = w;
    return FP8_OK;
done:
    fp8_checkpoint_writer_abort(w);
    return st;
}

static const char *shard_name(const fp8_checkpoint_writer *w, int32_t i, char buf[NAME_BYTES]) {
    if (w->num_shards == 1) snprintf(buf, NAME_BYTES, "model.safetensors");
    else snprintf(buf, NAME_BYTES, "model-%05d-of-%05d.safetensors", i + 1, w->num_shards);
    return buf;
}

static fp8_status open_shard(fp8_checkpoint_writer *w, int32_t i) {
    shard *s = &w->shards[i];
    char name[NAME_BYTES];
    char *path = fp8_path_join(w->temporary, shard_name(w, i, name));
    fp8_status st;

    if (!path) return FP8_FAIL(FP8_ENOMEM, "%s: no memory for a path", w->folder);
    st = fp8_st_writer_create(&s->writer, path, w->specs + s->begin, s->end - s->begin, w->metadata,
                              w->num_metadata);
    free(path);
    return st;
}

/* What is put is checked, and its shard is open then. */
static fp8_status begin_part(fp8_checkpoint_writer *w, int64_t i, size_t offset, size_t bytes) {
    const size_t whole = i >= 0 && i < w->num_specs ? bytes_of(&w->specs[i]) : 0;
    fp8_status st = FP8_OK;

    if (w->failed != FP8_OK)
        return FP8_FAIL(w->failed, "%s: an earlier tensor could not be written", w->folder);
    if (i < 0 || i >= w->num_specs)
        return FP8_FAIL(FP8_EINVAL, "%s: tensor %lld of %lld", w->folder, (long long)i,
                        (long long)w->num_specs);
    if (w->put[i])
        return FP8_FAIL(FP8_EINVAL, "%s: '%s' is put twice", w->folder, w->specs[i].name);
    if (offset > whole || bytes > whole - offset)
        return FP8_FAIL(FP8_EINVAL, "%s: '%s': expected at most %zu bytes, found %zu",
                        w->folder, w->specs[i].name, whole, offset + bytes);
    if (!w->shards[w->shard_of[i]].writer) st = open_shard(w, w->shard_of[i]);
    w->failed = st;
    return st;
}

/* Returns the shard's writer when this was its last part: it is to be committed. */
static fp8_st_writer *end_part(fp8_checkpoint_writer *w, int64_t i, size_t bytes) {
    shard *s = &w->shards[w->shard_of[i]];
    fp8_st_writer *writer = s->writer;

    w->filled[i] += bytes;
    if (w->put[i] || w->filled[i] < bytes_of(&w->specs[i])) return NULL;
    w->put[i] = 1;
    if (++s->num_put < s->end - s->begin) return NULL;
    s->writer = NULL; /* freed whatever the commit returns */
    return writer;
}

fp8_status fp8_checkpoint_writer_put_part(fp8_checkpoint_writer *w, int64_t i, size_t offset,
                                          const void *data, size_t bytes) {
    fp8_st_writer *writer = NULL, *last = NULL;
    int64_t at = 0;
    fp8_status st;

    pthread_mutex_lock(&w->guard);
    st = begin_part(w, i, offset, bytes);
    if (st == FP8_OK) {
        writer = w->shards[w->shard_of[i]].writer;
        at = i - w->shards[w->shard_of[i]].begin;
    }
    pthread_mutex_unlock(&w->guard);
    if (st != FP8_OK) return st;
    st = fp8_st_writer_put_part(writer, at, offset, data, bytes);
    pthread_mutex_lock(&w->guard);
    if (st == FP8_OK) last = end_part(w, i, bytes);
    else w->failed = st;
    pthread_mutex_unlock(&w->guard);
    if (!last) return st;
    st = fp8_st_writer_commit(last);
    if (st == FP8_OK) return FP8_OK;
    pthread_mutex_lock(&w->guard);
    w->failed = st;
    pthread_mutex_unlock(&w->guard);
    return st;
}

fp8_status fp8_checkpoint_writer_put(fp8_checkpoint_writer *w, int64_t i, const void *data,
                                     size_t bytes) {
    if (i >= 0 && i < w->num_specs && bytes != bytes_of(&w->specs[i]))
        return FP8_FAIL(FP8_EINVAL, "%s: '%s': expected %zu bytes, found %zu", w->folder,
                        w->specs[i].name, bytes_of(&w->specs[i]), bytes);
    return fp8_checkpoint_writer_put_part(w, i, 0, data, bytes);
}

fp8_status fp8_checkpoint_writer_add(fp8_checkpoint_writer *w, const char *name, const void *data,
                                     size_t bytes) {
    char own[NAME_BYTES];
    char *path = NULL;
    int taken = strcmp(name, "model.safetensors.index.json") == 0;
    fp8_status st = FP8_OK;

    if (*name == '\0' || strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return FP8_FAIL(FP8_EINVAL, "%s: '%s' is not a file name", w->folder, name);
    for (int32_t i = 0; i < w->num_shards; i++) taken |= strcmp(name, shard_name(w, i, own)) == 0;
    path = fp8_path_join(w->temporary, name);
    if (!path) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "%s: no memory for a path", w->folder));
    if (taken || fp8_path_exists(path))
        FP8_TRY(FP8_FAIL(FP8_EINVAL, "%s: there is another '%s' in it", w->folder, name));
    FP8_TRY(fp8_file_write(path, data, bytes));
done:
    free(path);
    return st;
}

/* ---- commit -------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b) {
    const fp8_st_spec *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

/* The index as transformers writes it: sorted names, two spaces. */
static fp8_status add_index(fp8_checkpoint_writer *w) {
    const fp8_st_spec **order = malloc(((size_t)w->num_specs + 1) * sizeof *order);
    fp8_json_text t = {0};
    char *path = fp8_path_join(w->temporary, "model.safetensors.index.json"), name[NAME_BYTES];
    fp8_status st = FP8_OK;

    if (!order || !path) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "%s: no memory for the index", w->folder));
    for (int64_t i = 0; i < w->num_specs; i++) order[i] = &w->specs[i];
    qsort(order, (size_t)w->num_specs, sizeof *order, by_name);
    fp8_json_text_printf(&t, "{\n  \"metadata\": {\n    \"total_size\": %zu\n  },\n",
                         w->total_bytes);
    fp8_json_text_printf(&t, "  \"weight_map\": {");
    for (int64_t i = 0; i < w->num_specs; i++) {
        fp8_json_text_printf(&t, "%s\n    ", i ? "," : "");
        fp8_json_text_string(&t, order[i]->name);
        fp8_json_text_printf(&t, ": \"%s\"",
                             shard_name(w, w->shard_of[order[i] - w->specs], name));
    }
    fp8_json_text_printf(&t, "\n  }\n}\n");
    if (t.failed) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "%s: no memory for the index", w->folder));
    FP8_TRY(fp8_file_write(path, t.data, t.len));
done:
    free(t.data);
    free(path);
    free(order);
    return st;
}

static fp8_status finish(fp8_checkpoint_writer *w) {
    fp8_status st = FP8_OK;

    if (w->failed != FP8_OK)
        return FP8_FAIL(w->failed, "%s: a tensor could not be written", w->folder);
    for (int64_t i = 0; i < w->num_specs; i++)
        if (!w->put[i])
            return FP8_FAIL(FP8_EINVAL, "%s: '%s' was never put", w->folder, w->specs[i].name);
    if (w->num_specs == 0) { /* a file all the same */
        fp8_st_writer *writer;
        FP8_TRY(open_shard(w, 0));
        writer = w->shards[0].writer;
        w->shards[0].writer = NULL;
        FP8_TRY(fp8_st_writer_commit(writer));
    }
    if (w->num_shards > 1 || w->index) FP8_TRY(add_index(w));
done:
    return st;
}

static void release(fp8_checkpoint_writer *w) {
    if (w->lock >= 0) close(w->lock);
    pthread_mutex_destroy(&w->guard);
    fp8_arena_free(&w->arena);
    free(w->temporary);
    free(w->folder);
    free(w);
}

fp8_status fp8_checkpoint_writer_commit(fp8_checkpoint_writer *w) {
    fp8_status st = finish(w);

    if (st != FP8_OK) {
        fp8_checkpoint_writer_abort(w);
        return st;
    }
    /* The temporary folder is whole now: if this fails it is kept. */
    st = fp8_folder_publish(w->temporary, w->folder, w->replace);
    release(w);
    return st;
}

void fp8_checkpoint_writer_abort(fp8_checkpoint_writer *w) {
    if (!w) return;
    for (int32_t i = 0; i < w->num_shards; i++) fp8_st_writer_abort(w->shards[i].writer);
    if (w->temporary && fp8_folder_remove(w->temporary) != FP8_OK)
        fp8_log(FP8_LOG_WARNING, "%s: %s", w->folder, fp8_last_message());
    release(w);
}

const char *fp8_checkpoint_writer_folder(const fp8_checkpoint_writer *w) { return w->temporary; }
