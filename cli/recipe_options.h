/* cli/recipe_options.h - private: how scales come from a history, as `run`, `convert` and
 * `scales` ask it. */
#ifndef FP8_CLI_RECIPE_OPTIONS_H
#define FP8_CLI_RECIPE_OPTIONS_H
#include "cli/cli.h"

typedef struct recipe_options {
    const char *kv, *attention; /* NULL: the default */
    const char *format, *algo;
    int64_t history, margin;
    const char *calibrator;
    double percentile; /* 0: not given */
} recipe_options;
#define RECIPE_ALGO "max"
#define RECIPE_FORMAT "e4m3"
#define RECIPE_HISTORY 1024
#define RECIPE_DEFAULTS {NULL, NULL, RECIPE_FORMAT, RECIPE_ALGO, RECIPE_HISTORY, 0, "amax", 0}

/* Rows of an option table; `at` is the offset of the recipe_options. */
#define RECIPE_OPTIONS(at, kv_default)                                                             \
    {"--kv", 0, CLI_CHOICE, (at) + offsetof(recipe_options, kv), "fp8|none", 0, 0,                 \
     "fp8: write scales for an FP8 KV cache; default: " kv_default},                               \
    {"--fp8-attention", 0, CLI_CHOICE, (at) + offsetof(recipe_options, attention),                 \
     "dpa|mha|none", 0, 0,                                                                         \
     "dpa: both attention products in FP8; mha: their output too; default: dpa, none with "       \
     "--kv none"},                                                                                 \
    {"--fp8-format", 0, CLI_CHOICE, (at) + offsetof(recipe_options, format), "e4m3|hybrid", 0, 0,  \
     "hybrid is E4M3 forward, E5M2 gradients: the same inference checkpoint, and noted in it"},    \
    {"--amax-history", 0, CLI_INT, (at) + offsetof(recipe_options, history), "N", 1, 1 << 30,      \
     "the newest N steps count for a scale"},                                                      \
    {"--amax-algo", 0, CLI_CHOICE, (at) + offsetof(recipe_options, algo),                          \
     "max|most_recent|moving_average", 0, 0,                                                       \
     "which amax of the history makes the scale; moving_average: the first step's, which each "    \
     "later one pulls 1 % towards itself"},                                                        \
    {"--margin", 0, CLI_INT, (at) + offsetof(recipe_options, margin), "N", 0, 32,                  \
     "leave room: divide scales by 2^N"}

/* Likewise, of the commands that have or make histograms. */
#define CALIBRATOR_OPTIONS(at)                                                                     \
    {"--calibrator", 0, CLI_CHOICE, (at) + offsetof(recipe_options, calibrator),                   \
     "amax|percentile|mse|entropy", 0, 0,                                                          \
     "amax: the history alone; the others, of the histogram, where that is less and the error is " \
     "certain to fall by it: the percentile of all values, the clip of least squared error, that " \
     "of least divergence of the codes from the values"},                                          \
    {"--percentile", 0, CLI_REAL, (at) + offsetof(recipe_options, percentile), "P", 50, 100,       \
     "P in a hundred values are not clipped; default: 99.99"}

/* Fills kv, attention, format, recipe and clip of `out`; kv_default is what kv NULL means. *r
 * gets its defaults filled in. FP8_EINVAL: attention in FP8 without the scales for it, a percentile
 * that nothing takes. */
FP8_NODISCARD fp8_status recipe_apply(fp8_export_options *out, recipe_options *r,
                                      const char *kv_default);

#endif
