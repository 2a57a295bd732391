/* attention/flash_order.h - private: which block takes which items, fixed with the plan, where they
 * are few, of different lengths and known: then no launch has to clear a counter, and the longest
 * block is shorter than with a counter or with every other round in reverse. */
#ifndef FP8_ATTENTION_FLASH_ORDER_H
#define FP8_ATTENTION_FLASH_ORDER_H
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { FLASH_ORDER_ITEMS = 512, FLASH_ORDER_BLOCKS = 160 };

/* Block b takes item[begin[b]] .. item[begin[b + 1] - 1]. All 0: there is no order. A parameter of
 * a kernel: 1.4 KB of at most 4. */
typedef struct flash_order {
    uint16_t begin[FLASH_ORDER_BLOCKS + 1];
    uint16_t item[FLASH_ORDER_ITEMS];
} flash_order;

/* Items 0 .. num_items - 1, the costly ones first, each to the block with the least so far; then,
 * as long as that makes the costliest block cheaper, one of its items goes to another block, maybe
 * for one of that block's. costs[num_items] > 0. No order where there are more items or blocks than
 * it has room for. */
void attention_flash_order(flash_order *out, const int32_t *costs, int32_t num_items,
                           int32_t blocks);

#ifdef __cplusplus
}
#endif
#endif
