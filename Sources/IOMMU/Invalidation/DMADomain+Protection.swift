import Synchronization

extension DMADomain {
  /// What an unmap leaves within reach; of all devices that share the domain.
  public var protection: Protection {
    ProcessGuard.isOwner ? core.protection.withLock { $0.current } : .strict
  }

  /// Changes the protection while other threads map and unmap.
  ///
  /// Everything about the new one is said by the argument, nothing is taken over from the old one. What waits in the old
  /// queue is flushed before this returns, and maps that were kept are unmapped. Where the new queue cannot be had, or the
  /// flush fails, this throws and the old protection stays in force. Mappings that are live end as they were made.
  ///
  /// To ``Protection/persistent``: maps what the arena of buffers has, below the mask of this value's device, by one
  /// `IOMMU_IOAS_MAP_FILE`, `IOMMU_IOAS_MAP` or `VFIO_IOMMU_MAP_DMA` for each area; where that cannot be, the same holds. From it:
  /// unmaps all but what live mappings are inside of.
  ///
  /// For ``Protection/automatic(_:)`` this finds out what an invalidation costs: it reads a few files of sysfs and, where
  /// they tell nothing, makes 64 invalidations, or 64 maps and unmaps of a page of its own. What it found holds for a minute.
  ///
  /// - Throws: `.outOfMemory`, `.invalidArgument` for a depth outside of 2…2²⁴ or a negative length, `.busy` while another
  ///   thread switches, `.closed`, `.forked`, `.system` and `.mismatch` when the flush or an unmap failed; `.memoryLock`,
  ///   `.noSpace`, `.tooManyMappings` and `.system` when the timing did, or to ``Protection/persistent`` a map.
  public func switchProtection(to protection: Protection) throws(DMAError) {
    guard ProcessGuard.isOwner else { throw core.failed(.forked, "switchProtection").on(deviceName) }
    guard core.enter() else { throw core.failed(.closed, "switchProtection").on(deviceName) }
    let isAbove: Bool, limits = addressing.limits
    do throws(DMAError) {
      defer { core.leave() }
      if let ownership = core.debug?.ownership {
        isAbove = try ownership.lifted { () throws(DMAError) in try core.switchProtection(to: protection, limits) }
      } else {
        isAbove = try core.switchProtection(to: protection, limits)
      }
    } catch { throw error.on(deviceName) }
    // Not before: the handler may close the device.
    if isAbove { tripped() }
  }

  /// On return, nothing that was unmapped before this call is in a device's reach, and all of it may be used again; but
  /// what is mapped once for all under ``Protection/persistent`` stays.
  ///
  /// In strict mode every unmap has seen to that, and this makes no system call, unless something is left of another
  /// protection, or of a ``Registration``, that could not be unmapped before. Each registration that has ended and waits is
  /// looked at, at the cost of ``Registration/unregister()``.
  ///
  /// - Throws: `.forked`; `.system` and `.mismatch` when the kernel refuses to unmap or to invalidate: then the ranges stay queued.
  public func drain() throws(DMAError) {
    guard ProcessGuard.isOwner else { throw core.failed(.forked, "drain").on(deviceName) }
    // A closed domain is out of reach as a whole, or soon: an unmap on it waits for that.
    guard core.enter() else { return core.waitUntilEmptied() }
    let failure = core.drain() ?? core.settle()
    core.leave()
    guard let failure else { return }
    if isClosed { return core.waitUntilEmptied() }
    throw core.failed(failure, "drain").on(deviceName)
  }
}

extension DomainCore {
  /// The protection in force, and what it takes.
  struct ProtectionState {
    var current = Protection.strict
    var storage: FlushQueue.Storage?
    var cacheStorage: MapCache.Storage?
    var isSwitching = false
    /// What the last switch to an automatic protection went by.
    var calibration: Calibration?
    /// What the last signs and timings said, and when.
    var measured: (Calibration, time: UInt64)?
  }

  /// What a protection comes to here.
  enum Mode: Equatable {
    case strict
    case lazy(FlushQueueOptions)
    case cache(AutomaticOptions)
  }

  /// Flushes until a flush that started after this call has finished.
  @inline(never)
  func drain() -> MapFailure? {
    if let failure = emptyCache() { return failure }
    if queue.count == 0 {
      queue.waitForReleases(kernel)
      // It was armed for what others have flushed since, and by another timeout.
      disarmTimer()
      return nil
    }
    if let failure = flushAll() { return failure }
    reclaimAll()
    queue.waitForReleases(kernel)
    if queue.count == 0 { disarmTimer() }
    return nil
  }

