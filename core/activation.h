/* core/activation.h - the activation functions that a model's config names and quant/ computes. */
#ifndef FP8_CORE_ACTIVATION_H
#define FP8_CORE_ACTIVATION_H

typedef enum fp8_activation {
    FP8_ACT_SILU,      /* x / (1 + e^-x) */
    FP8_ACT_GELU_TANH, /* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): gelu_new,
                        * gelu_pytorch_tanh, and Gemma's "gelu" of old configs */
    FP8_ACT_GELU_ERF,  /* x/2 (1 + erf(x / sqrt(2))) */
    FP8_ACT_RELU       /* x < 0 ? 0 : x; NaN stays */
} fp8_activation;

#endif
