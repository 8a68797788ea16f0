import Glibc
import IOMMU
import IOMMUSimulation
import Testing
import iommuctl

@Suite struct WorkloadTests {
  @Test(arguments: Workload.allCases)
  func mapsAndUnmapsAreAsManyAsAskedFor(_ workload: Workload) throws {
    for operations in Array(1...12) + [257, 1500] {
      let trace = workload.trace(.init(operations: operations, threads: 3, addressBits: 24), seed: 3)
      let all = trace.phases.flatMap(\.operations)
      #expect(trace.mapCount == operations)
      #expect(all.count == 2 * operations)
      #expect(all.allSatisfy { Int($0.thread) < trace.threads && Int($0.slot) < trace.slotCount })
      if operations < 1500 { #expect(try TraceText.parse(TraceText.text(of: trace)) == trace) }
    }
  }

  /// The same on every machine: pinned.
  @Test(
    arguments: zip(
      Workload.allCases,
      [
        "16b5c21135029bca", "a6ec8bc0cb43a9ba", "230f325cd61c2dfb", "c433a28184b8a725",
        "cc651003088032a7", "b1a6c09658619906", "38e07a79e1cac859", "9440602f51144b95",
        "b5013d6ca04a8f0c",
      ]))
  func theSeedDecides(_ workload: Workload, _ digest: String) {
    func trace(_ seed: UInt64) -> Trace { workload.trace(.init(operations: 1000, threads: 2), seed: seed) }
    #expect(String(trace(1).digest, radix: 16) == digest)
    #expect(trace(1) == trace(1))
    let isRandom = [.w1, .w2, .w3, .w4, .w7].contains(workload)
    #expect((trace(1).digest == trace(2).digest) != isRandom)
  }

  private func trace(_ workload: Workload, _ operations: Int, threads: Int = 2, addressBits: Int = 64) -> Trace {
    workload.trace(.init(operations: operations, threads: threads, addressBits: addressBits), seed: 1)
  }

  private func maps(_ phase: Trace.Phase) -> [Trace.Operation] { phase.operations.filter { $0.action == .map } }

  @Test func ringsAreOfListsInOrder() {
    let trace = trace(.w1, 8000)
    #expect(trace.phases.map(\.name) == ["256 descriptors", "2048 descriptors"])
    let maps = maps(trace.phases[0])
    #expect(maps.filter { $0.count == 64 }.count == 3000 && maps.allSatisfy { $0.count == 64 || $0.total <= 1 << 16 })
    // Of the lists, the oldest goes first.
    var live: [UInt32] = []
    for operation in trace.phases[0].operations {
      if operation.action == .map, operation.count == 64 {
        live.append(operation.slot)
        #expect(live.count <= 256)
      } else if operation.action == .unmap, live.contains(operation.slot) {
        #expect(live.removeFirst() == operation.slot)
      }
    }
  }

  @Test func requestsAreCompletedInAnyOrder() {
    let trace = trace(.w2, 2000)
    let sizes = Set(maps(trace.phases[0]).map(\.byteCount))
    #expect(sizes == Set((0..<6).map { 4096 << $0 }))
    #expect(trace.slotCount == 256)  // a queue a thread
    let reads = maps(trace.phases[0]).filter { $0.direction == .fromDevice }.count
    #expect((1200...1470).contains(reads))
    // In order, the slot that is freed would be the one that was mapped 128 requests before.
    var mapped: [UInt32] = [], early = 0
    for operation in trace.phases[0].operations where operation.thread == 0 {
      if operation.action == .map {
        mapped.append(operation.slot)
      } else if mapped.first != operation.slot {
        early += 1
      }
      if operation.action == .unmap { mapped.remove(at: mapped.firstIndex(of: operation.slot)!) }
    }
    #expect(early > 800)
  }

  @Test func ageingIsByAnyThread() {
    let trace = trace(.w3, 20_000, threads: 4)
    let all = trace.phases[0].operations
    var owner: [UInt32: UInt16] = [:], crossings = 0
    for operation in all {
      if operation.action == .map {
        owner[operation.slot] = operation.thread
      } else if owner[operation.slot] != operation.thread {
        crossings += 1
      }
    }
    #expect((14_000...16_000).contains(crossings))
    #expect(trace.slotCount == 8192)
    #expect(Set(maps(trace.phases[0]).map(\.byteCount)).count == 64)
  }

  @Test func theLowSpaceIsFilled() {
    let trace = trace(.w4, 40_000)
    #expect(maps(trace.phases[0]).reduce(0) { $0 + $1.total } == 1 << 32)
    #expect(trace.phases[0].operations.allSatisfy { $0.action == .map })
    let small = self.trace(.w4, 2000, addressBits: 26)
    #expect(maps(small.phases[0]).reduce(0) { $0 + $1.total } == 1 << 26)
    #expect(small.peakByteCount <= 1 << 26)
  }

  @Test func hugeMappingsAreInPieces() {
    let trace = trace(.w5, 9)
    #expect(trace.phases.map { $0.operations[0].total } == [30, 30, 30, 36, 36, 36, 40, 40, 40].map { 1 << $0 })
    #expect(trace.phases.map { $0.operations[0].byteCount } == [12, 21, 30, 12, 21, 30, 12, 21, 30].map { 1 << $0 })
  }

  @Test func producersMapAndConsumersUnmap() {
    let trace = trace(.w6, 2000, threads: 3)
    #expect(trace.threads == 4 && trace.slotCount == 512)
    for operation in trace.phases[0].operations {
      #expect(operation.thread % 2 == (operation.action == .map ? 0 : 1))
    }
  }

  @Test func halfOfThePagesAreHoles() {
    let trace = trace(.w7, 4096, addressBits: 22)
    #expect(trace.phases.map(\.name) == ["fill", "holes", "64 pages"])
    #expect(trace.phases[0].operations.count == 1024)
    #expect(trace.phases[1].operations.count == 512 && trace.phases[1].operations.allSatisfy { $0.action == .unmap })
    #expect(maps(trace.phases[2]).filter { $0.byteCount == 64 * 4096 }.count == 1536)
  }

  /// In each phase all that was there before has gone, and the buffers fill three quarters of the space.
  @Test func buffersChangeTheirSize() {
    let trace = trace(.w9, 40_000, addressBits: 24)
    #expect(trace.phases.map { Set(maps($0).map(\.byteCount)) } == [4, 16, 64, 4, 128].map { [$0 << 10] })
    for (phase, live) in zip(trace.phases, [3072, 768, 192, 3072, 96]) {
      #expect(phase.operations.prefix { $0.action == .map }.count == live)
      #expect(maps(phase).count == 8000 && phase.operations.suffix(live).allSatisfy { $0.action == .unmap })
    }
    #expect(trace.peakByteCount == 12 << 20)
  }

  /// The space below 4 GiB does not suffice: the policy trips once, and then no address is below, whatever is cached or free there.
  @Test func aChangeOfBuffersTripsOnce() throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)]), fourGiB: UInt64 = 1 << 32
    let base = unsafe mmap(nil, 1 << 32, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)!
    defer { unsafe munmap(base, 1 << 32) }
    do {
      let device = try Device("0000:00:02.0", on: machine.host, interface: .iommufd, translation: .process)
      let dma = device.dma
      // All is taken there but 8 of the 12 MiB that the trace has live at a time.
      let low = dma.usableRanges.intersection([IOVARange(start: IOVA(0), byteCount: fourGiB)!]).map(\.self)
      try #require(low.count == 2)
      let first = unsafe UnsafeRawBufferPointer(start: base, count: Int(low[0].byteCount) - 8 << 20),
        second = unsafe UnsafeRawBufferPointer(start: base, count: Int(low[1].byteCount))
      let taken = try unsafe dma.map(unsafe: first, .toDevice, at: low[0].start),
        takenToo = try unsafe dma.map(unsafe: second, .toDevice, at: low[1].start)
      let trace = Workload.w9.trace(.init(operations: 8000, addressBits: 24), seed: 1)
      let mappings = UnsafeMutablePointer<UnsafeMapping>.allocate(capacity: trace.slotCount)
      defer { unsafe mappings.deallocate() }
      var before = 0, low32 = 0, after = 0
      for operation in trace.phases.flatMap(\.operations) {
        let place = unsafe mappings + Int(operation.slot)
        if operation.action == .unmap {
          try unsafe place.move().unmap()
          continue
        }
        let memory = unsafe UnsafeRawBufferPointer(start: base, count: Int(operation.byteCount))
        let mapping = try unsafe dma.map(unsafe: memory, .fromDevice)
        if dma.statistics.addressPolicyTrips == 0 { before += 1 } else { after += 1 }
        if mapping.address.rawValue < fourGiB { low32 += 1 }
        unsafe place.initialize(to: mapping)
      }
      #expect(dma.statistics.addressPolicyTrips == 1)
      #expect(low32 == before && after > 4000, "\(before), then \(after)")
      try taken.unmap()
      try takenToo.unmap()
      device.close()
    }
    #expect(machine.isClean)
  }

  @Test func theGridHasFifteenPoints() {
    let trace = trace(.w8, 1500)
    #expect(trace.phases.count == 15 && trace.phases.allSatisfy { $0.operations.count == 200 })
    #expect(trace.phases[4].name == "2 threads, 8 pages")
    #expect(trace.phases.map { Set($0.operations.map(\.thread)).count } == [1, 2, 4, 8, 16].flatMap { [$0, $0, $0] })
    #expect(maps(trace.phases[14]).allSatisfy { $0.byteCount == 64 * 4096 })
  }
}
