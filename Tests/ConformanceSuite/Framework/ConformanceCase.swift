import IOMMU

/// One thing that must hold on every machine: on real kernels in a guest and on the simulated one.
///
/// A case is a plain function. It throws ``Failure``, or any error that it did not expect, when the thing does not hold,
/// and leaves nothing open behind. Whether it applies is not its own business: ``Applicability`` has the one table.
public struct ConformanceCase: Sendable {
  /// What it is called in every row, such as `map/last-page`.
  public let name: String
  /// The suite it belongs to.
  public let suite: Suite
  let body: @Sendable (Environment) throws -> Void

  init(_ suite: Suite, _ name: String, _ body: @escaping @Sendable (Environment) throws -> Void) {
    (self.suite, self.name, self.body) = (suite, name, body)
  }

  /// Why the case is skipped here, nil when it applies.
  public func reasonToSkip(in environment: Environment) -> String? {
    Applicability.reason(for: self, in: environment)
  }

  /// Runs it.
  public func run(in environment: Environment) throws { try body(environment) }
}

/// Cases that are run together.
public enum Suite: String, Sendable, CaseIterable {
  /// What kernel and library promise, call by call.
  case conformance
  /// Data that devices really move, and what they must not reach.
  case dma
  /// Operations between marks in QEMU's trace, for counting the IOMMU's commands.
  case counts
  /// What an ordinary user can do and cannot.
  case unprivileged
  /// With UNMAP swallowed: the cases of ``dma`` on DMA after unmap must fail.
  case negative

  /// Its cases, in their order; the same on every machine.
  public var cases: [ConformanceCase] {
    switch self {
    case .conformance: Cases.conformance
    case .dma: Cases.dma
    case .counts: Cases.counts + Cases.nestedCounts + Cases.recurring
    case .unprivileged: Cases.unprivileged
    case .negative: Cases.negative
    }
  }
}

/// All cases, a list a file.
enum Cases {
  static let conformance =
    binding + attaching + nesting + registers + interrupts + mapping + limits + errors + sharing + library + lists
    + reservations + magazines + debugMode + closing + leaks
  // A kernel reports few of the faults of five seconds: cases that look for one stand apart, and those that make faults
  // and look for none come last.
  static let dma =
    outOfReach + edu + nvme + outOfReachNVMe + linked + lazyModes + automatic + standing + bounced + debugReach
    + nestedTranslation + stories + staleAccess + afterUnmap
}

/// A case's verdict.
public struct Outcome: Sendable {
  /// How a case ended.
  public enum Verdict: String, Sendable { case pass, fail, skip }
  /// The case's name.
  public var name: String
  /// How it ended.
  public var verdict: Verdict
  /// Why, unless it passed.
  public var reason: String?
  /// How long it took.
  public var milliseconds: UInt64
}
