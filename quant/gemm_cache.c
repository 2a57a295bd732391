/* Timed choices as a file:
 *
 *   fp8calib-gemm-cache 1
 *   device CAPABILITY LIBRARY NAME
 *   M N K BATCH A B D BIAS RESIDUAL LAYOUT SCALING ACCUMULATION GELU AMAX WORKSPACE NS W0 .. W7
 *   end COUNT
 *
 * Fields are apart by one space; dtypes by their names, - for none; the words are 16 hexadecimal
 * digits; choices belong to the device line above them. The last line shows that nothing was cut
 * off. */
#include "quant/gemm_cache.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LINE = 512, NUM_FIELDS = 16 + FP8_ALGO_WORDS };
static const int64_t MAX_SIZE = INT64_C(1) << 40;
static const char magic[] = "fp8calib-gemm-cache 1";

static const char *const layouts[] = {"nk", "kn"};
static const char *const scalings[] = {"none", "scalar", "outer", "blocks"};
static const char *const accumulations[] = {"exact", "fast"};
static const char *const gelus[] = {"-", "gelu"};
static const char *const amaxes[] = {"-", "amax"};

/* ---- the list -------------------------------------------------------------------------------- */

static int compare_i64(int64_t a, int64_t b) { return (a > b) - (a < b); }

/* Without m, by which find() looks for neighbours. */
static int compare_rest(const fp8_algo_key *x, const fp8_algo_key *y) {
    const int64_t a[] = {x->capability, x->library, x->n, x->k, x->batch, x->a, x->b, x->d, x->bias,
                         x->residual, x->b_is_kn, x->scaling, x->fast, x->gelu, x->amax};
    const int64_t b[] = {y->capability, y->library, y->n, y->k, y->batch, y->a, y->b, y->d, y->bias,
                         y->residual, y->b_is_kn, y->scaling, y->fast, y->gelu, y->amax};
    int order = strcmp(x->device, y->device);
    for (size_t i = 0; i < sizeof a / sizeof *a && order == 0; i++) order = compare_i64(a[i], b[i]);
    return order;
}

static int compare_keys(const fp8_algo_key *x, const fp8_algo_key *y) {
    const int order = compare_rest(x, y);
    return order ? order : compare_i64(x->m, y->m);
}

static int compare_entries(const void *x, const void *y) {
    return compare_keys(&((const fp8_algo_entry *)x)->key, &((const fp8_algo_entry *)y)->key);
}

static fp8_status append(fp8_algo_list *l, const fp8_algo_entry *e) {
    if (l->count == l->capacity) {
        const int64_t capacity = l->capacity ? 2 * l->capacity : 64;
        fp8_algo_entry *items = realloc(l->items, (size_t)capacity * sizeof *items);
        if (!items) return FP8_FAIL(FP8_ENOMEM, "gemm cache: %lld entries", (long long)capacity);
        l->items = items;
        l->capacity = capacity;
    }
    l->items[l->count++] = *e;
    return FP8_OK;
}

fp8_status fp8_algo_list_put(fp8_algo_list *l, const fp8_algo_entry *e) {
    for (int64_t i = 0; i < l->count; i++)
        if (compare_keys(&l->items[i].key, &e->key) == 0) {
            l->items[i] = *e;
            return FP8_OK;
        }
    return append(l, e);
}

void fp8_algo_list_free(fp8_algo_list *l) {
    free(l->items);
    *l = (fp8_algo_list){0};
}

const fp8_algo_entry *fp8_algo_list_find(const fp8_algo_list *l, const fp8_algo_key *key) {
    const int64_t most = key->m < 8 ? 16 : 2 * key->m;
    const fp8_algo_entry *best = NULL;

    for (int64_t i = 0; i < l->count; i++) {
        const fp8_algo_entry *e = &l->items[i];
        if (e->key.m < key->m || e->key.m > most || (best && best->key.m <= e->key.m) ||
            compare_rest(&e->key, key) != 0)
            continue;
        best = e;
    }
    return best;
}

/* ---- reading --------------------------------------------------------------------------------- */

typedef struct reader {
    const char *name;
    int64_t line;
    const char *at, *end;
    char text[MAX_LINE]; /* the line, cut into fields */
} reader;

static fp8_status bad(const reader *r, const char *what) {
    return FP8_FAIL(FP8_EFORMAT, "%s:%lld: %s", r->name, (long long)r->line, what);
}

static fp8_status next_line(reader *r) {
    const size_t left = (size_t)(r->end - r->at);
    const char *newline = left ? memchr(r->at, '\n', left) : NULL;
    size_t bytes;

    r->line++;
    if (!newline) return bad(r, left ? "the last line has no end" : "no line 'end COUNT'");
    bytes = (size_t)(newline - r->at);
    if (bytes >= MAX_LINE) return bad(r, "longer than 511 characters");
    for (size_t i = 0; i < bytes; i++)
        if (r->at[i] < ' ' || r->at[i] > '~') return bad(r, "not printable ASCII");
    memcpy(r->text, r->at, bytes);
    r->text[bytes] = 0;
    r->at = newline + 1;
    return FP8_OK;
}

