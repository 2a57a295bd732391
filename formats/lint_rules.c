/* formats/lint_rules.c - the table of rules, and those about configuration, names and sizes. */
#include <string.h>

#include "formats/lint_impl.h"

/* ---- config.json ----------------------------------------------------------------------------- */

static fp8_status unreadable(fp8_lint_job *j) {
    return j->unreadable ? fp8_lint_find(j, "%s", j->unreadable) : FP8_OK;
}

static fp8_status status_frozen(fp8_lint_job *j) {
    if (!*j->config.status || strcmp(j->config.status, "compressed") == 0) return FP8_OK;
    return fp8_lint_find(j, "quantization_status '%s': expected 'compressed'", j->config.status);
}

static fp8_status group_name(fp8_lint_job *j) {
    if (j->config.num_groups == 0 || strcmp(j->config.group, "group_0") == 0) return FP8_OK;
    return fp8_lint_find(j, "config_groups: the first group is '%s', expected 'group_0'",
                         j->config.group);
}

/* MXFP8 cannot be said without them. */
static fp8_status new_keys(fp8_lint_job *j) {
    if (!*j->config.strange || j->quant.scheme == FP8_SCHEME_MX) return FP8_OK;
    return fp8_lint_find(j, "config_groups has the key '%s'", j->config.strange);
}

static fp8_status side_missing(fp8_lint_job *j) {
    if (j->unreadable || j->quant.dialect != FP8_DIALECT_MODELOPT || j->has_side) return FP8_OK;
    return fp8_lint_find(j, "no hf_quant_config.json in %s", fp8_checkpoint_folder(j->c));
}

static fp8_status stray_files(fp8_lint_job *j) {
    if (j->has_index || j->num_files < 2) return FP8_OK;
    return fp8_lint_find(j, "%d .safetensors files and no model.safetensors.index.json",
                         j->num_files);
}

/* ---- the ignore list ------------------------------------------------------------------------- */

static fp8_status ignored_fp8(fp8_lint_job *j) {
    fp8_status st = FP8_OK;

    if (j->unreadable) return FP8_OK;
    for (int64_t i = 0; i < j->num_weights; i++)
        if (j->weights[i].is_fp8 && j->weights[i].ignored)
            FP8_TRY(fp8_lint_find(j, "'%s' is on the ignore list, but its weight is %s",
                                  j->weights[i].module,
                                  fp8_dtype_name(j->weights[i].entry->tensor.dtype)));
done:
    return st;
}

/* Embeddings are no Linear, and lm_head is left alone by every engine. */
static int is_linear(const fp8_lint_job *j, const char *module) {
    if (fp8_lint_ends_with(module, "_proj")) return 1;
    if (j->quant.dialect != FP8_DIALECT_COMPRESSED_TENSORS) return 0; /* they know routers */
    return strstr(module, ".layers.") && !strstr(module, "embed") && !strstr(module, "norm");
}

static fp8_status not_ignored(fp8_lint_job *j) {
    fp8_status st = FP8_OK;

    if (j->unreadable) return FP8_OK;
    for (int64_t i = 0; i < j->num_weights; i++) {
        const fp8_lint_weight *w = &j->weights[i];
        if (!w->is_fp8 && !w->ignored && is_linear(j, w->module))
            FP8_TRY(fp8_lint_find(j, "'%s': expected on the ignore list, for its weight is %s",
                                  w->module, fp8_dtype_name(w->entry->tensor.dtype)));
    }
done:
    return st;
}

static fp8_status fused_name(fp8_lint_job *j) {
    static const char *const fused[] = {"qkv_proj", "gate_up_proj"};
    fp8_status st = FP8_OK;

    for (int32_t i = 0; i < j->quant.num_ignore; i++)
        for (int k = 0; k < 2; k++) {
            int there = 0;
            if (!fp8_lint_ends_with(j->quant.ignore[i], fused[k])) continue;
            for (int64_t w = 0; w < j->num_weights; w++)
                there |= fp8_lint_ends_with(j->weights[w].module, fused[k]);
            if (!there)
                FP8_TRY(fp8_lint_find(j, "the ignore list names '%s': expected the Linears of the "
                                      "checkpoint, each by its own name", j->quant.ignore[i]));
        }
done:
    return st;
}

