/* Rows, and the table as text and CSV. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"

fp8_status fp8_bench_add_row(fp8_bench_table *t, fp8_bench_row **row, const char *subject,
                             const char *provider) {
    fp8_bench_row *r;
    if (t->num_rows == t->capacity) {
        const int64_t capacity = t->capacity ? 2 * t->capacity : 64;
        r = realloc(t->rows, (size_t)capacity * sizeof *r);
        if (!r) return FP8_FAIL(FP8_ENOMEM, "bench: %lld rows", (long long)capacity);
        t->rows = r;
        t->capacity = capacity;
    }
    r = &t->rows[t->num_rows++];
    memset(r, 0, sizeof *r);
    snprintf(r->subject, sizeof r->subject, "%s", subject);
    snprintf(r->provider, sizeof r->provider, "%s", provider);
    for (int i = 0; i < FP8_BENCH_COLUMNS; i++) r->value[i] = NAN;
    *row = r;
    return FP8_OK;
}

void fp8_bench_table_free(fp8_bench_table *t) {
    free(t->rows);
    memset(t, 0, sizeof *t);
}

static int same_subject(const fp8_bench_table *t, int64_t i) {
    return i > 0 && strcmp(t->rows[i].subject, t->rows[i - 1].subject) == 0;
}

/* ---- text ------------------------------------------------------------------------------------ */

/* "-" for NaN; plain digits where a person would write them, else an exponent. */
static void format(char text[32], double x, int digits) {
    const double a = fabs(x);
    int decimals;
    if (isnan(x)) {
        snprintf(text, 32, "-");
        return;
    }
    if (a != 0 && (a < 1e-3 || a >= 1e7)) {
        snprintf(text, 32, "%.*e", digits - 1, x);
        return;
    }
    decimals = digits - 1 - (a > 0 ? (int)floor(log10(a)) : 0);
    snprintf(text, 32, "%.*f", decimals > 0 ? decimals : 0, x);
}

static int width_of(const fp8_bench_table *t, int c) {
    int width = (int)strlen(t->columns[c].name);
    for (int64_t i = 0; i < t->num_rows; i++) {
        char text[32];
        format(text, t->rows[i].value[c], t->columns[c].digits);
        if ((int)strlen(text) > width) width = (int)strlen(text);
    }
    return width;
}

static void write_row(const fp8_bench_table *t, const fp8_bench_row *r, int name_width,
                      const int *width, FILE *out) {
    fprintf(out, "  %-*s", name_width, r->provider);
    for (int c = 0; c < t->num_columns; c++) {
        char text[32];
        format(text, r->value[c], t->columns[c].digits);
        fprintf(out, "  %*s", width[c], text);
    }
    fprintf(out, "%s%s\n", *r->note ? "  " : "", r->note);
}

fp8_status fp8_bench_write_text(const fp8_bench_table *t, FILE *out) {
    int width[FP8_BENCH_COLUMNS], name_width = 8;
    for (int c = 0; c < t->num_columns; c++) width[c] = width_of(t, c);
    for (int64_t i = 0; i < t->num_rows; i++)
        if ((int)strlen(t->rows[i].provider) > name_width)
            name_width = (int)strlen(t->rows[i].provider);
    fprintf(out, "%s\n\n  %-*s", t->title, name_width, "");
    for (int c = 0; c < t->num_columns; c++) fprintf(out, "  %*s", width[c], t->columns[c].name);
    fprintf(out, "\n");
    for (int64_t i = 0; i < t->num_rows; i++) {
        if (!same_subject(t, i)) fprintf(out, "%s\n", t->rows[i].subject);
        write_row(t, &t->rows[i], name_width, width, out);
    }
    return ferror(out) ? FP8_FAIL(FP8_EIO, "bench: the table could not be written") : FP8_OK;
}

/* ---- CSV ------------------------------------------------------------------------------------- */

static void write_quoted(const char *text, FILE *out) {
    fputc('"', out);
    for (; *text; text++) {
        if (*text == '"') fputc('"', out);
        fputc(*text, out);
    }
    fputc('"', out);
}

static void write_csv_row(const fp8_bench_table *t, const fp8_bench_row *r, FILE *out) {
    write_quoted(r->subject, out);
    fputc(',', out);
    write_quoted(r->provider, out);
    for (int c = 0; c < t->num_columns; c++) {
        if (isnan(r->value[c])) fputc(',', out);
        else fprintf(out, ",%.9g", r->value[c]);
    }
    fputc(',', out);
    write_quoted(r->note, out);
    fputc('\n', out);
}

fp8_status fp8_bench_write_csv(const fp8_bench_table *t, const char *path) {
    FILE *out = fopen(path, "w");
    int failed;
    if (!out) return FP8_FAIL(FP8_EIO, "%s: %s", path, strerror(errno));
    fprintf(out, "subject,provider");
    for (int c = 0; c < t->num_columns; c++) fprintf(out, ",%s", t->columns[c].name);
    fprintf(out, ",note\n");
    for (int64_t i = 0; i < t->num_rows; i++) write_csv_row(t, &t->rows[i], out);
    failed = ferror(out);
    if (fclose(out) != 0) failed = 1;
    return failed ? FP8_FAIL(FP8_EIO, "%s: write failed", path) : FP8_OK;
}
