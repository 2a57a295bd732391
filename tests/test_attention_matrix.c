/* The support matrix of docs/ATTENTION.md: every cell is asked of the backends' own checks, for
 * described devices, so that any machine gives the same tables. The document must hold them;
 * `test_attention_matrix update` writes them into it. */
#include <string.h>

#include "attention/attention.h"
#include "check.h"

/* What the tables describe. */
static const fp8_attention_target hopper = {FP8_PLACE_CUDA, 90, 91900, "sm_90"};
static const fp8_attention_target host = {FP8_PLACE_CPU, 0, 0, "CPU"};

typedef enum column_kind { AS_BF16, AS_FP8 } column_kind;

static fp8_attention_options base(column_kind kind) {
    fp8_attention_options o = FP8_ATTENTION_OPTIONS;
    o.num_heads = o.num_kv_heads = 16;
    o.d_qk = o.d_v = 128;
    o.num_seqs = 2;
    o.max_q = o.max_kv = 512;
    o.layout = FP8_LAYOUT_BSHD_BSHD_BSHD;
    if (kind == AS_FP8) {
        o.q_dtype = o.kv_dtype = FP8_DTYPE_E4M3;
        o.quantize_p = 1;
    }
    return o;
}

/* ---- rows ------------------------------------------------------------------------------------ */

static void head_64(fp8_attention_options *o) { o->d_qk = o->d_v = 64; }
static void head_72(fp8_attention_options *o) { o->d_qk = o->d_v = 72; }
static void head_96(fp8_attention_options *o) { o->d_qk = o->d_v = 96; }
static void head_192(fp8_attention_options *o) { o->d_qk = o->d_v = 192; }
static void head_256(fp8_attention_options *o) { o->d_qk = o->d_v = 256; }
static void head_mla(fp8_attention_options *o) { o->d_qk = 192; }
static void grouped(fp8_attention_options *o) { o->num_kv_heads = 4; }
static void one_kv_head(fp8_attention_options *o) { o->num_kv_heads = 1; }
static void cross(fp8_attention_options *o) { o->max_q = 128; }
static void decode(fp8_attention_options *o) { o->max_q = 1; }
static void causal(fp8_attention_options *o) { o->mask = FP8_MASK_CAUSAL; }
static void causal_cross(fp8_attention_options *o) {
    o->mask = FP8_MASK_CAUSAL;
    o->max_q = 128;
}
static void bottom_right(fp8_attention_options *o) {
    o->mask = FP8_MASK_CAUSAL_BOTTOM_RIGHT;
    o->max_q = 128;
}
static void bottom_right_long(fp8_attention_options *o) {
    o->mask = FP8_MASK_CAUSAL_BOTTOM_RIGHT;
    o->max_q = 1024;
}
static void arbitrary(fp8_attention_options *o) { o->mask = FP8_MASK_ARBITRARY; }
static void padded(fp8_attention_options *o) { o->padding = 1; }
static void padded_causal(fp8_attention_options *o) {
    o->padding = 1;
    o->mask = FP8_MASK_CAUSAL;
}
static void padded_bottom_right(fp8_attention_options *o) {
    o->padding = 1;
    o->mask = FP8_MASK_CAUSAL_BOTTOM_RIGHT;
}
static void packed_causal(fp8_attention_options *o) {
    o->layout = FP8_LAYOUT_THD_THD_THD;
    o->mask = FP8_MASK_CAUSAL;
}
static void packed_bottom_right(fp8_attention_options *o) {
    o->layout = FP8_LAYOUT_THD_THD_THD;
    o->mask = FP8_MASK_CAUSAL_BOTTOM_RIGHT;
}
static void window_causal(fp8_attention_options *o) {
    o->mask = FP8_MASK_CAUSAL_BOTTOM_RIGHT;
    o->window_left = 127;
}
static void window_packed(fp8_attention_options *o) {
    o->layout = FP8_LAYOUT_THD_THD_THD;
    window_causal(o);
}
static void window_both(fp8_attention_options *o) { o->window_left = o->window_right = 127; }
static void pre_bias(fp8_attention_options *o) {
    o->bias = FP8_BIAS_PRE_SCALE;
    o->bias_shape = FP8_BIAS_1HSS;
}
static void post_bias(fp8_attention_options *o) {
    o->bias = FP8_BIAS_POST_SCALE;
    o->bias_shape = FP8_BIAS_1HSS;
}
static void alibi(fp8_attention_options *o) {
    o->bias = FP8_BIAS_ALIBI;
    o->mask = FP8_MASK_CAUSAL;
}
static void softcap(fp8_attention_options *o) { o->softcap = 30; }
static void off_by_one(fp8_attention_options *o) { o->sink = FP8_SINK_OFF_BY_ONE; }
static void learnable(fp8_attention_options *o) { o->sink = FP8_SINK_LEARNABLE; }
static void strides(fp8_attention_options *o) {
    o->has_strides = 1; /* rows of 32 heads, of which these are 16 */
    o->q = o->k = o->v = o->o = (fp8_strides){512 * 4096, 4096, 128};
}
static void f16(fp8_attention_options *o) {
    if (o->q_dtype != FP8_DTYPE_E4M3) o->q_dtype = o->kv_dtype = FP8_DTYPE_F16;
    o->o_dtype = FP8_DTYPE_F16;
}
static void f32(fp8_attention_options *o) {
    if (o->q_dtype != FP8_DTYPE_E4M3) o->q_dtype = o->kv_dtype = FP8_DTYPE_F32;
    o->o_dtype = FP8_DTYPE_F32;
}
static void out_e4m3(fp8_attention_options *o) { o->o_dtype = FP8_DTYPE_E4M3; }
static void lse(fp8_attention_options *o) { o->want_lse = 1; }
static void amax(fp8_attention_options *o) { o->want_amax = 1; }
static void bf16_queries(fp8_attention_options *o) { o->q_dtype = FP8_DTYPE_BF16; }
static void given(fp8_attention_options *o) {
    o->q_dtype = o->kv_dtype = FP8_DTYPE_BF16;
    o->quantize = FP8_QUANTIZE_GIVEN;
}
static void current(fp8_attention_options *o) {
    o->q_dtype = o->kv_dtype = FP8_DTYPE_BF16;
    o->quantize = FP8_QUANTIZE_CURRENT;
}
static void rotated(fp8_attention_options *o) {
    current(o);
    o->hadamard = 1;
}
static void by_head(fp8_attention_options *o) { o->granularity = FP8_DESCALE_HEAD; }
static void by_batch_head(fp8_attention_options *o) { o->granularity = FP8_DESCALE_BATCH_HEAD; }
static void fast(fp8_attention_options *o) { o->precision = FP8_ATTENTION_FAST; }
static void exact_p(fp8_attention_options *o) { o->quantize_p = 0; }

