#include "formats/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

#include "core/arena.h"
#include "formats/file.h"
#include "formats/json.h"
#include "formats/names.h"
#include "formats/new_file.h"
#include "formats/safetensors_impl.h"
#include "formats/utf8.h"

struct fp8_checkpoint {
    char *path, *folder;
    fp8_safetensors **shards;
    int32_t num_shards;
    const fp8_st_entry **entries;
    int64_t num_entries;
    fp8_names names;
};

/* weight_map: listed[i].key is in the shard listed[i].value; files are the shards by name. */
typedef struct weight_map {
    fp8_st_pair *listed;
    size_t num_listed, cap_listed;
    const char **files;
    int32_t num_files;
    fp8_names file_numbers;
    fp8_arena strings;
} weight_map;

/* ---- the index ----------------------------------------------------------------------------- */

static fp8_status check_file_name(fp8_json *json, const fp8_json_event *e) {
    char shown[FP8_SHOWN_BYTES];

    if (e->len > 0 && fp8_utf8_printable(e->text, e->len) == e->len && !strstr(e->text, "..") &&
        !strpbrk(e->text, "/\\"))
        return FP8_OK;
    return fp8_json_fail(json, e->begin, "weight_map: '%s' is not the name of a file beside it",
                         fp8_utf8_show(shown, e->text, e->len));
}

static fp8_status read_listed(weight_map *map, fp8_json *json, const char *name) {
    const char *file = NULL;
    fp8_json_event e;
    fp8_status st;

    FP8_TRY(fp8_json_expect(json, FP8_JSON_STRING, "weight_map", &e));
    FP8_TRY(check_file_name(json, &e));
    /* Neighbours mostly share a file: then they share its string. */
    if (map->num_listed > 0 && fp8_json_is(&e, map->listed[map->num_listed - 1].value))
        file = map->listed[map->num_listed - 1].value;
    else file = fp8_arena_copy(&map->strings, e.text, e.len);
    if (!file) return FP8_FAIL(FP8_ENOMEM, "no memory for the index");
    if (map->num_listed == map->cap_listed) {
        const size_t cap = 2 * map->cap_listed + 256;
        fp8_st_pair *listed = realloc(map->listed, cap * sizeof *listed);
        if (!listed) return FP8_FAIL(FP8_ENOMEM, "no memory for the index");
        map->listed = listed;
        map->cap_listed = cap;
    }
    map->listed[map->num_listed++] = (fp8_st_pair){name, file};
done:
    return st;
}

static fp8_status read_weight_map(weight_map *map, fp8_json *json) {
    fp8_json_event e;
    fp8_status st;

    FP8_TRY(fp8_json_expect(json, FP8_JSON_OBJECT, "weight_map", &e));
    for (;;) {
        const char *name;
        FP8_TRY(fp8_json_key(json, &e));
        if (e.type == FP8_JSON_OBJECT_END) break;
        if (fp8_st_check_name(FP8_EFORMAT, e.text, e.len) != FP8_OK)
            return fp8_json_fail(json, e.begin, "weight_map: %s", fp8_last_message());
        name = fp8_arena_copy(&map->strings, e.text, e.len);
        if (!name) return FP8_FAIL(FP8_ENOMEM, "no memory for the index");
        FP8_TRY(read_listed(map, json, name));
    }
done:
    return st;
}

