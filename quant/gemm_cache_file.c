/* The choices of the process, and the file they live in. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/log.h"
#include "quant/gemm_cache.h"
#include "quant/gemm_tune.h"

enum { MAX_PATH = 4096 };
static const size_t MAX_FILE = (size_t)64 << 20; /* some 200000 choices */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards all below */
static fp8_algo_list list;
static char update_path[MAX_PATH]; /* "" = none */
static uint64_t generation = 1;
static pthread_once_t environment = PTHREAD_ONCE_INIT;

/* ---- one file -------------------------------------------------------------------------------- */

/* FP8_ENOTFOUND when there is none. Free *text. */
static fp8_status read_file(const char *path, char **text, size_t *bytes) {
    FILE *f = fopen(path, "rb");
    fp8_status st = FP8_OK;

    *text = NULL;
    if (!f)
        return FP8_FAIL(errno == ENOENT ? FP8_ENOTFOUND : FP8_EIO, "%s: %s", path,
                        strerror(errno));
    *text = malloc(MAX_FILE + 1);
    if (!*text) {
        st = FP8_FAIL(FP8_ENOMEM, "%s: %zu bytes", path, MAX_FILE + 1);
        goto done;
    }
    *bytes = fread(*text, 1, MAX_FILE + 1, f);
    if (ferror(f)) st = FP8_FAIL(FP8_EIO, "%s: %s", path, strerror(errno));
    else if (*bytes > MAX_FILE)
        st = FP8_FAIL(FP8_EFORMAT, "%s: a gemm cache of more than %zu bytes", path, MAX_FILE);
done:
    if (st != FP8_OK) {
        free(*text);
        *text = NULL;
    }
    (void)fclose(f);
    return st;
}

static fp8_status join_file(fp8_algo_list *l, const char *path) {
    char *text = NULL;
    size_t bytes = 0;
    fp8_status st;

    FP8_TRY(read_file(path, &text, &bytes));
    FP8_TRY(fp8_algo_list_parse(l, path, text, bytes));
done:
    free(text);
    return st;
}

static fp8_status write_file(const char *path, const char *text, size_t bytes) {
    char temporary[MAX_PATH + 32];
    FILE *f;
    int bad;

    if (snprintf(temporary, sizeof temporary, "%s.%ld.tmp", path, (long)getpid()) >=
        (int)sizeof temporary)
        return FP8_FAIL(FP8_EINVAL, "gemm cache: a path of more than %d bytes", MAX_PATH);
    f = fopen(temporary, "wb");
    if (!f) return FP8_FAIL(FP8_EIO, "%s: %s", temporary, strerror(errno));
    bad = fwrite(text, 1, bytes, f) != bytes || fflush(f) != 0 || fsync(fileno(f)) != 0;
    bad |= fclose(f) != 0;
    if (!bad && rename(temporary, path) == 0) return FP8_OK;
    bad = errno;
    (void)remove(temporary);
    return FP8_FAIL(FP8_EIO, "%s: %s", path, strerror(bad));
}

static fp8_status print_to(fp8_algo_list *l, const char *path) {
    char *text = NULL;
    size_t bytes = 0;
    fp8_status st;

    FP8_TRY(fp8_algo_list_print(l, &text, &bytes));
    FP8_TRY(write_file(path, text, bytes));
done:
    free(text);
    return st;
}

/* ---- the process ----------------------------------------------------------------------------- */

static fp8_status open_locked(const char *path, fp8_cache_mode mode) {
    fp8_status st;

    if (strlen(path) >= MAX_PATH)
        return FP8_FAIL(FP8_EINVAL, "gemm cache: a path of more than %d bytes", MAX_PATH - 1);
    st = join_file(&list, path);
    if (st == FP8_ENOTFOUND && mode == FP8_CACHE_FOR_UPDATE) st = FP8_OK;
    FP8_TRY(st);
    if (mode == FP8_CACHE_FOR_UPDATE) memcpy(update_path, path, strlen(path) + 1);
    generation++;
done:
    return st;
}

fp8_status fp8_gemm_cache_open(const char *path, fp8_cache_mode mode) {
    fp8_status st;
    if (!path || !*path) return FP8_FAIL(FP8_EINVAL, "gemm cache: no path");
    pthread_mutex_lock(&lock);
    st = open_locked(path, mode);
    pthread_mutex_unlock(&lock);
    return st;
}

fp8_status fp8_gemm_cache_save(const char *path) {
    fp8_status st;
    if (!path || !*path) return FP8_FAIL(FP8_EINVAL, "gemm cache: no path");
    pthread_mutex_lock(&lock);
    st = print_to(&list, path);
    pthread_mutex_unlock(&lock);
    return st;
}

void fp8_gemm_cache_clear(void) {
    pthread_mutex_lock(&lock);
    fp8_algo_list_free(&list);
    update_path[0] = 0;
    generation++;
    pthread_mutex_unlock(&lock);
}

int64_t fp8_gemm_cache_count(void) {
    int64_t count;
    pthread_mutex_lock(&lock);
    count = list.count;
    pthread_mutex_unlock(&lock);
    return count;
}

static void open_environment(void) {
    const char *path = getenv("FP8_GEMM_CACHE");
    if (path && *path && fp8_gemm_cache_open(path, FP8_CACHE_FOR_UPDATE) != FP8_OK)
        fp8_log(FP8_LOG_WARNING, "FP8_GEMM_CACHE is not used: %s", fp8_last_message());
}

int fp8_algo_find(const fp8_algo_key *key, fp8_algo_entry *out) {
    const fp8_algo_entry *e;
    (void)pthread_once(&environment, open_environment);
    pthread_mutex_lock(&lock);
    e = fp8_algo_list_find(&list, key);
    if (e) *out = *e;
    pthread_mutex_unlock(&lock);
    return e != NULL;
}

/* What others wrote to the file meanwhile stays: it is read again and ours put over it. */
static fp8_status update_file(const fp8_algo_entry *e) {
    fp8_algo_list all = {0};
    fp8_status st = join_file(&all, update_path);

    if (st == FP8_ENOTFOUND) st = FP8_OK;
    FP8_TRY(st);
    FP8_TRY(fp8_algo_list_put(&all, e));
    FP8_TRY(print_to(&all, update_path));
done:
    fp8_algo_list_free(&all);
    return st;
}

fp8_status fp8_algo_keep(const fp8_algo_entry *e) {
    fp8_status st;
    (void)pthread_once(&environment, open_environment);
    pthread_mutex_lock(&lock);
    FP8_TRY(fp8_algo_list_put(&list, e));
    generation++;
    if (update_path[0]) FP8_TRY(update_file(e));
done:
    pthread_mutex_unlock(&lock);
    return st;
}

uint64_t fp8_algo_generation(void) {
    uint64_t now;
    pthread_mutex_lock(&lock);
    now = generation;
    pthread_mutex_unlock(&lock);
    return now;
}
