import CIOMMU
import IOMMU
import Testing

@Suite("Registers")
struct RegistersTests {
  static let page = Int(ci_page_size())
  static let mappable: UInt32 = 7

  /// A kernel with one BAR, and the BAR opened.
  private func bar(
    _ byteCount: Int, flags: UInt32 = 3, sparse: [Range<UInt64>]? = nil
  ) throws -> (TestKernel, Registers) {
    let kernel = TestKernel { $0.regions = [.init(2, byteCount, flags: flags, sparse: sparse)] }
    return (kernel, try kernel.open(2))
  }

  // MARK: Opening

  @Test func aBarThatIsNotThereIsTold() throws {
    let kernel = TestKernel { $0.regions = [.init(2, 0)] }
    let error = #expect(throws: DMAError.self) { try kernel.open(2) }
    #expect(error?.code == .noSuchResource)
    #expect(error?.device == "0000:03:00.0")
    #expect(error?.detail?.contains("BAR 2") == true)
    #expect(kernel.leaks == 0)
  }

  @Test func aBarWithoutAccessIsNotThere() throws {
    let kernel = TestKernel { $0.regions = [.init(0, 4096, flags: 4)] }
    #expect(throws: DMAError.self) { try kernel.open(0) }
  }

  @Test func aBarLongerThanTheAddressSpaceIsRefused() throws {
    let kernel = TestKernel()
    let info = VFIORegionInfo(flags: 3, index: 0, byteCount: .max, offset: 0)
    let handle = try kernel.handle()
    let error = #expect(throws: DMAError.self) { try Registers(handle, region: info) }
    #expect(error?.code == .mismatch)
  }

  @Test func aBarThatCanBeMappedIsMappedAsAWhole() throws {
    let (kernel, bar) = try bar(Self.page, flags: Self.mappable)
    #expect(bar.byteCount == Self.page)
    #expect(bar.mappedRanges == [0..<Self.page])
    #expect(kernel.calls.filter { $0.hasPrefix("map") } == ["map \(UInt64(2) << 40)+\(Self.page)"])
    #expect(kernel.calls.contains("advise dontFork"))
  }

  @Test func aBarSmallerThanAPageIsMapped() throws {
    let (_, bar) = try bar(256, flags: Self.mappable)
    #expect(bar.mappedRanges == [0..<256])
    bar[252] = 7
    #expect(bar[252] == 7)
  }

  @Test func aRegionAtAnOddOffsetIsNotMapped() throws {
    let kernel = TestKernel { $0.regions = [.init(0, 4096, flags: Self.mappable, offset: 0x10)] }
    #expect(try kernel.open(0).mappedRanges.isEmpty)
  }

  @Test(arguments: ["map", "advise"])
  func aMappingThatFailsLeavesNothing(_ call: String) throws {
    let page = UInt64(Self.page)
    let kernel = TestKernel {
      $0.regions = [.init(2, 4 * Self.page, flags: 7, sparse: [0..<page, 2 * page..<3 * page])]
    }
    kernel.fail(call, nil, .noMemory)
    let error = #expect(throws: DMAError.self) { try kernel.open(2) }
    #expect(error?.code == .outOfMemory)
    #expect(error?.address == 2 * page)
    #expect(error?.byteCount == page)
    #expect(kernel.leaks == 0)
  }

  @Test func mmapThatASignalCutsShortIsRepeated() throws {
    let kernel = TestKernel { $0.regions = [.init(2, 4096, flags: 7)] }
    kernel.fail("map", .interrupted, .interrupted)
    #expect(try kernel.open(2).mappedRanges.count == 1)
  }

  // MARK: Access

  @Test(arguments: [UInt32(3), 7])
  func everyWidthReadsWhatItWrote(_ flags: UInt32) throws {
    let (_, bar) = try bar(4096, flags: flags)
    bar.store(UInt8(0x12), at: 1)
    bar.store(UInt16(0x3456), at: 2)
    bar.store(UInt32(0x789a_bcde), at: 4)
    bar.store(0x0102_0304_0506_0708 as UInt64, at: 8)
    #expect(bar.load(at: 1, as: UInt8.self) == 0x12)
    #expect(bar.load(at: 2, as: UInt16.self) == 0x3456)
    #expect(bar.load(at: 4, as: UInt32.self) == 0x789a_bcde)
    #expect(bar.load(at: 8, as: UInt64.self) == 0x0102_0304_0506_0708)
    #expect(bar[0] == 0x3456_1200)
    bar[0x10] = 0xffff_ffff
    bar.relaxedStore(UInt16(0), at: 0x12)
    #expect(bar.relaxedLoad(at: 0x10, as: UInt32.self) == 0xffff)
    #expect(bar.failure == nil)
  }

