/* tests/model_fixture.h - the small checkpoints with oracles (shared/fixtures), and FP8 checkpoints
 * made of them. */
#ifndef FP8_TESTS_MODEL_FIXTURE_H
#define FP8_TESTS_MODEL_FIXTURE_H
#include <string.h>

#include "model/model.h"
#include "quant/cast.h"
#include "tests/check.h"
#include "tests/tiny_checkpoint.h"

enum { FIXTURE_SEQS = 2, FIXTURE_LEN = 47, FIXTURE_TOKENS = FIXTURE_SEQS * FIXTURE_LEN,
       FIXTURE_VOCAB = 512, FIXTURE_GREEDY = 24, FIXTURE_PROMPT = 9, FIXTURE_MAX_AMAX = 64,
       FIXTURE_MAX_LAYERS = 8 };

typedef struct fixture_amax {
    char name[128];
    double value;
} fixture_amax;

typedef struct fixture {
    char folder[4096];
    fp8_checkpoint *checkpoint;
    fp8_safetensors *reference;
    const int32_t *ids;    /* [2, 47] */
    const float *logits;   /* [2, 47, 512] */
    fixture_amax amax[FIXTURE_MAX_AMAX];
    int num_amax;
    double k_amax[FIXTURE_MAX_LAYERS], v_amax[FIXTURE_MAX_LAYERS]; /* by layer */
    int64_t kv_len[FIXTURE_MAX_LAYERS]; /* last positions of each sequence that they cover */
    int32_t greedy[FIXTURE_GREEDY];
    double nll; /* mean over sequence 0's 46 predictions */
} fixture;

/* ---- reference.json -------------------------------------------------------------------------- */

static inline int fixture_parse_amax(fixture *f, fp8_json *j) {
    fp8_json_event e;
    if (fp8_json_expect(j, FP8_JSON_OBJECT, "amax", &e) != FP8_OK) return 0;
    while (fp8_json_key(j, &e) == FP8_OK && e.type == FP8_JSON_KEY) {
        fixture_amax *a = &f->amax[f->num_amax++];
        snprintf(a->name, sizeof a->name, "%s", e.text);
        if (fp8_json_get_number(j, "amax", &a->value) != FP8_OK) return 0;
    }
    return 1;
}

static inline int fixture_parse_kv_layer(fixture *f, fp8_json *j, int layer) {
    fp8_json_event e;
    if (fp8_json_expect(j, FP8_JSON_OBJECT, "layer", &e) != FP8_OK) return 0;
    while (fp8_json_key(j, &e) == FP8_OK && e.type == FP8_JSON_KEY) {
        if (fp8_json_is(&e, "k_shape")) {
            if (fp8_json_next(j, &e) != FP8_OK) return 0;
            for (int i = 0; fp8_json_next(j, &e) == FP8_OK && e.type == FP8_JSON_INT; i++)
                if (i == 2) f->kv_len[layer] = e.i64;
        } else {
            double *to = fp8_json_is(&e, "k_amax") ? f->k_amax : f->v_amax;
            if (fp8_json_get_number(j, "amax", &to[layer]) != FP8_OK) return 0;
        }
    }
    return 1;
}

static inline int fixture_parse_value(fixture *f, fp8_json *j, const fp8_json_event *key) {
    fp8_json_event e;
    if (fp8_json_is(key, "linear_input_amax_fp32")) return fixture_parse_amax(f, j);
    if (fp8_json_is(key, "kv_post_rope_amax_fp32")) {
        if (fp8_json_expect(j, FP8_JSON_OBJECT, "kv", &e) != FP8_OK) return 0;
        while (fp8_json_key(j, &e) == FP8_OK && e.type == FP8_JSON_KEY)
            if (!fixture_parse_kv_layer(f, j, atoi(e.text))) return 0;
        return 1;
    }
    if (fp8_json_is(key, "greedy_after_first_9_ids_of_row_0")) {
        if (fp8_json_next(j, &e) != FP8_OK) return 0;
        for (int i = 0; fp8_json_next(j, &e) == FP8_OK && e.type == FP8_JSON_INT; i++)
            if (i < FIXTURE_GREEDY) f->greedy[i] = (int32_t)e.i64;
        return 1;
    }
    if (fp8_json_is(key, "nll_row0")) return fp8_json_get_number(j, "nll", &f->nll) == FP8_OK;
    return fp8_json_next(j, &e) == FP8_OK && fp8_json_skip(j, &e, NULL) == FP8_OK;
}

