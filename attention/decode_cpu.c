/* The CPU backend of decoding: attention's, whose tiles of keys come out of pages. */
#include <stdio.h>

#include "attention/attention_cpu.h"
#include "attention/decode_impl.h"
#include "attention/tile_cpu.h"

static fp8_status cpu_check(const fp8_decode_options *o, const attention_target *t,
                            char about[ATTENTION_REASON_BYTES]) {
    (void)o;
    if (t->place != FP8_PLACE_CPU)
        return FP8_FAIL(FP8_EUNSUPPORTED, "the data is on %s", t->name);
    snprintf(about, ATTENTION_REASON_BYTES, "%s, %s", t->name, attention_tile_kernels_at(0)->name);
    return FP8_OK;
}

static fp8_status cpu_open(decode_part *p) {
    const fp8_attention_options o = decode_as_attention(&p->options);
    p->workspace_bytes = attention_cpu_workspace(&o, fp8_pool_threads(fp8_device_pool(p->device)));
    return FP8_OK;
}

static void cpu_close(decode_part *p) { (void)p; }

static fp8_status cpu_run(decode_part *p, const fp8_decode_io *io, void *workspace) {
    const fp8_kv_batch *b = &io->batch;
    const int64_t places = b->max_pages * p->options.page_size;
    const cpu_paged paged = {&io->pages, b};
    fp8_attention_options o = decode_as_attention(&p->options);
    const fp8_attention_io x = {.o = io->o,
                                .q = io->q,
                                .q_starts = b->q_starts,
                                .kv_lengths = b->kv_lengths,
                                .total_q = b->total_q,
                                .q_descale = io->q_descale,
                                .k_descale = io->pages.k_descale,
                                .v_descale = io->pages.v_descale,
                                .o_scale = io->o_scale,
                                .alibi_slopes = io->alibi_slopes,
                                .sink = io->sink,
                                .lse = io->lse};
    o.num_seqs = b->num_seqs;
    o.max_q = b->max_q;
    o.max_kv = b->max_kv < places ? b->max_kv : places;
    return attention_cpu_run(&o, &x, &paged, fp8_device_pool(p->device), workspace);
}

const decode_backend decode_backend_cpu = {
    FP8_DECODE_CPU, "cpu", cpu_check, cpu_open, cpu_close, cpu_run, NULL, NULL,
};
