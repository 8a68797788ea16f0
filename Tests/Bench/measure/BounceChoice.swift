import Glibc
import IOMMU

/// What the library chooses, to copy or to map, against the better of the two at each length of memory of the caller's: the
/// better one's time as a share of the choice's, at the length and in the direction where that is least.
enum BounceChoice {
  private static let rounds = 11

  /// - Parameter isTold: Whether each length's times are printed, in nanoseconds a pair.
  static func run(isTold: Bool = false) throws -> Measurement {
    let device = try Device("0000:00:02.0", translation: .kernel), dma = device.dma
    defer { device.close() }
    var options = AutomaticOptions()
    options.copiesShortMemory = true
    let ways: [Protection] = [.strict, .bounce, .automatic(options)]
    let lengths = (6...20).map { 1 << $0 }, directions: [DMADirection] = [.toDevice, .fromDevice]
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 4096)
    defer { unsafe memory.deallocate() }
    unsafe memory.initializeMemory(as: UInt8.self, repeating: 1)
    // By length and direction, then by way.
    var times = [[[Double]]](
      repeating: [[Double]](repeating: [], count: ways.count), count: lengths.count * directions.count)
    var limit = 0
    for round in 0...rounds {
      for turn in 0..<ways.count {
        let way = (turn + round) % ways.count
        try dma.switchProtection(to: ways[way])
        limit = max(limit, dma.copiedByteCount(.toDevice))
        for (index, length) in lengths.enumerated() {
          let part = unsafe UnsafeRawBufferPointer(rebasing: memory[..<length])
          let pairs = max(6, min(64, (1 << 19) / length))
          for (number, direction) in directions.enumerated() {
            // What a switch, or a length before, has left in the caches is no part of it.
            for _ in 0..<2 { try unsafe dma.map(unsafe: part, direction, widening: true).unmap() }
            let began = nanoseconds()
            for _ in 0..<pairs { try unsafe dma.map(unsafe: part, direction, widening: true).unmap() }
            let time = Double(nanoseconds() - began) / Double(pairs)
            if round > 0 { times[index * directions.count + number][way].append(time) }
          }
        }
      }
    }
    if isTold {
      print("direction bytes mapped copied chosen")
      for (index, ways) in times.enumerated() {
        let medians = ways.map { "\(Int(median($0)))" }.joined(separator: " ")
        print("\(directions[index % directions.count]) \(lengths[index / directions.count]) \(medians)")
      }
    }
    let shares = times.map { ways in min(median(ways[0]), median(ways[1])) / median(ways[2]) }
    let worst = shares.indices.min { shares[$0] < shares[$1] }!
    let place =
      "\(lengths[worst / directions.count]) bytes \(worst % directions.count == 0 ? "to-device" : "from-device")"
    return Measurement(
      value: shares[worst], anchor: "least for \(place); copied up to, bytes", anchorValue: Double(limit),
      repeats: rounds)
  }
}
