import AddressSpace

/// From what went wrong on the data path to a complete error. Cold: it may read files and make strings.
extension DomainCore {
  static let stuckRemedy = "Close the device: then nothing is within its reach any more"

  @inline(never)
  func failed(
    _ failure: MapFailure, _ operation: String, _ address: IOVA? = nil, host: UInt64? = nil, byteCount: Int? = nil,
    limit: UInt64 = .max
  ) -> DMAError {
    var error = DMAError(
      .system, operation, address: address?.rawValue ?? host, byteCount: byteCount.flatMap { UInt64(exactly: $0) })
    switch failure {
    case .closed:
      error.code = .closed
      error.detail = "The domain's last device is closed"
    case .forked:
      error.code = .forked
      error.detail = "This process is a fork of the one that opened the device"
      error.remedy = "Open devices after the fork"
    case .notMapped:
      error.code = .notMapped
      error.detail = "The mapping has ended before; debugReports tells where"
    case .mismatch(let done):
      error.code = .mismatch
      error.detail = "The kernel unmapped \(done) bytes; the memory is kept out of use"
    case .space(let reason): describe(reason, limit, &error)
    case .system(let errno):
      error.errno = errno
      describe(errno, &error)
    case .stuck(let errno):
      error.errno = errno
      describe(errno, &error)
      let rest = "What was mapped before could not be unmapped: the memory is kept out of use"
      error.detail = [error.detail, rest].compactMap(\.self).joined(separator: ". ")
      error.remedy = error.remedy ?? Self.stuckRemedy
    }
    return error
  }

  /// How many mappings are live, in words.
  private var liveMappings: String {
    let count = locked { $0.report(slots.sum(), processOwned).liveMappings }
    return count == 1 ? "1 mapping is live" : "\(count) mappings are live"
  }

  private func describe(_ reason: RangeStoreFailure, _ limit: UInt64, _ error: inout DMAError) {
    let range = error.address.flatMap { address in
      error.byteCount.flatMap { IOVARange(start: IOVA(address), byteCount: $0) }
    }
    let asked = range.map(\.description) ?? "The range"
    switch reason {
    case .empty:
      error.code = .empty
      error.detail = "Nothing to map"
    case .unaligned:
      error.code = .unaligned
      error.detail = "\(asked) is not on multiples of \(granuleMask + 1) bytes"
    case .overflow:
      error.code = .overflow
      error.detail = "Address plus length leaves 64 bits"
    case .outsideAperture(let part):
      error.code = .outsideAperture
      error.detail = "\(part) is not in the IOMMU's usable ranges \(locked { $0.usable })"
    case .aboveLimit(let limit):
      error.code = .outsideMask
      error.detail = "\(asked) goes above the device's mask, \(IOVA(limit))"
    case .reserved(let other):
      error.code = .reserved
      error.detail = "\(asked) touches the reserved region \(other)"
    case .occupied(let other):
      error.code = .overlap
      error.detail = "\(asked) overlaps \(other), which is mapped"
    case .noSpace, .fragmented:
      error.code = .noSpace
      error.detail = "No free range below \(IOVA(limit)); \(liveMappings)"
      error.remedy = "Unmap, or set a wider mask"
    case .boundaryTooSmall, .granuleTooSmall, .duplicate:
      error.code = .invalidArgument
      error.detail = "\(reason)"
    case .outOfMemory: error.code = .outOfMemory
    }
  }

  private func describe(_ errno: Errno, _ error: inout DMAError) {
    switch errno {
    case .noMemory: describeMemoryLock(&error)
    case .noSpace:
      error.code = .tooManyMappings
      error.detail = "The container has no map entry left; \(liveMappings)"
      error.remedy = "Map larger pieces, or raise vfio_iommu_type1.dma_entry_limit (65535 by default)"
    case .badAddress:
      error.code = .badMemory
      error.detail = "The memory is not mapped in this process, or not with the rights that the direction needs"
    case .exists:
      error.code = .overlap
      error.detail = "The kernel has a mapping there that this library did not make"
    case .noEntry:
      error.code = .notMapped
      error.detail = "The kernel has nothing mapped there"
    case .notRegistered:
      (error.code, error.errno) = (.notRegistered, nil)
      error.detail = "Memory has to be registered here, and this is not, or not all of it in one registration"
      error.remedy = "Register it with register(unsafe:) and keep the registration, or set the policy to .implicit"
    case .noDevice: error.code = .gone
    case .overflow: error.code = .overflow
    default: break
    }
  }

  /// ENOMEM of a map is nearly always RLIMIT_MEMLOCK: say what is needed, the limit, and what is pinned.
  private func describeMemoryLock(_ error: inout DMAError) {
    let limit = kernel.memoryLockLimit()
    guard limit != .max, !kernel.hasCapability(14) else {  // CAP_IPC_LOCK
      error.code = .outOfMemory
      error.detail = "The kernel is out of memory; no memlock limit applies"
      return
    }
    error.code = .memoryLock
    let status = (try? kernel.readFile("/proc/self/status")).map { String(decoding: $0, as: UTF8.self) } ?? ""
    let pinned = Self.kilobytes("VmPin", status) + Self.kilobytes("VmLck", status)
    let needed = error.byteCount ?? 0
    error.detail = "Needed \(needed) bytes more, the limit is \(limit) bytes, this process has pinned \(pinned) bytes"
    if translation.interface == .iommufd {
      error.detail! += "; iommufd counts all processes of the user"
    } else {
      error.detail! += "; type1 counts by process"
    }
    error.remedy = "Raise RLIMIT_MEMLOCK to \(pinned + needed) bytes or more (ulimit -l, LimitMEMLOCK=, limits.d)"
  }

  private static func kilobytes(_ key: String, _ status: String) -> UInt64 {
    for line in status.split(separator: "\n") where line.hasPrefix(key + ":") {
      let digits = line.drop { !$0.isNumber }.prefix { $0.isNumber }
      return (UInt64(digits) ?? 0) << 10
    }
    return 0
  }
}

extension DMAError {
  /// The same error, naming its device.
  func on(_ device: String) -> DMAError {
    var copy = self
    copy.device = copy.device ?? device
    return copy
  }
}
