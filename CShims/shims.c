// The few functions that are too large or too rare to be inlined into every caller.
#include "CIOMMU.h"

#include <dlfcn.h>
#include <stdlib.h>

_Thread_local int32_t ci_spin_locks_held = 0;

int (*ci_vdso_clock_gettime)(clockid_t, struct timespec *) = clock_gettime;

// vdso(7): its name for the loader, and the function's.
#if defined(__aarch64__)
#define CI_VDSO_CLOCK "__kernel_clock_gettime"
#else
#define CI_VDSO_CLOCK "__vdso_clock_gettime"
#endif

__attribute__((constructor)) static void ci_find_vdso_clock(void) {
  void *vdso = dlopen("linux-vdso.so.1", RTLD_NOW | RTLD_NOLOAD);
  void *found = vdso == NULL ? NULL : dlsym(vdso, CI_VDSO_CLOCK);
  if (found != NULL) ci_vdso_clock_gettime = (int (*)(clockid_t, struct timespec *))found;
}

int32_t ci_cpu_limit(void) {
  // "0-7" or "0,2-5": the last number is the highest. sysconf counts processors, which is less where there
  // are gaps.
  char text[256];
  int fd = ci_open("/sys/devices/system/cpu/possible", CI_O_RDONLY, 0);
  int64_t length = fd < 0 ? -1 : ci_read(fd, text, sizeof text);
  if (fd >= 0) ci_close(fd);
  int32_t last = -1, number = -1;
  for (int64_t i = 0; i < length; i++) {
    if (text[i] < '0' || text[i] > '9') {
      number = -1;
    } else {
      number = (number < 0 ? 0 : number) * 10 + (text[i] - '0');
      if (number > 1 << 20) return ci_nproc_configured();  // no machine has so many: do not believe it
      last = number;
    }
  }
  return last < 0 ? ci_nproc_configured() : last + 1;
}

int32_t ci_rseq_usable(void) {
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
  return 0;
#endif
#endif
#if !defined(CI_RSEQ_BEGIN)
  return 0;
#else
  const char *chosen = getenv("SWIFT_IOMMU_RSEQ");
  if (chosen != NULL && strcmp(chosen, "0") == 0) return 0;
  if (!ci_rseq_registered()) return 0;
  return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ, 0, 0) == 0;
#endif
}
