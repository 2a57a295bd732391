#define _XOPEN_SOURCE 700 /* realpath */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"

/* ---- text ------------------------------------------------------------------------------------ */

const char *cli_bytes_text(char *buf, size_t bytes, size_t n) {
    static const char *const units[] = {"bytes", "kB", "MB", "GB", "TB"};
    double value = (double)n;
    int unit = 0;
    while (value >= 999.5 && unit < 4) {
        value /= 1000;
        unit++;
    }
    snprintf(buf, bytes, unit == 0 ? "%.0f %s" : "%.3g %s", value, units[unit]);
    return buf;
}

/* Bytes of the UTF-8 character that begins text[0 .. len), 0 when there is none (RFC 3629). */
static size_t utf8_length(const unsigned char *text, size_t len) {
    const unsigned char c = text[0];
    const size_t n = c < 0x80 ? 1 : c >= 0xc2 && c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    if ((c >= 0x80 && c < 0xc2) || c > 0xf4 || n > len) return 0;
    for (size_t i = 1; i < n; i++)
        if ((text[i] & 0xc0) != 0x80) return 0;
    if ((c == 0xe0 && text[1] < 0xa0) || (c == 0xed && text[1] > 0x9f) ||
        (c == 0xf0 && text[1] < 0x90) || (c == 0xf4 && text[1] > 0x8f))
        return 0;
    return n;
}

static char *quote_char(char *out, unsigned char c) {
    static const char *const short_form = "b\bf\fn\nr\rt\t\"\"\\\\";
    for (const char *p = short_form; *p; p += 2)
        if (c == (unsigned char)p[1]) {
            *out++ = '\\';
            *out++ = p[0];
            return out;
        }
    if (c < 0x20 || c == 0x7f) return out + sprintf(out, "\\u%04x", c);
    *out++ = (char)c;
    return out;
}

char *cli_json_quote(const char *text, size_t len) {
    const unsigned char *p = (const unsigned char *)text, *end = p + len;
    char *quoted, *out;
    if (len > (SIZE_MAX - 3) / 6) return NULL;
    quoted = out = malloc(len * 6 + 3); /* a control takes six characters */
    if (!quoted) return NULL;
    *out++ = '"';
    while (p < end) {
        const size_t n = utf8_length(p, (size_t)(end - p));
        if (n == 1) {
            out = quote_char(out, *p);
        } else {
            memcpy(out, n ? (const char *)p : "\xef\xbf\xbd", n ? n : 3);
            out += n ? n : 3;
        }
        p += n ? n : 1;
    }
    *out++ = '"';
    *out = 0;
    return quoted;
}

fp8_status cli_json_add_text(cJSON *object, const char *key, const char *text, size_t len) {
    char *quoted = cli_json_quote(text, len);
    const cJSON *added = quoted ? cJSON_AddRawToObject(object, key, quoted) : NULL;
    free(quoted);
    return added ? FP8_OK : FP8_FAIL(FP8_ENOMEM, "'%s' of the results: out of memory", key);
}

fp8_status cli_json_print(const cJSON *document) {
    char *text = cJSON_Print(document);
    if (!text) return FP8_FAIL(FP8_ENOMEM, "printing the results: out of memory");
    puts(text);
    cJSON_free(text);
    return FP8_OK;
}

void cli_print_escaped(const char *text, size_t len) {
    for (size_t i = 0; i < len; i++) {
        const unsigned char c = (unsigned char)text[i];
        if (c == '\n') fputs("\\n", stdout);
        else if (c == '\t') fputs("\\t", stdout);
        else if (c < 0x20 || c == 0x7f) printf("\\x%02x", c);
        else putchar(c);
    }
}

/* ---- where output goes ----------------------------------------------------------------------- */

/* The folder that `path` lies in; free(). */
static fp8_status parent_of(char **out, const char *path) {
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/') len--;
    while (len > 0 && path[len - 1] != '/') len--;
    while (len > 1 && path[len - 1] == '/') len--;
    *out = len ? strndup(path, len) : strdup(".");
    return *out ? FP8_OK : FP8_FAIL(FP8_ENOMEM, "%s: out of memory", path);
}

static fp8_status check_parent(const char *path) {
    fp8_status st = FP8_OK;
    char *parent = NULL;
    FP8_TRY(parent_of(&parent, path));
    if (!fp8_path_is_dir(parent))
        st = FP8_FAIL(FP8_EIO, "%s: cannot be written: no folder '%s'", path, parent);
    else if (access(parent, W_OK | X_OK) != 0)
        st = FP8_FAIL(FP8_EIO, "%s: cannot be written: folder '%s': %s", path, parent,
                      strerror(errno));
done:
    free(parent);
    return st;
}

