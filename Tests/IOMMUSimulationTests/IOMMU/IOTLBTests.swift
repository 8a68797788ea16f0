import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// The IOTLB in front of page tables of the process, by raw calls: what it serves, what displaces it, what drops it.
@Suite struct IOTLBTests {
  /// A device attached to a nested table, with memory at IPA 0x7000_0000 of stage 2.
  struct Rig {
    let base: IOMMUFDRig
    let table: FlatTable
    let parent: UInt32, nested: UInt32
    static let ipa: UInt64 = 0x7000_0000

    init(_ machine: SimulatedMachine = .vtd) throws {
      base = try IOMMUFDRig(machine)
      table = try FlatTable(granule: .fourKiB)
      let (kernel, iommufd) = (base.kernel, base.iommufd)
      parent = try kernel.hwptAllocate(
        iommufd, flags: HWPTFlags.nestParent, device: base.deviceID, pageTable: base.ioas)
      nested = try kernel.hwptAllocate(
        iommufd, flags: 0, device: base.deviceID, pageTable: parent, data: FlatFormat.data(table))
      _ = try kernel.vfioAttach(base.device, pageTable: nested)
      try kernel.iommufdDestroy(iommufd, id: base.hwpt)
      try base.map(at: Self.ipa, byteCount: 64 << 10)
    }

    func enter(_ iova: UInt64, page: UInt64 = 0, access: DMAAccess = .readWrite) {
      #expect(table.insert(.init(iova: iova, byteCount: 4096, ipa: Self.ipa + page * 4096, access: access)))
    }

    /// Clears an entry, and invalidates nothing.
    func clear(_ iova: UInt64) throws {
      _ = try table.removeFirst(in: IOVARange(start: IOVA(iova), byteCount: 4096)!)
    }

    func writes(_ iova: UInt64, byteCount: UInt64 = 8) throws -> Bool {
      try base.edu(iova, byteCount, toMemory: true)
    }

    @discardableResult
    func invalidate(_ commands: FlatFormat.Command...) throws(Errno) -> Int {
      let result: Result<Int, Errno> = unsafe commands.withUnsafeBytes { bytes in
        do throws(Errno) {
          return .success(
            try unsafe base.kernel.hwptInvalidate(
              base.iommufd, pageTable: nested, type: FlatFormat.dataType, entries: bytes, byteCount: 24))
        } catch { return .failure(error) }
      }
      return try result.get()
    }

    var counters: SimulatedCounters { base.machine.counters }
  }

