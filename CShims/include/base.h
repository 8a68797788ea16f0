// What every shim shares: one line of policy each, nothing to debug.
#pragma once
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>

// Swift needs to know which pointers may be NULL; compilers other than its own do not know the words.
#if !defined(__clang__)
#define _Nonnull
#define _Nullable
#endif

// Swift imports these and inlines them into its callers; nothing of them is a symbol.
#define CI_SHIM static inline __attribute__((always_inline))

// The convention of the whole shim: a result ≥ 0 is the call's value, a negative one is -errno.
// errno is read here, in C, at once: between a call and a read of errno in Swift, ARC may run free().

/// The value of a call, or -errno.
CI_SHIM int32_t ci_or_errno(int result) { return result < 0 ? -errno : result; }

/// The same for calls that return a count of bytes or an address.
CI_SHIM int64_t ci_or_errno64(int64_t result) { return result < 0 ? -errno : result; }

// Repeats a call that a signal handler cut short. Only where a repetition is harmless: never close(),
// never ioctl() (a request may have been half done; the callers know which they may repeat).
#define CI_RETRY(result, call)  \
  do {                          \
    (result) = (call);          \
  } while ((result) < 0 && errno == EINTR)

/// ioctl(2) with a pointer argument. Not repeated after EINTR.
CI_SHIM int32_t ci_ioctl(int fd, uint64_t request, void *_Nullable argument) {
  return ci_or_errno(ioctl(fd, (unsigned long)request, argument));
}
