/* attention/decode_pages_walk.cuh - private: which keys of which sequence and head a block takes.
 *
 * An item is a KV head and a block of rows of a sequence; its keys are tiles, counted from the
 * first that one of its rows sees. The units of all items in a row are cut into equal ranges, one a
 * block. A unit is a tile, and before an item's are some for what it costs whatever its length, or
 * blocks with many short items would come last; with a given split, a unit is as many tiles as one
 * part takes. Where they are cut follows from the lengths alone, which a captured graph may change.
 * A segment is what a range has of one item. */
#ifndef FP8_ATTENTION_DECODE_PAGES_WALK_CUH
#define FP8_ATTENTION_DECODE_PAGES_WALK_CUH
#include "attention/decode_pages_shape.cuh"
#include "core/sm90.cuh"

struct sequence {
    int32_t q_begin, q_len, kv_len; /* clamped */
    int32_t first, tiles;           /* of keys */
    int32_t units, items;           /* units of an item */
};

/* All units, and the ranges they are cut into: range i begins at unit i * units / ranges, so that
 * where ranges are a multiple of items of one length, no range has parts of two. */
struct cut {
    int32_t units, ranges, each, more; /* units = ranges * each + more */
    float a_range;                     /* 1 / ranges */
};

struct range {
    int32_t begin, end;
};

struct segment {
    int32_t s, item; /* item: of the sequence, row block * num_kv_heads + KV head */
    int32_t first, tiles; /* tiles 0: of an item that begins here, nothing but its cost */
    int32_t count;        /* units */
    int32_t part;         /* of a given split: which of its item's */
    int32_t item_unit;    /* the item's first among all units */
    bool whole;           /* all of the item's tiles */
};

/* What is read of a sequence; all 0 beyond the last. NOTE: past L1, here and of the table: with
 * `early` they are read while other kernels run, and whether L1 was cleared since they were written
 * is no business of ours. */
struct raw_sequence {
    int32_t begin, end, keys;
};

struct walk {
    sequence q;
    int32_t s, base; /* sequence, its first unit */
    int32_t window;  /* lane l has read sequence window + l */
    raw_sequence mine;
};

static __device__ __forceinline__ int32_t div_up(int32_t a, int32_t b) { return (a + b - 1) / b; }

static __device__ __forceinline__ void walk_read(walk &w, const decode_pages_args &p,
                                                 int32_t window) {
    const int32_t s = window + threadIdx.x % 32;
    w.window = window;
    w.mine = {0, 0, 0};
    if (s < p.num_seqs)
        w.mine = {__ldcg(p.q_starts + s), __ldcg(p.q_starts + s + 1), __ldcg(p.kv_lengths + s)};
}

template <int TILE, int ROWS>
static __device__ __forceinline__ sequence sequence_of(const decode_pages_args &p,
                                                       const raw_sequence &r) {
    sequence q;
    const int32_t begin = min(max(r.begin, 0), p.total_q);
    const int32_t end = min(max(r.end, begin), p.total_q);

    q.q_begin = begin;
    q.q_len = min(end - begin, p.max_q);
    q.kv_len = min(max(r.keys, 0), p.max_kv);
    /* the first query sees the earliest keys */
    q.first = min(max(q.kv_len - q.q_len - p.window_left, 0), q.kv_len) / TILE;
    q.tiles = max(div_up(q.kv_len, TILE) - q.first, 1);
    q.units = p.unit_tiles ? div_up(q.tiles, p.unit_tiles) : p.item_cost + q.tiles;
    q.items = q.q_len > p.most_q ? 0 : div_up(q.q_len * p.group, ROWS) * p.num_kv_heads;
    return q;
}

/* Units of the sequence that this lane has read, 0 beyond the last. */
template <int TILE, int ROWS>
static __device__ __forceinline__ int32_t units_of(const decode_pages_args &p, const walk &w) {
    const sequence q = sequence_of<TILE, ROWS>(p, w.mine);
    return q.units * q.items;
}

/* To sequence s, which does not lie before the window. All lanes. */
template <int TILE, int ROWS>
static __device__ __forceinline__ void walk_take(walk &w, const decode_pages_args &p, int32_t s) {
    if (s >= w.window + 32) walk_read(w, p, s);
    const int32_t from = s - w.window;
    const raw_sequence r = {__shfl_sync(0xffffffffu, w.mine.begin, from),
                            __shfl_sync(0xffffffffu, w.mine.end, from),
                            __shfl_sync(0xffffffffu, w.mine.keys, from)};
    w.s = s;
    w.q = sequence_of<TILE, ROWS>(p, r);
}