/* The rest of the index, metadata.total_size above all, is not to be relied on and passed over. */
static fp8_status read_index(weight_map *map, const char *path) {
    fp8_file file = {0};
    fp8_json *json = NULL;
    fp8_json_event e;
    fp8_status st;

    FP8_TRY(fp8_file_map(&file, path));
    FP8_TRY(fp8_json_open(&json, path, (const char *)file.data, file.bytes, NULL));
    FP8_TRY(fp8_json_expect(json, FP8_JSON_OBJECT, "the index", &e));
    for (;;) {
        FP8_TRY(fp8_json_key(json, &e));
        if (e.type == FP8_JSON_OBJECT_END) break;
        if (fp8_json_is(&e, "weight_map")) {
            FP8_TRY(read_weight_map(map, json));
        } else {
            FP8_TRY(fp8_json_next(json, &e));
            FP8_TRY(fp8_json_skip(json, &e, NULL));
        }
    }
    if (map->num_listed == 0) st = FP8_FAIL(FP8_EFORMAT, "%s: weight_map names no tensor", path);
done:
    fp8_json_close(json);
    fp8_file_unmap(&file);
    return st;
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The different files of the map, sorted, and the number of each. */
static fp8_status collect_files(weight_map *map) {
    fp8_status st = fp8_names_create(&map->file_numbers, (int64_t)map->num_listed);

    if (st != FP8_OK) return st;
    map->files = malloc(map->num_listed * sizeof *map->files);
    if (!map->files) return FP8_FAIL(FP8_ENOMEM, "no memory for the index");
    for (size_t i = 0; i < map->num_listed; i++)
        if (fp8_names_add(&map->file_numbers, map->listed[i].value, 0) < 0)
            map->files[map->num_files++] = map->listed[i].value;
    qsort(map->files, (size_t)map->num_files, sizeof *map->files, by_text);
    fp8_names_free(&map->file_numbers);
    st = fp8_names_create(&map->file_numbers, map->num_files);
    for (int32_t i = 0; i < map->num_files && st == FP8_OK; i++)
        fp8_names_add(&map->file_numbers, map->files[i], i);
    return st;
}

static void free_map(weight_map *map) {
    fp8_names_free(&map->file_numbers);
    fp8_arena_free(&map->strings);
    free(map->listed);
    free(map->files);
}

/* ---- open ---------------------------------------------------------------------------------- */

static fp8_status open_shard(fp8_checkpoint *c, const char *path) {
    const fp8_status st = fp8_safetensors_open(&c->shards[c->num_shards], path);
    if (st == FP8_OK) c->num_shards++;
    return st;
}

static fp8_status open_single(fp8_checkpoint *c, const char *path) {
    c->shards = calloc(1, sizeof *c->shards);
    if (!c->shards) return FP8_FAIL(FP8_ENOMEM, "%s: no memory to open it", path);
    return open_shard(c, path);
}

static fp8_status check_listed(const fp8_checkpoint *c, const weight_map *map, const char *index) {
    for (size_t i = 0; i < map->num_listed; i++) {
        const char *name = map->listed[i].key, *file = map->listed[i].value;
        const int64_t k = fp8_names_find(&map->file_numbers, file);
        if (!fp8_safetensors_find(c->shards[k], name))
            return FP8_FAIL(FP8_EFORMAT, "%s: weight_map puts '%s' into '%s', which holds no such "
                            "tensor", index, name, file);
    }
    return FP8_OK;
}

static fp8_status open_index(fp8_checkpoint *c, const char *index) {
    weight_map map = {0};
    fp8_status st;

    FP8_TRY(read_index(&map, index));
    FP8_TRY(collect_files(&map));
    c->shards = calloc((size_t)map.num_files, sizeof *c->shards);
    if (!c->shards) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "%s: no memory to open it", index));
    for (int32_t i = 0; i < map.num_files; i++) {
        char *path = fp8_path_join(c->folder, map.files[i]);
        st = path ? open_shard(c, path) : FP8_FAIL(FP8_ENOMEM, "no memory for a shard's path");
        free(path);
        if (st != FP8_OK) FP8_TRY(FP8_FAIL(st, "%s: %s", index, fp8_last_message()));
    }
    FP8_TRY(check_listed(c, &map, index));
done:
    free_map(&map);
    return st;
}

static int has_suffix(const char *text, const char *suffix) {
    const size_t n = strlen(text), m = strlen(suffix);
    return n >= m && strcmp(text + n - m, suffix) == 0;
}

