import AddressSpace

/// What debug mode knows of a mapping: of a buffer, of memory of the caller's, of a part of a list, or of a link.
@safe
struct DebugRecord: @unchecked Sendable {
  /// What is mapped.
  enum What: String { case buffer, memory = "memory of the caller's", part = "part of a list", link = "link" }

  let what: What
  /// Where it begins for the device and in this process, and its length in bytes, without the rest of its pages.
  let address: IOVA, memory: UInt64
  let byteCount: Int
  /// Whether the memory is the library's own.
  let isOurs: Bool
  /// What the device may do by the direction that was asked for; and in fact, as ``Mapping`` keeps it.
  let access: DMAAccess
  var granted: UInt8
  /// How it was mapped, and so has to be unmapped.
  var kind: MappingKind
  var thread: Int32 = 0
  var mappedAt = DebugBacktrace()
  var unmappedAt = DebugBacktrace()
  /// Nanoseconds of the kernel's clock; 0 while it is mapped.
  var mappedTime: UInt64 = 0, unmappedTime: UInt64 = 0
  /// Whether it ended in a lazy mode.
  var endsLazily = false
  /// What the memory held when the device got it, where the device only reads it; nil while the CPU has it for a `sync`.
  var contents: [UInt8]?
  /// Its pages when it was pinned.
  var pages: PageSnapshot?

  init(
    _ what: What, _ address: IOVA, _ memory: UInt64, _ byteCount: Int, isOurs: Bool, _ access: DMAAccess,
    granted: UInt8 = 0, _ kind: MappingKind = .own
  ) {
    (self.what, self.address, self.memory, self.byteCount) = (what, address, memory, byteCount)
    (self.isOurs, self.access, self.granted, self.kind) = (isOurs, access, granted, kind)
  }

  private var direction: String {
    access.canRead && access.canWrite ? "bidirectional" : access.canRead ? "toDevice" : "fromDevice"
  }

  var isBounced: Bool { if case .bounced = kind { true } else { false } }

  /// The whole pages that it lies in, for the device: faults may be told by the page.
  func pages(_ granuleMask: UInt64) -> Range<UInt64> {
    let first = address.rawValue & ~granuleMask
    return first..<max((address.rawValue &+ UInt64(byteCount) &+ granuleMask) & ~granuleMask, first)
  }

  /// For sentences about it.
  var text: String {
    "the \(what.rawValue) of \(byteCount) bytes at \(address), memory 0x\(String(memory, radix: 16)), .\(direction)"
      + ", of thread \(thread)"
  }
}

/// What debug mode knows of a ``Registration``.
struct DebugRegistration: Sendable {
  let memory: UInt64
  let byteCount: Int
  let madeAt: DebugBacktrace
  /// The pages that were pinned; nil where they cannot be seen, and while none are.
  var pages: PageSnapshot?

  /// Whether some memory has a byte of it.
  func overlaps(_ host: UInt64, _ count: Int) -> Bool {
    host < memory + UInt64(byteCount) && memory < host + UInt64(count)
  }
}
