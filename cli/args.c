#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

const cli_option cli_common_options[] = {
    {"--device", 0, CLI_TEXT, offsetof(cli_common, device), "auto|cpu|cuda[:N]", 1, 0,
     "where to compute; auto takes the first CUDA device, or the CPU without one"},
    {"--threads", 0, CLI_INT, offsetof(cli_common, threads), "N", 0, 1024,
     "host threads; default: one a processor"},
    {"--json", 0, CLI_FLAG, offsetof(cli_common, json), NULL, 0, 0, "results as JSON"},
    {"--quiet", 'q', CLI_FLAG, offsetof(cli_common, quiet), NULL, 0, 0,
     "no progress, notes or warnings: stderr stays empty unless the command fails"},
    {"--help", 'h', CLI_FLAG, offsetof(cli_common, help), NULL, 0, 0, "print this manual"},
};
const int32_t cli_num_common_options =
    (int32_t)(sizeof cli_common_options / sizeof *cli_common_options);

/* ---- spelling -------------------------------------------------------------------------------- */

enum { MAX_WORD = 48 };

static int min3(int a, int b, int c) {
    const int m = a < b ? a : b;
    return m < c ? m : c;
}

/* Edits (insert, delete, replace, swap of neighbours) that turn a into b. */
static int edit_distance(const char *a, const char *b) {
    int d[MAX_WORD + 1][MAX_WORD + 1];
    const int n = (int)strlen(a), m = (int)strlen(b);
    for (int i = 0; i <= n; i++) d[i][0] = i;
    for (int j = 0; j <= m; j++) d[0][j] = j;
    for (int i = 1; i <= n; i++)
        for (int j = 1; j <= m; j++) {
            const int differ = a[i - 1] != b[j - 1];
            d[i][j] = min3(d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + differ);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                d[i][j] = min3(d[i][j], d[i - 2][j - 2] + 1, d[i][j]);
        }
    return d[n][m];
}

const char *cli_nearest(const char *word, const char *const *words, int32_t count) {
    const size_t len = strlen(word);
    const char *best = NULL;
    int least = (int)(len + 2) / 3 + 1; /* an edit every three letters is still a typo */
    if (len > MAX_WORD) return NULL;
    for (int32_t i = 0; i < count; i++) {
        const int d = strlen(words[i]) > MAX_WORD ? least : edit_distance(word, words[i]);
        if (d >= least) continue;
        least = d;
        best = words[i];
    }
    return best;
}

/* ---- values ---------------------------------------------------------------------------------- */

static int is_digit(char c) { return c >= '0' && c <= '9'; }

static fp8_status set_int(int64_t *out, const cli_option *o, const char *text) {
    char *end = NULL;
    long long v;
    errno = 0;
    v = strtoll(text, &end, 10);
    if (!(is_digit(text[0]) || (text[0] == '-' && is_digit(text[1]))) || *end || errno ||
        v < o->lo || v > o->hi)
        return FP8_FAIL(FP8_EINVAL, "%s '%s': expected an integer from %lld to %lld", o->name, text,
                        (long long)o->lo, (long long)o->hi);
    *out = v;
    return FP8_OK;
}

/* Digits and a point alone: no sign, exponent, NaN or hexadecimal. */
static fp8_status set_real(double *out, const cli_option *o, const char *text) {
    char *end = NULL;
    const double v = strtod(text, &end);
    if (!is_digit(text[0]) || text[strspn(text, "0123456789.")] || *end || v < (double)o->lo ||
        v > (double)o->hi)
        return FP8_FAIL(FP8_EINVAL, "%s '%s': expected a number from %lld to %lld", o->name, text,
                        (long long)o->lo, (long long)o->hi);
    *out = v;
    return FP8_OK;
}

static const struct {
    const char *suffix;
    uint64_t unit;
} units[] = {
    {"", 1},
    {"KB", 1000},
    {"MB", 1000000},
    {"GB", 1000000000},
    {"TB", 1000000000000},
    {"KiB", UINT64_C(1) << 10},
    {"MiB", UINT64_C(1) << 20},
    {"GiB", UINT64_C(1) << 30},
    {"TiB", UINT64_C(1) << 40},
};

static fp8_status set_bytes(size_t *out, const cli_option *o, const char *text) {
    char *end = NULL;
    unsigned long long v;
    size_t i = 0;
    const size_t num_units = sizeof units / sizeof *units;
    errno = 0;
    v = strtoull(text, &end, 10);
    while (i < num_units && strcmp(end, units[i].suffix) != 0) i++;
    if (!is_digit(text[0]) || errno || i == num_units || v == 0 || v > SIZE_MAX / units[i].unit)
        return FP8_FAIL(FP8_EINVAL, "%s '%s': expected a size such as 500MB, 5GB or 4GiB", o->name,
                        text);
    *out = (size_t)v * (size_t)units[i].unit;
    return FP8_OK;
}

static fp8_status set_choice(const char **out, const cli_option *o, const char *text) {
    const size_t len = strlen(text);
    for (const char *p = o->value; p; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL)
        if (strcspn(p, "|") == len && memcmp(p, text, len) == 0) {
            *out = text;
            return FP8_OK;
        }
    return FP8_FAIL(FP8_EINVAL, "%s '%s': expected %s", o->name, text, o->value);
}