  /// On success, a flush that started after this call has finished.
  func flushAll() -> MapFailure? {
    let number = queue.started.load(ordering: .sequentiallyConsistent) + 1
    while queue.finished.load(ordering: .acquiring) < number {
      switch flush() {
      case .done: break
      // A flush is ioctls of a millisecond at most, which end by themselves.
      case .busy: kernel.sleep(.microseconds(20))
      case .failed(let failure): return failure
      }
    }
    return nil
  }

  /// Whether something was mapped above the first limit.
  func switchProtection(to new: Protection, _ limits: AddressLimits) throws(DMAError) -> Bool {
    let mayBegin = protection.withLock { state in
      defer { state.isSwitching = true }
      return !state.isSwitching
    }
    guard mayBegin else {
      throw DMAError(.busy, "switchProtection", detail: "Another thread is switching the protection of this domain")
    }
    defer { protection.withLock { $0.isSwitching = false } }
    let (mode, calibration) = try resolve(new)
    let storage = try storage(for: mode), cacheStorage = try cacheStorage(for: mode)
    let isAbove = try prepare(new, limits)
    let old = lazyMode.load(ordering: .relaxed), isCaching = cache.isOpen.load(ordering: .relaxed)
    setMode(.strict)
    queue.close()
    cache.setOpen(false)
    if let failure = drain() ?? takeOver(new) {
      abandon()
      queue.reopen(old)
      cache.setOpen(isCaching)
      setMode(old)
      throw failed(failure, "switchProtection")
    }
    // Nobody looks at the old entries any more: the rings are closed, empty, and no flush is under way that saw them.
    while queue.isFlushing.load(ordering: .acquiring) { kernel.sleep(.microseconds(20)) }
    cache.drop()
    if let storage, case .lazy(let options) = mode {
      queue.open(storage, timeout: options.timeout)
      setMode(options.topology == .single ? .single : .perCPU)
    } else if let cacheStorage, case .cache(let options) = mode {
      cache.open(cacheStorage, timeout: options.cacheTimeout)
      setHere()
    }
    let former = protection.withLock { state in
      let former = (state.storage, state.cacheStorage)
      (state.current, state.storage, state.cacheStorage) = (new, storage, cacheStorage)
      state.calibration = calibration ?? state.calibration
      return former
    }
    _ = former
    return isAbove
  }

  private func setMode(_ mode: LazyMode) {
    // Who sees the mode with a slot held sees the rings, by the slot.
    slots.passAll()
    lazyMode.store(mode, ordering: .releasing)
    setHere()
  }

  /// After each change of what it comes from; by the one who switches, or makes the domain.
  func setHere() {
    let isShort = unsafe shortWay != nil && alternative.load(ordering: .relaxed) == .none
    let mode = HereMode.of(lazyMode.load(ordering: .relaxed))
    here.store(isShort && !cache.isOpen.load(ordering: .relaxed) ? mode : HereMode.none, ordering: .relaxed)
  }

  private func resolve(_ protection: Protection) throws(DMAError) -> (Mode, Calibration?) {
    switch protection {
    case .strict, .persistent, .bounce: return (.strict, nil)
    case .lazy(let options): return (.lazy(options), nil)
    case .automatic(let options):
      let calibration = try calibrate(options)
      processOwned?.budget.adopt(calibration)
      switch calibration.choice {
      case .strict: return (.strict, calibration)
      case .lazyPerCPU: return (.lazy(.perCPU), calibration)
      case .lazySingle: return (.lazy(.single), calibration)
      case .mapCache: return (.cache(options), calibration)
      }
    }
  }

  private func cacheStorage(for mode: Mode) throws(DMAError) -> MapCache.Storage? {
    guard case .cache(let options) = mode else { return nil }
    guard let byteLimit = UInt64(exactly: options.cacheByteCount) else {
      throw DMAError(
        .invalidArgument, "switchProtection", detail: "No cache of \(options.cacheByteCount) bytes",
        remedy: "Ask for 0 bytes or more")
    }
    do throws(Errno) {
      return try MapCache.Storage(kernel, byteLimit: byteLimit, granule: granuleMask + 1)
    } catch {
      throw DMAError(
        .outOfMemory, "switchProtection", errno: error, detail: "No memory for a map cache of \(byteLimit) bytes")
    }
  }

  private func storage(for mode: Mode) throws(DMAError) -> FlushQueue.Storage? {
    guard case .lazy(let options) = mode else { return nil }
    do throws(Errno) {
      let storage = try FlushQueue.Storage(kernel, options, processors: queue.processors)
      queue.makeRings()
      return storage
    } catch {
      let detail = "No flush queue of \(options.depth) entries"
      throw error == .invalidArgument
        ? DMAError(.invalidArgument, "switchProtection", detail: detail, remedy: "Ask for 2 to 16777216 entries")
        : DMAError(.outOfMemory, "switchProtection", errno: error, detail: detail)
    }
  }
}
