/* attention/flash_order.c: every item once, no block dearer than in the greedy order or than a
 * bound, the same every time. */
#include <stdlib.h>
#include <string.h>

#include "attention/flash_order.h"
#include "check.h"

enum { ROUNDS = 60 };

static int64_t greedy(const int32_t *costs, int32_t n, int32_t blocks) {
    int64_t load[FLASH_ORDER_BLOCKS] = {0}, most = 0;
    for (int32_t i = 0; i < n; i++) {
        int32_t least = 0;
        for (int32_t b = 1; b < blocks; b++)
            if (load[b] < load[least]) least = b;
        load[least] += costs[i];
        if (load[least] > most) most = load[least];
    }
    return most;
}

static int64_t check_order(const flash_order *o, const int32_t *costs, int32_t n, int32_t blocks) {
    int seen[FLASH_ORDER_ITEMS] = {0};
    int64_t most = 0;
    CHECK(o->begin[0] == 0 && o->begin[blocks] == n);
    for (int32_t b = 0; b < blocks; b++) {
        int64_t load = 0;
        CHECK(o->begin[b] <= o->begin[b + 1]);
        for (int32_t i = o->begin[b]; i < o->begin[b + 1]; i++) {
            CHECK(o->item[i] < n);
            seen[o->item[i]]++;
            load += costs[o->item[i]];
            if (i > o->begin[b]) CHECK(o->item[i] > o->item[i - 1]); /* the costly ones first */
        }
        if (load > most) most = load;
    }
    for (int32_t i = 0; i < n; i++) CHECK(seen[i] == 1);
    return most;
}

static int descending(const void *a, const void *b) {
    return *(const int32_t *)b - *(const int32_t *)a;
}

static void test_random(void) {
    uint64_t seed = 5;
    for (int r = 0; r < ROUNDS; r++) {
        const int32_t n = (int32_t)(check_random(&seed) % (FLASH_ORDER_ITEMS + 1));
        const int32_t blocks = 1 + (int32_t)(check_random(&seed) % FLASH_ORDER_BLOCKS);
        int32_t costs[FLASH_ORDER_ITEMS];
        flash_order o, again;

        for (int32_t i = 0; i < n; i++) costs[i] = 1 + (int32_t)(check_random(&seed) % 40);
        qsort(costs, (size_t)n, sizeof *costs, descending);
        attention_flash_order(&o, costs, n, blocks);
        attention_flash_order(&again, costs, n, blocks);
        CHECK(memcmp(&o, &again, sizeof o) == 0);
        CHECK(check_order(&o, costs, n, blocks) <= greedy(costs, n, blocks));
    }
}

/* 2048 causal queries of 32 heads in tiles of 192: greedy 32, evenly 29.8 tiles of keys. */
static void test_causal(void) {
    int32_t costs[352];
    flash_order o;
    for (int32_t i = 0; i < 352; i++) {
        const int32_t rows = (11 - i / 32) * 192;
        costs[i] = ((rows < 2048 ? rows : 2048) + 127) / 128 + 2;
    }
    attention_flash_order(&o, costs, 352, 132);
    CHECK(greedy(costs, 352, 132) == 32);
    CHECK(check_order(&o, costs, 352, 132) <= 31);
}

static void test_too_many(void) {
    static int32_t costs[FLASH_ORDER_ITEMS + 1];
    flash_order o;
    for (int32_t i = 0; i <= FLASH_ORDER_ITEMS; i++) costs[i] = 1;
    attention_flash_order(&o, costs, FLASH_ORDER_ITEMS + 1, 4);
    CHECK(o.begin[4] == 0);
    attention_flash_order(&o, costs, 4, FLASH_ORDER_BLOCKS + 1);
    CHECK(o.begin[FLASH_ORDER_BLOCKS] == 0);
}

int main(void) {
    test_random();
    test_causal();
    test_too_many();
    return CHECK_DONE();
}
