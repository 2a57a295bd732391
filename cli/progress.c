#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"

enum { BAR_WIDTH = 30 };
static const double bar_seconds = 0.1, line_seconds = 5.0; /* between two reports */

static volatile sig_atomic_t stop;

static struct {
    int quiet, terminal, drawn; /* drawn: a bar stands on the current line */
    char what[64];
    double begin, last; /* of this work; of the last report, note or other work */
    int64_t first_done; /* a resumed work does not begin at 0: the rate is counted from here */
    double first_time;
} state;

/* The first signal asks; a second of any kind gets its default action. */
static void on_signal(int sig) {
    (void)sig;
    stop = 1;
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
}

/* A model's file that someone shortens, or a disk that fails, under our mapping: the work goes on
 * with zeros to its next commit, which fails. */
static void on_bus_error(int sig, siginfo_t *info, void *context) {
    (void)context;
    if (!fp8_file_lost(info->si_addr)) signal(sig, SIG_DFL); /* not ours: it comes again */
}

double cli_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void clear_bar(void) {
    if (state.drawn) fputs("\r\033[K", stderr);
    state.drawn = 0;
}

static void print_warning(void *ctx, fp8_log_level level, const char *line) {
    (void)ctx;
    (void)level;
    cli_note("warning: %s", line);
}

static void ignore_warning(void *ctx, fp8_log_level level, const char *line) {
    (void)ctx;
    (void)level;
    (void)line;
}

void cli_progress_start(const cli_common *common) {
    const char *debug = getenv("FP8_DEBUG");
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    action.sa_handler = SIG_IGN; /* past the limit of a file's size: write() says so */
    sigaction(SIGXFSZ, &action, NULL);
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGBUS, &action, NULL);
    state.quiet = common->quiet;
    state.terminal = isatty(STDERR_FILENO);
    state.last = cli_seconds();
    if (!debug || !*debug) /* with it the library writes to stderr itself */
        fp8_log_set(common->quiet ? ignore_warning : print_warning, NULL, FP8_LOG_WARNING);
}

int cli_interrupted(void) { return stop != 0; }

fp8_status cli_check_interrupt(void) {
    return stop ? FP8_FAIL(FP8_ECANCELED, "interrupted") : FP8_OK;
}

void cli_note(const char *fmt, ...) {
    va_list ap;
    if (state.quiet) return;
    clear_bar();
    state.last = cli_seconds();
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

void cli_print_error(const char *message) {
    clear_bar();
    fputs("fp8calib: ", stderr);
    for (const char *p = message; *p; p++) {
        const unsigned char c = (unsigned char)*p;
        if (c >= 0x20 && c != 0x7f) fputc(c, stderr);
        else fprintf(stderr, "\\x%02x", c);
    }
    fputc('\n', stderr);
}

static void duration_text(char *buf, size_t bytes, double seconds) {
    const int64_t s = (int64_t)(seconds + 0.5);
    if (seconds < 9.95)
        snprintf(buf, bytes, "%.1f s", seconds);
    else if (s < 3600)
        snprintf(buf, bytes, "%" PRId64 ":%02" PRId64, s / 60, s % 60);
    else
        snprintf(buf, bytes, "%" PRId64 ":%02" PRId64 ":%02" PRId64, s / 3600, s / 60 % 60, s % 60);
}

static int terminal_columns(void) {
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

/* "12/64", or "1.2 GB/3.4 GB" of what is counted in bytes. */
static void amount_text(char *buf, size_t bytes, int64_t done, int64_t total) {
    char a[32], b[32];
    if (strcmp(state.what, "writing") == 0)
        snprintf(buf, bytes, "%s/%s", cli_bytes_text(a, sizeof a, (size_t)done),
                 cli_bytes_text(b, sizeof b, (size_t)total));
    else
        snprintf(buf, bytes, "%" PRId64 "/%" PRId64, done, total);
}

static void draw(int64_t done, int64_t total, const char *amount, const char *left) {
    char bar[BAR_WIDTH + 1], line[256];
    const int filled = total > 0 ? (int)((double)done / (double)total * BAR_WIDTH) : 0;
    const int columns = terminal_columns();
    for (int i = 0; i < BAR_WIDTH; i++) bar[i] = i < filled ? '=' : ' ';
    bar[BAR_WIDTH] = 0;
    if (columns >= 80)
        snprintf(line, sizeof line, "%s [%s] %s, %s left", state.what, bar, amount, left);
    else
        snprintf(line, sizeof line, "%s %s, %s left", state.what, amount, left);
    fprintf(stderr, "\r%.*s\033[K", columns - 1, line);
    fflush(stderr);
    state.drawn = 1;
}

static void report(int64_t done, int64_t total, double t) {
    char amount[80], text[32] = "?";
    amount_text(amount, sizeof amount, done, total);
    if (done >= total) {
        duration_text(text, sizeof text, t - state.begin);
        cli_note("%s: %s in %s", state.what, amount, text);
        return;
    }
    if (done > state.first_done) {
        const double rate = (double)(done - state.first_done) / (t - state.first_time);
        duration_text(text, sizeof text, (double)(total - done) / rate);
    }
    if (state.terminal) draw(done, total, amount, text);
    else cli_note("%s: %s, %s left", state.what, amount, text);
}

static int on_progress(void *ctx, const char *what, int64_t done, int64_t total) {
    const double t = cli_seconds();
    (void)ctx;
    if (state.quiet) return stop != 0;
    if (strcmp(what, state.what) != 0) {
        clear_bar();
        snprintf(state.what, sizeof state.what, "%s", what);
        state.begin = state.last;
        state.last = state.first_time = t;
        state.first_done = done;
    }
    if (done >= total || t - state.last >= (state.terminal ? bar_seconds : line_seconds)) {
        report(done, total, t);
        state.last = t;
    }
    if (done >= total) state.what[0] = 0; /* the same work may come again */
    return stop != 0;
}

fp8_progress cli_progress(void) {
    const fp8_progress p = {on_progress, NULL};
    return p;
}
