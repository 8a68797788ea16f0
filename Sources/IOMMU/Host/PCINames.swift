#if PCINames
  import CPCI
#endif

/// Names of vendors and devices from pci.ids, looked up by libpci; without the trait `PCINames` there are none.
///
/// One handle of libpci, for the calls of one thread; nothing is shared between two of these, so that any number of
/// threads may each have one. Making it loads pci.ids at the first look-up, some 15 ms.
@safe struct PCINames: ~Copyable {
  #if PCINames
    private let access: UnsafeMutablePointer<pci_access>

    init() { unsafe access = ci_pci_open_names() }
    deinit { unsafe pci_cleanup(access) }

    func vendor(_ vendor: UInt16) -> String? {
      unsafe text { unsafe ci_pci_vendor_name(access, $0, $1, vendor) }
    }

    func device(_ vendor: UInt16, _ device: UInt16) -> String? {
      unsafe text { unsafe ci_pci_device_name(access, $0, $1, vendor, device) }
    }

    private func text(_ ask: (UnsafeMutablePointer<CChar>, Int32) -> UnsafePointer<CChar>?) -> String? {
      unsafe withUnsafeTemporaryAllocation(of: CChar.self, capacity: 256) { buffer in
        unsafe ask(buffer.baseAddress!, Int32(buffer.count)).flatMap { unsafe String(validatingCString: $0) }
      }
    }
  #else
    func vendor(_ vendor: UInt16) -> String? { nil }
    func device(_ vendor: UInt16, _ device: UInt16) -> String? { nil }
  #endif
}

extension Host {
  /// Fills in the names of a batch of devices.
  func name(_ devices: inout [PCIDevice]) {
    #if PCINames
      let names = PCINames()
      for index in devices.indices {
        guard let vendor = devices[index].vendor else { continue }
        devices[index].vendorName = names.vendor(vendor)
        guard let device = devices[index].device else { continue }
        devices[index].deviceName = names.device(vendor, device)
      }
    #endif
  }
}
