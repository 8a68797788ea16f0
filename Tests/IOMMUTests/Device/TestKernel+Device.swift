import CIOMMU
import IOMMU
import Synchronization

extension TestKernel {
  /// A region of the device: bytes behind the device descriptor.
  struct Region: Sendable {
    var info: VFIORegionInfo
    var bytes: [UInt8]

    init(
      _ index: UInt32, _ byteCount: Int, flags: UInt32 = 3, sparse: [Range<UInt64>]? = nil,
      offset: UInt64? = nil
    ) {
      let position = offset ?? UInt64(index) << 40
      info = VFIORegionInfo(
        flags: flags, index: index, byteCount: UInt64(byteCount), offset: position, sparse: sparse)
      bytes = Array(repeating: 0, count: byteCount)
    }
  }

  /// An interrupt index, as VFIO keeps it.
  struct Index: Sendable {
    var info: VFIOInterruptInfo
    /// Vectors that are set up; empty when the index is off.
    var events: [Int32] = []
    var isMasked = false
    /// What the line would like to say while it is masked.
    var isAsserted = false
    /// The host has no more vectors than these.
    var hostLimit = Int.max

    init(count: UInt32, flags: UInt32 = 1) { info = VFIOInterruptInfo(flags: flags, count: count) }
    static let line = Index(count: 1, flags: 7)
    static func fixed(_ count: UInt32) -> Index { Index(count: count, flags: 9) }
  }

  func handle(_ name: String = "0000:03:00.0") throws -> DeviceHandle {
    try DeviceHandle(kernel: self, descriptor: Self.device, name: name)
  }

  // MARK: Regions

  func pread(
    _ descriptor: Int32, _ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
  ) throws(Errno) -> Int {
    try enter("pread")
    guard descriptor == Self.device else { throw .badDescriptor }
    let width = buffer.count
    let bytes: [UInt8]? = with { state in
      state.accesses.append(Access(isWrite: false, position: offset, width: width))
      guard let (region, start) = state.place(offset, width) else { return nil }
      return Array(state.regions[region].bytes[start..<start + width])
    }
    guard let bytes else { throw .invalidArgument }
    unsafe buffer.copyBytes(from: bytes)
    return with { $0.shortAccess } ? width - 1 : width
  }

  func pwrite(
    _ descriptor: Int32, _ buffer: UnsafeRawBufferPointer, at offset: UInt64
  ) throws(Errno) -> Int {
    try enter("pwrite")
    guard descriptor == Self.device else { throw .badDescriptor }
    let bytes = unsafe Array(buffer)
    let isThere: Bool = with { state in
      state.accesses.append(Access(isWrite: true, position: offset, width: bytes.count))
      guard let (region, start) = state.place(offset, bytes.count) else { return false }
      state.regions[region].bytes.replaceSubrange(start..<start + bytes.count, with: bytes)
      return true
    }
    guard isThere else { throw .invalidArgument }
    return with { $0.shortAccess } ? bytes.count - 1 : bytes.count
  }

  // MARK: Interrupts

  func vfioSetInterrupts(
    _ device: Int32, index number: UInt32, start: UInt32, events: [Int32]
  ) throws(Errno) {
    try enter("set", "\(number) \(start)+\(events.count)")
    let errno: Errno? = with { state in
      guard var index = state.indexes[number], start + UInt32(events.count) <= index.info.count else {
        return .invalidArgument
      }
      // One of INTx, MSI and MSI-X at a time.
      let others = state.indexes.contains { $0.key < 3 && $0.key != number && !$0.value.events.isEmpty }
      if number < 3, others { return .invalidArgument }
      let end = Int(start) + events.count
      if end > index.events.count {
        if !index.events.isEmpty, index.info.cannotResize { return .invalidArgument }
        if end > index.hostLimit { return .noSpace }
        index.events += Array(repeating: -1, count: end - index.events.count)
      }
      index.events.replaceSubrange(Int(start)..<end, with: events)
      state.indexes[number] = index
      return nil
    }
    if let errno { throw errno }
  }

  func vfioInterruptAction(
    _ device: Int32, index number: UInt32, start: UInt32, count: UInt32, _ action: VFIOInterruptAction
  ) throws(Errno) {
    try enter("\(action)", "\(number) \(start)+\(count)")
    let events: [Int32]? = with { state in
      guard var index = state.indexes[number], !index.events.isEmpty else { return nil }
      defer { state.indexes[number] = index }
      switch action {
      case .trigger where count == 0:
        (index.events, index.isMasked) = ([], false)
        return []
      case .trigger: return Array(index.events[Int(start)..<Int(start + count)])
      case .mask: index.isMasked = true
      case .unmask:
        index.isMasked = index.isAsserted
        if index.isAsserted { return index.events }
      }
      return []
    }
    guard let events else { throw .invalidArgument }
    for event in events where event >= 0 { ci_eventfd_write(event, 1) }
  }

  /// The device signals a vector; a line is masked by it.
  func fire(_ number: UInt32, _ vector: Int = 0) {
    let event: Int32? = with { state in
      guard var index = state.indexes[number], vector < index.events.count else { return nil }
      defer { state.indexes[number] = index }
      if index.info.isAutomasked {
        index.isAsserted = true
        if index.isMasked { return nil }
        index.isMasked = true
      }
      return index.events[vector]
    }
    if let event, event >= 0 { ci_eventfd_write(event, 1) }
  }

  func vfioReset(_ device: Int32) throws(Errno) {
    try enter("reset")
    if let errno = with({ $0.resets.isEmpty ? nil : $0.resets.removeFirst() }) { throw errno }
  }
}

extension TestKernel.State {
  /// The region and the offset in it of an access.
  func place(_ position: UInt64, _ width: Int) -> (region: Int, start: Int)? {
    for (number, region) in regions.enumerated()
    where position >= region.info.offset
      && position + UInt64(width) <= region.info.offset + region.info.byteCount
    {
      return (number, Int(position - region.info.offset))
    }
    return nil
  }

  /// Sets bytes of the config region, which must be there.
  mutating func config(_ offset: Int, _ bytes: UInt8...) {
    let number = regions.firstIndex { $0.info.index == VFIOPCI.config }!
    regions[number].bytes.replaceSubrange(offset..<offset + bytes.count, with: bytes)
  }
}
