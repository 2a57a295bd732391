#include "calib/export_files.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Files that belong to a model and are taken along as they are. */
static const char *const companions[] = {
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja"};

fp8_status fp8_export_companions(fp8_checkpoint_writer *w, const fp8_checkpoint *source) {
    fp8_file file = {0};
    char *path = NULL;
    fp8_status st = FP8_OK;

    for (size_t i = 0; i < sizeof companions / sizeof *companions; i++) {
        FP8_TRY(fp8_checkpoint_sibling(&path, source, companions[i]));
        if (!path) continue;
        FP8_TRY(fp8_file_map(&file, path));
        FP8_TRY(fp8_checkpoint_writer_add(w, companions[i], file.data, file.bytes));
        fp8_file_unmap(&file);
        free(path);
        path = NULL;
    }
done:
    fp8_file_unmap(&file);
    free(path);
    return st;
}

static fp8_status add_config(fp8_checkpoint_writer *w, const char *config_path,
                             const char *value) {
    fp8_file file = {0};
    char *text = NULL;
    size_t len = 0;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_file_map(&file, config_path));
    st = value ? fp8_config_insert(&text, &len, config_path, (const char *)file.data, file.bytes,
                                   value)
               : fp8_config_remove(&text, &len, config_path, (const char *)file.data, file.bytes);
    FP8_TRY(st);
    FP8_TRY(fp8_checkpoint_writer_add(w, "config.json", text, len));
done:
    fp8_file_unmap(&file);
    free(text);
    return st;
}

fp8_status fp8_export_config(fp8_checkpoint_writer *w, const char *config_path,
                             const fp8_quant_config *quant) {
    char *value = NULL, *side = NULL;
    fp8_status st = FP8_OK;

    if (quant) FP8_TRY(fp8_quant_config_print(&value, quant));
    if (!config_path)
        FP8_TRY(fp8_checkpoint_writer_add(w, "quantization_config.json", value, strlen(value)));
    else FP8_TRY(add_config(w, config_path, value));
    if (quant) FP8_TRY(fp8_quant_config_print_side(&side, quant));
    if (side) FP8_TRY(fp8_checkpoint_writer_add(w, "hf_quant_config.json", side, strlen(side)));
done:
    free(value);
    free(side);
    return st;
}

fp8_status fp8_export_writer(fp8_checkpoint_writer **out, const char *folder,
                             const fp8_checkpoint *source, const fp8_st_spec *specs,
                             const int64_t *groups, int64_t count, const fp8_st_pair *ours,
                             int64_t num_ours, const fp8_checkpoint_writer_options *how) {
    const fp8_safetensors *first = fp8_checkpoint_shard(source, 0);
    const int64_t num_theirs = fp8_safetensors_metadata_count(first);
    fp8_st_pair *pairs = calloc((size_t)(num_ours + num_theirs) + 1, sizeof *pairs);
    int64_t used = num_theirs;
    fp8_status st;

    if (!pairs) return FP8_FAIL(FP8_ENOMEM, "metadata");
    for (int64_t i = 0; i < num_theirs; i++) {
        fp8_safetensors_metadata_at(first, i, &pairs[i].key, &pairs[i].value);
        for (int64_t k = 0; k < num_ours; k++)
            if (strcmp(pairs[i].key, ours[k].key) == 0) pairs[i] = ours[k];
    }
    for (int64_t k = 0; k < num_ours; k++) {
        int there = 0;
        for (int64_t i = 0; i < num_theirs; i++) there |= strcmp(pairs[i].key, ours[k].key) == 0;
        if (!there) pairs[used++] = ours[k];
    }
    st = fp8_checkpoint_writer_create(out, folder, specs, groups, count, pairs, used, how);
    free(pairs);
    return st;
}

fp8_status fp8_export_check_output(const char *out, const fp8_checkpoint *source) {
    struct stat a, b;

    if (stat(out, &a) == 0 && stat(fp8_checkpoint_folder(source), &b) == 0 &&
        a.st_dev == b.st_dev && a.st_ino == b.st_ino)
        return FP8_FAIL(FP8_EINVAL, "%s: the output would replace its source", out);
    return FP8_OK;
}
