import IOMMU

/// A device behind stage-1 tables of this process on an SMMUv3: iommufd's calls one by one, without the library.
///
/// One piece of memory, registered in stage 2, holds all that the hardware reads and writes. Its tables translate 2 MiB
/// from ``address`` on, by 4 KiB pages.
final class NestedSMMU {
  /// Where stage 2 has the memory (an IPA), what of it there is, and what the device calls it.
  static let base: UInt64 = 0x200_0000, byteCount = 2 << 20, address: UInt64 = 0x500_0000
  /// The number of the vDEVICE, and the tag of the tables.
  static let stream: UInt64 = 0x42, asid: UInt64 = 7
  /// Where the kernel puts the doorbells of interrupts in stage 2: `MSI_IOVA_BASE`. Stage 1 has to lead there.
  static let doorbells: UInt64 = 0x800_0000

  /// Offsets in the memory: the context descriptor, tables of levels 1, 2 and 3, the doorbells' table of level 3, and
  /// another table of level 1 with what is below it; from ``pages`` on it is for transfers.
  enum Place {
    static let descriptor = 0, level1 = 0x1000, level2 = 0x2000, level3 = 0x3000, doorbells = 0x4000
    static let otherLevel1 = 0x5000, otherLevel2 = 0x6000, otherLevel3 = 0x7000
    static let pages = 0x10000
  }

  let raw: RawDevice
  let memory: HostMemory
  let ioas: UInt32, parent: UInt32, viommu: UInt32
  private let outputSize: UInt64
  private(set) var vdevice: UInt32?, nested: UInt32?
  private(set) var events: (id: UInt32, descriptor: Int32)?

  var kernel: any Kernel { raw.kernel }

  /// Up to the vIOMMU: the device is bound, its DMA blocked.
  init(_ environment: Environment) throws {
    let kernel = environment.kernel
    raw = try RawDevice(environment.devices.edu, environment)
    try raw.bind()
    memory = try HostMemory(kernel, byteCount: Self.byteCount)
    memory.fill(0)
    ioas = try kernel.ioasAllocate(raw.space)
    parent = try kernel.hwptAllocate(
      raw.space, flags: HWPTFlags.nestParent, device: raw.deviceID, pageTable: ioas)
    viommu = try kernel.viommuAllocate(
      raw.space, type: NestingTypes.smmuVIOMMU, device: raw.deviceID, pageTable: parent)
    _ = try kernel.ioasMap(
      raw.space, ioas: ioas, flags: IOASMapFlags.fixed | IOASMapFlags.readable | IOASMapFlags.writable,
      address: memory.address, byteCount: UInt64(Self.byteCount), iova: Self.base)
    let info = try kernel.hardwareInfo(raw.space, device: raw.deviceID)
    try expectEqual(info.data.count, 40, "bytes of the SMMU's registers")
    outputSize = UInt64(info.data[28] & 7)  // IDR5 is the sixth register, after two words of 4 bytes
    writeTables()
  }

  deinit { if let events { raw.kernel.close(events.descriptor) } }

  private func writeTables() {
    point(to: Place.level1)
    link(Place.level1, 0, to: Place.level2)
    link(Place.level2, Int(Self.address >> 21), to: Place.level3)
    link(Place.level2, Int(Self.doorbells >> 21), to: Place.doorbells)
    link(Place.otherLevel1, 0, to: Place.otherLevel2)
    link(Place.otherLevel2, Int(Self.address >> 21), to: Place.otherLevel3)
  }

  /// Writes the context descriptor, with the first table at an offset.
  func point(to table: Int) {
    let words = SMMUWords.contextDescriptor(
      table: Self.base + UInt64(table), asid: Self.asid, outputSize: outputSize)
    for (index, word) in words.enumerated() { memory.store(word: word, at: Place.descriptor + 8 * index) }
  }

  private func link(_ table: Int, _ index: Int, to next: Int) {
    memory.store(word: SMMUWords.table(Self.base + UInt64(next)), at: table + 8 * index)
  }

  /// Writes the entry of a page: page `page` of what the device sees leads to page `target` of the memory for transfers.
  func map(_ page: Int, to target: Int, isWritable: Bool = true, in table: Int = Place.level3) {
    let address = Self.base + UInt64(Place.pages + target * 4096)
    memory.store(word: SMMUWords.page(address, isWritable: isWritable), at: table + 8 * page)
  }

  /// Lets the device reach the first doorbell.
  func mapDoorbell() { memory.store(word: SMMUWords.devicePage(Self.doorbells), at: Place.doorbells) }

