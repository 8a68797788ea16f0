import IOMMUSimulation

/// What a simulation changes of the hardware, whatever it compares on it.
struct SimulationHardware: Hashable {
  /// Entries of the invalidation queue; nil for as many as the unit has of its own.
  var queueEntries: Int?
  /// How many others use the queue, each of whom has a round in it before each of the process's calls.
  var producers = 0
  /// Whether an SMMUv3 has range commands.
  var hasRanges = true

  /// The most entries that a queue may have: of `IDR1.CMDQS`, and of `IQA_REG.QS`.
  static let longestSMMUQueue = 1 << 19, longestVTdQueue = 1 << 15
  /// A descriptor, its wait, and one that stays free.
  static let shortestQueue = 4

  /// Changes a machine.
  func apply(to machine: inout SimulatedMachine) {
    if let queueEntries {
      let shift = queueEntries.trailingZeroBitCount
      if machine.iommu == .smmuv3 {
        machine.smmu.commandQueueShift = shift
      } else {
        machine.invalidationQueueShift = shift
      }
    }
    if machine.iommu == .smmuv3 { machine.smmu.hasRangeInvalidation = hasRanges }
  }

  /// What is wrong with it for the IOMMUs that are simulated; nil when nothing is.
  func mistake(on iommus: Set<SimulatedMachine.IOMMUKind>) -> String? {
    if let queueEntries {
      let range = Self.shortestQueue...Self.longestSMMUQueue
      guard range.contains(queueEntries), queueEntries.nonzeroBitCount == 1 else {
        return "--queue wants a power of two, \(range.lowerBound) to \(range.upperBound)."
      }
      if iommus.contains(.vtd), queueEntries > Self.longestVTdQueue {
        return "--queue \(queueEntries) is more than the \(Self.longestVTdQueue) entries that a VT-d's queue may have; "
          + "--iommu smmuv3 simulates none."
      }
    }
    guard (0...1024).contains(producers) else { return "--producers wants 0 to 1024." }
    if !hasRanges, !iommus.contains(.smmuv3) { return "--no-range-invalidation does nothing on a VT-d." }
    return nil
  }

  /// What is other than usual, in a sentence; nil where nothing is.
  var text: String? {
    var parts: [String] = []
    if let queueEntries { parts.append("queues of \(queueEntries) entries") }
    if producers > 0 { parts.append("\(producers) other producer\(producers == 1 ? "" : "s") in each queue") }
    if !hasRanges { parts.append("no range commands on SMMUv3") }
    return parts.isEmpty ? nil : "Changed of the hardware: \(parts.joined(separator: ", "))."
  }
}
