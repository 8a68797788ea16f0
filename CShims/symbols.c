// dladdr is an extension of glibc's.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "CIOMMU.h"

// Of the Swift runtime, which is there wherever there is Swift: not in the tests of this header alone.
extern char *swift_demangle(const char *name, size_t length, char *out, size_t *out_length, uint32_t flags)
    __attribute__((weak));

static const char *last_component(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash == NULL ? path : slash + 1;
}

void ci_symbol(uintptr_t address, char *text, uint64_t size) {
  Dl_info info;
  // One less: a return address may be behind the last instruction of a function that does not return.
  if (dladdr((void *)(address - 1), &info) == 0 || info.dli_fname == NULL) {
    snprintf(text, size, "0x%lx", (unsigned long)address);
    return;
  }
  const char *file = last_component(info.dli_fname);
  if (info.dli_sname == NULL) {
    snprintf(text, size, "%s+0x%lx", file, (unsigned long)(address - (uintptr_t)info.dli_fbase));
    return;
  }
  char *plain = swift_demangle ? swift_demangle(info.dli_sname, strlen(info.dli_sname), NULL, NULL, 0) : NULL;
  snprintf(
      text, size, "%s+0x%lx (%s)", plain ? plain : info.dli_sname,
      (unsigned long)(address - (uintptr_t)info.dli_saddr), file);
  free(plain);
}
