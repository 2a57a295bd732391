/* tests/tiny_checkpoint.h - checkpoints that a test makes itself: tensors in memory, spoiled at
 * will, then written into a folder of their own. */
#ifndef FP8_TESTS_TINY_CHECKPOINT_H
#define FP8_TESTS_TINY_CHECKPOINT_H
#include <string.h>
#include <sys/stat.h>

#include "core/half.h"
#include "formats/formats.h"
#include "quant/cast.h"
#include "tests/check.h"

typedef enum tiny_scheme {
    TINY_DENSE,
    TINY_STATIC,
    TINY_DYNAMIC,
    TINY_TENSOR_DYNAMIC
} tiny_scheme;

enum { TINY_HIDDEN = 32, TINY_INNER = 48, TINY_VOCAB = 64, TINY_LAYERS = 2 };
enum { TINY_MAX_TENSORS = 512 };

typedef struct tiny_tensor {
    fp8_st_spec spec;
    char name[192];
    unsigned char *data;
    size_t bytes;
} tiny_tensor;

typedef struct tiny {
    tiny_tensor tensors[TINY_MAX_TENSORS];
    int64_t count;
    uint64_t seed;
    const char *attention; /* metadata fp8calib.attention; NULL: not written */
    char *config;          /* config.json; allocated */
    tiny_scheme scheme;
} tiny;

/* "MODULE.PART", in a buffer of its own until the next call. */
static inline const char *tiny_join(const char *module, const char *part) {
    static char name[1024];
    const size_t n = strlen(module), m = strlen(part);
    memcpy(name, module, n);
    name[n] = '.';
    memcpy(name + n + 1, part, m + 1);
    return name;
}

static inline void tiny_free(tiny *t) {
    for (int64_t i = 0; i < t->count; i++) free(t->tensors[i].data);
    free(t->config);
    memset(t, 0, sizeof *t);
}

static inline tiny_tensor *tiny_find(tiny *t, const char *name) {
    for (int64_t i = 0; i < t->count; i++)
        if (strcmp(t->tensors[i].name, name) == 0) return &t->tensors[i];
    return NULL;
}

/* A zeroed tensor, last in the list; cols < 0: a vector. */
static inline tiny_tensor *tiny_add(tiny *t, const char *name, fp8_dtype dtype, int64_t rows,
                                    int64_t cols) {
    const fp8_tensor view = fp8_tensor_view(NULL, dtype, FP8_PLACE_CPU, rows, cols);
    tiny_tensor *x;

    if (t->count == TINY_MAX_TENSORS || strlen(name) >= sizeof x->name) {
        fprintf(stderr, "tiny_checkpoint.h: no room for '%s'\n", name);
        abort();
    }
    x = &t->tensors[t->count++];
    memcpy(x->name, name, strlen(name) + 1);
    x->spec = (fp8_st_spec){.name = x->name, .dtype = dtype, .ndim = view.ndim};
    memcpy(x->spec.shape, view.shape, sizeof view.shape);
    x->bytes = (size_t)fp8_tensor_count(&view) * fp8_dtype_size(dtype);
    x->data = calloc(1, x->bytes);
    return x;
}

static inline void tiny_set(tiny_tensor *x, int64_t i, float v) {
    const uint16_t b = fp8_f32_to_bf16(v), h = fp8_f32_to_f16(v);
    if (x->spec.dtype == FP8_DTYPE_F32) memcpy(x->data + 4 * i, &v, sizeof v);
    if (x->spec.dtype == FP8_DTYPE_BF16) memcpy(x->data + 2 * i, &b, sizeof b);
    if (x->spec.dtype == FP8_DTYPE_F16) memcpy(x->data + 2 * i, &h, sizeof h);
}

/* F32 or BF16. */
static inline float tiny_get(const tiny_tensor *x, int64_t i) {
    uint16_t b;
    float f;
    if (x->spec.dtype == FP8_DTYPE_F32) {
        memcpy(&f, x->data + 4 * i, sizeof f);
        return f;
    }
    memcpy(&b, x->data + 2 * i, sizeof b);
    return fp8_bf16_to_f32(b);
}

