/* calib/observer.h - private: amax of every slot of a forward, gathered on the device. A step's row
 * comes to the host while later steps run: a few steps are in flight, and the host waits for the
 * oldest alone. */
#ifndef FP8_CALIB_OBSERVER_H
#define FP8_CALIB_OBSERVER_H
#include <stdint.h>

#include "model/model.h"
#include "quant/cast.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { FP8_OBSERVER_DEPTH = 2 }; /* steps in flight, where each is a forward of its own */
typedef struct fp8_observer fp8_observer;

/* max_tokens: most tokens a step may hold. depth: most steps in flight. histograms: whether they
 * are gathered, too. kv_heads: heads of keys whose amax is gathered one by one; 0: of none. */
FP8_NODISCARD fp8_status fp8_observer_create(fp8_observer **out, fp8_device *d, int64_t num_layers,
                                             int64_t kv_heads, fp8_compute compute,
                                             int64_t max_tokens, int64_t depth, int histograms);
void fp8_observer_destroy(fp8_observer *o); /* NULL is fine; waits on CUDA */

/* Runs one observed forward, asynchronously. FP8_EINVAL: `depth` steps are in flight. */
FP8_NODISCARD fp8_status fp8_observer_launch(fp8_observer *o, fp8_model *m, const fp8_batch *batch);

/* Its two halves, for steps that are run together: open gives the tap of the next step, to be used
 * until send, which is called once a step, in their order. */
FP8_NODISCARD fp8_status fp8_observer_open(fp8_observer *o, fp8_tap *tap, const fp8_batch *batch);
FP8_NODISCARD fp8_status fp8_observer_send(fp8_observer *o);

/* *row [num_slots, those of heads after them] = the oldest step in flight (waits for it), *bins
 * [num_slots] = its histograms,
 * NULL where none are gathered; both valid until the next open or launch. */
FP8_NODISCARD fp8_status fp8_observer_collect(fp8_observer *o, const fp8_amax_slot **row,
                                              const fp8_magnitudes **bins);

#ifdef __cplusplus
}
#endif
#endif
