/* model/layer_impl.h - private: what the parts of a layer's wiring share (layer.c,
 * layer_attention.c). */
#ifndef FP8_MODEL_LAYER_IMPL_H
#define FP8_MODEL_LAYER_IMPL_H
#include "model/model_impl.h"

/* The input of Linears on its way: values in the compute type, codes, or both. */
typedef struct fp8_layer_input {
    fp8_tensor x;           /* what the Linears take */
    const float *x_descale; /* of codes */
    fp8_sink sink;
} fp8_layer_input;

/* Weights and input are codes with one scale each: such a product stores codes, too. */
static inline int fp8_linear_makes_codes(const fp8_linear *l) {
    return l && fp8_linear_input_scaling(l) == FP8_INPUT_STATIC;
}

/* What a step over pages may use in place of several. */
static inline const fp8_linear *fp8_pass_joined(const fp8_pass *p, const fp8_linear *l) {
    return p->paged && p->paged->joined ? l : NULL;
}

static inline const fp8_linear *fp8_first_linear(fp8_linear *const *linears) {
    while (!*linears) linears++;
    return *linears;
}

/* [tokens of p, width] of the compute type at `data`. */
fp8_tensor fp8_pass_view(const fp8_pass *p, void *data, int64_t width);
/* Where the figures of what is made next go on the way; NULL: the tap sees it when it is there. */
fp8_amax_slot *fp8_pass_slot(fp8_pass *p, int64_t layer, fp8_point point, const uint8_t **first);
/* As fp8_layer_call, of a pass: a tap sees values, so that nothing may happen at a store. */
fp8_linear_call fp8_pass_call(const fp8_pass *p, int64_t index, fp8_linear_kind kind, fp8_dtype *y);
FP8_NODISCARD fp8_status fp8_pass_linear(const fp8_pass *p, const fp8_linear *l,
                                         const fp8_tensor *y, const fp8_tensor *x,
                                         const float *x_descale, fp8_linear_call call);
/* Codes of the layer's weights anew, where they are to be made in every pass. */
FP8_NODISCARD fp8_status fp8_pass_recast(const fp8_pass *p, int64_t index, fp8_linear_kind first,
                                         fp8_linear_kind last);
/* p->x += p->y where a block has left its result there, and the norm of p->x: as codes for `l`, or
 * as values in p->y. Without codes the steps round as transformers' do. It is the layer's `point`;
 * layer -1: of no layer. */
FP8_NODISCARD fp8_status fp8_pass_norm_into(fp8_pass *p, fp8_layer_input *in, const fp8_linear *l,
                                            const fp8_tensor *weight, const fp8_tensor *bias,
                                            int64_t layer, fp8_point point);

/* *o = what attention leaves for the o Linear, *descale where it is codes. */
FP8_NODISCARD fp8_status fp8_layer_attention(fp8_pass *p, int64_t index, fp8_tensor *o,
                                             const float **descale);

#endif
