/* model/score_cpu.h - private: the scores of fp8_ops, CPU version (ops.h). */
#ifndef FP8_MODEL_SCORE_CPU_H
#define FP8_MODEL_SCORE_CPU_H
#include "model/ops.h"

fp8_status fp8_score_cpu(fp8_device *d, const fp8_tensor *logits, const fp8_tensor *reference,
                         const int32_t *targets, float *nll, float *kl, uint8_t *top1);
#endif
