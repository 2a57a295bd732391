/* cli/cmd_inspect.c - what is in a checkpoint. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static const cli_common defaults = CLI_COMMON_DEFAULTS;

/* Tensors that hold descales, by the dialect's own names. */
enum { NUM_ROLES = 5 };
typedef struct role {
    const char *suffix; /* ".weight_scale" */
    int64_t tensors;
    float min, max; /* over all of them */
} role;

typedef struct inspection {
    const char *path;
    fp8_checkpoint *checkpoint;
    int has_config;
    char unsupported[512]; /* why config.json tells nothing, if so */
    fp8_model_config config;
    fp8_quant_config quant;
    role roles[NUM_ROLES];
    int64_t tensors_of[FP8_NUM_DTYPES], elements_of[FP8_NUM_DTYPES];
    size_t bytes_of[FP8_NUM_DTYPES], bytes;
} inspection;

static int ends_with(const char *text, const char *end) {
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

static void name_roles(inspection *in) {
    const fp8_dialect_row *row = fp8_dialect_get(in->quant.dialect);
    const char *const patterns[NUM_ROLES] = {row->weight_descale, row->input_descale,
                                             row->k_descale, row->v_descale, row->q_descale};
    for (int i = 0; i < NUM_ROLES; i++)
        if (patterns[i]) in->roles[i].suffix = patterns[i] + strlen("%s");
}

static role *find_role(inspection *in, const char *name) {
    for (int i = 0; i < NUM_ROLES; i++)
        if (in->roles[i].suffix && ends_with(name, in->roles[i].suffix)) return &in->roles[i];
    return NULL;
}

/* 1 when the tensor holds descales: its smallest and largest; NaN counts as neither. */
static int value_range(const fp8_tensor *t, float *min, float *max) {
    const int64_t n = fp8_tensor_count(t);
    if (!fp8_descale_dtype(t->dtype)) return 0;
    *min = INFINITY;
    *max = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        const float x = fp8_descale_at(t, i);
        if (x < *min) *min = x;
        if (x > *max) *max = x;
    }
    return n > 0;
}

static void count_tensor(inspection *in, const fp8_st_entry *e) {
    role *r = find_role(in, e->name);
    float min, max;
    in->tensors_of[e->tensor.dtype]++;
    in->elements_of[e->tensor.dtype] += fp8_tensor_count(&e->tensor);
    in->bytes_of[e->tensor.dtype] += e->bytes;
    in->bytes += e->bytes;
    if (!r || !value_range(&e->tensor, &min, &max)) return;
    if (r->tensors == 0 || min < r->min) r->min = min;
    if (r->tensors == 0 || max > r->max) r->max = max;
    r->tensors++;
}

/* The two choices that config.json has no words for. */
static fp8_status read_metadata(inspection *in) {
    fp8_status st = FP8_OK;
    const char *attention = fp8_checkpoint_metadata(in->checkpoint, "fp8calib.attention");
    const char *format = fp8_checkpoint_metadata(in->checkpoint, "fp8calib.format");
    if (attention) FP8_TRY(fp8_attention_mode_parse(&in->quant.attention, attention));
    if (format) FP8_TRY(fp8_fp8_format_parse(&in->quant.format, format));
done:
    return st;
}

static fp8_status inspect(inspection *in) {
    fp8_status st = FP8_OK;
    fp8_file file = {0};
    char *path = NULL;
    FP8_TRY(fp8_checkpoint_open(&in->checkpoint, in->path));
    FP8_TRY(fp8_checkpoint_sibling(&path, in->checkpoint, "config.json"));
    if (!path) goto done;
    FP8_TRY(fp8_file_map(&file, path));
    FP8_TRY(fp8_config_parse(&in->config, path, (const char *)file.data, file.bytes));
    FP8_TRY(fp8_quant_config_load(&in->quant, path));
    FP8_TRY(read_metadata(in));
    in->has_config = 1;
done:
    fp8_file_unmap(&file);
    free(path);
    if (st != FP8_OK && st != FP8_EUNSUPPORTED) return st;
    if (st != FP8_OK) snprintf(in->unsupported, sizeof in->unsupported, "%s", fp8_last_message());
    if (!in->checkpoint) return st;
    name_roles(in); /* of a configuration that cannot be read the tensors are shown all the same */
    for (int64_t i = 0; i < fp8_checkpoint_count(in->checkpoint); i++)
        count_tensor(in, fp8_checkpoint_at(in->checkpoint, i));
    return FP8_OK;
}

/* ---- for people ------------------------------------------------------------------------------ */

