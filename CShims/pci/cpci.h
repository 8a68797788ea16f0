// Names of PCI devices by libpci: what Swift cannot call by itself, a variadic function and three callbacks.
#pragma once
#include <pci/pci.h>
#include <stdlib.h>

static inline void cpci_quiet(char *_Nonnull message, ...) { (void)message; }

/// libpci's one fatal error on this path is malloc's.
static inline void __attribute__((noreturn)) cpci_fatal(char *_Nonnull message, ...) {
  (void)message;
  abort();
}

/// A handle for look-ups, NULL when out of memory. It scans no bus and needs no permission. Each thread has its own.
static inline struct pci_access *_Nullable cpci_open(void) {
  struct pci_access *access = pci_alloc();
  if (!access) return NULL;
  access->error = cpci_fatal;
  access->warning = cpci_quiet;
  access->debug = cpci_quiet;
  access->id_lookup_mode = 0;  // No look-up over the network, no cache in the home directory.
  return access;
}

/// A vendor's name, or a device's when `device` is not negative; NULL when pci.ids has none, or there is no pci.ids.
static inline const char *_Nullable cpci_name(struct pci_access *_Nonnull access, char *_Nonnull buffer, int size,
                                              int vendor, int device) {
  int flags = PCI_LOOKUP_NO_NUMBERS | PCI_LOOKUP_NO_HWDB;
  return device < 0 ? pci_lookup_name(access, buffer, size, flags | PCI_LOOKUP_VENDOR, vendor)
                    : pci_lookup_name(access, buffer, size, flags | PCI_LOOKUP_DEVICE, vendor, device);
}
