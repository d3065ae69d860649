/* Which operations crashfs counts, what the n-th one meets, and how all this is controlled and told. */
#undef _FORTIFY_SOURCE    /* its inline functions have the names that are defined here */
#undef _FILE_OFFSET_BITS /* it would make one of two names that are defined here */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum mode { KILL, FULL, QUOTA, READ_ONLY, IO_ERROR, SHORT };
enum need { NOTHING, WRITABLE, SPACE }; /* what the file system must have for an operation to succeed */

static const int ERRORS[] = {[FULL] = ENOSPC, [QUOTA] = EDQUOT, [READ_ONLY] = EROFS, [IO_ERROR] = EIO};

struct operation {
    const char *name;
    char path[PATH_MAX], other[PATH_MAX];
    int descriptor;
    long long offset, size; /* offset -1: where the descriptor stands */
    bool is_halved;
};

static atomic_bool armed, spent;
static atomic_long counted;
static long at;
static enum mode mode;
static char folder[PATH_MAX], log_file[PATH_MAX];

/* ---- Which operations count ---- */

static bool is_below(const char *path)
{
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

static bool link_of(int descriptor, char *found)
{
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(name, found, PATH_MAX - 1);
    found[length < 0 ? 0 : length] = '\0';
    return length > 0;
}

/* Where a path leads, with every link resolved but, unless it is followed, the last one. */
static bool place(int at_folder, const char *path, bool is_followed, char *found)
{
    char joined[PATH_MAX], start[PATH_MAX] = "";
    if (path[0] != '/' && !(at_folder == AT_FDCWD ? getcwd(start, sizeof start) != NULL : link_of(at_folder, start)))
        return false;
    if (snprintf(joined, sizeof joined, "%s/%s", start, path) >= (int)sizeof joined)
        return false;
    if (is_followed && realpath(joined, found))
        return is_below(found);
    for (size_t end = strlen(joined); end > 1 && joined[end - 1] == '/';)
        joined[--end] = '\0';
    char *name = strrchr(joined, '/');
    *name = '\0';
    if (!realpath(joined[0] ? joined : "/", found))
        return false; /* no such parent: the operation fails anyway */
    size_t length = strcmp(found, "/") == 0 ? 0 : strlen(found);
    snprintf(found + length, PATH_MAX - length, "/%s", name + 1);
    return is_below(found);
}

static bool of_path(struct operation *op, const char *name, int at_folder, const char *path, bool is_followed)
{
    if (!atomic_load(&armed))
        return false;
    int before = errno;
    *op = (struct operation){.name = name, .descriptor = -1};
    bool is_counted = place(at_folder, path, is_followed, op->path);
    errno = before;
    return is_counted;
}

static bool of_two(struct operation *op, const char *name, int old_at, const char *old, int new_at, const char *new)
{
    if (!atomic_load(&armed))
        return false;
    int before = errno;
    *op = (struct operation){.name = name, .descriptor = -1};
    bool is_old = place(old_at, old, false, op->path);
    bool is_new = place(new_at, new, false, op->other);
    errno = before;
    return is_old || is_new;
}

static bool of_descriptor(struct operation *op, const char *name, int descriptor, bool is_any)
{
    if (!atomic_load(&armed))
        return false;
    int before = errno;
    *op = (struct operation){.name = name, .descriptor = descriptor, .offset = -1};
    bool is_counted = link_of(descriptor, op->path) && is_below(op->path) &&
                      (is_any || (fcntl(descriptor, F_GETFL) & O_ACCMODE) != O_RDONLY);
    errno = before;
    return is_counted;
}

/* ---- The fault ---- */

static long told(struct operation *op, long result)
{
    int before = errno;
    if (!log_file[0])
        return result;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (op->offset < 0) /* a write where the descriptor stood */
        op->offset = op->size > 0 && result > 0 ? lseek(op->descriptor, 0, SEEK_CUR) - result : 0;
    char line[2 * PATH_MAX + 256];
    int length = snprintf(line, sizeof line, "%lld\t%d\t%s\t%ld\t%lld\t%lld\t%s\t%s\n",
                          now.tv_sec * 1000000000LL + now.tv_nsec, getpid(), op->name, result < 0 ? -before : result,
                          op->offset, op->size, op->path, op->other);
    int log = syscall(SYS_openat, AT_FDCWD, log_file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    syscall(SYS_write, log, line, length);
    syscall(SYS_close, log);
    errno = before;
    return result;
}

/* Count an operation; false: it must fail with the errno that is set. */
static bool may_go_on(struct operation *op, enum need need)
{
    long index = atomic_fetch_add(&counted, 1) + 1;
    if (at <= 0 || index < at)
        return true;
    bool fails = false;
    if (mode == KILL)
        for (;;)
            kill(getpid(), SIGKILL);
    else if (mode == SHORT)
        op->is_halved = strcmp(op->name, "write") == 0 && op->size > 1 && !atomic_exchange(&spent, true);
    else if (mode == IO_ERROR)
        fails = index == at;
    else
        fails = need == SPACE || (need == WRITABLE && mode == READ_ONLY);
    if (!fails)
        return true;
    errno = ERRORS[mode];
    told(op, -1);
    return false;
}

static size_t allowed(const struct operation *op, size_t size)
{
    return op->is_halved ? size / 2 : size;
}

/* ---- Control, through ctypes ---- */

void crashfs_log(const char *path) { snprintf(log_file, sizeof log_file, "%s", path ? path : ""); }

long crashfs_count(void) { return atomic_load(&counted); }

void crashfs_disarm(void) { atomic_store(&armed, false); }

int crashfs_arm(const char *below, long n, int how)
{
    crashfs_disarm();
    if (how < KILL || how > SHORT || below[0] != '/' || strlen(below) >= sizeof folder)
        return -1; /* the folder need not exist yet, so its links are resolved by the caller */
    strcpy(folder, below);
    at = n;
    mode = how;
    atomic_store(&counted, 0);
    atomic_store(&spent, false);
    atomic_store(&armed, true);
    return 0;
}
