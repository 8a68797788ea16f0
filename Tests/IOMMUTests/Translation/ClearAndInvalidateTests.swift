import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// The two halves of an unmap apart, as whoever puts invalidations off uses them.
@Suite struct ClearAndInvalidateTests {
  /// The translation itself with an edu device attached, no domain over it.
  struct Rig {
    let machine = SimulatedHost(devices: [ProcessOwnedTests.address: EduModel(addressBits: 64)])
    let kernel: FaultingKernel
    let translation: ProcessOwnedFlat
    let attachment: IOMMU.Attachment
    /// Where 64 KiB of memory begin.
    let host: UInt64

    init() throws {
      kernel = FaultingKernel(machine.kernel)
      translation = try ProcessOwnedFlat(kernel: kernel)
      let target = AttachTarget(
        address: PCIAddress(ProcessOwnedTests.address)!, group: 0, unit: nil, node: "/dev/vfio/devices/vfio0")
      attachment = try translation.attach(target)
      let memory = unsafe try kernel.mapMemory(byteCount: 64 << 10, descriptor: -1, offset: 0)
      host = UInt64(UInt(bitPattern: memory))
      var command = UInt16(6)
      try unsafe withUnsafeBytes(of: &command) { bytes throws(Errno) in
        _ = try unsafe kernel.pwrite(attachment.descriptor, bytes, at: UInt64(VFIOPCI.config) << 40 | 4)
      }
    }

    subscript(offset: Int) -> UInt64 {
      get { unsafe UnsafeRawPointer(bitPattern: UInt(host))!.load(fromByteOffset: offset, as: UInt64.self) }
      nonmutating set {
        unsafe UnsafeMutableRawPointer(bitPattern: UInt(host))!.storeBytes(
          of: newValue, toByteOffset: offset, as: UInt64.self)
      }
    }

    func map(_ iova: UInt64, page: UInt64 = 0, pages: UInt64 = 1) throws(Errno) {
      try translation.map(
        iova: iova, address: host + page * 4096, byteCount: pages * 4096, access: .readWrite)
    }

    /// Whether a write of the device goes through.
    func writes(_ iova: UInt64) throws(Errno) -> Bool {
      let faults = machine.faults.count
      for (offset, value) in [(0x80, 0x40000), (0x88, iova), (0x90, 8), (0x98, 3)] as [(UInt64, UInt64)] {
        try unsafe withUnsafeBytes(of: value) { bytes throws(Errno) in
          _ = try unsafe kernel.pwrite(attachment.descriptor, bytes, at: offset)
        }
      }
      return machine.faults.count == faults
    }

    func close() {
      translation.detach(attachment)
      translation.close()
      unsafe kernel.unmapMemory(UnsafeMutableRawPointer(bitPattern: UInt(host))!, byteCount: 64 << 10)
      #expect(machine.isClean, "\(machine.kernel.census)")
    }
  }

  @Test func clearedIsReachableUntilInvalidated() throws {
    let rig = try Rig(), translation = rig.translation
    _ = try translation.register(address: rig.host, byteCount: 64 << 10, file: nil, areaByteCount: 16 << 10)
    for (index, iova) in [0x10_0000, 0x20_0000, 0x30_0000].enumerated() {
      try rig.map(UInt64(iova), page: UInt64(index) * 4, pages: 2)
      #expect(try rig.writes(UInt64(iova)))
    }
    rig.kernel.resetCounts()
    for iova in [0x10_0000, 0x20_0000, 0x30_0000] as [UInt64] {
      #expect(try translation.clear(iova: iova, byteCount: 8192) == 8192)
      #expect(try rig.writes(iova), "the cache serves it")
      #expect(try !rig.writes(iova + 4096), "this page never was in the cache")
    }
    #expect(rig.kernel.count(of: "hwptInvalidate") == 0 && translation.systemCalls == 0)
    try translation.invalidate(iova: 0x20_0000, byteCount: 8192)
    #expect(try rig.writes(0x10_0000) && !rig.writes(0x20_0000) && rig.writes(0x30_0000))
    try translation.invalidateAll()
    #expect(try !rig.writes(0x10_0000) && !rig.writes(0x30_0000))
    #expect(translation.invalidations == 2 && translation.syncs == 2 && translation.systemCalls == 2)
    #expect(rig.machine.counters.processInvalidations == 2 && rig.machine.counters.processSyncs == 2)
    rig.close()
  }

