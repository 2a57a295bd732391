#include "cli/recipe_options.h"

#include <string.h>

fp8_status recipe_apply(fp8_export_options *out, recipe_options *r, const char *kv_default) {
    fp8_status st = FP8_OK;
    if (!r->kv) r->kv = kv_default;
    out->kv_fp8 = strcmp(r->kv, "fp8") == 0;
    if (!r->attention) r->attention = out->kv_fp8 ? "dpa" : "none";
    FP8_TRY(fp8_attention_mode_parse(&out->attention, r->attention));
    if (!out->kv_fp8 && out->attention != FP8_ATTENTION_NONE) {
        st = FP8_FAIL(FP8_EINVAL, "--fp8-attention %s needs the scales that --kv none leaves out",
                      r->attention);
        goto done;
    }
    FP8_TRY(fp8_fp8_format_parse(&out->format, r->format));
    FP8_TRY(fp8_amax_algo_parse(&out->recipe.algo, r->algo));
    out->recipe.margin = (int32_t)r->margin;
    out->recipe.history_len = r->history;
    if (strcmp(r->calibrator, "percentile") == 0) {
        if (r->percentile == 0) r->percentile = 99.99;
        out->clip = (fp8_clip){FP8_CLIP_PERCENTILE, r->percentile};
    } else if (r->percentile != 0) {
        st = FP8_FAIL(FP8_EINVAL, "--percentile %g needs --calibrator percentile", r->percentile);
    }
    if (strcmp(r->calibrator, "mse") == 0) out->clip.rule = FP8_CLIP_MSE;
    if (strcmp(r->calibrator, "entropy") == 0) out->clip.rule = FP8_CLIP_ENTROPY;
done:
    return st;
}
