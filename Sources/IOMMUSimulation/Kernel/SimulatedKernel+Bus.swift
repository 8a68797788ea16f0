package import IOMMU

// The devices' side of the kernel: what a ``DeviceBus`` asks for.

extension SimulatedKernel {
  func deviceReads(
    _ address: PCIAddress, _ iova: UInt64, byteCount: Int
  ) -> Result<[UInt8], DeviceBus.Failure> {
    locked { state in
      state.translateMemory(address, iova, byteCount: byteCount, .read).map { segments in
        state.iommu?.countRead(byteCount)
        return segments.flatMap { HostMemory.read(state.memory.deviceSide(of: $0.host), byteCount: $0.byteCount) }
      }
    }
  }

  /// Has a device behind an SMMU look up one address after another, as reads of it would; how many went through. For
  /// measurements of the caches: a transfer of bytes costs many times a look-up.
  package func deviceLooksUp(_ address: PCIAddress, _ addresses: [UInt64]) -> Int {
    locked { state in state.iommu?.touch(address, addresses) ?? 0 }
  }

  func deviceWrites(
    _ address: PCIAddress, _ iova: UInt64, _ bytes: [UInt8]
  ) -> Result<Void, DeviceBus.Failure> {
    locked { state in
      state.translateMemory(address, iova, byteCount: bytes.count, .write).map { segments in
        state.iommu?.countWritten(bytes.count)
        var next = 0
        for segment in segments {
          HostMemory.write(bytes[next..<next + segment.byteCount], to: state.memory.deviceSide(of: segment.host))
          next += segment.byteCount
        }
      }
    }
  }

  /// Has a request of a device translated, and moves no data: for measuring. How many descriptors of stage 1 tables were read for
  /// it, where hardware walks such; nil when it was refused, as any such request is.
  package func deviceTouches(_ address: PCIAddress, _ iova: UInt64, byteCount: Int, isWrite: Bool) -> Int? {
    locked { state in
      let before = state.iommu?.tableReadCount ?? 0
      let result = state.translateMemory(address, iova, byteCount: byteCount, isWrite ? .write : .read)
      guard case .success = result else { return nil }
      return (state.iommu?.tableReadCount ?? 0) - before
    }
  }

  func deviceInterrupts(_ address: PCIAddress, _ vector: Int) {
    locked { $0.deviceInterrupts(address, vector) }
  }

  func deviceSetsPin(_ address: PCIAddress, _ asserted: Bool) {
    locked { $0.deviceSetsPin(address, asserted) }
  }

  func deviceUsesMessages(_ address: PCIAddress) -> Bool { locked { $0.deviceUsesMessages(address) } }

  func deviceWakes(_ address: PCIAddress, after delay: Duration) {
    let nanoseconds = delay.nanoseconds
    locked { state in
      state.clock.wake(address, after: nanoseconds)
      for waiter in state.timerWaiters { try? HostSystem.signalEvent(waiter) }
    }
  }
}

extension KernelState {
  /// The same for data: the doorbell of interrupts is no memory.
  func translateMemory(
    _ address: PCIAddress, _ iova: UInt64, byteCount: Int, _ access: SimulatedIOMMU.Permissions
  ) -> Result<[SimulatedIOMMU.Segment], DeviceBus.Failure> {
    translate(address, iova, byteCount: byteCount, access).flatMap { segments in
      segments.contains { Doorbell.contains($0.host) } ? .failure(.refused) : .success(segments)
    }
  }

  /// Where a request of a device goes: bus mastering, the address bits that the device drives, then the IOMMU.
  func translate(
    _ address: PCIAddress, _ iova: UInt64, byteCount: Int, _ access: SimulatedIOMMU.Permissions
  ) -> Result<[SimulatedIOMMU.Segment], DeviceBus.Failure> {
    let device: DeviceState
    switch busMaster(address) {
    case .failure(let failure): return .failure(failure)
    case .success(let found): device = found
    }
    let bits = device.identity.addressBits
    let driven = bits == 64 ? iova : iova & ((1 << UInt64(bits)) - 1)
    guard iommu != nil else { return .failure(.refused) }
    defer { clock.charge(iommu!.takeTime()) }
    do throws(SimulatedIOMMU.Refusal) {
      return .success(try iommu!.translate(address, driven, byteCount: byteCount, access))
    } catch {
      let fault = SimulatedFault(
        device: address.description, iova: error.iova, isWrite: access == .write, reason: error.reason)
      record(fault, hasEvent: error.hasEvent)
      return .failure(.refused)
    }
  }

  /// What hardware with an event queue has to say of it is in that queue.
  private func record(_ fault: SimulatedFault, hasEvent: Bool) {
    iommu?.countFault()
    if faults.count < Self.faultLimit { faults.append(fault) }
    guard !hasEvent else { return deliverEvents() }
    guard let address = PCIAddress(fault.device) else { return }
    let now = clock.now, unit = devices[address]?.unit ?? 0
    for line in FaultLines(machine: machine, unit: unit).lines(fault, device: address) { log.add(line, at: now) }
  }
}

/// Copies to and from memory of this process that a translation named.
enum HostMemory {
  static func read(_ address: UInt, byteCount: Int) -> [UInt8] {
    unsafe Array(UnsafeRawBufferPointer(start: UnsafeRawPointer(bitPattern: address), count: byteCount))
  }

  static func write(_ bytes: ArraySlice<UInt8>, to address: UInt) {
    unsafe UnsafeMutableRawBufferPointer(
      start: UnsafeMutableRawPointer(bitPattern: address), count: bytes.count
    ).copyBytes(from: bytes)
  }
}

extension SimulatedIOMMU {
  /// Descriptors of stage 1 tables that were read; those of the second stage lie where memory happens to, and an SMMU's are not
  /// in memory at all. In the simulation's own format each miss counts for one.
  fileprivate var tableReadCount: Int {
    let bySMMUs = smmus.indices.reduce(0) { $0 + smmus[$1].counters.descriptorReads }
    return vtds.indices.reduce(counters.cacheMisses + bySMMUs) { $0 + vtds[$1].counters.firstStageReads }
  }

  mutating func countRead(_ byteCount: Int) { count { $0.bytesRead += UInt64(byteCount) } }
  mutating func countWritten(_ byteCount: Int) { count { $0.bytesWritten += UInt64(byteCount) } }
  mutating func countFault() { count { $0.faults += 1 } }
}
