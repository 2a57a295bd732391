/* tests/sample_model.h - the model of examples/sample-model, the built-in text as its ids, copies
 * of it with some values changed, and a folder to work in that is gone at the end. */
#ifndef FP8_TESTS_SAMPLE_MODEL_H
#define FP8_TESTS_SAMPLE_MODEL_H
#include <string.h>

#include "calib/calib.h"
#include "tests/check.h"

/* A path below the source tree (CTest says where it is), in a static buffer. */
static inline const char *sample_path(const char *relative) {
    static char path[4096];
    const char *root = getenv("FP8_SOURCE_DIR");
    snprintf(path, sizeof path, "%s/%s", root && *root ? root : ".", relative);
    return path;
}

/* A fresh folder; its content is removed by sample_done. "name" -> "FOLDER/name" in a static buffer
 * of its own for each of the 8 last calls. */
static char sample_folder[] = "/tmp/fp8calib-test-XXXXXX";
static inline void sample_begin(void) {
    if (!mkdtemp(sample_folder)) {
        perror(sample_folder);
        exit(1);
    }
}
static inline const char *sample_file(const char *name) {
    static char paths[8][4096];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", sample_folder, name);
    return path;
}
static inline void sample_done(void) {
    char command[4200];
    snprintf(command, sizeof command, "rm -rf '%s'", sample_folder);
    if (system(command) != 0) fprintf(stderr, "%s stays\n", sample_folder);
}

/* A model with its checkpoint and device. */
typedef struct sample {
    fp8_device *d;
    fp8_checkpoint *c;
    fp8_model *m;
} sample;
static inline void sample_close(sample *s) {
    fp8_model_destroy(s->m);
    fp8_checkpoint_close(s->c);
    fp8_device_destroy(s->d);
    *s = (sample){0};
}
/* folder NULL: the sample model. Ends the program when it cannot be loaded. */
static inline sample sample_open_on(const char *device, const char *folder, int32_t threads,
                                    int64_t max_tokens, fp8_compute compute) {
    const fp8_model_options options = {.compute = compute, .max_tokens = max_tokens};
    sample s = {0};
    if (!folder) folder = sample_path("examples/sample-model");
    if (fp8_device_create(&s.d, device, threads) != FP8_OK ||
        fp8_checkpoint_open(&s.c, folder) != FP8_OK ||
        fp8_model_load(&s.m, s.d, s.c, &options) != FP8_OK) {
        fprintf(stderr, "%s: %s\n", folder, fp8_last_error());
        exit(1);
    }
    return s;
}
static inline sample sample_open(const char *folder, int32_t threads, int64_t max_tokens,
                                 fp8_compute compute) {
    return sample_open_on("cpu", folder, threads, max_tokens, compute);
}

/* Samples of the built-in text by the sample model's tokenizer. */
static inline fp8_samples sample_samples(int64_t seq, int64_t count) {
    size_t len = 0;
    const char *builtin = fp8_builtin_text(&len);
    fp8_tokenizer *t = NULL;
    fp8_text *text = NULL;
    fp8_samples s = {0};
    if (fp8_tokenizer_open(&t, sample_path("examples/sample-model/tokenizer.json")) != FP8_OK ||
        fp8_text_open_memory(&text, "built-in", builtin, len) != FP8_OK ||
        fp8_samples_from_text(&s, text, t, seq, count) != FP8_OK) {
        fprintf(stderr, "built-in text: %s\n", fp8_last_error());
        exit(1);
    }
    fp8_text_close(text);
    fp8_tokenizer_close(t);
    return s;
}

/* The sample model in another folder, each tensor's bytes (a copy) shown to `edit` first. */
typedef void (*sample_edit)(const char *name, void *data, const fp8_st_entry *e);
static inline void sample_copy(const char *folder, sample_edit edit) {
    static const char *const files[] = {"config.json", "tokenizer.json", "generation_config.json"};
    fp8_checkpoint *c = NULL;
    fp8_st_writer *w = NULL;
    fp8_st_spec *specs = NULL;
    char path[4200], command[4300];
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_checkpoint_open(&c, sample_path("examples/sample-model")));
    const int64_t count = fp8_checkpoint_count(c);
    specs = calloc((size_t)count, sizeof *specs);
    for (int64_t i = 0; i < count; i++) {
        const fp8_st_entry *e = fp8_checkpoint_at(c, i);
        specs[i] = (fp8_st_spec){.name = e->name, .dtype = e->tensor.dtype, .ndim = e->tensor.ndim};
        memcpy(specs[i].shape, e->tensor.shape, sizeof specs[i].shape);
    }
    snprintf(command, sizeof command, "mkdir -p '%s'", folder);
    if (system(command) != 0) exit(1);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    FP8_TRY(fp8_st_writer_create(&w, path, specs, count, NULL, 0));
    for (int64_t i = 0; i < count; i++) {
        const fp8_st_entry *e = fp8_checkpoint_at(c, i);
        void *data = malloc(e->bytes);
        memcpy(data, e->tensor.data, e->bytes);
        if (edit) edit(e->name, data, e);
        st = fp8_st_writer_put(w, i, data, e->bytes);
        free(data);
        if (st != FP8_OK) goto done;
    }
    FP8_TRY(fp8_st_writer_commit(w));
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(command, sizeof command, "cp '%s/%s' '%s'",
                 sample_path("examples/sample-model"), files[i], folder);
        if (system(command) != 0) exit(1);
    }
done:
    free(specs);
    fp8_checkpoint_close(c);
    if (st != FP8_OK) {
        fprintf(stderr, "%s: %s\n", folder, fp8_last_error());
        exit(1);
    }
}

/* 1 when both files are there and have the same bytes. */
static inline int sample_same_file(const char *a, const char *b) {
    fp8_file x = {0}, y = {0};
    int same = fp8_file_map(&x, a) == FP8_OK && fp8_file_map(&y, b) == FP8_OK &&
               x.bytes == y.bytes && memcmp(x.data, y.data, x.bytes) == 0;
    fp8_file_unmap(&x);
    fp8_file_unmap(&y);
    return same;
}
#endif
