/* cli/cmd_tokenize.c - JSON lines of text to JSON lines of ids, and back. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

typedef struct options {
    cli_common common;
    const char *data, *field;
    int decode;
} options;
static const options defaults = {CLI_COMMON_DEFAULTS, NULL, "text", 0};

static const cli_option table[] = {
    {"--data", 0, CLI_TEXT, offsetof(options, data), "FILE", 1, 0,
     "JSON lines to read; default: standard input"},
    {"--field", 0, CLI_TEXT, offsetof(options, field), "NAME", 1, 0,
     "the key that holds the text"},
    {"--decode", 0, CLI_FLAG, offsetof(options, decode), NULL, 0, 0,
     "ids to text; special tokens are skipped"},
};

/* The member `key` of the object on one line: a string into text, or an array of ids into ids. */
typedef struct line_value {
    char *text;
    size_t len;
    fp8_ids ids;
    int found;
} line_value;

static fp8_status read_text(fp8_json *j, const char *key, line_value *v) {
    fp8_status st = FP8_OK;
    fp8_json_event e;
    FP8_TRY(fp8_json_expect(j, FP8_JSON_STRING, key, &e));
    v->text = malloc(e.len + 1);
    if (!v->text) {
        st = FP8_FAIL(FP8_ENOMEM, "%s: out of memory for %zu bytes", key, e.len);
        goto done;
    }
    memcpy(v->text, e.text, e.len + 1);
    v->len = e.len;
done:
    return st;
}

static fp8_status read_ids(fp8_json *j, line_value *v) {
    fp8_status st = FP8_OK;
    fp8_json_event e;
    FP8_TRY(fp8_json_expect(j, FP8_JSON_ARRAY, "ids", &e));
    for (;;) {
        FP8_TRY(fp8_json_next(j, &e));
        if (e.type == FP8_JSON_ARRAY_END) break;
        if (e.type != FP8_JSON_INT || e.i64 < 0 || e.i64 > INT32_MAX) {
            st = fp8_json_fail(j, e.begin, "ids: expected an integer from 0 to %d, found %s",
                               INT32_MAX, fp8_json_type_name(e.type));
            goto done;
        }
        FP8_TRY(fp8_ids_push(&v->ids, (int32_t)e.i64));
    }
done:
    return st;
}

static fp8_status read_line(line_value *v, const char *name, const char *line, size_t len,
                            const options *o) {
    fp8_status st = FP8_OK;
    fp8_json *j = NULL;
    fp8_json_event e;
    const char *key = o->decode ? "ids" : o->field;
    FP8_TRY(fp8_json_open(&j, name, line, len, NULL));
    FP8_TRY(fp8_json_expect(j, FP8_JSON_OBJECT, "line", &e));
    for (;;) {
        FP8_TRY(fp8_json_key(j, &e));
        if (e.type == FP8_JSON_OBJECT_END) break;
        if (fp8_json_is(&e, key)) {
            FP8_TRY(o->decode ? read_ids(j, v) : read_text(j, key, v));
            v->found = 1;
        } else {
            FP8_TRY(fp8_json_next(j, &e));
            FP8_TRY(fp8_json_skip(j, &e, NULL));
        }
    }
    FP8_TRY(fp8_json_expect(j, FP8_JSON_END, "line", &e));
    if (!v->found) st = FP8_FAIL(FP8_EFORMAT, "%s: no '%s'", name, key);
done:
    fp8_json_close(j);
    return st;
}

static fp8_status print_ids(const fp8_tokenizer *t, const line_value *v) {
    fp8_status st = FP8_OK;
    fp8_ids ids = {0};
    FP8_TRY(fp8_tokenizer_encode(t, &ids, v->text, v->len, FP8_SPECIAL_ADD));
    fputs("{\"ids\":[", stdout);
    for (int64_t i = 0; i < ids.count; i++) printf("%s%d", i ? "," : "", ids.data[i]);
    puts("]}");
done:
    fp8_ids_free(&ids);
    return st;
}

