// Waiting: eventfds, poll, futexes, the monotonic clock. Times are nanoseconds, negative ones for ever.
#pragma once
#include <linux/futex.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../base.h"

/// clock_gettime(CLOCK_MONOTONIC).
CI_SHIM int64_t ci_monotonic_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);  // cannot fail: the clock exists and the address is good
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/// clock_gettime, in the kernel's vDSO where that is found: the way there through the C library is longer than what is done.
extern int (*_Nonnull ci_vdso_clock_gettime)(clockid_t, struct timespec *_Nonnull) __attribute__((visibility("hidden")));

/// clock_gettime(CLOCK_MONOTONIC_COARSE): cheaper, and up to a tick of the kernel behind.
CI_SHIM int64_t ci_coarse_monotonic_ns(void) {
  struct timespec now;
  ci_vdso_clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/// The time `timeout` from now, without overflow.
CI_SHIM int64_t ci_deadline_ns(int64_t timeout) {
  int64_t now = ci_monotonic_ns();
  return timeout > INT64_MAX - now ? INT64_MAX : now + timeout;
}

/// A duration or a time in the form of the kernel's calls.
CI_SHIM struct timespec ci_timespec(int64_t ns) {
  return (struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
}

/// clock_nanosleep(2) until `duration` is over; a signal does not end it.
CI_SHIM int32_t ci_sleep_ns(int64_t duration) {
  if (duration <= 0) return 0;
  struct timespec end = ci_timespec(ci_deadline_ns(duration));
  int result;
  do result = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL);
  while (result == EINTR);
  return -result;
}

// eventfd

/// eventfd(2), closed on exec and not blocking.
CI_SHIM int32_t ci_eventfd(uint32_t initial) {
  return ci_or_errno(eventfd(initial, EFD_CLOEXEC | EFD_NONBLOCK));
}

/// Takes what was signalled since the last time; -EAGAIN where nothing was.
CI_SHIM int32_t ci_eventfd_read(int fd, uint64_t *_Nonnull count) {
  ssize_t done;
  CI_RETRY(done, read(fd, count, sizeof *count));
  return done < 0 ? -errno : 0;
}

/// Signals `count` times.
CI_SHIM int32_t ci_eventfd_write(int fd, uint64_t count) {
  ssize_t done;
  CI_RETRY(done, write(fd, &count, sizeof count));
  return done < 0 ? -errno : 0;
}

// poll

#define CI_POLLIN 0x001
#define CI_POLLPRI 0x002
#define CI_POLLOUT 0x004
#define CI_POLLERR 0x008
#define CI_POLLHUP 0x010
#define CI_POLLNVAL 0x020

/// struct pollfd, so that Swift needs no other module for its fields.
struct ci_pollfd {
  int32_t fd;
  int16_t events, revents;
};
_Static_assert(sizeof(struct ci_pollfd) == sizeof(struct pollfd), "pollfd");
_Static_assert(offsetof(struct ci_pollfd, revents) == offsetof(struct pollfd, revents), "pollfd");

/// ppoll(2): how many descriptors are ready, 0 after `timeout`. A signal neither ends nor lengthens it.
CI_SHIM int32_t ci_poll(struct ci_pollfd *_Nullable descriptors, uint32_t count, int64_t timeout) {
  int64_t deadline = timeout < 0 ? 0 : ci_deadline_ns(timeout);
  for (int64_t left = timeout;;) {
    struct timespec wait = ci_timespec(left < 0 ? 0 : left);
    // The system call itself, which (unlike glibc's ppoll) needs no _GNU_SOURCE.
    long ready = syscall(SYS_ppoll, descriptors, (unsigned long)count, timeout < 0 ? NULL : &wait, NULL, 0ul);
    if (ready >= 0) return (int32_t)ready;
    if (errno != EINTR) return -errno;
    if (timeout >= 0) left = deadline - ci_monotonic_ns();
  }
}

// futex

/// futex(FUTEX_WAIT): sleeps while `*word` is `expected`. 0 (woken, or by chance), -EAGAIN or -ETIMEDOUT.
CI_SHIM int32_t ci_futex_wait(const volatile uint32_t *_Nonnull word, uint32_t expected, int64_t timeout) {
  // WAIT_BITSET takes a deadline and not a duration, so it can be repeated after a signal as it is.
  struct timespec end = ci_timespec(timeout < 0 ? 0 : ci_deadline_ns(timeout));
  const struct timespec *until = timeout < 0 ? NULL : &end;
  const int operation = FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG;
  long result;
  CI_RETRY(result, syscall(SYS_futex, word, operation, expected, until, NULL, FUTEX_BITSET_MATCH_ANY));
  return (int32_t)ci_or_errno64(result);
}

/// futex(FUTEX_WAKE): wakes up to `count` threads, and says how many.
CI_SHIM int32_t ci_futex_wake(const volatile uint32_t *_Nonnull word, int32_t count) {
  const int operation = FUTEX_WAKE | FUTEX_PRIVATE_FLAG;
  return (int32_t)ci_or_errno64(syscall(SYS_futex, word, operation, count, NULL, NULL, 0));
}
