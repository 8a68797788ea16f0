// The VFIO uAPI for PCI devices: numbers, flags and structures of Linux 7.2, declared here because a build
// machine's own headers may be older (Debian 12 has no cdev). Names are the kernel's with ci_ or CI_ before
// them. Tests/ABI compares every line with the kernel's own headers.
//
// The kernel ends some structures with an array of unknown length, which Swift's importer drops. They are
// declared without it here; vfio.h and vfio_data.h have functions for what follows them.
#pragma once
#include "base.h"

// The requests. Some numbers mean one thing to a container and another to a device.
enum {
  CI_VFIO_GET_API_VERSION = _IO(';', 100),
  CI_VFIO_CHECK_EXTENSION = _IO(';', 101),
  CI_VFIO_SET_IOMMU = _IO(';', 102),
  CI_VFIO_GROUP_GET_STATUS = _IO(';', 103),
  CI_VFIO_GROUP_SET_CONTAINER = _IO(';', 104),
  CI_VFIO_GROUP_UNSET_CONTAINER = _IO(';', 105),
  CI_VFIO_GROUP_GET_DEVICE_FD = _IO(';', 106),
  CI_VFIO_DEVICE_GET_INFO = _IO(';', 107),
  CI_VFIO_DEVICE_GET_REGION_INFO = _IO(';', 108),
  CI_VFIO_DEVICE_GET_IRQ_INFO = _IO(';', 109),
  CI_VFIO_DEVICE_SET_IRQS = _IO(';', 110),
  CI_VFIO_DEVICE_RESET = _IO(';', 111),
  CI_VFIO_IOMMU_GET_INFO = _IO(';', 112),
  CI_VFIO_DEVICE_GET_PCI_HOT_RESET_INFO = _IO(';', 112),
  CI_VFIO_IOMMU_MAP_DMA = _IO(';', 113),
  CI_VFIO_DEVICE_PCI_HOT_RESET = _IO(';', 113),
  CI_VFIO_IOMMU_UNMAP_DMA = _IO(';', 114),
  CI_VFIO_DEVICE_IOEVENTFD = _IO(';', 116),
  CI_VFIO_IOMMU_DIRTY_PAGES = _IO(';', 117),
  CI_VFIO_DEVICE_FEATURE = _IO(';', 117),
  CI_VFIO_DEVICE_BIND_IOMMUFD = _IO(';', 118),
  CI_VFIO_DEVICE_ATTACH_IOMMUFD_PT = _IO(';', 119),
  CI_VFIO_DEVICE_DETACH_IOMMUFD_PT = _IO(';', 120),
  CI_VFIO_MIG_GET_PRECOPY_INFO = _IO(';', 121),
};

// Every argument begins with `argsz`, its length with what follows it; the ioctl functions fill it in.

// Container

#define CI_VFIO_API_VERSION 0

#define CI_VFIO_TYPE1_IOMMU 1u
#define CI_VFIO_TYPE1v2_IOMMU 3u
#define CI_VFIO_DMA_CC_IOMMU 4u
#define CI_VFIO_NOIOMMU_IOMMU 8u
#define CI_VFIO_UNMAP_ALL 9u
#define CI_VFIO_UPDATE_VADDR 10u

#define CI_VFIO_IOMMU_INFO_PGSIZES (1u << 0)
#define CI_VFIO_IOMMU_INFO_CAPS (1u << 1)

struct ci_vfio_iommu_type1_info {
  uint32_t argsz, flags;
  uint64_t iova_pgsizes;
  uint32_t cap_offset, pad;
};

#define CI_VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE 1u
#define CI_VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION 2u
#define CI_VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL 3u

/// Stands before every capability; `next` counts from the start of the info structure, 0 ends the chain.
struct ci_vfio_info_cap_header {
  uint16_t id, version;
  uint32_t next;
};

struct ci_vfio_iova_range {
  uint64_t start, end;  // inclusive
};

/// Followed by `nr_iovas` ranges.
struct ci_vfio_iommu_type1_info_cap_iova_range {
  struct ci_vfio_info_cap_header header;
  uint32_t nr_iovas, reserved;
};

struct ci_vfio_iommu_type1_info_cap_migration {
  struct ci_vfio_info_cap_header header;
  uint32_t flags;
  uint64_t pgsize_bitmap, max_dirty_bitmap_size;
};

struct ci_vfio_iommu_type1_info_dma_avail {
  struct ci_vfio_info_cap_header header;
  uint32_t avail;
};