/* The one *.safetensors file of a folder without the usual names; free(). */
static fp8_status find_only_file(const char *folder, char **path) {
    DIR *dir = opendir(folder);
    int found = 0;

    if (!dir) return FP8_FAIL_ERRNO(folder, "open");
    for (const struct dirent *e; (e = readdir(dir));) {
        if (!has_suffix(e->d_name, ".safetensors")) continue;
        if (found++ == 0) *path = fp8_path_join(folder, e->d_name);
    }
    closedir(dir);
    if (found == 1 && *path) return FP8_OK;
    if (found == 1) return FP8_FAIL(FP8_ENOMEM, "%s: no memory for a path", folder);
    return FP8_FAIL(FP8_ENOTFOUND, "%s: expected model.safetensors.index.json, model.safetensors "
                    "or one .safetensors file, found %d of those", folder, found);
}

static fp8_status open_folder(fp8_checkpoint *c) {
    char *index = fp8_path_join(c->folder, "model.safetensors.index.json");
    char *single = fp8_path_join(c->folder, "model.safetensors");
    char *only = NULL;
    fp8_status st;

    if (!index || !single) st = FP8_FAIL(FP8_ENOMEM, "%s: no memory for a path", c->folder);
    else if (fp8_path_exists(index)) st = open_index(c, index);
    else if (fp8_path_exists(single)) st = open_single(c, single);
    else {
        st = find_only_file(c->folder, &only);
        if (st == FP8_OK) st = open_single(c, only);
    }
    free(only);
    free(single);
    free(index);
    return st;
}

static fp8_status fail_twice(const fp8_checkpoint *c, const char *name, int32_t second) {
    int32_t first = 0;
    while (!fp8_safetensors_find(c->shards[first], name)) first++;
    return FP8_FAIL(FP8_EFORMAT, "%s: '%s' is in '%s' too", fp8_safetensors_path(c->shards[second]),
                    name, fp8_safetensors_path(c->shards[first]));
}

/* All tensors of all shards in one list, each name once. */
static fp8_status collect_entries(fp8_checkpoint *c) {
    int64_t n = 0;
    fp8_status st;

    for (int32_t k = 0; k < c->num_shards; k++) n += fp8_safetensors_count(c->shards[k]);
    c->entries = malloc(((size_t)n + 1) * sizeof *c->entries);
    if (!c->entries) return FP8_FAIL(FP8_ENOMEM, "%s: no memory for its tensors", c->path);
    FP8_TRY(fp8_names_create(&c->names, n));
    for (int32_t k = 0; k < c->num_shards; k++)
        for (int64_t i = 0; i < fp8_safetensors_count(c->shards[k]); i++) {
            const fp8_st_entry *e = fp8_safetensors_at(c->shards[k], i);
            if (fp8_names_add(&c->names, e->name, c->num_entries) >= 0)
                return fail_twice(c, e->name, k);
            c->entries[c->num_entries++] = e;
        }
done:
    return st;
}

fp8_status fp8_checkpoint_open(fp8_checkpoint **out, const char *path) {
    const int is_folder = fp8_path_is_dir(path);
    fp8_checkpoint *c = calloc(1, sizeof *c);
    fp8_status st = FP8_OK;

    *out = NULL;
    if (c) {
        c->path = strdup(path);
        c->folder = is_folder ? strdup(path) : fp8_path_folder(path);
    }
    if (!c || !c->path || !c->folder)
        FP8_TRY(FP8_FAIL(FP8_ENOMEM, "%s: no memory to open it", path));
    if (is_folder) FP8_TRY(open_folder(c));
    else if (has_suffix(path, ".json")) FP8_TRY(open_index(c, path));
    else FP8_TRY(open_single(c, path));
    FP8_TRY(collect_entries(c));
    *out = c;
    return FP8_OK;
done:
    fp8_checkpoint_close(c);
    return st;
}

void fp8_checkpoint_close(fp8_checkpoint *c) {
    if (!c) return;
    for (int32_t i = 0; i < c->num_shards; i++) fp8_safetensors_close(c->shards[i]);
    fp8_names_free(&c->names);
    free(c->entries);
    free(c->shards);
    free(c->folder);
    free(c->path);
    free(c);
}

