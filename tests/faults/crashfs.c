/* crashfs: counts what this process changes below one folder, and makes the n-th change fail. For LD_PRELOAD and glibc.
 *
 * Armed, every operation on a path or descriptor at or below the folder that changes it, or brings it to the disk, is
 * counted from 1. Operation n meets the fault. A forked child has the counter as it stood and goes on by itself.
 * Every wrapper goes straight to the kernel, so one call is one operation. Not seen: writes through mmap, io_uring and
 * the buffers of C streams (the opening and closing of a stream are), names made by mkstemp, changes of mode or time.
 */
#include "crashfs.h"

/* ---- Names ---- */

static int opened(int at_folder, const char *path, int flags, mode_t bits)
{
    struct operation op;
    bool is_writer = (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC);
    if (!is_writer || !of_path(&op, "open", at_folder, path, !(flags & (O_NOFOLLOW | O_EXCL))))
        return syscall(SYS_openat, at_folder, path, flags, bits);
    bool is_new = flags & O_CREAT && access(op.path, F_OK) != 0;
    op.name = is_new ? "create" : flags & O_TRUNC ? "empty" : "open";
    if (!may_go_on(&op, is_new || (flags & O_TMPFILE) == O_TMPFILE ? SPACE : WRITABLE))
        return -1;
    return told(&op, syscall(SYS_openat, at_folder, path, flags, bits));
}

#define BITS(flags)                                             \
    mode_t bits = 0;                                            \
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {  \
        va_list rest;                                           \
        va_start(rest, flags);                                  \
        bits = va_arg(rest, mode_t);                            \
        va_end(rest);                                           \
    }

int open(const char *path, int flags, ...)
{
    BITS(flags)
    return opened(AT_FDCWD, path, flags, bits);
}

int openat(int at_folder, const char *path, int flags, ...)
{
    BITS(flags)
    return opened(at_folder, path, flags, bits);
}

int creat(const char *path, mode_t bits) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, bits); }
int __open_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int __openat_2(int at_folder, const char *path, int flags) { return opened(at_folder, path, flags, 0); }

FILE *fopen(const char *path, const char *how)
{
    FILE *(*real)(const char *, const char *) = (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, "fopen");
    struct operation op;
    if (!strpbrk(how, "wa+") || !of_path(&op, "open", AT_FDCWD, path, true))
        return real(path, how);
    bool is_new = how[0] != 'r' && access(op.path, F_OK) != 0;
    op.name = is_new ? "create" : how[0] == 'w' ? "empty" : "open";
    if (!may_go_on(&op, is_new ? SPACE : WRITABLE))
        return NULL;
    FILE *stream = real(path, how);
    told(&op, stream ? fileno(stream) : -1);
    return stream;
}

/* An operation that either fails by the fault or is this system call. */
#define DO(need, ...) return may_go_on(&op, need) ? told(&op, syscall(__VA_ARGS__)) : -1

int renameat2(int old_at, const char *old, int new_at, const char *new, unsigned flags)
{
    struct operation op;
    if (!of_two(&op, "rename", old_at, old, new_at, new))
        return syscall(SYS_renameat2, old_at, old, new_at, new, flags);
    DO(SPACE, SYS_renameat2, old_at, old, new_at, new, flags);
}

int rename(const char *old, const char *new) { return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0); }
int renameat(int old_at, const char *old, int new_at, const char *new)
{
    return renameat2(old_at, old, new_at, new, 0);
}

int linkat(int old_at, const char *old, int new_at, const char *new, int flags)
{
    struct operation op;
    if (!of_two(&op, "link", old_at, old, new_at, new))
        return syscall(SYS_linkat, old_at, old, new_at, new, flags);
    DO(SPACE, SYS_linkat, old_at, old, new_at, new, flags);
}

int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }

