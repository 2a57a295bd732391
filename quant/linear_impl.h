/* quant/linear_impl.h - private: a Linear as linear.c makes it and linear_run.c runs it. */
#ifndef FP8_QUANT_LINEAR_IMPL_H
#define FP8_QUANT_LINEAR_IMPL_H
#include "quant/linear.h"

enum { FP8_PAIR_STEP = 4 };

struct fp8_linear {
    fp8_device *device;
    char name[256];
    int64_t in, out;
    fp8_dtype compute, operand; /* operand: type of the product's A */
    fp8_input_scaling input;
    float input_descale;
    /* Place of the device: descale, and FP8_PAIR_STEP further the scale (STATIC), each on 16 bytes,
     * for a product may leave codes for this layer by that scale; or ones (CURRENT). */
    float *input_pair;
    const float *delayed_scale, *delayed_descale;
    fp8_amax_slot *delayed_amax;
    void *weight; /* place of the device */
    int borrowed; /* weight is the caller's */
    fp8_dtype weight_dtype;
    int weight_is_kn;
    int in_blocks;         /* weight_descale is [ceil(out / 128)][block_ld] */
    float *weight_descale; /* place of the device; NULL = 1 */
    int64_t num_weight_descales;
    void *bias; /* place of the device; NULL = none */
    fp8_dtype bias_dtype;
};

static inline int64_t fp8_blocks_of(int64_t n) { return (n + FP8_GEMM_BLOCK - 1) / FP8_GEMM_BLOCK; }
static inline int64_t fp8_up_to_4(int64_t n) { return (n + 3) / 4 * 4; }

/* linear_quantize.c: *codes = new, of weights [out, in] in the place of the device as E4M3, with
 * descales: 1, out, or [ceil(out / 128)][ceil(in / 128), up to a multiple of 4]. */
FP8_NODISCARD fp8_status fp8_linear_quantize_weight(fp8_device *d, void **codes, float **descale,
                                                    const void *weight, fp8_dtype dtype,
                                                    int64_t out, int64_t in,
                                                    fp8_weight_scaling scaling);
#endif