static fp8_status fused_split(fp8_lint_job *j) {
    fp8_status st = FP8_OK;

    for (int64_t i = 0; i < j->num_weights; i++) {
        const fp8_lint_weight *w = &j->weights[i], *first;
        if (w->first < 0) continue;
        first = &j->weights[w->first];
        if (first->is_fp8 != w->is_fp8)
            FP8_TRY(fp8_lint_find(j, "'%s' is %s, but '%s' is %s", w->module,
                                  fp8_dtype_name(w->entry->tensor.dtype), first->module,
                                  fp8_dtype_name(first->entry->tensor.dtype)));
    }
done:
    return st;
}

/* Up to and with ".experts."; 0: no expert. */
static size_t experts_of(const char *module) {
    const char *at = strstr(module, ".experts.");
    return at ? (size_t)(at - module) + strlen(".experts.") : 0;
}

static fp8_status expert_split(fp8_lint_job *j) {
    const fp8_lint_weight *first = NULL;
    fp8_status st = FP8_OK;

    for (int64_t i = 0; i < j->num_weights; i++) {
        const fp8_lint_weight *w = &j->weights[i];
        const size_t holder = experts_of(w->module);
        if (!holder) continue;
        if (!first || strncmp(first->module, w->module, holder) != 0) first = w;
        else if (first->is_fp8 != w->is_fp8)
            FP8_TRY(fp8_lint_find(j, "'%s' is %s, but '%s' is %s", w->module,
                                  fp8_dtype_name(w->entry->tensor.dtype), first->module,
                                  fp8_dtype_name(first->entry->tensor.dtype)));
    }
done:
    return st;
}

/* ---- sizes ----------------------------------------------------------------------------------- */

static fp8_status tp_heads(fp8_lint_job *j) {
    const fp8_model_config *c = &j->model;
    fp8_status st = FP8_OK;

    if (!j->has_model || j->tp == 1) return FP8_OK;
    if (c->num_heads % j->tp != 0)
        FP8_TRY(fp8_lint_find(j, "%lld attention heads on %lld ranks", (long long)c->num_heads,
                              (long long)j->tp));
    if (c->num_kv_heads % j->tp != 0 && j->tp % c->num_kv_heads != 0)
        FP8_TRY(fp8_lint_find(j, "%lld KV heads on %lld ranks", (long long)c->num_kv_heads,
                              (long long)j->tp));
    if (c->intermediate_size % j->tp != 0)
        FP8_TRY(fp8_lint_find(j, "an MLP of %lld on %lld ranks", (long long)c->intermediate_size,
                              (long long)j->tp));
done:
    return st;
}

static int is_row_parallel(const char *module) {
    return fp8_lint_ends_with(module, ".o_proj") || fp8_lint_ends_with(module, ".down_proj") ||
           fp8_lint_ends_with(module, ".w2");
}

/* Parts of fused matrices, and what a rank holds of any, end at squares of 128. */
static fp8_status blocks(fp8_lint_job *j) {
    const int64_t side = FP8_DIALECT_BLOCK;
    fp8_status st = FP8_OK;

    if (j->unreadable || j->quant.scheme != FP8_SCHEME_BLOCK) return FP8_OK;
    for (int64_t i = 0; i < j->num_weights; i++) {
        const fp8_lint_weight *w = &j->weights[i];
        const int by_row = is_row_parallel(w->module);
        const int64_t size = w->entry->tensor.shape[by_row];
        size_t holder;
        const int fused = fp8_lint_fused_set(w->module, &holder) >= 0;
        if (!w->is_fp8 || !(fused || by_row)) continue;
        if (size % j->tp != 0 || size / j->tp % side != 0)
            FP8_TRY(fp8_lint_find(j, "'%s': %s %lld on %lld rank%s: expected a multiple of %lld",
                                  w->module, by_row ? "inputs" : "outputs", (long long)size,
                                  (long long)j->tp, j->tp == 1 ? "" : "s",
                                  (long long)(side * j->tp)));
    }
done:
    return st;
}

/* ---- the table ------------------------------------------------------------------------------- */

#define VLLM (1u << FP8_LINT_VLLM)
#define SGLANG (1u << FP8_LINT_SGLANG)
#define TRT (1u << FP8_LINT_TENSORRT_LLM)
#define HF (1u << FP8_LINT_HF)
#define ALL (VLLM | SGLANG | TRT | HF)

