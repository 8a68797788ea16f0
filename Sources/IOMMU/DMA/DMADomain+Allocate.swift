import AddressSpace
import Synchronization

extension DMADomain {
  /// Coherent memory for `count` elements, zeroed; both sides see it until the array is dropped.
  ///
  /// From the domain's coherent arena: a system call only when the arena has to grow. No element straddles a page, nor a
  /// multiple of the ``constraints``' boundary, and every element begins on a multiple of their alignment; the whole array
  /// lies between two multiples of the boundary if it is no longer than that.
  ///
  /// The corresponding kernel call is `dma_alloc_coherent`.
  /// - Throws: `.empty`, `.overflow`; `.outOfMemory`, also for more than the machine has, which is refused at once; `.memoryLock`,
  ///   `.noSpace`, `.closed`, `.forked`; `.invalidArgument` when one element is longer than the boundary.
  public func allocate<Element: BitwiseCopyable>(
    _ type: Element.Type, count: Int
  ) throws(DMAError) -> CoherentArray<Element> {
    let page = Int(core.granuleMask) + 1
    guard count > 0 else { throw core.failed(.space(.empty), "allocate", byteCount: 0).on(deviceName) }
    let rules = constraints, element = MemoryLayout<Element>.stride
    let natural = rules.alignment.alignedUp(UInt64(element)).flatMap { Int(exactly: $0) }
    guard let natural, natural <= Int.max / 4 / count else {
      throw DMAError(.overflow, "allocate", device: deviceName, detail: "\(count) elements of \(element) bytes")
    }
    guard
      let (stride, alignment) = CoherentArray<Element>.layout(
        natural: natural, count: count, page: page, boundary: rules.boundary)
    else {
      throw DMAError(
        .invalidArgument, "allocate", byteCount: UInt64(natural), device: deviceName,
        detail: "An element of \(natural) bytes crosses each multiple of \(rules.boundary!)")
    }
    let memory = try unsafe allocateCoherent(
      byteCount: stride * count,
      alignment: max(alignment, MemoryLayout<Element>.alignment, Int(rules.alignment.byteCount)))
    return unsafe CoherentArray(
      core: .passRetained(core), base: memory.base, address: memory.iova, count: count, stride: stride)
  }

  /// Memory of the coherent arena, zeroed; grows the arena when no chunk has room.
  private func allocateCoherent(
    byteCount: Int, alignment: Int
  ) throws(DMAError) -> (base: UnsafeMutableRawPointer, iova: IOVA) {
    guard ProcessGuard.isOwner else { throw core.failed(.forked, "allocate", byteCount: byteCount).on(deviceName) }
    guard !isClosed else { throw core.failed(.closed, "allocate", byteCount: byteCount).on(deviceName) }
    let size = PageSize(byteCount: UInt64(alignment))!
    while true {
      let limits = addressing.limits
      if let (base, iova) = unsafe core.coherent.allocate(byteCount: byteCount, alignment: size, limit: limits.last) {
        unsafe base.initializeMemory(as: UInt8.self, repeating: 0, count: byteCount)
        return unsafe (base, iova!)
      }
      do throws(DMAError) {
        if try core.growCoherent(byteCount: byteCount, alignment: size, limits) { tripped() }
      } catch {
        if error.code == .noSpace, limits.first < limits.last { tripped() }
        throw error.on(deviceName)
      }
    }
  }

