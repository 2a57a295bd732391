/* core/posts.cuh - private: words that the blocks of a cluster send each other. Each has a place of
 * its own at the receiver, whose barrier counts the bytes: one wait, by whoever reads, instead of a
 * barrier of the block and one of the cluster. Before Hopper there are no clusters, and nothing
 * here does anything. */
#ifndef FP8_CORE_POSTS_CUH
#define FP8_CORE_POSTS_CUH
#include <stdint.h>

namespace fp8 {

/* First of all, by every thread: what is sent before all blocks are here would be lost. `arrived`
 * is the block's own barrier, `bytes` what will be sent to it. Relaxed: all that the others need of
 * this block is its barrier, which the fence shows them; an arrival that releases waits for a fence
 * of the whole GPU, in every warp. */
static __device__ __forceinline__ void posts_open(uint64_t *arrived, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x == 0)
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n"
                     "fence.mbarrier_init.release.cluster;\n"
                     "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                         (uint32_t)__cvta_generic_to_shared(arrived)),
                     "r"(bytes)
                     : "memory");
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#else
    (void)arrived, (void)bytes;
#endif
}

/* By every thread, before the first post: until all blocks have opened theirs. */
static __device__ __forceinline__ void posts_ready() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/* A thread's value, of 4 or 8 bytes, to where `at` is in block `rank` of the cluster. */
template <typename T>
static __device__ __forceinline__ void post(const T *at, const uint64_t *arrived, unsigned rank,
                                            T value) {
#if __CUDA_ARCH__ >= 900
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "what an instruction sends");
    uint32_t to, bar;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(to)
                 : "r"((uint32_t)__cvta_generic_to_shared(at)), "r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(bar)
                 : "r"((uint32_t)__cvta_generic_to_shared(arrived)), "r"(rank));
    if constexpr (sizeof(T) == 4)
        asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::
                         "r"(to), "r"(value), "r"(bar)
                     : "memory");
    else
        asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u64 [%0], %1, [%2];" ::
                         "r"(to), "l"(value), "r"(bar)
                     : "memory");
#else
    (void)at, (void)arrived, (void)rank, (void)value;
#endif
}

/* Until all that is sent to this block has come. */
static __device__ __forceinline__ void posts_wait(const uint64_t *arrived) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "wait: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], 0;\n"
                 "@!p bra wait;\n"
                 "}" ::"r"((uint32_t)__cvta_generic_to_shared(arrived))
                 : "memory");
#else
    (void)arrived;
#endif
}

} /* namespace fp8 */
#endif
