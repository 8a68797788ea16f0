// The iommufd uAPI: numbers, flags and structures of Linux 7.2, declared here because a build machine's
// own headers may be older (Debian 12 has no linux/iommufd.h). Names are the kernel's with ci_ or CI_ before
// them. Tests/ABI compares every line with the kernel's own headers.
#pragma once
#include "base.h"

// The requests. `_IO` in C, not a literal and not Swift arithmetic: C computes them.
enum {
  CI_IOMMU_DESTROY = _IO(';', 0x80),
  CI_IOMMU_IOAS_ALLOC = _IO(';', 0x81),
  CI_IOMMU_IOAS_ALLOW_IOVAS = _IO(';', 0x82),
  CI_IOMMU_IOAS_COPY = _IO(';', 0x83),
  CI_IOMMU_IOAS_IOVA_RANGES = _IO(';', 0x84),
  CI_IOMMU_IOAS_MAP = _IO(';', 0x85),
  CI_IOMMU_IOAS_UNMAP = _IO(';', 0x86),
  CI_IOMMU_OPTION = _IO(';', 0x87),
  CI_IOMMU_VFIO_IOAS = _IO(';', 0x88),
  CI_IOMMU_HWPT_ALLOC = _IO(';', 0x89),
  CI_IOMMU_GET_HW_INFO = _IO(';', 0x8a),
  CI_IOMMU_HWPT_SET_DIRTY_TRACKING = _IO(';', 0x8b),
  CI_IOMMU_HWPT_GET_DIRTY_BITMAP = _IO(';', 0x8c),
  CI_IOMMU_HWPT_INVALIDATE = _IO(';', 0x8d),
  CI_IOMMU_FAULT_QUEUE_ALLOC = _IO(';', 0x8e),
  CI_IOMMU_IOAS_MAP_FILE = _IO(';', 0x8f),
  CI_IOMMU_VIOMMU_ALLOC = _IO(';', 0x90),
  CI_IOMMU_VDEVICE_ALLOC = _IO(';', 0x91),
  CI_IOMMU_IOAS_CHANGE_PROCESS = _IO(';', 0x92),
  CI_IOMMU_VEVENTQ_ALLOC = _IO(';', 0x93),
  CI_IOMMU_HW_QUEUE_ALLOC = _IO(';', 0x94),
};

// Every argument begins with its own size; the ioctl functions of iommufd.h fill it in. Fields named out_ are
// written by the kernel, `__reserved` stays 0.

struct ci_iommu_destroy {
  uint32_t size, id;
};

// I/O address spaces

struct ci_iommu_ioas_alloc {
  uint32_t size, flags, out_ioas_id;
};

struct ci_iommu_iova_range {
  uint64_t start, last;  // inclusive
};

/// `allowed_iovas` is the address of `num_iovas` ranges; too few give -EMSGSIZE and the number needed.
struct ci_iommu_ioas_iova_ranges {
  uint32_t size, ioas_id, num_iovas, __reserved;
  uint64_t allowed_iovas, out_iova_alignment;
};

struct ci_iommu_ioas_allow_iovas {
  uint32_t size, ioas_id, num_iovas, __reserved;
  uint64_t allowed_iovas;
};

#define CI_IOMMU_IOAS_MAP_FIXED_IOVA (1u << 0)
#define CI_IOMMU_IOAS_MAP_WRITEABLE (1u << 1)
#define CI_IOMMU_IOAS_MAP_READABLE (1u << 2)

struct ci_iommu_ioas_map {
  uint32_t size, flags, ioas_id, __reserved;
  uint64_t user_va, length, iova;
};

struct ci_iommu_ioas_map_file {
  uint32_t size, flags, ioas_id;
  int32_t fd;
  uint64_t start, length, iova;
};

struct ci_iommu_ioas_copy {
  uint32_t size, flags, dst_ioas_id, src_ioas_id;
  uint64_t length, dst_iova, src_iova;
};

/// `iova` 0 with `length` 2^64 - 1 unmaps everything; `length` comes back as the bytes unmapped.
struct ci_iommu_ioas_unmap {
  uint32_t size, ioas_id;
  uint64_t iova, length;
};

struct ci_iommu_ioas_change_process {
  uint32_t size, __reserved;
};

