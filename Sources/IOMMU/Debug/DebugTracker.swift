import AddressSpace
import CIOMMU
import Glibc
import Synchronization

/// Debug mode of a domain: a record of each mapping, and what was found wrong.
///
/// A record goes by a number of its own, which the mapping keeps: so one that was unmapped already is found out, whatever is at
/// its address by then. The lock is held for a look into the tables; what takes system calls, and the caller's handler, comes
/// before or after.
final class DebugTracker: Sendable {
  let options: DebugOptions
  let kernel: any Kernel
  let device: String
  /// What stands behind ``Alternative/debug``.
  let way = Atomic<Alternative>(.none)
  /// nil where the CPU is not kept out, or its pages are larger than the IOMMU's and may be shared by two buffers.
  let ownership: PageOwnership?
  let granuleMask: UInt64
  /// Bytes of all ``DebugRecord/contents``.
  private let copiedByteCount = Atomic<Int>(0)
  private let state = Mutex(State())

  struct State {
    var live: [UInt64: DebugRecord] = [:]
    /// The latest that ended, a ring.
    var ended: [(id: UInt64, record: DebugRecord)] = []
    var nextEnded = 0
    var nextID: UInt64 = 1
    /// By the address of the memory.
    var registrations: [UInt64: DebugRegistration] = [:]
    var reports: [DebugReport] = []
    var reportCount: UInt64 = 0
    var isClosed = false
  }

  init(_ options: DebugOptions, kernel: any Kernel, granule: PageSize, device: String) {
    (self.options, self.kernel, self.device, granuleMask) = (options, kernel, device, granule.mask)
    let isPossible = UInt64(kernel.pageByteCount) <= granule.byteCount
    ownership = options.keepsCPUOut && isPossible ? PageOwnership(kernel: kernel) : nil
  }

  func locked<Result>(_ body: (inout State) -> sending Result) -> sending Result { state.withLock { body(&$0) } }
}

// MARK: - Records

extension DebugTracker {
  /// Something is mapped: the number of its record.
  func begin(_ record: DebugRecord) -> UInt64 {
    var record = record
    record.mappedAt = DebugBacktrace(capturing: options.frameCount)
    (record.thread, record.mappedTime) = (ci_gettid(), kernel.now())
    if !record.isOurs, !record.isBounced, record.byteCount <= Limits.debugPagesByteCount {
      record.pages = PageSnapshot(
        kernel, host: record.memory, byteCount: record.byteCount, comparesFrames: record.access.canWrite)
    }
    record.contents = copy(of: record)
    if record.isOurs { ownership?.take(record.memory, byteCount: padded(record.byteCount), record.access) }
    let made = record
    return locked { state in
      let id = state.nextID
      state.nextID += 1
      state.live[id] = made
      return id
    }
  }

  /// Something is about to be unmapped: its record, and the memory is the CPU's; nil, and a report, when it is mapped no more.
  func end(_ id: UInt64, lazily: Bool) -> DebugRecord? {
    let here = DebugBacktrace(capturing: options.frameCount), now = max(kernel.now(), 1)
    let found = locked { state -> DebugRecord? in
      guard var record = state.live.removeValue(forKey: id) else { return nil }
      let kept = record
      (record.contents, record.pages, record.unmappedAt) = (nil, nil, here)
      (record.unmappedTime, record.endsLazily) = (now, lazily)
      state.keep(id, record)
      return kept
    }
    guard let record = found else {
      let former = locked { state in state.ended.last { $0.id == id }?.record }
      report(
        .notMapped, former.map { "\($0.text), has been unmapped already" } ?? "no mapping with this number", former)
      return nil
    }
    look(at: record)
    if record.contents != nil { copiedByteCount.wrappingSubtract(record.byteCount, ordering: .relaxed) }
    if record.isOurs { ownership?.give(record.memory) }
    return record
  }

  func record(_ id: UInt64) -> DebugRecord? { locked { $0.live[id] } }

  func padded(_ byteCount: Int) -> Int { (byteCount + Int(granuleMask)) & ~Int(granuleMask) }