  /// A new mapping at a cleared address is not what the device sees before the invalidation: why nobody may have the address.
  @Test func theCacheServesWhatWasThere() throws {
    let rig = try Rig()
    _ = try rig.translation.register(address: rig.host, byteCount: 64 << 10, file: nil, areaByteCount: 64 << 10)
    try rig.map(0x10_0000, page: 1)
    #expect(try rig.writes(0x10_0000))
    (rig[4096], rig[8192]) = (1, 2)
    #expect(try rig.translation.clear(iova: 0x10_0000, byteCount: 4096) == 4096)
    try rig.map(0x10_0000, page: 2)
    #expect(try rig.writes(0x10_0000))
    #expect(rig[4096] == 0 && rig[8192] == 2, "edu's buffer is zero")
    try rig.translation.invalidate(iova: 0x10_0000, byteCount: 4096)
    #expect(try rig.writes(0x10_0000))
    #expect(rig[8192] == 0)
    rig.close()
  }

  /// Memory that a mapping registered for itself stays pinned until no entry for it can be cached.
  @Test func whatAMappingRegisteredGoesWithTheInvalidation() throws {
    let rig = try Rig(), translation = rig.translation
    for index in 0..<3 as Range<UInt64> {
      try rig.map(0x10_0000 * (index + 1), page: index)
      #expect(try translation.clear(iova: 0x10_0000 * (index + 1), byteCount: 4096) == 4096)
    }
    #expect(translation.implicitRegistrations == 3 && rig.machine.kernel.census.pinnedBytes == 3 * 4096)
    try translation.invalidate(iova: 0x20_0000, byteCount: 4096)
    #expect(rig.machine.kernel.census.pinnedBytes == 2 * 4096)
    // An invalidation that fails unregisters nothing, and loses nothing.
    rig.kernel.fail(1, of: "hwptInvalidate", with: .inputOutput)
    #expect(throws: Errno.inputOutput) { try translation.invalidateAll() }
    #expect(rig.machine.kernel.census.pinnedBytes == 2 * 4096)
    // What cannot be unregistered is tried again.
    rig.kernel.fail(1, of: "ioasUnmap", with: .busy)
    try translation.invalidateAll()
    #expect(rig.machine.kernel.census.pinnedBytes == 4096)
    try translation.invalidateAll()
    #expect(rig.machine.kernel.census.pinnedBytes == 0)
    rig.close()
  }

  @Test func onlyWholeMappingsAreCleared() throws {
    let rig = try Rig()
    try rig.map(0x10_0000, pages: 4)
    #expect(throws: Errno.noEntry) { try rig.translation.clear(iova: 0x10_1000, byteCount: 4096) }
    #expect(throws: Errno.overflow) { try rig.translation.clear(iova: .max - 4095, byteCount: 8192) }
    #expect(try rig.translation.clear(iova: 0x20_0000, byteCount: 4096) == 0)
    #expect(throws: Errno.exists) { try rig.map(0x10_2000, page: 8) }
    #expect(rig.machine.kernel.census.pinnedBytes == 4 * 4096, "the map that failed has given its pages back")
    #expect(try rig.translation.unmap(iova: 0x10_0000, byteCount: 16384) == 16384)
    #expect(try rig.translation.unmap(iova: 0x10_0000, byteCount: 16384) == 0)
    #expect(rig.translation.invalidations == 1, "nothing was cleared the second time")
    rig.close()
  }

  /// The kernel refuses an end after it has done nothing, or an area: the next call ends the rest.
  @Test(arguments: [3, 1], [false, true])
  func anEndThatIsRefused(_ areas: Int, _ isHalfDone: Bool) throws {
    let rig = try Rig(), translation = rig.translation, kernel = rig.kernel
    for _ in 0..<2 {
      _ = try translation.register(
        address: rig.host, byteCount: 40 << 10, file: nil, areaByteCount: areas == 1 ? 40 << 10 : 16 << 10)
      if isHalfDone { kernel.failUnmapHalfway(with: .busy) } else { kernel.fail(1, of: "ioasUnmap", with: .busy) }
      translation.hide(address: rig.host)
      #expect(throws: Errno.busy) { try translation.unregister(address: rig.host) }
      #expect(rig.machine.kernel.census.areas == (isHalfDone ? areas - 1 : areas))
      kernel.fail(1, of: "ioasUnmap", with: .busy)
      #expect(throws: Errno.busy) { try translation.unregister(address: rig.host) }
      try translation.unregister(address: rig.host)
      try translation.unregister(address: rig.host)  // there is nothing left to end
      #expect(rig.machine.kernel.census.areas == 0)
    }
    rig.close()
  }

