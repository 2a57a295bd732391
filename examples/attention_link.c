/* examples/attention_link.c - FP8 attention from a program of one's own, and its distance from the
 * oracle: cc attention_link.c $(pkg-config --cflags --libs fp8rt) -lm && ./a.out [cpu|cuda] */
#include <fp8/attention.h>
#include <fp8/quant.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { B = 2, S = 100, H = 4, D = 64, N = B * S * H * D };

#define TRY(call)                                                                                  \
    if ((call) != FP8_OK) return fprintf(stderr, "%s\n", fp8_last_error()), 1

int main(int argc, char **argv) {
    static uint8_t codes[3][N]; /* Q, K, V as E4M3 */
    static float o[N], descales[3] = {1 / 64.f, 1 / 64.f, 1 / 64.f};
    static double want[N];
    const void *device_codes[3];
    void *p, *device_o, *device_descales, *workspace;
    fp8_device *device = NULL;
    fp8_attention_plan *plan = NULL;

    for (int i = 0; i < 3 * N; i++)
        codes[i / N][i % N] = fp8_from_f32(FP8_DTYPE_E4M3, 64 * sinf((float)(i * 7 % 1009)));

    TRY(fp8_device_create(&device, argc > 1 ? argv[1] : "auto", 0));
    for (int i = 0; i < 3; i++) {
        TRY(fp8_device_alloc(device, &p, N));
        TRY(fp8_device_upload(device, p, codes[i], N));
        device_codes[i] = p;
    }
    TRY(fp8_device_alloc(device, &device_o, sizeof o));
    TRY(fp8_device_alloc(device, &device_descales, sizeof descales));
    TRY(fp8_device_upload(device, device_descales, descales, sizeof descales));

    fp8_attention_options options = FP8_ATTENTION_OPTIONS; /* what: made once */
    options.num_heads = options.num_kv_heads = H;
    options.d_qk = options.d_v = D;
    options.num_seqs = B;
    options.max_q = options.max_kv = S;
    options.layout = FP8_LAYOUT_BSHD_BSHD_BSHD;
    options.mask = FP8_MASK_CAUSAL;
    options.q_dtype = options.kv_dtype = FP8_DTYPE_E4M3;
    options.o_dtype = FP8_DTYPE_F32;
    TRY(fp8_attention_plan_create(&plan, device, &options));
    printf("%s\n", fp8_attention_plan_reasons(plan));
    const size_t bytes = fp8_attention_workspace_size(plan);
    TRY(fp8_device_alloc(device, &workspace, bytes));

    const float *descale = device_descales; /* where: as often as you like */
    fp8_attention_io io = {.o = device_o, .q = device_codes[0], .k = device_codes[1],
        .v = device_codes[2], .q_descale = descale, .k_descale = descale + 1,
        .v_descale = descale + 2};
    TRY(fp8_attention_run(plan, &io, workspace, bytes));
    TRY(fp8_device_download(device, o, device_o, sizeof o));

    io = (fp8_attention_io){.q = codes[0], .k = codes[1], .v = codes[2], .q_descale = descales,
        .k_descale = descales, .v_descale = descales};
    TRY(fp8_attention_reference(want, NULL, NULL, &options, &io)); /* all on the host */
    double error = 0, norm = 0;
    for (int i = 0; i < N; i++) {
        error += (o[i] - want[i]) * (o[i] - want[i]);
        norm += want[i] * want[i];
    }
    printf("relative error %.1e\n", sqrt(error / norm));
    return sqrt(error / norm) < 0.02 ? 0 : 1;
}
