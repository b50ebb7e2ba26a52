/* The process dies by SIGKILL before its KILL_AT-th call that makes, renames or removes a name with KILL_PATH in it.
 *
 * So every state between two such calls is seen by some KILL_AT. See test_restore_killed.py, which preloads this.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int seen;

static void step(const char *path) {
    const char *part = getenv("KILL_PATH"), *at = getenv("KILL_AT");
    if (!part || !at || !path || !strstr(path, part)) return;
    if (__sync_add_and_fetch(&seen, 1) == atoi(at)) kill(getpid(), SIGKILL);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

int rename(const char *one, const char *other) { REAL(rename); step(one); return real(one, other); }
int renameat2(int a, const char *one, int b, const char *other, unsigned flags) {
    REAL(renameat2); step(one); return real(a, one, b, other, flags);
}
int link(const char *one, const char *other) { REAL(link); step(one); return real(one, other); }
int linkat(int a, const char *one, int b, const char *other, int flags) {
    REAL(linkat); step(one); return real(a, one, b, other, flags);
}
int unlink(const char *path) { REAL(unlink); step(path); return real(path); }
int unlinkat(int at, const char *path, int flags) { REAL(unlinkat); step(path); return real(at, path, flags); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); step(path); return real(path, mode); }
int rmdir(const char *path) { REAL(rmdir); step(path); return real(path); }

#define OPENING(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        REAL(name); \
        if (flags & O_CREAT) step(path); \
        return real(path, flags, mode); }
OPENING(open)
OPENING(open64)
