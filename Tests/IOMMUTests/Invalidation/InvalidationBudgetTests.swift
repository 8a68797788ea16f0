import IOMMU
import IOMMUSimulation
import Testing

@Suite struct InvalidationBudgetTests {
  /// One command 1 µs and 100 ns each more.
  private static func calibrated() -> InvalidationBudget {
    let budget = InvalidationBudget(most: 63)
    budget.calibrate(one: 1000, several: 2500, count: 16)
    return budget
  }

  @Test func nothingIsKnownAtFirst() {
    let budget = InvalidationBudget(most: 63)
    #expect(budget.limit == 63 && budget.worthwhile == 63)
    for _ in 0..<100 { budget.note(commands: 1, nanoseconds: 1_000_000_000) }
    #expect(budget.limit == 63)
  }

  /// Halves with each two slow calls in a row, down to one command; one slow call between quick ones is nothing.
  @Test func shrinksUnderPressureAndRecovers() {
    let budget = Self.calibrated()
    // 900 for the call and 100 for each command: up to four times that is not slow.
    for _ in 0..<50 { budget.note(commands: 11, nanoseconds: 8000) }
    #expect(budget.limit == 63)
    for _ in 0..<50 {
      budget.note(commands: 11, nanoseconds: 8001)
      budget.note(commands: 11, nanoseconds: 2000)
    }
    #expect(budget.limit == 63)
    var limits: [Int] = []
    for _ in 0..<7 {
      for _ in 0..<2 { budget.note(commands: 1, nanoseconds: 100_000) }
      limits.append(budget.limit)
    }
    #expect(limits == [31, 15, 7, 3, 1, 1, 1])
    var steps = 0
    while budget.limit < 63, steps < 1000 {
      let before = budget.limit
      for _ in 0..<16 { budget.note(commands: 1, nanoseconds: 1000) }
      #expect(budget.limit > before && budget.limit <= before + (before + 3) / 4)
      steps += 1
    }
    #expect(budget.limit == 63 && steps > 10)
  }

  /// Of a queue of one's own: the commands and their sync fit into what is free, and one command goes at any rate.
  @Test(arguments: [(64, 63), (3, 2), (2, 1), (1, 1), (0, 1)])
  func freeSlots(_ free: Int, _ limit: Int) {
    #expect(InvalidationBudget.limit(freeSlots: free) == limit)
  }

  /// Commands that cost more than filling the cache again are not worth it.
  @Test func dearCommands() {
    let cheap = Self.calibrated()
    #expect(cheap.worthwhile == 63)
    // 20 µs a command, as where a hypervisor has each.
    let dear = InvalidationBudget(most: 63)
    dear.calibrate(one: 20_000, several: 20_000 * 16, count: 16)
    #expect(dear.worthwhile == 2)
  }

  private static func told(_ isDear: Bool) -> Calibration { Calibration(.told, isDear: isDear, isProcessOwned: true) }

  /// Who was told has no figure, but a bound: commands of 10 µs each are worth 4, and cheaper ones are what they were timed at.
  @Test func whatACalibrationWasTold() {
    let cheap = Self.calibrated()
    cheap.adopt(Self.told(true))
    #expect(cheap.worthwhile == 4 && cheap.limit == 63)
    cheap.adopt(Self.told(false))
    #expect(cheap.worthwhile == 63)
    cheap.adopt(Calibration(.cachingMode(unit: "dmar0"), isDear: true, isProcessOwned: true))
    #expect(cheap.worthwhile == 4)
    let dear = InvalidationBudget(most: 63)
    dear.calibrate(one: 33_000, several: 33_000 * 16, count: 16)
    #expect(dear.worthwhile == 1)
    dear.adopt(Self.told(true))
    #expect(dear.worthwhile == 1, "what was timed is dearer still")
    dear.adopt(Self.told(false))
    #expect(dear.worthwhile == 1 + 32_000 / 9_999)
  }

  /// The shortest of 64 calls with one command is no shorter than a command. The first timings were disturbed: 3 µs each.
  @Test func whatACalibrationMeasured() {
    let budget = InvalidationBudget(most: 63)
    budget.calibrate(one: 5000, several: 50_000, count: 16)
    #expect(budget.worthwhile == 11)
    budget.adopt(Calibration(.timings(shortest: 1000), isDear: false, isProcessOwned: true))
    #expect(budget.worthwhile == 33)
    // A call with one command is expected to take 1001 ns now.
    for _ in 0..<10 { budget.note(commands: 1, nanoseconds: 4004) }
    #expect(budget.limit == 63)
    for _ in 0..<2 { budget.note(commands: 1, nanoseconds: 4005) }
    #expect(budget.limit == 31)
    // What is slower than the first timings raises nothing: a queue may be full at that moment.
    budget.adopt(Calibration(.timings(shortest: 90_000), isDear: true, isProcessOwned: true))
    #expect(budget.worthwhile == 33)
    for _ in 0..<2 { budget.note(commands: 1, nanoseconds: 4005) }
    #expect(budget.limit == 15)
  }

  /// Nothing is changed where a test holds a limit, nor where nothing was timed.
  @Test func whatIsHeldStays() {
    for budget in [Self.calibrated(), InvalidationBudget(most: 63)] {
      budget.hold(at: 7)
      budget.adopt(Self.told(true))
      budget.adopt(Calibration(.timings(shortest: 1), isDear: false, isProcessOwned: true))
      for _ in 0..<10 { budget.note(commands: 1, nanoseconds: 1_000_000) }
      #expect(budget.limit == 7 && budget.worthwhile == 63)
    }
  }

  /// A fixed threshold: what is longer is invalidated with everything else, and what is not is none of its business.
  @Test func theLongest() {
    let budget = InvalidationBudget(most: 63)
    #expect(budget.allows(.max))
    budget.setLongest(8192)
    #expect(budget.allows(8192) && !budget.allows(8193) && budget.limit == 63)
    budget.setLongest(0)
    #expect(!budget.allows(4096))
  }

  /// On tables of the process, on either hardware: one command either way, and what the device has cached of others stays or goes.
  @Test(arguments: NestedHardware.allCases, [(4, true), (3, false), (0, false)])
  func unmapsBeyondAThreshold(_ hardware: NestedHardware, _ threshold: (pages: UInt64, keeps: Bool)) throws {
    let address = "0000:00:02.0"
    let machine = SimulatedHost(hardware.machine, devices: [address: EduModel(addressBits: 64)])
    let device = try Device(address, on: machine.host, translation: .process), dma = device.dma
    let other = try dma.map(try dma.buffer(byteCount: 4096), .bidirectional)
    let mapping = try dma.map(try dma.buffer(byteCount: 16_384), .bidirectional)
    func reads(_ iova: UInt64) -> Int? {
      machine.kernel.deviceTouches(PCIAddress(address)!, iova, byteCount: 8, isWrite: true)
    }
    let address64 = other.address.rawValue, unmapped = mapping.address.rawValue
    #expect(reads(address64) ?? 0 > 0 && reads(address64) == 0 && reads(unmapped) != nil)
    dma.processOwned?.budget.setLongest(threshold.pages * 4096)
    let before = dma.statistics.invalidations, sent = hardware.counts(machine).process
    _ = try mapping.unmap()
    #expect(dma.statistics.invalidations == before + 1)
    #expect((hardware.counts(machine).process - sent).ofTags == (threshold.keeps ? 0 : 1))
    #expect(reads(unmapped) == nil, "out of reach at any rate")
    #expect((reads(address64) == 0) == threshold.keeps)
    _ = try other.unmap()
    device.close()
  }
}
