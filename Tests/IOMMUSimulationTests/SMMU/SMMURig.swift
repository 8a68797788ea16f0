import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// A device whose stage 1 this process owns, set up by raw kernel calls as a program on Linux does it: registered memory, nest
/// parent, vIOMMU, device number, event queue, nested page table.
///
/// Its memory is 4 MiB at ``ipa`` of stage 2: the context descriptor at the start, tables after it, and pages for data in the
/// upper half.
struct SMMURig: Sendable {
  let machine: SimulatedHost
  let kernel: any Kernel
  let iommufd: Int32, device: Int32
  let deviceID: UInt32, ioas: UInt32, parent: UInt32, viommu: UInt32, vdevice: UInt32, eventQueue: UInt32
  let events: Int32
  let registers: Registers
  let memory: Memory

  static let address = "0000:03:00.0"
  /// The tag that the kernel gives to the first nest parent.
  static let vmid: UInt64 = 1 << 32
  static let stream: UInt64 = 0x42, ipa: UInt64 = 0x200_0000
  static let byteCount: UInt64 = 4 << 20
  /// Where pages of data begin in the memory.
  static let data = 2 << 20

  init(
    _ description: SimulatedMachine = .smmuv3Nested, model: any DeviceModel = EduModel(addressBits: 64),
    depth: UInt32 = 64
  ) throws(Errno) {
    try self.init(on: SimulatedHost(description, devices: [Self.address: model]), depth: depth)
  }

  /// The same for a device of a machine, by the number of its node, with objects of its own.
  init(on host: SimulatedHost, node: Int = 0, depth: UInt32 = 64) throws(Errno) {
    machine = host
    kernel = machine.kernel
    iommufd = try kernel.open("/dev/iommu")
    device = try kernel.open("/dev/vfio/devices/vfio\(node)")
    deviceID = try kernel.vfioBind(device, iommufd: iommufd, token: nil)
    ioas = try kernel.ioasAllocate(iommufd)
    parent = try kernel.hwptAllocate(iommufd, flags: HWPTFlags.nestParent, device: deviceID, pageTable: ioas)
    viommu = try kernel.viommuAllocate(iommufd, type: 1, device: deviceID, pageTable: parent)
    vdevice = try kernel.vdeviceAllocate(iommufd, viommu: viommu, device: deviceID, number: Self.stream)
    (eventQueue, events) = try kernel.eventQueueAllocate(iommufd, viommu: viommu, type: 1, depth: depth)
    registers = Registers(kernel: kernel, device: device)
    try registers.enable()
    memory = try Memory(kernel, byteCount: Int(Self.byteCount))
    try map(Self.ipa, byteCount: Self.byteCount)
  }

  /// Enters the rig's memory, or part of it, into stage 2.
  func map(_ ipa: UInt64, offset: UInt64 = 0, byteCount: UInt64 = 4096, flags: UInt32 = 7) throws(Errno) {
    _ = try kernel.ioasMap(
      iommufd, ioas: ioas, flags: flags, address: memory.address + offset, byteCount: byteCount, iova: ipa)
  }

  /// A nested page table of a stream table entry.
  func nest(_ word0: UInt64, _ word1: UInt64) throws(Errno) -> UInt32 {
    let bytes = [word0, word1].flatMap(\.littleEndianBytes)
    return try kernel.hwptAllocate(
      iommufd, flags: 0, device: deviceID, pageTable: viommu, data: HWPTData(type: 2, bytes: bytes))
  }

  /// The entry of Appendix A: stage 1 by the context descriptor at the start of the memory.
  func nest() throws(Errno) -> UInt32 {
    try nest(1 | 5 << 1 | Self.ipa, 1 << 2 | 1 << 4 | 3 << 6)
  }

  func attach(_ table: UInt32) throws(Errno) { _ = try kernel.vfioAttach(device, pageTable: table) }

  /// Sends commands; how many were handled.
  @discardableResult
  func invalidate(_ commands: [(UInt64, UInt64)]) throws(Errno) -> Int {
    let bytes = commands.flatMap { $0.0.littleEndianBytes + $0.1.littleEndianBytes }
    let result: Result<Int, Errno> = unsafe bytes.withUnsafeBytes { bytes in
      do throws(Errno) {
        return .success(
          try unsafe kernel.hwptInvalidate(iommufd, pageTable: viommu, type: 1, entries: bytes, byteCount: 16))
      } catch { return .failure(error) }
    }
    return try result.get()
  }

  @discardableResult
  func invalidate(_ word0: UInt64, _ word1: UInt64 = 0) throws(Errno) -> Int { try invalidate([(word0, word1)]) }

  /// Has the device write 8 zeros, or read; whether that went through.
  func access(_ address: UInt64, byteCount: UInt64 = 8, writes: Bool = true) throws(Errno) -> Bool {
    let before = machine.faults.count
    try registers.write(0x80, writes ? 0x40000 : address, width: 8)
    try registers.write(0x88, writes ? address : 0x40000, width: 8)
    try registers.write(0x90, byteCount, width: 8)
    try registers.write(0x98, writes ? 3 : 1, width: 8)
    return machine.faults.count == before
  }

  /// Which page of data a write to an address reaches; nil when it faults.
  func page(at address: UInt64) throws -> Int? {
    for page in 0..<512 { memory[Self.data + page * 4096] = 7 }
    guard try access(address & ~0xfff) else { return nil }
    return (0..<512).first { memory[Self.data + $0 * 4096] == 0 } ?? -1
  }

