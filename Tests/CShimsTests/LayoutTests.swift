import CIOMMU
import Testing

/// The sizes and offsets that the kernel expects, as Swift sees them: the importer must not have lost a field.
@Suite("Layout of the uAPI structures in Swift")
struct LayoutTests {
  @Test func iommufdSizes() {
    expect(ci_iommu_destroy.self, 8)
    expect(ci_iommu_ioas_alloc.self, 12)
    expect(ci_iommu_iova_range.self, 16)
    expect(ci_iommu_ioas_allow_iovas.self, 24)
    expect(ci_iommu_ioas_copy.self, 40)
    expect(ci_iommu_ioas_iova_ranges.self, 32)
    expect(ci_iommu_ioas_map.self, 40)
    expect(ci_iommu_ioas_map_file.self, 40)
    expect(ci_iommu_ioas_unmap.self, 24)
    expect(ci_iommu_ioas_change_process.self, 8)
    expect(ci_iommu_option.self, 24)
    expect(ci_iommu_vfio_ioas.self, 12)
    expect(ci_iommu_hwpt_alloc.self, 48)
    expect(ci_iommu_hw_info.self, 40)
    expect(ci_iommu_hwpt_set_dirty_tracking.self, 16)
    expect(ci_iommu_hwpt_get_dirty_bitmap.self, 48)
    expect(ci_iommu_hwpt_invalidate.self, 32)
    expect(ci_iommu_fault_alloc.self, 16)
    expect(ci_iommu_viommu_alloc.self, 40)
    expect(ci_iommu_vdevice_alloc.self, 24)
    expect(ci_iommu_veventq_alloc.self, 32)
    expect(ci_iommu_hw_queue_alloc.self, 40)
  }

  @Test func iommufdPayloads() {
    expect(ci_iommu_hwpt_vtd_s1.self, 24)
    expect(ci_iommu_hwpt_arm_smmuv3.self, 16)
    expect(ci_iommu_hwpt_amd_guest.self, 32)
    expect(ci_iommu_hw_info_vtd.self, 24)
    expect(ci_iommu_hw_info_arm_smmuv3.self, 40)
    expect(ci_iommu_hw_info_tegra241_cmdqv.self, 8)
    expect(ci_iommu_hw_info_amd.self, 16)
    expect(ci_iommu_hwpt_vtd_s1_invalidate.self, 24)
    expect(ci_iommu_viommu_arm_smmuv3_invalidate.self, 16)
    expect(ci_iommu_hwpt_pgfault.self, 40)
    expect(ci_iommu_hwpt_page_response.self, 8)
    expect(ci_iommufd_vevent_header.self, 8)
    expect(ci_iommu_vevent_arm_smmuv3.self, 32)
    expect(ci_iommu_vevent_tegra241_cmdqv.self, 16)
    expect(ci_iommu_viommu_tegra241_cmdqv.self, 16)
  }

  @Test func vfioSizes() {
    expect(ci_vfio_iommu_type1_info.self, 24)
    expect(ci_vfio_iommu_type1_dma_map.self, 32)
    expect(ci_vfio_iommu_type1_dma_unmap.self, 24)
    unsafe expect(ci_vfio_bitmap.self, 24)
    expect(ci_vfio_group_status.self, 8)
    expect(ci_vfio_device_info.self, 24)
    expect(ci_vfio_region_info.self, 32)
    expect(ci_vfio_irq_info.self, 16)
    expect(ci_vfio_irq_set.self, 20)
    expect(ci_vfio_pci_dependent_device.self, 8)
    expect(ci_vfio_pci_hot_reset_info.self, 12)
    expect(ci_vfio_device_ioeventfd.self, 32)
    expect(ci_vfio_device_feature.self, 8)
    expect(ci_vfio_device_feature_dma_buf.self, 16)
    expect(ci_vfio_device_bind_iommufd.self, 24)
    expect(ci_vfio_device_attach_iommufd_pt.self, 16)
    expect(ci_vfio_device_detach_iommufd_pt.self, 12)
    expect(ci_vfio_precopy_info.self, 24)
    // C pads this one; Swift's stride is C's sizeof.
    expect(ci_vfio_iommu_type1_info_cap_migration.self, 32)
  }

  @Test func offsets() {
    #expect(MemoryLayout<ci_iommu_ioas_map>.offset(of: \.user_va) == 16)
    #expect(MemoryLayout<ci_iommu_ioas_map>.offset(of: \.iova) == 32)
    #expect(MemoryLayout<ci_iommu_ioas_map_file>.offset(of: \.fd) == 12)
    #expect(MemoryLayout<ci_iommu_option>.offset(of: \.val64) == 16)
    #expect(MemoryLayout<ci_iommu_hwpt_alloc>.offset(of: \.data_uptr) == 32)
    #expect(MemoryLayout<ci_iommu_hw_info>.offset(of: \.data_type) == 24)
    #expect(MemoryLayout<ci_iommu_hw_info>.offset(of: \.out_max_pasid_log2) == 28)
    #expect(MemoryLayout<ci_iommu_hwpt_invalidate>.offset(of: \.entry_num) == 24)
    #expect(MemoryLayout<ci_iommu_hwpt_pgfault>.offset(of: \.addr) == 24)
    #expect(MemoryLayout<ci_vfio_region_info>.offset(of: \.offset) == 24)
    #expect(MemoryLayout<ci_vfio_device_bind_iommufd>.offset(of: \.token_uuid_ptr) == 16)
    #expect(MemoryLayout<ci_vfio_iommu_type1_info_cap_migration>.offset(of: \.pgsize_bitmap) == 16)
    #expect(MemoryLayout<ci_vfio_pci_dependent_device>.offset(of: \.devfn) == 7)
  }

  @Test("Requests have the numbers of the kernel")
  func requests() {
    #expect(CI_IOMMU_DESTROY == 0x3b80 && CI_IOMMU_HW_QUEUE_ALLOC == 0x3b94)
    #expect(CI_VFIO_GET_API_VERSION == 0x3b64 && CI_VFIO_MIG_GET_PRECOPY_INFO == 0x3b79)
  }

  @Test("The functions fill in the length of their argument")
  func lengths() {
    var map = ci_iommu_ioas_map()
    _ = unsafe ci_iommu_ioas_map(-1, &map)
    #expect(map.size == 40)
    var attach = ci_vfio_device_attach_iommufd_pt()
    _ = unsafe ci_vfio_device_attach_iommufd_pt(-1, &attach)
    #expect(attach.argsz == 16)
    var region = ci_vfio_region_info()
    _ = unsafe ci_vfio_device_get_region_info(-1, &region, 32)
    #expect(region.argsz == 32)
  }

  private func expect<T>(_ type: T.Type, _ size: Int) {
    #expect(MemoryLayout<T>.size == size && MemoryLayout<T>.stride == size, "\(type)")
  }
}