int symlinkat(const char *to, int at_folder, const char *path)
{
    struct operation op;
    if (!of_path(&op, "symlink", at_folder, path, false))
        return syscall(SYS_symlinkat, to, at_folder, path);
    snprintf(op.other, sizeof op.other, "%s", to);
    DO(SPACE, SYS_symlinkat, to, at_folder, path);
}

int symlink(const char *to, const char *path) { return symlinkat(to, AT_FDCWD, path); }

int mkdirat(int at_folder, const char *path, mode_t bits)
{
    struct operation op;
    if (!of_path(&op, "mkdir", at_folder, path, false))
        return syscall(SYS_mkdirat, at_folder, path, bits);
    DO(access(op.path, F_OK) == 0 ? NOTHING : SPACE, SYS_mkdirat, at_folder, path, bits); /* it is there: EEXIST */
}

int mkdir(const char *path, mode_t bits) { return mkdirat(AT_FDCWD, path, bits); }

int unlinkat(int at_folder, const char *path, int flags)
{
    struct operation op;
    if (!of_path(&op, flags & AT_REMOVEDIR ? "rmdir" : "unlink", at_folder, path, false))
        return syscall(SYS_unlinkat, at_folder, path, flags);
    DO(NOTHING, SYS_unlinkat, at_folder, path, flags);
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int remove(const char *path)
{
    struct stat found;
    return lstat(path, &found) == 0 && S_ISDIR(found.st_mode) ? rmdir(path) : unlink(path);
}

int truncate(const char *path, off_t size)
{
    struct operation op;
    if (!of_path(&op, "truncate", AT_FDCWD, path, true))
        return syscall(SYS_truncate, path, size);
    op.size = size;
    DO(WRITABLE, SYS_truncate, path, size);
}

/* ---- Descriptors ---- */

ssize_t write(int descriptor, const void *data, size_t size)
{
    struct operation op;
    if (!of_descriptor(&op, "write", descriptor, false))
        return syscall(SYS_write, descriptor, data, size);
    op.size = size;
    DO(SPACE, SYS_write, descriptor, data, allowed(&op, size));
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset)
{
    struct operation op;
    if (!of_descriptor(&op, "write", descriptor, false))
        return syscall(SYS_pwrite64, descriptor, data, size, offset);
    op.size = size;
    op.offset = offset;
    DO(SPACE, SYS_pwrite64, descriptor, data, allowed(&op, size), offset);
}

ssize_t pwritev2(int descriptor, const struct iovec *parts, int count, off_t offset, int flags)
{
    struct operation op;
    if (!of_descriptor(&op, "write", descriptor, false))
        return syscall(SYS_pwritev2, descriptor, parts, count, offset, 0L, flags);
    for (int part = 0; part < count; part++)
        op.size += parts[part].iov_len;
    op.offset = offset;
    if (!may_go_on(&op, SPACE))
        return -1;
    struct iovec half = {count > 0 ? parts[0].iov_base : NULL, count > 0 ? parts[0].iov_len / 2 : 0};
    if (op.is_halved && count == 1)
        parts = &half;
    else if (op.is_halved)
        count /= 2;
    return told(&op, syscall(SYS_pwritev2, descriptor, parts, count, offset, 0L, flags));
}

ssize_t writev(int descriptor, const struct iovec *parts, int count)
{
    return pwritev2(descriptor, parts, count, -1, 0);
}

ssize_t pwritev(int descriptor, const struct iovec *parts, int count, off_t offset)
{
    return pwritev2(descriptor, parts, count, offset, 0);
}

ssize_t sendfile(int to, int from, off_t *offset, size_t size)
{
    struct operation op;
    if (!of_descriptor(&op, "write", to, false))
        return syscall(SYS_sendfile, to, from, offset, size);
    op.size = size;
    DO(SPACE, SYS_sendfile, to, from, offset, allowed(&op, size));
}

ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t size, unsigned flags)
{
    struct operation op;
    if (!of_descriptor(&op, "write", to, false))
        return syscall(SYS_copy_file_range, from, from_at, to, to_at, size, flags);
    op.size = size;
    op.offset = to_at ? *to_at : -1;
    DO(SPACE, SYS_copy_file_range, from, from_at, to, to_at, allowed(&op, size), flags);
}