static fp8_status set_list(cli_list *out, const char *text, int32_t cap, fp8_arena *arena) {
    if (!out->items) out->items = fp8_arena_alloc(arena, (size_t)cap * sizeof *out->items);
    if (!out->items) return FP8_FAIL(FP8_ENOMEM, "command line: out of memory");
    out->items[out->count++] = text;
    return FP8_OK;
}

static fp8_status set_value(char *options, const cli_option *o, const char *text, int argc,
                            fp8_arena *arena) {
    void *field = options + o->offset;
    switch (o->kind) {
    case CLI_FLAG: *(int *)field = 1; return FP8_OK;
    case CLI_TEXT:
        if ((int64_t)strlen(text) < o->lo)
            return FP8_FAIL(FP8_EINVAL, "%s: expected %s, found nothing", o->name, o->value);
        *(const char **)field = text;
        return FP8_OK;
    case CLI_LIST: return set_list(field, text, argc, arena);
    case CLI_INT: return set_int(field, o, text);
    case CLI_REAL: return set_real(field, o, text);
    case CLI_BYTES: return set_bytes(field, o, text);
    case CLI_CHOICE: return set_choice(field, o, text);
    }
    return FP8_OK;
}

/* ---- the command line ------------------------------------------------------------------------ */

/* Option i of the command: its own, then the common ones. NULL past the last. */
static const cli_option *option_at(const cli_command *cmd, int32_t i) {
    if (i < cmd->num_options) return &cmd->options[i];
    i -= cmd->num_options;
    return i < cli_num_common_options ? &cli_common_options[i] : NULL;
}

/* arg is "--name", "--name=value" or "-x"; len is that of the name. */
static const cli_option *find_option(const cli_command *cmd, const char *arg, size_t len) {
    const cli_option *o;
    for (int32_t i = 0; (o = option_at(cmd, i)); i++) {
        if (strlen(o->name) == len && memcmp(o->name, arg, len) == 0) return o;
        if (len == 2 && o->letter && arg[1] == o->letter) return o;
    }
    return NULL;
}

static fp8_status fail_unknown(const cli_command *cmd, const char *arg, size_t len) {
    const char *names[64], *near;
    char word[MAX_WORD + 2];
    int32_t count = 0;
    const cli_option *o;
    while (count < 64 && (o = option_at(cmd, count))) names[count++] = o->name;
    memcpy(word, arg, len < sizeof word ? len : sizeof word - 1);
    word[len < sizeof word ? len : sizeof word - 1] = 0;
    near = cli_nearest(word, names, count);
    if (near)
        return FP8_FAIL(FP8_EINVAL, "%s: unknown option '%.*s'; did you mean '%s'?", cmd->name,
                        (int)len, arg, near);
    return FP8_FAIL(FP8_EINVAL, "%s: unknown option '%.*s'; 'fp8calib help %s' lists them",
                    cmd->name, (int)len, arg, cmd->name);
}

/* Takes argv[*at] and, where it needs one, the value after it. */
static fp8_status take_option(void *options, const cli_command *cmd, int argc, char **argv, int *at,
                              fp8_arena *arena) {
    const char *arg = argv[*at];
    const size_t len = strncmp(arg, "--", 2) == 0 ? strcspn(arg, "=") : strlen(arg);
    const cli_option *o = find_option(cmd, arg, len);
    const char *value = arg[len] == '=' ? arg + len + 1 : NULL;
    if (!o) return fail_unknown(cmd, arg, len);
    if (o->kind == CLI_FLAG && value)
        return FP8_FAIL(FP8_EINVAL, "%s: takes no value, found '%s'", o->name, value);
    if (o->kind != CLI_FLAG && !value) {
        if (*at + 1 >= argc)
            return FP8_FAIL(FP8_EINVAL, "%s: expected %s after it, found nothing", o->name,
                            o->value);
        value = argv[++*at];
    }
    return set_value(options, o, value, argc, arena);
}

static fp8_status check_operands(const cli_command *cmd, const cli_list *operands) {
    if (operands->count < cmd->min_operands)
        return FP8_FAIL(FP8_EINVAL, "%s: expected %s, found nothing; usage: fp8calib %s %s",
                        cmd->name, cmd->operand, cmd->name, cmd->usage);
    if (operands->count > cmd->max_operands)
        return FP8_FAIL(FP8_EINVAL, "%s: unexpected operand '%s', at most %d; usage: fp8calib %s "
                        "%s", cmd->name, operands->items[cmd->max_operands],
                        (int)cmd->max_operands, cmd->name, cmd->usage);
    for (int32_t i = 0; i < operands->count; i++)
        if (!*operands->items[i])
            return FP8_FAIL(FP8_EINVAL, "%s: expected %s, found an empty name", cmd->name,
                            cmd->operand);
    return FP8_OK;
}

fp8_status cli_parse(void *options, cli_list *operands, const cli_command *cmd, int argc,
                     char **argv, fp8_arena *arena) {
    fp8_status st = FP8_OK;
    int only_operands = 0;
    *operands = (cli_list){0};
    for (int i = 0; i < argc; i++) {
        const char *arg = argv[i];
        if (only_operands || arg[0] != '-' || !arg[1])
            FP8_TRY(set_list(operands, arg, argc, arena));
        else if (strcmp(arg, "--") == 0)
            only_operands = 1;
        else
            FP8_TRY(take_option(options, cmd, argc, argv, &i, arena));
    }
    if (!((const cli_common *)options)->help) st = check_operands(cmd, operands);
done:
    return st;
}
