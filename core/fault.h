/* core/fault.h - failing calls on purpose, for tests/test_faults.py. Private.
 *
 * A build with -DFP8_FAULTS=ON links every call that this project makes of the functions below to a
 * wrapper (ld --wrap) that counts it and may fail it; any other build has none of this. It obeys
 *   FP8_FAULT=K       the K-th call (from 1) fails
 *   FP8_FAULT=K+      and every later one
 *   FP8_FAULT_LOG=F   appends "name distance" of each call to F: the distance of the place of the
 *                     call from the wrappers, the same in every run of one binary
 * Allocations fail with ENOMEM, threads with EAGAIN, all others with EIO. With CUDA its calls, and
 * those of cuBLASLt and cuDNN, are among them (fault_cuda.c). */
#ifndef FP8_CORE_FAULT_H
#define FP8_CORE_FAULT_H
#ifdef FP8_FAULTS

/* Counts a call of `name` from `caller`; 1: it is to fail, and errno is `error`. */
int fp8_fault_hits(const char *name, int error, const void *caller);

/* X(result, name, failed, error, parameters, arguments); open is apart: it is variadic. */
#define FP8_FAULT_MAP(X)                                                                           \
    X(void *, malloc, NULL, ENOMEM, (size_t n), (n))                                               \
    X(void *, calloc, NULL, ENOMEM, (size_t n, size_t size), (n, size))                            \
    X(void *, realloc, NULL, ENOMEM, (void *p, size_t n), (p, n))                                  \
    X(void *, aligned_alloc, NULL, ENOMEM, (size_t align, size_t n), (align, n))                   \
    X(char *, strdup, NULL, ENOMEM, (const char *s), (s))                                          \
    X(char *, strndup, NULL, ENOMEM, (const char *s, size_t n), (s, n))                            \
    X(char *, realpath, NULL, EIO, (const char *path, char *out), (path, out))                     \
    X(DIR *, opendir, NULL, EIO, (const char *path), (path))                                       \
    X(int, fstat, -1, EIO, (int fd, struct stat *out), (fd, out))                                  \
    X(int, mkdir, -1, EIO, (const char *path, mode_t mode), (path, mode))                          \
    X(int, fsync, -1, EIO, (int fd), (fd))                                                         \
    X(int, rename, -1, EIO, (const char *a, const char *b), (a, b))                                \
    X(int, renameat2, -1, EIO, (int d, const char *a, int e, const char *b, unsigned f),           \
      (d, a, e, b, f))                                                                             \
    X(ssize_t, pwrite, -1, EIO, (int fd, const void *p, size_t n, off_t at), (fd, p, n, at))       \
    X(void *, mmap, MAP_FAILED, EIO, (void *p, size_t n, int prot, int flags, int fd, off_t at),   \
      (p, n, prot, flags, fd, at))                                                                 \
    X(int, pthread_create, EAGAIN, EAGAIN,                                                         \
      (pthread_t *t, const pthread_attr_t *a, void *(*body)(void *), void *p), (t, a, body, p))

#endif
#endif