/* Decimal digits alone. 1 when it is one and lies in [low, high]. */
static int parse_number(int64_t *out, const char *text, int64_t low, int64_t high) {
    int64_t value = 0;
    if (!*text) return 0;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || value > high) return 0;
        value = value * 10 + (*text - '0');
    }
    *out = value;
    return value >= low && value <= high;
}

static int parse_word(uint64_t *out, const char *text) {
    uint64_t value = 0;
    if (strlen(text) != 16) return 0;
    for (; *text; text++) {
        const char *digits = "0123456789abcdef", *digit = strchr(digits, *text);
        if (!digit) return 0;
        value = value << 4 | (uint64_t)(digit - digits);
    }
    *out = value;
    return 1;
}

static int parse_name(int32_t *out, const char *text, const char *const *names, int32_t count) {
    for (*out = 0; *out < count; (*out)++)
        if (strcmp(text, names[*out]) == 0) return 1;
    return 0;
}

static int parse_type(fp8_dtype *out, const char *text, int may_be_absent) {
    if (may_be_absent && strcmp(text, "-") == 0) {
        *out = FP8_NUM_DTYPES;
        return 1;
    }
    if (fp8_dtype_parse(out, text, strlen(text)) != FP8_OK) return 0;
    return *out == FP8_DTYPE_E4M3 || *out == FP8_DTYPE_E5M2 || *out == FP8_DTYPE_BF16 ||
           *out == FP8_DTYPE_F16 || *out == FP8_DTYPE_F32;
}

/* The text up to the next space, which *at moves past; NULL when none is left. */
static char *take(char **at) {
    char *field = *at, *space = field ? strchr(field, ' ') : NULL;
    if (space) *space = 0;
    *at = space ? space + 1 : NULL;
    return field;
}

static fp8_status parse_device(const reader *r, char *at, fp8_algo_key *key) {
    const char *capability_text = take(&at), *library = take(&at);
    int64_t capability = 0;

    if (!capability_text || !library || !at || !*at)
        return bad(r, "expected 'device CAPABILITY LIBRARY NAME'");
    if (!parse_number(&capability, capability_text, 1, 999))
        return bad(r, "the device's capability is not a number from 1 to 999");
    if (!parse_number(&key->library, library, 1, INT32_MAX))
        return bad(r, "the library's version is not a number");
    if (strlen(at) >= sizeof key->device) return bad(r, "the device's name is too long");
    key->capability = (int32_t)capability;
    memset(key->device, 0, sizeof key->device);
    memcpy(key->device, at, strlen(at));
    return FP8_OK;
}

/* Fields 0 to 3. */
static int parse_sizes(char **f, fp8_algo_key *k) {
    return parse_number(&k->m, f[0], 1, MAX_SIZE) && parse_number(&k->n, f[1], 1, MAX_SIZE) &&
           parse_number(&k->k, f[2], 1, MAX_SIZE) && parse_number(&k->batch, f[3], 1, MAX_SIZE);
}

/* Fields 4 to 8. */
static int parse_types(char **f, fp8_algo_key *k) {
    return parse_type(&k->a, f[4], 0) && parse_type(&k->b, f[5], 0) && parse_type(&k->d, f[6], 0) &&
           parse_type(&k->bias, f[7], 1) && parse_type(&k->residual, f[8], 1);
}

/* Fields 9 to 13. */
static int parse_modes(char **f, fp8_algo_key *k) {
    return parse_name(&k->b_is_kn, f[9], layouts, 2) &&
           parse_name(&k->scaling, f[10], scalings, 4) &&
           parse_name(&k->fast, f[11], accumulations, 2) && parse_name(&k->gelu, f[12], gelus, 2) &&
           parse_name(&k->amax, f[13], amaxes, 2);
}

/* Fields 14 to the end. */
static int parse_algo(char **f, fp8_algo *a) {
    if (!parse_number(&a->workspace_bytes, f[14], 0, MAX_SIZE) ||
        !parse_number(&a->ns, f[15], 0, MAX_SIZE))
        return 0;
    for (int i = 0; i < FP8_ALGO_WORDS; i++)
        if (!parse_word(&a->words[i], f[16 + i])) return 0;
    return 1;
}

