/* The CUDA half of core/device.c: runtime API calls from C, no kernels. */
#include <stdio.h>
#include <stdlib.h>

#include "core/cuda_check.h"
#include "core/device_impl.h"

int32_t fp8_cuda_count(const char **why) {
    int n = 0;
    const cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess) {
        (void)cudaGetLastError();
        *why = cudaGetErrorString(e);
        return 0;
    }
    if (n == 0) *why = "the driver lists no device";
    return n;
}

fp8_status fp8_cuda_launched(const char *kernel, struct CUstream_st *stream) {
    const char *sync = getenv("FP8_SYNC");
    cudaError_t e = cudaGetLastError();
    if (e == cudaSuccess && sync && *sync == '1') e = cudaStreamSynchronize(stream);
    if (e != cudaSuccess) return FP8_FAIL(FP8_ECUDA, "%s: %s", kernel, cudaGetErrorString(e));
    return FP8_OK;
}

fp8_status fp8_cuda_open(fp8_device *d, int32_t index) {
    fp8_status st = FP8_OK;
    struct cudaDeviceProp prop;

    FP8_TRY_CUDA(cudaSetDevice(index));
    FP8_TRY_CUDA(cudaGetDeviceProperties(&prop, index));
    FP8_TRY_CUDA(cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking));
    d->capability = prop.major * 10 + prop.minor;
    snprintf(d->name, sizeof d->name, "%s", prop.name);
done:
    return st;
}

void fp8_cuda_use(const fp8_device *d) { (void)cudaSetDevice(d->index); }

void fp8_cuda_close(fp8_device *d) {
    if (!d->stream) return;
    fp8_cuda_use(d);
    (void)cudaStreamSynchronize(d->stream);
    fp8_cuda_drop_ring(d->ring);
    (void)cudaStreamDestroy(d->stream);
}

fp8_status fp8_cuda_alloc(fp8_device *d, void **out, size_t bytes) {
    cudaError_t e;
    fp8_cuda_use(d);
    e = cudaMalloc(out, bytes ? bytes : 1);
    if (e == cudaSuccess) return FP8_OK;
    (void)cudaGetLastError();
    return FP8_FAIL(e == cudaErrorMemoryAllocation ? FP8_ENOMEM : FP8_ECUDA,
                    "%zu bytes on %s: %s", bytes, d->name, cudaGetErrorString(e));
}

void fp8_cuda_free(fp8_device *d, void *p) {
    (void)cudaStreamSynchronize(d->stream);
    (void)cudaFree(p);
}

fp8_status fp8_cuda_memory(fp8_device *d, size_t *free_bytes, size_t *all_bytes) {
    fp8_status st = FP8_OK;
    fp8_cuda_use(d);
    FP8_TRY_CUDA(cudaMemGetInfo(free_bytes, all_bytes));
done:
    return st;
}

fp8_status fp8_cuda_alloc_host(fp8_device *d, void **out, size_t bytes) {
    cudaError_t e;
    fp8_cuda_use(d);
    e = cudaMallocHost(out, bytes ? bytes : 1);
    if (e == cudaSuccess) return FP8_OK;
    (void)cudaGetLastError();
    return FP8_FAIL(FP8_ENOMEM, "%zu bytes of pinned host memory: %s", bytes,
                    cudaGetErrorString(e));
}

void fp8_cuda_free_host(fp8_device *d, void *p) {
    (void)cudaStreamSynchronize(d->stream);
    (void)cudaFreeHost(p);
}

fp8_status fp8_cuda_copy(fp8_device *d, void *dst, const void *src, size_t bytes,
                         fp8_copy_kind kind) {
    static const enum cudaMemcpyKind kinds[] = {cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost,
                                                cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice};
    fp8_status st = FP8_OK;

    if (kind == FP8_COPY_UP && fp8_cuda_upload_is_large(d, bytes))
        return fp8_cuda_upload_large(d, dst, src, bytes);
    FP8_TRY_CUDA(cudaMemcpyAsync(dst, src, bytes, kinds[kind], d->stream));
    /* From pageable memory the runtime stages the bytes before it returns, but pinned or managed
     * memory would be read later: the promise is that src may be reused now. */
    if (kind == FP8_COPY_DOWN || kind == FP8_COPY_UP)
        FP8_TRY_CUDA(cudaStreamSynchronize(d->stream));
done:
    return st;
}

fp8_status fp8_cuda_fill(fp8_device *d, void *dst, int byte, size_t bytes) {
    fp8_status st = FP8_OK;
    FP8_TRY_CUDA(cudaMemsetAsync(dst, byte, bytes, d->stream));
done:
    return st;
}

fp8_status fp8_cuda_sync(fp8_device *d) {
    fp8_status st = FP8_OK;
    FP8_TRY_CUDA(cudaStreamSynchronize(d->stream));
done:
    return st;
}

fp8_status fp8_cuda_event_create(fp8_event *e) {
    fp8_status st = FP8_OK;
    cudaEvent_t event = NULL;
    fp8_cuda_use(e->device);
    FP8_TRY_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    e->handle = event;
done:
    return st;
}

fp8_status fp8_cuda_event_record(fp8_event *e) {
    fp8_status st = FP8_OK;
    FP8_TRY_CUDA(cudaEventRecord((cudaEvent_t)e->handle, e->device->stream));
done:
    return st;
}

fp8_status fp8_cuda_event_wait(fp8_event *e) {
    fp8_status st = FP8_OK;
    FP8_TRY_CUDA(cudaEventSynchronize((cudaEvent_t)e->handle));
done:
    return st;
}

void fp8_cuda_event_destroy(fp8_event *e) { (void)cudaEventDestroy((cudaEvent_t)e->handle); }
