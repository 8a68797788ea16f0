package import IOMMU

extension FaultingKernel {
  package func createMemoryFile(
    _ name: String, byteCount: Int, hugePageShift: Int?
  ) throws(Errno) -> Int32 {
    try pass { () throws(Errno) in
      try base.createMemoryFile(name, byteCount: byteCount, hugePageShift: hugePageShift)
    }
  }

  package func mapMemory(
    byteCount: Int, descriptor: Int32, offset: UInt64
  ) throws(Errno) -> UnsafeMutableRawPointer {
    try unsafe pass { () throws(Errno) in
      try unsafe base.mapMemory(byteCount: byteCount, descriptor: descriptor, offset: offset)
    }
  }

  package func coverMemory(_ address: UnsafeMutableRawPointer, byteCount: Int) throws(Errno) {
    try pass { () throws(Errno) in try unsafe base.coverMemory(address, byteCount: byteCount) }
  }

  package func unmapMemory(_ address: UnsafeMutableRawPointer, byteCount: Int) {
    note()
    unsafe base.unmapMemory(address, byteCount: byteCount)
  }

  package func advise(
    _ address: UnsafeMutableRawPointer, byteCount: Int, _ advice: MemoryAdvice
  ) throws(Errno) {
    try pass { () throws(Errno) in try unsafe base.advise(address, byteCount: byteCount, advice) }
  }

  package func bindMemory(_ address: UnsafeMutableRawPointer, byteCount: Int, node: Int) throws(Errno) {
    try pass { () throws(Errno) in try unsafe base.bindMemory(address, byteCount: byteCount, node: node) }
  }

  package func protectMemory(
    _ address: UnsafeMutableRawPointer, byteCount: Int, _ protection: MemoryProtection
  ) throws(Errno) {
    try pass { () throws(Errno) in try unsafe base.protectMemory(address, byteCount: byteCount, protection) }
  }

  package func pageMap(_ address: UInt64, pageCount: Int) throws(Errno) -> [UInt64] {
    try pass { () throws(Errno) in try base.pageMap(address, pageCount: pageCount) }
  }

  package func isResident(_ page: UInt64) throws(Errno) -> Bool {
    try pass { () throws(Errno) in try base.isResident(page) }
  }

  package func readMemory(_ address: UInt64, byteCount: Int) throws(Errno) -> [UInt8] {
    try pass { () throws(Errno) in try base.readMemory(address, byteCount: byteCount) }
  }

  package var pageByteCount: Int { base.pageByteCount }

  package var memoryByteCount: UInt64 { base.memoryByteCount }

  package func memoryLockLimit() -> UInt64 {
    note()
    return base.memoryLockLimit()
  }

  package func hasCapability(_ capability: Int) -> Bool {
    note()
    return base.hasCapability(capability)
  }

  package func effectiveUser() -> UInt32 {
    note()
    return base.effectiveUser()
  }
}

extension FaultingKernel {
  package func createEvent() throws(Errno) -> Int32 {
    try pass { () throws(Errno) in try base.createEvent() }
  }

  package func takeEvent(_ descriptor: Int32) throws(Errno) -> UInt64? {
    try pass { () throws(Errno) in try base.takeEvent(descriptor) }
  }

  package func signalEvent(_ descriptor: Int32) throws(Errno) {
    try pass { () throws(Errno) in try base.signalEvent(descriptor) }
  }

  package func waitReadable(_ descriptors: [Int32], timeout: Duration?) throws(Errno) -> Int? {
    try pass { () throws(Errno) in try base.waitReadable(descriptors, timeout: timeout) }
  }

  package func now() -> UInt64 {
    note()
    return base.now()
  }

  package func coarseNow() -> UInt64 {
    note()
    return base.coarseNow()
  }

  package func costClock() -> UInt64 {
    note()
    return base.costClock()
  }

  package func sleep(_ duration: Duration) {
    note()
    base.sleep(duration)
  }

  package func kernelLog(from sequence: UInt64) throws(Errno) -> [KernelLogLine] {
    try pass { () throws(Errno) in try base.kernelLog(from: sequence) }
  }
}
