import CIOMMU
package import IOMMU

extension SimulatedKernel {
  package func createMemoryFile(
    _ name: String, byteCount: Int, hugePageShift: Int?
  ) throws(Errno) -> Int32 {
    let file = try HostSystem.createMemoryFile(name, byteCount: byteCount, hugePageShift: hugePageShift)
    let pageByteCount: UInt64 = hugePageShift.map { 1 << UInt64($0) } ?? 4096
    locked { $0.memory.files[file] = pageByteCount }
    return file
  }

  package func mapMemory(
    byteCount: Int, descriptor: Int32, offset: UInt64
  ) throws(Errno) -> UnsafeMutableRawPointer {
    let base = try HostSystem.map(
      byteCount: byteCount, descriptor: descriptor, offset: offset, isWritable: true)
    locked { $0.memory.add(base, byteCount: byteCount, of: descriptor < 0 ? nil : (descriptor, offset)) }
    return unsafe UnsafeMutableRawPointer(bitPattern: base)!
  }

  package func coverMemory(_ base: UnsafeMutableRawPointer, byteCount: Int) throws(Errno) {
    try HostSystem.cover(UInt(bitPattern: base), byteCount: byteCount)
  }

  package func unmapMemory(_ base: UnsafeMutableRawPointer, byteCount: Int) {
    let address = UInt(bitPattern: base)
    locked { $0.memory.remove(address, byteCount: byteCount) }
  }

  package func advise(
    _ base: UnsafeMutableRawPointer, byteCount: Int, _ advice: MemoryAdvice
  ) throws(Errno) {
    let number: Int32 =
      switch advice {
      case .dontFork: CI_MADV_DONTFORK
      case .wipeOnFork: CI_MADV_WIPEONFORK
      case .hugePage: CI_MADV_HUGEPAGE
      case .populateWrite: CI_MADV_POPULATE_WRITE
      }
    try HostSystem.advise(UInt(bitPattern: base), byteCount: byteCount, number)
  }

  package func bindMemory(_ base: UnsafeMutableRawPointer, byteCount: Int, node: Int) throws(Errno) {
    // The simulated machine's nodes are not this machine's.
    guard node >= 0, node < 64 else { throw .invalidArgument }
  }

  package func protectMemory(
    _ base: UnsafeMutableRawPointer, byteCount: Int, _ protection: MemoryProtection
  ) throws(Errno) {
    let address = UInt(bitPattern: base)
    // Devices reach the memory by a mapping of their own from now on.
    try locked { state throws(Errno) in try state.memory.makeAlias(for: address, byteCount: byteCount) }
    try HostSystem.protect(address, byteCount: byteCount, protection.bits)
  }

  package func pageMap(_ address: UInt64, pageCount: Int) throws(Errno) -> [UInt64] {
    try LiveKernel.pageMap(address, pageCount: pageCount)
  }

  package func isResident(_ page: UInt64) throws(Errno) -> Bool { try LiveKernel.isResident(page) }

  package func readMemory(_ address: UInt64, byteCount: Int) throws(Errno) -> [UInt8] {
    try LiveKernel.readMemory(address, byteCount: byteCount)
  }

  package var pageByteCount: Int { Int(ci_page_size()) }

  package var memoryByteCount: UInt64 { locked { $0.machine.memoryByteCount } ?? MachineMemory.byteCount }

  package func memoryLockLimit() -> UInt64 { locked { $0.memoryLock.limit } }

  package func hasCapability(_ capability: Int) -> Bool {
    locked { state in
      capability == 14 ? state.memoryLock.hasCapability : state.machine.user == 0
    }
  }

  package func effectiveUser() -> UInt32 { locked { $0.machine.user } }
}