  /// Streaming memory that the CPU owns first; its contents are whatever an earlier buffer of this domain left.
  ///
  /// From the domain's buffer arena: a system call only when the arena has to grow. It is not within the device's reach
  /// before ``map(_:_:)-(DMABuffer,_)``, unless the protection is ``Protection/persistent``.
  ///
  /// Where this process owns the page tables, or with that protection, the arena's memory is pinned when it grows, and not by
  /// each map.
  ///
  /// - Throws: `.empty`; `.overflow` for more than `Int.max / 4` bytes; `.outOfMemory`, also for more than the machine has, which is
  ///   refused at once; `.memoryLock`, `.closed`, `.forked`; with ``Protection/persistent`` also `.noSpace`, `.tooManyMappings`,
  ///   `.system`.
  public func buffer(byteCount: Int) throws(DMAError) -> DMABuffer {
    guard byteCount > 0 else { throw core.failed(.space(.empty), "buffer", byteCount: byteCount).on(deviceName) }
    guard byteCount <= Int.max / 4 else {
      throw core.failed(.space(.overflow), "buffer", byteCount: byteCount).on(deviceName)
    }
    guard ProcessGuard.isOwner else { throw core.failed(.forked, "buffer", byteCount: byteCount).on(deviceName) }
    guard !isClosed else { throw core.failed(.closed, "buffer", byteCount: byteCount).on(deviceName) }
    let length = Int(core.padded(byteCount))
    while true {
      if let (base, _) = unsafe core.streaming.allocate(byteCount: length, alignment: granule, limit: .max) {
        // The device will reach the rest of the last page too.
        unsafe (base + byteCount).initializeMemory(as: UInt8.self, repeating: 0, count: length - byteCount)
        return unsafe DMABuffer(core: .passRetained(core), base: base, byteCount: byteCount)
      }
      do throws(DMAError) {
        if try core.growStreaming(byteCount: length, addressing.limits) { tripped() }
      } catch { throw error.on(deviceName) }
    }
  }
}

extension DomainCore {
  /// A buffer was dropped: its memory and its reference go back.
  static func freeBuffer(
    _ core: Unmanaged<DomainCore>, _ base: UnsafeMutableRawPointer, _ byteCount: Int, after number: UInt64
  ) {
    // Neither the memory nor the core, as with ``leak(_:_:_:_:_:)``.
    if number == .max { return }
    if ProcessGuard.isOwner {
      unsafe core._withUnsafeGuaranteedRef { unsafe $0.free(base, byteCount: byteCount, after: number) }
    }
    unsafe core.release()
  }

  /// A coherent array was dropped: its memory goes back to the arena, which stays mapped.
  static func freeCoherent(_ core: Unmanaged<DomainCore>, _ base: UnsafeMutableRawPointer) {
    if ProcessGuard.isOwner { unsafe core._withUnsafeGuaranteedRef { unsafe $0.coherent.free(base) } }
    unsafe core.release()
  }

  /// A mapping was dropped: unmap, then the memory goes back. If that fails the memory is leaked and counted.
  static func drop(
    _ core: Unmanaged<DomainCore>, _ kind: MappingKind, _ base: UnsafeMutableRawPointer, _ byteCount: Int,
    at address: IOVA, after earlier: UInt64
  ) {
    let memory = unsafe earlier == .max ? nil : base
    let result = unsafe core._withUnsafeGuaranteedRef { core in
      // Nobody will read what the device has written.
      unsafe kind.isOwn
        ? core.unmap(address, byteCount: byteCount, freeing: memory)
        : core.unmapOtherwise(kind, byteCount: byteCount, copies: false, freeing: memory)
    }
    switch result {
    case .success(let number) where unsafe number != 0 && memory != nil: unsafe core.release()
    // Unmapped on the spot: then the memory waits only for what was unmapped of it before.
    case .success: unsafe freeBuffer(core, base, byteCount, after: earlier)
    case .failure(let failure): _ = unsafe leak(core, failure, "unmap", address, byteCount)
    }
  }

  /// An unmap failed: the memory stays out of use, and the core stays with it, so that it is not even returned to the
  /// operating system while a device may reach it.
  @inline(never)
  static func leak(
    _ core: Unmanaged<DomainCore>, _ failure: MapFailure, _ operation: String, _ address: IOVA, _ byteCount: Int
  ) -> DMAError {
    unsafe core._withUnsafeGuaranteedRef { $0.leaked(failure, operation, address, byteCount) }
  }

  /// Counts memory that is given up, and says why.
  func leaked(_ failure: MapFailure, _ operation: String, _ address: IOVA, _ byteCount: Int) -> DMAError {
    let length = padded(byteCount)
    var error = failed(failure, operation, address, byteCount: byteCount).on(device)
    guard ProcessGuard.isOwner else { return error }
    if case .notMapped = failure { return error }
    locked { state in
      state.statistics.leakedBytes += length
      state.statistics.systemCalls += callsEach
    }
    error.remedy = error.remedy ?? Self.stuckRemedy
    return error
  }
}
