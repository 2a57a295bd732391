#include "cli/round_options.h"

#include <string.h>

fp8_status round_apply(fp8_rounding_options *how, int *compensate, const round_options *r) {
    if (!(r->damping > 0) || !(r->ridge > 0))
        return FP8_FAIL(FP8_EINVAL, "--gptq-damping %g and --gptq-ridge %g: expected more than 0",
                        r->damping, r->ridge);
    *how = (fp8_rounding_options){
        .damping = r->damping,
        .act_order = strcmp(r->order, "energy") == 0,
        .target = strcmp(r->target, "output") == 0 ? FP8_ROUND_TO_OUTPUT : FP8_ROUND_TO_WEIGHT,
        .ridge = r->ridge,
        .search_scales = strcmp(r->scales, "searched") == 0,
        .turn = strcmp(r->turn, "on") == 0,
    };
    if (strcmp(r->weight_scales, "mse") == 0 && strcmp(r->round, "nearest") != 0)
        return FP8_FAIL(FP8_EINVAL, "--weight-scales mse goes with --round nearest, found %s",
                        r->round);
    *compensate = strcmp(r->round, "gptq") == 0;
    return FP8_OK;
}
