/* quant/quant.h - numbers in FP8: casts, amax, scale recipes, matrix products, Linear layers, and
 * the fused producers of their inputs. Each operation has a plain CPU version and a CUDA one behind
 * the same call; the fp8_device given says which runs. scale = max/amax multiplies into FP8,
 * descale = amax/max comes out. */
#ifndef FP8_QUANT_QUANT_H
#define FP8_QUANT_QUANT_H
#include "quant/cast.h"
#include "quant/chain.h"
#include "quant/composed.h"
#include "quant/delayed.h"
#include "quant/gemm.h"
#include "quant/gemm_tune.h"
#include "quant/linear.h"
#include "quant/lookup.h"
#include "quant/produce.h"
#include "quant/recipe.h"
#endif
