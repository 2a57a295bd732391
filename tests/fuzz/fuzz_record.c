/* Fuzz target of formats/record.c. The input is the header of a safetensors file, a byte 0xff
 * (which JSON never holds) and the data.
 *
 * What loads keeps the promises of the header, and is the same once more after it was saved. */
#define _GNU_SOURCE /* memfd_create */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "formats/record.h"

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

#define MUST(cond) ((cond) ? (void)0 : abort())

static int put(char path[64], const unsigned char *data, size_t size) {
    const unsigned char *cut = size ? memchr(data, 0xff, size) : NULL;
    const size_t header = cut ? (size_t)(cut - data) : size, rest = size - header - (cut != NULL);
    const int fd = memfd_create("fuzz", 0);
    unsigned char length[8];

    for (int i = 0; i < 8; i++) length[i] = (unsigned char)((uint64_t)header >> (8 * i));
    MUST(fd >= 0 && write(fd, length, 8) == 8);
    MUST(write(fd, data, header) == (ssize_t)header);
    MUST(!rest || write(fd, cut + 1, rest) == (ssize_t)rest);
    snprintf(path, 64, "/proc/self/fd/%d", fd);
    return fd;
}

static void check(const fp8_record *r) {
    MUST(r->num_points >= 0 && r->steps >= 0 && r->steps <= r->steps_total);
    for (int64_t p = 0; p < r->num_points; p++)
        for (int64_t i = 0; i < r->steps; i++) {
            MUST(r->points[p] && r->points[p][0]);
            MUST(r->amax[p * r->steps_total + i] >= 0);
            MUST(r->amax_without_first[p * r->steps_total + i] >= 0);
        }
    for (int64_t i = 0; i < r->steps; i++) MUST(r->tokens[i] >= 0);
    MUST(fp8_record_check(r, r, "fuzz") == FP8_OK);
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    fp8_record *r = NULL, *again = NULL;
    char path[64], copy[64];
    const int fd = put(path, data, size);

    if (fp8_record_load(&r, path) == FP8_OK) {
        check(r);
        snprintf(copy, sizeof copy, "/tmp/fp8-fuzz-record-%ld", (long)getpid());
        MUST(fp8_record_save(r, copy) == FP8_OK);
        MUST(fp8_record_load(&again, copy) == FP8_OK);
        MUST(fp8_record_check(r, again, "fuzz") == FP8_OK && again->steps == r->steps);
        MUST(unlink(copy) == 0);
    }
    fp8_record_destroy(again);
    fp8_record_destroy(r);
    close(fd);
    return 0;
}
