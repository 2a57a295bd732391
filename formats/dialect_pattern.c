#include "formats/dialect_pattern.h"

#include <string.h>

enum { MAX_ELEMENTS = 256 };

typedef struct element {
    enum { CHAR, ANY, DIGIT } kind;
    char c;
    int repeat; /* any number of times, none included */
} element;

typedef struct program {
    element elements[MAX_ELEMENTS];
    int num;
    int to_end; /* ended with `$` */
} program;

/* One element of the pattern at *p; advances it. 0 when it is not in the subset. */
static int compile_one(program *g, const char **p) {
    element e = {CHAR, **p, 0};
    const char *at = *p + 1;

    if (strncmp(*p, "[0-9]+", 6) == 0) { /* a digit, then any number of them */
        e.kind = DIGIT;
        g->elements[g->num++] = e;
        e.repeat = 1;
        at = *p + 6;
    } else if (strncmp(*p, "\\.", 2) == 0) {
        e.c = '.';
        at = *p + 2;
    } else if (**p == '.') {
        e.kind = ANY;
        e.repeat = *at == '*';
        at += e.repeat;
    } else if (strchr("\\^$*+?()[]{}|", **p)) {
        return 0;
    }
    g->elements[g->num++] = e;
    *p = at;
    return 1;
}

static int compile(program *g, const char *pattern) {
    memset(g, 0, sizeof *g);
    if (*pattern == '^') pattern++;
    while (*pattern) {
        g->to_end = strcmp(pattern, "$") == 0;
        if (g->to_end) return 1;
        if (g->num + 2 > MAX_ELEMENTS || !compile_one(g, &pattern)) return 0;
    }
    return 1;
}

int fp8_pattern_ok(const char *pattern) {
    program g;
    return compile(&g, pattern);
}

static int accepts(const element *e, char c) {
    return e->kind == ANY || (e->kind == DIGIT ? c >= '0' && c <= '9' : c == e->c);
}

/* All states at once: at[i] = the text so far matched the elements before i. */
int fp8_pattern_match(const char *pattern, const char *text) {
    unsigned char at[MAX_ELEMENTS + 1] = {1}, next[MAX_ELEMENTS + 1];
    program g;

    if (!compile(&g, pattern)) return 0;
    for (;; text++) {
        for (int i = 0; i < g.num; i++)
            if (at[i] && g.elements[i].repeat) at[i + 1] = 1;
        if (at[g.num] && !g.to_end) return 1;
        if (!*text) return at[g.num];
        memset(next, 0, sizeof next);
        for (int i = 0; i < g.num; i++)
            if (at[i] && accepts(&g.elements[i], *text)) next[g.elements[i].repeat ? i : i + 1] = 1;
        memcpy(at, next, sizeof at);
    }
}
