import AddressSpace
import Synchronization

/// Making a chunk: memory file, mapping, node, pages, and for the coherent arena the IOMMU mapping in capped areas.
extension Arena {
  /// Memory that is ready, and the size of its pages.
  @safe
  struct Memory {
    var base: UnsafeMutableRawPointer
    var byteCount: Int
    var file: Int32
    var isHuge: Bool
    /// The most that one area may have, in bytes.
    var areaByteCount: Int { isHuge ? Limits.hugeAreaByteCount : Limits.areaByteCount }
  }

  /// Gets at least `byteCount` bytes, on huge pages where that much is asked for and they are to be had.
  func makeMemory(byteCount: Int) throws(DMAError) -> Memory {
    // The kernel would not say so: it takes pages for it until there is none left, and then ends a process.
    guard UInt64(byteCount) <= kernel.memoryByteCount else {
      throw DMAError(
        .outOfMemory, "allocate", byteCount: UInt64(byteCount),
        detail: "That is more than all the memory that this process can have, \(kernel.memoryByteCount) bytes")
    }
    if usesHugePages, byteCount >= Limits.hugePageByteCount, let memory = try? makeMemory(byteCount, hugePageShift: 21)
    {
      return memory
    }
    do throws(Errno) {
      return try makeMemory(byteCount, hugePageShift: nil)
    } catch {
      throw DMAError(
        .outOfMemory, "memfd_create", errno: error, byteCount: UInt64(byteCount), detail: "No memory for an arena")
    }
  }

  private func makeMemory(_ asked: Int, hugePageShift: Int?) throws(Errno) -> Memory {
    let page = hugePageShift.map { 1 << $0 } ?? max(Int(granule.byteCount), 4096)
    let byteCount = (asked + page - 1) & ~(page - 1)
    let file = try kernel.createMemoryFile(name, byteCount: byteCount, hugePageShift: hugePageShift)
    let base: UnsafeMutableRawPointer
    do throws(Errno) {
      unsafe base = try kernel.mapMemory(byteCount: byteCount, descriptor: file, offset: 0)
    } catch {
      kernel.close(file)
      throw error
    }
    do throws(Errno) {
      try unsafe kernel.advise(base, byteCount: byteCount, .dontFork)
      // The node is a preference: a kernel without NUMA refuses it, and the memory is good all the same.
      if let node { try? unsafe kernel.bindMemory(base, byteCount: byteCount, node: node) }
      try unsafe populate(base, byteCount)
    } catch {
      unsafe release(base, byteCount, file)
      throw error
    }
    return unsafe Memory(base: base, byteCount: byteCount, file: file, isHuge: hugePageShift != nil)
  }

  /// Takes the page faults here, where running out is an error and not a signal. EINVAL: before Linux 5.14.
  private func populate(_ base: UnsafeMutableRawPointer, _ byteCount: Int) throws(Errno) {
    do throws(Errno) {
      try unsafe kernel.advise(base, byteCount: byteCount, .populateWrite)
    } catch {
      if error != .invalidArgument { throw error }
    }
  }

  /// Adds memory to the arena; `iova` where it is mapped.
  func add(_ memory: Memory, iova: IOVA?) throws(RangeStoreFailure) {
    let start = unsafe iova ?? IOVA(UInt64(UInt(bitPattern: memory.base)))
    let range = IOVARange(start: start, byteCount: UInt64(memory.byteCount))!
    let store = try RangeStore(usable: [range], granule: PageSize(byteCount: UInt64(Limits.arenaUnit))!)
    unsafe add(Chunk(base: memory.base, byteCount: memory.byteCount, file: memory.file, iova: iova, store: store))
  }
}

extension Arena {
  /// Adds a chunk of at least `byteCount` bytes; where there is no room for a generous one, one that just suffices.
  func grow(byteCount: Int, _ addChunk: (Int) throws(DMAError) -> Void) throws(DMAError) {
    let generous = nextChunkByteCount(atLeast: byteCount)
    do throws(DMAError) { return try addChunk(generous) } catch {
      let isRoomLacking = error.code == .noSpace || error.code == .memoryLock || error.code == .outOfMemory
      guard isRoomLacking, byteCount < generous else { throw error }
    }
    try addChunk(byteCount)
  }
}

