#include "formats/record.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor.h"
#include "formats/json.h"
#include "formats/names.h"
#include "formats/safetensors.h"
#include "formats/safetensors_impl.h"
#include "formats/utf8.h"

#define FORMAT "fp8calib.record"
#define VERSION "1"
#define HISTOGRAMS "histograms"

/* The tensors of a point, then those of the whole run. */
enum { HISTORY, WITHOUT_FIRST, NONFINITE, NUM_KINDS };
enum { NUM_COMMON = 2 }; /* tokens, recipe; histograms come after them, if at all */

static const struct {
    const char *suffix;
    fp8_dtype dtype;
} kinds[NUM_KINDS] = {
    [HISTORY] = {".amax_history", FP8_DTYPE_F32},
    [WITHOUT_FIRST] = {".amax_history_without_first", FP8_DTYPE_F32},
    [NONFINITE] = {".nonfinite", FP8_DTYPE_U32},
};

/* Where a point's rows of one kind begin; elements of all kinds have 4 bytes. */
static void *rows_of(const fp8_record *r, int64_t point, int kind) {
    const int64_t at = point * r->steps_total;
    if (kind == NONFINITE) return r->nonfinite + at;
    return (kind == HISTORY ? r->amax : r->amax_without_first) + at;
}

/* ---- life ------------------------------------------------------------------------------------ */

static fp8_status check_recipe(const char *recipe) {
    fp8_status st = FP8_OK;
    fp8_json *j = NULL;
    fp8_json_event e;

    FP8_TRY(fp8_json_open(&j, "recipe", recipe, strlen(recipe), NULL));
    FP8_TRY(fp8_json_next(j, &e));
    FP8_TRY(fp8_json_skip(j, &e, NULL));
    FP8_TRY(fp8_json_expect(j, FP8_JSON_END, "the recipe", &e));
done:
    fp8_json_close(j);
    return st == FP8_EFORMAT ? FP8_FAIL(FP8_EINVAL, "%s", fp8_last_message()) : st;
}

static fp8_status check_points(const char *const *points, int64_t num) {
    fp8_names seen = {0};
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_names_create(&seen, num));
    for (int64_t i = 0; i < num; i++) {
        FP8_TRY(fp8_st_check_name(FP8_EINVAL, points[i], strlen(points[i])));
        if (!*points[i]) FP8_TRY(FP8_FAIL(FP8_EINVAL, "record: a point has no name"));
        if (fp8_names_add(&seen, points[i], i) >= 0)
            FP8_TRY(FP8_FAIL(FP8_EINVAL, "record: point '%s' is given twice", points[i]));
    }
done:
    fp8_names_free(&seen);
    return st;
}

fp8_status fp8_record_create(fp8_record **out, const char *const *points, int64_t num_points,
                             int64_t steps_total, const char *recipe) {
    fp8_status st = FP8_OK;
    fp8_record *r = NULL;
    size_t cells = 0, bytes = 0;

    *out = NULL;
    if (num_points < 0 || steps_total < 0)
        return FP8_FAIL(FP8_EINVAL, "record: %lld points, %lld steps", (long long)num_points,
                        (long long)steps_total);
    FP8_TRY(check_points(points, num_points));
    FP8_TRY(check_recipe(recipe));
    FP8_TRY(fp8_mul_size(&cells, (size_t)num_points, (size_t)steps_total));
    FP8_TRY(fp8_mul_size(&bytes, cells, sizeof(float)));
    r = calloc(1, sizeof *r);
    if (!r) goto memory;
    r->points = calloc((size_t)num_points + 1, sizeof *r->points);
    r->amax = calloc(cells + 1, sizeof *r->amax);
    r->amax_without_first = calloc(cells + 1, sizeof *r->amax_without_first);
    r->nonfinite = calloc(cells + 1, sizeof *r->nonfinite);
    r->tokens = calloc((size_t)steps_total + 1, sizeof *r->tokens);
    r->recipe = strdup(recipe);
    if (!r->points || !r->amax || !r->amax_without_first || !r->nonfinite || !r->tokens ||
        !r->recipe)
        goto memory;
    for (; r->num_points < num_points; r->num_points++) {
        r->points[r->num_points] = strdup(points[r->num_points]);
        if (!r->points[r->num_points]) goto memory;
    }
    r->steps_total = steps_total;
    *out = r;
    return FP8_OK;
memory:
    st = FP8_FAIL(FP8_ENOMEM, "record: %lld points of %lld steps", (long long)num_points,
                  (long long)steps_total);
done:
    fp8_record_destroy(r);
    return st;
}

