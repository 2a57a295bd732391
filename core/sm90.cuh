/* core/sm90.cuh - private: Hopper instructions, a function each: barriers in shared memory
 * (mbarrier), bulk tensor copies (TMA), ordering of a warpgroup's tensor-core products (wgmma),
 * registers, packed conversions. The products themselves stand with the kernels, which need few
 * shapes each. Included inside an sm_90a guard; SM90 stays defined for headers that add to this. */
#ifndef FP8_CORE_SM90_CUH
#define FP8_CORE_SM90_CUH
#include <cuda.h>
#include <stdint.h>

#define SM90 static __device__ __forceinline__

/* ---- barriers in shared memory --------------------------------------------------------------- */

SM90 uint32_t shared_address(const void *p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

SM90 void barrier_init(uint64_t *bar, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)),
                 "r"(arrivals)
                 : "memory");
}

/* After the inits, before the block's __syncthreads: makes them visible to the copy engine. */
SM90 void barrier_init_done() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

SM90 void barrier_arrive(uint64_t *bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}

/* Arrives, and keeps the phase open until `bytes` have been copied in. */
SM90 void barrier_expect(uint64_t *bar, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     shared_address(bar)),
                 "r"(bytes)
                 : "memory");
}

/* Waits for the end of the phase of this parity. */
SM90 void barrier_wait(uint64_t *bar, uint32_t parity) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "wait: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra wait;\n"
                 "}" ::"r"(shared_address(bar)),
                 "r"(parity)
                 : "memory");
}

/* Named barriers: `threads` threads, those that only arrive included. */
SM90 void named_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
SM90 void named_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* ---- bulk tensor copies ---------------------------------------------------------------------- */

SM90 void prefetch_map(const CUtensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

SM90 void copy_box_2d(void *to, const CUtensorMap *map, uint64_t *bar, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(to)),
                 "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y)
                 : "memory");
}

SM90 void copy_box_3d(void *to, const CUtensorMap *map, uint64_t *bar, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(to)),
                 "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

SM90 void copy_box_4d(void *to, const CUtensorMap *map, uint64_t *bar, int x, int y, int z,
                      int w) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(to)),
                 "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y), "r"(z), "r"(w)
                 : "memory");
}

/* Between a thread's ordinary writes to shared memory and a barrier, where products or bulk copies
 * read them next. */
SM90 void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/* Between writes to global memory that another block makes known, or that have become known here,
 * and bulk copies of what was written. */
SM90 void copies_fence() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

/* ---- warpgroup products ---------------------------------------------------------------------- */

/* Descriptor of a K-major operand: rows of ROW_BYTES (128 or 64) with the swizzle of that width,
 * groups of 8 rows one after the other, aligned to 8 rows. A k-step of 32 bytes further is +2. */
template <int ROW_BYTES>
SM90 uint64_t operand(const void *p) {
    static_assert(ROW_BYTES == 128 || ROW_BYTES == 64, "swizzles of 128 and 64 bytes");
    const uint64_t swizzle = ROW_BYTES == 128 ? 1 : 2, group = 8 * ROW_BYTES;
    return (uint64_t)((shared_address(p) & 0x3ffff) >> 4) | 1ull << 16 | (group >> 4) << 32 |
           swizzle << 62;
}

/* Before products that use registers written since the last one. */
SM90 void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
SM90 void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/* Until at most PENDING committed groups run. NOTE: to the compiler a product is done when issued;
 * so after the wait pin() what it wrote, which keeps reads of it from moving up, and what it read
 * from registers, which keeps those from being written before. */
template <int PENDING>
SM90 void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

SM90 void pin(float &x) { asm volatile("" : "+f"(x)::"memory"); }
SM90 void pin(uint32_t &x) { asm volatile("" : "+r"(x)::"memory"); }
template <typename T, int N>
SM90 void pin(T (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) pin(x[i]);
}

/* ---- registers ------------------------------------------------------------------------------- */

template <int N>
SM90 void registers_shrink() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
SM90 void registers_grow() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

/* ---- programmatic dependent launch ----------------------------------------------------------- */

/* The next kernel of the stream may start once every block has called this or ended. */
SM90 void dependents_launch() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

/* Until the kernel before has ended and its writes can be seen. */
SM90 void dependencies_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

/* ---- memory ---------------------------------------------------------------------------------- */

/* What another block has written there, and what it wrote before a __threadfence(). */
SM90 int32_t load_acquire(const int32_t *p) {
    int32_t x;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
    return x;
}

/* ---- scalars --------------------------------------------------------------------------------- */

/* 2^x within 2 ulp; -Inf gives 0, NaN stays; results below the normal range give 0. */
SM90 float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Four E4M3 codes, nearest even and saturating, x0 in the lowest byte. */
SM90 uint32_t pack_e4m3(float x0, float x1, float x2, float x3) {
    uint32_t codes;
    asm("{\n"
        ".reg .b16 low, high;\n"
        "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
        "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
        "mov.b32 %0, {low, high};\n"
        "}"
        : "=r"(codes)
        : "f"(x0), "f"(x1), "f"(x2), "f"(x3));
    return codes;
}

/* Two BF16, nearest even, x0 in the low half. */
SM90 uint32_t pack_bf16(float x0, float x1) {
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(both) : "f"(x0), "f"(x1));
    return both;
}

/* Two F16, nearest even, x0 in the low half. */
SM90 uint32_t pack_f16(float x0, float x1) {
    uint32_t both;
    asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(both) : "f"(x0), "f"(x1));
    return both;
}
#endif