typedef struct row {
    const char *name;
    void (*change)(fp8_attention_options *o);
    int fp8_only; /* BF16 columns stay empty */
} row;

static const row rows[] = {
    {"as it stands", NULL, 0},
    {"head size 64", head_64, 0},
    {"head size 72", head_72, 0},
    {"head size 96", head_96, 0},
    {"head size 192", head_192, 0},
    {"head size 256", head_256, 0},
    {"head size 192, values 128", head_mla, 0},
    {"16 heads over 4 KV heads", grouped, 0},
    {"16 heads over 1 KV head", one_kv_head, 0},
    {"128 queries, 512 keys", cross, 0},
    {"1 query, 512 keys", decode, 0},
    {"causal (top-left)", causal, 0},
    {"causal, 128 queries, 512 keys", causal_cross, 0},
    {"causal bottom-right, 128 queries, 512 keys", bottom_right, 0},
    {"causal bottom-right, 1024 queries, 512 keys", bottom_right_long, 0},
    {"arbitrary mask", arbitrary, 0},
    {"padding", padded, 0},
    {"padding, causal", padded_causal, 0},
    {"padding, causal bottom-right", padded_bottom_right, 0},
    {"packed (thd), causal", packed_causal, 0},
    {"packed (thd), causal bottom-right", packed_bottom_right, 0},
    {"causal bottom-right, window (127, -1)", window_causal, 0},
    {"the same, packed (thd)", window_packed, 0},
    {"no mask, window (127, 127)", window_both, 0},
    {"pre-scale bias", pre_bias, 0},
    {"post-scale bias", post_bias, 0},
    {"ALiBi, causal", alibi, 0},
    {"softcap", softcap, 0},
    {"sink: off by one", off_by_one, 0},
    {"sink: learnable", learnable, 0},
    {"strides of one's own", strides, 0},
    {"F16 in (where not FP8) and out", f16, 0},
    {"F32 in (where not FP8) and out", f32, 0},
    {"E4M3 out", out_e4m3, 0},
    {"LSE out", lse, 0},
    {"amax of P and O out", amax, 0},
    {"BF16 queries, E4M3 keys and values", bf16_queries, 1},
    {"BF16 in, quantized by given descales", given, 1},
    {"BF16 in, quantized by current descales", current, 1},
    {"the same, Q and K rotated (Hadamard)", rotated, 1},
    {"descales a KV head", by_head, 1},
    {"descales a sequence and KV head", by_batch_head, 1},
    {"fast sums", fast, 1},
    {"P not rounded to E4M3", exact_p, 1},
};

