/* attention/flash_later.cuh - private: codes that flash_wide.cu makes while it attends. Those of
 * the heads of its first items are made before it starts; the others by three warps of each block
 * that have nothing else to do, while memory is idle. Included once, inside the sm_90a guard.
 *
 * A group is a KV head of a sequence with its heads of Q. A task is one tile of it, of one warp:
 * with scales of the data each tile comes twice, first for its amax. Tasks are given out by a
 * counter, and one waits for those before it alone, so that it does not matter which blocks run. */
#ifndef FP8_ATTENTION_FLASH_LATER_CUH
#define FP8_ATTENTION_FLASH_LATER_CUH
#include "attention/flash_items.cuh"
#include "attention/flash_tile.cuh"

enum {
    LATER_D = 128,    /* columns */
    LATER_AHEAD = 4,  /* groups whose amax is asked for before the first of them is made */
    LATER_LOADS = 4   /* of 16 bytes, of a thread under way at once */
};

struct later_task {
    int32_t which; /* one of Q, K, V */
    bool first;    /* the first tile of its group and operand */
    tile t;
};

/* Volatile, so that what comes of it is found anew for each task, not kept in registers. */
static __device__ __forceinline__ int32_t later_lane() {
    int32_t lane;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}

/* ---- tasks ----------------------------------------------------------------------------------- */

/* The group of task `index`, and whether it makes codes or finds the amax: that of a few groups,
 * then codes of one and the amax of another in turns. */
static __device__ __forceinline__ int32_t find_group(const flash_later &l, int32_t index,
                                                     bool *makes) {
    const int32_t groups = l.groups - l.first, ahead = min((int32_t)LATER_AHEAD, groups);
    const int32_t turn = index / l.tasks, after = turn - ahead;

    *makes = true;
    if (!l.observes) return l.first + turn;
    if (turn >= 2 * groups - ahead) return l.first + turn - groups;
    *makes = after >= 0 && after % 2 == 0;
    return l.first + (after < 0 ? turn : after / 2 + (*makes ? 0 : ahead));
}

/* Tile r of the K, V and Q of a group. */
static __device__ later_task find_task(const flash_later &l, int32_t group, int32_t r) {
    const flash_prologue &p = l.prologue;
    const int32_t of_kv = p.x[1].pitch / FLASH_TILE;
    int32_t tiles = of_kv;
    later_task k;

    k.which = r < of_kv ? 1 : r < 2 * of_kv ? 2 : 0;
    r -= k.which == 1 ? 0 : k.which == 2 ? of_kv : 2 * of_kv;
    if (k.which == 0) tiles = p.x[0].heads / p.num_kv_heads * (p.x[0].pitch / FLASH_TILE);
    k.first = r == 0;
    k.t = find_tile(p, p.x[k.which], group * tiles + r);
    return k;
}

/* ---- tiles ----------------------------------------------------------------------------------- */

/* A lane's 16 bytes of LATER_LOADS rows, two rows apart, the first of them `row`. */
static __device__ __forceinline__ void load_later_rows(uint4 (&got)[LATER_LOADS],
                                                       const uint16_t *from, int64_t step,
                                                       int32_t row, int32_t s) {
#pragma unroll
    for (int k = 0; k < LATER_LOADS; k++)
        got[k] = row + 2 * k < s ? __ldg(reinterpret_cast<const uint4 *>(from + k * step))
                                 : make_uint4(0, 0, 0, 0);
}

/* The largest bits of |x| of a lane's finite elements; FINITE: they all are. */
template <bool FINITE>
static __device__ uint32_t top_of_rows(const flash_operand &x, const tile &t,
                                                       uint32_t end) {
    const int64_t step = 2 * x.at.token;
    int32_t row = t.first + later_lane() / 16;
    const uint16_t *from =
        static_cast<const uint16_t *>(x.from) + element(x, t, row) + later_lane() % 16 * 8;
    uint32_t top = 0;

#pragma unroll 1
    for (int i = 0; i < FLASH_TILE; i += 2 * LATER_LOADS) {
        uint4 got[LATER_LOADS];
        load_later_rows(got, from, step, row, t.s);
#pragma unroll
        for (int k = 0; k < LATER_LOADS; k++) {
            const uint32_t word[4] = {got[k].x, got[k].y, got[k].z, got[k].w};
#pragma unroll
            for (int w = 0; w < 4; w++) {
                const uint32_t both = word[w] & 0x7fff7fffu;
                if (FINITE) top = __vmaxu2(top, both);
                else {
                    const uint32_t low = both & 0xffff, high = both >> 16;
                    top = max(top, max(low < end ? low : 0, high < end ? high : 0));
                }
            }
        }
        from += LATER_LOADS * step;
        row += 2 * LATER_LOADS;
    }
    return FINITE ? max(top & 0xffff, top >> 16) : top;
}

static __device__ __forceinline__ void observe_later(const flash_prologue &p,
                                                     const flash_operand &x, const tile &t) {
    const uint32_t end = p.f16 ? 0x7c00 : 0x7f80; /* Inf */
    uint32_t top = __reduce_max_sync(0xffffffffu, top_of_rows<true>(x, t, end));
    if (top >= end) top = __reduce_max_sync(0xffffffffu, top_of_rows<false>(x, t, end));
    if (later_lane() != 0 || top == 0) return;
    atomicMax(x.amax + descale_index(p, x, t),
              __float_as_uint(p.f16 ? widen<true>(top).x : widen<false>(top).x));
}