static void print_tensor(inspection *in, const fp8_st_entry *e) {
    const int is_descale = find_role(in, e->name) != NULL;
    char shape[160], bytes[32];
    float min, max;
    printf("%-52s %-8s %-16s %10s", e->name, fp8_dtype_name(e->tensor.dtype),
           fp8_shape_text(shape, sizeof shape, e->tensor.shape, e->tensor.ndim),
           cli_bytes_text(bytes, sizeof bytes, e->bytes));
    if (is_descale && value_range(&e->tensor, &min, &max)) {
        if (fp8_tensor_count(&e->tensor) == 1) printf("  %.6g", (double)min);
        else printf("  %.6g .. %.6g", (double)min, (double)max);
    }
    putchar('\n');
}

static void print_config(const inspection *in) {
    const fp8_model_config *c = &in->config;
    if (!in->has_config) {
        printf("model          %s\n", *in->unsupported ? in->unsupported : "no config.json");
        return;
    }
    printf("model          %s, %lld layers, hidden %lld, heads %lld/%lld of %lld, mlp %lld, "
           "vocabulary %lld\n",
           c->model_type, (long long)c->num_layers, (long long)c->hidden_size,
           (long long)c->num_heads, (long long)c->num_kv_heads, (long long)c->head_dim,
           (long long)c->intermediate_size, (long long)c->vocab_size);
    if (in->quant.scheme == FP8_SCHEME_NONE && !in->quant.kv_fp8) {
        printf("quantization   none\n");
        return;
    }
    printf("quantization   %s, %s; KV cache %s, attention %s, format %s\n",
           fp8_dialect_get(in->quant.dialect)->name, fp8_scheme_name(in->quant.scheme),
           !in->quant.kv_fp8 ? "not quantized" : in->quant.kv_per_head ? "fp8 by head" : "fp8",
           fp8_attention_mode_name(in->quant.attention),
           fp8_fp8_format_name(in->quant.format));
}

static void print_text(inspection *in) {
    char bytes[32];
    for (int64_t i = 0; i < fp8_checkpoint_count(in->checkpoint); i++)
        print_tensor(in, fp8_checkpoint_at(in->checkpoint, i));
    putchar('\n');
    print_config(in);
    for (int i = 0; i < NUM_ROLES; i++)
        if (in->roles[i].tensors)
            printf("%-14s %.6g .. %.6g over %lld tensors\n", in->roles[i].suffix + 1,
                   (double)in->roles[i].min, (double)in->roles[i].max,
                   (long long)in->roles[i].tensors);
    for (int t = 0; t < FP8_NUM_DTYPES; t++)
        if (in->tensors_of[t])
            printf("%-14s %lld tensors, %lld elements, %s\n", fp8_dtype_name((fp8_dtype)t),
                   (long long)in->tensors_of[t], (long long)in->elements_of[t],
                   cli_bytes_text(bytes, sizeof bytes, in->bytes_of[t]));
    printf("total          %lld tensors, %s in %d file%s\n",
           (long long)fp8_checkpoint_count(in->checkpoint),
           cli_bytes_text(bytes, sizeof bytes, in->bytes),
           fp8_checkpoint_num_shards(in->checkpoint),
           fp8_checkpoint_num_shards(in->checkpoint) == 1 ? "" : "s");
}

/* ---- for programs ---------------------------------------------------------------------------- */

static fp8_status add_tensor(cJSON *list, inspection *in, const fp8_st_entry *e) {
    cJSON *row = cJSON_CreateObject(), *shape;
    float min, max;
    cJSON_AddItemToArray(list, row);
    cJSON_AddStringToObject(row, "dtype", fp8_dtype_name(e->tensor.dtype));
    shape = cJSON_AddArrayToObject(row, "shape");
    for (int32_t i = 0; i < e->tensor.ndim; i++)
        cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)e->tensor.shape[i]));
    cJSON_AddNumberToObject(row, "bytes", (double)e->bytes);
    if (find_role(in, e->name) && value_range(&e->tensor, &min, &max)) {
        cJSON_AddNumberToObject(row, "min", (double)min);
        cJSON_AddNumberToObject(row, "max", (double)max);
    }
    return cli_json_add_text(row, "name", e->name, strlen(e->name));
}

