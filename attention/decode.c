/* Planning: backends asked in order of preference, reasons kept; two parts where one backend takes
 * the sequences with few queries and another those with many. */
#include "attention/decode.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention/decode_impl.h"
#include "core/log.h"

/* What a build without CUDA has instead: the verdict alone. */
#if !FP8_CUDA
static const decode_backend decode_backend_pages = {
    FP8_DECODE_PAGES, "pages", decode_pages_check, NULL, NULL, NULL, NULL, NULL,
};
static const decode_backend decode_backend_gathered = {
    FP8_DECODE_GATHERED, "gathered", decode_gathered_check, NULL, NULL, NULL, NULL, NULL,
};
#endif

/* In order of preference. */
static const decode_backend *const backends[] = {
    &decode_backend_pages,
    &decode_backend_gathered,
    &decode_backend_cpu,
};
enum { NUM_BACKENDS = sizeof backends / sizeof *backends };

static const char *const names[] = {"auto", "pages", "gathered", "cpu"};

const char *fp8_decode_backend_name(fp8_decode_backend b) {
    return (int)b >= 0 && (size_t)b < sizeof names / sizeof *names ? names[b] : "?";
}

/* ---- selection ------------------------------------------------------------------------------- */

static fp8_status read_preference(fp8_decode_backend *out) {
    const char *text = getenv("FP8_DECODE_BACKEND");
    *out = FP8_DECODE_AUTO;
    if (!text || !*text) return FP8_OK;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(text, names[i]) != 0) continue;
        *out = (fp8_decode_backend)i;
        return FP8_OK;
    }
    return FP8_FAIL(FP8_EINVAL,
                    "environment: FP8_DECODE_BACKEND='%s', expected auto, pages, gathered or cpu",
                    text);
}

static void close_part(decode_part *part) {
    if (part->backend) part->backend->close(part);
    *part = (decode_part){0};
}

/* The backend's check and, when `open`, a part for sequences of q_least .. q_most tokens. */
static fp8_status take_part(fp8_decode_plan *p, decode_part *part, const decode_backend *b,
                            const attention_target *t, int64_t q_least, int64_t q_most, int open,
                            char about[ATTENTION_REASON_BYTES]) {
    fp8_decode_options o = p->options;
    fp8_status st;

    if (!b->open) return FP8_FAIL(FP8_EUNSUPPORTED, "this build is without CUDA");
    o.max_q = q_most;
    FP8_TRY(b->check(&o, t, about));
    if (!open) goto done;
    *part = (decode_part){.backend = b,
                          .options = o,
                          .device = p->device,
                          .q_least = q_least,
                          .q_most = q_most,
                          .split_keys = o.split_keys};
    st = b->open(part);
    if (st != FP8_OK) close_part(part);
done:
    return st;
}

/* The one that takes chunks beside `pages`. */
static const decode_backend *chunk_backend(void) {
    for (int i = 0; i < NUM_BACKENDS; i++)
        if (backends[i]->id == FP8_DECODE_GATHERED) return backends[i];
    return NULL;
}

/* All parts of a plan in which `b` comes first. */
static fp8_status take(fp8_decode_plan *p, const decode_backend *b, const attention_target *t,
                       int open, char about[ATTENTION_REASON_BYTES]) {
    const int split = b->id == FP8_DECODE_PAGES && p->options.max_q > FP8_DECODE_ROWS;
    const int64_t most = split ? FP8_DECODE_ROWS : p->options.max_q;
    const decode_backend *chunks = chunk_backend();
    char other[ATTENTION_REASON_BYTES] = "";
    fp8_status st;

    if (p->options.backend != FP8_DECODE_AUTO && p->options.backend != b->id)
        return FP8_FAIL(FP8_EUNSUPPORTED, "the options ask for %s",
                        fp8_decode_backend_name(p->options.backend));
    if (split && !chunks)
        return FP8_FAIL(FP8_EUNSUPPORTED, "up to %lld queries a sequence, expected up to %d",
                        (long long)p->options.max_q, FP8_DECODE_ROWS);
    FP8_TRY(take_part(p, &p->parts[0], b, t, 0, most, open, about));
    if (!split) goto done;
    st = take_part(p, &p->parts[1], chunks, t, most + 1, p->options.max_q, open, other);
    if (st != FP8_OK) close_part(&p->parts[0]);
done:
    return st;
}

/* One verdict, a line of the reasons. */
static fp8_status judge(fp8_decode_plan *p, const decode_backend *b, const attention_target *t) {
    const int first = !p->parts[0].backend;
    const size_t used = strlen(p->reasons), room = sizeof p->reasons - used;
    char about[ATTENTION_REASON_BYTES] = "";
    const fp8_status st = take(p, b, t, first, about);

    if (st != FP8_OK && st != FP8_EUNSUPPORTED) return st;
    snprintf(p->reasons + used, room, "%s%s: %s%s%s", used ? "\n" : "", b->name, about,
             *about ? ": " : "",
             st != FP8_OK ? fp8_last_message()
             : first      ? "serves"
                          : "would serve, but comes later");
    return FP8_OK;
}

