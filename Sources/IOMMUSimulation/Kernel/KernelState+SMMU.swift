import IOMMU

// Commands of a process to an SMMU, and what the SMMU says. Rules of `arm-smmu-v3-iommufd.c` and `arm-smmu-v3.c`.

extension SMMUCommand {
  /// Up to 16 bytes; what is missing is zero.
  init(bytes: some Sequence<UInt8>) {
    var words: [UInt64] = [0, 0]
    for (index, byte) in bytes.prefix(16).enumerated() { words[index / 8] |= UInt64(byte) << UInt64(index % 8 * 8) }
    self.init(words[0], words[1])
  }
}

extension KernelState {
  /// How many commands go before a sync, at most: a batch of 64 with it.
  private static let run = 63

  /// What `IOMMU_HWPT_INVALIDATE` takes for a page table or a vIOMMU, commands as bytes.
  func hwptInvalidate(_ descriptor: Int32, _ id: UInt32, type: UInt32, _ bytes: [UInt8], byteCount: Int) throws(Errno)
    -> Int
  {
    let context = try iommufdContext(descriptor)
    guard byteCount > 0, byteCount <= 4096, bytes.count / byteCount <= 1 << 19 else { throw .invalidArgument }
    switch context.objects[id] {
    case nil: throw .noEntry
    case .pageTable(let table)? where table.viommu != nil: throw .notSupported
    case .pageTable(let table)? where iommu!.domains[table.domain]?.vtd != nil:
      return try invalidateVTd(table, type: type, bytes, byteCount: byteCount)
    case .viommu(let viommu)?:
      guard type == NestingTypes.smmuCommand, !bytes.isEmpty else { throw .invalidArgument }
      var commands: [SMMUCommand] = []
      for start in stride(from: 0, to: bytes.count - byteCount + 1, by: byteCount) {
        let entry = bytes[start..<start + byteCount]
        guard entry.dropFirst(16).allSatisfy({ $0 == 0 }) else { throw .tooBig }
        commands.append(SMMUCommand(bytes: entry))
      }
      return try invalidate(viommu, commands)
    default: throw .invalidArgument
    }
  }

  /// Commands are converted one by one and sent in runs, each with a sync. One that cannot be converted ends it; those before
  /// it in its run count as handled and were not sent.
  private func invalidate(_ viommu: VIOMMU, _ commands: [SMMUCommand]) throws(Errno) -> Int {
    var run: [SMMUCommand] = []
    invalidation = InvalidationProgress()
    defer { deliverEvents() }
    for (index, command) in commands.enumerated() {
      invalidation.handled = index
      run.append(try convert(command, for: viommu))
      guard run.count == Self.run || index == commands.count - 1 else { continue }
      iommu!.count {
        $0.processInvalidations += run.count
        $0.processSyncs += 1
      }
      guard iommu!.smmus[viommu.unit].issue(run, from: .process) else {
        let queue = iommu!.smmus[viommu.unit].commands
        log.add(
          FaultLines(machine: machine, unit: viommu.unit).timeout(producer: queue.producer, consumer: queue.consumer),
          at: clock.now)
        throw .timedOut
      }
      invalidation.issued += run.count
      run = []
    }
    invalidation.handled = commands.count
    return commands.count
  }

  /// Puts the kernel's own tag and stream ids where the process's are. EIO for what a process may not send.
  private func convert(_ command: SMMUCommand, for viommu: VIOMMU) throws(Errno) -> SMMUCommand {
    var command = command
    let vmid = viommu.parent.domain.tag
    switch command.opcode {
    case .invalidateEverything:
      command = SMMUCommand(UInt64(SMMUOpcode.invalidateAll.rawValue))
      command.vmid = vmid
    case .invalidateAll, .invalidateASID, .invalidateAddress, .invalidateAddressInAllASIDs:
      command.vmid = vmid
    case .invalidateATC, .invalidateCD, .invalidateAllCDs:
      guard let device = viommu.devices[UInt64(command.stream)]?.device else { throw .inputOutput }
      command.stream = UInt32(device.address.requesterID)
    default: throw .inputOutput
    }
    return command
  }
}

// MARK: - Events

/// How far the commands of the last call got: what the ioctl says, and what the hardware was given.
package struct InvalidationProgress: Hashable, Sendable {
  package var handled = 0, issued = 0

  package init(handled: Int = 0, issued: Int = 0) { (self.handled, self.issued) = (handled, issued) }
}

extension KernelState {
  /// What the driver's interrupt threads do: hand on event records, and report what the queues complain of.
  func deliverEvents() {
    guard iommu != nil else { return }
    deliverVTdFaults()
    for unit in iommu!.smmus.indices where !iommu!.smmus[unit].misbehaviour.holdsEvents {
      let lines = FaultLines(machine: machine, unit: unit), now = clock.now
      while let event = iommu!.smmus[unit].events.take() { deliver(event, lines, at: now) }
      if iommu!.smmus[unit].lostEvents > 0 {
        log.add(lines.overflow, at: now)
        iommu!.smmus[unit].lostEvents = 0
      }
      for (consumer, command) in iommu!.smmus[unit].refused {
        for line in lines.lines(command, at: consumer) { log.add(line, at: now) }
      }
      iommu!.smmus[unit].refused = []
    }
  }

  /// To the process's queue when it is about its stage 1, else into the log.
  private func deliver(_ event: SMMUEvent, _ lines: FaultLines, at time: UInt64) {
    let address = iommu!.device(event.stream, unit: lines.unit)
    if let (viommu, number) = address.flatMap({ devices[$0] })?.events, let queue = viommu.eventQueue,
      event.isForProcess
    {
      var event = event
      event.stream = number
      return queue.add(event.bytes)
    }
    for line in lines.lines(event, device: address) { log.add(line, at: time) }
  }
}
