import AddressSpace

/// What debug mode tells; all of it empty without, and in a fork of the process that opened the device.
extension DMADomain {
  /// What debug mode looks after; nil when it is off. See <doc:DebugMode>.
  public var debugOptions: DebugOptions? { core.debug?.options }

  /// The mistakes that were found, the latest 256; ``DMAStatistics/debugReports`` counts all.
  public var debugReports: [DebugReport] { inDebugMode?.reports ?? [] }

  /// Looks now at what is else looked at when it ends: whether the memory of mappings and registrations is what was pinned,
  /// whether the device only read what it may only read, and which mistakes the IOMMU's new faults are; returns what was found.
  ///
  /// O(bytes that devices only read, pages of the caller's memory); reads the kernel's log. While no other thread maps,
  /// unmaps, or has memory by a `sync`.
  @discardableResult
  public func examine() -> [DebugReport] {
    guard let debug = inDebugMode else { return [] }
    let count = debug.reportCount
    debug.lookAtAll()
    _ = faults
    return debug.reports.suffix(Int(debug.reportCount - count))
  }

  /// Says of an address of this process which live mapping it is in, and where that was made; nil when in none.
  ///
  /// For whoever has got SIGSEGV with ``DebugOptions/keepsCPUOut``: `si_addr` tells the address. Not for use in the signal's
  /// handler. O(n) in the number of mappings.
  public func describe(_ pointer: UnsafeRawPointer) -> String? {
    inDebugMode?.describe(UInt64(UInt(bitPattern: pointer)))
  }

  private var inDebugMode: DebugTracker? { ProcessGuard.isOwner ? core.debug : nil }
}

// MARK: - Records of what is not a single buffer

extension DomainCore {
  /// Notes the parts of a list that was mapped.
  func beginRecords(_ list: ScatterList.Parts, at address: IOVA, _ access: DMAAccess, _ kind: MappingKind = .own) {
    guard let debug else { return }
    for index in 0..<list.count {
      let part = unsafe list.base[index]
      list.setRecord(index, debug.begin(part, .part, in: address, access, kind))
    }
  }

  /// Ends the records of parts that are about to be unmapped.
  func endRecords(_ parts: some Sequence<MemoryPart>) {
    guard let debug, isOwner else { return }
    for part in parts where part.record != 0 { _ = debug.end(part.record, lazily: isLazy) }
  }
}

extension DebugTracker {
  /// Notes a part of a range that was mapped.
  func begin(
    _ part: MemoryPart, _ what: DebugRecord.What, in start: IOVA, _ access: DMAAccess, _ kind: MappingKind = .own
  ) -> UInt64 {
    let address = IOVA(start.rawValue + part.placement + (part.host & granuleMask))
    return begin(DebugRecord(what, address, part.host, part.byteCount, isOurs: !part.isUnsafe, access, kind))
  }

  /// Offsets of a reservation were to be unlinked that hold no link, or a part of one.
  func unlinked(_ offsets: Range<Int>, of start: IOVA, cutting link: MemoryPart?) {
    if let link {
      let record = link.record == 0 ? nil : record(link.record)
      return report(.wrongSize, "offsets \(offsets) cut \(record?.text ?? "a link")", record)
    }
    let low = start.rawValue &+ UInt64(clamping: offsets.lowerBound)
    let high = start.rawValue &+ UInt64(clamping: offsets.upperBound)
    let former = locked { state in
      (state.ended[state.nextEnded...] + state.ended[..<state.nextEnded]).last { _, record in
        record.what == .link && record.address.rawValue >= low && record.address.rawValue < high
      }?.record
    }
    let text = former.map { ": \($0.text), was unlinked before" } ?? ""
    report(.notMapped, "nothing is linked at offsets \(offsets)\(text)", former)
  }
}

// MARK: - Memory of the caller's

extension DebugTracker {
  /// Notes memory of the caller's that was mapped.
  func recorded(
    _ mapping: consuming UnsafeMapping, _ memory: UnsafeRawBufferPointer, _ access: DMAAccess
  ) -> UnsafeMapping {
    let host = UInt64(UInt(bitPattern: memory.baseAddress))
    let id = begin(
      DebugRecord(.memory, mapping.address, host, mapping.byteCount, isOurs: false, access, mapping.kind))
    return mapping.recorded(id)
  }

  func record(of kind: MappingKind) -> DebugRecord? {
    guard case .recorded(let id) = kind else { return nil }
    return record(id)
  }

  /// Notes what is left of a mapping whose unmap was stopped.
  static func recordedAgain(
    _ mapping: consuming UnsafeMapping, _ record: DebugRecord?, skipping byteCount: Int
  ) -> UnsafeMapping {
    guard let record else { return mapping }
    let rest = DebugRecord(
      .memory, mapping.address, record.memory + UInt64(byteCount), mapping.byteCount, isOurs: false, record.access)
    let id = unsafe mapping.core._withUnsafeGuaranteedRef { $0.debug?.begin(rest) ?? 0 }
    return mapping.recorded(id)
  }
}
