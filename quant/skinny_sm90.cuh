/* quant/skinny_sm90.cuh - private: what skinny.cu and skinny_wide.cu need beside core/sm90.cuh:
 * tensor-core products, clusters, cache policies, results that leave by the copy engine. Included
 * once a file, inside the sm_90a guard. */
#ifndef FP8_QUANT_SKINNY_SM90_CUH
#define FP8_QUANT_SKINNY_SM90_CUH
#include "core/sm90.cuh"

/* ---- rings ---------------------------------------------------------------------------------- */

/* A slot of a ring and the parity of its phase there. */
struct ring_place {
    int32_t slot;
    uint32_t parity;
    __device__ __forceinline__ void next(int32_t slots) {
        const bool wrap = ++slot == slots;
        if (wrap) slot = 0;
        parity ^= wrap;
    }
    /* Where unit 0 lay in slot `first`. Counted: a division takes as long as a copy is issued. */
    __device__ __forceinline__ void next(int32_t slots, int32_t first) {
        if (++slot == slots) slot = 0;
        parity ^= slot == first;
    }
};

/* Is the phase of this parity over? */
SM90 bool barrier_is_over(uint64_t *bar, uint32_t parity) {
    uint32_t over;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}"
                 : "=r"(over)
                 : "r"(shared_address(bar)), "r"(parity)
                 : "memory");
    return over != 0;
}

/* ---- copies ---------------------------------------------------------------------------------- */

SM90 void copy_box_2d(void *to, const CUtensorMap *map, uint64_t *bar, int x, int y,
                      uint64_t policy) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
                 "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y), "l"(policy)
                 : "memory");
}

SM90 void copy_box_4d(void *to, const CUtensorMap *map, uint64_t *bar, int x, int y, int z, int w,
                      uint64_t policy) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(
                     shared_address(to)),
                 "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y), "r"(z), "r"(w), "l"(policy)
                 : "memory");
}

/* A box into the L2 cache. */
SM90 void fetch_box_2d(const CUtensorMap *map, int x, int y) {
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(map),
                 "r"(x), "r"(y)
                 : "memory");
}

SM90 void fetch_box_4d(const CUtensorMap *map, int x, int y, int z, int w) {
    asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global.tile [%0, {%1, %2, %3, %4}];" ::"l"(
                     map),
                 "r"(x), "r"(y), "r"(z), "r"(w)
                 : "memory");
}

/* A word to shared memory, and the wait for all such copies of this thread. */
SM90 void copy_word(void *to, const void *from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from)
                 : "memory");
}
SM90 void copied_words() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/* What is read once leaves the L2 cache first; what all blocks read stays longest. */
SM90 uint64_t policy_evict_first() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
SM90 uint64_t policy_evict_last() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* A box of shared memory to global memory, and the wait until all such copies of this thread have
 * read what they copy. */
SM90 void store_box_2d(const CUtensorMap *map, const void *from, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];\n"
                 "cp.async.bulk.commit_group;" ::"l"(map),
                 "r"(shared_address(from)), "r"(x), "r"(y)
                 : "memory");
}
SM90 void boxes_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

/* 8 x 8 tiles of 16-bit elements, transposed: lane t holds row t / 4, columns 2 (t % 4) and + 1 of
 * each; lane 8 i + c names where column c of tile i goes. */
SM90 void store_transposed(void *to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     shared_address(to)),
                 "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}
SM90 void store_transposed(void *to, uint32_t a, uint32_t b) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(
                     shared_address(to)),
                 "r"(a), "r"(b)
                 : "memory");
}
SM90 uint32_t transposed(uint32_t pair) {
    uint32_t out;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
    return out;
}

/* ---- clusters -------------------------------------------------------------------------------- */

/* All threads of all blocks: barriers initialized before the arrival are there after the wait. */
SM90 void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
SM90 void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

/* The address of p's place in another block of the cluster. */
SM90 uint32_t shared_address_at(const void *p, uint32_t rank) {
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(p)), "r"(rank));
    return there;
}

/* Four floats into p's place in another block, counted there by its barrier `bar`. Unlike a bulk
 * copy it does not queue behind what the copy engine still has to do, and needs no fence, which
 * would wait for memory under full load. */
SM90 void store_at(const float *p, uint64_t *bar, uint32_t rank, const float *v) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], "
                 "{%1, %2, %3, %4}, [%5];" ::"r"(shared_address_at(p, rank)),
                 "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(shared_address_at(bar, rank))
                 : "memory");
}

/* Arrives at another block's barrier. Nothing written is handed over with it. */
SM90 void barrier_arrive_at(uint64_t *bar, uint32_t rank) {
    asm volatile("mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [%0];" ::"r"(
                     shared_address_at(bar, rank))
                 : "memory");
}