template <bool F16>
static __device__ __forceinline__ void make_rows(const flash_operand &x, const tile &t,
                                                 float scale) {
    const int64_t step = 2 * x.at.token;
    const int32_t column = later_lane() % 16 * 8;
    int32_t row = t.first + later_lane() / 16;
    const uint16_t *from = static_cast<const uint16_t *>(x.from) + element(x, t, row) + column;
    uint8_t *to = x.codes + (((int64_t)t.seq * x.heads + t.head) * x.pitch + row) * LATER_D +
                  column;

#pragma unroll 1
    for (int i = 0; i < FLASH_TILE; i += 2 * LATER_LOADS) {
        uint4 got[LATER_LOADS];
        load_later_rows(got, from, step, row, t.s);
#pragma unroll
        for (int k = 0; k < LATER_LOADS; k++)
            if (row + 2 * k < t.s)
                *reinterpret_cast<uint2 *>(to + 2 * k * LATER_D) =
                    make_uint2(quantize4<F16>(got[k].x, got[k].y, scale),
                               quantize4<F16>(got[k].z, got[k].w, scale));
        from += LATER_LOADS * step;
        to += 2 * LATER_LOADS * LATER_D;
        row += 2 * LATER_LOADS;
    }
}

/* Four keys by 8 columns of a lane, the warp 32 by 32 at a time. Lane 4 g + c has the keys that lie
 * side by side as word g of 32 (flash_prologue.cu), and columns 8 c on. */
template <bool F16>
static __device__ __forceinline__ void make_columns(const flash_operand &x, const tile &t,
                                                    float scale) {
    const int32_t g = later_lane() / 4, key = g / 4 * 16 + g % 4 * 2;
    const int32_t column = later_lane() % 4 * 8;
    const uint16_t *base =
        static_cast<const uint16_t *>(x.from) + element(x, t, t.first + key) + column;
    uint8_t *to = x.codes + (((int64_t)t.seq * x.heads + t.head) * LATER_D + column) * x.pitch +
                  t.first + 4 * g;
    int64_t step = x.at.token;
    int32_t left = t.s - t.first - key; /* keys from the lane's first on */

#pragma unroll 1
    for (int k = 0; k < FLASH_TILE; k += 32) {
#pragma unroll 1
        for (int c = 0; c < LATER_D; c += 32) {
            uint4 got[4];
            uint32_t row[4][2], word[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int at = i % 2 + i / 2 * 8;
                got[i] = at < left ? __ldg(reinterpret_cast<const uint4 *>(base + c + at * step))
                                   : make_uint4(0, 0, 0, 0);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                row[i][0] = quantize4<F16>(got[i].x, got[i].y, scale);
                row[i][1] = quantize4<F16>(got[i].z, got[i].w, scale);
            }
            uint8_t *at = to + (int64_t)c * x.pitch;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                turn_bytes(word, row[0][half], row[1][half], row[2][half], row[3][half]);
#pragma unroll
                for (int i = 0; i < 4; i++, at += x.pitch)
                    *reinterpret_cast<uint32_t *>(at) = word[i];
            }
        }
        base += 32 * step;
        to += 32;
        left -= 32;
    }
}

/* ---- warps ----------------------------------------------------------------------------------- */

/* 1 / descale, once the group's amax is known; the warp of the first tile writes the descale. */
static __device__ float later_scale(const flash_later &l, const flash_operand &x,
                                    const later_task &k, int32_t group) {
    const int32_t i = descale_index(l.prologue, x, k.t);
    float descale;

    if (!x.amax) return 1.0f / x.descale[i];
    while (l.observes && load_acquire(l.seen + group) < l.tasks) __nanosleep(100);
    descale = attention_descale_of(__uint_as_float(__ldcg(x.amax + i)));
    if (k.first && later_lane() == 0) x.made[i] = descale;
    return 1.0f / descale;
}

static __device__ __forceinline__ void do_task(const flash_later &l, int32_t index) {
    bool makes;
    const int32_t group = find_group(l, index, &makes);
    const later_task k = find_task(l, group, index % l.tasks);
    const flash_operand &x = l.prologue.x[k.which];
    const bool f16 = l.prologue.f16;

    if (!makes) {
        if (k.t.first < k.t.s) observe_later(l.prologue, x, k.t);
        return;
    }
    const float scale = later_scale(l, x, k, group);
    if (k.t.first >= k.t.s) return;
    if (x.transposed && f16) make_columns<true>(x, k.t, scale);
    else if (x.transposed) make_columns<false>(x, k.t, scale);
    else if (f16) make_rows<true>(x, k.t, scale);
    else make_rows<false>(x, k.t, scale);
}

/* A warp: tasks until there are no more. */
static __device__ void make_later(const flash_later &l) {
    const int32_t all = (l.groups - l.first) * l.tasks * (l.observes ? 2 : 1);

    for (;;) {
        int32_t index = 0;
        bool makes;
        if (later_lane() == 0) index = atomicAdd(l.next, 1);
        index = __shfl_sync(0xffffffffu, index, 0);
        if (index >= all) return;
        do_task(l, index);
        asm volatile("" : "+r"(index)); /* what comes of it is found anew, not kept */
        copies_fence();
        __threadfence();
        __syncwarp();
        const int32_t group = find_group(l, index, &makes);
        if (later_lane() == 0) atomicAdd((makes ? l.made : l.seen) + group, 1);
    }
}

/* The producer's thread, before it asks for what an item reads. */
static __device__ __forceinline__ void wait_for_group(const flash_later &l, const flash_item &it) {
    const int32_t group = it.seq * l.prologue.num_kv_heads + it.kv_head;
    if (group < l.first || it.rows <= 0) return;
    while (load_acquire(l.made + group) < l.tasks) {}
    copies_fence();
}
#endif