/* ---- tables ---------------------------------------------------------------------------------- */

static const char head[] =
    "| | flash FP8 | flash BF16 | fused FP8 | fused BF16 | unfused FP8 | unfused BF16 | cpu FP8 | "
    "cpu BF16 |\n|---|---|---|---|---|---|---|---|---|\n";

/* The backend's verdict, and in *chosen what a plan would take. */
static int serves(fp8_attention_backend b, const fp8_attention_target *t,
                  const fp8_attention_options *o, fp8_attention_backend *chosen) {
    fp8_attention_verdict v[FP8_ATTENTION_BACKENDS];
    CHECK_STATUS(fp8_attention_explain(chosen, v, NULL, t, o), FP8_OK);
    for (int i = 0; i < FP8_ATTENTION_BACKENDS; i++)
        if (v[i].backend == b) return v[i].serves;
    return 0;
}

/* cuDNN's FP8 has E4M3 out and fast sums alone: it is asked with those. */
static fp8_attention_options as_asked(fp8_attention_options o, fp8_attention_backend b) {
    if (b != FP8_BACKEND_FUSED) return o;
    o.precision = FP8_ATTENTION_FAST;
    if (o.o_dtype == FP8_DTYPE_BF16) o.o_dtype = FP8_DTYPE_E4M3;
    return o;
}

/* Two cells a backend, FP8 and BF16. */
static void write_cells(FILE *f, const char *name, const fp8_attention_options *fp8,
                        const fp8_attention_options *bf16) {
    fp8_attention_backend chosen;
    fprintf(f, "| %s |", name);
    for (int b = FP8_BACKEND_FLASH; b <= FP8_BACKEND_CPU; b++) {
        const fp8_attention_target *t = b == FP8_BACKEND_CPU ? &host : &hopper;
        const fp8_attention_options asked = as_asked(*fp8, (fp8_attention_backend)b);
        fputs(serves((fp8_attention_backend)b, t, &asked, &chosen) ? " yes |" : " - |", f);
        if (!bf16) fprintf(f, "  |");
        else fputs(serves((fp8_attention_backend)b, t, bf16, &chosen) ? " yes |" : " - |", f);
    }
    fprintf(f, "\n");
}

static void write_options(FILE *f) {
    fputs(head, f);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        fp8_attention_options fp8 = base(AS_FP8), bf16 = base(AS_BF16);
        if (rows[i].change) rows[i].change(&fp8);
        if (rows[i].change) rows[i].change(&bf16);
        write_cells(f, rows[i].name, &fp8, rows[i].fp8_only ? NULL : &bf16);
    }
}

static void write_layouts(FILE *f) {
    fputs(head, f);
    for (int l = 0; l < FP8_NUM_LAYOUTS; l++) {
        fp8_attention_options fp8 = base(AS_FP8), bf16 = base(AS_BF16);
        fp8.layout = bf16.layout = (fp8_attention_layout)l;
        write_cells(f, fp8_attention_layout_name((fp8_attention_layout)l), &fp8, &bf16);
    }
}

