#if PCINames
  import CPCI
#endif

/// Names of vendors and devices from pci.ids, looked up by libpci; without the trait `PCINames` there are none.
///
/// One handle of libpci, for the calls of one thread; nothing is shared between two of these, so that any number of
/// threads may each have one. Making it loads pci.ids at the first look-up, some 15 ms.
@safe struct PCINames: ~Copyable {
  #if PCINames
    private let access: UnsafeMutablePointer<pci_access>?

    init() { unsafe access = cpci_open() }
    deinit { if let access = unsafe access { unsafe pci_cleanup(access) } }

    func vendor(_ vendor: UInt16) -> String? { look(vendor, nil) }
    func device(_ vendor: UInt16, _ device: UInt16) -> String? { look(vendor, device) }

    private func look(_ vendor: UInt16, _ device: UInt16?) -> String? {
      guard let access = unsafe access else { return nil }
      return unsafe withUnsafeTemporaryAllocation(of: CChar.self, capacity: 256) { buffer in
        let found = unsafe cpci_name(
          access, buffer.baseAddress!, Int32(buffer.count), Int32(vendor), device.map(Int32.init) ?? -1)
        return unsafe found.flatMap { unsafe String(validatingCString: $0) }
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
