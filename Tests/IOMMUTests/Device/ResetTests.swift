import IOMMU
import Testing

@Suite("Reset and pending transactions")
struct ResetTests {
  static var express: (inout TestKernel.State) -> Void { CapabilitiesTests.list([(0x10, 0x40)]) }
  static var features: (inout TestKernel.State) -> Void { CapabilitiesTests.list([(0x13, 0x40)]) }

  private func methods(_ change: (inout TestKernel.State) -> Void) throws -> ConfigSpace.ResetMethods {
    try ConfigSpaceTests.kernel(4096, change).config().resetMethods()
  }

  // MARK: What capabilities say

  @Test func functionLevelResetIsFound() throws {
    #expect(
      try methods { state in
        Self.express(&state)
        state.config(0x44, 0, 0, 0, 0x10)
      } == .functionLevel)
    #expect(try methods(Self.express).isEmpty)
  }

  @Test func resetByAdvancedFeaturesNeedsBothBits() throws {
    for (able, expected) in [(UInt8(3), true), (1, false), (2, false), (0, false)] {
      let found = try methods { state in
        Self.features(&state)
        state.config(0x43, able)
      }
      #expect(found.contains(.advancedFeatures) == expected)
    }
  }

  @Test func resetByPowerStateIsFoundUnlessDenied() throws {
    let power = CapabilitiesTests.list([(1, 0x40)])
    #expect(try methods(power) == .powerManagement)
    #expect(
      try methods { state in
        power(&state)
        state.config(0x44, 8, 0)
      }.isEmpty)
  }

  @Test func aCapabilityAtTheVeryEndIsNotReadBeyond() throws {
    for id in [UInt8(1), 0x10, 0x13] {
      #expect(try methods(CapabilitiesTests.list([(id, 0xfc)])).isEmpty)
    }
  }

  // MARK: Pending transactions

  @Test func withoutACapabilityItIsUnknown() throws {
    let config = try ConfigSpaceTests.kernel(256).config()
    #expect(try config.waitForTransactions(timeout: .seconds(1)) == .unknown)
  }

  @Test func noneIsToldAtOnce() throws {
    for list in [Self.express, Self.features] {
      let kernel = ConfigSpaceTests.kernel(4096, list)
      #expect(try kernel.config().waitForTransactions(timeout: .seconds(1)) == .none)
      #expect(kernel.with { $0.slept.isEmpty })
    }
  }

  @Test(arguments: [(0x4a, UInt8(0x20), true), (0x45, 1, false)])
  func itWaitsUntilTheyAreAnswered(_ offset: Int, _ bit: UInt8, _ isExpress: Bool) throws {
    let kernel = ConfigSpaceTests.kernel(4096) { state in
      (isExpress ? Self.express : Self.features)(&state)
      state.config(offset, bit)
      state.clock = 0
    }
    let config = try kernel.config()
    kernel.with { state in
      state.hook = { call in
        if call == "pread", kernel.with({ $0.slept.count }) == 5 { kernel.with { $0.config(offset, 0) } }
      }
    }
    #expect(try config.waitForTransactions(timeout: .seconds(1)) == .none)
    #expect(kernel.with { $0.slept } == [50, 100, 200, 400, 800].map { .microseconds($0) })
  }

  @Test func itGivesUpWhenTheTimeIsUp() throws {
    let kernel = ConfigSpaceTests.kernel(4096) { state in
      Self.express(&state)
      state.config(0x4a, 0x20)
      state.clock = 0
    }
    #expect(try kernel.config().waitForTransactions(timeout: .milliseconds(200)) == .some)
    let slept = kernel.with { $0.slept }
    #expect(slept.reduce(.zero, +) == .milliseconds(200), "not longer than asked")
    #expect(slept.max() == .milliseconds(10))
    #expect(slept.count < 30)
  }

  @Test func aClockThatStandsEndsItToo() throws {
    let kernel = ConfigSpaceTests.kernel(4096) { state in
      Self.express(&state)
      state.config(0x4a, 0x20)
      state.clock = 0
      state.hook = nil
    }
    let config = try kernel.config()
    kernel.with { state in state.hook = { _ in kernel.with { $0.clock = 0 } } }
    #expect(try config.waitForTransactions(timeout: .milliseconds(1)) == .some)
  }

  @Test func aDeviceThatGoesMeanwhileIsTold() throws {
    let kernel = ConfigSpaceTests.kernel(4096) { state in
      Self.express(&state)
      state.config(0x4a, 0x20)
      state.clock = 0
    }
    let config = try kernel.config()
    kernel.with { state in
      state.hook = { call in
        guard call == "pread", !kernel.with({ $0.slept.isEmpty }) else { return }
        kernel.with { state in state.regions[0].bytes = Array(repeating: 0xff, count: 4096) }
      }
    }
    let error = #expect(throws: DMAError.self) { try config.waitForTransactions(timeout: .seconds(1)) }
    #expect(error?.code == .gone)
  }

  // MARK: Reset

  private func reset(_ kernel: TestKernel, flags: UInt32 = 1) throws -> DeviceReset {
    DeviceReset(try kernel.handle(), info: .init(flags: flags, regionCount: 9, interruptCount: 5))
  }

  @Test func aResetIsOneCall() throws {
    let kernel = ConfigSpaceTests.kernel()
    try reset(kernel).perform(nil)
    #expect(kernel.calls.filter { $0 == "reset" }.count == 1)
  }

  @Test func withoutOneTheReasonIsTold() throws {
    let kernel = ConfigSpaceTests.kernel()
    let device = try reset(kernel, flags: 2)
    #expect(!device.isSupported)
    let error = #expect(throws: DMAError.self) { try device.perform(try kernel.config()) }
    #expect(error?.code == .noSuchResource)
    #expect(error?.detail?.contains("neither function-level reset nor") == true)
    #expect(error?.remedy?.contains("reset_method") == true)
    #expect(!kernel.calls.contains("reset"))
  }

  @Test func withoutOneThatTheDeviceOffersThatIsTold() throws {
    let kernel = ConfigSpaceTests.kernel(4096) { state in
      Self.express(&state)
      state.config(0x44, 0, 0, 0, 0x10)
    }
    let error = #expect(throws: DMAError.self) { try reset(kernel, flags: 2).perform(try kernel.config()) }
    #expect(error?.detail?.contains("though it offers function-level reset") == true)
    let other = #expect(throws: DMAError.self) { try reset(kernel, flags: 2).perform(nil) }
    #expect(other?.detail == "The kernel knows no reset of this device alone")
  }

  @Test func aDeviceThatIsLockedIsTriedAgain() throws {
    let kernel = TestKernel {
      $0.resets = [.wouldBlock, .wouldBlock, nil]
      $0.clock = 0
    }
    try reset(kernel).perform(nil)
    #expect(kernel.with { $0.slept } == [.milliseconds(1), .milliseconds(2)])
  }

  @Test func aDeviceThatStaysLockedIsBusy() throws {
    let kernel = TestKernel {
      $0.resets = Array(repeating: .wouldBlock, count: 100)
      $0.clock = 0
    }
    let error = #expect(throws: DMAError.self) { try reset(kernel).perform(nil) }
    #expect(error?.code == .busy)
    #expect(error?.errno == .wouldBlock)
    #expect(kernel.with { $0.slept.reduce(.zero, +) } < .seconds(2))
  }

  @Test func aResetThatFailsIsTold() throws {
    let kernel = TestKernel { $0.resets = [.inputOutput] }
    let error = #expect(throws: DMAError.self) { try reset(kernel).perform(nil) }
    #expect(error?.operation == "VFIO_DEVICE_RESET")
    #expect(error?.errno == .inputOutput)
  }
}
