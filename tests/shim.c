/* A disk that can be watched, cut off and broken: preloaded (LD_PRELOAD) under a process, it stands between it and the kernel.
 *
 * Only what lies under the folder SHIM_ROOT is looked at. One of three:
 *   SHIM_LOG=FILE              append a record of every change to FILE, in the order in which they were made
 *   SHIM_KILL=before:N         SIGKILL right before (or "after:N": after) the N-th sync or rename, counted from 1
 *   SHIM_FAIL=OP,TEXT,N,ERRNO,HOW   the N-th OP (open, write, sync, rename, allocate, truncate, mkdir, unlink; of a path that
 *                              ends in TEXT) fails with ERRNO; HOW is "once" or "on": from then on
 *
 * All changes are made one at a time, so that the log has the order of the disk. What is written through a memory map is not
 * seen. A record is a struct record, two paths and the data; see tests/disk.py, which reads it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PUBLIC __attribute__((visibility("default")))

struct record {
    uint32_t magic, op;
    uint64_t inode, offset, size; /* size: of the data, or the size a file is given */
    uint32_t path, other;         /* bytes of the paths that follow; then the data of a write */
};

enum { MAGIC = 0x6b736964 };
enum { CREATE = 1, WRITE, TRUNCATE, SYNC, RENAME, UNLINK, MKDIR, RMDIR, LINK, ALLOCATE, SYNC_FAILED };

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static char root[PATH_MAX];
static size_t root_length;
static int log_fd = -1;
static int kill_after;
static long kill_at, boundaries;
static char fail_op[16], fail_text[256], fail_how[8];
static long fail_at, fail_errno, failing;

static void begin(void) {
    const char *given = getenv("SHIM_ROOT");
    if (given == NULL || realpath(given, root) == NULL) return;
    root_length = strlen(root);
    const char *log = getenv("SHIM_LOG");
    if (log != NULL) log_fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    const char *cut = getenv("SHIM_KILL");
    if (cut != NULL) {
        kill_after = strncmp(cut, "after:", 6) == 0;
        kill_at = atol(strchr(cut, ':') + 1);
    }
    const char *fault = getenv("SHIM_FAIL");
    if (fault != NULL
        && sscanf(fault, "%15[^,],%255[^,],%ld,%ld,%7s", fail_op, fail_text, &fail_at, &fail_errno, fail_how) != 5) {
        fprintf(stderr, "shim: SHIM_FAIL is OP,TEXT,N,ERRNO,HOW\n");
        _exit(99);
    }
}

/* Where things are */

static int inside(const char *path) {
    return root_length && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}

static int path_of_fd(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return inside(path);
}

/* The absolute name without symbolic links in its folder; the last part may not exist yet. */
static int full_name(int folder, const char *name, char *path) {
    char joined[PATH_MAX * 2], above[PATH_MAX];
    pthread_once(&once, begin);
    if (!root_length || name == NULL) return 0;
    if (name[0] == '/') {
        snprintf(joined, sizeof joined, "%s", name);
    } else {
        char start[PATH_MAX];
        if (folder == AT_FDCWD) {
            if (syscall(SYS_getcwd, start, sizeof start) <= 0) return 0;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, start, sizeof start - 1);
            if (length <= 0) return 0;
            start[length] = 0;
        }
        snprintf(joined, sizeof joined, "%s/%s", start, name);
    }
    size_t length = strlen(joined);
    while (length > 1 && joined[length - 1] == '/') joined[--length] = 0;
    char *last = strrchr(joined, '/');
    *last = 0;
    if (realpath(last == joined ? "/" : joined, above) == NULL) return 0;
    if (snprintf(path, PATH_MAX, "%s/%s", strcmp(above, "/") ? above : "", last + 1) >= PATH_MAX) return 0;
    return inside(path);
}

static uint64_t inode_of(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 ? found.st_ino : 0;
}

static uint64_t size_of(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 ? (uint64_t)found.st_size : 0;
}

static int exists(const char *path) {
    return syscall(SYS_faccessat, AT_FDCWD, path, F_OK) == 0;
}

/* What is done besides the call itself */

