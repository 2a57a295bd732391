/* core/device_impl.h - private: what a device and an event are, for device.c and its CUDA half. */
#ifndef FP8_CORE_DEVICE_IMPL_H
#define FP8_CORE_DEVICE_IMPL_H
#include "core/device.h"

typedef struct fp8_upload_ring fp8_upload_ring; /* upload_cuda.c */

struct fp8_device {
    fp8_place place;
    int32_t index, capability;
    fp8_pool *pool;
    fp8_stream stream;
    char name[256];
    fp8_upload_ring *ring; /* NULL until the first large upload */
};

struct fp8_event {
    fp8_device *device;
    void *handle; /* cudaEvent_t */
};

/* The CUDA half (device_cuda.c); in a build without CUDA these are not there and not called. */
int32_t fp8_cuda_count(const char **why); /* usable devices; 0 and why none */
fp8_status fp8_cuda_open(fp8_device *d, int32_t index);
void fp8_cuda_close(fp8_device *d);
void fp8_cuda_use(const fp8_device *d); /* makes it this thread's current device */
fp8_status fp8_cuda_alloc(fp8_device *d, void **out, size_t bytes);
void fp8_cuda_free(fp8_device *d, void *p);
fp8_status fp8_cuda_memory(fp8_device *d, size_t *free_bytes, size_t *all_bytes);
fp8_status fp8_cuda_alloc_host(fp8_device *d, void **out, size_t bytes);
void fp8_cuda_free_host(fp8_device *d, void *p);
typedef enum fp8_copy_kind {
    FP8_COPY_UP,
    FP8_COPY_DOWN,
    FP8_COPY_DOWN_ASYNC,
    FP8_COPY_ON
} fp8_copy_kind;
fp8_status fp8_cuda_copy(fp8_device *d, void *dst, const void *src, size_t bytes,
                         fp8_copy_kind kind);
int fp8_cuda_upload_is_large(const fp8_device *d, size_t bytes);
fp8_status fp8_cuda_upload_large(fp8_device *d, void *dst, const void *src, size_t bytes);
void fp8_cuda_drop_ring(fp8_upload_ring *r); /* NULL is fine */
fp8_status fp8_cuda_fill(fp8_device *d, void *dst, int byte, size_t bytes);
fp8_status fp8_cuda_sync(fp8_device *d);
fp8_status fp8_cuda_event_create(fp8_event *e);
fp8_status fp8_cuda_event_record(fp8_event *e);
fp8_status fp8_cuda_event_wait(fp8_event *e);
void fp8_cuda_event_destroy(fp8_event *e);
#endif