int ftruncate(int descriptor, off_t size)
{
    struct operation op;
    if (!of_descriptor(&op, "truncate", descriptor, false))
        return syscall(SYS_ftruncate, descriptor, size);
    op.size = size;
    DO(WRITABLE, SYS_ftruncate, descriptor, size);
}

int fallocate(int descriptor, int how, off_t offset, off_t size)
{
    struct operation op;
    if (!of_descriptor(&op, "fallocate", descriptor, false))
        return syscall(SYS_fallocate, descriptor, how, offset, size);
    op.size = size;
    op.offset = offset;
    DO(SPACE, SYS_fallocate, descriptor, how, offset, size);
}

int posix_fallocate(int descriptor, off_t offset, off_t size)
{
    int before = errno;
    int error = fallocate(descriptor, 0, offset, size) == 0 ? 0 : errno;
    errno = before;
    return error;
}

int fsync(int descriptor)
{
    struct operation op;
    if (!of_descriptor(&op, "fsync", descriptor, true)) /* folders are opened for reading */
        return syscall(SYS_fsync, descriptor);
    DO(NOTHING, SYS_fsync, descriptor);
}

int fdatasync(int descriptor)
{
    struct operation op;
    if (!of_descriptor(&op, "fsync", descriptor, true))
        return syscall(SYS_fdatasync, descriptor);
    DO(NOTHING, SYS_fdatasync, descriptor);
}

int close(int descriptor)
{
    struct operation op;
    if (!of_descriptor(&op, "close", descriptor, false))
        return syscall(SYS_close, descriptor);
    bool is_well = may_go_on(&op, NOTHING); /* a close that fails has closed nevertheless */
    int error = errno, result = syscall(SYS_close, descriptor);
    if (is_well)
        return told(&op, result);
    errno = error;
    return -1;
}

int fclose(FILE *stream)
{
    int (*real)(FILE *) = (int (*)(FILE *))dlsym(RTLD_NEXT, "fclose");
    struct operation op;
    if (!of_descriptor(&op, "close", fileno(stream), false))
        return real(stream);
    bool is_well = may_go_on(&op, NOTHING);
    int error = errno, result = real(stream);
    if (is_well)
        return told(&op, result);
    errno = error;
    return EOF;
}

/* ---- The same under the names for large files; where off_t has 64 bits they are one ---- */

#define ALIAS(type, name, of, ...) extern type name(__VA_ARGS__) __attribute__((alias(#of)))
ALIAS(int, open64, open, const char *, int, ...);
ALIAS(int, openat64, openat, int, const char *, int, ...);
ALIAS(int, creat64, creat, const char *, mode_t);
ALIAS(int, __open64_2, __open_2, const char *, int);
ALIAS(int, __openat64_2, __openat_2, int, const char *, int);
ALIAS(FILE *, fopen64, fopen, const char *, const char *);
ALIAS(int, truncate64, truncate, const char *, off64_t);
ALIAS(int, ftruncate64, ftruncate, int, off64_t);
ALIAS(ssize_t, pwrite64, pwrite, int, const void *, size_t, off64_t);
ALIAS(ssize_t, pwritev64, pwritev, int, const struct iovec *, int, off64_t);
ALIAS(ssize_t, pwritev64v2, pwritev2, int, const struct iovec *, int, off64_t, int);
ALIAS(ssize_t, sendfile64, sendfile, int, int, off64_t *, size_t);
ALIAS(int, fallocate64, fallocate, int, int, off64_t, off64_t);
ALIAS(int, posix_fallocate64, posix_fallocate, int, off64_t, off64_t);
