/* One system call of the reader goes wrong: the FAULT_AT-th FAULT_CALL on a file whose name has FAULT_PATH in it.
 *
 * FAULT_ERRNO is what it fails with; 0 makes every such call take or give one half of what it could (at least 1
 * byte). FAULT_FIRED names a file that is made when it happened. See faulty.py, which compiles and preloads this.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int seen;

static int matches(const char *call, const char *path) {
    const char *wanted = getenv("FAULT_CALL"), *part = getenv("FAULT_PATH");
    return wanted && part && !strcmp(wanted, call) && strstr(path, part);
}

static int fd_matches(const char *call, int fd) {
    char link[64] = "/proc/self/fd/", path[4096], digits[16];
    int at = sizeof digits, number = fd;
    if (fd < 0 || !getenv("FAULT_CALL")) return 0;
    digits[--at] = 0;
    do digits[--at] = (char)('0' + number % 10); while (number /= 10);
    strcat(link, digits + at);
    ssize_t length = syscall(SYS_readlink, link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return matches(call, path);
}

/* 0: as ever; 1: it fails (errno is set); 2: it is short. */
static int strikes(void) {
    int number = atoi(getenv("FAULT_ERRNO"));
    int here = __sync_add_and_fetch(&seen, 1), at = atoi(getenv("FAULT_AT"));
    if (number ? here != at : here < at) return 0;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, getenv("FAULT_FIRED"), O_CREAT | O_WRONLY, 0600);
    if (fd >= 0) syscall(SYS_close, fd);
    errno = number;
    return number ? 1 : 2;
}

static size_t half(size_t size) { return size > 1 ? size / 2 : size; }

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define BY_FD(call, name, buffer_type, ...) \
    if (fd_matches(call, fd)) switch (strikes()) { case 1: return -1; case 2: size = half(size); }

ssize_t read(int fd, void *to, size_t size) { REAL(read); BY_FD("read", read, void *) return real(fd, to, size); }
ssize_t write(int fd, const void *from, size_t size) {
    REAL(write); BY_FD("write", write, const void *) return real(fd, from, size);
}
ssize_t pread(int fd, void *to, size_t size, off_t at) {
    REAL(pread); BY_FD("pread", pread, void *) return real(fd, to, size, at);
}
ssize_t pread64(int fd, void *to, size_t size, off64_t at) {
    REAL(pread64); BY_FD("pread", pread64, void *) return real(fd, to, size, at);
}
ssize_t pwrite(int fd, const void *from, size_t size, off_t at) {
    REAL(pwrite); BY_FD("pwrite", pwrite, const void *) return real(fd, from, size, at);
}
ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at) {
    REAL(pwrite64); BY_FD("pwrite", pwrite64, const void *) return real(fd, from, size, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    if (fd_matches("write", fd))
        switch (strikes()) {
        case 1: return -1;
        case 2: {
            struct iovec first = parts[0];
            first.iov_len = half(first.iov_len);
            return real(fd, &first, 1);
        }
        }
    return real(fd, parts, count);
}

#define OPENING(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        REAL(name); \
        if (matches("open", path) && strikes() == 1) return -1; \
        return real(path, flags, mode); }
OPENING(open)
OPENING(open64)

#define CONTROL(name) \
    int name(int fd, int command, ...) { \
        va_list rest; va_start(rest, command); void *value = va_arg(rest, void *); va_end(rest); \
        REAL(name); \
        if (command == F_SETLK && fd_matches("lock", fd) && strikes() == 1) return -1; \
        return real(fd, command, value); }
CONTROL(fcntl)
CONTROL(fcntl64)