fp8_status fp8_record_add_histograms(fp8_record *r) {
    const size_t rows = (size_t)r->num_points + 1; /* one to spare: never 0 bytes */
    if (r->histograms) return FP8_FAIL(FP8_EINVAL, "record: has histograms already");
    r->histograms = calloc(rows, FP8_RECORD_BINS * sizeof *r->histograms);
    return r->histograms ? FP8_OK : FP8_FAIL(FP8_ENOMEM, "histograms of %lld points",
                                             (long long)r->num_points);
}

void fp8_record_destroy(fp8_record *r) {
    if (!r) return;
    for (int64_t i = 0; i < r->num_points; i++) free(r->points[i]);
    free(r->points);
    free(r->amax);
    free(r->amax_without_first);
    free(r->nonfinite);
    free(r->tokens);
    free(r->histograms);
    free(r->recipe);
    free(r);
}

/* ---- save ------------------------------------------------------------------------------------ */

/* "a\nb\nc"; NULL: memory. */
static char *join_points(const fp8_record *r) {
    size_t bytes = 1, at = 0;
    char *text;

    for (int64_t i = 0; i < r->num_points; i++) bytes += strlen(r->points[i]) + 1;
    text = malloc(bytes);
    if (!text) return NULL;
    text[0] = '\0';
    for (int64_t i = 0; i < r->num_points; i++)
        at += (size_t)snprintf(text + at, bytes - at, "%s%s", i ? "\n" : "", r->points[i]);
    return text;
}

static fp8_status write_record(const fp8_record *r, const char *path, const fp8_st_spec *specs,
                               int64_t num, const char *points) {
    char bytes[24], mtime[24], crc32[24], done_text[24], total[24];
    const fp8_st_pair metadata[] = {
        {"format", FORMAT},           {"version", VERSION},  {"source_bytes", bytes},
        {"source_mtime", mtime},      {"source_crc32", crc32}, {"steps_done", done_text},
        {"steps_total", total},       {"points", points},
    };
    const size_t rows = (size_t)r->steps, row_bytes = FP8_RECORD_BINS * sizeof *r->histograms;
    const int64_t common = r->num_points * NUM_KINDS;
    fp8_st_writer *w = NULL;
    fp8_status st = FP8_OK;

    snprintf(bytes, sizeof bytes, "%llu", (unsigned long long)r->source_bytes);
    snprintf(mtime, sizeof mtime, "%lld", (long long)r->source_mtime);
    snprintf(crc32, sizeof crc32, "%u", r->source_crc32);
    snprintf(done_text, sizeof done_text, "%lld", (long long)r->steps);
    snprintf(total, sizeof total, "%lld", (long long)r->steps_total);
    FP8_TRY(fp8_st_writer_create(&w, path, specs, num, metadata,
                                 (int64_t)(sizeof metadata / sizeof *metadata)));
    for (int64_t i = 0; i < common; i++)
        FP8_TRY(fp8_st_writer_put(w, i, rows_of(r, i / NUM_KINDS, (int)(i % NUM_KINDS)),
                                  rows * sizeof(float)));
    FP8_TRY(fp8_st_writer_put(w, common, r->tokens, rows * sizeof *r->tokens));
    FP8_TRY(fp8_st_writer_put(w, common + 1, r->recipe, strlen(r->recipe)));
    if (r->histograms)
        FP8_TRY(fp8_st_writer_put(w, common + 2, r->histograms, (size_t)r->num_points * row_bytes));
    return fp8_st_writer_commit(w);
done:
    fp8_st_writer_abort(w);
    return st;
}

