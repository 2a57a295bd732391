/* core/core.h - everything of core/: what every other module stands on. Nothing here knows FP8
 * arithmetic, files or models. Ownership law of the whole library: no function frees or keeps a
 * pointer you pass it unless its comment says "takes". Error law: core/status.h. */
#ifndef FP8_CORE_CORE_H
#define FP8_CORE_CORE_H
#include "core/activation.h"
#include "core/arena.h"
#include "core/device.h"
#include "core/dtype.h"
#include "core/half.h"
#include "core/log.h"
#include "core/status.h"
#include "core/tensor.h"
#include "core/threads.h"
#endif