/* Values N(0, 1) * spread + offset; E4M3: codes of magnitude below 2. */
static inline void tiny_add_random(tiny *t, const char *name, fp8_dtype dtype, int64_t rows,
                                   int64_t cols, float spread, float offset) {
    tiny_tensor *x = tiny_add(t, name, dtype, rows, cols);
    const int64_t n = (int64_t)(x->bytes / fp8_dtype_size(dtype));
    for (int64_t i = 0; i < n; i++) {
        const float v = check_normal(&t->seed) * spread + offset;
        if (dtype == FP8_DTYPE_E4M3) x->data[i] = (uint8_t)(check_random(&t->seed) & 0xbf);
        else tiny_set(x, i, v);
    }
}

/* "MODULE.PART" = a scale [1]. */
static inline void tiny_add_scale(tiny *t, const char *module, const char *part, float v) {
    tiny_set(tiny_add(t, tiny_join(module, part), FP8_DTYPE_F32, 1, -1), 0, v);
}

/* ---- a tiny llama ---------------------------------------------------------------------------- */

static const char tiny_config[] =
    "{\"model_type\": \"llama\", \"hidden_size\": 32, \"intermediate_size\": 48,"
    " \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2,"
    " \"head_dim\": 16, \"vocab_size\": 64, \"max_position_embeddings\": 128,"
    " \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, \"hidden_act\": \"silu\","
    " \"tie_word_embeddings\": false, \"bos_token_id\": 0, \"eos_token_id\": 1}";

/* t->config = json, with the quantization_config of the scheme. */
static inline void tiny_set_config(tiny *t, const char *json) {
    static const fp8_scheme schemes[] = {[TINY_STATIC] = FP8_SCHEME_TENSOR,
                                         [TINY_DYNAMIC] = FP8_SCHEME_DYNAMIC,
                                         [TINY_TENSOR_DYNAMIC] = FP8_SCHEME_TENSOR_DYNAMIC};
    char lm_head[] = "lm_head", *ignore[] = {lm_head}, *value = NULL;
    const fp8_quant_config quant = {
        .scheme = schemes[t->scheme],
        .kv_fp8 = t->scheme == TINY_STATIC,
        .ignore = ignore,
        .num_ignore = 1,
    };
    char *config = NULL;
    size_t len = 0;

    if (t->scheme == TINY_DENSE) config = strdup(json);
    else {
        CHECK_STATUS(fp8_quant_config_print(&value, &quant), FP8_OK);
        CHECK_STATUS(fp8_config_insert(&config, &len, "config.json", json, strlen(json), value),
                     FP8_OK);
    }
    free(value);
    free(t->config);
    t->config = config;
}

static inline void tiny_add_linear(tiny *t, const char *module, int64_t out, int64_t in,
                                   fp8_dtype dtype) {
    if (t->scheme != TINY_DENSE) dtype = FP8_DTYPE_E4M3;
    tiny_add_random(t, tiny_join(module, "weight"), dtype, out, in, 0.2f, 0.0f);
    if (t->scheme == TINY_STATIC || t->scheme == TINY_TENSOR_DYNAMIC)
        tiny_add_scale(t, module, "weight_scale", 0.15f);
    if (t->scheme == TINY_STATIC) tiny_add_scale(t, module, "input_scale", 0.01f);
    if (t->scheme == TINY_DYNAMIC)
        tiny_add_random(t, tiny_join(module, "weight_scale"), FP8_DTYPE_BF16, out, 1, 0.01f, 0.15f);
}

/* 2 layers, 4 query and 2 key heads of 16, hidden 32, inner 48, vocabulary 64; what is not
 * quantized is of `dtype`. STATIC has FP8 queries, keys and values too. */
