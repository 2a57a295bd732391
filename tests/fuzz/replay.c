/* tests/fuzz/replay.c - main() of a fuzz target without libFuzzer: [MUTATIONS SEED] FILE...
 * Each file goes in as it is; then, MUTATIONS times, one with some of its bytes changed, moved,
 * doubled, cut, or joined to another file's. Prints how many went in. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

enum { MAX_BYTES = 1 << 16, MAX_FILES = 1024 };

static struct {
    unsigned char *data;
    size_t size;
} seeds[MAX_FILES];

static uint64_t state;

static size_t below(size_t n) { /* SplitMix64 */
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return n ? (size_t)((z ^ (z >> 31)) % n) : 0;
}

/* Exactly as many bytes as it has, so that a sanitizer sees what is read beyond them. */
static void enter(const unsigned char *data, size_t size) {
    unsigned char *copy = malloc(size ? size : 1);
    if (!copy) exit(1);
    memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

static int read_seed(int i, const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) {
        perror(path);
        return 0;
    }
    seeds[i].data = malloc(MAX_BYTES);
    if (seeds[i].data) seeds[i].size = fread(seeds[i].data, 1, MAX_BYTES, f);
    fclose(f);
    return seeds[i].data != NULL;
}

/* Replaces [at, at + gone) by `more` bytes of p; what does not fit falls off. */
static size_t splice(unsigned char *buf, size_t size, size_t at, size_t gone,
                     const unsigned char *p, size_t more) {
    const size_t tail = size - at - gone;
    if (at + more + tail > MAX_BYTES) return size;
    memmove(buf + at + more, buf + at + gone, tail);
    memcpy(buf + at, p, more);
    return at + more + tail;
}

static size_t mutate(unsigned char *buf, size_t size, int files) {
    static const char *const words[] = {
        "0",  "-1", "9223372036854775807", "18446744073709551616", "1e999", "null", "[",
        "]",  "{",  "}", "\"", ",", ":", "\\u0000", "\\ud800", "\xff", "\xc3", "true",
        "[[[[[[[[", "{}"};
    unsigned char piece[64];
    const int other = (int)below((size_t)files);
    const size_t at = below(size + 1), gone = below(size - at + 1) % 17;
    const char *word = words[below(sizeof words / sizeof *words)];
    size_t from, n;

    switch (below(6)) {
    case 0:
        if (size) buf[below(size)] = (unsigned char)below(256);
        return size;
    case 1:
        if (size) buf[below(size)] ^= (unsigned char)(1u << below(8));
        return size;
    case 2: return splice(buf, size, at, gone, buf, 0);
    case 3: return splice(buf, size, at, gone, (const unsigned char *)word, strlen(word));
    case 4: return below(8) ? size : at;
    default:
        from = below(seeds[other].size + 1);
        n = below(seeds[other].size - from + 1) % sizeof piece;
        memcpy(piece, seeds[other].data + from, n);
        return splice(buf, size, at, gone, piece, n);
    }
}

int main(int argc, char **argv) {
    char *end = NULL;
    long mutations = argc > 2 ? strtol(argv[1], &end, 10) : 0;
    const int has_count = end && *end == 0 && end != argv[1];
    char **paths = argv + 1 + 2 * has_count;
    const int files = argc - 1 - 2 * has_count;
    unsigned char *buf = malloc(MAX_BYTES);

    if (has_count) state = strtoull(argv[2], NULL, 10);
    else mutations = 0;
    if (!buf || files < 1 || files > MAX_FILES) return 2;
    for (int i = 0; i < files; i++) {
        if (!read_seed(i, paths[i])) return 2;
        enter(seeds[i].data, seeds[i].size);
    }
    for (long k = 0; k < mutations; k++) {
        const int i = (int)below((size_t)files);
        size_t size = seeds[i].size;
        memcpy(buf, seeds[i].data, size);
        for (size_t turn = 1 + below(8); turn > 0; turn--) size = mutate(buf, size, files);
        enter(buf, size);
    }
    printf("%d files, %ld mutations\n", files, mutations);
    for (int i = 0; i < files; i++) free(seeds[i].data);
    free(buf);
    return 0;
}