/* ---- warpgroup products ---------------------------------------------------------------------- */

/* Low word of the descriptor of a K-major operand in swizzled rows of 128 bytes; the high word is a
 * constant of that layout. A k-step of 32 bytes further is +2. */
SM90 uint32_t operand_low(const void *p) { return (shared_address(p) & 0x3ffff) >> 4 | 1u << 16; }

#define REGS4(c, d, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3])
#define REGS8(c, d, i) REGS4(c, d, i), REGS4(c, d, i + 4)
#define REGS16(c, d, i) REGS8(c, d, i), REGS8(c, d, i + 8)
#define REGS32(c, d, i) REGS16(c, d, i), REGS16(c, d, i + 16)
#define REGS64(c, d, i) REGS32(c, d, i), REGS32(c, d, i + 32)
#define REGS24(c, d, i) REGS16(c, d, i), REGS8(c, d, i + 16)
#define REGS28(c, d, i) REGS24(c, d, i), REGS4(c, d, i + 24)

#define TO_3 "%0, %1, %2, %3"
#define TO_7 TO_3 ", %4, %5, %6, %7"
#define TO_15 TO_7 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define TO_23 TO_15 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define TO_27 TO_23 ", %24, %25, %26, %27"
#define TO_31 TO_27 ", %28, %29, %30, %31"
#define TO_63                                                                                      \
    TO_31 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "     \
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

/* n tokens: r registers, named by `to`; a and b are the low words of the operands. */
#define PRODUCT(n, r, to, a_name, b_name, regs, regs_out)                                          \
    SM90 void product_start(float (&d)[r], uint32_t a, uint32_t b) {                               \
        asm volatile("{\n"                                                                         \
                     ".reg .pred p;\n"                                                             \
                     ".reg .b64 da, db;\n"                                                         \
                     "setp.ne.b32 p, 0, 0;\n"                                                      \
                     "mov.b64 da, {" a_name ", 0x40000040};\n"                                     \
                     "mov.b64 db, {" b_name ", 0x40000040};\n"                                     \
                     "wgmma.mma_async.sync.aligned.m64n" n "k32.f32.e4m3.e4m3 {" to "}, "          \
                     "da, db, p, 1, 1;\n"                                                          \
                     "}"                                                                           \
                     : regs_out                                                                    \
                     : "r"(a), "r"(b));                                                            \
    }                                                                                              \
    SM90 void product(float (&d)[r], uint32_t a, uint32_t b) {                                     \
        asm volatile("{\n"                                                                         \
                     ".reg .b64 da, db;\n"                                                         \
                     "mov.b64 da, {" a_name ", 0x40000040};\n"                                     \
                     "mov.b64 db, {" b_name ", 0x40000040};\n"                                     \
                     "wgmma.mma_async.sync.aligned.m64n" n "k32.f32.e4m3.e4m3 {" to "}, "          \
                     "da, db, 1, 1, 1;\n"                                                          \
                     "}"                                                                           \
                     : regs                                                                        \
                     : "r"(a), "r"(b));                                                            \
    }

/* d[64, N] (+)= A[64, 32] B[N, 32]^T, E4M3, A and B in shared memory. Thread t of the warpgroup has
 * rows r = 16 (t / 32) + t % 32 / 4 and r + 8: d[4 j + 2 h + e] = D[r + 8 h][8 j + 2 (t % 4) + e].
 * A sum begins with product_start: d is out only, early-clobbered so that no operand shares its
 * registers. */
PRODUCT("8", 4, TO_3, "%4", "%5", REGS4("+f", d, 0), REGS4("=&f", d, 0))
PRODUCT("16", 8, TO_7, "%8", "%9", REGS8("+f", d, 0), REGS8("=&f", d, 0))
PRODUCT("32", 16, TO_15, "%16", "%17", REGS16("+f", d, 0), REGS16("=&f", d, 0))
PRODUCT("48", 24, TO_23, "%24", "%25", REGS24("+f", d, 0), REGS24("=&f", d, 0))
PRODUCT("56", 28, TO_27, "%28", "%29", REGS28("+f", d, 0), REGS28("=&f", d, 0))
PRODUCT("64", 32, TO_31, "%32", "%33", REGS32("+f", d, 0), REGS32("=&f", d, 0))
PRODUCT("128", 64, TO_63, "%64", "%65", REGS64("+f", d, 0), REGS64("=&f", d, 0))

#undef PRODUCT
#undef TO_3
#undef TO_7
#undef TO_15
#undef TO_23
#undef TO_27
#undef TO_31
#undef TO_63
#undef REGS4
#undef REGS8
#undef REGS16
#undef REGS32
#undef REGS64
#undef REGS24
#undef REGS28
#endif