static inline int fixture_parse(fixture *f, const char *path) {
    fp8_file file = {0};
    fp8_json *j = NULL;
    fp8_json_event e;
    int ok = fp8_file_map(&file, path) == FP8_OK &&
             fp8_json_open(&j, path, (const char *)file.data, file.bytes, NULL) == FP8_OK &&
             fp8_json_expect(j, FP8_JSON_OBJECT, "reference", &e) == FP8_OK;
    while (ok && fp8_json_key(j, &e) == FP8_OK && e.type == FP8_JSON_KEY)
        ok = fixture_parse_value(f, j, &e);
    fp8_json_close(j);
    fp8_file_unmap(&file);
    return ok;
}

/* ---- fixtures -------------------------------------------------------------------------------- */

static inline void fixture_close(fixture *f) {
    fp8_checkpoint_close(f->checkpoint);
    fp8_safetensors_close(f->reference);
    memset(f, 0, sizeof *f);
}

/* 0 when shared/ is not there, or (a failed check) when the fixture cannot be read. */
static inline int fixture_open(fixture *f, const char *name) {
    char relative[256], path[4200];
    const fp8_st_entry *ids, *logits;
    const char *folder;

    memset(f, 0, sizeof *f);
    snprintf(relative, sizeof relative, "fixtures/%s", name);
    folder = check_data(relative);
    if (!folder) return 0;
    snprintf(f->folder, sizeof f->folder, "%s", folder);
    CHECK_STATUS(fp8_checkpoint_open(&f->checkpoint, f->folder), FP8_OK);
    snprintf(path, sizeof path, "%s/reference.safetensors", f->folder);
    CHECK_STATUS(fp8_safetensors_open(&f->reference, path), FP8_OK);
    if (!f->checkpoint || !f->reference) return 0;
    ids = fp8_safetensors_find(f->reference, "input_ids");
    logits = fp8_safetensors_find(f->reference, "logits_fp32");
    snprintf(path, sizeof path, "%s/reference.json", f->folder);
    CHECK(ids && logits && fixture_parse(f, path));
    if (!ids || !logits) return 0;
    f->ids = ids->tensor.data;
    f->logits = logits->tensor.data;
    return 1;
}

static inline int fixture_is_mixed(const fixture *f) {
    return strstr(f->folder, "mixtral") || strstr(f->folder, "_moe");
}

/* The fixture's two sequences as one batch. */
static inline fp8_batch fixture_batch(const fixture *f) {
    static const int32_t starts[] = {0, FIXTURE_LEN, FIXTURE_TOKENS};
    return (fp8_batch){f->ids, FIXTURE_TOKENS, starts, FIXTURE_SEQS};
}

/* ---- FP8 checkpoints of them ----------------------------------------------------------------- */

static inline double fixture_find_amax(const fixture *f, const char *module) {
    for (int i = 0; i < f->num_amax; i++)
        if (strcmp(f->amax[i].name, module) == 0) return f->amax[i].value;
    return 0.0;
}

/* Not 0: taken for the amax of every weight, so that Linears of one input have one scale, as in our
 * own checkpoints, and can be joined. */
static float fixture_weight_amax;