  @Test func aRelaxedAccessHasEveryWidth() throws {
    for flags in [UInt32(3), 7] {
      let (_, bar) = try bar(64, flags: flags)
      bar.relaxedStore(UInt8(1), at: 0)
      bar.relaxedStore(UInt16(2), at: 2)
      bar.relaxedStore(UInt32(3), at: 4)
      bar.relaxedStore(UInt64(4), at: 8)
      #expect(bar.relaxedLoad(at: 0, as: UInt8.self) == 1)
      #expect(bar.relaxedLoad(at: 2, as: UInt16.self) == 2)
      #expect(bar.relaxedLoad(at: 4, as: UInt32.self) == 3)
      #expect(bar.relaxedLoad(at: 8, as: UInt64.self) == 4)
    }
  }

  @Test func withoutAMappingEachAccessIsOneCallOfItsWidth() throws {
    let (kernel, bar) = try bar(4096)
    let base = UInt64(2) << 40
    bar[0x10] = 1
    bar.store(UInt64(2), at: 0x18)
    _ = bar.load(at: 0x21, as: UInt8.self)
    _ = bar.load(at: 0x22, as: UInt16.self)
    #expect(
      kernel.with { $0.accesses } == [
        .init(isWrite: true, position: base + 0x10, width: 4),
        .init(isWrite: true, position: base + 0x18, width: 8),
        .init(isWrite: false, position: base + 0x21, width: 1),
        .init(isWrite: false, position: base + 0x22, width: 2),
      ])
  }

  @Test func aMappedBarAsksTheKernelNothing() throws {
    let (kernel, bar) = try bar(4096, flags: 7)
    kernel.clearCalls()
    bar[0] = 1
    #expect(bar[0] == 1)
    #expect(kernel.calls.isEmpty)
  }

  @Test func bytesAreLittleEndian() throws {
    let (kernel, bar) = try bar(16)
    bar[0] = 0x0403_0201
    #expect(kernel.with { Array($0.regions[0].bytes[0..<4]) } == [1, 2, 3, 4])
  }

  // MARK: Sparse BARs

  @Test func ofASparseBarOnlyTheListedPartsAreMapped() throws {
    let page = Self.page
    let parts = [UInt64(2 * page)..<UInt64(4 * page), 0..<UInt64(page)]
    let (kernel, bar) = try bar(4 * page, flags: 7, sparse: parts)
    #expect(bar.mappedRanges == [0..<page, 2 * page..<4 * page])
    bar[0] = 1
    bar[2 * page] = 2
    bar.store(UInt64(3), at: 4 * page - 8)
    #expect(kernel.with { $0.accesses }.isEmpty)
    #expect((bar[0], bar[2 * page], bar[4 * page - 8]) == (1, 2, 3))

    bar[page] = 4
    bar[2 * page - 4] = 5
    #expect((bar[page], bar[2 * page - 4]) == (4, 5))
    #expect(kernel.with { $0.accesses.count } == 4)
    bar.close()
    #expect((bar[0], bar[page], bar[2 * page]) == (.max, .max, .max))
    bar[2 * page] = 1
    #expect(kernel.with { $0.covered.count } == 2)
  }

  @Test func partsAreCutInwardsToWholePagesAndDoNotOverlap() {
    let page: UInt64 = 4096
    func ranges(_ sparse: [Range<UInt64>], _ byteCount: UInt64 = 4 * page) -> [Range<Int>] {
      VFIORegionInfo(flags: 7, index: 0, byteCount: byteCount, offset: 0, sparse: sparse)
        .mappableRanges(pageSize: page)
    }
    #expect(ranges([]) == [])
    #expect(ranges([0..<page + 1]) == [0..<4096])
    #expect(ranges([1..<2 * page]) == [4096..<8192])
    #expect(ranges([1..<page]) == [])
    #expect(ranges([0..<2 * page, page..<3 * page]) == [0..<8192, 8192..<12288])
    #expect(ranges([page..<100 * page]) == [4096..<16384])
    #expect(ranges([.max - 1..<UInt64.max]) == [])
    #expect(ranges([0..<256], 256) == [0..<256])
    #expect(ranges([5 * page..<6 * page]) == [])
  }

  // MARK: Failures

  @Test func aReadThatFailsGivesAllOnesAndIsKept() throws {
    let (kernel, bar) = try bar(64)
    kernel.fail("pread", .inputOutput)
    #expect(bar[0] == .max)
    #expect(bar.failure?.errno == .inputOutput)
    kernel.fail("pwrite", .noDevice)
    bar[0] = 1
    #expect(bar.failure?.errno == .inputOutput, "the first is kept")
    #expect(bar[0] == 0, "later ones go through")
  }

  @Test func anAccessThatIsCutShortIsAFailure() throws {
    let (kernel, bar) = try bar(64)
    kernel.with { $0.shortAccess = true }
    #expect(bar.load(at: 0, as: UInt16.self) == .max)
    #expect(bar.failure?.code == .mismatch)
    bar[0] = 1
  }

  @Test func anAccessThatSignalsCutShortIsRepeatedButNotForEver() throws {
    let (kernel, bar) = try bar(64)
    kernel.fail("pread", .interrupted, .interrupted, .interrupted)
    #expect(bar[0] == 0)
    #expect(kernel.with { $0.accesses.count } == 1)
    for _ in 0..<1000 { kernel.fail("pread", .interrupted) }
    #expect(bar[0] == .max)
    #expect(bar.failure?.errno == .interrupted)
  }

  // MARK: Closing

  @Test(arguments: [UInt32(3), 7])
  func afterClosingReadsGiveAllOnesAndWritesGoNowhere(_ flags: UInt32) throws {
    let (kernel, bar) = try bar(4096, flags: flags)
    bar[0] = 5
    bar.close()
    bar.close()
    kernel.clearCalls()
    #expect(bar[0] == .max)
    bar[0] = 6
    #expect(bar.load(at: 0, as: UInt64.self) == .max)
    #expect(bar.load(at: 3, as: UInt8.self) == 0xff)
    #expect(kernel.calls.isEmpty)
    #expect(bar.failure == nil)
  }

  @Test func closingCoversTheMappingOnceAndTheEndUnmapsIt() throws {
    let kernel = TestKernel { $0.regions = [.init(2, 4096, flags: 7)] }
    var bar: Registers? = try kernel.open(2)
    bar?.close()
    bar?.close()
    #expect(kernel.with { $0.covered.count } == 1)
    #expect(kernel.with { $0.mappings.count } == 1)
    bar = nil
    #expect(kernel.leaks == 0)
  }

  @Test func aCoverThatFailsStillAnswersAllOnes() throws {
    let (kernel, bar) = try bar(4096, flags: 7)
    bar[0] = 1
    kernel.fail("cover", .noMemory)
    bar.close()
    #expect(bar[0] == .max)
  }

  @Test func aClosedHandleAnswersAllOnesWithoutAFailure() throws {
    let kernel = TestKernel { $0.regions = [.init(2, 64)] }
    let handle = try kernel.handle()
    let bar = try Registers(handle, region: kernel.with { $0.regions[0].info })
    handle.close()
    #expect(bar[0] == .max)
    bar[0] = 1
    #expect(bar.failure == nil)
  }

  @Test func threadsThatAccessWhileItClosesSeeEitherValueOrAllOnes() async throws {
    for flags in [UInt32(3), 7] {
      let (_, bar) = try bar(4096, flags: flags)
      bar[0] = 7
      let failures = await inThreads(4) { thread in
        if thread == 3 { return bar.close() }
        for _ in 0..<2000 {
          let value = bar[0]
          try #require(value == 7 || value == .max)
        }
      }
      #expect(failures.isEmpty)
      #expect(bar[0] == .max)
    }
  }

  // MARK: Mistakes of the program

  @Test func anOffsetOutsideStopsTheProgram() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      let kernel = TestKernel { $0.regions = [.init(2, 64)] }
      try kernel.open(2)[64] = 0
    }
    #expect(result.says("BAR 2 of 0000:03:00.0: 4-byte access at offset 64 is outside its 64 bytes"))
  }

  @Test func anOffsetThatIsNotAlignedStopsTheProgram() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      let kernel = TestKernel { $0.regions = [.init(2, 64, flags: 7)] }
      _ = try kernel.open(2).load(at: 4, as: UInt64.self)
    }
    #expect(result.says("8-byte access at offset 4 is not a multiple of its width"))
  }

  @Test func anOffsetBelowZeroStopsTheProgram() async {
    await #expect(processExitsWith: .failure) {
      let kernel = TestKernel { $0.regions = [.init(2, 64, flags: 7)] }
      _ = try kernel.open(2)[-4]
    }
  }

  @Test func aBarTooSmallForTheWidthStopsTheProgram() async {
    await #expect(processExitsWith: .failure) {
      let kernel = TestKernel { $0.regions = [.init(2, 4, flags: 7)] }
      _ = try kernel.open(2).load(at: 0, as: UInt64.self)
    }
  }
}

extension TestKernel {
  func open(_ index: UInt32) throws -> Registers {
    let info = with { $0.regions.first { $0.info.index == index }!.info }
    return try Registers(handle(), region: info)
  }
}

extension ExitTest.Result? {
  fileprivate func says(_ text: String) -> Bool {
    guard let self else { return false }
    return String(decoding: self.standardErrorContent, as: UTF8.self).contains(text)
  }
}
