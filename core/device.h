/* core/device.h - a place to compute: the CPU with its thread pool, or one CUDA device with a
 * stream. Memory, copies and events look the same on both, so that code above is written once.
 *
 * One thread drives a device at a time. On CUDA every call below is ordered on the device's
 * stream and returns at once unless it says "waits"; on the CPU everything is done on return. */
#ifndef FP8_CORE_DEVICE_H
#define FP8_CORE_DEVICE_H
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#include "core/tensor.h"
#include "core/threads.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st *fp8_stream; /* = cudaStream_t; NULL on the CPU */
typedef struct fp8_device fp8_device;

/* How a kernel follows those before it in the stream. OVERLAP (Hopper and newer, elsewhere the same
 * as ORDERED): it may be started while they still run, back to the last that was ORDERED, reads its
 * constants (weights, and where it is promised so the older tokens of a paged cache; none of them
 * may be writing these), and then waits by itself until all that they wrote can be seen. A chain of
 * short kernels hides its launches so; results are the same. */
typedef enum fp8_launch { FP8_LAUNCH_ORDERED = 0, FP8_LAUNCH_OVERLAP } fp8_launch;
typedef struct fp8_event fp8_event;

/* spec: "auto" (CUDA device 0 when there is a usable one, else the CPU), "cpu", "cuda", "cuda:N".
 * threads: host threads, 0 = all. FP8_EINVAL: spec not understood; FP8_EUNSUPPORTED: no such
 * device, no driver, or a build without CUDA (the message says which). */
FP8_NODISCARD fp8_status fp8_device_create(fp8_device **out, const char *spec, int32_t threads);
void fp8_device_destroy(fp8_device *d); /* NULL is fine; waits for the stream */

fp8_place fp8_device_place(const fp8_device *d);
int32_t fp8_device_index(const fp8_device *d);  /* CUDA ordinal; 0 on the CPU */
const char *fp8_device_name(const fp8_device *d); /* "NVIDIA H200", "CPU, 2 threads" */
int32_t fp8_device_capability(const fp8_device *d); /* 90 for sm_90; 0 on the CPU */
fp8_pool *fp8_device_pool(const fp8_device *d);
/* Also makes the device the calling thread's current one, as a launch on the stream needs. */
fp8_stream fp8_device_stream(const fp8_device *d);

/* 256-byte aligned; bytes 0 gives a valid pointer. Not zeroed. FP8_ENOMEM names the bytes. */
FP8_NODISCARD fp8_status fp8_device_alloc(fp8_device *d, void **out, size_t bytes);
void fp8_device_free(fp8_device *d, void *p); /* NULL is fine; waits on CUDA */

/* What is free now, and all there is; on the CPU, of the machine. */
FP8_NODISCARD fp8_status fp8_device_memory(fp8_device *d, size_t *free_bytes, size_t *all_bytes);

/* Host memory that async copies can use (pinned on CUDA). */
FP8_NODISCARD fp8_status fp8_device_alloc_host(fp8_device *d, void **out, size_t bytes);
void fp8_device_free_host(fp8_device *d, void *p);

/* upload: host -> device; the host buffer may be reused on return. A large one is the work of all
 * of the pool's threads, through pinned memory (128 MB, kept). download: waits for the result.
 * download_async: `dst` is from fp8_device_alloc_host and filled when a later event is reached. */
FP8_NODISCARD fp8_status fp8_device_upload(fp8_device *d, void *dst, const void *src, size_t bytes);
FP8_NODISCARD fp8_status fp8_device_download(fp8_device *d, void *dst, const void *src,
                                             size_t bytes);
FP8_NODISCARD fp8_status fp8_device_download_async(fp8_device *d, void *dst, const void *src,
                                                   size_t bytes);
FP8_NODISCARD fp8_status fp8_device_copy(fp8_device *d, void *dst, const void *src, size_t bytes);
FP8_NODISCARD fp8_status fp8_device_fill(fp8_device *d, void *dst, int byte, size_t bytes);
FP8_NODISCARD fp8_status fp8_device_sync(fp8_device *d); /* waits for all; reports async faults */

FP8_NODISCARD fp8_status fp8_event_create(fp8_device *d, fp8_event **out);
FP8_NODISCARD fp8_status fp8_event_record(fp8_event *e);
FP8_NODISCARD fp8_status fp8_event_wait(fp8_event *e); /* waits until the recorded point is done */
void fp8_event_destroy(fp8_event *e);

#ifdef __cplusplus
}
#endif
#endif
