/* Items to blocks: the greedy order, then exchanges with the costliest block. */
#include "attention/flash_order.h"

#include <string.h>

typedef struct packing {
    const int32_t *costs;
    int32_t num_items, blocks;
    int32_t owner[FLASH_ORDER_ITEMS];
    int64_t load[FLASH_ORDER_BLOCKS];
} packing;

/* Item x of the costliest block for item y, or for nothing, of block b. */
typedef struct exchange {
    int32_t x, y, b; /* y -1: nothing */
    int64_t after;   /* the larger load of the two blocks */
} exchange;

static int32_t least_loaded(const packing *p) {
    int32_t least = 0;
    for (int32_t b = 1; b < p->blocks; b++)
        if (p->load[b] < p->load[least]) least = b;
    return least;
}

static int32_t most_loaded(const packing *p) {
    int32_t most = 0;
    for (int32_t b = 1; b < p->blocks; b++)
        if (p->load[b] > p->load[most]) most = b;
    return most;
}

static void consider(const packing *p, exchange *best, int32_t a, int32_t x, int32_t y, int32_t b) {
    const int64_t moved = p->costs[x] - (y < 0 ? 0 : p->costs[y]);
    const int64_t at_a = p->load[a] - moved, at_b = p->load[b] + moved;
    const int64_t after = at_a > at_b ? at_a : at_b;
    if (after < best->after) *best = (exchange){x, y, b, after};
}

/* The exchange that leaves block a and the other one cheapest; after = load of a: there is none. */
static exchange find_exchange(const packing *p, int32_t a) {
    exchange best = {.x = -1, .y = -1, .after = p->load[a]};
    for (int32_t x = 0; x < p->num_items; x++) {
        if (p->owner[x] != a) continue;
        for (int32_t b = 0; b < p->blocks; b++)
            if (b != a) consider(p, &best, a, x, -1, b);
        for (int32_t y = 0; y < p->num_items; y++)
            if (p->owner[y] != a) consider(p, &best, a, x, y, p->owner[y]);
    }
    return best;
}

static void give(packing *p, int32_t item, int32_t to) {
    p->load[p->owner[item]] -= p->costs[item];
    p->load[to] += p->costs[item];
    p->owner[item] = to;
}

static void improve(packing *p) {
    for (;;) { /* ends: loads in descending order come down every time */
        const int32_t a = most_loaded(p);
        const exchange e = find_exchange(p, a);
        if (e.x < 0) return;
        give(p, e.x, e.b);
        if (e.y >= 0) give(p, e.y, a);
    }
}

void attention_flash_order(flash_order *out, const int32_t *costs, int32_t num_items,
                           int32_t blocks) {
    packing p = {.costs = costs, .num_items = num_items, .blocks = blocks};
    int32_t n = 0;

    memset(out, 0, sizeof *out);
    if (num_items > FLASH_ORDER_ITEMS || blocks > FLASH_ORDER_BLOCKS) return;
    for (int32_t i = 0; i < num_items; i++) {
        p.owner[i] = least_loaded(&p);
        p.load[p.owner[i]] += costs[i];
    }
    improve(&p);
    for (int32_t b = 0; b < blocks; b++) {
        for (int32_t i = 0; i < num_items; i++)
            if (p.owner[i] == b) out->item[n++] = (uint16_t)i;
        out->begin[b + 1] = (uint16_t)n;
    }
}
