/* The table as an SVG: a group of horizontal bars a subject, a colour a provider, the number at the
 * end of its bar. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "bench/bench.h"

enum {
    WIDTH = 960,
    LEFT = 250,  /* subjects stand left of it */
    RIGHT = 90,  /* room for a number after the longest bar */
    BAR = 15,    /* height of a bar and its gap */
    GAP = 14,    /* between groups */
    TOP = 48,
    MAX_PROVIDERS = 16
};

/* Okabe and Ito's colours, which people of any colour vision tell apart. */
static const char *const colours[] = {"#0072b2", "#56b4e9", "#d55e00", "#e69f00",
                                      "#999999", "#009e73", "#cc79a7", "#333333"};
enum { NUM_COLOURS = sizeof colours / sizeof *colours };

typedef struct palette {
    const char *providers[MAX_PROVIDERS];
    int count;
} palette;

static int colour_of(palette *p, const char *provider) {
    for (int i = 0; i < p->count; i++)
        if (strcmp(p->providers[i], provider) == 0) return i % NUM_COLOURS;
    if (p->count == MAX_PROVIDERS) return NUM_COLOURS - 1;
    p->providers[p->count] = provider;
    return p->count++ % NUM_COLOURS;
}

static void write_escaped(const char *text, FILE *out) {
    for (; *text; text++) {
        if (*text == '<') fputs("&lt;", out);
        else if (*text == '&') fputs("&amp;", out);
        else fputc(*text, out);
    }
}

static void write_text(FILE *out, double x, double y, const char *anchor, const char *text) {
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor);
    write_escaped(text, out);
    fprintf(out, "</text>\n");
}

static double longest(const fp8_bench_table *t) {
    double most = 0;
    for (int64_t i = 0; i < t->num_rows; i++)
        if (t->rows[i].value[t->drawn] > most) most = t->rows[i].value[t->drawn];
    return most > 0 ? most : 1;
}

static int begins_group(const fp8_bench_table *t, int64_t i) {
    return i == 0 || strcmp(t->rows[i].subject, t->rows[i - 1].subject) != 0;
}

static double height_of(const fp8_bench_table *t) {
    double y = TOP;
    for (int64_t i = 0; i < t->num_rows; i++) y += BAR + (begins_group(t, i) ? GAP : 0);
    return y + 40;
}

static void write_bar(const fp8_bench_table *t, const fp8_bench_row *r, double unit, double y,
                      int colour, FILE *out) {
    const double x = r->value[t->drawn];
    char number[48];
    if (isnan(x)) {
        write_text(out, LEFT + 4, y + BAR - 4, "start", "not served");
        return;
    }
    fprintf(out, "<rect x=\"%d\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n", LEFT, y,
            x * unit, BAR - 3, colours[colour]);
    snprintf(number, sizeof number, "%.4g", x);
    write_text(out, LEFT + x * unit + 4, y + BAR - 4, "start", number);
}

static void write_bars(const fp8_bench_table *t, palette *p, FILE *out) {
    const double unit = (WIDTH - LEFT - RIGHT) / longest(t);
    double y = TOP;
    for (int64_t i = 0; i < t->num_rows; i++) {
        const fp8_bench_row *r = &t->rows[i];
        if (begins_group(t, i)) {
            y += GAP;
            write_text(out, LEFT - 8, y + BAR - 4, "end", r->subject);
        }
        write_bar(t, r, unit, y, colour_of(p, r->provider), out);
        y += BAR;
    }
}

static void write_legend(const palette *p, double y, FILE *out) {
    double x = 12;
    for (int i = 0; i < p->count; i++) {
        fprintf(out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"10\" height=\"10\" fill=\"%s\"/>\n", x,
                y - 9, colours[i % NUM_COLOURS]);
        write_text(out, x + 14, y, "start", p->providers[i]);
        x += 30 + 7.0 * (double)strlen(p->providers[i]);
    }
}

fp8_status fp8_bench_write_svg(const fp8_bench_table *t, const char *path) {
    const double height = height_of(t);
    FILE *out = fopen(path, "w");
    palette p = {0};
    int failed;

    if (!out) return FP8_FAIL(FP8_EIO, "%s: %s", path, strerror(errno));
    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\" "
            "font-family=\"sans-serif\" font-size=\"11\">\n"
            "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
            WIDTH, height);
    write_text(out, 12, 18, "start", t->title);
    write_text(out, LEFT, 36, "start", t->columns[t->drawn].name);
    write_bars(t, &p, out);
    write_legend(&p, height - 14, out);
    fprintf(out, "</svg>\n");
    failed = ferror(out);
    if (fclose(out) != 0) failed = 1;
    return failed ? FP8_FAIL(FP8_EIO, "%s: write failed", path) : FP8_OK;
}