static void note(uint32_t op, uint64_t inode, uint64_t offset, uint64_t size, const char *path, const char *other, const void *data) {
    if (log_fd < 0) return;
    struct record head = {MAGIC, op, inode, offset, size, path ? strlen(path) : 0, other ? strlen(other) : 0};
    struct iovec parts[4] = {
        {&head, sizeof head}, {(void *)path, head.path}, {(void *)other, head.other}, {(void *)data, data ? size : 0}};
    size_t all = parts[0].iov_len + parts[1].iov_len + parts[2].iov_len + parts[3].iov_len;
    if (syscall(SYS_writev, log_fd, parts, 4) != (ssize_t)all) {
        static const char said[] = "shim: the log cannot be written\n";
        syscall(SYS_write, 2, said, sizeof said - 1);
        _exit(99);
    }
}

static int fails(const char *op, const char *path) {
    size_t length = strlen(path), ending = strlen(fail_text);
    if (!fail_at || strcmp(op, fail_op) != 0 || length < ending || strcmp(path + length - ending, fail_text) != 0) return 0;
    failing++;
    if (failing != fail_at && !(failing > fail_at && strcmp(fail_how, "on") == 0)) return 0;
    errno = (int)fail_errno;
    return 1;
}

static void die(void) {
    syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    for (;;) pause();
}

static void boundary_before(void) {
    boundaries++;
    if (kill_at == boundaries && !kill_after) die();
}

static void boundary_after(void) {
    if (kill_at == boundaries && kill_after) die();
}

static void enter(void) { pthread_mutex_lock(&turn); }

static long leave(long result) {
    int kept = errno;
    pthread_mutex_unlock(&turn);
    errno = kept;
    return result;
}

/* Opening */

static int opened(int folder, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX], found[PATH_MAX];
    if (!full_name(folder, name, path)) return (int)syscall(SYS_openat, folder, name, flags, mode);
    enter();
    if (fails("open", path)) return (int)leave(-1);
    int there = exists(path);
    int fd = (int)syscall(SYS_openat, folder, name, flags, mode);
    if (fd >= 0 && path_of_fd(fd, found)) {
        if (!there) note(CREATE, inode_of(fd), 0, 0, found, NULL, NULL);
        else if ((flags & O_TRUNC) && (flags & O_ACCMODE) != O_RDONLY) note(TRUNCATE, inode_of(fd), 0, 0, found, NULL, NULL);
    }
    return (int)leave(fd);
}

static mode_t mode_in(int flags, va_list more) {
    return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(more, mode_t) : 0;
}