  /// What the memory holds, where the device only reads it and it is short enough to be kept; of the caller's only where it
  /// can be seen that the memory is still there, and so not where the device has a copy of it.
  private func copy(of record: DebugRecord) -> [UInt8]? {
    guard !record.access.canWrite, record.byteCount <= Limits.debugCopyByteCount else { return nil }
    guard record.isOurs || (record.pages != nil && firstChange(in: record) == nil) else { return nil }
    let all = copiedByteCount.wrappingAdd(record.byteCount, ordering: .relaxed).newValue
    guard all <= Limits.debugCopiesByteCount else {
      copiedByteCount.wrappingSubtract(record.byteCount, ordering: .relaxed)
      return nil
    }
    if let bytes = bytes(of: record) { return bytes }
    copiedByteCount.wrappingSubtract(record.byteCount, ordering: .relaxed)
    return nil
  }

  /// What the memory holds; nil where it cannot be read, as memory of the caller's may have been given up or shut.
  private func bytes(of record: DebugRecord) -> [UInt8]? {
    record.isOurs ? unsafe [UInt8](record.bytes) : try? kernel.readMemory(record.memory, byteCount: record.byteCount)
  }

  private func firstChange(in record: DebugRecord) -> (page: UInt64, change: PageSnapshot.Change)? {
    record.pages?.firstChange(kernel, host: record.memory, byteCount: record.byteCount)
  }

  /// Whether the memory of a live mapping is what it was, and holds what it held.
  func look(at record: DebugRecord) {
    if let (page, change) = firstChange(in: record) {
      report(change, page, record.text, record)
      // Without memory nothing can be read.
      return
    }
    guard let contents = record.contents, let now = bytes(of: record) else { return }
    guard let offset = unsafe now.withUnsafeBytes({ unsafe contents.firstDifference($0) }) else { return }
    report(.contentsChanged, "\(record.text), has changed from byte \(offset) on, and the device only reads it", record)
  }

  /// The CPU is to have a part of a mapping for a while.
  func syncForCPU(_ id: UInt64, _ range: Range<Int>, _ core: DomainCore) {
    guard let record = record(id) else { return }
    look(at: record)
    if record.isOurs { ownership?.open(record.memory, pages(range)) }
    record.kind.syncForCPU(range, core)
    setContents(nil, of: id)
  }

  /// The device is to have it again.
  func syncForDevice(_ id: UInt64, _ range: Range<Int>, _ core: DomainCore) {
    guard let record = record(id) else { return }
    record.kind.syncForDevice(range, core)
    setContents(copy(of: record), of: id)
    if record.isOurs { ownership?.shut(record.memory, pages(range)) }
  }

  private func setContents(_ contents: [UInt8]?, of id: UInt64) {
    let former = locked { state -> Int in
      let former = state.live[id]?.contents?.count ?? 0
      state.live[id]?.contents = contents
      return former
    }
    copiedByteCount.wrappingSubtract(former, ordering: .relaxed)
  }

  /// The whole pages of a part.
  private func pages(_ range: Range<Int>) -> Range<Int> {
    let first = range.lowerBound & ~Int(granuleMask)
    return first..<max(padded(range.upperBound), first)
  }
}

extension DebugTracker.State {
  /// Notes a mapping that ended, in the place of the oldest.
  mutating func keep(_ id: UInt64, _ record: DebugRecord) {
    if ended.count < Limits.debugEnded {
      ended.append((id, record))
    } else {
      ended[nextEnded] = (id, record)
      nextEnded = (nextEnded + 1) % Limits.debugEnded
    }
  }
}

extension DebugRecord {
  var bytes: UnsafeRawBufferPointer {
    unsafe UnsafeRawBufferPointer(start: UnsafeRawPointer(bitPattern: UInt(memory)), count: byteCount)
  }
}

extension [UInt8] {
  /// Where some memory of the same length differs first.
  fileprivate func firstDifference(_ other: UnsafeRawBufferPointer) -> Int? {
    unsafe withUnsafeBytes { own in
      if unsafe memcmp(own.baseAddress!, other.baseAddress!, own.count) == 0 { return nil }
      return own.indices.first { unsafe own[$0] != other[$0] }
    }
  }
}
