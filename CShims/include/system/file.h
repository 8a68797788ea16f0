// Files and directories. Every descriptor made here is closed on exec: a child must not inherit a device.
#pragma once
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../base.h"

#define CI_O_RDONLY 0
#define CI_O_WRONLY 1
#define CI_O_RDWR 2
#define CI_O_CREAT O_CREAT
#define CI_O_EXCL O_EXCL
#define CI_O_TRUNC O_TRUNC
#define CI_O_APPEND O_APPEND
#define CI_O_NONBLOCK O_NONBLOCK
#define CI_O_SYNC O_SYNC
#define CI_O_DIRECTORY O_DIRECTORY
#define CI_O_NOFOLLOW O_NOFOLLOW

#define CI_AT_FDCWD (-100)
#define CI_AT_SYMLINK_NOFOLLOW 0x100
#define CI_AT_EACCESS 0x200

#define CI_F_OK 0
#define CI_X_OK 1
#define CI_W_OK 2
#define CI_R_OK 4

#define CI_DT_UNKNOWN 0u
#define CI_DT_CHR 2u
#define CI_DT_DIR 4u
#define CI_DT_REG 8u
#define CI_DT_LNK 10u

/// openat(2), closed on exec. `directory` is a descriptor or CI_AT_FDCWD.
CI_SHIM int32_t ci_openat(int directory, const char *_Nonnull path, int32_t flags, uint32_t mode) {
  int fd;
  CI_RETRY(fd, openat(directory, path, flags | O_CLOEXEC, (mode_t)mode));
  return ci_or_errno(fd);
}

/// open(2), closed on exec.
CI_SHIM int32_t ci_open(const char *_Nonnull path, int32_t flags, uint32_t mode) {
  return ci_openat(CI_AT_FDCWD, path, flags, mode);
}

/// close(2). Never repeated: after EINTR the descriptor is gone, and another thread may have its number.
CI_SHIM int32_t ci_close(int fd) { return ci_or_errno(close(fd)); }

/// fcntl(F_DUPFD_CLOEXEC): a second descriptor of the same open file.
CI_SHIM int32_t ci_dup(int fd) { return ci_or_errno(fcntl(fd, F_DUPFD_CLOEXEC, 0)); }

/// read(2): the bytes read, 0 at the end.
CI_SHIM int64_t ci_read(int fd, void *_Nonnull buffer, uint64_t count) {
  ssize_t done;
  CI_RETRY(done, read(fd, buffer, count));
  return ci_or_errno64(done);
}

/// write(2): the bytes written.
CI_SHIM int64_t ci_write(int fd, const void *_Nonnull buffer, uint64_t count) {
  ssize_t done;
  CI_RETRY(done, write(fd, buffer, count));
  return ci_or_errno64(done);
}

/// pread(2): one call, which on a VFIO region is one access where `count` is 1, 2, 4 or 8.
CI_SHIM int64_t ci_pread(int fd, void *_Nonnull buffer, uint64_t count, uint64_t offset) {
  ssize_t done;
  CI_RETRY(done, pread(fd, buffer, count, (off_t)offset));
  return ci_or_errno64(done);
}

/// pwrite(2): one call.
CI_SHIM int64_t ci_pwrite(int fd, const void *_Nonnull buffer, uint64_t count, uint64_t offset) {
  ssize_t done;
  CI_RETRY(done, pwrite(fd, buffer, count, (off_t)offset));
  return ci_or_errno64(done);
}

/// pread(2) until `count` bytes are there; fewer only at the end of the file.
CI_SHIM int64_t ci_pread_full(int fd, void *_Nonnull buffer, uint64_t count, uint64_t offset) {
  uint64_t done = 0;
  while (done < count) {
    int64_t more = ci_pread(fd, (char *)buffer + done, count - done, offset + done);
    if (more < 0) return more;
    if (more == 0) break;
    done += (uint64_t)more;
  }
  return (int64_t)done;
}

/// pwrite(2) until `count` bytes are written; -EIO where the file takes no more.
CI_SHIM int64_t ci_pwrite_full(int fd, const void *_Nonnull buffer, uint64_t count, uint64_t offset) {
  uint64_t done = 0;
  while (done < count) {
    int64_t more = ci_pwrite(fd, (const char *)buffer + done, count - done, offset + done);
    if (more < 0) return more;
    if (more == 0) return -EIO;
    done += (uint64_t)more;
  }
  return (int64_t)done;
}

/// What stat(2) says, as far as device nodes and sysfs need it.
struct ci_file_status {
  uint64_t device, inode, size;
  uint32_t mode, uid, gid;
  uint32_t rdev_major, rdev_minor;
};