#define CI_IOMMU_OPTION_RLIMIT_MODE 0u
#define CI_IOMMU_OPTION_HUGE_PAGES 1u
#define CI_IOMMU_OPTION_OP_SET 0u
#define CI_IOMMU_OPTION_OP_GET 1u

struct ci_iommu_option {
  uint32_t size, option_id;
  uint16_t op, __reserved;
  uint32_t object_id;
  uint64_t val64;
};

#define CI_IOMMU_VFIO_IOAS_GET 0u
#define CI_IOMMU_VFIO_IOAS_SET 1u
#define CI_IOMMU_VFIO_IOAS_CLEAR 2u

struct ci_iommu_vfio_ioas {
  uint32_t size, ioas_id;
  uint16_t op, __reserved;
};

// Hardware page tables

#define CI_IOMMU_HWPT_ALLOC_NEST_PARENT (1u << 0)
#define CI_IOMMU_HWPT_ALLOC_DIRTY_TRACKING (1u << 1)
#define CI_IOMMU_HWPT_FAULT_ID_VALID (1u << 2)
#define CI_IOMMU_HWPT_ALLOC_PASID (1u << 3)

#define CI_IOMMU_HWPT_DATA_NONE 0u
#define CI_IOMMU_HWPT_DATA_VTD_S1 1u
#define CI_IOMMU_HWPT_DATA_ARM_SMMUV3 2u
#define CI_IOMMU_HWPT_DATA_AMD_GUEST 3u

/// `pt_id` is an IOAS, a nest parent or a vIOMMU; `data_uptr` the address of one of the payloads below.
struct ci_iommu_hwpt_alloc {
  uint32_t size, flags, dev_id, pt_id, out_hwpt_id, __reserved, data_type, data_len;
  uint64_t data_uptr;
  uint32_t fault_id, __reserved2;
};

#define CI_IOMMU_VTD_S1_SRE (1ull << 0)
#define CI_IOMMU_VTD_S1_EAFE (1ull << 1)
#define CI_IOMMU_VTD_S1_WPE (1ull << 2)

struct ci_iommu_hwpt_vtd_s1 {
  uint64_t flags, pgtbl_addr;
  uint32_t addr_width, __reserved;
};

/// The first two words of a stream table entry, little endian.
struct ci_iommu_hwpt_arm_smmuv3 {
  uint64_t ste[2];
};

struct ci_iommu_hwpt_amd_guest {
  uint64_t dte[4];
};

#define CI_IOMMU_HWPT_DIRTY_TRACKING_ENABLE 1u

struct ci_iommu_hwpt_set_dirty_tracking {
  uint32_t size, flags, hwpt_id, __reserved;
};

#define CI_IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR 1u

/// `data` is the address of the bitmap, one bit a `page_size`.
struct ci_iommu_hwpt_get_dirty_bitmap {
  uint32_t size, hwpt_id, flags, __reserved;
  uint64_t iova, length, page_size, data;
};

// Invalidation

#define CI_IOMMU_HWPT_INVALIDATE_DATA_VTD_S1 0u
#define CI_IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3 1u

/// `hwpt_id` is a nested HWPT (VT-d) or a vIOMMU (SMMUv3); `entry_num` comes back as the entries handled.
struct ci_iommu_hwpt_invalidate {
  uint32_t size, hwpt_id;
  uint64_t data_uptr;
  uint32_t data_type, entry_len, entry_num, __reserved;
};

#define CI_IOMMU_VTD_INV_FLAGS_LEAF (1u << 0)

/// Everything: `addr` 0 with `npages` 2^64 - 1.
struct ci_iommu_hwpt_vtd_s1_invalidate {
  uint64_t addr, npages;
  uint32_t flags, __reserved;
};

/// One command of the SMMU's command queue, little endian.
struct ci_iommu_viommu_arm_smmuv3_invalidate {
  uint64_t cmd[2];
};

// What the hardware is

#define CI_IOMMU_HW_INFO_TYPE_NONE 0u
#define CI_IOMMU_HW_INFO_TYPE_DEFAULT 0u
#define CI_IOMMU_HW_INFO_TYPE_INTEL_VTD 1u
#define CI_IOMMU_HW_INFO_TYPE_ARM_SMMUV3 2u
#define CI_IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV 3u
#define CI_IOMMU_HW_INFO_TYPE_AMD 4u

#define CI_IOMMU_HW_INFO_FLAG_INPUT_TYPE (1u << 0)

