// Descriptors over a unix socket: how a privileged launcher hands an opened device to a driver.
#pragma once
#include <sys/socket.h>
#include <unistd.h>

#include "../base.h"

/// The most descriptors that the kernel takes in one message (SCM_MAX_FD).
#define CI_DESCRIPTORS_MAX 253u

/// socketpair(2) of unix sockets that keep messages apart, closed on exec.
CI_SHIM int32_t ci_socketpair(int32_t *_Nonnull first, int32_t *_Nonnull second) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) return -errno;
  *first = pair[0];
  *second = pair[1];
  return 0;
}

/// sendmsg(2) with SCM_RIGHTS: `size` ≥ 1 bytes (a descriptor does not travel alone) and `count` descriptors,
/// which stay open here. The bytes sent. A peer that is gone gives -EPIPE and no signal.
CI_SHIM int64_t ci_send_descriptors(
    int socket, const void *_Nonnull bytes, uint64_t size,
    const int32_t *_Nullable descriptors, uint32_t count) {
  union {
    struct cmsghdr align;
    char space[CMSG_SPACE(CI_DESCRIPTORS_MAX * sizeof(int32_t))];
  } control;
  if (size == 0 || count > CI_DESCRIPTORS_MAX || (count != 0 && descriptors == NULL)) return -EINVAL;
  struct iovec part = {(void *)(uintptr_t)bytes, size};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
  if (count != 0) {
    memset(&control, 0, sizeof control);
    message.msg_control = &control;
    message.msg_controllen = CMSG_SPACE(count * sizeof *descriptors);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(count * sizeof *descriptors);
    memcpy(CMSG_DATA(header), descriptors, count * sizeof *descriptors);
  }
  ssize_t sent;
  CI_RETRY(sent, sendmsg(socket, &message, MSG_NOSIGNAL));
  return ci_or_errno64(sent);
}

/// recvmsg(2) with SCM_RIGHTS: the bytes received (0: the peer is gone); `*count` is the room in
/// `descriptors` and comes back as the number received, closed on exec. Where one finds no room all are
/// closed: -EMSGSIZE.
CI_SHIM int64_t ci_receive_descriptors(
    int socket, void *_Nonnull bytes, uint64_t size,
    int32_t *_Nullable descriptors, uint32_t *_Nonnull count) {
  union {
    struct cmsghdr align;
    char space[CMSG_SPACE(CI_DESCRIPTORS_MAX * sizeof(int32_t))];
  } control;
  struct iovec part = {bytes, size};
  struct msghdr message = {
      .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  uint32_t room = descriptors == NULL ? 0 : *count, found = 0;
  *count = 0;
  ssize_t received;
  CI_RETRY(received, recvmsg(socket, &message, MSG_CMSG_CLOEXEC));
  if (received < 0) return -errno;
  int cut = (message.msg_flags & (MSG_CTRUNC | MSG_TRUNC)) != 0;
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  for (; header != NULL; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    uint32_t here = (uint32_t)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int32_t));
    for (uint32_t i = 0; i < here; i++) {
      int32_t fd;
      memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
      if (found < room) descriptors[found++] = fd;
      else cut = 1, close(fd);
    }
  }
  if (!cut) {
    *count = found;
    return received;
  }
  while (found > 0) close(descriptors[--found]);
  return -EMSGSIZE;
}
