/* A file system that fails on command: preloaded, it counts the changes that one process makes under a prefix.
 *
 * At operation `at` it acts by `mode`:
 *   kill    SIGKILL before the operation          torn    half of a write (or the whole operation), then SIGKILL
 *   eio     this operation alone fails with EIO   dead    this one and all later ones fail with EIO
 *   enospc  from here on whatever needs space fails with ENOSPC; deleting still works
 *   count   nothing fails (also at = 0)
 * Each operation is one line of the trace file: number, name, path, second path of a rename, tab-separated.
 * Set up by faults_configure() in a forked child, or by KUOSAN_FAULTS_{PREFIX,AT,MODE,TRACE} at a program's start.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { GO, FAIL, TORN };
static char prefix[PATH_MAX], mode[16];
static long at;
static atomic_long count;
static int trace = -1;
static pid_t owner; /* forked children, such as data workers, are left alone */

long faults_count(void) { return count; }

void faults_configure(const char *under, long number, const char *how, const char *log) {
    snprintf(prefix, sizeof prefix, "%s", under);
    snprintf(mode, sizeof mode, "%s", how);
    at = number;
    count = 0;
    owner = getpid();
    trace = log && *log ? (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
}

__attribute__((constructor)) static void from_environment(void) {
    const char *under = getenv("KUOSAN_FAULTS_PREFIX"), *number = getenv("KUOSAN_FAULTS_AT");
    const char *how = getenv("KUOSAN_FAULTS_MODE");
    if (under) faults_configure(under, number ? atol(number) : 0, how ? how : "count", getenv("KUOSAN_FAULTS_TRACE"));
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

static void path_of(int handle, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    path[size < 0 ? 0 : size] = 0;
}

static void resolve(int folder, const char *name, char *path) {
    char base[PATH_MAX] = "";
    if (name[0] == '/') { snprintf(path, PATH_MAX, "%s", name); return; }
    if (folder == AT_FDCWD) { if (!getcwd(base, sizeof base)) base[0] = 0; } else path_of(folder, base);
    snprintf(path, PATH_MAX, "%.2000s/%.2000s", base, name);
}

static int judge(const char *name, const char *path, const char *to, int space) {
    if (!prefix[0] || getpid() != owner || strncmp(path, prefix, strlen(prefix))) return GO;
    long number = atomic_fetch_add(&count, 1) + 1;
    char line[2 * PATH_MAX + 64];
    int size = snprintf(line, sizeof line, "%ld\t%s\t%s\t%s\n", number, name, path, to);
    if (trace >= 0) syscall(SYS_write, trace, line, size);
    if (!at || number < at) return GO;
    if (!strcmp(mode, "kill") && number == at) die();
    if (!strcmp(mode, "torn") && number == at) return TORN;
    if ((!strcmp(mode, "eio") && number == at) || !strcmp(mode, "dead")) { errno = EIO; return FAIL; }
    if (!strcmp(mode, "enospc") && space) { errno = ENOSPC; return FAIL; }
    return GO;
}

static int judge_fd(const char *name, int handle, int space) {
    char path[PATH_MAX];
    if (!prefix[0] || getpid() != owner) return GO;
    int keep = errno;
    path_of(handle, path);
    errno = keep;
    return judge(name, path, "", space);
}

#define REAL(type, name) static type (*real)() = NULL; if (!real) real = (type (*)())dlsym(RTLD_NEXT, #name)
#define DO(verdict, call) do { int v = (verdict); if (v == FAIL) return -1; if (v == TORN) { (void)(call); die(); } \
    return (call); } while (0)

ssize_t write(int handle, const void *data, size_t size) {
    REAL(ssize_t, write);
    int verdict = judge_fd("write", handle, 1);
    if (verdict == FAIL) return -1;
    if (verdict == TORN) { if (real(handle, data, size / 2) >= 0) die(); die(); }
    return real(handle, data, size);
}

#define PWRITE(name) ssize_t name(int handle, const void *data, size_t size, off_t place) { \
    REAL(ssize_t, name); int verdict = judge_fd("pwrite", handle, 1); if (verdict == FAIL) return -1; \
    if (verdict == TORN) { if (real(handle, data, size / 2, place) >= 0) die(); die(); } \
    return real(handle, data, size, place); }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t writev(int handle, const struct iovec *parts, int n) {
    REAL(ssize_t, writev);
    int verdict = judge_fd("writev", handle, 1);
    if (verdict == FAIL) return -1;
    if (verdict == TORN) { if (real(handle, parts, (n + 1) / 2) >= 0) die(); die(); }
    return real(handle, parts, n);
}