#define CI_IOMMU_HW_CAP_DIRTY_TRACKING (1ull << 0)
#define CI_IOMMU_HW_CAP_PCI_PASID_EXEC (1ull << 1)
#define CI_IOMMU_HW_CAP_PCI_PASID_PRIV (1ull << 2)
#define CI_IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED (1ull << 3)

/// `data_type` is in_data_type (with FLAG_INPUT_TYPE) and out_data_type, which share their place.
struct ci_iommu_hw_info {
  uint32_t size, flags, dev_id, data_len;
  uint64_t data_uptr;
  uint32_t data_type;
  uint8_t out_max_pasid_log2, __reserved[3];
  uint64_t out_capabilities;
};

#define CI_IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17 (1u << 0)

struct ci_iommu_hw_info_vtd {
  uint32_t flags, __reserved;
  uint64_t cap_reg, ecap_reg;
};

struct ci_iommu_hw_info_arm_smmuv3 {
  uint32_t flags, __reserved, idr[6], iidr, aidr;
};

struct ci_iommu_hw_info_tegra241_cmdqv {
  uint32_t flags;
  uint8_t version, log2vcmdqs, log2vsids, __reserved;
};

struct ci_iommu_hw_info_amd {
  uint64_t efr, efr2;
};

// Page faults that the process answers

struct ci_iommu_fault_alloc {
  uint32_t size, flags, out_fault_id, out_fault_fd;
};

#define CI_IOMMU_PGFAULT_FLAGS_PASID_VALID (1u << 0)
#define CI_IOMMU_PGFAULT_FLAGS_LAST_PAGE (1u << 1)
#define CI_IOMMU_PGFAULT_PERM_READ (1u << 0)
#define CI_IOMMU_PGFAULT_PERM_WRITE (1u << 1)
#define CI_IOMMU_PGFAULT_PERM_EXEC (1u << 2)
#define CI_IOMMU_PGFAULT_PERM_PRIV (1u << 3)

/// A record read from a fault queue's descriptor.
struct ci_iommu_hwpt_pgfault {
  uint32_t flags, dev_id, pasid, grpid, perm, __reserved;
  uint64_t addr;
  uint32_t length, cookie;
};

#define CI_IOMMUFD_PAGE_RESP_SUCCESS 0u
#define CI_IOMMUFD_PAGE_RESP_INVALID 1u

/// The answer, written to the same descriptor.
struct ci_iommu_hwpt_page_response {
  uint32_t cookie, code;
};

// Virtual IOMMUs: what stage 1 on SMMUv3 hangs from

#define CI_IOMMU_VIOMMU_TYPE_DEFAULT 0u
#define CI_IOMMU_VIOMMU_TYPE_ARM_SMMUV3 1u
#define CI_IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV 2u

struct ci_iommu_viommu_alloc {
  uint32_t size, flags, type, dev_id, hwpt_id, out_viommu_id, data_len, __reserved;
  uint64_t data_uptr;
};

struct ci_iommu_viommu_tegra241_cmdqv {
  uint64_t out_vintf_mmap_offset, out_vintf_mmap_length;
};

struct ci_iommu_vdevice_alloc {
  uint32_t size, viommu_id, dev_id, out_vdevice_id;
  uint64_t virt_id;
};

#define CI_IOMMU_VEVENTQ_TYPE_DEFAULT 0u
#define CI_IOMMU_VEVENTQ_TYPE_ARM_SMMUV3 1u
#define CI_IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV 2u

struct ci_iommu_veventq_alloc {
  uint32_t size, flags, viommu_id, type, veventq_depth, out_veventq_id, out_veventq_fd, __reserved;
};

#define CI_IOMMU_VEVENTQ_FLAG_LOST_EVENTS (1u << 0)

/// Stands before each record read from an event queue; with LOST_EVENTS no record follows.
struct ci_iommufd_vevent_header {
  uint32_t flags, sequence;
};

struct ci_iommu_vevent_arm_smmuv3 {
  uint64_t evt[4];
};

struct ci_iommu_vevent_tegra241_cmdqv {
  uint64_t lvcmdq_err_map[2];
};

#define CI_IOMMU_HW_QUEUE_TYPE_DEFAULT 0u
#define CI_IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV 1u

struct ci_iommu_hw_queue_alloc {
  uint32_t size, flags, viommu_id, type, index, out_hw_queue_id;
  uint64_t nesting_parent_iova, length;
};
