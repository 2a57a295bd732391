/* core/launch.cuh - private: launches of kernels that may overlap with the one before them in the
 * stream (fp8_launch in core/device.h), and the two instructions such a kernel needs. */
#ifndef FP8_CORE_LAUNCH_CUH
#define FP8_CORE_LAUNCH_CUH
#include <cuda_runtime.h>

#include "core/cuda_check.h"
#include "core/device.h"

namespace fp8 {

/* Until here a kernel may have run beside those before it: call it in every thread, before the
 * first access to anything but constants. At once where the launch was an ordered one. */
static __device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* The next kernel may be started once every block has come here or ended. It still waits for all of
 * this kernel's writes, and so for all that this one waits for: a producer or an append comes here
 * first of all, so that the ring of the product or of attention behind it fills meanwhile. */
static __device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* All blocks of the cluster come here, and see what they wrote to shared memory before. */
static __device__ __forceinline__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/* What block `rank` of the cluster has in shared memory where this one has *mine. */
static __device__ __forceinline__ uint64_t cluster_read(const uint64_t *mine, unsigned rank) {
#if __CUDA_ARCH__ >= 900
    uint64_t value;
    uint32_t at;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(at)
                 : "r"((uint32_t)__cvta_generic_to_shared(mine)), "r"(rank));
    asm volatile("ld.shared::cluster.u64 %0, [%1];" : "=l"(value) : "r"(at) : "memory");
    return value;
#else
    (void)rank;
    return *mine;
#endif
}

/* kernel<<<grid, block, shared bytes, stream of d>>>(args...), blocks in clusters of `cluster`
 * (more than 1: Hopper and newer). */
template <typename... P, typename... A>
static fp8_status launch_clusters(const char *name, void (*kernel)(P...), unsigned cluster,
                                  dim3 grid, dim3 block, size_t shared, fp8_device *d,
                                  fp8_launch how, A... args) {
    const cudaStream_t stream = fp8_device_stream(d);
    cudaLaunchAttribute attribute[2] = {};
    cudaLaunchConfig_t config = {};
    fp8_status st = FP8_OK;

    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = attribute;
    if (how == FP8_LAUNCH_OVERLAP && fp8_device_capability(d) >= 90) {
        attribute[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
        attribute[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
        attribute[config.numAttrs].val.clusterDim.x = cluster;
        attribute[config.numAttrs].val.clusterDim.y = 1;
        attribute[config.numAttrs++].val.clusterDim.z = 1;
    }
    FP8_TRY_CUDA(cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...));
    FP8_TRY(fp8_cuda_launched(name, stream));
done:
    return st;
}

template <typename... P, typename... A>
static fp8_status launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block,
                         size_t shared, fp8_device *d, fp8_launch how, A... args) {
    return launch_clusters(name, kernel, 1, grid, block, shared, d, how, args...);
}

} /* namespace fp8 */
#endif
