import IOMMUSimulation

/// Hardware that walks tables of this process over those of the kernel, and what it counted.
enum NestedHardware: CaseIterable, Sendable {
  case smmuv3, vtd

  var machine: SimulatedMachine { self == .smmuv3 ? .smmuv3Nested : .vtdNested }

  /// What a sender had put into the queue.
  struct Sent: Equatable {
    /// Invalidations of translations, and of them those of a whole tag: an ASID or a VMID, a PASID or a domain.
    var invalidations: Int, ofTags: Int
    var syncs: Int

    static func - (left: Sent, right: Sent) -> Sent {
      Sent(
        invalidations: left.invalidations - right.invalidations, ofTags: left.ofTags - right.ofTags,
        syncs: left.syncs - right.syncs)
    }
  }

  struct Counts: Equatable {
    var process: Sent, kernel: Sent
    var lostInvalidations: Int
    /// Faults that the hardware had no room for.
    var lostFaults: Int
  }

  func counts(_ machine: SimulatedHost) -> Counts {
    switch self {
    case .smmuv3:
      let counters = machine.smmuCounters()
      func sent(_ commands: SMMUCounters.Commands) -> Sent {
        let tags = [SMMUOpcode.invalidateASID, .invalidateVMID, .invalidateAll].reduce(0) { $0 + commands[$1] }
        return Sent(invalidations: commands.tlbInvalidations, ofTags: tags, syncs: commands.syncs)
      }
      return Counts(
        process: sent(counters.process), kernel: sent(counters.kernel),
        lostInvalidations: counters.lostInvalidations, lostFaults: counters.lostEvents)
    case .vtd:
      let counters = machine.vtdCounters()
      func sent(_ descriptors: VTdCounters.Descriptors) -> Sent {
        Sent(invalidations: descriptors.tlbInvalidations, ofTags: descriptors.wholeTag, syncs: descriptors.syncs)
      }
      return Counts(
        process: sent(counters.process), kernel: sent(counters.kernel),
        lostInvalidations: counters.lostInvalidations, lostFaults: counters.lostFaults)
    }
  }
}
