// The process: who it is, what it may do, how much it may pin.
#pragma once
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "../base.h"

/// getpid(2).
CI_SHIM int32_t ci_getpid(void) { return getpid(); }

/// gettid(2).
CI_SHIM int32_t ci_gettid(void) { return (int32_t)syscall(SYS_gettid); }

/// getuid(2).
CI_SHIM uint32_t ci_getuid(void) { return getuid(); }

/// geteuid(2).
CI_SHIM uint32_t ci_geteuid(void) { return geteuid(); }

/// getegid(2).
CI_SHIM uint32_t ci_getegid(void) { return getegid(); }

/// getgroups(2): how many supplementary groups; with `capacity` 0 only that.
CI_SHIM int32_t ci_getgroups(int32_t capacity, uint32_t *_Nullable groups) {
  return ci_or_errno(getgroups(capacity, groups));
}

/// sysconf(_SC_PAGESIZE).
CI_SHIM uint64_t ci_page_size(void) { return (uint64_t)sysconf(_SC_PAGESIZE); }

/// sysconf(_SC_PHYS_PAGES): the machine's memory in bytes, without swap.
CI_SHIM uint64_t ci_physical_memory(void) { return (uint64_t)sysconf(_SC_PHYS_PAGES) * ci_page_size(); }

/// sysconf(_SC_NPROCESSORS_CONF): processors, online or not. For tables by processor see `ci_cpu_limit`.
CI_SHIM int32_t ci_nproc_configured(void) { return (int32_t)sysconf(_SC_NPROCESSORS_CONF); }

/// uname(2): the kernel's release ("7.2.13") with its 0. -ENAMETOOLONG where it does not fit.
CI_SHIM int32_t ci_kernel_release(char *_Nonnull buffer, uint64_t size) {
  struct utsname name;
  if (uname(&name) < 0) return -errno;
  size_t length = strlen(name.release) + 1;
  if (length > size) return -ENAMETOOLONG;
  memcpy(buffer, name.release, length);
  return 0;
}

// Limits

#define CI_RLIMIT_NOFILE 7
#define CI_RLIMIT_MEMLOCK 8
#define CI_RLIM_INFINITY 0xffffffffffffffffull

struct ci_rlimit {
  uint64_t current, maximum;
};
_Static_assert(RLIMIT_MEMLOCK == CI_RLIMIT_MEMLOCK && RLIMIT_NOFILE == CI_RLIMIT_NOFILE, "rlimit");

/// getrlimit(2).
CI_SHIM int32_t ci_getrlimit(int32_t resource, struct ci_rlimit *_Nonnull limit) {
  struct rlimit value;
  if (getrlimit((__typeof__(RLIMIT_MEMLOCK))resource, &value) < 0) return -errno;
  *limit = (struct ci_rlimit){value.rlim_cur, value.rlim_max};
  return 0;
}

/// setrlimit(2).
CI_SHIM int32_t ci_setrlimit(int32_t resource, struct ci_rlimit limit) {
  struct rlimit value = {limit.current, limit.maximum};
  return ci_or_errno(setrlimit((__typeof__(RLIMIT_MEMLOCK))resource, &value));
}

// Capabilities: the numbers are bits of the mask.

#define CI_CAP_CHOWN 0u
#define CI_CAP_DAC_OVERRIDE 1u
#define CI_CAP_FOWNER 3u
#define CI_CAP_IPC_LOCK 14u
#define CI_CAP_SYS_MODULE 16u
#define CI_CAP_SYS_RAWIO 17u
#define CI_CAP_SYS_PTRACE 19u
#define CI_CAP_SYS_ADMIN 21u
#define CI_CAP_SYS_NICE 23u
#define CI_CAP_SYS_RESOURCE 24u
#define CI_CAP_SYSLOG 34u

/// capget(2): the calling thread's effective capabilities.
CI_SHIM int32_t ci_capabilities(uint64_t *_Nonnull effective) {
  // linux/capability.h, version 3: the sets of 64 capabilities in two halves.
  struct {
    uint32_t version;
    int32_t pid;
  } header = {0x20080522, 0};
  struct {
    uint32_t effective, permitted, inheritable;
  } halves[2];
  if (syscall(SYS_capget, &header, halves) < 0) return -errno;
  *effective = halves[0].effective | (uint64_t)halves[1].effective << 32;
  return 0;
}

/// Whether the calling thread has a capability in effect: 1, 0, or -errno.
CI_SHIM int32_t ci_has_capability(uint32_t capability) {
  uint64_t effective;
  if (capability > 63) return -EINVAL;
  int32_t result = ci_capabilities(&effective);
  return result < 0 ? result : (int32_t)(effective >> capability & 1);
}
