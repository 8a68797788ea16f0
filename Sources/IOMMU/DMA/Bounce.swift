import AddressSpace
import CIOMMU
import Synchronization

/// A copy of memory that a device may read or write, in the coherent arena, which is all that the device sees.
@safe
struct BounceSlot {
  /// The copy, and what it is a copy of.
  let base: UnsafeMutableRawPointer, memory: UnsafeMutableRawPointer
  /// What the device does with it.
  let access: DMAAccess

  /// The device is to see the memory as it is now.
  func copyIn(_ range: Range<Int>) {
    guard access.canRead else { return }
    unsafe (base + range.lowerBound).copyMemory(from: memory + range.lowerBound, byteCount: range.count)
  }

  /// The memory is to be what the device has made of it.
  func copyOut(_ range: Range<Int>) {
    guard access.canWrite else { return }
    unsafe (memory + range.lowerBound).copyMemory(from: base + range.lowerBound, byteCount: range.count)
  }

  /// How much one way copies, in bytes.
  func copied(_ byteCount: Int, in isIn: Bool) -> Int { (isIn ? access.canRead : access.canWrite) ? byteCount : 0 }
}

extension DMADomain {
  /// Copies memory that the device is to read to where it may read. Memory that it only writes is not shown to it: its
  /// copy begins as zeros, and so does what the device leaves unwritten.
  @inline(never)
  func bounce(
    _ memory: UnsafeMutableRawPointer, _ byteCount: Int, _ limits: AddressLimits, _ access: DMAAccess
  ) -> Otherwise {
    let place: (base: UnsafeMutableRawPointer, iova: IOVA)
    // As far into a page as the memory where that begins on one; else as an address of the same alignment.
    let alignment = min(UInt64(1) << UInt64(UInt(bitPattern: memory).trailingZeroBitCount), core.granuleMask + 1)
    do throws(DMAError) {
      unsafe place = try bounceMemory(byteCount, PageSize(byteCount: max(alignment, UInt64(Limits.arenaUnit)))!, limits)
    } catch {
      core.locked { $0.statistics.failedMaps += 1 }
      return .failed(MapFailure(error))
    }
    let slot = unsafe BounceSlot(base: place.base, memory: memory, access: access)
    if access.canRead {
      slot.copyIn(0..<byteCount)
    } else {
      unsafe place.base.initializeMemory(as: UInt8.self, repeating: 0, count: byteCount)
    }
    core.standing.count(maps: 1, byteCount: byteCount, copied: slot.copied(byteCount, in: true))
    return unsafe .mapped(place.iova, .bounced(slot))
  }

  /// Memory of the coherent arena, as it is; grows the arena when no chunk has room.
  func bounceMemory(
    _ byteCount: Int, _ alignment: PageSize, _ limits: AddressLimits
  ) throws(DMAError) -> (base: UnsafeMutableRawPointer, iova: IOVA) {
    guard byteCount <= Int.max / 4 else { throw core.failed(.space(.overflow), "bounce", byteCount: byteCount) }
    while true {
      let found = unsafe core.coherent.allocate(byteCount: byteCount, alignment: alignment, limit: limits.last)
      if let (base, iova) = unsafe found, let iova { return unsafe (base, iova) }
      if try core.growCoherent(byteCount: byteCount, alignment: alignment, limits) { tripped() }
    }
  }
}

extension DomainCore {
  /// Ends a copy's life.
  @inline(never)
  func endBounce(_ slot: BounceSlot, byteCount: Int, copies: Bool) {
    if copies {
      dmaReadBarrier()
      slot.copyOut(0..<byteCount)
    }
    standing.count(unmaps: 1, byteCount: byteCount, copied: copies ? slot.copied(byteCount, in: false) : 0)
    unsafe coherent.free(slot.base)
  }
}

extension MappingKind {
  /// Before the CPU looks at part of a mapping's memory.
  func syncForCPU(_ range: Range<Int>, _ core: DomainCore) {
    dmaReadBarrier()
    if case .recorded(let id) = self, core.isOwner { core.debug?.syncForCPU(id, range, core) }
    guard case .bounced(let slot) = self else { return }
    slot.copyOut(range)
    core.standing.count(byteCount: 0, copied: slot.copied(range.count, in: false))
  }

  /// After the CPU has changed part of a mapping's memory.
  func syncForDevice(_ range: Range<Int>, _ core: DomainCore) {
    if case .recorded(let id) = self, core.isOwner { core.debug?.syncForDevice(id, range, core) }
    if case .bounced(let slot) = self {
      slot.copyIn(range)
      core.standing.count(byteCount: 0, copied: slot.copied(range.count, in: true))
    }
    dmaWriteBarrier()
  }
}

extension MapFailure {
  /// Why an arena could not grow, in few words.
  init(_ error: DMAError) {
    if let errno = error.errno {
      self = .system(errno)
    } else {
      self = error.code == .closed ? .closed : .space(error.code == .overflow ? .overflow : .noSpace)
    }
  }
}