  /// A registration that is not made, and whose undoing is refused: the memory can be registered all the same.
  @Test func anUndoingThatIsRefused() throws {
    let rig = try Rig(), translation = rig.translation, kernel = rig.kernel
    kernel.fail(3, of: "ioasMap", with: .noMemory)
    kernel.interject(before: "ioasUnmap") { kernel.fail(1, of: "ioasUnmap", with: .busy) }
    #expect(throws: Errno.noMemory) {
      try translation.register(address: rig.host, byteCount: 40 << 10, file: nil, areaByteCount: 16 << 10)
    }
    #expect(rig.machine.kernel.census.areas == 2, "they are pinned")
    _ = try translation.register(address: rig.host, byteCount: 40 << 10, file: nil, areaByteCount: 16 << 10)
    try rig.map(0x10_0000)
    #expect(try rig.writes(0x10_0000) && translation.implicitRegistrations == 0)
    _ = try translation.unmap(iova: 0x10_0000, byteCount: 4096)
    // The memory was not used after all; what the kernel has refused before is another registration.
    kernel.fail(1, of: "ioasUnmap", with: .busy)
    translation.giveUp(address: rig.host)
    #expect(rig.machine.kernel.census.areas == 5)
    _ = try translation.register(address: rig.host, byteCount: 16 << 10, file: nil, areaByteCount: 16 << 10)
    translation.giveUp(address: rig.host)
    #expect(rig.machine.kernel.census.areas == 5)
    // The next end at that address takes all that were refused before along.
    _ = try translation.register(address: rig.host, byteCount: 16 << 10, file: nil, areaByteCount: 16 << 10)
    translation.hide(address: rig.host)
    try translation.unregister(address: rig.host)
    #expect(rig.machine.kernel.census.areas == 0)
    rig.close()
  }

  /// Memory of a mapping's own is tried again with the next invalidation.
  @Test func memoryOfAMappingIsTriedAgain() throws {
    let rig = try Rig(), translation = rig.translation, kernel = rig.kernel
    try rig.map(0x10_0000, pages: 2)
    #expect(rig.machine.kernel.census.areas == 1)
    kernel.fail(1, of: "ioasUnmap", with: .busy)
    _ = try translation.unmap(iova: 0x10_0000, byteCount: 8192)
    #expect(rig.machine.kernel.census.areas == 1)
    try translation.invalidateAll()
    #expect(rig.machine.kernel.census.areas == 0)
    rig.close()
  }

  /// A registration is found while it lasts, and no longer: memory may come back at the same address.
  @Test func aRegistrationEnds() throws {
    let rig = try Rig(), translation = rig.translation
    let count = try translation.register(address: rig.host, byteCount: 40 << 10, file: nil, areaByteCount: 16 << 10)
    #expect(count == (3, 0) && rig.machine.kernel.census.areas == 3)
    #expect(throws: Errno.exists) {
      try translation.register(address: rig.host + 8192, byteCount: 4096, file: nil, areaByteCount: 4096)
    }
    #expect(rig.machine.kernel.census.areas == 3)
    try rig.map(0x10_0000, page: 3, pages: 6)  // across two areas
    #expect(try rig.writes(0x10_5000))
    #expect(translation.implicitRegistrations == 0)
    try rig.map(0x20_0000, page: 9, pages: 2)  // half of it is not registered
    #expect(translation.implicitRegistrations == 1)
    #expect(try translation.unmap(iova: 0x10_0000, byteCount: 6 * 4096) == 6 * 4096)
    translation.hide(address: rig.host)
    try translation.unregister(address: rig.host)
    #expect(rig.machine.kernel.census.areas == 1)
    try rig.map(0x10_0000)
    #expect(translation.implicitRegistrations == 2)
    // The n-th area fails: those before it go.
    rig.kernel.fail(2, of: "ioasMap", with: .noMemory)
    #expect(throws: Errno.noMemory) {
      try translation.register(address: rig.host, byteCount: 40 << 10, file: nil, areaByteCount: 16 << 10)
    }
    #expect(rig.machine.kernel.census.areas == 2)
    rig.close()
  }
}