  /// What the device calls an offset in a page.
  func iova(_ page: Int, _ offset: Int = 0) -> UInt64 { Self.address + UInt64(page * 4096 + offset) }

  /// The memory for transfers, by page and offset.
  func place(_ target: Int, _ offset: Int = 0) -> Int { Place.pages + target * 4096 + offset }
}

// MARK: - Objects

extension NestedSMMU {
  /// Makes a nested page table of these tables, over the vIOMMU unless told; `configuration` as a stream table entry has it.
  func makeNested(over pageTable: UInt32? = nil, configuration: UInt64 = 5) throws(Errno) -> UInt32 {
    let words = SMMUWords.streamTableEntry(
      contextDescriptor: Self.base + UInt64(Place.descriptor), configuration: configuration)
    let data = HWPTData(type: NestingTypes.smmuData, bytes: Self.bytes(words))
    return try kernel.hwptAllocate(
      raw.space, flags: 0, device: raw.deviceID, pageTable: pageTable ?? viommu, data: data)
  }

  /// vDEVICE, event queue, nested page table, and attached to it.
  func attach() throws {
    vdevice = try kernel.vdeviceAllocate(
      raw.space, viommu: viommu, device: raw.deviceID, number: Self.stream)
    events = try kernel.eventQueueAllocate(
      raw.space, viommu: viommu, type: NestingTypes.smmuEventQueue, depth: 64)
    let table = try makeNested()
    nested = table
    try expectEqual(try kernel.vfioAttach(raw.device, pageTable: table), table, "the table attached to")
  }

  /// Sends commands, to the vIOMMU unless told; returns how many the kernel handled.
  @discardableResult
  func send(to object: UInt32? = nil, _ commands: [UInt64]...) throws(Errno) -> Int {
    let bytes = Self.bytes(commands.flatMap(\.self))
    let (kernel, iommufd, object) = (kernel, raw.space, object ?? viommu)
    let handled = unsafe bytes.withUnsafeBytes { buffer in
      Result { () throws(Errno) in
        try unsafe kernel.hwptInvalidate(
          iommufd, pageTable: object, type: NestingTypes.smmuCommand, entries: buffer, byteCount: 16)
      }
    }
    return try handled.get()
  }

  /// The events that are there within a second; none after 20 ms when none are expected.
  func takeEvents(expected: Bool = true) throws -> [SMMUEvent] {
    guard let events else { return [] }
    let timeout = Duration.milliseconds(expected ? 1000 : 20)
    guard try kernel.waitReadable([events.descriptor], timeout: timeout) != nil else { return [] }
    var buffer = [UInt8](repeating: 0, count: 40 * 64)
    let count = try unsafe buffer.withUnsafeMutableBytes { try unsafe kernel.readEventQueue(events.descriptor, $0) }
    // A header of 8 bytes, its lower half 0 where no event was lost, and a record of 32.
    try expectEqual(count % 40, 0, "bytes of events, a remainder")
    var found: [SMMUEvent] = []
    for start in stride(from: 0, to: count, by: 40) {
      let words = Self.words(buffer[start..<start + 40])
      try expectEqual(words[0] & 0xffff_ffff, 0, "flags of an event")
      found.append(SMMUEvent(words: Array(words[1...])))
    }
    return found
  }

  /// Destroys everything, in the one order that works.
  func takeDown() throws {
    try kernel.vfioDetach(raw.device)
    if let nested { try destroy(nested) }
    try destroyEvents()
    try destroyVDevice()
    try destroy(viommu)
    try expectEqual(
      try kernel.ioasUnmap(raw.space, ioas: ioas, iova: 0, byteCount: .max), UInt64(Self.byteCount),
      "bytes unmapped from stage 2")
    try destroy(parent)
    try destroy(ioas)
  }

  func destroy(_ id: UInt32) throws(Errno) { try kernel.iommufdDestroy(raw.space, id: id) }

  /// Destroys the event queue: the descriptor first, which holds it.
  func destroyEvents() throws {
    guard let events else { return }
    kernel.close(events.descriptor)
    self.events = nil
    try destroy(events.id)
  }

  /// Destroys the vDEVICE.
  func destroyVDevice() throws {
    if let vdevice { try destroy(vdevice) }
    vdevice = nil
  }

  private static func bytes(_ words: [UInt64]) -> [UInt8] {
    words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> UInt64(8 * $0)) } }
  }

  private static func words(_ bytes: ArraySlice<UInt8>) -> [UInt64] {
    var words: [UInt64] = []
    for (index, byte) in bytes.enumerated() {
      if index % 8 == 0 { words.append(0) }
      words[index / 8] |= UInt64(byte) << UInt64(index % 8 * 8)
    }
    return words
  }
}
