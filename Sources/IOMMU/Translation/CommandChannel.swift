import Synchronization

/// The way of invalidation commands to the hardware: for each physical IOMMU one `IOMMU_HWPT_INVALIDATE`, which waits until
/// they are done.
final class CommandChannel: Sendable {
  /// What one command is to iommufd.
  struct Form: Sendable {
    /// `IOMMU_HWPT_INVALIDATE_DATA_*` or `IOMMU_VIOMMU_INVALIDATE_DATA_*`.
    var type: UInt32
    /// Its length in bytes.
    var byteCount: Int
    /// Whether the kernel waits for each by itself, or once for all of a call.
    var waitsForEach: Bool
  }

  private let descriptor: IOMMUFDDescriptor
  private let form: Form
  /// The nested page tables or vIOMMUs to which they go.
  let tags = HardwareTags()
  let budget: InvalidationBudget
  let counts = TranslationCounts()

  init(_ descriptor: IOMMUFDDescriptor, _ form: Form, most: Int) {
    (self.descriptor, self.form, budget) = (descriptor, form, InvalidationBudget(most: most))
  }

  /// How many commands the next plan may have.
  var commandLimit: Int { min(budget.limit, budget.worthwhile) }

  /// Sends commands to each physical IOMMU. On return they are done everywhere.
  ///
  /// When a call fails, the kernel may count commands as done that it has not issued: `everything`, one command, goes then.
  func send(_ commands: UnsafeRawBufferPointer, orElse everything: UnsafeRawBufferPointer) throws(Errno) {
    try tags.forEach { tag throws(Errno) in
      do throws(Errno) { try unsafe send(commands, to: tag) } catch { try unsafe send(everything, to: tag) }
    }
  }

  /// Sends commands to one of them.
  func send(_ commands: UnsafeRawBufferPointer, to tag: UInt32) throws(Errno) {
    let count = commands.count / form.byteCount, kernel = descriptor.kernel, began = kernel.costClock()
    counts.systemCalls.wrappingAdd(1, ordering: .relaxed)
    let done = try unsafe kernel.hwptInvalidate(
      descriptor.iommufd, pageTable: tag, type: form.type, entries: commands, byteCount: form.byteCount)
    if done != count { throw .inputOutput }
    budget.note(commands: count, nanoseconds: kernel.costClock() &- began)
    counts.commands.wrappingAdd(UInt64(count), ordering: .relaxed)
    counts.syncs.wrappingAdd(form.waitsForEach ? UInt64(count) : 1, ordering: .relaxed)
  }

  /// Times calls of one command and of several, which `send` is to make for a page that nothing uses.
  func calibrate(several count: Int, _ send: (_ commands: Int) throws(Errno) -> Void) throws(Errno) {
    let kernel = descriptor.kernel
    var times: (one: UInt64, several: UInt64) = (.max, .max)
    for _ in 0..<Limits.budgetTimings {
      let began = kernel.costClock()
      try send(1)
      let between = kernel.costClock()
      try send(count)
      times = (min(times.one, between &- began), min(times.several, kernel.costClock() &- between))
    }
    budget.calibrate(one: times.one, several: times.several, count: count)
  }
}

/// What a translation whose tables are the process's has done.
struct TranslationCounts: ~Copyable {
  let systemCalls = Atomic<UInt64>(0), commands = Atomic<UInt64>(0), syncs = Atomic<UInt64>(0)
  let implicit = Atomic<UInt64>(0), ranges = Atomic<UInt64>(0)

  /// Opening a device does not count.
  func reset() {
    systemCalls.store(0, ordering: .relaxed)
    commands.store(0, ordering: .relaxed)
    syncs.store(0, ordering: .relaxed)
  }
}

extension Limits {
  /// How often an invalidation is timed when a device is opened, and how many commands the longer one of an SMMU has.
  package static let budgetTimings = 4, budgetCommands = 16
}