#define OPEN(name) int name(const char *file, int flags, ...) { \
    REAL(int, name); va_list rest; va_start(rest, flags); mode_t bits = va_arg(rest, mode_t); va_end(rest); \
    char path[PATH_MAX]; if (!(flags & O_CREAT)) return real(file, flags, bits); resolve(AT_FDCWD, file, path); \
    DO(judge("open", path, "", 1), real(file, flags, bits)); }
OPEN(open)
OPEN(open64)

#define OPENAT(name) int name(int folder, const char *file, int flags, ...) { \
    REAL(int, name); va_list rest; va_start(rest, flags); mode_t bits = va_arg(rest, mode_t); va_end(rest); \
    char path[PATH_MAX]; if (!(flags & O_CREAT)) return real(folder, file, flags, bits); resolve(folder, file, path); \
    DO(judge("open", path, "", 1), real(folder, file, flags, bits)); }
OPENAT(openat)
OPENAT(openat64)

static int rename_judged(int from, const char *old, int into, const char *new, const char *name) {
    char path[PATH_MAX], to[PATH_MAX];
    resolve(from, old, path), resolve(into, new, to);
    return judge(name, path, to, 1);
}
int rename(const char *old, const char *new) {
    REAL(int, rename);
    DO(rename_judged(AT_FDCWD, old, AT_FDCWD, new, "rename"), real(old, new));
}
int renameat(int from, const char *old, int into, const char *new) {
    REAL(int, renameat);
    DO(rename_judged(from, old, into, new, "rename"), real(from, old, into, new));
}
int renameat2(int from, const char *old, int into, const char *new, unsigned flags) {
    REAL(int, renameat2);
    DO(rename_judged(from, old, into, new, flags ? "exchange" : "rename"), real(from, old, into, new, flags));
}

#define ON_NAME(op, space) int op(const char *file) { REAL(int, op); char path[PATH_MAX]; \
    resolve(AT_FDCWD, file, path); DO(judge(#op, path, "", space), real(file)); }
ON_NAME(unlink, 0)
ON_NAME(rmdir, 0)
int unlinkat(int folder, const char *file, int flags) {
    REAL(int, unlinkat);
    char path[PATH_MAX];
    resolve(folder, file, path);
    DO(judge(flags & AT_REMOVEDIR ? "rmdir" : "unlink", path, "", 0), real(folder, file, flags));
}
int mkdir(const char *file, mode_t bits) {
    REAL(int, mkdir);
    char path[PATH_MAX];
    resolve(AT_FDCWD, file, path);
    DO(judge("mkdir", path, "", 1), real(file, bits));
}
int mkdirat(int folder, const char *file, mode_t bits) {
    REAL(int, mkdirat);
    char path[PATH_MAX];
    resolve(folder, file, path);
    DO(judge("mkdir", path, "", 1), real(folder, file, bits));
}

#define ON_FD(op) int op(int handle) { REAL(int, op); DO(judge_fd("fsync", handle, 1), real(handle)); }
ON_FD(fsync)
ON_FD(fdatasync)
#define TRUNCATE(op) int op(int handle, off_t size) { REAL(int, op); \
    DO(judge_fd("ftruncate", handle, 0), real(handle, size)); }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)
