public import AddressSpace

extension Fault {
  /// What the address of a fault has to do with the mappings of the domain, as it was when the fault was read.
  ///
  /// ```swift
  /// for fault in nic.dma.faults.faults { print(fault, fault.story?.description ?? "", separator: "\n  ") }
  /// ```
  ///
  /// It goes by the address alone, and so is the same whether an IOMMU tells of a transfer once, once a word, or of few of many. Who made a
  /// mapping, when, and how it ended is known in debug mode; without, what the domain keeps for its own use. See <doc:Faults>.
  public struct Story: Hashable, Sendable, CustomStringConvertible {
    /// Where an address lies.
    public enum Place: String, Hashable, Sendable, CaseIterable {
      /// In a mapping that is live: what was refused is the access, or the mapping was made after the fault.
      case live
      /// In no live mapping, and where one was.
      case ended
      /// In addresses that are kept free beside a mapping: behind it in debug mode, between parts of a list, in a reservation.
      case gap
      /// Where nothing is mapped, less than 2 MiB from a mapping that is live.
      case beside
      /// Where nothing is mapped, nor was as far as is remembered, and far from all that is.
      case nowhere
      /// Where the domain never maps anything: in page 0, in a reserved region, or outside of what the IOMMU translates.
      case unusable
    }

    /// The address that the device used; some IOMMUs tell the page only.
    public let address: IOVA
    /// Where it lies.
    public let place: Place
    /// The mapping that it lies in, or the last that it lay in; nil for other places.
    public let mapping: MappingDetails?
    /// The nearest mapping that is live, where the address lies in none; nil where none was found near.
    public let neighbour: MappingDetails?
    /// What the fault says of itself.
    private(set) var access: Access, kind: Kind, stage: Int?
    /// Whether stage 1 is the process's, over a stage 2 of the kernel's.
    let isNested: Bool

    init(
      _ fault: Fault, at address: IOVA, _ place: Place, _ mapping: MappingDetails?, _ neighbour: MappingDetails?,
      isNested: Bool
    ) {
      (self.address, self.place, self.mapping, self.neighbour) = (address, place, mapping, neighbour)
      (access, kind, stage) = (fault.access, fault.kind, fault.stage)
      self.isNested = isNested
    }

    /// The same of a fault of which a further line of the log has told more.
    func retold(_ fault: Fault) -> Story {
      var copy = self
      (copy.access, copy.kind, copy.stage) = (fault.access, fault.kind, fault.stage)
      return copy
    }

    /// Bytes from the start of ``mapping`` to the address; negative where the address is that of a page in which it begins.
    public var offset: Int64? { mapping.map { Self.difference(address, $0.range.start) } }

    /// How far from ``neighbour`` the address is, in bytes: 0 and more past its end, 0 being the first byte behind it; less
    /// than 0 before its start.
    public var distance: Int64? {
      neighbour.map { near in
        address > near.range.last
          ? Self.difference(address, near.range.last) - 1 : Self.difference(address, near.range.start)
      }
    }

    private static func difference(_ left: IOVA, _ right: IOVA) -> Int64 {
      left >= right
        ? Int64(clamping: left.rawValue - right.rawValue) : -Int64(clamping: right.rawValue - left.rawValue)
    }
  }

  /// What is known of a mapping that a ``Story`` is about.
  public struct MappingDetails: Hashable, Sendable {
    /// How a mapping ended.
    public enum End: String, Hashable, Sendable, CaseIterable {
      /// It was unmapped; whether it has waited for a flush is not known.
      case unmapped
      /// It was unmapped and waits for a flush: what an IOMMU has cached of it may still be used.
      case queued
      /// It was unmapped, and a flush has finished since.
      case flushed
      /// The domain was closed while it was live.
      case closed
    }

    /// Its addresses: in debug mode the bytes that were mapped, else whole pages.
    public var range: IOVARange
    /// What it is of: in debug mode `buffer`, `memory of the caller's`, `part of a list` or `link`, else `mapping`.
    public var what = "mapping"
    /// Where its memory begins in this process; nil where that is not known any more.
    public var memory: UInt?
    /// The direction that the driver asked for; nil without debug mode.
    public var direction: DMADirection?
    /// The thread that made it; nil without debug mode.
    public var thread: Int32?
    /// How long before the fault was read it was made; nil without debug mode.
    public var mappedAgo: Duration?
    /// The calls that made it; none without debug mode.
    public var mappedAt = DebugBacktrace()
    /// How it ended; nil while it is live.
    public var end: End?
    /// How long before the fault was read it ended; nil while it is live, and where that is not known.
    public var endedAgo: Duration?
    /// The calls that ended it; none without debug mode.
    public var unmappedAt = DebugBacktrace()

    init(range: IOVARange) { self.range = range }

    /// Whether the direction has no place for an access; nil where one of them is not known.
    func forbids(_ access: Access) -> Bool? {
      guard let direction, access != .unknown else { return nil }
      return access == .write ? direction == .toDevice : direction == .fromDevice
    }
  }
}

extension Limits {
  /// How many nodes of the store are looked at on either side for the mapping next to an address, and how near in bytes one must
  /// be for the address to be beside it.
  package static let storyNodes = 4096, storyReach: UInt64 = 2 << 20
}
