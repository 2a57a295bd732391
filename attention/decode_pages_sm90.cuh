/* attention/decode_pages_sm90.cuh - private: what the kernels over pages need beside
 * core/sm90.cuh: copies with a policy, loads of operands of a warp's products, conversions.
 * Included once, inside the sm_90a guard. */
#ifndef FP8_ATTENTION_DECODE_PAGES_SM90_CUH
#define FP8_ATTENTION_DECODE_PAGES_SM90_CUH
#include "attention/warp_product.cuh"

SM90 uint64_t policy_evict_first() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
SM90 uint64_t policy_evict_normal() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_unchanged.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

SM90 void copy_box_3d(uint32_t to, const CUtensorMap *map, uint64_t *bar, int x, int y, int z,
                      uint64_t policy) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
                 "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y), "r"(z), "l"(policy)
                 : "memory");
}

SM90 void copy_box_4d(uint32_t to, const CUtensorMap *map, uint64_t *bar, int x, int y, int z,
                      int w, uint64_t policy) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(to),
                 "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y), "r"(z), "r"(w), "l"(policy)
                 : "memory");
}

/* Contiguous bytes, addresses and count multiples of 16. */
SM90 void copy_bytes(void *to, const void *from, uint32_t bytes, uint64_t *bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(bar))
                 : "memory");
}

/* 16 bytes of global memory through L2, on their way until copies_wait(). */
SM90 void copy_async(void *to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from)
                 : "memory");
}
SM90 void copies_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/* Four 8x8 matrices of 16 bits: lanes 8 i .. 8 i + 7 give the rows of matrix i; lane 4 r + c gets
 * of each bytes 4 c .. 4 c + 3 of row r. */
SM90 void load_matrices(uint32_t (&r)[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

/* An 8x8 matrix of 16 bits, a row every four lanes, turned. */
SM90 uint32_t turn_matrix(uint32_t x) {
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

/* Four codes, exactly: low = bytes 0, 1 and high = bytes 2, 3 as F16. */
SM90 void widen_e4m3(uint32_t &low, uint32_t &high, uint32_t codes) {
    asm("{\n"
        ".reg .b16 l, h;\n"
        "mov.b32 {l, h}, %2;\n"
        "cvt.rn.f16x2.e4m3x2 %0, l;\n"
        "cvt.rn.f16x2.e4m3x2 %1, h;\n"
        "}"
        : "=r"(low), "=r"(high)
        : "r"(codes));
}
#endif
