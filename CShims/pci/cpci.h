// libpci, for the names of devices in pci.ids. A program that links it takes on libpci's licence, the GPL.
#pragma once
#include <pci/pci.h>
#include <stdint.h>
#include <stdlib.h>

static inline void ci_pci_ignore(char *_Nonnull message, ...) { (void)message; }

// The one fatal error of libpci on the way to a name is malloc's.
static inline void __attribute__((noreturn)) ci_pci_abort(char *_Nonnull message, ...) {
  (void)message;
  abort();
}

/// A handle for names alone, for one thread; end it with pci_cleanup. It scans no bus and needs no permission.
/// Without pci_init, which would, the callbacks are ours to set: libpci calls them when pci.ids is missing. Neither
/// the network nor udev's database is asked.
static inline struct pci_access *_Nonnull ci_pci_open_names(void) {
  struct pci_access *access = pci_alloc();
  access->error = ci_pci_abort;
  access->warning = ci_pci_ignore;
  access->debug = ci_pci_ignore;
  access->id_lookup_mode = PCI_LOOKUP_NO_HWDB;
  return access;
}

// pci_lookup_name takes a varying number of arguments, which Swift cannot call: one shim for each question.
// They return `buffer` (or text that libpci owns) or NULL; without NO_NUMBERS libpci invents "Device 1234".

/// The vendor's name, NULL where pci.ids has none.
static inline const char *_Nullable ci_pci_vendor_name(
    struct pci_access *_Nonnull access, char *_Nonnull buffer, int32_t size, uint16_t vendor) {
  return pci_lookup_name(access, buffer, size, PCI_LOOKUP_VENDOR | PCI_LOOKUP_NO_NUMBERS, vendor);
}

/// The device's name without its vendor's, NULL where pci.ids has none.
static inline const char *_Nullable ci_pci_device_name(
    struct pci_access *_Nonnull access, char *_Nonnull buffer, int32_t size, uint16_t vendor,
    uint16_t device) {
  return pci_lookup_name(access, buffer, size, PCI_LOOKUP_DEVICE | PCI_LOOKUP_NO_NUMBERS, vendor, device);
}

/// The name of a class (base class and subclass), NULL where pci.ids has none.
static inline const char *_Nullable ci_pci_class_name(
    struct pci_access *_Nonnull access, char *_Nonnull buffer, int32_t size, uint16_t code) {
  return pci_lookup_name(access, buffer, size, PCI_LOOKUP_CLASS | PCI_LOOKUP_NO_NUMBERS, code);
}