static fp8_status select_backends(fp8_decode_plan *p, const attention_target *t) {
    fp8_decode_backend first;
    fp8_status st;

    FP8_TRY(read_preference(&first));
    for (int i = 0; i < 2 * NUM_BACKENDS; i++) {
        const decode_backend *b = backends[i % NUM_BACKENDS];
        if ((b->id == first) == (i < NUM_BACKENDS)) FP8_TRY(judge(p, b, t));
    }
    if (!p->parts[0].backend)
        st = FP8_FAIL(FP8_EUNSUPPORTED, "decode: no backend serves:\n%s", p->reasons);
    else if (first != FP8_DECODE_AUTO && first != p->parts[0].backend->id)
        fp8_log(FP8_LOG_WARNING, "decode: FP8_DECODE_BACKEND=%s does not serve, %s does",
                fp8_decode_backend_name(first), p->parts[0].backend->name);
done:
    return st;
}

/* ---- plans ----------------------------------------------------------------------------------- */

static void log_plan(const fp8_decode_plan *p) {
    const char *line = p->reasons, *end;

    fp8_log(FP8_LOG_INFO, "decode: %s", p->parts[0].backend->name);
    if (!fp8_log_enabled(FP8_LOG_DETAIL)) return;
    fp8_log(FP8_LOG_DETAIL, "decode: %lld keys a part, workspace %zu bytes",
            (long long)p->parts[0].split_keys, p->workspace_bytes);
    for (; line; line = end ? end + 1 : NULL) {
        end = strchr(line, '\n');
        fp8_log(FP8_LOG_DETAIL, "decode: %.*s", end ? (int)(end - line) : -1, line);
    }
}

fp8_status fp8_decode_plan_create(fp8_decode_plan **out, fp8_device *d,
                                  const fp8_decode_options *options) {
    const char *sync = getenv("FP8_SYNC");
    fp8_decode_plan *p = NULL;
    attention_target target;
    fp8_status st;

    if (!out || !d || !options)
        return FP8_FAIL(FP8_EINVAL, "decode plan: out=%p device=%p options=%p", (void *)out,
                        (void *)d, (const void *)options);
    *out = NULL;
    p = calloc(1, sizeof *p);
    if (!p) return FP8_FAIL(FP8_ENOMEM, "decode plan");
    FP8_TRY(decode_resolve_options(&p->options, options));
    p->device = d;
    p->checked = sync && *sync == '1';
    target = fp8_attention_target_of(d);
    FP8_TRY(select_backends(p, &target));
    for (int i = 0; i < DECODE_PARTS; i++)
        if (p->parts[i].workspace_bytes > p->workspace_bytes)
            p->workspace_bytes = p->parts[i].workspace_bytes;
    log_plan(p);
    *out = p;
    p = NULL;
done:
    fp8_decode_plan_destroy(p);
    return st;
}

void fp8_decode_plan_destroy(fp8_decode_plan *p) {
    if (!p) return;
    for (int i = 0; i < DECODE_PARTS; i++) close_part(&p->parts[i]);
    free(p);
}

fp8_decode_backend fp8_decode_plan_backend(const fp8_decode_plan *p) {
    return p->parts[0].backend->id;
}
const char *fp8_decode_plan_reasons(const fp8_decode_plan *p) { return p->reasons; }
int64_t fp8_decode_plan_split_keys(const fp8_decode_plan *p) { return p->parts[0].split_keys; }
int32_t fp8_decode_plan_blocks(const fp8_decode_plan *p) { return p->parts[0].blocks; }
size_t fp8_decode_workspace_size(const fp8_decode_plan *p) { return p->workspace_bytes; }

/* ---- run ------------------------------------------------------------------------------------- */

fp8_status decode_check_workspace(const fp8_decode_plan *p, const void *workspace,
                                  size_t workspace_bytes) {
    if (p->workspace_bytes > 0 && (!workspace || workspace_bytes < p->workspace_bytes))
        return FP8_FAIL(FP8_EINVAL, "decode: workspace %p of %zu bytes, expected %zu", workspace,
                        workspace_bytes, p->workspace_bytes);
    return FP8_OK;
}

/* Parts follow each other on the stream and share the workspace. */
fp8_status fp8_decode_run(fp8_decode_plan *p, const fp8_decode_io *io, void *workspace,
                          size_t workspace_bytes) {
    fp8_decode_io x;
    fp8_status st;

    if (!p || !io)
        return FP8_FAIL(FP8_EINVAL, "decode: plan=%p io=%p", (void *)p, (const void *)io);
    FP8_TRY(decode_resolve_io(&x, &p->options, io));
    FP8_TRY(decode_check_workspace(p, workspace, workspace_bytes));
    if (x.batch.num_seqs == 0 || x.batch.total_q == 0) goto done;
    for (int i = 0; i < DECODE_PARTS; i++)
        if (p->parts[i].backend) FP8_TRY(p->parts[i].backend->run(&p->parts[i], &x, workspace));
    if (p->checked) FP8_TRY(kv_batch_report(p->device, &x.pages, &x.batch));
done:
    return st;
}