/* ---- what it holds ------------------------------------------------------------------------- */

const char *fp8_checkpoint_path(const fp8_checkpoint *c) { return c->path; }

const char *fp8_checkpoint_folder(const fp8_checkpoint *c) { return c->folder; }

int64_t fp8_checkpoint_count(const fp8_checkpoint *c) { return c->num_entries; }

const fp8_st_entry *fp8_checkpoint_at(const fp8_checkpoint *c, int64_t i) { return c->entries[i]; }

const fp8_st_entry *fp8_checkpoint_find(const fp8_checkpoint *c, const char *name) {
    const int64_t i = fp8_names_find(&c->names, name);
    return i < 0 ? NULL : c->entries[i];
}

int32_t fp8_checkpoint_num_shards(const fp8_checkpoint *c) { return c->num_shards; }

const fp8_safetensors *fp8_checkpoint_shard(const fp8_checkpoint *c, int32_t i) {
    return c->shards[i];
}

const char *fp8_checkpoint_metadata(const fp8_checkpoint *c, const char *key) {
    return fp8_safetensors_metadata(c->shards[0], key);
}

fp8_status fp8_checkpoint_sibling(char **path, const fp8_checkpoint *c, const char *name) {
    char *joined = fp8_path_join(c->folder, name);
    struct stat info;
    fp8_status st = FP8_OK;

    *path = NULL;
    if (!joined) return FP8_FAIL(FP8_ENOMEM, "%s: no memory for the path of %s", c->path, name);
    if (stat(joined, &info) != 0) {
        if (errno != ENOENT && errno != ENOTDIR) st = FP8_FAIL_ERRNO(joined, "stat");
    } else if (S_ISREG(info.st_mode)) {
        *path = joined;
        joined = NULL;
    }
    free(joined);
    return st;
}

size_t fp8_checkpoint_bytes(const fp8_checkpoint *c) {
    size_t bytes = 0;
    for (int32_t i = 0; i < c->num_shards; i++) bytes += fp8_safetensors_file_bytes(c->shards[i]);
    return bytes;
}

/* ---- fingerprint --------------------------------------------------------------------------- */

/* Adds bytes [at, at + n) of all shards' data, one after the other, to a CRC. */
static uint32_t crc_range(const fp8_checkpoint *c, uint32_t crc, size_t at, size_t n) {
    for (int32_t i = 0; i < c->num_shards && n > 0; i++) {
        size_t bytes, part;
        const unsigned char *data = fp8_safetensors_data(c->shards[i], &bytes);
        if (at >= bytes) {
            at -= bytes;
            continue;
        }
        part = bytes - at < n ? bytes - at : n;
        crc = (uint32_t)crc32_z(crc, data + at, part);
        n -= part;
        at = 0;
    }
    return crc;
}

fp8_status fp8_checkpoint_fingerprint(const fp8_checkpoint *c, uint32_t *crc32) {
    enum { SAMPLES = 64, SAMPLE_BYTES = 65536 };
    unsigned char size[8];
    size_t total = 0, bytes;
    uint32_t crc;

    for (int32_t i = 0; i < c->num_shards; i++) {
        fp8_safetensors_data(c->shards[i], &bytes);
        total += bytes;
    }
    for (int i = 0; i < 8; i++) size[i] = (unsigned char)((uint64_t)total >> (8 * i));
    crc = (uint32_t)crc32_z(0, size, sizeof size);
    if (total <= (size_t)SAMPLES * SAMPLE_BYTES) {
        *crc32 = crc_range(c, crc, 0, total);
        return FP8_OK;
    }
    for (size_t i = 0; i < SAMPLES; i++) { /* the first at the start, the last at the end */
        const size_t room = total - SAMPLE_BYTES, last = SAMPLES - 1;
        crc = crc_range(c, crc, room / last * i + room % last * i / last, SAMPLE_BYTES);
    }
    *crc32 = crc;
    return FP8_OK;
}