extension DomainCore {
  /// Grows the coherent arena by at least `byteCount` bytes within `limits`, from a multiple of `alignment` on; whether
  /// above the first of them.
  func growCoherent(byteCount: Int, alignment: PageSize, _ limits: AddressLimits) throws(DMAError) -> Bool {
    var isAbove = false
    try growMakingRoom { () throws(DMAError) in
      try coherent.grow(byteCount: byteCount) { byteCount throws(DMAError) in
        isAbove = limits.isAboveFirst(try addCoherent(byteCount: byteCount, alignment: alignment, limits))
      }
    }
    return isAbove
  }

  /// Grows the streaming arena by at least `byteCount` bytes; whether it is mapped above the first limit, where the
  /// protection wants it mapped.
  func growStreaming(byteCount: Int, _ limits: AddressLimits) throws(DMAError) -> Bool {
    var isAbove = false
    try streaming.grow(byteCount: byteCount) { byteCount throws(DMAError) in
      isAbove = try addStreaming(byteCount: byteCount, limits)
    }
    return isAbove
  }

  /// Makes a chunk of the coherent arena: memory, one IOVA range, areas of capped size.
  private func addCoherent(
    byteCount: Int, alignment: PageSize, _ limits: AddressLimits
  ) throws(DMAError) -> IOVARange {
    let memory = try coherent.makeMemory(byteCount: byteCount)
    var mapped: IOVA?, isPinned = false
    do throws(DMAError) {
      let fileAreas = try pin(memory, "allocate")
      isPinned = true
      let start = try mapArena(memory, alignment: alignment, limits, "allocate")
      mapped = start
      do throws(RangeStoreFailure) {
        try coherent.add(memory, iova: mapped)
      } catch { throw DMAError(.outOfMemory, "allocate", byteCount: UInt64(byteCount)) }
      locked {
        $0.statistics.coherentArenaBytes += UInt64(memory.byteCount)
        $0.statistics.arenaFileAreas += fileAreas
      }
      return IOVARange(start: start, byteCount: UInt64(memory.byteCount))!
    } catch {
      if let mapped { unmapArena(memory, at: mapped, memory.byteCount) }
      if isPinned { unpin(memory) }
      unsafe coherent.release(memory.base, memory.byteCount, memory.file)
      throw error
    }
  }

  /// Makes a chunk of the streaming arena: memory that can be mapped once for all, and is where the protection wants that.
  private func addStreaming(byteCount: Int, _ limits: AddressLimits) throws(DMAError) -> Bool {
    let memory = try streaming.makeMemory(byteCount: byteCount)
    var range: StandingMaps.Range?
    var isAbove = false, isPinned = false
    do throws(DMAError) {
      _ = try pin(memory, "buffer")
      isPinned = true
      // Memory of the caller's that was unmapped while it was registered is in the way of what is there now.
      if case .added(let added) = standing.add(StandingRange(memory)) { unsafe range = added }
      if let range = unsafe range, standing.isWanted { isAbove = try unsafe raise(range, limits, "buffer") }
      do throws(RangeStoreFailure) {
        try streaming.add(memory, iova: nil)
      } catch { throw DMAError(.outOfMemory, "buffer", byteCount: UInt64(byteCount)) }
      if let range = unsafe range { unsafe standing.release(range) }
      return isAbove
    } catch {
      if let range = unsafe range {
        if unsafe range.pointee.iova != 0 {
          unsafe unmapArena(memory, at: IOVA(range.pointee.iova), memory.byteCount)
          unsafe standing.lowered(range, by: UInt64(memory.byteCount))
        }
        unsafe standing.remove(range)
      }
      if isPinned { unpin(memory) }
      unsafe streaming.release(memory.base, memory.byteCount, memory.file)
      throw error
    }
  }

  /// Pins a chunk, or memory of the caller's, once, where this process owns the page tables: maps of it cost no system call
  /// then. Returns how many areas went by file.
  func pin(_ memory: Arena.Memory, _ operation: String) throws(DMAError) -> Int {
    guard let processOwned else { return 0 }
    guard enter() else { throw failed(.closed, operation, byteCount: memory.byteCount) }
    defer { leave() }
    do throws(Errno) {
      return try processOwned.register(
        address: unsafe UInt64(UInt(bitPattern: memory.base)), byteCount: UInt64(memory.byteCount),
        file: memory.file < 0 ? nil : memory.file,
        areaByteCount: UInt64(memory.areaByteCount)
      ).fileAreas
    } catch { throw failed(.system(error), operation, byteCount: memory.byteCount) }
  }