static inline void tiny_make(tiny *t, tiny_scheme scheme, fp8_dtype dtype) {
    static const struct {
        const char *part;
        int64_t out, in;
    } linears[] = {
        {"self_attn.q_proj", 64, TINY_HIDDEN},      {"self_attn.k_proj", 32, TINY_HIDDEN},
        {"self_attn.v_proj", 32, TINY_HIDDEN},      {"self_attn.o_proj", TINY_HIDDEN, 64},
        {"mlp.gate_proj", TINY_INNER, TINY_HIDDEN}, {"mlp.up_proj", TINY_INNER, TINY_HIDDEN},
        {"mlp.down_proj", TINY_HIDDEN, TINY_INNER},
    };
    static const char *const norms[] = {"input_layernorm", "post_attention_layernorm"};
    static const char *const scales[] = {"q_scale", "k_scale", "v_scale"};
    char name[128];

    memset(t, 0, sizeof *t);
    t->seed = 42;
    t->scheme = scheme;
    tiny_set_config(t, tiny_config);
    tiny_add_random(t, "model.embed_tokens.weight", dtype, TINY_VOCAB, TINY_HIDDEN, 1.0f, 0.0f);
    tiny_add_random(t, "lm_head.weight", dtype, TINY_VOCAB, TINY_HIDDEN, 0.2f, 0.0f);
    tiny_add_random(t, "model.norm.weight", dtype, TINY_HIDDEN, -1, 0.1f, 1.0f);
    for (int layer = 0; layer < TINY_LAYERS; layer++) {
        for (int i = 0; i < 2; i++) {
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, norms[i]);
            tiny_add_random(t, name, dtype, TINY_HIDDEN, -1, 0.1f, 1.0f);
        }
        for (size_t i = 0; i < sizeof linears / sizeof *linears; i++) {
            snprintf(name, sizeof name, "model.layers.%d.%s", layer, linears[i].part);
            tiny_add_linear(t, name, linears[i].out, linears[i].in, dtype);
        }
        snprintf(name, sizeof name, "model.layers.%d.self_attn", layer);
        for (int i = 0; scheme == TINY_STATIC && i < 3; i++)
            tiny_add_scale(t, name, scales[i], 0.02f);
    }
    /* What no forward needs is passed over. */
    tiny_add_random(t, "model.layers.0.self_attn.rotary_emb.inv_freq", FP8_DTYPE_F32, 8, -1, 1, 0);
}

/* A Linear's FP8 weight becomes the F32 values that its codes and descales stand for. */
static inline void tiny_dequantize(tiny *t, const char *module, int in_out) {
    tiny_tensor *s = tiny_find(t, tiny_join(module, "weight_scale"));
    tiny_tensor *w = tiny_find(t, tiny_join(module, "weight"));
    int64_t n, cols, channels;
    float *values;

    if (!w || !s || w->spec.dtype != FP8_DTYPE_E4M3) return;
    n = (int64_t)w->bytes;
    cols = w->spec.shape[1];
    channels = s->spec.shape[0];
    values = malloc((size_t)n * sizeof *values);
    for (int64_t i = 0; i < n; i++) { /* channels are rows, or columns of an [in, out] weight */
        const int64_t c = channels == 1 ? 0 : in_out ? i % cols : i / cols;
        values[i] = fp8_to_f32(FP8_DTYPE_E4M3, w->data[i]) * tiny_get(s, c);
    }
    free(w->data);
    w->data = (unsigned char *)values;
    w->bytes = (size_t)n * sizeof *values;
    w->spec.dtype = FP8_DTYPE_F32;
}

/* ---- on disk --------------------------------------------------------------------------------- */

/* Writes it into a new folder; returns that folder (static: until the next call). */
static inline const char *tiny_write(const tiny *t) {
    static char folder[256];
    static int serial;
    const fp8_st_pair metadata[] = {{"fp8calib.attention", t->attention}};
    fp8_st_spec specs[TINY_MAX_TENSORS];
    fp8_st_writer *w = NULL;
    char path[300];

    snprintf(folder, sizeof folder, "/tmp/fp8_tiny_%d_%d", (int)getpid(), serial++);
    CHECK(mkdir(folder, 0700) == 0);
    for (int64_t i = 0; i < t->count; i++) {
        specs[i] = t->tensors[i].spec;
        specs[i].name = t->tensors[i].name;
    }
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    CHECK_STATUS(fp8_st_writer_create(&w, path, specs, t->count, metadata, t->attention != NULL),
                 FP8_OK);
    for (int64_t i = 0; w && i < t->count; i++)
        CHECK_STATUS(fp8_st_writer_put(w, i, t->tensors[i].data, t->tensors[i].bytes), FP8_OK);
    if (w) CHECK_STATUS(fp8_st_writer_commit(w), FP8_OK);
    snprintf(path, sizeof path, "%s/config.json", folder);
    CHECK_STATUS(fp8_file_write(path, t->config, strlen(t->config)), FP8_OK);
    return folder;
}

static inline void tiny_remove(const char *folder) {
    char path[300];
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    CHECK(unlink(path) == 0);
    snprintf(path, sizeof path, "%s/config.json", folder);
    CHECK(unlink(path) == 0);
    CHECK(rmdir(folder) == 0);
}
#endif
