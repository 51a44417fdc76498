/* Counts what a process does with files below one folder, and makes one of these operations fail, or be the last.

   Loaded before the C library (LD_PRELOAD), and asked by ctypes: shim_arm(folder, mode, at, code, log). An operation is
   one call of the functions below on a path in that folder, or on something that was opened there. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, WATCH, FAIL, FAIL_ON, SHORT, KILL_BEFORE, KILL_AMID };

static char root[PATH_MAX];
static int mode, code, log_fd = -1;
static long at, count;
static char ours[65536];

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, name)

void shim_arm(const char *folder, int new_mode, long new_at, int new_code, int new_log) {
    strncpy(root, folder, sizeof root - 1);
    at = new_at; code = new_code; log_fd = new_log; count = 0; mode = new_mode;
    memset(ours, 0, sizeof ours);
}

long shim_count(void) { return count; }

static int in_root(int dir, const char *path) {
    if (!path) return 0;
    if (path[0] != '/') return dir >= 0 && dir < (int)sizeof ours && ours[dir];
    size_t length = strlen(root);
    return !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static int is_ours(int fd) { return fd >= 0 && fd < (int)sizeof ours && ours[fd]; }

static void die(void) { syscall(SYS_kill, getpid(), SIGKILL); for (;;) pause(); }

/* Count an operation; return whether it has to fail. Kinds: what writes is in capitals. */
static int hit(const char *kind, const char *path) {
    if (mode == OFF) return 0;
    count++;
    if (log_fd >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%s\t%s\n", kind, path ? path : "");
        syscall(SYS_write, log_fd, line, length);
    }
    if (mode == KILL_BEFORE && count == at) die();
    int writes = kind[0] >= 'A' && kind[0] <= 'Z';
    int fails = (mode == FAIL && count == at) || (mode == FAIL_ON && count >= at && writes && strcmp(kind, "UNLINK"));
    if (fails) errno = code;
    return fails;
}

static int amid(void) { return (mode == KILL_AMID || mode == SHORT) && count == at; }

static int opened(int fd) { if (fd >= 0 && fd < (int)sizeof ours) ours[fd] = 1; return fd; }

#define OPEN(name) \
int name(const char *path, int flags, ...) { \
    REAL(int, #name, const char *, int, ...); \
    va_list rest; va_start(rest, flags); mode_t bits = va_arg(rest, mode_t); va_end(rest); \
    if (!in_root(-1, path)) return real(path, flags, bits); \
    if (hit(flags & O_CREAT ? "CREATE" : "open", path)) return -1; \
    return opened(real(path, flags, bits)); }
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
int name(int dir, const char *path, int flags, ...) { \
    REAL(int, #name, int, const char *, int, ...); \
    va_list rest; va_start(rest, flags); mode_t bits = va_arg(rest, mode_t); va_end(rest); \
    if (!in_root(dir, path)) return real(dir, path, flags, bits); \
    if (hit(flags & O_CREAT ? "CREATE" : "open", path)) return -1; \
    return opened(real(dir, path, flags, bits)); }
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
    REAL(int, "close", int);
    if (!is_ours(fd)) return real(fd);
    ours[fd] = 0;
    int failed = hit("close", 0), saved = errno, result = real(fd);
    if (failed) { errno = saved; return -1; }
    return result;
}

ssize_t read(int fd, void *buffer, size_t size) {
    REAL(ssize_t, "read", int, void *, size_t);
    if (is_ours(fd) && hit("read", 0)) return -1;
    return real(fd, buffer, is_ours(fd) && amid() && size > 1 ? size / 2 : size);
}

ssize_t write(int fd, const void *buffer, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (!is_ours(fd)) return real(fd, buffer, size);
    if (hit("WRITE", 0)) return -1;
    if (!amid()) return real(fd, buffer, size);
    ssize_t result = real(fd, buffer, size / 2);
    if (mode == KILL_AMID) die();
    return result;
}

#define ON_FD(name, kind) \
int name(int fd) { \
    REAL(int, #name, int); \
    if (is_ours(fd) && hit(kind, 0)) return -1; \
    return real(fd); }
ON_FD(fsync, "FSYNC")
ON_FD(fdatasync, "FSYNC")

int flock(int fd, int what) {
    REAL(int, "flock", int, int);
    if (is_ours(fd) && hit("lock", 0)) return -1;
    return real(fd, what);
}

int fchmod(int fd, mode_t bits) {
    REAL(int, "fchmod", int, mode_t);
    if (is_ours(fd) && hit("CHMOD", 0)) return -1;
    return real(fd, bits);
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    if (in_root(-1, to) && hit("RENAME", to)) return -1;
    return real(from, to);
}

#define ON_PATH(name, kind) \
int name(const char *path) { \
    REAL(int, #name, const char *); \
    if (in_root(-1, path) && hit(kind, path)) return -1; \
    return real(path); }
ON_PATH(unlink, "UNLINK")
ON_PATH(rmdir, "UNLINK")

int unlinkat(int dir, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    if (in_root(dir, path) && hit("UNLINK", path)) return -1;
    return real(dir, path, flags);
}

int mkdir(const char *path, mode_t bits) {
    REAL(int, "mkdir", const char *, mode_t);
    if (in_root(-1, path) && hit("MKDIR", path)) return -1;
    return real(path, bits);
}

#define STAT(name, type) \
int name(const char *path, struct type *found) { \
    REAL(int, #name, const char *, struct type *); \
    if (in_root(-1, path) && hit("stat", path)) return -1; \
    return real(path, found); }
STAT(stat, stat)
STAT(stat64, stat64)
STAT(lstat, stat)
STAT(lstat64, stat64)
#define FSTAT(name, type) \
int name(int fd, struct type *found) { \
    REAL(int, #name, int, struct type *); \
    if (is_ours(fd) && hit("stat", 0)) return -1; \
    return real(fd, found); }
FSTAT(fstat, stat)
FSTAT(fstat64, stat64)
#define FSTATAT(name, type) \
int name(int dir, const char *path, struct type *found, int flags) { \
    REAL(int, #name, int, const char *, struct type *, int); \
    if (in_root(dir, path) && hit("stat", path)) return -1; \
    return real(dir, path, found, flags); }
FSTATAT(fstatat, stat)
FSTATAT(fstatat64, stat64)

DIR *opendir(const char *path) {
    REAL(DIR *, "opendir", const char *);
    if (in_root(-1, path) && hit("list", path)) return 0;
    return real(path);
}
