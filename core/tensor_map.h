/* core/tensor_map.h - finds the driver's encoder of tensor maps. Private to the sources that need
 * it, like cuda_check.h. */
#ifndef FP8_CORE_TENSOR_MAP_H
#define FP8_CORE_TENSOR_MAP_H
#include <cudaTypedefs.h>

#include "core/status.h"

typedef PFN_cuTensorMapEncodeTiled_v12000 fp8_tensor_map_encode;

/* cuTensorMapEncodeTiled through the runtime, so that libcuda is not linked; looked up once a
 * process. FP8_EUNSUPPORTED: a driver without it; FP8_ECUDA. */
FP8_NODISCARD fp8_status fp8_tensor_map_encoder(fp8_tensor_map_encode *out);
#endif
