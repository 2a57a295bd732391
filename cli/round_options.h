/* cli/round_options.h - private: how weights are rounded, as `run` asks it. */
#ifndef FP8_CLI_ROUND_OPTIONS_H
#define FP8_CLI_ROUND_OPTIONS_H
#include "cli/cli.h"

typedef struct round_options {
    const char *round, *weight_scales, *order, *target, *scales, *turn;
    double damping, ridge, keep;
} round_options;
#define ROUND_DEFAULTS {"nearest", "amax", "energy", "output", "searched", "on", 0.01, 24576, 0}

/* Rows of an option table; `at` is the offset of the round_options. */
#define ROUND_OPTIONS(at)                                                                          \
    {"--round", 0, CLI_CHOICE, (at) + offsetof(round_options, round), "nearest|gptq", 0, 0,        \
     "gptq: the error of each weight is carried on to those not yet rounded, layer after layer "   \
     "over all calibration samples: less loss, the same format, some times the time"},             \
    {"--weight-scales", 0, CLI_CHOICE, (at) + offsetof(round_options, weight_scales), "amax|mse",  \
     0, 0, "mse, with --round nearest: those of least squared error of the weights"},              \
    {"--gptq-damping", 0, CLI_REAL, (at) + offsetof(round_options, damping), "X", 0, 1000,         \
     "X times the mean of the inputs' energies is added to each (default 0.01)"},                  \
    {"--gptq-order", 0, CLI_CHOICE, (at) + offsetof(round_options, order), "energy|given", 0, 0,   \
     "energy: inputs of most energy are rounded first (act-order)"},                               \
    {"--gptq-target", 0, CLI_CHOICE, (at) + offsetof(round_options, target), "output|weight", 0,   \
     0, "output: weights first move to those that give the BF16 outputs on the FP8 inputs"},       \
    {"--gptq-ridge", 0, CLI_REAL, (at) + offsetof(round_options, ridge), "N", 0, 1000000000,       \
     "what holds them where they were, as much as N tokens of unrelated inputs (default 24576)"},  \
    {"--gptq-scales", 0, CLI_CHOICE, (at) + offsetof(round_options, scales), "searched|amax", 0,   \
     0, "searched: static scales of inputs, Q, K and V are those of least error"},                 \
    {"--gptq-turn", 0, CLI_CHOICE, (at) + offsetof(round_options, turn), "on|off", 0, 0,           \
     "on: queries and keys in a basis that costs them less in FP8, where the model allows it"},    \
    {"--keep-bf16", 0, CLI_REAL, (at) + offsetof(round_options, keep), "N", 0, 100,                \
     "leave N % of the weights in BF16: those Linears that cost most KL a byte, measured"}

/* *how from the options; *compensate 0: weights are rounded to nearest. FP8_EINVAL: a damping or
 * ridge of 0, searched weight scales with compensation. */
FP8_NODISCARD fp8_status round_apply(fp8_rounding_options *how, int *compensate,
                                     const round_options *r);
#endif