  /// Ends that, for memory that is not used after all.
  func unpin(_ memory: Arena.Memory) {
    guard let processOwned, enter() else { return }
    defer { leave() }
    processOwned.giveUp(address: unsafe UInt64(UInt(bitPattern: memory.base)))
  }

  /// Maps memory once for all, in areas of capped size, at addresses that are a mapping's in every respect.
  func mapArena(
    _ memory: Arena.Memory, alignment: PageSize, _ limits: AddressLimits, _ operation: String
  ) throws(DMAError) -> IOVA {
    guard enter() else { throw failed(.closed, operation, byteCount: memory.byteCount) }
    defer { leave() }
    let length = UInt64(memory.byteCount)
    let iova: IOVA
    do throws(RangeStoreFailure) {
      let host = unsafe UInt64(UInt(bitPattern: memory.base))
      let request = RangeStore.Request(byteCount: length, alignment: max(alignment, Self.alignment(length)))
      iova = try afterDrain { () throws(RangeStoreFailure) in
        try locked(insertions: 2) { state throws(RangeStoreFailure) in
          try state.take(request, limits, kind: .fixed, tag: host)
        }
      }
    } catch { throw failed(spaceFailure(error), operation, byteCount: memory.byteCount) }
    let area = memory.areaByteCount
    var offset = 0
    while offset < memory.byteCount {
      let part = min(area, memory.byteCount - offset)
      do throws(MapFailure) {
        // Whoever closes the domain waits for this call.
        if isClosed.load(ordering: .relaxed) { throw .closed }
        do throws(Errno) { try mapArea(memory, iova, offset, part) } catch { throw .system(error) }
      } catch {
        unmapArena(memory, at: iova, offset)
        throw failed(error, operation, iova, byteCount: part)
      }
      offset += part
    }
    unsafe index(iova, host: UInt64(UInt(bitPattern: memory.base)), length)
    return iova
  }

  /// One area: by the file where the kernel can, which pins whole folios at a time, else by address.
  private func mapArea(_ memory: Arena.Memory, _ iova: IOVA, _ offset: Int, _ byteCount: Int) throws(Errno) {
    let at = iova.rawValue + UInt64(offset)
    if memory.file >= 0, translation.canMapFiles {
      do throws(Errno) {
        try translation.map(
          iova: at, file: memory.file, start: UInt64(offset), byteCount: UInt64(byteCount), access: .readWrite)
        locked {
          $0.statistics.arenaAreas += 1
          $0.statistics.arenaFileAreas += 1
        }
        return
      } catch {
        if error != .notTypewriter { throw error }
      }
    }
    let address = unsafe UInt64(UInt(bitPattern: memory.base)) + UInt64(offset)
    try translation.map(iova: at, address: address, byteCount: UInt64(byteCount), access: .readWrite)
    if memory.file >= 0 { locked { $0.statistics.arenaAreas += 1 } }
  }

  /// Takes the first bytes of a half-made chunk back out, an area at a time. If the kernel will not, its IOVA stays taken,
  /// though no memory of ours is there; what the device reaches there is the kernel's, which keeps it pinned.
  func unmapArena(_ memory: Arena.Memory, at iova: IOVA, _ byteCount: Int) {
    var done = 0, isRefused = false
    // Closed: the kernel unmaps everything by itself.
    while done < byteCount, !isRefused, enter() {
      defer { leave() }
      let length = UInt64(min(memory.areaByteCount, byteCount - done))
      let unmapped = try? translation.unmap(iova: iova.rawValue + UInt64(done), byteCount: length)
      if unmapped == length { done += Int(length) } else { isRefused = true }
    }
    locked { state in
      if !isRefused { return state.forget(iova) }
      guard let node = state.store.find(containing: iova) else { return }
      state.unindex(iova, host: node.tag)
      state.statistics.leakedBytes += UInt64(byteCount - done)
      state.store.replace(iova, with: RangeStore.Node(range: node.range, kind: .guard))
    }
  }
}