  /// The IPA of a page of data.
  static func page(_ number: Int) -> UInt64 { ipa + UInt64(data + number * 4096) }

  /// All that the event queue has: flags, sequence number, and the words of a record.
  func readEvents(byteCount: Int = 4096) throws -> [(flags: UInt32, sequence: UInt32, words: [UInt64])] {
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: byteCount, alignment: 8)
    defer { unsafe buffer.deallocate() }
    let count = try unsafe kernel.readEventQueue(events, buffer)
    var read: [(UInt32, UInt32, [UInt64])] = []
    var offset = 0
    while offset < count {
      let flags = unsafe buffer.loadUnaligned(fromByteOffset: offset, as: UInt32.self)
      let sequence = unsafe buffer.loadUnaligned(fromByteOffset: offset + 4, as: UInt32.self)
      offset += 8
      var words: [UInt64] = []
      if flags == 0 {
        words = (0..<4).map { unsafe buffer.loadUnaligned(fromByteOffset: offset + $0 * 8, as: UInt64.self) }
        offset += 32
      }
      read.append((flags, sequence, words))
    }
    #expect(offset == count)
    return read
  }

  var counters: SMMUCounters { machine.smmuCounters() }
  func log() throws -> [String] { try kernel.kernelLog(from: 0).map(\.text) }

  /// Closes everything, where others are on the machine.
  func leave() {
    kernel.close(events)
    kernel.close(device)
    kernel.close(iommufd)
    memory.close()
  }

  /// Closes everything; nothing may be left.
  func close(_ location: SourceLocation = #_sourceLocation) {
    leave()
    #expect(machine.kernel.census == Census(), sourceLocation: location)
  }
}

extension UInt64 {
  var littleEndianBytes: [UInt8] { (0..<8).map { UInt8(truncatingIfNeeded: self >> (8 * UInt64($0))) } }
}

/// A word of fields.
func word(_ fields: UInt64...) -> UInt64 { fields.reduce(0, |) }

/// A writer of stage 1 for tests: VMSAv8-64 tables in a rig's memory, from the architecture's bit layout.
final class Stage1 {
  let rig: SMMURig
  let granuleShift: UInt64, inputBits: UInt64
  /// Offset of the context descriptor, and of the first table.
  let context: Int, root: Int
  var isBigEndian = false
  private var next: Int

  /// Bits of a leaf that anybody may read and write: AttrIndx 1, AP[1], SH inner, AF, nG.
  static let readWrite = word(1 << 2, 1 << 6, 3 << 8, 1 << 10, 1 << 11)

  /// Writes a context descriptor at an offset, with nothing mapped; tables are from 64 KiB behind it on.
  init(_ rig: SMMURig, granuleShift: UInt64 = 12, inputBits: UInt64 = 39, asid: UInt64 = 7, context: Int = 0) {
    (self.rig, self.granuleShift, self.inputBits, self.context) = (rig, granuleShift, inputBits, context)
    root = context + 0x1_0000
    next = root + 0x1_0000
    let granule: UInt64 = granuleShift == 12 ? 0 : granuleShift == 16 ? 1 : 2
    // IR, OR, SH, EPD1, V, IPS, AA64, R, A, ASET.
    rig.memory[context] = word(
      64 - inputBits, granule << 6, 1 << 8, 1 << 10, 3 << 12, 1 << 30, 1 << 31, 4 << 32, 1 << 41, 1 << 45, 1 << 46,
      1 << 47, asid << 48)
    rig.memory[context + 8] = SMMURig.ipa + UInt64(root)
    rig.memory[context + 24] = 0xf404_ff44
  }

  func shift(_ level: Int) -> UInt64 { granuleShift + UInt64(3 - level) * (granuleShift - 3) }

  var startLevel: Int {
    var level = 3
    while shift(level) + (granuleShift - 3) < inputBits { level -= 1 }
    return level
  }

  subscript(offset: Int) -> UInt64 {
    get { isBigEndian ? rig.memory[offset].byteSwapped : rig.memory[offset] }
    set { rig.memory[offset] = isBigEndian ? newValue.byteSwapped : newValue }
  }

  /// The offset of the entry for an address at a level; tables above it are made.
  func entry(_ address: UInt64, level: Int = 3) -> Int {
    var (table, current) = (root, startLevel)
    while true {
      let offset = table + Int(address >> shift(current) & (1 << (granuleShift - 3) - 1)) * 8
      if current == level { return offset }
      if self[offset] & 1 == 0 {
        self[offset] = (SMMURig.ipa + UInt64(next)) | 3
        next += 1 << Int(granuleShift)
      }
      table = Int((self[offset] & 0xffff_ffff_f000) - SMMURig.ipa)
      current += 1
    }
  }

  func map(_ address: UInt64, to ipa: UInt64, level: Int = 3, _ attributes: UInt64 = readWrite) {
    self[entry(address, level: level)] = ipa | (level == 3 ? 3 : 1) | attributes
  }

  func map(_ address: UInt64, page: Int, _ attributes: UInt64 = readWrite) {
    map(address, to: SMMURig.page(page), level: 3, attributes)
  }

  /// Clears an entry, and invalidates nothing.
  func clear(_ address: UInt64, level: Int = 3) { self[entry(address, level: level)] = 0 }
}