static const struct {
    fp8_lint_rule rule;
    fp8_lint_check check;
} rules[] = {
    {{"config-unreadable", ALL, 1, "no engine of ours reads this quantization_config",
      "fp8calib convert the BF16 model anew"}, unreadable},
    {{"status-frozen", HF, 1, "transformers leaves the scales out and answers garbage",
      "fp8calib convert MODEL -o OUT"}, status_frozen},
    {{"group-name", TRT, 1, "TensorRT-LLM before mid-2026 looks for 'group_0' alone",
      "fp8calib convert MODEL -o OUT"}, group_name},
    {{"new-keys", VLLM | HF, 0, "older readers refuse keys that they do not know",
      "fp8calib convert MODEL -o OUT"}, new_keys},
    {{"side-missing", TRT, 1, "TensorRT-LLM reads hf_quant_config.json first",
      "fp8calib convert MODEL -o OUT --dialect modelopt"}, side_missing},
    {{"stray-files", VLLM | SGLANG, 1, "without an index every .safetensors file is loaded",
      "fp8calib convert MODEL -o OUT, or remove the other files"}, stray_files},
    {{"ignored-fp8", ALL, 1, "codes are taken for values", "fp8calib convert the BF16 model anew"},
     ignored_fp8},
    {{"not-ignored", VLLM | HF | SGLANG, 1, "the engine looks for a weight scale that is not there",
      "add the module to the ignore list of config.json"}, not_ignored},
    {{"fused-name", SGLANG, 1, "names of fused matrices match nothing", "name q, k and v each"},
     fused_name},
    {{"fused-split", VLLM | SGLANG, 1, "parts of one fused matrix must all be FP8, or none",
      "fp8calib convert MODEL --to bf16, then convert it whole"}, fused_split},
    {{"expert-split", VLLM | SGLANG | TRT, 1, "experts of a layer must all be FP8, or none",
      "fp8calib convert MODEL --to bf16, then convert it whole"}, expert_split},
    {{"scale-missing", ALL, 1, "the weight cannot be scaled",
      "fp8calib run, or convert, the BF16 model anew"}, fp8_lint_scale_missing},
    {{"scale-shape", ALL, 1, "the loader refuses the tensor",
      "fp8calib convert the BF16 model anew"}, fp8_lint_scale_shape},
    {{"scale-value", ALL, 1, "every product of the Linear is zero, NaN or of the wrong sign",
      "fp8calib convert the BF16 model anew"}, fp8_lint_scale_value},
    {{"scale-dtype", ALL, 0, "safetensors before 0.6 refuses the whole file",
      "fp8calib convert MODEL -o OUT"}, fp8_lint_scale_dtype},
    {{"fused-weight-scale", VLLM, 0,
      "vLLM makes the codes anew with the largest scale: 2 to 5 dB are lost",
      "fp8calib run or convert the BF16 model: q, k, v and gate, up share one"},
     fp8_lint_fused_weights},
    {{"fused-input-scale", VLLM | SGLANG | TRT, 0, "one input scale, the largest, serves all",
      "fp8calib run the BF16 model: Linears with one input share its scale"},
     fp8_lint_fused_inputs},
    {{"expert-input-scale", VLLM | TRT, 0,
      "TensorRT-LLM asserts that they are equal, vLLM takes the largest",
      "fp8calib convert MODEL -o OUT --dialect deepseek, which has none"}, fp8_lint_expert_inputs},
    {{"kv-missing", ALL, 1, "the KV cache is scaled by 1 without a word",
      "fp8calib run MODEL --kv fp8"}, fp8_lint_kv_missing},
    {{"kv-one-sided", VLLM | SGLANG, 1, "one scale serves both, or the loader asserts",
      "fp8calib run MODEL --kv fp8"}, fp8_lint_kv_one_sided},
    {{"kv-undeclared", ALL, 0, "the scales may be dropped without a word",
      "fp8calib convert MODEL -o OUT --kv-scales none, or run --kv fp8"}, fp8_lint_kv_undeclared},
    {{"kv-name", ALL, 1, "a name that the loader does not map is dropped without a word",
      "fp8calib convert MODEL -o OUT --dialect ..."}, fp8_lint_kv_name},
    {{"kv-range", ALL, 0, "outliers among keys cost accuracy, 0 and NaN all of it",
      "fp8calib run MODEL --kv none"}, fp8_lint_kv_range},
    {{"tp-heads", VLLM | SGLANG | TRT, 1, "heads and MLP do not divide by the ranks",
      "another --tp"}, tp_heads},
    {{"block-size", VLLM | SGLANG | TRT, 1, "a rank's part must end at squares of 128",
      "fp8calib convert --scheme dynamic, or another --tp"}, blocks},
};

int32_t fp8_lint_num_rules(void) { return sizeof rules / sizeof *rules; }
const fp8_lint_rule *fp8_lint_rule_at(int32_t i) { return &rules[i].rule; }
fp8_lint_check fp8_lint_check_at(int32_t i) { return rules[i].check; }