static fp8_status print_text(const fp8_tokenizer *t, const line_value *v) {
    fp8_status st = FP8_OK;
    char *text = NULL, *quoted = NULL;
    size_t len = 0;
    FP8_TRY(fp8_tokenizer_decode(t, &text, &len, v->ids.data, v->ids.count, 1));
    quoted = cli_json_quote(text, len);
    if (!quoted) {
        st = FP8_FAIL(FP8_ENOMEM, "out of memory for a text of %zu bytes", len);
        goto done;
    }
    printf("{\"text\":%s}\n", quoted);
done:
    free(quoted);
    free(text);
    return st;
}

static fp8_status tokenize_line(const fp8_tokenizer *t, const char *name, const char *line,
                                size_t len, const options *o) {
    fp8_status st = FP8_OK;
    line_value v = {0};
    FP8_TRY(read_line(&v, name, line, len, o));
    st = o->decode ? print_text(t, &v) : print_ids(t, &v);
done:
    free(v.text);
    fp8_ids_free(&v.ids);
    return cli_name_culprit(st, name);
}

static fp8_status tokenize_file(const fp8_tokenizer *t, FILE *f, const options *o) {
    const char *path = o->data ? o->data : "standard input";
    fp8_status st = FP8_OK;
    char *line = NULL, name[PATH_MAX];
    size_t cap = 0;
    ssize_t len;
    for (int64_t n = 1; errno = 0, (len = getline(&line, &cap, f)) >= 0; n++) {
        FP8_TRY(cli_check_interrupt());
        if (strspn(line, " \t\r\n") == (size_t)len) continue;
        snprintf(name, sizeof name, "%s, line %lld", path, (long long)n);
        FP8_TRY(tokenize_line(t, name, line, (size_t)len, o));
    }
    FP8_TRY(cli_check_interrupt());
    if (ferror(f)) st = FP8_FAIL(FP8_EIO, "%s: %s", path, strerror(errno));
done:
    free(line);
    return st;
}

static fp8_status run(const void *opts, const cli_list *operands) {
    const options *o = opts;
    fp8_status st = FP8_OK;
    fp8_tokenizer *t = NULL;
    FILE *f = stdin;
    const char *given = operands->items[0];
    char *path = fp8_path_join(fp8_path_is_dir(given) ? given : NULL,
                               fp8_path_is_dir(given) ? "tokenizer.json" : given);
    if (!path) return FP8_FAIL(FP8_ENOMEM, "%s: out of memory", given);
    FP8_TRY(fp8_tokenizer_open(&t, path));
    if (o->data && !(f = fopen(o->data, "rb"))) {
        st = FP8_FAIL(errno == ENOENT ? FP8_ENOTFOUND : FP8_EIO, "%s: %s", o->data,
                      strerror(errno));
        goto done;
    }
    st = tokenize_file(t, f, o);
done:
    if (f && f != stdin) fclose(f);
    fp8_tokenizer_close(t);
    free(path);
    return st;
}

const cli_command cli_cmd_tokenize = {
    .name = "tokenize",
    .purpose = "turn texts into token ids, and back",
    .usage = "TOKENIZER.json [--data FILE] [--decode]",
    .about =
        "Reads JSON lines {\"text\": ...} and prints {\"ids\": [...]} for each, with the\n"
        "special tokens that the tokenizer's post-processor adds; with --decode reads\n"
        "{\"ids\": [...]} and prints {\"text\": ...}. Other keys and blank lines are passed\n"
        "over. TOKENIZER.json may be the folder it lies in. --device, --threads and\n"
        "--json have no effect here.",
    .examples = "  echo '{\"text\": \"Hello\"}' | fp8calib tokenize ./Llama-3-8B\n"
                "  fp8calib tokenize ./Llama-3-8B --decode --data ids.jsonl\n",
    .options = table,
    .num_options = sizeof table / sizeof *table,
    .min_operands = 1,
    .max_operands = 1,
    .operand = "TOKENIZER.json",
    .defaults = &defaults,
    .options_bytes = sizeof defaults,
    .run = run,
};