  @Test func servesUntilInvalidated() throws {
    let rig = try Rig()
    for page in 0..<4 as Range<UInt64> {
      rig.enter(0x10_0000 + page * 4096, page: page)
      #expect(try rig.writes(0x10_0000 + page * 4096))
    }
    #expect(rig.counters.cacheMisses == 4 && rig.counters.cacheHits == 0)
    for page in 0..<4 as Range<UInt64> { try rig.clear(0x10_0000 + page * 4096) }
    for page in 0..<4 as Range<UInt64> { #expect(try rig.writes(0x10_0000 + page * 4096)) }
    #expect(rig.counters.cacheHits == 4)
    #expect(try rig.invalidate(.init(address: 0x10_1000, pageCount: 2)) == 1)
    #expect(try rig.writes(0x10_0000) && !rig.writes(0x10_1000) && !rig.writes(0x10_2000) && rig.writes(0x10_3000))
    // A range that is larger than the cache.
    #expect(try rig.invalidate(.init(address: 0x10_3000, pageCount: 1 << 20)) == 1)
    #expect(try rig.writes(0x10_0000) && !rig.writes(0x10_3000))
    #expect(try rig.invalidate(.everything) == 1)
    #expect(try !rig.writes(0x10_0000))
    rig.base.close()
  }

  /// What is not there is not cached, nor is what the access may not do: mapping needs no invalidation.
  @Test func absenceIsNotCached() throws {
    let rig = try Rig()
    #expect(try !rig.writes(0x10_0000))
    rig.enter(0x10_0000, access: .read)
    #expect(try !rig.writes(0x10_0000))
    #expect(rig.base.machine.faults.map(\.reason) == [.notMapped, .permission])
    try rig.clear(0x10_0000)
    rig.enter(0x10_0000, access: .write)
    #expect(try rig.writes(0x10_0000))
    #expect(try rig.base.edu(0x10_0000, 8, toMemory: false), "what may be written may be read, at stage 1")
    rig.base.close()
  }

  /// A request over two pages takes both, or none.
  @Test func requestsCrossPages() throws {
    let rig = try Rig()
    rig.enter(0x10_0000, page: 5)
    rig.enter(0x10_1000, page: 2)
    rig.base.memory[6 * 4096 - 8] = 1
    rig.base.memory[2 * 4096] = 2
    #expect(try rig.writes(0x10_0ff8, byteCount: 16))
    #expect(rig.base.memory[6 * 4096 - 8] == 0 && rig.base.memory[2 * 4096] == 0)
    #expect(try !rig.writes(0x10_1ff8, byteCount: 16))
    #expect(rig.base.machine.faults.last?.iova == 0x10_2000)
    rig.base.close()
  }

  @Test func theFirstFilledIsDisplaced() throws {
    var machine = SimulatedMachine.vtd
    machine.iotlbEntryCount = 2
    let rig = try Rig(machine)
    for page in 0..<3 as Range<UInt64> { rig.enter(0x10_0000 + page * 4096, page: page) }
    #expect(try rig.writes(0x10_0000) && rig.writes(0x10_1000) && rig.writes(0x10_0000))
    #expect(rig.counters.cacheMisses == 2 && rig.counters.cacheHits == 1)
    #expect(try rig.writes(0x10_2000))
    for page in 0..<3 as Range<UInt64> { try rig.clear(0x10_0000 + page * 4096) }
    #expect(try !rig.writes(0x10_0000), "displaced, though used last but one")
    #expect(try rig.writes(0x10_1000) && rig.writes(0x10_2000))
    // An entry that was dropped leaves room without displacing another.
    try rig.invalidate(.init(address: 0x10_1000, pageCount: 1))
    rig.enter(0x20_0000)
    #expect(try rig.writes(0x20_0000) && rig.writes(0x10_2000))
    rig.base.close()
  }

  /// The kernel flushes a tag with its last device, and what stage 2 changes.
  @Test func theKernelFlushes() throws {
    let rig = try Rig(), kernel = rig.base.kernel
    rig.enter(0x10_0000)
    #expect(try rig.writes(0x10_0000))
    try rig.clear(0x10_0000)
    let before = rig.counters
    try kernel.vfioDetach(rig.base.device)
    #expect(rig.counters.invalidations == before.invalidations + 1)
    _ = try kernel.vfioAttach(rig.base.device, pageTable: rig.nested)
    #expect(try !rig.writes(0x10_0000))
    rig.enter(0x10_0000)
    #expect(try rig.writes(0x10_0000))
    let attached = rig.counters
    try rig.base.unmap(Rig.ipa, 64 << 10)
    #expect(rig.counters.invalidations == attached.invalidations + 2, "of stage 2, and of all of the tags over it")
    #expect(try !rig.writes(0x10_0000))
    #expect(rig.counters.processInvalidations == 0 && rig.counters.processSyncs == 0)
    rig.base.close()
  }

  /// The same address in two domains, each in the cache.
  @Test func tagsAreApart() throws {
    let machine = SimulatedHost(
      devices: [IOMMUFDRig.address: EduModel(addressBits: 64), "0000:04:00.0": EduModel(addressBits: 64)])
    let memory = try Memory(machine.kernel), base = UInt(memory.address)
    let first = try Device(IOMMUFDRig.address, on: machine.host, translation: .process)
    let second = try Device("0000:04:00.0", on: machine.host, translation: .process)
    func map(_ device: Device, _ page: UInt) throws -> UnsafeMapping {
      let start = unsafe UnsafeRawPointer(bitPattern: base + page * 4096)
      return try unsafe device.dma.map(
        unsafe: UnsafeRawBufferPointer(start: start, count: 4096), .bidirectional, at: IOVA(0x10_0000))
    }
    let one = try map(first, 0), other = try map(second, 1)
    for _ in 0..<2 {
      (memory[0], memory[4096]) = (7, 7)
      try store(first)
      #expect(memory[0] == 0 && memory[4096] == 7)
      try store(second)
      #expect(memory[4096] == 0)
    }
    try one.unmap()
    memory[4096] = 7
    try store(second)
    #expect(memory[4096] == 0, "the other tag was not invalidated")
    try other.unmap()
    for device in [first, second] { device.close() }
    memory.close()
  }

  /// Has an edu device write eight zeros to the address.
  private func store(_ device: Device) throws {
    let bar = try device.registers(bar: 0)
    for (offset, value) in [(0x80, 0x40000), (0x88, 0x10_0000), (0x90, 8), (0x98, 3)] as [(Int, UInt64)] {
      bar.store(value, at: offset)
    }
  }

  /// The errno contract of §8.2 and §5.6, for the flat format.
  @Test func commandsAreChecked() throws {
    let rig = try Rig(), kernel = rig.base.kernel, iommufd = rig.base.iommufd
    func refused(_ errno: Errno, _ what: String, _ call: () throws(Errno) -> Void) {
      do throws(Errno) {
        try call()
        Issue.record("\(what) was accepted")
      } catch { #expect(error == errno, "\(what)") }
    }
    let page = FlatFormat.Command(address: 0x1000, pageCount: 1)
    func send(_ id: UInt32, type: UInt32 = FlatFormat.dataType, byteCount: Int = 24) throws(Errno) {
      _ = try unsafe withUnsafeBytes(of: page) { bytes throws(Errno) in
        try unsafe kernel.hwptInvalidate(iommufd, pageTable: id, type: type, entries: bytes, byteCount: byteCount)
      }
    }
    refused(.noEntry, "no object") { () throws(Errno) in try send(99) }
    refused(.invalidArgument, "a nest parent") { () throws(Errno) in try send(rig.parent) }
    refused(.invalidArgument, "another format") { () throws(Errno) in try send(rig.nested, type: 0) }
    refused(.invalidArgument, "another length") { () throws(Errno) in try send(rig.nested, byteCount: 16) }
    for (address, pageCount) in [(0x1001, 1), (0x1000, 0), (0x1000, UInt64.max), (0x1000, 1 << 52)]
      as [(UInt64, UInt64)]
    {
      refused(.invalidArgument, "\(pageCount) pages at \(address)") { () throws(Errno) in
        try rig.invalidate(.init(address: address, pageCount: pageCount))
      }
    }
    var flagged = page
    flagged.flags = 2
    refused(.notSupported, "a flag") { () throws(Errno) in try rig.invalidate(flagged) }
    let before = rig.counters
    #expect(try rig.invalidate(page, page, .init(address: 0, pageCount: 1 << 52)) == 3)
    #expect(rig.counters.processInvalidations == before.processInvalidations + 3)
    #expect(rig.counters.processSyncs == before.processSyncs + 1)
    rig.base.close()
  }

  @Test func nestedTablesAreChecked() throws {
    let rig = try Rig(), kernel = rig.base.kernel, iommufd = rig.base.iommufd, device = rig.base.deviceID
    let data = FlatFormat.data(rig.table)
    let plain = try kernel.hwptAllocate(iommufd, flags: 0, device: device, pageTable: rig.base.ioas)
    #expect(throws: Errno.invalidArgument) {
      try kernel.hwptAllocate(iommufd, flags: 0, device: device, pageTable: plain, data: data)
    }
    #expect(throws: Errno.notSupported) {
      try kernel.hwptAllocate(iommufd, flags: 0, device: device, pageTable: rig.parent)
    }
    #expect(throws: Errno.notSupported) {
      try kernel.hwptAllocate(
        iommufd, flags: 0, device: device, pageTable: rig.parent, data: HWPTData(type: 1, bytes: data.bytes))
    }
    #expect(throws: Errno.busy) { try kernel.iommufdDestroy(iommufd, id: rig.parent) }
    #expect(throws: Errno.busy) { try kernel.iommufdDestroy(iommufd, id: rig.nested) }
    rig.base.close()
    var machine = SimulatedMachine.vtd
    machine.hasNestedTranslation = false
    let without = try IOMMUFDRig(machine)
    #expect(throws: Errno.notSupported) {
      try without.kernel.hwptAllocate(
        without.iommufd, flags: HWPTFlags.nestParent, device: without.deviceID, pageTable: without.ioas)
    }
    without.close()
  }
}