fp8_status fp8_record_save(const fp8_record *r, const char *path) {
    enum { NAME_BYTES = FP8_ST_MAX_NAME + 32 };
    const int64_t common = r->num_points * NUM_KINDS;
    const int64_t num = common + NUM_COMMON + (r->histograms != NULL);
    fp8_st_spec *specs = NULL;
    char *names = NULL, *points = NULL;
    fp8_status st = FP8_OK;

    if (r->steps < 0 || r->steps > r->steps_total)
        return FP8_FAIL(FP8_EINVAL, "%s: %lld steps of %lld are done", path, (long long)r->steps,
                        (long long)r->steps_total);
    specs = calloc((size_t)num, sizeof *specs);
    names = calloc((size_t)num, NAME_BYTES);
    points = join_points(r);
    if (!specs || !names || !points) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "%s: names", path));
    for (int64_t i = 0; i < common; i++) {
        char *name = names + i * NAME_BYTES;
        snprintf(name, NAME_BYTES, "%s%s", r->points[i / NUM_KINDS], kinds[i % NUM_KINDS].suffix);
        specs[i] = (fp8_st_spec){name, kinds[i % NUM_KINDS].dtype, 1, {r->steps}};
    }
    specs[common] = (fp8_st_spec){"tokens", FP8_DTYPE_I64, 1, {r->steps}};
    specs[common + 1] = (fp8_st_spec){"recipe", FP8_DTYPE_U8, 1, {(int64_t)strlen(r->recipe)}};
    if (r->histograms)
        specs[common + 2] =
            (fp8_st_spec){HISTOGRAMS, FP8_DTYPE_I64, 2, {r->num_points, FP8_RECORD_BINS}};
    st = write_record(r, path, specs, num, points);
done:
    free(specs);
    free(names);
    free(points);
    return st;
}

/* ---- load ------------------------------------------------------------------------------------ */

static fp8_status get_text(const fp8_safetensors *s, const char *key, const char **out) {
    *out = fp8_safetensors_metadata(s, key);
    if (*out) return FP8_OK;
    return FP8_FAIL(FP8_EFORMAT, "%s: no '%s' in the metadata: not a calibration record",
                    fp8_safetensors_path(s), key);
}

static fp8_status get_exactly(const fp8_safetensors *s, const char *key, const char *want) {
    const char *text = NULL;
    char shown[FP8_SHOWN_BYTES];
    fp8_status st = FP8_OK;

    FP8_TRY(get_text(s, key, &text));
    if (strcmp(text, want) != 0)
        return FP8_FAIL(FP8_EFORMAT, "%s: %s: expected '%s', found '%s'", fp8_safetensors_path(s),
                        key, want, fp8_utf8_show(shown, text, strlen(text)));
done:
    return st;
}

/* A decimal integer and nothing else. */
static fp8_status get_number(const fp8_safetensors *s, const char *key, int64_t lo, int64_t hi,
                             int64_t *out) {
    const char *text = NULL, *digits;
    char shown[FP8_SHOWN_BYTES];
    fp8_status st = FP8_OK;
    size_t n;

    FP8_TRY(get_text(s, key, &text));
    digits = text + (*text == '-');
    n = strspn(digits, "0123456789");
    errno = 0;
    *out = strtoll(text, NULL, 10);
    if (!n || digits[n] || errno || *out < lo || *out > hi)
        return FP8_FAIL(FP8_EFORMAT, "%s: %s: expected an integer from %lld to %lld, found '%s'",
                        fp8_safetensors_path(s), key, (long long)lo, (long long)hi,
                        fp8_utf8_show(shown, text, strlen(text)));
done:
    return st;
}

static fp8_status get_tensor(const fp8_safetensors *s, const char *name, fp8_dtype dtype,
                             int64_t rows, const fp8_st_entry **out) {
    const fp8_st_entry *e = fp8_safetensors_find(s, name);
    char shape[64];

    *out = e;
    if (!e) return FP8_FAIL(FP8_EFORMAT, "%s: '%s' is missing", fp8_safetensors_path(s), name);
    if (e->tensor.dtype == dtype && e->tensor.ndim == 1 && (rows < 0 || e->tensor.shape[0] == rows))
        return FP8_OK;
    fp8_shape_text(shape, sizeof shape, e->tensor.shape, e->tensor.ndim);
    return FP8_FAIL(FP8_EFORMAT, "%s: '%s': expected %s [%lld], found %s %s",
                    fp8_safetensors_path(s), name, fp8_dtype_name(dtype),
                    (long long)(rows < 0 ? 0 : rows), fp8_dtype_name(e->tensor.dtype), shape);
}

/* Splits `text` in place; *points is allocated. */
static fp8_status split_points(char *text, const char ***points, int64_t *num) {
    size_t lines = *text != '\0';

    for (const char *c = text; *c; c++) lines += *c == '\n';
    *points = calloc(lines + 1, sizeof **points);
    if (!*points) return FP8_FAIL(FP8_ENOMEM, "record: %zu points", lines);
    *num = 0;
    for (char *next = text; lines; lines--) {
        char *end = strchr(next, '\n');
        (*points)[(*num)++] = next;
        if (!end) break;
        *end = '\0';
        next = end + 1;
    }
    return FP8_OK;
}