/* FP8_EINVAL when `source` lies in folder `path` or is that folder; both are there. */
static fp8_status check_apart(const char *source, const char *path) {
    char *a = realpath(source, NULL), *b = a ? realpath(path, NULL) : NULL;
    const size_t len = b ? strlen(b) : 0;
    fp8_status st = FP8_OK;
    if (!b)
        st = FP8_FAIL(FP8_EIO, "%s: cannot be resolved: %s", a ? path : source, strerror(errno));
    else if (strncmp(a, b, len) == 0 && (a[len] == 0 || a[len] == '/'))
        st = FP8_FAIL(FP8_EINVAL, "%s: --force would replace the model itself", path);
    free(a);
    free(b);
    return st;
}

/* A checkpoint is a flat folder with a .safetensors file; an empty folder loses nothing either.
 * What --force replaces is one of these, never a home folder named by mistake. */
static fp8_status check_replaceable(const char *folder) {
    DIR *dir = opendir(folder);
    const struct dirent *e;
    int entries = 0, folders = 0, tensors = 0;
    if (!dir && errno == ENOTDIR)
        return FP8_FAIL(FP8_EEXIST, "%s: not replaced: it is no checkpoint folder", folder);
    if (!dir) return FP8_FAIL(FP8_EIO, "%s: cannot be opened: %s", folder, strerror(errno));
    while ((e = readdir(dir))) {
        const char *dot = strrchr(e->d_name, '.');
        struct stat s;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        entries++;
        tensors += dot && strcmp(dot, ".safetensors") == 0;
        folders += fstatat(dirfd(dir), e->d_name, &s, AT_SYMLINK_NOFOLLOW) != 0 ||
                   S_ISDIR(s.st_mode);
    }
    closedir(dir);
    if (entries == 0 || (folders == 0 && tensors > 0)) return FP8_OK;
    return FP8_FAIL(FP8_EEXIST, "%s: not replaced: it is no checkpoint folder", folder);
}

fp8_status cli_check_output_folder(const char *path, int force, const char *source) {
    fp8_status st = FP8_OK;
    if (fp8_path_exists(path)) {
        if (!force)
            return FP8_FAIL(FP8_EEXIST, "%s: exists already; --force replaces it", path);
        if (source) FP8_TRY(check_apart(source, path));
        FP8_TRY(check_replaceable(path));
    }
    FP8_TRY(check_parent(path));
done:
    return st;
}

fp8_status cli_check_output_file(const char *path, int force) {
    if (fp8_path_exists(path)) {
        if (!force)
            return FP8_FAIL(FP8_EEXIST, "%s: exists already; --force replaces it", path);
        if (fp8_path_is_dir(path))
            return FP8_FAIL(FP8_EEXIST, "%s: not replaced: it is a folder", path);
    }
    return check_parent(path);
}

static int ends_with(const char *text, const char *end) {
    const size_t n = strlen(text), m = strlen(end);
    return n > m && strcmp(text + n - m, end) == 0;
}

/* model.safetensors and an index stand for their folder; any other file is named for itself. */
fp8_status cli_default_output(char **out, const char *model) {
    static const char suffix[] = ".safetensors";
    const char *slash = strrchr(model, '/'), *base = slash ? slash + 1 : model;
    fp8_status st = FP8_OK;
    char *name = NULL, *text = NULL;
    size_t len;
    const int is_dir = fp8_path_is_dir(model);
    if (!is_dir && (strcmp(base, "model.safetensors") == 0 || ends_with(base, ".index.json")))
        FP8_TRY(parent_of(&name, model));
    else
        name = strdup(model);
    len = name ? strlen(name) : 0;
    if (name && !is_dir && ends_with(base, suffix) && strcmp(name, model) == 0)
        name[len - strlen(suffix)] = 0;
    while (len > 1 && name[len - 1] == '/') name[--len] = 0;
    base = name ? strrchr(name, '/') : NULL;
    base = base ? base + 1 : name;
    if (base && (strcmp(base, ".") == 0 || strcmp(base, "..") == 0 || !*base)) {
        char *whole = realpath(name, NULL); /* "." has a name only seen from the root */
        free(name);
        name = whole;
    }
    len = name ? strlen(name) : 0;
    text = name ? malloc(len + sizeof "-FP8") : NULL;
    if (!text) {
        st = FP8_FAIL(FP8_ENOMEM, "%s: no name for the output: %s", model, strerror(errno));
        goto done;
    }
    memcpy(text, name, len);
    memcpy(text + len, "-FP8", sizeof "-FP8");
done:
    free(name);
    *out = text;
    return st;
}