/* The weight of a Linear becomes E4M3 codes, one descale a tensor or one an output channel. */
static inline void fixture_quantize_linear(tiny *t, const fixture *f, const fp8_linear_info *l) {
    const int64_t outs = t->scheme == TINY_DYNAMIC ? l->out : 1, cols = l->in_out ? l->out : l->in;
    const int64_t n = l->in * l->out;
    float *descales = calloc((size_t)outs, sizeof *descales);
    tiny_tensor *w, *s;
    uint8_t *codes = malloc((size_t)n);

    w = tiny_find(t, tiny_join(l->name, "weight"));
    for (int64_t i = 0; i < n; i++) {
        const int64_t c = outs == 1 ? 0 : l->in_out ? i % cols : i / cols;
        descales[c] = fmaxf(descales[c], fabsf(tiny_get(w, i)) / FP8_E4M3_MAX);
    }
    for (int64_t c = 0; fixture_weight_amax != 0 && c < outs; c++)
        descales[c] = fixture_weight_amax / FP8_E4M3_MAX;
    for (int64_t i = 0; i < n; i++) {
        const int64_t c = outs == 1 ? 0 : l->in_out ? i % cols : i / cols;
        codes[i] = fp8_from_f32(FP8_DTYPE_E4M3, tiny_get(w, i) / descales[c]);
    }
    free(w->data);
    w->data = codes;
    w->bytes = (size_t)n;
    w->spec.dtype = FP8_DTYPE_E4M3;
    s = tiny_add(t, tiny_join(l->name, "weight_scale"), FP8_DTYPE_F32, outs, outs == 1 ? -1 : 1);
    memcpy(s->data, descales, (size_t)outs * sizeof *descales);
    if (t->scheme == TINY_STATIC)
        tiny_add_scale(t, l->name, "input_scale",
                       (float)fixture_find_amax(f, l->name) / FP8_E4M3_MAX);
    free(descales);
}

/* t's config.json: the fixture's, with what t->scheme declares. */
static inline void fixture_set_config(tiny *t, const fixture *f) {
    char path[4200], *text;
    fp8_file json = {0};

    snprintf(path, sizeof path, "%s/config.json", f->folder);
    CHECK_STATUS(fp8_file_map(&json, path), FP8_OK);
    text = strndup((const char *)json.data, json.bytes);
    tiny_set_config(t, text);
    free(text);
    fp8_file_unmap(&json);
}

/* The fixture as an FP8 checkpoint; `strip`: the beginning that names lose, "" for none. STATIC has
 * FP8 queries, keys and values. */
static inline void fixture_quantized(tiny *t, const fixture *f, tiny_scheme scheme,
                                     const char *strip) {
    static fp8_model_config config;
    fp8_linear_info *linears = NULL;
    int64_t count = 0;
    char name[256];

    memset(t, 0, sizeof *t);
    t->scheme = scheme;
    fixture_set_config(t, f);
    CHECK_STATUS(fp8_config_load(&config, f->folder), FP8_OK);
    CHECK_STATUS(fp8_model_list_linears(&linears, &count, &config, f->checkpoint), FP8_OK);
    for (int64_t i = 0; i < fp8_checkpoint_count(f->checkpoint); i++) {
        const fp8_st_entry *e = fp8_checkpoint_at(f->checkpoint, i);
        tiny_tensor *x = tiny_add(t, e->name, e->tensor.dtype, e->tensor.shape[0],
                                  e->tensor.ndim > 1 ? e->tensor.shape[1] : -1);
        memcpy(x->data, e->tensor.data, e->bytes);
    }
    for (int64_t i = 0; scheme != TINY_DENSE && i < count; i++)
        fixture_quantize_linear(t, f, &linears[i]);
    for (int32_t i = 0; scheme == TINY_STATIC && i < config.num_layers; i++) {
        CHECK_STATUS(fp8_model_attention_name(name, sizeof name, &config, f->checkpoint, i),
                     FP8_OK);
        tiny_add_scale(t, name, "q_scale", 16.0f / FP8_E4M3_MAX);
        tiny_add_scale(t, name, "k_scale", (float)f->k_amax[i] / FP8_E4M3_MAX);
        tiny_add_scale(t, name, "v_scale", (float)f->v_amax[i] / FP8_E4M3_MAX);
    }
    for (int64_t i = 0; i < t->count; i++) {
        char *n = t->tensors[i].name;
        const size_t len = strlen(strip);
        if (strncmp(n, strip, len) == 0) memmove(n, n + len, strlen(n + len) + 1);
    }
    free(linears);
}
#endif