/* The frame of the record: everything but the rows. */
static fp8_status load_frame(fp8_record **out, const fp8_safetensors *s, int64_t steps_total) {
    const fp8_st_entry *e = NULL;
    const char *joined = NULL, **points = NULL;
    char *text = NULL, *recipe = NULL;
    int64_t num = 0, want;
    fp8_status st = FP8_OK;

    FP8_TRY(get_text(s, "points", &joined));
    FP8_TRY(get_tensor(s, "recipe", FP8_DTYPE_U8, -1, &e));
    text = strdup(joined);
    recipe = calloc(e->bytes + 1, 1);
    if (!text || !recipe) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "record: names"));
    memcpy(recipe, e->tensor.data, e->bytes);
    if (strlen(recipe) != e->bytes) FP8_TRY(FP8_FAIL(FP8_EINVAL, "recipe: holds a NUL byte"));
    FP8_TRY(split_points(text, &points, &num));
    want = num * NUM_KINDS + NUM_COMMON + (fp8_safetensors_find(s, HISTOGRAMS) != NULL);
    if (want != fp8_safetensors_count(s))
        FP8_TRY(FP8_FAIL(FP8_EINVAL, "%lld points need %lld tensors, the file has %lld",
                         (long long)num, (long long)want, (long long)fp8_safetensors_count(s)));
    st = fp8_record_create(out, points, num, steps_total, recipe);
done:
    free(text);
    free(recipe);
    free(points);
    if (st != FP8_EINVAL) return st;
    return FP8_FAIL(FP8_EFORMAT, "%s: %s", fp8_safetensors_path(s), fp8_last_message());
}

static fp8_status check_history(const fp8_safetensors *s, const char *name, const float *rows,
                                int64_t steps) {
    for (int64_t i = 0; i < steps; i++)
        if (!(rows[i] >= 0))
            return FP8_FAIL(FP8_EFORMAT, "%s: '%s'[%lld]: %g is no amax", fp8_safetensors_path(s),
                            name, (long long)i, (double)rows[i]);
    return FP8_OK;
}

static fp8_status load_rows(fp8_record *r, const fp8_safetensors *s) {
    const fp8_st_entry *e = NULL;
    char name[FP8_ST_MAX_NAME + 32];
    fp8_status st = FP8_OK;

    for (int64_t i = 0; i < r->num_points * NUM_KINDS; i++) {
        const int kind = (int)(i % NUM_KINDS);
        void *rows = rows_of(r, i / NUM_KINDS, kind);
        snprintf(name, sizeof name, "%s%s", r->points[i / NUM_KINDS], kinds[kind].suffix);
        FP8_TRY(get_tensor(s, name, kinds[kind].dtype, r->steps, &e));
        memcpy(rows, e->tensor.data, e->bytes);
        if (kind != NONFINITE) FP8_TRY(check_history(s, name, rows, r->steps));
    }
    FP8_TRY(get_tensor(s, "tokens", FP8_DTYPE_I64, r->steps, &e));
    memcpy(r->tokens, e->tensor.data, e->bytes);
    for (int64_t i = 0; i < r->steps; i++)
        if (r->tokens[i] < 0)
            return FP8_FAIL(FP8_EFORMAT, "%s: 'tokens'[%lld]: %lld is negative",
                            fp8_safetensors_path(s), (long long)i, (long long)r->tokens[i]);
done:
    return st;
}

