// Where a thread is, and what code is called: for reports of debug mode.
#pragma once
#include <execinfo.h>

#include "../base.h"

/// backtrace(3): return addresses, the innermost first; how many.
CI_SHIM int32_t ci_backtrace(uintptr_t *_Nonnull addresses, int32_t capacity) {
  return backtrace((void **)addresses, capacity);
}

/// dladdr(3): "function+offset (file)" with the function's name as Swift has it, "file+offset" without a name, or the
/// address; cut to `size` bytes with its 0.
void ci_symbol(uintptr_t address, char *_Nonnull text, uint64_t size);