/// The part of struct stat that Swift gets.
CI_SHIM struct ci_file_status ci_file_status_from(const struct stat *_Nonnull s) {
  return (struct ci_file_status){
      .device = s->st_dev,
      .inode = s->st_ino,
      .size = (uint64_t)s->st_size,
      .mode = s->st_mode,
      .uid = s->st_uid,
      .gid = s->st_gid,
      .rdev_major = major(s->st_rdev),
      .rdev_minor = minor(s->st_rdev)};
}

/// fstatat(2); `flags` 0 or CI_AT_SYMLINK_NOFOLLOW.
CI_SHIM int32_t ci_fstatat(
    int directory, const char *_Nonnull path, struct ci_file_status *_Nonnull out, int32_t flags) {
  struct stat status;
  int result = fstatat(directory, path, &status, flags);
  if (result < 0) return -errno;
  *out = ci_file_status_from(&status);
  return 0;
}

/// stat(2).
CI_SHIM int32_t ci_stat(const char *_Nonnull path, struct ci_file_status *_Nonnull out) {
  return ci_fstatat(CI_AT_FDCWD, path, out, 0);
}

/// fstat(2).
CI_SHIM int32_t ci_fstat(int fd, struct ci_file_status *_Nonnull out) {
  struct stat status;
  if (fstat(fd, &status) < 0) return -errno;
  *out = ci_file_status_from(&status);
  return 0;
}

/// access(2), with the real user. 0 or -errno.
CI_SHIM int32_t ci_access(const char *_Nonnull path, int32_t mode) { return ci_or_errno(access(path, mode)); }

/// faccessat(2), with the effective user where `flags` has CI_AT_EACCESS.
CI_SHIM int32_t ci_faccessat(int directory, const char *_Nonnull path, int32_t mode, int32_t flags) {
  return ci_or_errno(faccessat(directory, path, mode, flags));
}

/// readlinkat(2): the length of the target, to which a 0 is added; -ENAMETOOLONG where that does not fit.
CI_SHIM int64_t ci_readlinkat(
    int directory, const char *_Nonnull path, char *_Nonnull buffer, uint64_t size) {
  if (size == 0) return -ENAMETOOLONG;
  ssize_t length = readlinkat(directory, path, buffer, size);
  if (length < 0) return -errno;
  if ((uint64_t)length == size) return -ENAMETOOLONG;  // may have been cut: readlink does not say
  buffer[length] = 0;
  return length;
}

/// readlink(2).
CI_SHIM int64_t ci_readlink(const char *_Nonnull path, char *_Nonnull buffer, uint64_t size) {
  return ci_readlinkat(CI_AT_FDCWD, path, buffer, size);
}

/// mkdir(2).
CI_SHIM int32_t ci_mkdir(const char *_Nonnull path, uint32_t mode) {
  return ci_or_errno(mkdir(path, (mode_t)mode));
}

/// unlink(2).
CI_SHIM int32_t ci_unlink(const char *_Nonnull path) { return ci_or_errno(unlink(path)); }

/// rename(2).
CI_SHIM int32_t ci_rename(const char *_Nonnull from, const char *_Nonnull to) {
  return ci_or_errno(rename(from, to));
}

/// ftruncate(2).
CI_SHIM int32_t ci_ftruncate(int fd, uint64_t size) {
  int result;
  CI_RETRY(result, ftruncate(fd, (off_t)size));
  return ci_or_errno(result);
}

// Directories are read with getdents64 into the caller's buffer: no DIR on the heap, no name copied twice.

/// getdents64(2) on a directory's descriptor: the bytes put into `buffer`, 0 at the end.
CI_SHIM int64_t ci_directory_read(int directory, void *_Nonnull buffer, uint64_t size) {
  return ci_or_errno64(syscall(SYS_getdents64, directory, buffer, size));
}

/// The next name in a buffer that `ci_directory_read` filled with `size` bytes, without "." and ".."; NULL at
/// its end. `offset` starts at 0 and is moved on; `type` becomes one of CI_DT_….
CI_SHIM const char *_Nullable ci_directory_next(
    const void *_Nonnull buffer, uint64_t size, uint64_t *_Nonnull offset, uint32_t *_Nonnull type) {
  // struct linux_dirent64: u64 inode, s64 cookie, u16 length of the record, u8 type, the name with its 0.
  enum { length_at = 16, type_at = 18, name_at = 19 };
  while (*offset < size && size - *offset > name_at) {
    const char *entry = (const char *)buffer + *offset;
    uint16_t length;
    memcpy(&length, entry + length_at, sizeof length);
    if (length <= name_at || length > size - *offset) return NULL;
    const char *name = entry + name_at;
    if (memchr(name, 0, (size_t)length - name_at) == NULL) return NULL;
    *offset += length;
    if (name[0] == '.' && (name[1] == 0 || (name[1] == '.' && name[2] == 0))) continue;
    *type = (uint8_t)entry[type_at];
    return name;
  }
  return NULL;
}