static fp8_status load_histograms(fp8_record *r, const fp8_safetensors *s) {
    const fp8_st_entry *e = fp8_safetensors_find(s, HISTOGRAMS);
    const int64_t most = INT64_MAX / FP8_RECORD_BINS;
    char shape[64];
    fp8_status st = FP8_OK;

    if (!e) return FP8_OK;
    if (e->tensor.dtype != FP8_DTYPE_I64 || e->tensor.ndim != 2 ||
        e->tensor.shape[0] != r->num_points || e->tensor.shape[1] != FP8_RECORD_BINS) {
        fp8_shape_text(shape, sizeof shape, e->tensor.shape, e->tensor.ndim);
        return FP8_FAIL(FP8_EFORMAT, "%s: '" HISTOGRAMS "': expected I64 [%lld, %d], found %s %s",
                        fp8_safetensors_path(s), (long long)r->num_points, FP8_RECORD_BINS,
                        fp8_dtype_name(e->tensor.dtype), shape);
    }
    FP8_TRY(fp8_record_add_histograms(r));
    memcpy(r->histograms, e->tensor.data, e->bytes);
    for (int64_t i = 0; i < r->num_points * FP8_RECORD_BINS; i++)
        if (r->histograms[i] < 0 || r->histograms[i] > most)
            return FP8_FAIL(FP8_EFORMAT, "%s: '" HISTOGRAMS "'[%lld, %lld]: %lld is no count",
                            fp8_safetensors_path(s), (long long)(i / FP8_RECORD_BINS),
                            (long long)(i % FP8_RECORD_BINS), (long long)r->histograms[i]);
done:
    return st;
}

fp8_status fp8_record_load(fp8_record **out, const char *path) {
    fp8_safetensors *s = NULL;
    fp8_record *r = NULL;
    int64_t total = 0, done = 0, bytes = 0, mtime = 0, crc32 = 0;
    fp8_status st = FP8_OK;

    *out = NULL;
    FP8_TRY(fp8_safetensors_open(&s, path));
    FP8_TRY(get_exactly(s, "format", FORMAT));
    FP8_TRY(get_exactly(s, "version", VERSION));
    FP8_TRY(get_number(s, "source_bytes", 0, INT64_MAX, &bytes));
    FP8_TRY(get_number(s, "source_mtime", INT64_MIN, INT64_MAX, &mtime));
    FP8_TRY(get_number(s, "source_crc32", 0, UINT32_MAX, &crc32));
    FP8_TRY(get_number(s, "steps_total", 0, INT64_MAX, &total));
    FP8_TRY(get_number(s, "steps_done", 0, total, &done));
    FP8_TRY(load_frame(&r, s, total));
    r->steps = done;
    r->source_bytes = (uint64_t)bytes;
    r->source_mtime = mtime;
    r->source_crc32 = (uint32_t)crc32;
    FP8_TRY(load_rows(r, s));
    FP8_TRY(load_histograms(r, s));
    *out = r;
    r = NULL;
done:
    fp8_record_destroy(r);
    fp8_safetensors_close(s);
    return st;
}

/* ---- compare --------------------------------------------------------------------------------- */

fp8_status fp8_record_check(const fp8_record *old, const fp8_record *now, const char *path) {
    size_t at = 0; /* where the recipes part */

    if (old->source_bytes != now->source_bytes || old->source_mtime != now->source_mtime ||
        old->source_crc32 != now->source_crc32)
        return FP8_FAIL(FP8_EDATA,
                        "%s: made from another checkpoint (%llu bytes, mtime %lld, CRC32 %08x; now "
                        "%llu bytes, mtime %lld, CRC32 %08x)",
                        path, (unsigned long long)old->source_bytes, (long long)old->source_mtime,
                        old->source_crc32, (unsigned long long)now->source_bytes,
                        (long long)now->source_mtime, now->source_crc32);
    while (old->recipe[at] && old->recipe[at] == now->recipe[at]) at++;
    if (old->recipe[at] != now->recipe[at]) {
        at -= at < 40 ? at : 40; /* shows the key, too */
        return FP8_FAIL(FP8_EDATA, "%s: made with another recipe: '%.80s', now '%.80s'", path,
                        old->recipe + at, now->recipe + at);
    }
    if (!old->histograms != !now->histograms)
        return FP8_FAIL(FP8_EDATA, "%s: %s", path, old->histograms
                        ? "has histograms, which are not asked for now"
                        : "has no histograms, which are asked for now");
    if (old->steps_total != now->steps_total || old->num_points != now->num_points)
        return FP8_FAIL(FP8_EDATA, "%s: has %lld points and %lld steps, now %lld and %lld", path,
                        (long long)old->num_points, (long long)old->steps_total,
                        (long long)now->num_points, (long long)now->steps_total);
    for (int64_t i = 0; i < now->num_points; i++)
        if (strcmp(old->points[i], now->points[i]) != 0)
            return FP8_FAIL(FP8_EDATA, "%s: point %lld is '%s', now '%s'", path, (long long)i,
                            old->points[i], now->points[i]);
    return FP8_OK;
}
