#include "cli/round_options.h"

#include <string.h>

int round_apply(fp8_rounding_options *how, const round_options *r) {
    *how = (fp8_rounding_options){
        .damping = r->damping,
        .act_order = strcmp(r->order, "energy") == 0,
        .target = strcmp(r->target, "output") == 0 ? FP8_ROUND_TO_OUTPUT : FP8_ROUND_TO_WEIGHT,
        .ridge = r->ridge,
        .search_scales = strcmp(r->scales, "searched") == 0,
        .turn = strcmp(r->turn, "on") == 0,
    };
    return strcmp(r->round, "gptq") == 0;
}