#define OPEN(NAME)                                        \
    PUBLIC int NAME(const char *name, int flags, ...) {   \
        va_list more;                                     \
        va_start(more, flags);                            \
        mode_t mode = mode_in(flags, more);               \
        va_end(more);                                     \
        return opened(AT_FDCWD, name, flags, mode);       \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(NAME)                                                \
    PUBLIC int NAME(int folder, const char *name, int flags, ...) { \
        va_list more;                                               \
        va_start(more, flags);                                      \
        mode_t mode = mode_in(flags, more);                         \
        va_end(more);                                               \
        return opened(folder, name, flags, mode);                   \
    }
OPENAT(openat)
OPENAT(openat64)

PUBLIC int __open_2(const char *name, int flags) { return opened(AT_FDCWD, name, flags, 0); }
PUBLIC int __open64_2(const char *name, int flags) { return opened(AT_FDCWD, name, flags, 0); }
PUBLIC int __openat_2(int folder, const char *name, int flags) { return opened(folder, name, flags, 0); }
PUBLIC int __openat64_2(int folder, const char *name, int flags) { return opened(folder, name, flags, 0); }
PUBLIC int creat(const char *name, mode_t mode) { return opened(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }
PUBLIC int creat64(const char *name, mode_t mode) { return opened(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }

/* Writing: ``at`` -1 is where the file stands */

static int seen(int fd, char *path) {
    pthread_once(&once, begin);
    return root_length && path_of_fd(fd, path);
}

static ssize_t written(int fd, const void *data, size_t size, off_t at) {
    char path[PATH_MAX];
    if (!seen(fd, path)) {
        return at < 0 ? syscall(SYS_write, fd, data, size) : syscall(SYS_pwrite64, fd, data, size, at);
    }
    enter();
    if (fails("write", path)) return leave(-1);
    off_t where = at;
    if (at < 0) where = (fcntl(fd, F_GETFL) & O_APPEND) ? (off_t)size_of(fd) : lseek(fd, 0, SEEK_CUR);
    ssize_t done = at < 0 ? syscall(SYS_write, fd, data, size) : syscall(SYS_pwrite64, fd, data, size, at);
    if (done > 0) note(WRITE, inode_of(fd), (uint64_t)where, (uint64_t)done, path, NULL, data);
    return leave(done);
}

static ssize_t gathered(int fd, const struct iovec *parts, int count, off_t at) {
    char path[PATH_MAX];
    if (!seen(fd, path)) {
        return at < 0 ? syscall(SYS_writev, fd, parts, count) : syscall(SYS_pwritev, fd, parts, count, (long)at, 0L);
    }
    ssize_t all = 0;
    for (int part = 0; part < count; part++) {
        ssize_t done = written(fd, parts[part].iov_base, parts[part].iov_len, at < 0 ? -1 : at + all);
        if (done < 0) return all ? all : -1;
        all += done;
        if ((size_t)done < parts[part].iov_len) break;
    }
    return all;
}

PUBLIC ssize_t write(int fd, const void *data, size_t size) { return written(fd, data, size, -1); }
PUBLIC ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return written(fd, data, size, at); }
PUBLIC ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return written(fd, data, size, at); }
PUBLIC ssize_t writev(int fd, const struct iovec *parts, int count) { return gathered(fd, parts, count, -1); }
PUBLIC ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { return gathered(fd, parts, count, at); }
PUBLIC ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) { return gathered(fd, parts, count, at); }

/* Sizes */

static int cut(int fd, off_t size) {
    char path[PATH_MAX];
    if (!seen(fd, path)) return (int)syscall(SYS_ftruncate, fd, size);
    enter();
    if (fails("truncate", path)) return (int)leave(-1);
    int result = (int)syscall(SYS_ftruncate, fd, size);
    if (result == 0) note(TRUNCATE, inode_of(fd), 0, (uint64_t)size, path, NULL, NULL);
    return (int)leave(result);
}

static int cut_by_name(const char *name, off_t size) {
    int fd = opened(AT_FDCWD, name, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0) return -1;
    int result = cut(fd, size), kept = errno;
    close(fd);
    errno = kept;
    return result;
}

PUBLIC int ftruncate(int fd, off_t size) { return cut(fd, size); }
PUBLIC int ftruncate64(int fd, off64_t size) { return cut(fd, size); }
PUBLIC int truncate(const char *name, off_t size) { return cut_by_name(name, size); }
PUBLIC int truncate64(const char *name, off64_t size) { return cut_by_name(name, size); }

static int allocated(int fd, int mode, off_t from, off_t size) {
    char path[PATH_MAX];
    if (!seen(fd, path)) return (int)syscall(SYS_fallocate, fd, mode, from, size);
    enter();
    if (fails("allocate", path)) return (int)leave(-1);
    uint64_t before = size_of(fd);
    int result = (int)syscall(SYS_fallocate, fd, mode, from, size);
    if (result == 0 && size_of(fd) != before) note(ALLOCATE, inode_of(fd), 0, size_of(fd), path, NULL, NULL);
    return (int)leave(result);
}

static int allocated_or_errno(int fd, off_t from, off_t size) {
    int kept = errno, result = allocated(fd, 0, from, size) == 0 ? 0 : errno;
    errno = kept;
    return result;
}

PUBLIC int fallocate(int fd, int mode, off_t from, off_t size) { return allocated(fd, mode, from, size); }
PUBLIC int fallocate64(int fd, int mode, off64_t from, off64_t size) { return allocated(fd, mode, from, size); }
PUBLIC int posix_fallocate(int fd, off_t from, off_t size) { return allocated_or_errno(fd, from, size); }
PUBLIC int posix_fallocate64(int fd, off64_t from, off64_t size) { return allocated_or_errno(fd, from, size); }