static fp8_status parse_entry(const reader *r, char *at, fp8_algo_entry *e) {
    char *fields[NUM_FIELDS];

    if (!e->key.device[0]) return bad(r, "a choice before any 'device' line");
    for (int i = 0; i < NUM_FIELDS; i++) {
        fields[i] = take(&at);
        if (!fields[i]) return bad(r, "expected 24 fields, fewer were found");
    }
    if (at) return bad(r, "expected 24 fields, more were found");
    if (!parse_sizes(fields, &e->key)) return bad(r, "sizes (fields 1 to 4) out of range");
    if (!parse_types(fields, &e->key)) return bad(r, "unknown dtype (fields 5 to 9)");
    if (!parse_modes(fields, &e->key)) return bad(r, "unknown word (fields 10 to 14)");
    if (!parse_algo(fields, &e->algo))
        return bad(r, "workspace, time and algorithm (fields 15 to 24) are not numbers");
    return FP8_OK;
}

static fp8_status parse_lines(reader *r, fp8_algo_list *found) {
    fp8_algo_entry e = {0};
    int64_t count = 0;
    fp8_status st;

    FP8_TRY(next_line(r));
    if (strcmp(r->text, magic) != 0) {
        st = bad(r, "not a gemm cache of this version: expected 'fp8calib-gemm-cache 1'");
        goto done;
    }
    for (;;) {
        FP8_TRY(next_line(r));
        if (strncmp(r->text, "end ", 4) == 0) break;
        if (strncmp(r->text, "device ", 7) == 0) {
            FP8_TRY(parse_device(r, r->text + 7, &e.key));
            continue;
        }
        FP8_TRY(parse_entry(r, r->text, &e));
        FP8_TRY(append(found, &e));
    }
    if (!parse_number(&count, r->text + 4, 0, MAX_SIZE) || count != found->count)
        st = bad(r, "the count is not that of the lines above: some are missing");
    else if (r->at != r->end) st = bad(r, "something follows the last line");
done:
    return st;
}

fp8_status fp8_algo_list_parse(fp8_algo_list *l, const char *name, const char *text, size_t bytes) {
    fp8_algo_list found = {0};
    reader r = {.name = name, .at = text, .end = text + bytes};
    fp8_status st;

    FP8_TRY(parse_lines(&r, &found));
    if (found.count > 1)
        qsort(found.items, (size_t)found.count, sizeof *found.items, compare_entries);
    for (int64_t i = 1; i < found.count; i++)
        if (compare_entries(&found.items[i - 1], &found.items[i]) == 0) {
            st = FP8_FAIL(FP8_EFORMAT, "%s: two choices for m=%lld n=%lld k=%lld with the same "
                          "types and modes", name, (long long)found.items[i].key.m,
                          (long long)found.items[i].key.n, (long long)found.items[i].key.k);
            goto done;
        }
    for (int64_t i = 0; i < found.count; i++) FP8_TRY(fp8_algo_list_put(l, &found.items[i]));
done:
    fp8_algo_list_free(&found);
    return st;
}

/* ---- writing --------------------------------------------------------------------------------- */

static const char *type_text(fp8_dtype t) { return t == FP8_NUM_DTYPES ? "-" : fp8_dtype_name(t); }

static void print_entry(FILE *f, const fp8_algo_entry *e) {
    const fp8_algo_key *k = &e->key;
    fprintf(f, "%lld %lld %lld %lld %s %s %s %s %s %s %s %s %s %s %lld %lld", (long long)k->m,
            (long long)k->n, (long long)k->k, (long long)k->batch, type_text(k->a),
            type_text(k->b), type_text(k->d), type_text(k->bias), type_text(k->residual),
            layouts[k->b_is_kn], scalings[k->scaling], accumulations[k->fast], gelus[k->gelu],
            amaxes[k->amax], (long long)e->algo.workspace_bytes, (long long)e->algo.ns);
    for (int i = 0; i < FP8_ALGO_WORDS; i++)
        fprintf(f, " %016llx", (unsigned long long)e->algo.words[i]);
    fputc('\n', f);
}

static int same_device(const fp8_algo_key *x, const fp8_algo_key *y) {
    return x->capability == y->capability && x->library == y->library &&
           strcmp(x->device, y->device) == 0;
}

fp8_status fp8_algo_list_print(fp8_algo_list *l, char **text, size_t *bytes) {
    FILE *f;

    *text = NULL;
    f = open_memstream(text, bytes);
    if (!f) return FP8_FAIL(FP8_ENOMEM, "gemm cache: %lld entries", (long long)l->count);
    if (l->count > 1) qsort(l->items, (size_t)l->count, sizeof *l->items, compare_entries);
    fprintf(f, "%s\n", magic);
    for (int64_t i = 0; i < l->count; i++) {
        const fp8_algo_key *k = &l->items[i].key;
        if (i == 0 || !same_device(k, &l->items[i - 1].key))
            fprintf(f, "device %d %lld %s\n", k->capability, (long long)k->library, k->device);
        print_entry(f, &l->items[i]);
    }
    fprintf(f, "end %lld\n", (long long)l->count);
    if (ferror(f) | fclose(f)) {
        free(*text);
        *text = NULL;
        return FP8_FAIL(FP8_ENOMEM, "gemm cache: %lld entries", (long long)l->count);
    }
    return FP8_OK;
}