#define CI_VFIO_DMA_MAP_FLAG_READ (1u << 0)
#define CI_VFIO_DMA_MAP_FLAG_WRITE (1u << 1)
#define CI_VFIO_DMA_MAP_FLAG_VADDR (1u << 2)

struct ci_vfio_iommu_type1_dma_map {
  uint32_t argsz, flags;
  uint64_t vaddr, iova, size;
};

#define CI_VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP (1u << 0)
#define CI_VFIO_DMA_UNMAP_FLAG_ALL (1u << 1)
#define CI_VFIO_DMA_UNMAP_FLAG_VADDR (1u << 2)

/// `size` comes back as the bytes unmapped.
struct ci_vfio_iommu_type1_dma_unmap {
  uint32_t argsz, flags;
  uint64_t iova, size;
};

/// `size` is that of the bitmap in bytes, one bit a `pgsize`.
struct ci_vfio_bitmap {
  uint64_t pgsize, size;
  uint64_t *_Nullable data;
};

#define CI_VFIO_IOMMU_DIRTY_PAGES_FLAG_START (1u << 0)
#define CI_VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP (1u << 1)
#define CI_VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP (1u << 2)

struct ci_vfio_iommu_type1_dirty_bitmap {
  uint32_t argsz, flags;
};

struct ci_vfio_iommu_type1_dirty_bitmap_get {
  uint64_t iova, size;
  struct ci_vfio_bitmap bitmap;
};

// Group

#define CI_VFIO_GROUP_FLAGS_VIABLE (1u << 0)
#define CI_VFIO_GROUP_FLAGS_CONTAINER_SET (1u << 1)

struct ci_vfio_group_status {
  uint32_t argsz, flags;
};

// Device

#define CI_VFIO_DEVICE_FLAGS_RESET (1u << 0)
#define CI_VFIO_DEVICE_FLAGS_PCI (1u << 1)
#define CI_VFIO_DEVICE_FLAGS_PLATFORM (1u << 2)
#define CI_VFIO_DEVICE_FLAGS_AMBA (1u << 3)
#define CI_VFIO_DEVICE_FLAGS_CCW (1u << 4)
#define CI_VFIO_DEVICE_FLAGS_AP (1u << 5)
#define CI_VFIO_DEVICE_FLAGS_FSL_MC (1u << 6)
#define CI_VFIO_DEVICE_FLAGS_CAPS (1u << 7)
#define CI_VFIO_DEVICE_FLAGS_CDX (1u << 8)

struct ci_vfio_device_info {
  uint32_t argsz, flags, num_regions, num_irqs, cap_offset, pad;
};

#define CI_VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP 5u
#define CI_VFIO_PCI_ATOMIC_COMP32 (1u << 0)
#define CI_VFIO_PCI_ATOMIC_COMP64 (1u << 1)
#define CI_VFIO_PCI_ATOMIC_COMP128 (1u << 2)

struct ci_vfio_device_info_cap_pci_atomic_comp {
  struct ci_vfio_info_cap_header header;
  uint32_t flags, reserved;
};

// Regions

#define CI_VFIO_PCI_BAR0_REGION_INDEX 0u
#define CI_VFIO_PCI_BAR1_REGION_INDEX 1u
#define CI_VFIO_PCI_BAR2_REGION_INDEX 2u
#define CI_VFIO_PCI_BAR3_REGION_INDEX 3u
#define CI_VFIO_PCI_BAR4_REGION_INDEX 4u
#define CI_VFIO_PCI_BAR5_REGION_INDEX 5u
#define CI_VFIO_PCI_ROM_REGION_INDEX 6u
#define CI_VFIO_PCI_CONFIG_REGION_INDEX 7u
#define CI_VFIO_PCI_VGA_REGION_INDEX 8u
#define CI_VFIO_PCI_NUM_REGIONS 9u

#define CI_VFIO_REGION_INFO_FLAG_READ (1u << 0)
#define CI_VFIO_REGION_INFO_FLAG_WRITE (1u << 1)
#define CI_VFIO_REGION_INFO_FLAG_MMAP (1u << 2)
#define CI_VFIO_REGION_INFO_FLAG_CAPS (1u << 3)

/// `offset` is where pread, pwrite and mmap of the device's descriptor find the region.
struct ci_vfio_region_info {
  uint32_t argsz, flags, index, cap_offset;
  uint64_t size, offset;
};

#define CI_VFIO_REGION_INFO_CAP_SPARSE_MMAP 1u
#define CI_VFIO_REGION_INFO_CAP_TYPE 2u
#define CI_VFIO_REGION_INFO_CAP_MSIX_MAPPABLE 3u