/* Begins a walk before the first sequence. */
template <int TILE, int ROWS>
static __device__ __forceinline__ cut make_cut(walk &w, const decode_pages_args &p) {
    cut c = {};
    for (int32_t s = (p.num_seqs - 1) / 32 * 32; s >= 0; s -= 32) { /* the first window remains */
        walk_read(w, p, s);
        c.units += units_of<TILE, ROWS>(p, w);
    }
    w.s = w.base = 0;
#pragma unroll
    for (int off = 16; off > 0; off >>= 1)
        c.units += __shfl_xor_sync(0xffffffffu, c.units, off);
    c.ranges = max(min(c.units, (int32_t)gridDim.x), 1);
    c.a_range = 1.0f / (float)c.ranges;
    c.each = c.units / c.ranges;
    c.more = c.units - c.each * c.ranges;
    return c;
}

/* i * units / ranges. NOTE: i * more < 2^18 as blocks are fewer than 512, so that the quotient and
 * half of a range's part are apart by more than F32 is wrong. */
static __device__ __forceinline__ int32_t range_begin(const cut &c, int32_t i) {
    return i * c.each + (int32_t)(((float)(i * c.more) + 0.5f) * c.a_range);
}

/* Empty beyond the last. */
static __device__ __forceinline__ range range_at(const cut &c, int32_t index) {
    return {range_begin(c, min(index, c.ranges)), range_begin(c, min(index + 1, c.ranges))};
}

/* The range that a unit is in: near unit * ranges / units. */
static __device__ __forceinline__ int32_t range_of(const cut &c, int32_t unit) {
    int32_t i = min((int32_t)((float)unit / (float)c.units * (float)c.ranges), c.ranges - 1);
    while (range_begin(c, i) > unit) i--;
    while (range_begin(c, i + 1) <= unit) i++;
    return i;
}

/* To the sequence of a unit, from the first. All lanes. */
template <int TILE, int ROWS>
static __device__ __forceinline__ void walk_to(walk &w, const decode_pages_args &p, int32_t unit) {
    const int32_t lane = threadIdx.x % 32;
    for (;;) {
        const int32_t n = units_of<TILE, ROWS>(p, w);
        int32_t upto = n, found;
        unsigned beyond;
#pragma unroll
        for (int off = 1; off < 32; off <<= 1) {
            const int32_t v = __shfl_up_sync(0xffffffffu, upto, off);
            if (lane >= off) upto += v;
        }
        beyond = __ballot_sync(0xffffffffu, w.base + upto > unit);
        found = beyond ? __ffs((int)beyond) - 1 : 31;
        w.base += __shfl_sync(0xffffffffu, beyond ? upto - n : upto, found);
        if (beyond) {
            walk_take<TILE, ROWS>(w, p, w.window + found);
            return;
        }
        walk_read(w, p, w.window + 32);
    }
}

/* The segment that begins at a unit; `end`: of the range. */
template <int TILE, int ROWS>
static __device__ __forceinline__ segment segment_at(walk &w, const decode_pages_args &p,
                                                     int32_t unit, int32_t end) {
    int32_t at;
    segment g;

    while (unit >= w.base + w.q.units * w.q.items) {
        w.base += w.q.units * w.q.items;
        walk_take<TILE, ROWS>(w, p, w.s + 1);
    }
    g.s = w.s;
    g.item = (unit - w.base) / w.q.units;
    g.item_unit = w.base + g.item * w.q.units;
    g.part = unit - g.item_unit;
    if (p.unit_tiles) {
        at = g.part * p.unit_tiles;
        g.count = 1;
        g.tiles = min(p.unit_tiles, w.q.tiles - at);
    } else {
        const int32_t cost = max(p.item_cost - g.part, 0);
        at = g.part + cost - p.item_cost;
        g.count = min(w.q.units - g.part, end - unit);
        g.tiles = max(g.count - cost, 0);
    }
    g.first = w.q.first + at;
    g.whole = g.tiles == w.q.tiles;
    return g;
}

/* Slot of part j of an item. A range has one part that begins an item and does not end it, and one
 * that does not begin it. */
static __device__ __forceinline__ int32_t slot_of(const decode_pages_args &p,
                                                  const segment_info &g, int32_t j) {
    if (p.unit_tiles) return g.first_slot + j;
    return g.first_slot + 2 * j + (j == 0);
}

/* Where the parts of a segment's item are, and which of them it is. */
static __device__ __forceinline__ void place_part(segment_info &x, const decode_pages_args &p,
                                                  const segment &g, const walk &w, const cut &c) {
    x.parts = 1;
    x.slot = x.first_slot = 0;
    if (g.whole) return;
    if (p.unit_tiles) {
        x.parts = w.q.units;
        x.first_slot = g.item_unit;
        x.slot = slot_of(p, x, g.part);
    } else {
        const int32_t first = range_of(c, g.item_unit + p.item_cost);
        x.parts = range_of(c, g.item_unit + w.q.units - 1) - first + 1;
        x.first_slot = 2 * first;
        x.slot = slot_of(p, x, (int32_t)blockIdx.x - first);
    }
}
#endif