/* What a plan takes, device by device. */
static void write_devices(FILE *f) {
    static const struct {
        const char *name;
        fp8_attention_target t;
    } devices[] = {
        {"CPU", {FP8_PLACE_CPU, 0, 0, "CPU"}},
        {"sm_75 (T4)", {FP8_PLACE_CUDA, 75, 91900, "sm_75"}},
        {"sm_80 (A100), cuDNN 9.14", {FP8_PLACE_CUDA, 80, 91400, "sm_80"}},
        {"sm_89 (L40S), cuDNN 9.14", {FP8_PLACE_CUDA, 89, 91400, "sm_89"}},
        {"sm_90 (H100, H200), cuDNN 9.14", {FP8_PLACE_CUDA, 90, 91400, "sm_90"}},
        {"sm_90 (H100, H200), cuDNN 9.19", {FP8_PLACE_CUDA, 90, 91900, "sm_90"}},
        {"sm_100 (B200), cuDNN 9.19", {FP8_PLACE_CUDA, 100, 91900, "sm_100"}},
    };
    fputs("| | FP8, bshd | FP8, thd | BF16, bshd | BF16, thd |\n|---|---|---|---|---|\n", f);
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
        fprintf(f, "| %s |", devices[i].name);
        for (int c = 0; c < 4; c++) {
            fp8_attention_options o = base(c < 2 ? AS_FP8 : AS_BF16);
            fp8_attention_backend chosen;
            o.mask = FP8_MASK_CAUSAL_BOTTOM_RIGHT;
            if (c % 2) o.layout = FP8_LAYOUT_THD_THD_THD;
            (void)serves(FP8_BACKEND_AUTO, &devices[i].t, &o, &chosen);
            fprintf(f, " %s |",
                    chosen == FP8_BACKEND_AUTO ? "none" : fp8_attention_backend_name(chosen));
        }
        fprintf(f, "\n");
    }
}

/* ---- the document ---------------------------------------------------------------------------- */

static const struct {
    const char *name; /* the table lies between "<!-- NAME -->" and "<!-- end of NAME -->" lines */
    void (*write)(FILE *f);
} tables[] = {{"devices", write_devices}, {"options", write_options}, {"layouts", write_layouts}};

static char *read_file(const char *path) {
    FILE *f = fopen(path, "rb");
    char *text = NULL;
    size_t used = 0, room = 1;
    if (!f) return NULL;
    do {
        room *= 2;
        text = realloc(text, room + 1);
        if (!text) abort();
        used += fread(text + used, 1, room - used, f);
    } while (used == room);
    text[used] = 0;
    fclose(f);
    return text;
}

/* The document with every table as it is now; the caller frees. */
static char *rewritten(const char *text) {
    char *out = NULL;
    size_t bytes;
    FILE *f = open_memstream(&out, &bytes);
    if (!f) abort();
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        char from[64], to[64];
        const char *begin, *end;
        snprintf(from, sizeof from, "<!-- %s -->\n", tables[i].name);
        snprintf(to, sizeof to, "<!-- end of %s -->\n", tables[i].name);
        begin = strstr(text, from);
        end = begin ? strstr(begin, to) : NULL;
        check_case = tables[i].name;
        CHECK(begin && end);
        if (!end) break;
        fwrite(text, 1, (size_t)(begin - text) + strlen(from), f);
        tables[i].write(f);
        text = end;
    }
    fputs(text, f);
    fclose(f);
    return out;
}

int main(int argc, char **argv) {
    const int update = argc > 1 && strcmp(argv[1], "update") == 0;
    const char *root = getenv("FP8_SOURCE_DIR");
    char path[4096], *text, *now;

    unsetenv("FP8_ATTENTION_BACKEND");
    unsetenv("FP8_FLASH_ATTN");
    unsetenv("FP8_FUSED_ATTN");
    unsetenv("FP8_UNFUSED_ATTN");
    snprintf(path, sizeof path, "%s/docs/ATTENTION.md", root && *root ? root : ".");
    text = read_file(path);
    CHECK(text);
    if (!text) return 1;
    now = rewritten(text);
    check_case = "docs/ATTENTION.md";
    if (update && strcmp(text, now) != 0) {
        FILE *f = fopen(path, "wb");
        CHECK(f && fputs(now, f) >= 0 && fclose(f) == 0);
    } else if (!update) {
        CHECK(strcmp(text, now) == 0);
        if (strcmp(text, now) != 0)
            fprintf(stderr, "  its tables are not what the backends say now: run\n"
                            "  FP8_SOURCE_DIR=%s %s update\n", root ? root : ".", argv[0]);
    }
    free(text);
    free(now);
    return CHECK_DONE();
}
