import IOMMU

// Stories of faults in documents.

extension Fault.Story {
  var keys: [(String, JSON)] {
    [
      ("text", .string(description)), ("place", .string(place.rawValue)),
      ("offset_bytes", JSON(offset.map { Int($0) })), ("mapping", mapping.map { .object($0.keys) } ?? .null),
      ("distance_bytes", JSON(distance.map { Int($0) })),
      ("neighbour", neighbour.map { .object($0.keys) } ?? .null),
    ]
  }
}

extension Fault.MappingDetails {
  fileprivate var keys: [(String, JSON)] {
    range.keys + [
      ("what", .string(what)), ("memory", JSON(hex: memory.map { UInt64($0) })), ("direction", JSON(direction?.name)),
      ("thread", JSON(thread.map { Int($0) })), ("mapped_ago_us", JSON(mappedAgo?.microseconds)),
      ("mapped_at", JSON(mappedAt.symbols)), ("state", .string(end?.rawValue ?? "live")),
      ("unmapped_ago_us", JSON(endedAgo?.microseconds)), ("unmapped_at", JSON(unmappedAt.symbols)),
    ]
  }
}

extension Duration {
  fileprivate var microseconds: Int {
    Int(components.seconds) * 1_000_000 + Int(components.attoseconds / 1_000_000_000_000)
  }
}
