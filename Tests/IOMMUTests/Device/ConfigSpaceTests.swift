import IOMMU
import Testing

@Suite("Config space")
struct ConfigSpaceTests {
  /// A kernel whose device has a config space with these bytes.
  static func kernel(
    _ byteCount: Int = 4096, _ change: (inout TestKernel.State) -> Void = { _ in }
  ) -> TestKernel {
    TestKernel { state in
      state.regions = [.init(VFIOPCI.config, byteCount)]
      state.config(0, 0x34, 0x12, 0xe8, 0x11)
      change(&state)
    }
  }

  // MARK: Access

  @Test func aMissingRegionIsTold() throws {
    for (flags, byteCount) in [(UInt32(3), 0), (2, 256), (3, 63)] {
      let kernel = TestKernel { $0.regions = [.init(VFIOPCI.config, byteCount, flags: flags)] }
      let error = #expect(throws: DMAError.self) { try kernel.config() }
      #expect(error?.code == .noSuchResource)
    }
  }

  @Test func everyWidthReadsAndWritesItsWidth() throws {
    let kernel = Self.kernel()
    let config = try kernel.config()
    try config.store(UInt32(0x4433_2211), at: 0x40)
    try config.store(UInt16(0x6655), at: 0x46)
    try config.store(UInt8(0x99), at: 0x45)
    #expect(try config.load(at: 0x40, as: UInt32.self) == 0x4433_2211)
    #expect(try config.load(at: 0x40, as: UInt8.self) == 0x11)
    #expect(try config.load(at: 0x42, as: UInt16.self) == 0x4433)
    #expect(try config.load(at: 0x44, as: UInt32.self) == 0x6655_9900)
    #expect(kernel.with { $0.accesses.map(\.width) } == [4, 2, 1, 4, 1, 2, 4])
    #expect(kernel.with { $0.accesses[0].position } == (UInt64(VFIOPCI.config) << 40) + 0x40)
  }

  @Test(arguments: [(-4, 4), (4096, 1), (4094, 4), (1, 2), (2, 4), (.max, 1), (.min, 4)])
  func anOffsetOutsideOrNotAlignedIsRefused(_ offset: Int, _ width: Int) throws {
    let kernel = Self.kernel()
    let config = try kernel.config()
    let error = #expect(throws: DMAError.self) {
      switch width {
      case 1: _ = try config.load(at: offset, as: UInt8.self)
      case 2: try config.store(UInt16(0), at: offset)
      default: try config.store(UInt32(0), at: offset)
      }
    }
    #expect(error?.code == .invalidArgument)
    #expect(error?.byteCount == UInt64(width))
    #expect(kernel.with { $0.accesses.isEmpty })
  }

  @Test func errorsOfTheKernelAreTypedAndComplete() throws {
    let kernel = Self.kernel()
    let config = try kernel.config()
    for (errno, code) in [
      (Errno.noDevice, DMAError.Code.gone), (.noSuchAddressOrDevice, .gone), (.inputOutput, .system),
      (.notPermitted, .permission), (.accessDenied, .permission), (.busy, .busy), (.noMemory, .outOfMemory),
      (.notSupported, .notSupported), (.timedOut, .timedOut), (.tooManyDescriptors, .system),
    ] {
      kernel.fail("pread", errno)
      let error = #expect(throws: DMAError.self) { try config.load(at: 0, as: UInt16.self) }
      #expect(error?.code == code)
      #expect(error?.errno == errno)
      #expect(error?.operation == "pread")
      #expect(error?.device == "0000:03:00.0")
    }
  }

  @Test func anAccessCutShortIsAMismatch() throws {
    let kernel = Self.kernel()
    let config = try kernel.config()
    kernel.with { $0.shortAccess = true }
    #expect(throws: DMAError.self) { try config.load(at: 0, as: UInt32.self) }
    let error = #expect(throws: DMAError.self) { try config.store(UInt32(1), at: 4) }
    #expect(error?.code == .mismatch)
    #expect(error?.detail?.contains("3 of 4 bytes") == true)
  }

  @Test func aClosedDeviceIsTold() throws {
    let kernel = Self.kernel()
    let handle = try kernel.handle()
    let config = try ConfigSpace(handle, region: kernel.with { $0.regions[0].info })
    #expect(handle.close())
    let error = #expect(throws: DMAError.self) { try config.command() }
    #expect(error?.code == .closed)
  }

  // MARK: The header

  @Test func idsAreRead() throws {
    let config = try Self.kernel().config()
    #expect(try config.vendorID() == 0x1234)
    #expect(try config.deviceID() == 0x11e8)
  }

  @Test func aDeviceThatHasGoneIsTold() throws {
    let config = try Self.kernel { $0.config(0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff) }.config()
    for call in [
      { _ = try config.vendorID() }, { try config.updateCommand(set: .memory) },
      { _ = try config.capabilities() },
    ] as [() throws -> Void] {
      let error = #expect(throws: DMAError.self) { try call() }
      #expect(error?.code == .gone)
    }
  }

  @Test func commandBitsAreSetAndClearedAndOthersLeft() throws {
    let kernel = Self.kernel { $0.config(4, 0x40, 0x01) }
    let config = try kernel.config()
    try config.updateCommand(set: [.memory, .busMaster])
    #expect(try config.command() == [.memory, .busMaster, .init(rawValue: 0x140)])
    try config.updateCommand(set: .interruptDisable, clear: .busMaster)
    #expect(try config.load(at: 4, as: UInt16.self) == 0x0542)
    try config.updateCommand(set: .io, clear: .memory)
    #expect(try config.load(at: 4, as: UInt16.self) == 0x0541)
  }

  @Test func aChangeThatChangesNothingDoesNotWrite() throws {
    let kernel = Self.kernel { $0.config(4, 0x06, 0x00) }
    let config = try kernel.config()
    try config.updateCommand(set: .memory, clear: .io)
    #expect(kernel.with { $0.accesses.allSatisfy { !$0.isWrite } })
  }

  @Test func changesOfSeveralThreadsDoNotLoseEachOther() async throws {
    let config = try Self.kernel().config()
    let bits: [ConfigSpace.Command] = [.io, .memory, .busMaster, .interruptDisable]
    let failures = await inThreads(4) { thread in
      for _ in 0..<200 {
        try config.updateCommand(set: bits[thread])
        try #require(try config.command().contains(bits[thread]))
        try config.updateCommand(clear: bits[thread])
      }
      try config.updateCommand(set: bits[thread])
    }
    #expect(failures.isEmpty)
    #expect(try config.command() == [.io, .memory, .busMaster, .interruptDisable])
  }

  @Test func aTurnThatNobodyPassesEndsTheWait() throws {
    let kernel = Self.kernel { $0.clock = 0 }
    let config = try kernel.config()
    // A thread that has the turn and hangs: the token is taken, and not given back.
    kernel.with { state in
      state.hook = { call in
        guard call == "pread" else { return }
        kernel.with { $0.hook = nil }
        let error = #expect(throws: DMAError.self) { try config.updateCommand(set: .memory) }
        #expect(error?.code == .timedOut)
        #expect(error?.detail?.contains("Another thread") == true)
      }
      // The test must not sleep ten seconds: the wait is a signal each time, and the clock runs.
      state.failures["wait"] = [.interrupted]
      state.clock = .max - 1
    }
    try config.updateCommand(set: .memory)
    #expect(try config.command() == .memory)
  }
}

extension TestKernel {
  func config() throws -> ConfigSpace {
    let info = with { $0.regions.first { $0.info.index == VFIOPCI.config }!.info }
    return try ConfigSpace(handle(), region: info)
  }
}