static void add_config(cJSON *doc, const inspection *in) {
    cJSON *model = cJSON_AddObjectToObject(doc, "model"), *quant;
    cJSON_AddStringToObject(model, "model_type", in->config.model_type);
    cJSON_AddNumberToObject(model, "num_layers", (double)in->config.num_layers);
    cJSON_AddNumberToObject(model, "hidden_size", (double)in->config.hidden_size);
    cJSON_AddNumberToObject(model, "intermediate_size", (double)in->config.intermediate_size);
    cJSON_AddNumberToObject(model, "num_heads", (double)in->config.num_heads);
    cJSON_AddNumberToObject(model, "num_kv_heads", (double)in->config.num_kv_heads);
    cJSON_AddNumberToObject(model, "head_dim", (double)in->config.head_dim);
    cJSON_AddNumberToObject(model, "vocab_size", (double)in->config.vocab_size);
    quant = cJSON_AddObjectToObject(doc, "quantization");
    cJSON_AddStringToObject(quant, "scheme", fp8_scheme_name(in->quant.scheme));
    if (in->quant.scheme == FP8_SCHEME_NONE && !in->quant.kv_fp8) return;
    cJSON_AddStringToObject(quant, "dialect", fp8_dialect_get(in->quant.dialect)->name);
    cJSON_AddStringToObject(quant, "kv", in->quant.kv_fp8 ? "fp8" : "none");
    cJSON_AddStringToObject(quant, "attention", fp8_attention_mode_name(in->quant.attention));
    cJSON_AddStringToObject(quant, "format", fp8_fp8_format_name(in->quant.format));
}

static void add_totals(cJSON *doc, const inspection *in) {
    cJSON *descales = cJSON_AddObjectToObject(doc, "descales"), *totals, *row;
    for (int i = 0; i < NUM_ROLES; i++) {
        if (!in->roles[i].tensors) continue;
        row = cJSON_AddObjectToObject(descales, in->roles[i].suffix + 1);
        cJSON_AddNumberToObject(row, "tensors", (double)in->roles[i].tensors);
        cJSON_AddNumberToObject(row, "min", (double)in->roles[i].min);
        cJSON_AddNumberToObject(row, "max", (double)in->roles[i].max);
    }
    totals = cJSON_AddObjectToObject(doc, "totals");
    for (int t = 0; t < FP8_NUM_DTYPES; t++) {
        if (!in->tensors_of[t]) continue;
        row = cJSON_AddObjectToObject(totals, fp8_dtype_name((fp8_dtype)t));
        cJSON_AddNumberToObject(row, "tensors", (double)in->tensors_of[t]);
        cJSON_AddNumberToObject(row, "elements", (double)in->elements_of[t]);
        cJSON_AddNumberToObject(row, "bytes", (double)in->bytes_of[t]);
    }
    cJSON_AddNumberToObject(doc, "bytes", (double)in->bytes);
    cJSON_AddNumberToObject(doc, "files", fp8_checkpoint_num_shards(in->checkpoint));
}

static fp8_status print_json(inspection *in) {
    fp8_status st = FP8_OK;
    cJSON *doc = cJSON_CreateObject(), *list;
    FP8_TRY(cli_json_add_text(doc, "path", in->path, strlen(in->path)));
    if (in->has_config) add_config(doc, in);
    if (*in->unsupported)
        FP8_TRY(cli_json_add_text(doc, "unsupported", in->unsupported, strlen(in->unsupported)));
    add_totals(doc, in);
    list = cJSON_AddArrayToObject(doc, "tensors");
    for (int64_t i = 0; i < fp8_checkpoint_count(in->checkpoint); i++)
        FP8_TRY(add_tensor(list, in, fp8_checkpoint_at(in->checkpoint, i)));
    st = cli_json_print(doc);
done:
    cJSON_Delete(doc);
    return st;
}

static fp8_status run(const void *opts, const cli_list *operands) {
    const cli_common *common = opts;
    fp8_status st = FP8_OK;
    inspection *in = calloc(1, sizeof *in);
    if (!in) return FP8_FAIL(FP8_ENOMEM, "inspect: out of memory");
    in->path = operands->items[0];
    FP8_TRY(inspect(in));
    if (common->json)
        st = print_json(in);
    else
        print_text(in);
done:
    fp8_quant_config_free(&in->quant);
    fp8_checkpoint_close(in->checkpoint);
    free(in);
    return st;
}

const cli_command cli_cmd_inspect = {
    .name = "inspect",
    .purpose = "show a checkpoint: tensors, dtypes, shapes, scales, totals",
    .usage = "MODEL [--json]",
    .about =
        "Checks every file of the checkpoint as a loader would, then lists its tensors\n"
        "(name, dtype, shape, bytes; value or range of those that hold scales), how it\n"
        "is quantized, the range of each kind of scale over all layers, and totals by\n"
        "dtype. A scale on disk is a descale: code * descale = value. config.json may be\n"
        "missing, or that of a model which fp8calib cannot run. --device and --threads\n"
        "have no effect here.",
    .examples = "  fp8calib inspect ./Llama-3-8B-FP8\n"
                "  fp8calib inspect model.safetensors --json\n",
    .options = NULL,
    .num_options = 0,
    .min_operands = 1,
    .max_operands = 1,
    .operand = "MODEL",
    .defaults = &defaults,
    .options_bytes = sizeof defaults,
    .run = run,
};