/* Syncs and names */

static int synced(int fd, long call) {
    char path[PATH_MAX];
    if (!seen(fd, path)) return (int)syscall(call, fd);
    enter();
    boundary_before();
    if (fails("sync", path)) {
        int wanted = errno;
        note(SYNC_FAILED, inode_of(fd), 0, 0, path, NULL, NULL);
        errno = wanted;
        return (int)leave(-1);
    }
    int result = (int)syscall(call, fd);
    if (result == 0) note(SYNC, inode_of(fd), 0, 0, path, NULL, NULL);
    boundary_after();
    return (int)leave(result);
}

PUBLIC int fsync(int fd) { return synced(fd, SYS_fsync); }
PUBLIC int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

static int renamed(int from, const char *name, int to, const char *other, unsigned flags) {
    char path[PATH_MAX], there[PATH_MAX];
    int tracked = full_name(from, name, path);
    tracked = full_name(to, other, there) && tracked;
    if (!tracked) return (int)syscall(SYS_renameat2, from, name, to, other, flags);
    enter();
    boundary_before();
    if (fails("rename", there)) return (int)leave(-1);
    int result = (int)syscall(SYS_renameat2, from, name, to, other, flags);
    if (result == 0) note(RENAME, 0, 0, 0, path, there, NULL);
    boundary_after();
    return (int)leave(result);
}

PUBLIC int rename(const char *name, const char *other) { return renamed(AT_FDCWD, name, AT_FDCWD, other, 0); }
PUBLIC int renameat(int from, const char *name, int to, const char *other) { return renamed(from, name, to, other, 0); }
PUBLIC int renameat2(int from, const char *name, int to, const char *other, unsigned flags) {
    return renamed(from, name, to, other, flags);
}

static int linked(int from, const char *name, int to, const char *other, int flags) {
    char path[PATH_MAX], there[PATH_MAX];
    int tracked = full_name(from, name, path);
    tracked = full_name(to, other, there) && tracked;
    if (!tracked) return (int)syscall(SYS_linkat, from, name, to, other, flags);
    enter();
    int result = (int)syscall(SYS_linkat, from, name, to, other, flags);
    if (result == 0) note(LINK, 0, 0, 0, path, there, NULL);
    return (int)leave(result);
}

PUBLIC int link(const char *name, const char *other) { return linked(AT_FDCWD, name, AT_FDCWD, other, 0); }
PUBLIC int linkat(int from, const char *name, int to, const char *other, int flags) { return linked(from, name, to, other, flags); }

static int removed(int folder, const char *name, int flags) {
    char path[PATH_MAX];
    if (!full_name(folder, name, path)) return (int)syscall(SYS_unlinkat, folder, name, flags);
    enter();
    if (fails("unlink", path)) return (int)leave(-1);
    int result = (int)syscall(SYS_unlinkat, folder, name, flags);
    if (result == 0) note(flags & AT_REMOVEDIR ? RMDIR : UNLINK, 0, 0, 0, path, NULL, NULL);
    return (int)leave(result);
}

PUBLIC int unlink(const char *name) { return removed(AT_FDCWD, name, 0); }
PUBLIC int unlinkat(int folder, const char *name, int flags) { return removed(folder, name, flags); }
PUBLIC int rmdir(const char *name) { return removed(AT_FDCWD, name, AT_REMOVEDIR); }

static int made(int folder, const char *name, mode_t mode) {
    char path[PATH_MAX];
    if (!full_name(folder, name, path)) return (int)syscall(SYS_mkdirat, folder, name, mode);
    enter();
    if (fails("mkdir", path)) return (int)leave(-1);
    int result = (int)syscall(SYS_mkdirat, folder, name, mode);
    if (result == 0) note(MKDIR, 0, 0, 0, path, NULL, NULL);
    return (int)leave(result);
}

PUBLIC int mkdir(const char *name, mode_t mode) { return made(AT_FDCWD, name, mode); }
PUBLIC int mkdirat(int folder, const char *name, mode_t mode) { return made(folder, name, mode); }
