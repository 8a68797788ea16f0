extension InterruptVectors {
  /// Ties an interrupt's event to its vector and returns how many vectors the kernel has set up then.
  ///
  /// After a failure the vectors are as before; if that cannot be had, all are off and their interrupts closed.
  func setUp(_ interrupt: Interrupt, _ info: VFIOInterruptInfo, _ before: State) throws(DMAError) -> Int {
    let vector = interrupt.vector
    if before.count == 0 { return try switchOn(interrupt, info) }
    guard vector >= before.count, info.cannotResize else {
      try tie(interrupt.kind, from: vector, [interrupt.descriptor])
      return max(before.count, vector + 1)
    }
    return try grow(interrupt, info, before)
  }

  /// The first vector of the device.
  private func switchOn(_ interrupt: Interrupt, _ info: VFIOInterruptInfo) throws(DMAError) -> Int {
    let least = interrupt.vector + 1
    // Vectors without an event cost the host little; setting all up anew later loses interrupts.
    let generous = info.cannotResize ? min(max(least, Limits.firstVectors), Int(info.count)) : least
    return try enable(interrupt.kind, [interrupt.vector: interrupt], generous, else: least)
  }

  /// Switches the index off and on with more vectors, or with those of before when that fails.
  private func grow(_ interrupt: Interrupt, _ info: VFIOInterruptInfo, _ before: State) throws(DMAError)
    -> Int
  {
    let kind = interrupt.kind
    let least = interrupt.vector + 1
    let generous = min(max(least, before.count * 2), Int(info.count))
    var all = before.interrupts
    all[interrupt.vector] = interrupt
    try switchOff(kind)
    do throws(DMAError) {
      let count = try enable(kind, all, generous, else: least)
      signal(before)
      return count
    } catch {
      do throws(DMAError) { try tie(kind, from: 0, events(before.interrupts, before.count)) } catch {
        lose(before)
        var error = error
        error.detail =
          "The vectors in use before could not be restored: all interrupts of the device are closed"
        throw error
      }
      signal(before)
      throw error
    }
  }

  /// What came while the index was off was lost: every driver shall look at its device once.
  private func signal(_ state: State) {
    for interrupt in state.interrupts.values { interrupt.counter.signal() }
  }

  /// Switches the index on with so many vectors, or with the fewer that are needed when the kernel has not that many.
  private func enable(
    _ kind: Interrupt.Kind, _ interrupts: [Int: Interrupt], _ generous: Int, else least: Int
  ) throws(DMAError) -> Int {
    if generous > least {
      do throws(DMAError) {
        try tie(kind, from: 0, events(interrupts, generous))
        return generous
      } catch {
        if error.code == .gone || error.code == .closed { throw error }
      }
    }
    try tie(kind, from: 0, events(interrupts, least))
    return least
  }

  private func events(_ interrupts: [Int: Interrupt], _ count: Int) -> [Int32] {
    (0..<count).map { interrupts[$0]?.descriptor ?? -1 }
  }

  private func tie(_ kind: Interrupt.Kind, from start: Int, _ events: [Int32]) throws(DMAError) {
    let kernel = handle.kernel
    do throws(DMAError) {
      try handle.use("VFIO_DEVICE_SET_IRQS") { device throws(Errno) in
        try kernel.vfioSetInterrupts(device, index: kind.index, start: UInt32(start), events: events)
      }
    } catch {
      var error = error
      error.detail = "\(kind.rawValue): \(events.count) vectors from \(start) on"
      if error.errno == .noSpace || error.errno == .noMemory {
        error.remedy = "The host has no more interrupt vectors; ask for fewer, or for another kind"
      }
      throw error
    }
  }

  /// Switches the whole index off.
  func switchOff(_ kind: Interrupt.Kind) throws(DMAError) {
    let kernel = handle.kernel
    try handle.use("VFIO_DEVICE_SET_IRQS") { device throws(Errno) in
      try kernel.vfioInterruptAction(device, index: kind.index, start: 0, count: 0, .trigger)
    }
  }
}

extension Limits {
  /// An index that cannot be resized is switched on with at least so many vectors, as far as the device has them.
  package static let firstVectors = 16
}