struct ci_vfio_region_sparse_mmap_area {
  uint64_t offset, size;
};

/// Followed by `nr_areas` areas.
struct ci_vfio_region_info_cap_sparse_mmap {
  struct ci_vfio_info_cap_header header;
  uint32_t nr_areas, reserved;
};

struct ci_vfio_region_info_cap_type {
  struct ci_vfio_info_cap_header header;
  uint32_t type, subtype;
};

// Interrupts

#define CI_VFIO_PCI_INTX_IRQ_INDEX 0u
#define CI_VFIO_PCI_MSI_IRQ_INDEX 1u
#define CI_VFIO_PCI_MSIX_IRQ_INDEX 2u
#define CI_VFIO_PCI_ERR_IRQ_INDEX 3u
#define CI_VFIO_PCI_REQ_IRQ_INDEX 4u
#define CI_VFIO_PCI_NUM_IRQS 5u

#define CI_VFIO_IRQ_INFO_EVENTFD (1u << 0)
#define CI_VFIO_IRQ_INFO_MASKABLE (1u << 1)
#define CI_VFIO_IRQ_INFO_AUTOMASKED (1u << 2)
#define CI_VFIO_IRQ_INFO_NORESIZE (1u << 3)

struct ci_vfio_irq_info {
  uint32_t argsz, flags, index, count;
};

#define CI_VFIO_IRQ_SET_DATA_NONE (1u << 0)
#define CI_VFIO_IRQ_SET_DATA_BOOL (1u << 1)
#define CI_VFIO_IRQ_SET_DATA_EVENTFD (1u << 2)
#define CI_VFIO_IRQ_SET_ACTION_MASK (1u << 3)
#define CI_VFIO_IRQ_SET_ACTION_UNMASK (1u << 4)
#define CI_VFIO_IRQ_SET_ACTION_TRIGGER (1u << 5)
#define CI_VFIO_IRQ_SET_DATA_TYPE_MASK 0x07u
#define CI_VFIO_IRQ_SET_ACTION_TYPE_MASK 0x38u

/// Followed by `count` bytes (BOOL) or descriptors (EVENTFD).
struct ci_vfio_irq_set {
  uint32_t argsz, flags, index, start, count;
};

// Reset of a whole bus or slot

#define CI_VFIO_PCI_HOT_RESET_FLAG_DEV_ID (1u << 0)
#define CI_VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED (1u << 1)
#define CI_VFIO_PCI_DEVID_OWNED 0u
#define CI_VFIO_PCI_DEVID_NOT_OWNED 0xffffffffu

/// `devid` is the iommufd's id of the device with FLAG_DEV_ID, else the group's number (the kernel's
/// group_id).
struct ci_vfio_pci_dependent_device {
  uint32_t devid;
  uint16_t segment;
  uint8_t bus, devfn;
};

/// Followed by `count` dependent devices.
struct ci_vfio_pci_hot_reset_info {
  uint32_t argsz, flags, count;
};

/// Followed by `count` descriptors of groups.
struct ci_vfio_pci_hot_reset {
  uint32_t argsz, flags, count;
};

// A register write that a doorbell's eventfd makes

#define CI_VFIO_DEVICE_IOEVENTFD_8 (1u << 0)
#define CI_VFIO_DEVICE_IOEVENTFD_16 (1u << 1)
#define CI_VFIO_DEVICE_IOEVENTFD_32 (1u << 2)
#define CI_VFIO_DEVICE_IOEVENTFD_64 (1u << 3)
#define CI_VFIO_DEVICE_IOEVENTFD_SIZE_MASK 0xfu

struct ci_vfio_device_ioeventfd {
  uint32_t argsz, flags;
  uint64_t offset, data;
  int32_t fd;
  uint32_t reserved;
};

// iommufd

#define CI_VFIO_DEVICE_BIND_FLAG_TOKEN (1u << 0)

/// `token_uuid_ptr` is the address of the 16 bytes of a VF token.
struct ci_vfio_device_bind_iommufd {
  uint32_t argsz, flags;
  int32_t iommufd;
  uint32_t out_devid;
  uint64_t token_uuid_ptr;
};

#define CI_VFIO_DEVICE_ATTACH_PASID (1u << 0)

/// `pt_id` is an IOAS or a HWPT; it comes back as the HWPT that was attached.
struct ci_vfio_device_attach_iommufd_pt {
  uint32_t argsz, flags, pt_id, pasid;
};

#define CI_VFIO_DEVICE_DETACH_PASID (1u << 0)

struct ci_vfio_device_detach_iommufd_pt {
  uint32_t argsz, flags, pasid;
};
