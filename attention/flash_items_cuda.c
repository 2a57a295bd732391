/* The items of a plan of the flash backend: tiles of queries, which of them blocks share, and in
 * which order they are taken; and the codes that are made meanwhile. */
#include "attention/flash_state.h"

/* Keys to attend to for each row of codes that is made meanwhile: with fewer the codes are not
 * there in time, and under a mask items wait for each other's bands (docs/NOTES.md). */
enum { LATER_KEYS = 800, LATER_MASKED_KEYS = 3000 };

/* Nothing to do before the attention: no codes to make, no amax to clear, and items that need no
 * counter: none is shorter than the plan says, none is long, and there is one band of them. */
static int is_static(const flash_params *a, const flash_prologue *p,
                     const fp8_attention_options *o) {
    for (int i = 0; i < 3; i++)
        if (p->x[i].blocks > 0) return 0;
    return !o->want_amax && !o->padding && !fp8_attention_layout_is_packed(o->layout) &&
           a->band == a->units && o->max_kv <= FLASH_STATIC_KEYS;
}

/* Items that all see the same keys are shared evenly, where that saves enough: as many that whole
 * waves of one a multiprocessor are left, and that none is longer than a block's share. A last tile
 * of few queries, kept apart and taken first, counts for 7 / 20 of a whole one, and the rest by its
 * warpgroups at work. */
static void share_items(flash_state *f, const fp8_attention_options *o, int apart) {
    flash_params *a = &f->params;
    const int32_t rows = flash_wide_rows(o), last = (a->max_q - 1) % rows + 1;
    const int64_t sms = f->num_sms, keys = flash_ceil_div(o->max_kv, FLASH_BLOCK_N);
    const int64_t shorts = apart && last < rows ? a->units : 0, whole = a->num_items - shorts;
    const int64_t all = rows / FLASH_WIDE_ROWS, at_work = flash_ceil_div(last, FLASH_WIDE_ROWS);
    const int64_t of_short = flash_ceil_div(keys * (7 * all + 13 * at_work), 20 * all);
    const int64_t total = shorts * of_short + whole * keys;
    const int64_t waves = total / (sms * keys) - 1; /* left to be taken one by one */
    const int64_t idle = (flash_ceil_div(a->num_items, sms) * keys * sms - total) / sms;
    const int64_t shared = total - waves * sms * keys;

    a->split = 0;
    if (o->d_v == 256 || a->v_as_is) return; /* these kernels do not */
    if (a->right < FLASH_NO_WINDOW || a->left < FLASH_NO_WINDOW || keys > FLASH_SHARED_KEYS) return;
    if (waves < 0 || waves * sms > whole || idle < FLASH_SHARED_TILES) return;
    a->split = (int32_t)(a->num_items - waves * sms);
    a->short_items = (int32_t)shorts;
    a->key_tiles = (int32_t)keys;
    a->short_tiles = (int32_t)of_short;
    a->stretch = (int32_t)(shared / sms);
    a->longer = (int32_t)(shared % sms);
}

/* Tiles of keys that the queries of an item see, of alike lengths. */
static int32_t tiles_seen(const flash_params *a, int32_t tile, int32_t rows) {
    const int64_t first = (int64_t)tile * rows;
    const int64_t last = first + rows < a->max_q ? first + rows : a->max_q;
    const int64_t diagonal = a->top_left ? 0 : a->max_kv - a->max_q;
    const int64_t lo = first + diagonal - a->left, hi = last + diagonal + a->right;
    const int64_t begin = lo > 0 ? lo : 0, end = hi < a->max_kv ? hi : a->max_kv;
    return end > begin ? (int32_t)(flash_ceil_div(end, FLASH_BLOCK_N) - begin / FLASH_BLOCK_N) : 0;
}

/* Keys that are attended to for each row of codes that a group needs. */
static int64_t keys_a_row(const flash_state *f, const fp8_attention_options *o) {
    const flash_params *a = &f->params;
    const flash_prologue *p = &f->prologue;
    const int64_t group = o->num_heads / o->num_kv_heads;
    const int32_t rows = flash_rows_of_tile(o);
    int64_t pairs = 0;
    for (int32_t i = 0; i < a->tiles; i++)
        pairs += (int64_t)tiles_seen(a, i, rows) * FLASH_BLOCK_N * rows;
    return pairs * group / (2 * p->x[1].pitch + group * p->x[0].pitch);
}

/* Codes of the groups that no block begins with are made later, where they are half of them at
 * least and there is attention enough to make them meanwhile. Items go by groups then, so that few
 * are asked for at a time; under a causal mask, longest first, by bands of as many units as all
 * blocks begin with. */
static int plan_later(flash_state *f, const fp8_attention_options *o) {
    flash_params *a = &f->params;
    flash_later *l = &f->later;
    const int32_t group = o->num_heads / o->num_kv_heads;
    const int masked = a->right < FLASH_NO_WINDOW || a->left < FLASH_NO_WINDOW;
    int64_t units;

    if (!flash_can_make_later(o)) return 0;
    if (keys_a_row(f, o) < (masked ? LATER_MASKED_KEYS : LATER_KEYS)) return 0;
    share_items(f, o, 0);
    units = flash_ceil_div(a->split > 0 ? a->split : f->num_sms, a->tiles);
    units = flash_ceil_div(units, group) * group;
    if (2 * units > a->units) return 0;
    l->groups = (int32_t)o->num_seqs * o->num_kv_heads;
    l->first = (int32_t)units / group;
    l->observes = flash_can_observe_later(o);
    l->tasks = 2 * f->prologue.x[1].pitch / FLASH_TILE +
               group * (f->prologue.x[0].pitch / FLASH_TILE);
    a->band = masked ? (int32_t)units : group;
    return 1;
}

/* An item costs its tiles of keys and, to begin and to store, as much as two more (measured). */
static void order_items(flash_state *f, const fp8_attention_options *o) {
    const flash_params *a = &f->params;
    const int32_t blocks = f->num_sms < a->num_items ? f->num_sms : a->num_items;
    int32_t costs[FLASH_ORDER_ITEMS];

    if (!f->is_static || !f->wide || a->num_items > FLASH_ORDER_ITEMS) return;
    for (int32_t i = 0; i < a->num_items; i++)
        costs[i] = 2 + tiles_seen(a, a->tiles - 1 - i / a->units, flash_rows_of_tile(o));
    attention_flash_order(&f->order, costs, a->num_items, blocks);
}

void attention_flash_plan_items(flash_state *f, const fp8_attention_options *o) {
    f->is_static = is_static(&f->params, &f->prologue, o);
    order_items(f, o);
    if (!plan_later(f, o) && f->wide) share_items(f, o, 1);
    f->prologue.num_counters =
        1 + (f->params.split > 0 ? f->num_sms * flash_rows_of_tile(o) / 16 : 0) +
        (f->later.groups > 0 ? 1 + 2 * f->later.groups : 0);
}
